package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "pdaudit",
		Short:         "verify proofs and exported ledgers of pdvault, offline",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          needsSubcommand,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	check := &cobra.Command{
		Use:   "verify",
		Short: "verify a proof, a ledger, the certificate of an erasure, or what a ledger says about one person",
		Args:  cobra.NoArgs,
		RunE:  needsSubcommand,
	}
	check.AddCommand(newVerifyProof(), newVerifyLedger(), newVerifySubject(), newVerifyErasure())
	root.AddCommand(check, newVerifyErasureAlias(), newAct(), newShow(), newVersion())
	return root
}

func needsSubcommand(cmd *cobra.Command, _ []string) error {
	return fmt.Errorf("%s needs a subcommand; see %s --help", cmd.CommandPath(), cmd.CommandPath())
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			version := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
				version = info.Main.Version
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "pdaudit %s\n", version)
			return err
		},
	}
}
