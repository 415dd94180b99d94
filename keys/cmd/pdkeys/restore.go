package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/vault/kv"
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
	cmd.Long = `Make the key store from an archive of pdkeys backup. The directory of the key store, or its path in HashiCorp Vault,
must be absent, empty, or what an interrupted restore has left, and no sidecar may run. The archive and the log are
verified to their last byte before anything is written; an archive that is older than the last epoch is dead and is
refused. What is restored is not opened by any sidecar before all is done.

People who were erased after the backup would have their keys back. So --log names an export of the ledger made as
late as possible (pdvault records export), which must carry the signatures of --ledger-key and --witness-key; every
erasure in it is carried out again, and the sidecar has witnessed it. Keep both keys where the key store is not: pdkeys
status prints them. Take a backup after each epoch and after each rotation of subjects' keys: what was sealed under
newer keys cannot be opened with an older backup.`
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

// exported is what an exported log says.
type exported struct {
	key        string // of the ledger, that signed it
	checkpoint verify.Checkpoint
	last       string            // time of the last entry
	erased     map[[32]byte]bool // references

	// Since what the backup has witnessed:
	created int64 // subjects
	rotated int64 // rotations of subjects' keys that have ended
}

// restore reads everything before it writes anything. A restore that was interrupted is begun again.
func restore(ctx context.Context, c Config, f restoreFlags, stdout, stderr io.Writer) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	if err := sidecar.Harden(); err != nil {
		return err
	}
	log := newLogger(stderr, max(c.level, slog.LevelWarn))
	if err := checkTarget(c); err != nil {
		return err
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

	// 1. What was given, to its last byte.
	backup, err := keyring.OpenBackup(ctx, keyringConfig(c, kek, nil, log), in)
	if err != nil {
		return err
	}
	memory, err := sidecar.MemoryIn(backup.State)
	if err != nil {
		return fmt.Errorf("the backup was refused, nothing was touched: %w", err)
	}
	var x exported
	if f.log != "" {
		if x, err = readLog(ctx, f, memory); err != nil {
			return fmt.Errorf("%w, nothing was touched: %w", errLog, err)
		}
	}

	// 2. The store, which nobody opens before the erasures are carried out again.
	destroyed := 0
	outcome, err := restoreInto(ctx, c, kek, log, func(store kv.Store) (keyring.Restored, error) {
		return backup.Restore(ctx, store, func(ring *keyring.Keyring) (err error) {
			if f.log == "" {
				return nil
			}
			if destroyed, err = ring.DestroyRefs(ctx, x.erased, reasonReplayed); err != nil {
				return err
			}
			return sidecar.CatchUp(ctx, ring, x.checkpoint, x.key)
		})
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "restored backup %s of %s: %d keys of people, %d tombstones, generation %d\n",
		outcome.Backup, outcome.Created, outcome.Subjects, outcome.Destroyed, outcome.Generation)
	if f.log == "" {
		fmt.Fprintln(stderr, "WARNING: who was erased after the backup CAN BE READ AGAIN: no log was given to carry the erasures out again")
	} else {
		fmt.Fprintf(stdout, "erasures carried out again: %d, of %d in the ledger up to entry %d of %s\n",
			destroyed, len(x.erased), x.checkpoint.Size, x.last)
	}
	if x.created > 0 {
		fmt.Fprintf(stderr, "WARNING: %d people were added after the backup: their keys are lost, and their data with them\n", x.created)
	}
	if x.rotated > 0 {
		fmt.Fprintf(stderr, "WARNING: subjects' keys were rotated after the backup: what has been sealed again since CANNOT BE OPENED with it; use a newer backup if there is one\n")
	}
	_, err = fmt.Fprintln(stdout, "next: take a new backup, and run an epoch so that the old one dies")
	return err
}

// readLog verifies an exported log, which must extend what the backup remembers, and collects whom it says to be erased.
func readLog(ctx context.Context, f restoreFlags, memory sidecar.Memory) (exported, error) {
	x := exported{erased: make(map[[32]byte]bool)}
	var err error
	if x.key, err = keyText(f.ledgerKey); err != nil {
		return x, err
	}
	ledger, err := note.NewVerifier(x.key)
	if err != nil {
		return x, fmt.Errorf("--ledger-key: %w", err)
	}
	if ledger.Name() != memory.Origin {
		return x, errors.New("it is of another ledger than the backup was bound to")
	}
	text, err := keyText(f.witnessKey)
	if err != nil {
		return x, err
	}
	witness, err := verify.NewCosignatureVerifier(text)
	if err != nil {
		return x, fmt.Errorf("--witness-key: %w", err)
	}
	report, err := verify.VerifyLog(ctx, os.DirFS(f.log), verify.LogCheck{
		Ledger: ledger, Witnesses: []note.Verifier{witness}, Quorum: 1, Known: &memory.Witnessed,
		Visit: func(index int64, _ []byte, e verify.Entry) error {
			later := index >= memory.Witnessed.Size
			switch {
			case e.Kind == verify.KindSubjectErased:
				ref, err := verify.ParseRef(e.SubjectRef)
				if err != nil {
					return fmt.Errorf("erasure at %d: %w", index, err)
				}
				x.erased[[32]byte(ref)] = true
			case later && e.Kind == verify.KindSubjectCreated:
				x.created++
			case later && e.Kind == verify.KindKeyRotated && e.Keys != nil && e.Keys.Phase == "" &&
				(e.Keys.Scope == keyring.ScopeSubject || e.Keys.Scope == keyring.ScopeAllSubjects):
				x.rotated++
			}
			return nil
		},
	})
	if err != nil {
		return x, err
	}
	if !report.OK() {
		p := report.Problems[0]
		if p.Code == verify.CodeEarlier {
			return x, fmt.Errorf("it does not extend the %d entries that the backup has witnessed: %s", memory.Witnessed.Size, p.Detail)
		}
		return x, fmt.Errorf("entry %d: %s: %s", p.Index, p.Code, p.Detail)
	}
	x.checkpoint, x.last = report.Checkpoint, report.Last
	return x, nil
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
