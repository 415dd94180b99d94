package badgerkv

import (
	"bytes"
	"math"
	"slices"
	"sort"

	"github.com/dgraph-io/badger/v4/y"

	"github.com/prototypster/pdvault/vault/kv"
)

// sstSet is all tables at one moment.
type sstSet struct {
	listed  map[uint64]listed
	levels  [][]*sst // ascending by their biggest keys; but in level 0 they do not overlap
	damaged bool     // the index of one cannot be read, so nobody knows what is in it
}

func newSSTSet(list map[uint64]listed, tables map[uint64]*sst) *sstSet {
	set := &sstSet{listed: list}
	for id, is := range list {
		if tables[id].damaged {
			set.damaged = true
			continue
		}
		for int(is.Level) >= len(set.levels) {
			set.levels = append(set.levels, nil)
		}
		set.levels[is.Level] = append(set.levels[is.Level], tables[id])
	}
	for _, tables := range set.levels {
		slices.SortFunc(tables, func(a, b *sst) int { return y.CompareKeys(a.biggest, b.biggest) })
	}
	return set
}

// from returns the tables of a level that may hold key or what follows it.
func (s *sstSet) from(level int, key []byte) []*sst {
	tables := s.levels[level]
	return tables[sort.Search(len(tables), func(n int) bool { return y.CompareKeys(tables[n].biggest, key) >= 0 }):]
}

// contradicts returns what the tables hold under key, up to the commit whose number it ends in, if an answer of the engine
// cannot be right beside that.
func (s *sstSet) contradicts(c *cursor, key []byte, theirs written) (mine written, yes bool, err error) {
	err = shielded(func() (err error) {
		// Where an answer is in a table, as it is, only what is newer than it could stand against it. But its version may be
		// what is damaged.
		if mine, err = s.newest(c, key, theirs.version, math.MaxUint64); err != nil {
			return err
		}
		if theirs.version != 0 && mine.version != theirs.version {
			older, err := s.newest(c, key, 0, theirs.version)
			if err != nil {
				return err
			}
			if older.version > mine.version {
				mine = older
			}
		}
		if yes = !theirs.covers(mine); yes {
			mine.value = bytes.Clone(mine.value) // the file may be cut off by the engine
		}
		return nil
	})
	return mine, yes, err
}

// newest looks in the tables whose newest commit is not before one, and before another.
func (s *sstSet) newest(c *cursor, key []byte, from, before uint64) (newest written, err error) {
	bare := y.ParseKey(key)
	hash := y.Hash(bare)
	for level := range s.levels {
		tables := s.from(level, key)
		if level > 0 {
			tables = tables[:min(1, len(tables))]
		}
		for _, t := range tables {
			if t.newest < from || t.newest >= before || bytes.Compare(y.ParseKey(t.smallest), bare) > 0 || len(t.filter) > 0 && !t.filter.MayContain(hash) {
				continue
			}
			w, err := c.find(t, key)
			if err != nil {
				return newest, err
			}
			if w.version > newest.version {
				newest = w
			}
		}
	}
	return newest, nil
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

// doubts goes through the tables beside an answer; each of the two ascends. It calls fn for each key of which a table holds
// something else than the engine has answered, which a newer table may explain, until fn returns false.
func (s *sstSet) doubts(lo, hi []byte, at uint64, pairs []kv.Pair, versions []uint64, fn func(key []byte, theirs written) bool) (err error) {
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
			n := sort.Search(len(pairs), func(n int) bool { return bytes.Compare(pairs[n].Key, y.ParseKey(t.smallest)[1:]) >= 0 })
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
					return err
				}
				if !theirs.covers(mine) && !fn(bytes.Clone(key), theirs) {
					return nil
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
