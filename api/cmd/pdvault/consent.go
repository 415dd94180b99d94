package main

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/api"
)

func consentCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "consent", Short: "Give, list and withdraw consents", Args: args(cobra.NoArgs), RunE: helpOnly}
	cmd.AddCommand(consentGiveCommand(c), consentListCommand(c), consentWithdrawCommand(c))
	return cmd
}

// helpOnly is the action of a command that only has others beneath it.
func helpOnly(cmd *cobra.Command, _ []string) error { return cmd.Help() }

func consentGiveCommand(c *connection) *cobra.Command {
	var consent api.GiveConsent
	var key, notAfter, notice, capture string
	cmd := &cobra.Command{
		Use:   "give SUBJECT --purpose PURPOSE",
		Short: "Record a consent; prints the receipt",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, client, err := target(c, a)
			if err != nil {
				return err
			}
			if notAfter != "" {
				if consent.NotAfter, err = time.Parse(time.RFC3339, notAfter); err != nil {
					return usagef("--not-after must be an RFC 3339 time")
				}
			}
			if notice != "" {
				text, err := readFile("notice", notice)
				if err != nil {
					return err
				}
				sum := sha256.Sum256(text)
				consent.NoticeSHA256 = hex.EncodeToString(sum[:])
			}
			if capture != "" {
				raw, err := readFile("capture", capture)
				if err != nil {
					return err
				}
				if consent.Capture = raw; !consent.Capture.IsValid() || consent.Capture.Kind() != jsontext.KindBeginObject {
					return usagef("--capture must hold one JSON object")
				}
			}
			receipt, err := client.GiveConsent(cmd.Context(), key, id, consent)
			return printed(cmd, receipt, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&consent.Purpose, "purpose", "", "purpose that rests on consent (required)")
	_ = cmd.MarkFlagRequired("purpose") // the flag is defined above
	f.Int64Var(&consent.Policy, "policy", 0, "version of the policy that the person saw; default: the current one")
	f.StringVar(&consent.Language, "language", "", "of the notice, BCP 47")
	f.StringVar(&notAfter, "not-after", "", "RFC 3339 time at which it ends; default: when withdrawn")
	f.BoolVar(&consent.SeparateDocument, "separate-document", false, "it was given apart from other terms")
	f.StringVar(&notice, "notice", "", "file with the notice that the person saw; only its SHA-256 is sent")
	f.StringVar(&capture, "capture", "", "file with a JSON object that says how it was given; sealed")
	f.StringVar(&key, "key", "", "idempotency key")
	return cmd
}

func consentListCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use:   "list SUBJECT",
		Short: "List the consents of a subject",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, client, err := target(c, a)
			if err != nil {
				return err
			}
			list, err := client.Consents(cmd.Context(), id)
			return printed(cmd, api.Consents{Consents: list}, err)
		},
	}
}

func consentWithdrawCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use:   "withdraw CONSENT",
		Short: "Withdraw a consent: no read rests on it from now on",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, client, err := target(c, a)
			if err != nil {
				return err
			}
			consent, err := client.WithdrawConsent(cmd.Context(), id)
			return printed(cmd, consent, err)
		},
	}
}
