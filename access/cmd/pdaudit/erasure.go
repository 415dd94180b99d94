package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger/verify"
)

func newVerifyErasure() *cobra.Command {
	var keys keyFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "erasure CERT.json --ledger-key KEY [--witness-key KEY]... [--quorum N] [--json]",
		Short: "verify the certificate of an erasure",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ring, err := keys.load()
			if err != nil {
				return err
			}
			cert, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the certificate: %w", err)
			}
			r := checkErasure(cert, ring)
			w := cmd.OutOrStdout()
			switch {
			case asJSON:
				err = writeJSON(w, r)
			case r.OK:
				printErasure(w, r.report)
			default:
				_, err = fmt.Fprintf(w, "FAILED: %s\n", r.Error)
			}
			if err == nil && !r.OK {
				return errFailed
			}
			return err
		},
	}
	keys.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// newVerifyErasureAlias is the command under the name that certificates were announced with.
func newVerifyErasureAlias() *cobra.Command {
	cmd := newVerifyErasure()
	cmd.Use = "verify-" + cmd.Use
	cmd.Hidden = true
	return cmd
}

func newAct() *cobra.Command {
	return &cobra.Command{
		Use:   "act CERT.json > act.html",
		Short: "print the act of destruction of a certificate, as HTML, without verifying its proofs",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cert, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the certificate: %w", err)
			}
			page, err := erasure.Act(cert)
			if err != nil {
				// On the standard error: the output is a page, and half of one would be taken for one.
				fmt.Fprintf(cmd.ErrOrStderr(), "FAILED: %v\n", err)
				return errFailed
			}
			_, err = cmd.OutOrStdout().Write(page)
			return err
		},
	}
}

// erasureResult is the outcome of verifying one certificate.
type erasureResult struct {
	OK          bool         `json:"ok"`
	Error       string       `json:"error,omitempty"`
	ID          string       `json:"id,omitempty"`
	Status      string       `json:"status,omitempty"`
	Subject     string       `json:"subject,omitempty"`
	SubjectRef  string       `json:"subject_ref,omitempty"`
	Reason      string       `json:"reason,omitempty"`
	Time        string       `json:"time,omitempty"`
	DestroyedAt string       `json:"destroyed_at,omitempty"`
	DeadBy      string       `json:"backups_dead_by,omitempty"`
	Dead        string       `json:"backups_dead,omitempty"`
	Entries     []provenJSON `json:"entries,omitempty"`

	report erasure.Report
}

type provenJSON struct {
	Index        int64                `json:"index"`
	Kind         string               `json:"kind"`
	Checkpoint   checkpointJSON       `json:"checkpoint"`
	Cosignatures []verify.Cosignature `json:"cosignatures,omitempty"`
}

func checkErasure(cert []byte, ring keyring) erasureResult {
	keys := erasure.Keys{Ledger: []note.Verifier{ring.ledger}, Witnesses: ring.witnesses, Quorum: ring.quorum}
	report, err := erasure.Verify(cert, keys)
	if err != nil {
		return erasureResult{Error: err.Error()}
	}
	c := report.Certificate
	r := erasureResult{
		OK: true, ID: c.ID, Status: c.Status, Subject: c.Subject, SubjectRef: report.Erased.Entry.SubjectRef, Reason: c.Reason,
		Time: c.Time, DestroyedAt: c.DestroyedAt, DeadBy: c.BackupsDeadBy, Dead: c.BackupsDead, report: report,
	}
	for _, p := range proven(report) {
		r.Entries = append(r.Entries, provenJSON{p.Index, p.Entry.Kind, newCheckpointJSON(p.Checkpoint), p.Cosignatures})
	}
	return r
}

func proven(r erasure.Report) []erasure.Proven {
	all := []erasure.Proven{r.Erased, r.Destroyed}
	if r.Epoch != nil {
		all = append(all, *r.Epoch)
	}
	return all
}

// printErasure says what a certificate that holds says. Its words come from the operator and are quoted if odd.
func printErasure(w io.Writer, r erasure.Report) {
	c := r.Certificate
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-11s %s\n", name, quoteIfUnprintable(value))
		}
	}
	newest := r.Destroyed
	if r.Epoch != nil {
		newest = *r.Epoch
	}
	printCheckpoint(w, newest.Checkpoint, newest.Cosignatures)
	for _, p := range proven(r) {
		fmt.Fprintf(w, "entry       %s\n", entryLine(p.Index, p.Entry))
	}
	line("certificate", c.ID)
	line("operator", c.Operator)
	line("subject", c.Subject)
	line("reason", c.Reason)
	line("categories", strings.Join(c.Categories, ", "))
	line("fields", strings.Join(c.Fields, ", "))
	fmt.Fprintf(w, "deleted     %d consents, %d sealed details\n", c.Consents, c.Details)
	line("method", c.Method)
	line("erased", c.Time)
	line("key gone", c.DestroyedAt)
	switch {
	case r.Evidence != nil:
		fmt.Fprintf(w, "OK: the erasure is in the ledger and final: no backup opens since %s\n", c.BackupsDead)
	case c.Status == erasure.Final:
		fmt.Fprintf(w, "OK: the erasure is in the ledger and final: no backup opens since %s, by the operator's word: "+
			"no witness key of the sidecar was given to verify the evidence with\n", c.BackupsDead)
	case c.BackupsDeadBy != "":
		fmt.Fprintf(w, "OK: the erasure is in the ledger; backups of the key store may open until the next epoch, which is due by %s\n", c.BackupsDeadBy)
	default:
		fmt.Fprintln(w, "OK: the erasure is in the ledger; backups of the key store may open until the next epoch, of which none is planned")
	}
}

// quoteIfUnprintable keeps a text from looking like further lines of output.
func quoteIfUnprintable(s string) string {
	if q := fmt.Sprintf("%q", s); q[1:len(q)-1] != s {
		return q
	}
	return s
}
