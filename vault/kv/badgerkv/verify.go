package badgerkv

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"

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

	mu  sync.Mutex // held while a set is made
	set atomic.Pointer[sstSet]
}

func newVerifier(dir string, listed func() (map[uint64]listed, error)) *verifier {
	v := &verifier{dir: dir, listed: listed}
	v.set.Store(&sstSet{})
	return v
}

// refresh returns the set of now: the one before if nothing has changed.
func (v *verifier) refresh() (*sstSet, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		now, err := v.listed()
		if err != nil {
			return nil, err
		}
		if set := v.set.Load(); maps.Equal(now, set.listed) {
			return set, nil
		}
		next, err := v.open(now)
		if err == nil {
			v.set.Store(next)
			return next, nil
		}
		// A table may have gone meanwhile.
		if again, e := v.listed(); e != nil || maps.Equal(again, now) {
			return nil, err
		}
	}
}

func (v *verifier) open(list map[uint64]listed) (set *sstSet, err error) {
	set = &sstSet{listed: list, tables: make(map[uint64]*sst, len(list))}
	before := v.set.Load()
	for id, is := range list {
		t := before.tables[id]
		if t == nil {
			if err := shielded(func() (err error) { t, err = openSST(v.dir, id); return err }); err != nil {
				return nil, err
			}
		}
		for int(is.Level) >= len(set.levels) {
			set.levels = append(set.levels, nil)
		}
		set.tables[id] = t
		set.levels[is.Level] = append(set.levels[is.Level], t)
	}
	for _, tables := range set.levels {
		slices.SortFunc(tables, func(a, b *sst) int { return y.CompareKeys(a.biggest, b.biggest) })
	}
	return set, nil
}

// audit verifies tables as a whole.
func (v *verifier) audit(ids []uint64) error {
	for _, id := range ids {
		t := v.set.Load().tables[id]
		err := shielded(func() (err error) {
			if t == nil {
				t, err = openSST(v.dir, id)
			}
			if err == nil {
				err = t.verify()
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("badgerkv: table %s was damaged when a compaction had read it (%w); "+
				"restore the directory from a backup: %w", table.IDToFilename(id), err, kv.ErrIntegrity)
		}
		runtime.KeepAlive(t)
	}
	return nil
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

// sstSet is all tables at one moment.
type sstSet struct {
	listed map[uint64]listed
	tables map[uint64]*sst
	levels [][]*sst // ascending by their biggest keys; but in level 0 they do not overlap
}

// from returns the tables of a level that may hold key or what follows it.
func (s *sstSet) from(level int, key []byte) []*sst {
	tables := s.levels[level]
	return tables[sort.Search(len(tables), func(n int) bool { return y.CompareKeys(tables[n].biggest, key) >= 0 }):]
}

// newest returns what the tables hold under key up to the commit whose number it ends in. Tables that were written before
// the commit since are left out.
func (s *sstSet) newest(c *cursor, key []byte, since uint64) (newest written, err error) {
	err = shielded(func() error {
		bare := y.ParseKey(key)
		hash := y.Hash(bare)
		for level := range s.levels {
			tables := s.from(level, key)
			if level > 0 {
				tables = tables[:min(1, len(tables))]
			}
			for _, t := range tables {
				if t.newest < since || bytes.Compare(y.ParseKey(t.smallest), bare) > 0 || len(t.filter) > 0 && !t.filter.MayContain(hash) {
					continue
				}
				w, err := c.find(t, key)
				if err != nil {
					return err
				}
				if w.version > newest.version {
					newest = w
				}
			}
		}
		return nil
	})
	return newest, err
}

// covers reports whether an answer of the engine can be right where the tables hold mine. An answer without a version is
// "not found": of a deletion the engine tells no more.
func (w written) covers(mine written) bool {
	switch {
	case mine.version < w.version:
		return true
	case mine.version == w.version:
		return mine.deleted == w.deleted && bytes.Equal(mine.value, w.value)
	}
	return w.version == 0 && mine.deleted
}

// confirm compares an answer of the engine with the tables, and is an error if it cannot be right.
func (r *reader) confirm(key []byte, theirs written) error {
	if r.tx != nil && r.tx.Wrote(key[1:]) {
		return nil // the answer comes from the transaction itself
	}
	v := r.store.verifier
	at := y.KeyWithTs(key, r.txn.ReadTs())
	for {
		set := v.set.Load()
		mine, err := set.newest(&r.cursor, at, theirs.version)
		if err == nil && !theirs.covers(mine) {
			err = r.reconsider(key, theirs, mine)
		}
		runtime.KeepAlive(set)
		if err == nil {
			return nil
		}
		// The set may be too old: what it holds was deleted since, and then compacted, together with the deletion.
		if now, e := v.refresh(); e != nil {
			return fmt.Errorf("badgerkv: comparing with the tables: %w", e)
		} else if now == set {
			return r.damage(err)
		}
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
	v := r.store.verifier
	for {
		set := v.set.Load()
		var doubts []doubt
		err := shielded(func() (err error) { doubts, err = set.doubts(lo, hi, r.txn.ReadTs(), pairs, versions); return err })
		runtime.KeepAlive(set)
		if err == nil {
			for _, d := range doubts {
				if err := r.confirm(d.key, d.theirs); err != nil {
					return err
				}
			}
			return nil
		}
		if now, e := v.refresh(); e != nil {
			return fmt.Errorf("badgerkv: comparing with the tables: %w", e)
		} else if now == set {
			return r.damage(err)
		}
	}
}

// doubt is a key of which the tables hold something else than the engine has answered.
type doubt struct {
	key    []byte
	theirs written
}

// doubts goes through the tables beside an answer. Each of the two ascends.
func (s *sstSet) doubts(lo, hi []byte, at uint64, pairs []kv.Pair, versions []uint64) (list []doubt, err error) {
	start := y.KeyWithTs(lo, math.MaxUint64)
	var c cursor
	for level := range s.levels {
		for _, t := range s.from(level, start) {
			if bytes.Compare(y.ParseKey(t.smallest), hi) >= 0 {
				if level > 0 {
					break
				}
				continue
			}
			var last []byte
			n := 0
			for err = c.seek(t, start); err == nil && c.ok; err = c.next() {
				key := y.ParseKey(c.key)
				if bytes.Compare(key, hi) >= 0 {
					break
				}
				if y.ParseTs(c.key) > at || bytes.Equal(key, last) {
					continue
				}
				last = append(last[:0], key...)
				for n < len(pairs) && bytes.Compare(pairs[n].Key, key[1:]) < 0 {
					n++
				}
				var theirs written
				if n < len(pairs) && bytes.Equal(pairs[n].Key, key[1:]) {
					theirs = written{version: versions[n], value: pairs[n].Value}
				}
				mine, err := c.written()
				if err != nil {
					return nil, err
				}
				if !theirs.covers(mine) {
					list = append(list, doubt{bytes.Clone(key), theirs})
				}
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// checkInput verifies the tables that an unfinished compaction has read, as far as they are still there: they go only after
// they were verified.
func (u unfinished) checkInput(dir string, s since) error {
	var ids []uint64
	for id := range u.Tables {
		if _, ok := s.tables[id]; ok {
			continue
		}
		size, err := fileSize(filepath.Join(dir, table.IDToFilename(id)))
		if err != nil {
			return err
		}
		if size > 0 {
			ids = append(ids, id)
		}
	}
	return newVerifier(dir, nil).audit(ids)
}
