package badgerkv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/internal/occ"
)

// ErrInUse is returned by Open when another process, or this one, has the store open.
var ErrInUse = errors.New("badgerkv: store is in use")

// canaryKey holds the store's id inside Badger. Reading it back shows that the tables and logs belong to
// the sentinel, and that the engine reads at all.
var canaryKey = []byte{storeSpace, 'i', 'd'}

// tickKey is set by each commit that sets nothing else. A compaction drops deletions, and with them the number of
// their commit, which checkLogs must find in the tables.
var tickKey = []byte{storeSpace, 't'}

// Create makes a new store in o.Dir, which must be absent or empty, and opens it. An error leaves whatever
// was made so far for the operator to look at; Open refuses it.
func Create(ctx context.Context, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := makeDir(o.Dir); err != nil {
		return nil, err
	}
	lim, err := checkFileSystem(o)
	if err != nil {
		return nil, err
	}
	if info, err := o.hooks.statfs(o.Dir); err != nil {
		return nil, err
	} else if info.free < lim.readOnly {
		return nil, fmt.Errorf("badgerkv: creating a store needs %d bytes free, there are %d: %w", lim.readOnly, info.free, kv.ErrStorageFull)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := openEngine(o)
	if err != nil {
		return nil, err
	}
	lock, id, err := found(o, e.db)
	if err != nil {
		return nil, errors.Join(err, e.shut())
	}
	return newStore(o, lim, e, lock, id), nil
}

// found makes the open but empty engine a store. The sentinel comes last, so that it stands for a store
// that was made completely.
func found(o Options, db *badger.DB) (*os.File, string, error) {
	s := newSentinel(o.Kind, o.Now())
	err := db.Update(func(txn *badger.Txn) error { return txn.Set(canaryKey, []byte(s.ID)) })
	if err != nil {
		return nil, "", fmt.Errorf("badgerkv: writing the canary: %w", err)
	}
	if err := writeDurably(o.Dir, sentinelFile, s); err != nil {
		return nil, "", err
	}
	if err := syncDir(filepath.Dir(filepath.Clean(o.Dir))); err != nil {
		return nil, "", err
	}
	lock, err := lockSentinel(o.Dir)
	return lock, s.ID, err
}

// Open opens the store in o.Dir. It never creates one: an absent or empty directory gives an error that
// wraps fs.ErrNotExist. What does not look like a whole store of ours gives one that wraps kv.ErrIntegrity,
// and the directory is left as it was. The order of the steps matters: nothing is changed before everything
// that can be checked has been, and the copy is taken before Badger can cut the logs.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkDir(o.Dir); err != nil {
		return nil, err
	}
	lim, err := checkFileSystem(o)
	if err != nil {
		return nil, err
	}
	space, err := planSpace(o)
	if err != nil {
		return nil, err
	}
	found, err := identify(o)
	if err != nil {
		return nil, err
	}
	e, err := recoverEngine(ctx, o, found, space)
	if err != nil {
		found.lock.Close()
		return nil, err
	}
	return newStore(o, lim, e, found.lock, found.id), nil
}

func newStore(o Options, lim limits, e engine, lock *os.File, id string) *Store {
	s := &Store{
		id: id, db: e.db, opts: o, log: o.Logger, lock: lock,
		commits: occ.NewLog(), flight: newFlight(e.db), space: newSpaceGuard(o, lim),
		compactions: e.compactions, verifier: e.compactions.verifier, failed: e.failed,
	}
	e.compactions.serve(s.flight.busy)
	return s
}

// makeDir makes o.Dir, or takes it if it is empty. Its parent must exist, so that a mistyped path or a file
// system that is not mounted is noticed.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		names, err := list(dir)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return fmt.Errorf("badgerkv: creating a store in %s, which is not empty: %w", dir, fs.ErrExist)
		}
		err = os.Chmod(dir, 0o700)
		if err != nil {
			return fmt.Errorf("badgerkv: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("badgerkv: creating a store: %w", err)
	}
	return nil
}

func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("badgerkv: opening a store: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("badgerkv: %s is not a directory", dir)
	}
	if mode := info.Mode().Perm(); mode != 0o700 {
		return fmt.Errorf("badgerkv: %s has mode %04o, it must be 0700: %w", dir, mode, fs.ErrPermission)
	}
	return nil
}

func checkFileSystem(o Options) (limits, error) {
	info, err := o.hooks.statfs(o.Dir)
	if err != nil {
		return limits{}, err
	}
	if name, refused := refusedFS[info.magic]; refused {
		return limits{}, fmt.Errorf("badgerkv: %s lies on %s, where a synced write may be lost; use ext4 or XFS", o.Dir, name)
	}
	if !soundFS[info.magic] {
		o.Logger.Warn("file system of the store is not known to keep what is synced", "magic", fmt.Sprintf("%#x", info.magic))
	}
	return o.limits(info.total), verifyUnlessControl(o)
}

func verifyUnlessControl(o Options) error {
	if o.hooks.skipVerify {
		return nil
	}
	return verifyEngine(o.engine())
}

// spacePlan says whether the ballast must go so that the store can open at all.
type spacePlan struct{ dropBallast bool }

// planSpace refuses to open where recovery could run out of space, which would kill the process half way.
// Recovery copies the logs aside and writes them once more as tables. Below the read-only limit the store
// does open: reads go on.
func planSpace(o Options) (spacePlan, error) {
	info, err := o.hooks.statfs(o.Dir)
	if err != nil {
		return spacePlan{}, err
	}
	need := int64(1 << 20)
	logs, err := memLogs(o.Dir)
	if err != nil {
		return spacePlan{}, err
	}
	for _, path := range logs {
		n, err := allocated(path)
		if err != nil {
			return spacePlan{}, err
		}
		need += 2 * n
	}
	if info.free >= need {
		return spacePlan{}, nil
	}
	ballast, err := allocated(filepath.Join(o.Dir, ballastFile))
	if err == nil && info.free+ballast >= need {
		return spacePlan{dropBallast: true}, nil
	}
	return spacePlan{}, fmt.Errorf("badgerkv: opening the store needs %d bytes free, there are %d: %w", need, info.free, kv.ErrStorageFull)
}

// identity is what a store is found to be before anything in its directory is changed.
type identity struct {
	lock    *os.File
	id      string
	isClean bool
	undo    *undo // nil: no compaction was under way

	superseded []string // logs that must not be replayed
}

// identify locks the store and makes sure, without changing anything, that it is whole as far as can be
// told from outside.
func identify(o Options) (found identity, err error) {
	names, err := list(o.Dir)
	if err != nil {
		return found, err
	}
	found.lock, err = lockSentinel(o.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(names) == 0:
		return found, fmt.Errorf("badgerkv: %s is empty, there is no store to open: %w", o.Dir, fs.ErrNotExist)
	case errors.Is(err, fs.ErrNotExist):
		return found, fmt.Errorf("badgerkv: %s has files but no %s: it is not a store, or its creation was interrupted, "+
			"or the sentinel was lost; restore it from a backup: %w", o.Dir, sentinelFile, kv.ErrIntegrity)
	case err != nil:
		return found, fmt.Errorf("badgerkv: opening %s: %w", o.Dir, err)
	}
	defer func() {
		if err != nil {
			found.lock.Close()
		}
	}()
	s, err := readSentinel(found.lock, o.Kind)
	if err != nil {
		return found, err
	}
	found.id = s.ID
	if !names[badger.ManifestFilename] {
		return found, fmt.Errorf("badgerkv: %s has no %s; the engine would delete all tables and start empty, so nothing was touched; "+
			"put the file back from %s or restore the directory from a backup: %w", o.Dir, badger.ManifestFilename, copyDir, kv.ErrIntegrity)
	}
	if found.isClean, err = readClean(o.Dir, s.ID); err != nil {
		return found, err
	}
	if found.undo, err = planUndo(o, found.isClean); err != nil {
		return found, err
	}
	newest, err := checkTables(o, found.undo)
	if err != nil {
		return found, err
	}
	found.superseded, err = checkLogs(o, newest)
	return found, err
}

// recoverEngine is the part of Open that changes the directory.
func recoverEngine(ctx context.Context, o Options, found identity, space spacePlan) (e engine, err error) {
	if err := ctx.Err(); err != nil {
		return e, err
	}
	if space.dropBallast {
		o.Logger.Warn("little free space: giving up the ballast to open the store")
		if err := os.Remove(filepath.Join(o.Dir, ballastFile)); err != nil {
			return e, fmt.Errorf("badgerkv: giving up the ballast: %w", err)
		}
	}
	if found.undo != nil { // a record that is left over must not outlive the clean marker, which says so
		if err := found.undo.apply(o); err != nil {
			return e, err
		}
	}
	if found.isClean {
		// From here on a crash is an unclean stop.
		if err := os.Remove(filepath.Join(o.Dir, cleanFile)); err != nil {
			return e, fmt.Errorf("badgerkv: removing the clean marker: %w", err)
		}
		if err := syncDir(o.Dir); err != nil {
			return e, err
		}
	} else {
		o.Logger.Warn("store was not closed cleanly: copying its logs aside before they are replayed", "copy", copyDir)
		if err := copyAside(o.Dir); err != nil {
			return e, err
		}
	}
	for _, path := range found.superseded {
		o.Logger.Warn("a log is in the tables already: it is not replayed", "log", filepath.Base(path))
		if err := os.Remove(path); err != nil {
			return e, fmt.Errorf("badgerkv: removing a log: %w", err)
		}
	}
	if len(found.superseded) > 0 {
		if err := syncDir(o.Dir); err != nil {
			return e, err
		}
	}
	if e, err = openEngine(o); err != nil {
		return e, err
	}
	if err := readCanary(e.db, found.id); err != nil {
		return e, errors.Join(err, e.shut())
	}
	return e, nil
}

// engine is an open Badger with the watch over its compactions.
type engine struct {
	db          *badger.DB
	compactions *compactions
	failed      *atomic.Pointer[error]
}

// shut closes an engine that nobody uses yet.
func (e engine) shut() error {
	e.compactions.hasten()
	return e.compactions.shut()
}

// openEngine opens Badger, whose panics over damaged files become errors.
func openEngine(o Options) (e engine, err error) {
	defer func() {
		if p := recover(); p != nil {
			e, err = engine{}, fmt.Errorf("badgerkv: engine panicked while opening (%v): %w", p, kv.ErrIntegrity)
		}
	}()
	e.failed = new(atomic.Pointer[error])
	e.compactions = newCompactions(o, func(err error) error { return o.stop(e.failed, err) })
	opt := o.engine().WithLogger(engineLog{o.Logger, e.compactions})
	logs, err := memLogs(o.Dir)
	if err != nil {
		return engine{}, err
	}
	// Or Badger could wait for a compaction before it is open, and the compaction for it to be open.
	opt.NumMemtables = max(opt.NumMemtables, len(logs))
	if o.hooks.tune != nil {
		opt = o.hooks.tune(opt)
	}
	if e.db, err = badger.Open(opt); err == nil {
		if err := e.compactions.attach(e.db); err != nil {
			return engine{}, err // left open: a compaction that waits for us could not end, and so the engine not close
		}
		set, err := e.compactions.verifier.refresh()
		if err == nil && set.damaged {
			err = fmt.Errorf("badgerkv: a table was damaged while the engine opened; restore the directory from a backup: %w", kv.ErrIntegrity)
		}
		if err != nil {
			return engine{}, errors.Join(err, e.shut())
		}
		return e, nil
	}
	if environmental(err) {
		return engine{}, fmt.Errorf("badgerkv: opening the engine: %w", err)
	}
	return engine{}, fmt.Errorf("badgerkv: opening the engine (%w): %w", err, kv.ErrIntegrity)
}

// environmental reports whether err comes from the machine and not from the store. Badger flattens the
// errors below it to text, so there is nothing else to go by.
func environmental(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EACCES, syscall.EPERM, syscall.EROFS} {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return strings.Contains(err.Error(), "Cannot acquire directory lock")
}

func readCanary(db *badger.DB, id string) error {
	return db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(canaryKey)
		if err != nil {
			return fmt.Errorf("badgerkv: canary cannot be read (%w): %w", err, kv.ErrIntegrity)
		}
		got, err := item.ValueCopy(nil)
		if err != nil || string(got) != id {
			return fmt.Errorf("badgerkv: data belong to another store than the sentinel %s: %w", sentinelFile, kv.ErrIntegrity)
		}
		return nil
	})
}

// copyAside keeps what Badger's recovery may cut off: it takes a bad checksum anywhere in a log for the
// log's end. Only the newest copy is kept.
func copyAside(dir string) error {
	tmp, dst := filepath.Join(dir, copyDir+".tmp"), filepath.Join(dir, copyDir)
	paths, err := memLogs(dir)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("badgerkv: copying aside: %w", err)
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("badgerkv: copying aside: %w", err)
	}
	for _, path := range append(paths, filepath.Join(dir, badger.ManifestFilename)) {
		if err := copySparse(path, filepath.Join(tmp, filepath.Base(path))); err != nil {
			return fmt.Errorf("badgerkv: copying aside: %w", err)
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	if err := os.RemoveAll(dst); err != nil {
		return fmt.Errorf("badgerkv: removing the older copy: %w", err)
	}
	if err := os.Rename(tmp, dst); err != nil {
		return fmt.Errorf("badgerkv: copying aside: %w", err)
	}
	return syncDir(dir)
}

// memLogs returns the paths of the write-ahead logs in dir.
func memLogs(dir string) ([]string, error) {
	names, err := list(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for name := range names {
		if strings.HasSuffix(name, ".mem") {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	return paths, nil
}

// list returns the names in dir, but not the one that every ext4 file system has at its root.
func list(dir string) (map[string]bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("badgerkv: %w", err)
	}
	names := make(map[string]bool, len(entries))
	for _, e := range entries {
		if e.Name() != "lost+found" {
			names[e.Name()] = true
		}
	}
	return names, nil
}
