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

// rewindFlags say what to go on with.
type rewindFlags struct{ checkpoint, backup, ledgerKey string }

func rewindCommand(stdout, stderr io.Writer) *cobra.Command {
	var f rewindFlags
	cmd := withConfig("rewind", "Accept a ledger that was restored from a backup and has lost its end", func(cmd *cobra.Command, c Config) error {
		if (f.checkpoint == "") == (f.backup == "") {
			return fmt.Errorf("%w: want --backup or --checkpoint", errUsage)
		}
		return rewind(cmd.Context(), c, f, stdout, stderr)
	})
	cmd.Long = `Accept a ledger that was restored from a backup and has lost its end. The sidecar has witnessed more entries than the
restored ledger holds, and would refuse it for good. Only the security team runs this, with the sidecar stopped, and
only when the loss is known and accepted: it is the one way to make the witness forget. The checkpoint must be signed
by a ledger key that the sidecar is bound to; ledger keys that came after that one are forgotten too, since they were
lost with the ledger. When the key has been dropped since the backup, give it as --ledger-key, from where you have kept
it. What is forgotten is kept in the key store and printed.`
	cmd.Flags().StringVar(&f.backup, "backup", "", "archive of pdvault backup, the one that was restored")
	cmd.Flags().StringVar(&f.checkpoint, "checkpoint", "", "signed checkpoint of the restored ledger")
	cmd.Flags().StringVar(&f.ledgerKey, "ledger-key", "", "older public key of the ledger, or a file that holds it, which signed the backup and has been dropped since")
	return cmd
}

// bound is a ledger key that a checkpoint may be signed with.
type bound struct {
	text     string
	verifier note.Verifier
}

func rewind(ctx context.Context, c Config, f rewindFlags, stdout, stderr io.Writer) (err error) {
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
	known := make([]bound, len(memory.Keys))
	for i, v := range memory.Keys {
		known[i] = bound{memory.LedgerKeys[i], v}
	}
	if f.ledgerKey != "" {
		text, err := keyText(f.ledgerKey)
		if err != nil {
			return err
		}
		v, err := note.NewVerifier(text)
		if err != nil {
			return fmt.Errorf("%w: --ledger-key: %w", errUsage, err)
		}
		known = append(known, bound{text, v})
	}
	var cp verify.Checkpoint
	var key string
	if f.backup != "" {
		cp, key, err = checkpointOfBackup(ctx, f.backup, c.Instance, known)
	} else {
		cp, key, err = checkpointOfFile(f.checkpoint, memory.Origin, known)
	}
	if errors.Is(err, verify.ErrSignature) || errors.Is(err, verify.ErrBackup) {
		err = fmt.Errorf("%w; when its ledger key was dropped since, give it as --ledger-key", err)
	}
	if err != nil {
		return fmt.Errorf("nothing was touched: %w", err)
	}
	gone, err := sidecar.Rewind(ctx, ring, cp, key, time.Now())
	if errors.Is(err, keys.ErrInvalid) || errors.Is(err, keys.ErrProofRefused) {
		return fmt.Errorf("nothing was touched: %w", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "the witness of %s goes on from %d entries\nforgotten: %d entries, root %s\n", cp.Origin, gone.Size, gone.Lost.Size, gone.Lost.Root)
	for _, key := range gone.Keys {
		fmt.Fprintf(stdout, "forgotten: ledger key %s\n", key)
	}
	_, err = fmt.Fprintf(stdout, "ledger key: %s\n", key)
	return err
}

// checkpointOfBackup reads an archive of the data store through and returns the checkpoint of its signed manifest, and
// the newest of the known keys that has signed it.
func checkpointOfBackup(ctx context.Context, path, instance string, known []bound) (cp verify.Checkpoint, key string, err error) {
	in, err := os.Open(path)
	if err != nil {
		return cp, "", fmt.Errorf("opening the archive: %w", err)
	}
	defer in.Close() // it was only read
	header, raw, err := archive.ReadHeader(in, archive.KindData)
	if err != nil {
		return cp, "", err
	}
	r := archive.NewReader(in, raw)
	for err == nil {
		if ctx.Err() != nil {
			return cp, "", context.Cause(ctx)
		}
		_, err = r.Next()
	}
	if !errors.Is(err, io.EOF) {
		return cp, "", err
	}
	var m verify.Backup
	for _, k := range known {
		if m, err = verify.OpenBackup(r.Seal(), k.verifier); err == nil {
			key = k.text
			break
		}
	}
	if err != nil {
		return cp, "", err
	}
	if sum := r.Summary(); m.Instance != instance || m.ID != header.ID.String() || m.Count != sum.Count || m.Digest != sum.Digest {
		return cp, "", fmt.Errorf("its manifest is of another archive or instance: %w", archive.ErrForeign)
	}
	return m.Ledger, key, nil
}

// checkpointOfFile reads a signed checkpoint, and the newest of the known keys that has signed it.
func checkpointOfFile(path, origin string, known []bound) (cp verify.Checkpoint, key string, err error) {
	signed, err := os.ReadFile(path)
	if err != nil {
		return cp, "", fmt.Errorf("reading the checkpoint: %w", err)
	}
	for _, k := range known {
		if cp, _, err = verify.OpenCheckpoint(signed, origin, k.verifier); err == nil {
			return cp, k.text, nil
		}
	}
	return verify.Checkpoint{}, "", err
}
