package badgerkv

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/vault/kv"
)

// checkTables reads the MANIFEST and verifies each table that it names, or will name once a compaction is undone.
// It returns the number of the newest commit in them. Badger could do the same, but it opens tables in goroutines of its
// own where damage to an index, or to the number of entries of a block, is a panic that nobody can catch, and it has removed
// files by then.
func checkTables(o Options, u *undo) (newest uint64, err error) {
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if err != nil {
		return 0, fmt.Errorf("badgerkv: %w", err)
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, formatVersion, o.engine())
	if err != nil {
		return 0, fmt.Errorf("badgerkv: %s cannot be read (%w); nothing was touched: %w", badger.ManifestFilename, err, kv.ErrIntegrity)
	}
	ids := slices.Collect(maps.Keys(manifest.Tables))
	if u != nil && u.tables != nil {
		ids = slices.Collect(maps.Keys(u.tables))
	}
	return audit(o.Dir, ids, " is missing or damaged", "nothing was touched; restore the directory from a backup")
}

// checkTable reads the whole of a table, and returns the number of the newest commit in it. An error of the machine is one
// that is not isDamage.
func checkTable(dir string, id uint64) (newest uint64, err error) {
	f, err := os.Open(filepath.Join(dir, table.IDToFilename(id)))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = shielded(func() error {
		t, err := mapSST(f)
		if err != nil {
			return err
		}
		defer runtime.KeepAlive(t)
		newest = t.newest
		return t.checkBlocks(f)
	})
	return newest, err
}

const checkWindow = 256 << 10 // bytes that are read at once

// checkBlocks verifies all blocks. It reads them past the mapping: a fault for each few pages takes far longer, and what was
// touched counts as memory of the process.
func (t *sst) checkBlocks(f io.ReaderAt) error {
	var window []byte
	var begin int64 // of the window
	for n := range t.index.OffsetsLength() {
		from, to, err := t.span(n)
		if err != nil {
			return err
		}
		if from < begin || to > begin+int64(len(window)) {
			begin = from
			size := int(min(max(to-from, checkWindow), int64(len(t.data))-from))
			window = slices.Grow(window[:0], size)[:size]
			if _, err := f.ReadAt(window, begin); err == io.EOF { // it has become shorter meanwhile
				return errTable
			} else if err != nil {
				return err
			}
		}
		if _, err := readBlock(window[from-begin : to-begin]); err != nil {
			return err
		}
	}
	return nil
}

// audit verifies tables as a whole, and returns the number of the newest commit in them. Damage is a kv.ErrIntegrity that says
// what is wrong with which table, and what to do; which any other error is not.
func audit(dir string, ids []uint64, wrong, remedy string) (newest uint64, err error) {
	last, errs := make([]uint64, len(ids)), make([]error, len(ids))
	var checks errgroup.Group
	checks.SetLimit(runtime.GOMAXPROCS(0))
	for n, id := range ids {
		checks.Go(func() error { last[n], errs[n] = checkTable(dir, id); return nil })
	}
	_ = checks.Wait() // for all of them: an error of the machine must not hide damage
	for n, id := range ids {
		newest = max(newest, last[n])
		switch e := errs[n]; {
		case e == nil:
		case isDamage(e):
			return 0, fmt.Errorf("badgerkv: table %s%s (%w); %s: %w", table.IDToFilename(id), wrong, e, remedy, kv.ErrIntegrity)
		default:
			err = fmt.Errorf("badgerkv: reading table %s: %w", table.IDToFilename(id), e)
		}
	}
	return newest, err
}

// auditInput verifies what a compaction has read.
func auditInput(dir string, ids []uint64) error {
	_, err := audit(dir, ids, ", which a compaction has read, is damaged", "restore the directory from a backup")
	return err
}

// auditOutput verifies what a compaction has made, while its input is still there. It gets what the page cache holds: what
// went wrong in memory shows, and what goes wrong on the disk does not yet.
func auditOutput(dir string, ids []uint64) error {
	_, err := audit(dir, ids, ", which a compaction has made, is damaged", "the next start undoes it")
	return err
}
