package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

var (
	// ErrRestoreTarget is returned by Restore when the directory of the data store is not absent or empty.
	ErrRestoreTarget = errors.New("daemon: the data store is there already")
	// ErrRestoreLog is returned by Restore when the exported log does not verify, is not of this ledger, or ends
	// before the backup.
	ErrRestoreLog = errors.New("daemon: the exported log cannot be used")
)

// RestoreOptions say what to restore from.
type RestoreOptions struct {
	Archive string // file; read twice
	// LogDir is an export of the log that was made after the backup, as late as there is one; empty: none.
	// Without it, what people asked for since the backup is not known.
	LogDir string
	// LedgerKeys are public keys of the ledger that the caller vouches for, beside those that the sidecar is bound to:
	// for a backup that was signed with one that has been dropped since.
	LedgerKeys []string
	// AcceptUnreadable restores also when some of the data cannot be opened with the keys that there are.
	AcceptUnreadable bool
}

// RestoreReport is what a restore came to.
type RestoreReport struct {
	access.RestoreReport
	Manifest verify.Backup
	Log      *verify.Checkpoint // of the exported log; nil: there was none
	Since    map[string]int64   // entries that the log holds after the backup, by kind
	Rewind   bool               // the sidecar knows more of the ledger: pdkeys rewind must be run before pdvault serves
	Reindex  bool               // the index keys of the backup are gone: the start makes the index anew
}

// restoring is where a store is built until it is complete. It is never opened under this name but by Restore,
// which begins anew.
func restoring(c Config) string { return filepath.Clean(c.Store.Dir) + ".restoring" }

// Restore makes the data store of c from an archive. The sidecar must be running, since only it can tell whose keys
// were destroyed since; pdvault must not. Everything that can be verified is verified before anything is written:
// the archive from its first byte to its last, its manifest against the ledger key that the sidecar is bound to, and
// the exported log. Then a store is built beside the one that is wanted and takes its name when it is complete, so an
// interrupted Restore is simply begun again.
func Restore(ctx context.Context, c Config, o RestoreOptions, log *slog.Logger) (report RestoreReport, err error) {
	if err := checkTarget(c.Store.Dir); err != nil {
		return report, err
	}
	final := c.Store.Dir
	c.Store.Dir = restoring(c)
	d := &Daemon{config: c, log: log, registry: prometheus.NewRegistry()}
	d.metrics = newMetrics(d.registry)
	defer func() {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
	}()

	// 1. The sidecar, whose binding is what an archive is trusted by.
	if err := d.connect(ctx, 0); err != nil {
		return report, err
	}
	status, err := d.sidecar.Status(ctx)
	if err != nil {
		return report, fmt.Errorf("asking the sidecar: %w", err)
	}
	if status.Instance != c.Instance {
		return report, fmt.Errorf("the sidecar serves instance %q, not %q", status.Instance, c.Instance)
	}
	bound, err := boundKeys(status, o.LedgerKeys)
	if err != nil {
		return report, err
	}

	// 2. What was given, from its first byte to its last.
	in, err := os.Open(o.Archive)
	if err != nil {
		return report, fmt.Errorf("opening the archive: %w", err)
	}
	defer in.Close() // it was only read
	a, err := inspect(ctx, in, c.Instance, bound)
	if err != nil {
		return report, fmt.Errorf("the archive was refused, nothing was touched: %w", err)
	}
	report.Manifest = a.manifest
	if err := checkWitnessed(status, a.manifest.Ledger); err != nil {
		return report, err
	}
	restoration := access.Restoration{
		Backup: a.manifest.ID, Size: a.manifest.Ledger.Size, Lost: status.WitnessedSize,
		AcceptUnreadable: o.AcceptUnreadable, Keys: d.sidecar, KeyState: keyState,
	}
	if len(status.WitnessedRoot) == tlog.HashSize {
		restoration.LostRoot = tlog.Hash(status.WitnessedRoot)
	}
	report.Rewind = status.WitnessedSize > a.manifest.Ledger.Size || !slices.Contains(a.identity.verifiers(), status.LedgerKey)
	if o.LogDir != "" {
		var end verify.Checkpoint
		if restoration.Since, end, err = readLog(ctx, o.LogDir, a, bound, status); err != nil {
			return report, err
		}
		report.Log, report.Since = &end, restoration.Since.Kinds
		if end.Size > restoration.Lost {
			restoration.Lost, restoration.LostRoot = end.Size, end.Root
		}
	}

	// 3. The store, under a name that nobody opens.
	if err := os.RemoveAll(c.Store.Dir); err != nil {
		return report, fmt.Errorf("removing an interrupted restore: %w", err)
	}
	if err := d.rebuild(ctx, in, a); err != nil {
		return report, err
	}

	// 4. The ledger on it, and what must not be undone.
	if err := d.bringUp(ctx, status, restoration, &report); errors.Is(err, access.ErrUnreadable) {
		dir := c.Store.Dir
		closing := d.Close()
		d = nil
		return report, errors.Join(err, closing, os.RemoveAll(dir))
	} else if err != nil {
		return report, err
	}
	if err := saveGeneration(ctx, d.store, d.sidecar.Generation()); err != nil {
		return report, err
	}
	closing := d.Close()
	d = nil
	if closing != nil {
		return report, fmt.Errorf("closing the restored store: %w", closing)
	}

	// 5. Its name.
	return report, badgerkv.Rename(c.Store.Dir, final)
}

// checkTarget demands that there is nothing to lose in dir.
func checkTarget(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at the directory of the data store: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty, nothing was touched: %w", dir, ErrRestoreTarget)
	}
	return nil
}

// boundKeys are the keys of the ledger that the sidecar is bound to, the newest first, and those that the caller vouches
// for.
func boundKeys(status client.Status, more []string) ([]note.Verifier, error) {
	if len(status.LedgerKeys) == 0 {
		return nil, errors.New("the sidecar is bound to no ledger, so no archive can be verified: restore its key store first")
	}
	var all []note.Verifier
	for _, text := range slices.Concat(status.LedgerKeys, more) {
		key, err := note.NewVerifier(text)
		if err != nil {
			return nil, fmt.Errorf("a key of the ledger: %w", err)
		}
		if !slices.ContainsFunc(all, func(k note.Verifier) bool { return k.Name() == key.Name() && k.KeyHash() == key.KeyHash() }) {
			all = append(all, key)
		}
	}
	return all, nil
}

// checkWitnessed refuses an archive whose ledger contradicts what the sidecar has witnessed. A shorter one cannot be
// compared here: the lost entries are lost.
func checkWitnessed(status client.Status, cp verify.Checkpoint) error {
	if status.WitnessedSize == cp.Size && cp.Size > 0 && string(status.WitnessedRoot) != string(cp.Root[:]) {
		return fmt.Errorf("the archive was refused, nothing was touched: its ledger is not the one that the sidecar has witnessed: %w", archive.ErrForeign)
	}
	return nil
}

// inspected is an archive that was read from its first byte to its last.
type inspected struct {
	header     []byte // as it was read
	manifest   verify.Backup
	sum        archive.Summary
	checkpoint []byte // the signed checkpoint of the ledger in it
	identity   identity
}

// inspect verifies an archive of instance: framing, digest, the manifest's signature by one of bound, and that it is
// about this very archive.
func inspect(ctx context.Context, in io.Reader, instance string, bound []note.Verifier) (a inspected, err error) {
	header, raw, err := archive.ReadHeader(in, archive.KindData)
	if err != nil {
		return inspected{}, err
	}
	if header.Instance != instance {
		return inspected{}, fmt.Errorf("it is of instance %q, not of %q: %w", header.Instance, instance, archive.ErrForeign)
	}
	a.header = raw
	r := archive.NewReader(in, raw)
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return inspected{}, context.Cause(ctx)
		}
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return inspected{}, err
		}
		if leftOut(p.Key[0]) || string(p.Key) == string(generationKey) {
			return inspected{}, fmt.Errorf("it holds a row that no backup has: %w", archive.ErrDamaged)
		}
		switch string(p.Key) {
		case string(identityKey):
			if a.identity, err = parseIdentity(p.Value); err != nil || a.identity.Instance != instance {
				return inspected{}, fmt.Errorf("identity of the instance: %w", archive.ErrForeign)
			}
		case string(ledger.CheckpointKey()):
			a.checkpoint = p.Value
		}
	}
	a.sum = r.Summary()
	if a.manifest, err = verify.OpenBackup(r.Seal(), bound...); err != nil {
		return inspected{}, fmt.Errorf("its manifest is signed by no ledger key that the sidecar is bound to; when the ledger key that it was made under "+
			"has been dropped since, give its public key as --ledger-key: %w: %w", archive.ErrForeign, err)
	}
	m := a.manifest
	if m.Instance != header.Instance || m.ID != header.ID.String() || m.Created != header.Created || m.Count != a.sum.Count || m.Digest != tlog.Hash(a.sum.Digest) {
		return inspected{}, fmt.Errorf("its manifest is of another archive: %w", archive.ErrForeign)
	}
	stored, err := ledger.StoredCheckpoint(a.checkpoint)
	if err != nil || stored.Checkpoint != m.Ledger {
		return inspected{}, fmt.Errorf("its ledger is not that of its manifest: %w", archive.ErrDamaged)
	}
	return a, nil
}

// readLog verifies an exported log that goes on from the archive's ledger, and collects what happened since. It must
// agree with what the sidecar has witnessed, as far as it goes.
func readLog(ctx context.Context, dir string, a inspected, bound []note.Verifier, status client.Status) (*access.Since, verify.Checkpoint, error) {
	since := new(access.Since)
	check := verify.LogCheck{
		Ledger: verify.AnyKey(bound[0], bound[1:]...), Earlier: a.checkpoint,
		Visit: func(index int64, _ []byte, e verify.Entry) error {
			if index >= a.manifest.Ledger.Size {
				since.Add(e)
			}
			return nil
		},
	}
	export := os.DirFS(dir)
	signed, err := fs.ReadFile(export, verify.CheckpointPath)
	if err != nil {
		return nil, verify.Checkpoint{}, fmt.Errorf("%w, nothing was touched: %w", ErrRestoreLog, err)
	}
	if end, _, err := verify.OpenCheckpoint(signed, a.manifest.Ledger.Origin, check.Ledger); err == nil && end.Size >= status.WitnessedSize {
		if len(status.WitnessedRoot) == tlog.HashSize {
			check.Known = &verify.Checkpoint{Origin: end.Origin, Size: status.WitnessedSize, Root: tlog.Hash(status.WitnessedRoot)}
		}
	}
	report, err := verify.VerifyLog(ctx, export, check)
	if err == nil && !report.OK() {
		err = fmt.Errorf("entry %d: %s: %s", report.Problems[0].Index, report.Problems[0].Code, report.Problems[0].Detail)
	}
	if err != nil {
		return nil, verify.Checkpoint{}, fmt.Errorf("%w, nothing was touched: %w", ErrRestoreLog, err)
	}
	return since, report.Checkpoint, nil
}

// rebuild writes the archive's rows, and the index rows that its records ask for, into a new store.
func (d *Daemon) rebuild(ctx context.Context, in io.ReadSeeker, a inspected) (err error) {
	if err := os.MkdirAll(filepath.Dir(d.config.Store.Dir), 0o700); err != nil {
		return fmt.Errorf("making the directory of the data store: %w", err)
	}
	if d.store, err = badgerkv.Create(ctx, storeOptions(d.config, d.log)); err != nil {
		return fmt.Errorf("creating the data store: %w", err)
	}
	if _, err := in.Seek(int64(len(a.header)), io.SeekStart); err != nil {
		return fmt.Errorf("reading the archive again: %w", err)
	}
	r := archive.NewReader(in, a.header)
	batch := rowBatch{store: d.store}
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive again: %w", err)
		}
		rows, err := vault.IndexRows(p.Key, p.Value)
		if err != nil {
			return err
		}
		for _, row := range append(rows, p) {
			if err := batch.add(ctx, row); err != nil {
				return err
			}
		}
	}
	if err := batch.flush(ctx); err != nil {
		return err
	}
	if r.Summary() != a.sum {
		return fmt.Errorf("the archive has changed while it was read: %w", archive.ErrDamaged)
	}
	return nil
}

// rowBatch gathers rows into transactions well below what the engine takes.
type rowBatch struct {
	store kv.Store
	rows  []kv.Pair
	bytes int
}

func (b *rowBatch) add(ctx context.Context, p kv.Pair) error {
	b.rows = append(b.rows, p)
	b.bytes += len(p.Key) + len(p.Value)
	if len(b.rows) >= 2000 || b.bytes >= 1<<20 {
		return b.flush(ctx)
	}
	return nil
}

func (b *rowBatch) flush(ctx context.Context) error {
	if len(b.rows) == 0 {
		return nil
	}
	err := b.store.Update(ctx, func(w kv.Writer) error {
		for _, p := range b.rows {
			w.Set(p.Key, p.Value)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("writing the restored rows: %w", err)
	}
	b.rows, b.bytes = b.rows[:0], 0
	return nil
}

// bringUp opens the ledger and the broker on the rebuilt store, and has the broker carry out what came after the
// backup. The witness is not shown any of it: that is for the start of the instance.
func (d *Daemon) bringUp(ctx context.Context, status client.Status, r access.Restoration, report *RestoreReport) error {
	id, err := loadIdentity(ctx, d.store)
	if err != nil {
		return err
	}
	config, err := d.ledgerConfig(ctx, id, status)
	if err != nil {
		return err
	}
	if d.ledger, err = ledger.Open(ctx, config); err != nil {
		return fmt.Errorf("opening the restored ledger: %w", err)
	}
	v, err := vault.New(d.sidecar)
	if err != nil {
		return err
	}
	broker, err := access.New(ctx, brokerConfig(d, v, status.Sidecar))
	if err != nil {
		return fmt.Errorf("starting the broker on the restored store: %w", err)
	}
	if report.RestoreReport, err = broker.Restore(ctx, r); err != nil {
		return err
	}
	fits, err := broker.IndexFits(ctx)
	report.Reindex = !fits
	return err
}

// keyState tells what an error of the sidecar says of a subject's key.
func keyState(err error) access.KeyState {
	switch {
	case errors.Is(err, keys.ErrDestroyed):
		return access.KeyDestroyed
	case errors.Is(err, keys.ErrNoKey), errors.Is(err, keys.ErrKEKRetired):
		return access.KeyAbsent
	case errors.Is(err, keys.ErrTampered):
		return access.KeyOther
	}
	return access.KeyUnknown
}
