package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

func newVerifyLedger() *cobra.Command {
	var keys keyFlags
	var from string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ledger DIR --ledger-key KEY [--witness-key KEY]... [--from old.checkpoint] [--json]",
		Short: "verify an exported ledger: its tree, its history, and the ground of each read",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := checkLedger(cmd, args[0], from, keys, nil)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			switch {
			case asJSON:
				err = writeJSON(w, newLedgerJSON(report))
			case report.OK():
				printReport(w, report)
				_, err = fmt.Fprintln(w, "OK: the ledger holds"+reservation(report))
			default:
				printReport(w, report)
				printProblems(w, report)
				_, err = fmt.Fprintf(w, "FAILED: %d problems\n", report.Found)
			}
			return outcome(report, err)
		},
	}
	keys.add(cmd)
	cmd.Flags().StringVar(&from, "from", "", "signed checkpoint kept from before, which the ledger must extend")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newVerifySubject() *cobra.Command {
	var keys keyFlags
	var from string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "subject REF DIR --ledger-key KEY [--witness-key KEY]... [--from old.checkpoint] [--json]",
		Short: "verify an exported ledger and list every entry about one subject reference",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := verify.ParseRef(args[0]); err != nil {
				return err
			}
			var found []subjectEntry
			report, err := checkLedger(cmd, args[1], from, keys, func(index int64, raw []byte, e verify.Entry) error {
				if e.SubjectRef == args[0] {
					found = append(found, subjectEntry{Index: index, Entry: raw, value: e})
				}
				return nil
			})
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				err = writeJSON(w, subjectJSON{newLedgerJSON(report), args[0], append([]subjectEntry{}, found...)})
				return outcome(report, err)
			}
			for _, f := range found {
				fmt.Fprintln(w, entryLine(f.Index, f.value))
			}
			printProblems(w, report)
			if report.OK() {
				_, err = fmt.Fprintf(w, "OK: %d of the ledger's %d entries are about this subject\n", len(found), report.Entries)
			} else {
				_, err = fmt.Fprintf(w, "FAILED: %d problems; the list may be incomplete\n", report.Found)
			}
			return outcome(report, err)
		},
	}
	keys.add(cmd)
	cmd.Flags().StringVar(&from, "from", "", "signed checkpoint kept from before, which the ledger must extend")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

type subjectEntry struct {
	Index int64           `json:"index"`
	Entry json.RawMessage `json:"entry"`

	value verify.Entry
}

type subjectJSON struct {
	ledgerJSON
	SubjectRef string         `json:"subject_ref"`
	List       []subjectEntry `json:"list"`
}

type ledgerJSON struct {
	OK         bool            `json:"ok"`
	Checkpoint checkpointJSON  `json:"checkpoint"`
	Earlier    *checkpointJSON `json:"earlier,omitempty"`
	*verify.Report
}

func newLedgerJSON(r *verify.Report) ledgerJSON {
	out := ledgerJSON{OK: r.OK(), Checkpoint: newCheckpointJSON(r.Checkpoint), Report: r}
	if r.Earlier != nil {
		earlier := newCheckpointJSON(*r.Earlier)
		out.Earlier = &earlier
	}
	return out
}

func outcome(r *verify.Report, printing error) error {
	if printing != nil {
		return printing
	}
	if !r.OK() {
		return errFailed
	}
	return nil
}

// checkLedger runs the whole check on a directory. A bundle that cannot be read is an error, unless what was
// verified without it is wrong already: then that is the outcome, since it may be why.
func checkLedger(cmd *cobra.Command, path, from string, keys keyFlags, visit func(int64, []byte, verify.Entry) error) (*verify.Report, error) {
	ring, err := keys.load()
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening the ledger: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", path)
	}
	dir := os.DirFS(path)
	c := verify.LogCheck{Ledger: ring.ledger, Witnesses: ring.witnesses, Quorum: ring.quorum, Visit: visit}
	var unread error
	c.Policies, unread = loadPolicies(dir)
	if from != "" {
		if c.Earlier, err = os.ReadFile(from); err != nil {
			return nil, fmt.Errorf("reading the earlier checkpoint: %w", err)
		}
	}
	report, err := verify.VerifyLog(cmd.Context(), dir, c)
	switch {
	case err != nil || unread == nil:
		return report, err
	case report.OK():
		return nil, fmt.Errorf("loading the policies: %w", unread)
	}
	_, err = fmt.Fprintf(cmd.ErrOrStderr(), "pdaudit: no policy was asked: %v\n", unread)
	return report, err
}
