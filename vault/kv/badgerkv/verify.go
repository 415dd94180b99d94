package badgerkv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/prototypster/pdvault/vault/kv"
)

// errOtherwise is an answer of the engine that is not what stands in the tables.
var errOtherwise = errors.New("the engine answers otherwise than its tables do")

// verifier compares what the engine answers with what stands in the tables. The engine reads their blocks and indexes
// without a look at the checksums, or, where it is told to look, takes a damaged block for an empty one: what was in it is
// "not found", or an older value.
//
// An answer is never older than what a sound set of tables holds for the same snapshot, whenever the set was in force: what
// is newer lies in memtables, or in tables that came later. So the set may be a little old. What is in tables that came
// later is then not compared.
type verifier struct {
	dir string
	// listed tells which tables count: those that were flushed, and those of compactions that are known to be right. While
	// that is not known of one, its input counts.
	listed func() (map[uint64]listed, error)

	mu     sync.Mutex // guards opened, and is held while a set is made
	opened map[uint64]*sst
	set    atomic.Pointer[sstSet]
}

func newVerifier(dir string, listed func() (map[uint64]listed, error)) *verifier {
	v := &verifier{dir: dir, listed: listed, opened: map[uint64]*sst{}}
	v.set.Store(&sstSet{})
	return v
}

// refresh returns the set of now: the one before if nothing has changed. An error is one of the machine, and passes.
func (v *verifier) refresh() (*sstSet, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		now, err := v.listed()
		if err != nil {
			return nil, err
		}
		set := v.set.Load()
		same := maps.Equal(now, set.listed)
		if same && !set.damaged {
			return set, nil
		}
		damaged, err := v.open(now)
		if err != nil {
			return nil, err
		}
		if damaged && same {
			return set, nil
		}
		if damaged { // or it has gone meanwhile
			if again, err := v.listed(); err != nil {
				return nil, err
			} else if !maps.Equal(again, now) {
				continue
			}
		}
		v.set.Store(newSSTSet(now, v.opened))
		return v.set.Load(), nil
	}
}

// forget lets go of all tables.
func (v *verifier) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opened = map[uint64]*sst{}
	v.set.Store(&sstSet{})
}

// open makes opened the tables of a list. Of one that is damaged it keeps that it is.
func (v *verifier) open(list map[uint64]listed) (damaged bool, err error) {
	maps.DeleteFunc(v.opened, func(id uint64, t *sst) bool { _, ok := list[id]; return !ok || t.damaged })
	var missing []uint64
	for id := range list {
		if v.opened[id] == nil {
			missing = append(missing, id)
		}
	}
	tables := make([]*sst, len(missing))
	var opens errgroup.Group
	opens.SetLimit(runtime.GOMAXPROCS(0))
	for n, id := range missing {
		opens.Go(func() (err error) {
			err = shielded(func() (err error) { tables[n], err = openSST(v.dir, id); return err })
			if err != nil && isDamage(err) {
				tables[n], err = &sst{damaged: true}, nil
			}
			if err != nil {
				return fmt.Errorf("badgerkv: table %s: %w", table.IDToFilename(id), err)
			}
			return nil
		})
	}
	err = opens.Wait()
	for n, t := range tables {
		if t != nil {
			v.opened[missing[n]], damaged = t, damaged || t.damaged
		}
	}
	return damaged, err
}

// isDamage reports whether an error tells of a table, and not of the machine: also that the disk, or the file system, has lost
// it.
func isDamage(err error) bool {
	for _, lost := range []error{errTable, fs.ErrNotExist, unix.EIO, unix.EUCLEAN, unix.EBADMSG} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
}

// shielded turns a fault in a mapped file into an error.
func shielded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil { // its text may hold what is in the table
			err = errTable
		}
	}()
	return fn()
}

// confirm compares an answer of the engine with the tables, and is an error if it cannot be right.
func (r *reader) confirm(key []byte, theirs written) error {
	if r.tx != nil && r.tx.Wrote(key[1:]) {
		return nil // the answer comes from the transaction itself
	}
	at := binary.BigEndian.AppendUint64(append(r.at[:0], key...), math.MaxUint64-r.txn.ReadTs())
	r.at = at
	return r.compare(func(set *sstSet) error {
		mine, yes, err := set.contradicts(&r.cursor, at, theirs)
		if err == nil && yes {
			err = r.reconsider(key, theirs, mine)
		}
		return err
	})
}

// compare calls fn with the set, and with a newer one as long as it fails and there is a newer one: what the older one holds
// may have been deleted since, and then compacted, together with the deletion.
func (r *reader) compare(fn func(*sstSet) error) error {
	v := r.store.verifier
	for set := v.set.Load(); ; {
		err := errTable
		if !set.damaged {
			err = fn(set)
		}
		runtime.KeepAlive(set)
		if err == nil {
			return nil
		}
		now := v.set.Load()
		if now == set {
			var failed error
			if now, failed = v.refresh(); errors.Is(failed, kv.ErrIntegrity) {
				return r.damage(failed)
			} else if failed != nil {
				return r.unsound(fmt.Errorf("badgerkv: comparing an answer with the tables: %w", failed))
			}
		}
		if now == set {
			return r.damage(err)
		}
		set = now
	}
}

// reconsider asks the engine once more, in a way that tells of deletions: one in a memtable hides what is in the tables.
func (r *reader) reconsider(key []byte, theirs, mine written) error {
	it := r.txn.NewKeyIterator(key, badger.IteratorOptions{AllVersions: true})
	defer it.Close()
	var again written
	if it.Rewind(); it.Valid() {
		item := it.Item()
		again = written{version: item.Version(), deleted: item.IsDeletedOrExpired()}
		if !again.deleted {
			if err := item.Value(func(v []byte) error { again.value = bytes.Clone(v); return nil }); err != nil {
				return err
			}
		}
	}
	there := theirs.version > 0
	if there == (again.version > 0 && !again.deleted) && (!there || again.version == theirs.version) && again.covers(mine) {
		return nil
	}
	return errOtherwise
}

// confirmScan is confirm for the keys from lo on and before hi, of which the engine has found pairs.
func (r *reader) confirmScan(lo, hi []byte, pairs []kv.Pair, versions []uint64) error {
	var failed error
	err := r.compare(func(set *sstSet) error {
		return shielded(func() error {
			return set.doubts(lo, hi, r.txn.ReadTs(), pairs, versions, func(key []byte, theirs written) bool {
				failed = r.confirm(key, theirs)
				return failed == nil
			})
		})
	})
	if failed != nil {
		return failed
	}
	return err
}
