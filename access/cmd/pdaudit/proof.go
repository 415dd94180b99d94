package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

func newVerifyProof() *cobra.Command {
	var keys keyFlags
	var entryFile string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "proof FILE.tlog-proof --entry entry.json --ledger-key KEY [--witness-key KEY]... [--quorum N]",
		Short: "verify that an entry is in the ledger",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ring, err := keys.load()
			if err != nil {
				return err
			}
			file, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the proof: %w", err)
			}
			entry, err := os.ReadFile(entryFile)
			if err != nil {
				return fmt.Errorf("reading the entry: %w", err)
			}
			// An entry is one line; a final line break is the file's and not the entry's.
			p := checkProof(file, bytes.TrimSuffix(entry, []byte("\n")), ring)
			return p.print(cmd, asJSON)
		},
	}
	keys.add(cmd)
	cmd.Flags().StringVar(&entryFile, "entry", "", "file with the entry, byte for byte as it is in the ledger")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(cmd.MarkFlagRequired("entry"))
	return cmd
}

// proofResult is the outcome of verifying one proof.
type proofResult struct {
	OK           bool                 `json:"ok"`
	Error        string               `json:"error,omitempty"`
	Index        int64                `json:"index"`
	Checkpoint   *checkpointJSON      `json:"checkpoint,omitempty"`
	Cosignatures []verify.Cosignature `json:"cosignatures,omitempty"`
	Entry        json.RawMessage      `json:"entry,omitempty"`

	checkpoint verify.Checkpoint
	entry      verify.Entry
}

func checkProof(file, entry []byte, ring keyring) proofResult {
	var r proofResult
	p, err := verify.ParseProof(file)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	r.Index = p.Index
	r.checkpoint, r.Cosignatures, err = p.Verify(entry, ring.ledger, ring.quorum, ring.witnesses...)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	cp := newCheckpointJSON(r.checkpoint)
	r.Checkpoint = &cp
	if r.entry, err = verify.ParseEntry(entry); err != nil {
		r.Error = err.Error()
		return r
	}
	r.OK, r.Entry = true, entry
	return r
}

func (r proofResult) print(cmd *cobra.Command, asJSON bool) error {
	w := cmd.OutOrStdout()
	switch {
	case asJSON:
		if err := writeJSON(w, r); err != nil {
			return err
		}
	case r.OK:
		printCheckpoint(w, r.checkpoint, r.Cosignatures)
		fmt.Fprintf(w, "entry       %s\nOK: the entry is in the ledger, at index %d\n", entryLine(r.Index, r.entry), r.Index)
	default:
		fmt.Fprintf(w, "FAILED: %s\n", r.Error)
	}
	if !r.OK {
		return errFailed
	}
	return nil
}
