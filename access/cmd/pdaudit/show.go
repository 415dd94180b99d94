package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

func newShow() *cobra.Command {
	var index int64
	cmd := &cobra.Command{
		Use:   "show FILE | show DIR --index N",
		Short: "print a proof, a checkpoint, an entry, or one entry of an exported ledger, without verifying it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := os.Stat(args[0])
			if err != nil {
				return fmt.Errorf("opening: %w", err)
			}
			w := cmd.OutOrStdout()
			if info.IsDir() {
				if index < 0 {
					return errors.New("--index is needed to show an entry of a ledger")
				}
				entry, err := findEntry(os.DirFS(args[0]), index)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(w, "entry %d, not verified\n%s\n", index, indented(entry))
				return err
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("opening: %w", err)
			}
			return showFile(w, data)
		},
	}
	cmd.Flags().Int64Var(&index, "index", -1, "index of the entry in an exported ledger")
	return cmd
}

func showFile(w io.Writer, data []byte) error {
	if p, err := verify.ParseProof(data); err == nil {
		fmt.Fprintf(w, "proof, not verified\nindex       %d\nhashes      %d\n", p.Index, len(p.Hashes))
		return showCheckpoint(w, p.Checkpoint)
	}
	entry := bytes.TrimSuffix(data, []byte("\n"))
	if _, err := verify.ParseEntry(entry); err == nil {
		_, err := fmt.Fprintf(w, "entry, not verified\n%s\n", indented(entry))
		return err
	}
	if err := showCheckpoint(w, data); err != nil {
		return errors.New("this is neither a proof, nor a checkpoint, nor an entry")
	}
	return nil
}

func showCheckpoint(w io.Writer, signed []byte) error {
	// Without keys nothing verifies; the error carries what the note says.
	_, err := note.Open(signed, note.VerifierList())
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	cp, err := verify.ParseCheckpoint([]byte(unverified.Note.Text))
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "checkpoint, not verified")
	printCheckpoint(w, cp, nil)
	for _, sig := range unverified.Note.UnverifiedSigs {
		if _, err := fmt.Fprintf(w, "signed by   %s+%08x\n", sig.Name, sig.Hash); err != nil {
			return err
		}
	}
	return nil
}

// findEntry reads one entry of an exported ledger, from a full bundle or from the widest partial one.
func findEntry(dir fs.FS, index int64) ([]byte, error) {
	t := verify.Tile{Level: verify.EntriesLevel, N: index / verify.TileWidth}
	at := int(index % verify.TileWidth)
	for t.Width = verify.TileWidth; t.Width > at; t.Width-- {
		data, err := fs.ReadFile(dir, t.Path())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("reading %s: %w", t.Path(), err)
		}
		entries, err := verify.DecodeBundle(data, t.Width)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Path(), err)
		}
		return entries[at], nil
	}
	return nil, fmt.Errorf("the exported ledger has no entry %d", index)
}
