package badgerkv

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/vault/kv"
)

// checkTables reads the MANIFEST and verifies each table that it names, or will name once a compaction is undone.
// It returns the number of the newest commit in them. Badger does the same afterwards, but it opens tables in goroutines of
// its own where damage to an index, or to the number of entries of a block, is a panic that nobody can catch, and it has
// removed files by then.
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
	last := make([]uint64, len(ids))
	var checks errgroup.Group
	checks.SetLimit(runtime.GOMAXPROCS(0))
	for i, id := range ids {
		checks.Go(func() (err error) {
			name := table.IDToFilename(id)
			if last[i], err = checkTable(filepath.Join(o.Dir, name)); err != nil {
				return fmt.Errorf("badgerkv: table %s is missing or damaged (%w); nothing was touched; restore the directory from a backup: %w",
					name, err, kv.ErrIntegrity)
			}
			return nil
		})
	}
	if err := checks.Wait(); err != nil {
		return 0, err
	}
	for _, n := range last {
		newest = max(newest, n)
	}
	return newest, nil
}

var errDamaged = errors.New("its index or a block is not what was written")

func checkTable(path string) (newest uint64, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fs.ErrNotExist
	}
	if info.Size() == 0 {
		return 0, errors.New("empty file") // an empty file would be grown by mapping it
	}
	mf, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, errors.New("cannot be mapped")
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil { // its text holds the whole index, and so keys
			err = errDamaged
		}
	}()
	t, err := table.OpenTable(mf, table.Options{ChkMode: options.OnTableRead})
	if err != nil {
		return 0, errDamaged
	}
	newest = t.MaxVersion()
	return newest, t.Close(-1)
}
