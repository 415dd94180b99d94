package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/sidecar"
)

// restoreFlags say what to restore from.
type restoreFlags struct {
	from, log             string
	ledgerKey, witnessKey string
	acceptMissing         bool
}

// errLog is returned when an exported log cannot be used.
var errLog = errors.New("the exported log cannot be used")

// reasonReplayed is the reason of a destruction that a restore carries out again.
const reasonReplayed = "erasure-replayed"

func restoreCommand(stdout, stderr io.Writer) *cobra.Command {
	var f restoreFlags
	cmd := withConfig("restore", "Make the key store from a backup", func(cmd *cobra.Command, c Config) error {
		return restore(cmd.Context(), c, f, stdout, stderr)
	})
	cmd.Long = `Make the key store from an archive of pdkeys backup. The directory of the key store must be absent or empty, and no
sidecar may run. The archive is verified to its last byte before anything is written; one that is older than the last
epoch is dead and is refused.

People who were erased after the backup would have their keys back. So --log names an export of the ledger made as
late as possible (pdvault records export), which must carry the signatures of --ledger-key and --witness-key; every
erasure in it is carried out again. Keep both keys where the key store is not: pdkeys status prints them.`
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "archive")
	flags.StringVar(&f.log, "log", "", "export of the ledger, whose erasures are carried out again")
	flags.StringVar(&f.ledgerKey, "ledger-key", "", "public key of the ledger, or a file that holds it")
	flags.StringVar(&f.witnessKey, "witness-key", "", "public key of the witness, or a file that holds it")
	flags.BoolVar(&f.acceptMissing, "accept-missing-erasures", false, "restore without --log: who was erased since the backup can be read again")
	return cmd
}

func (f restoreFlags) check() error {
	switch {
	case f.from == "":
		return fmt.Errorf("%w: --from is missing", errUsage)
	case f.log == "" && !f.acceptMissing:
		return fmt.Errorf("%w: without --log, erasures since the backup would be undone; if there is no export of the ledger, say --accept-missing-erasures", errUsage)
	case f.log != "" && (f.ledgerKey == "" || f.witnessKey == ""):
		return fmt.Errorf("%w: --log needs --ledger-key and --witness-key", errUsage)
	}
	return nil
}

// erasures are what an exported log says about who was erased.
type erasures struct {
	checkpoint verify.Checkpoint
	last       string // time of the last entry
	refs       map[[32]byte]bool
}

// restore builds the store beside the one that is wanted, which takes its name when it is complete. An interrupted
// restore is begun again.
func restore(ctx context.Context, c Config, f restoreFlags, stdout, stderr io.Writer) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	if err := sidecar.Harden(); err != nil {
		return err
	}
	log := newLogger(stderr, max(c.level, slog.LevelWarn))
	names, err := os.ReadDir(c.Store.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: %s is not empty, nothing was touched", errStore, c.Store.Dir)
	}
	var erased erasures
	if f.log != "" {
		if erased, err = readErasures(ctx, f); err != nil {
			return fmt.Errorf("%w, nothing was touched: %w", errLog, err)
		}
	}
	in, err := os.Open(f.from)
	if err != nil {
		return fmt.Errorf("opening the archive: %w", err)
	}
	defer in.Close() // it was only read
	kek, closeKEK, err := openKEK(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeKEK()) }()

	final := c.Store.Dir
	c.Store.Dir = filepath.Clean(final) + ".restoring"
	if err := os.RemoveAll(c.Store.Dir); err != nil {
		return fmt.Errorf("%w: removing an interrupted restore: %w", errStore, err)
	}
	outcome, destroyed, err := rebuild(ctx, c, kek, in, erased, f.log != "", log)
	if err != nil {
		return errors.Join(err, os.RemoveAll(c.Store.Dir))
	}
	if err := adopt(c.Store.Dir, final); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	fmt.Fprintf(stdout, "restored backup %s of %s: %d keys of people, %d tombstones, generation %d\n",
		outcome.Backup, outcome.Created, outcome.Subjects, outcome.Destroyed, outcome.Generation)
	if f.log == "" {
		fmt.Fprintln(stderr, "WARNING: who was erased after the backup CAN BE READ AGAIN: no log was given to carry the erasures out again")
	} else {
		fmt.Fprintf(stdout, "erasures carried out again: %d, of %d in the ledger up to entry %d of %s\n",
			destroyed, len(erased.refs), erased.checkpoint.Size, erased.last)
	}
	_, err = fmt.Fprintln(stdout, "next: take a new backup, and run an epoch so that the old one dies")
	return err
}

// rebuild restores into a new store at c.Store.Dir, and carries erasures out again.
func rebuild(ctx context.Context, c Config, kek keyring.KEK, in io.ReadSeeker, erased erasures, hasLog bool, log *slog.Logger) (out keyring.Restored, destroyed int, err error) {
	store, err := createStore(ctx, c, kek, log)
	if err != nil {
		return out, 0, fmt.Errorf("%w: %w", errStore, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	cfg := keyringConfig(c, kek, store, log)
	if out, err = keyring.Restore(ctx, cfg, in); err != nil {
		return out, 0, err
	}
	ring, err := keyring.Open(ctx, cfg)
	if err != nil {
		return out, 0, err
	}
	defer func() { err = errors.Join(err, ring.Close()) }()
	memory, err := sidecar.LoadMemory(ctx, ring)
	if err != nil || !hasLog {
		return out, 0, err
	}
	switch {
	case memory.Origin != erased.checkpoint.Origin:
		return out, 0, fmt.Errorf("%w: it is of another ledger than the backup was bound to", errLog)
	case memory.Witnessed.Size > erased.checkpoint.Size:
		return out, 0, fmt.Errorf("%w: it ends at %d, and the backup has witnessed %d entries", errLog, erased.checkpoint.Size, memory.Witnessed.Size)
	}
	destroyed, err = ring.DestroyRefs(ctx, erased.refs, reasonReplayed)
	return out, destroyed, err
}

// readErasures verifies an exported log and collects whom it says to be erased.
func readErasures(ctx context.Context, f restoreFlags) (erasures, error) {
	e := erasures{refs: make(map[[32]byte]bool)}
	text, err := keyText(f.ledgerKey)
	if err != nil {
		return e, err
	}
	ledger, err := note.NewVerifier(text)
	if err != nil {
		return e, fmt.Errorf("--ledger-key: %w", err)
	}
	if text, err = keyText(f.witnessKey); err != nil {
		return e, err
	}
	witness, err := verify.NewCosignatureVerifier(text)
	if err != nil {
		return e, fmt.Errorf("--witness-key: %w", err)
	}
	report, err := verify.VerifyLog(ctx, os.DirFS(f.log), verify.LogCheck{
		Ledger: ledger, Witnesses: []note.Verifier{witness}, Quorum: 1,
		Visit: func(index int64, _ []byte, entry verify.Entry) error {
			if entry.Kind != verify.KindSubjectErased {
				return nil
			}
			ref, err := verify.ParseRef(entry.SubjectRef)
			if err != nil {
				return fmt.Errorf("erasure at %d: %w", index, err)
			}
			e.refs[[32]byte(ref)] = true
			return nil
		},
	})
	if err != nil {
		return e, err
	}
	if !report.OK() {
		p := report.Problems[0]
		return e, fmt.Errorf("entry %d: %s: %s", p.Index, p.Code, p.Detail)
	}
	e.checkpoint, e.last = report.Checkpoint, report.Last
	return e, nil
}

// keyText returns a public key, from the argument or from the file that it names. A key has plus signs in it.
func keyText(arg string) (string, error) {
	if strings.Contains(arg, "+") {
		return arg, nil
	}
	b, err := os.ReadFile(arg)
	if err != nil {
		return "", fmt.Errorf("reading a key: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// adopt gives a complete store its name, durably.
func adopt(built, final string) error {
	if err := os.Rename(built, final); err != nil {
		return fmt.Errorf("giving the restored store its name: %w", err)
	}
	parent, err := os.Open(filepath.Dir(filepath.Clean(final)))
	if err != nil {
		return fmt.Errorf("giving the restored store its name: %w", err)
	}
	if err := errors.Join(parent.Sync(), parent.Close()); err != nil {
		return fmt.Errorf("giving the restored store its name: %w", err)
	}
	return nil
}
