package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

func rewindCommand(stdout, stderr io.Writer) *cobra.Command {
	var checkpoint, backup string
	cmd := withConfig("rewind", "Accept a ledger that was restored from a backup and has lost its end", func(cmd *cobra.Command, c Config) error {
		if (checkpoint == "") == (backup == "") {
			return fmt.Errorf("%w: want --backup or --checkpoint", errUsage)
		}
		return rewind(cmd.Context(), c, checkpoint, backup, stdout, stderr)
	})
	cmd.Long = `Accept a ledger that was restored from a backup and has lost its end. The sidecar has witnessed more entries than the
restored ledger holds, and would refuse it for good. Only the security team runs this, with the sidecar stopped, and
only when the loss is known and accepted: it is the one way to make the witness forget. The checkpoint must be signed
by the ledger key that the sidecar is bound to. What is forgotten is kept in the key store and printed.`
	cmd.Flags().StringVar(&backup, "backup", "", "archive of pdvault backup, the one that was restored")
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "signed checkpoint of the restored ledger")
	return cmd
}

func rewind(ctx context.Context, c Config, checkpoint, backup string, stdout, stderr io.Writer) (err error) {
	if err := sidecar.Harden(); err != nil {
		return err
	}
	log := newLogger(stderr, max(c.level, slog.LevelWarn))
	kek, closeKEK, err := openKEK(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeKEK()) }()
	store, err := openStore(ctx, c, kek, log) // refuses while a sidecar has it open
	if err != nil {
		return storeError(c, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ring, err := keyring.Open(ctx, keyringConfig(c, kek, store, log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ring.Close()) }()
	memory, err := sidecar.LoadMemory(ctx, ring)
	if err != nil {
		return err
	}
	if memory.Origin == "" {
		return errors.New("the sidecar is bound to no ledger: there is nothing to rewind")
	}
	var cp verify.Checkpoint
	if backup != "" {
		cp, err = checkpointOfBackup(ctx, backup, c.Instance, memory.Keys)
	} else {
		cp, err = checkpointOfFile(checkpoint, memory)
	}
	if err != nil {
		return fmt.Errorf("nothing was touched: %w", err)
	}
	lost, err := sidecar.Rewind(ctx, ring, cp, time.Now())
	if errors.Is(err, keys.ErrInvalid) {
		return fmt.Errorf("nothing was touched: %w", err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "the witness of %s goes on from %d entries, root %s\nforgotten: %d entries, root %s\n",
		cp.Origin, cp.Size, cp.Root, lost.Size, lost.Root)
	return err
}

// checkpointOfBackup reads an archive of the data store through and returns the checkpoint of its signed manifest.
func checkpointOfBackup(ctx context.Context, path, instance string, bound []note.Verifier) (verify.Checkpoint, error) {
	in, err := os.Open(path)
	if err != nil {
		return verify.Checkpoint{}, fmt.Errorf("opening the archive: %w", err)
	}
	defer in.Close() // it was only read
	header, raw, err := archive.ReadHeader(in, archive.KindData)
	if err != nil {
		return verify.Checkpoint{}, err
	}
	r := archive.NewReader(in, raw)
	for err == nil {
		if ctx.Err() != nil {
			return verify.Checkpoint{}, context.Cause(ctx)
		}
		_, err = r.Next()
	}
	if !errors.Is(err, io.EOF) {
		return verify.Checkpoint{}, err
	}
	m, err := verify.OpenBackup(r.Seal(), bound...)
	if err != nil {
		return verify.Checkpoint{}, err
	}
	if sum := r.Summary(); m.Instance != instance || m.ID != header.ID.String() || m.Count != sum.Count || m.Digest != sum.Digest {
		return verify.Checkpoint{}, fmt.Errorf("its manifest is of another archive or instance: %w", archive.ErrForeign)
	}
	return m.Ledger, nil
}

// checkpointOfFile reads a signed checkpoint.
func checkpointOfFile(path string, m sidecar.Memory) (verify.Checkpoint, error) {
	signed, err := os.ReadFile(path)
	if err != nil {
		return verify.Checkpoint{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	for _, key := range m.Keys {
		var cp verify.Checkpoint
		if cp, _, err = verify.OpenCheckpoint(signed, m.Origin, key); err == nil {
			return cp, nil
		}
	}
	return verify.Checkpoint{}, err
}
