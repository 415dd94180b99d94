package hcvault

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tidwall/btree"

	"github.com/prototypster/pdvault/vault/kv"
)

// errOver is returned by a Reader that is used after its function has returned.
var errOver = errors.New("hcvault: Reader used after its transaction ended")

// reader is one snapshot: a copy of the tree of keys, which shares its nodes. It is used by one goroutine.
type reader struct {
	store  *Store
	ctx    context.Context // of the View or Update, for fetches
	rows   *btree.BTreeG[item]
	seq    uint64 // the last commit in it
	over   bool
	failed error // the first read that failed; a transaction that ignores it must not succeed
}

// span is the keys from lo up to but not including hi; an empty hi has no end.
type span struct{ lo, hi string }

func (r *reader) begin(ctx context.Context, s *Store) {
	r.store, r.ctx = s, ctx
	s.mu.Lock()
	defer s.mu.Unlock()
	r.rows, r.seq = s.rows.Copy(), s.seq // O(1)
	s.open[r] = struct{}{}
}

// end lets go of what the snapshot holds.
func (r *reader) end() {
	r.over = true
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	delete(r.store.open, r)
}

func (r *reader) Get(keys ...[]byte) ([][]byte, error) {
	if r.over {
		return nil, errOver
	}
	items := make([]item, len(keys))
	for i, key := range keys {
		items[i], _ = r.rows.Get(item{key: string(key)})
	}
	return r.values(items)
}

func (r *reader) values(items []item) ([][]byte, error) {
	values, err := [][]byte(nil), r.store.usable()
	if err == nil {
		values, err = r.store.values(r.ctx, items)
	}
	if err != nil {
		err = fmt.Errorf("hcvault: reading: %w", err)
		if r.failed == nil {
			r.failed = err
		}
		return nil, err
	}
	return values, nil
}

func (r *reader) Scan(prefix, after []byte, limit int) ([]kv.Pair, error) {
	pairs, _, err := r.scan(prefix, after, limit)
	return pairs, err
}

// scan also returns the range that the result depends on.
func (r *reader) scan(prefix, after []byte, limit int) ([]kv.Pair, span, error) {
	if limit <= 0 {
		return nil, span{}, fmt.Errorf("hcvault: scan limit %d is not positive", limit)
	}
	if r.over {
		return nil, span{}, errOver
	}
	on := span{string(prefix), prefixEnd(string(prefix))}
	if after != nil && string(after) >= on.lo {
		on.lo = string(after) + "\x00" // the key that follows directly
	}
	var items []item
	r.rows.Ascend(item{key: on.lo}, func(it item) bool {
		if !strings.HasPrefix(it.key, string(prefix)) {
			return false
		}
		items = append(items, it)
		return len(items) < limit
	})
	values, err := r.values(items)
	if err != nil {
		return nil, span{}, err
	}
	var pairs []kv.Pair
	for i, it := range items {
		pairs = append(pairs, kv.Pair{Key: []byte(it.key), Value: values[i]})
	}
	if len(items) == limit {
		on.hi = items[limit-1].key + "\x00"
	}
	return pairs, on, nil
}

// prefixEnd returns the first key after all keys that begin with prefix, or "" if there is none.
func prefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}

// writer is a reader that collects writes and notes what it has read.
type writer struct {
	reader
	base    *btree.BTreeG[item] // the snapshot without own writes
	reads   map[string]struct{}
	ranges  []span
	writes  map[string]*cell // nil: a removal
	size    int              // of the writes, encoded
	invalid error            // the first invalid write; guards against a commit of the rest
}

func (w *writer) Get(keys ...[]byte) ([][]byte, error) {
	for _, key := range keys {
		if _, own := w.writes[string(key)]; !own {
			if w.reads == nil {
				w.reads = map[string]struct{}{}
			}
			w.reads[string(key)] = struct{}{}
		}
	}
	return w.reader.Get(keys...)
}

func (w *writer) Scan(prefix, after []byte, limit int) ([]kv.Pair, error) {
	pairs, on, err := w.scan(prefix, after, limit)
	if err != nil {
		return nil, err
	}
	w.ranges = append(w.ranges, on)
	return pairs, nil
}

func (w *writer) Set(key, value []byte) {
	if !w.admit(key, value) {
		return
	}
	c := &cell{value: append(make([]byte, 0, len(value)), value...)}
	w.own().Set(item{string(key), c})
	w.writes[string(key)] = c
}

func (w *writer) Delete(key []byte) {
	if !w.admit(key, nil) {
		return
	}
	w.own().Delete(item{key: string(key)})
	w.writes[string(key)] = nil
}

// own returns the tree that shows the transaction's own writes, to it and to nobody else.
func (w *writer) own() *btree.BTreeG[item] {
	if w.rows == w.base {
		w.rows = w.base.Copy()
	}
	return w.rows
}

func (w *writer) admit(key, value []byte) bool {
	if w.over {
		panic("hcvault: Writer used after its transaction ended") // or the write would vanish silently
	}
	w.size += len(key) + len(value) + 8
	switch {
	case w.invalid != nil:
	case len(key) == 0:
		w.invalid = fmt.Errorf("hcvault: empty key: %w", kv.ErrTooLarge)
	case len(key) > kv.MaxKeySize:
		w.invalid = fmt.Errorf("hcvault: key of %d bytes: %w", len(key), kv.ErrTooLarge)
	case len(value) > kv.MaxValueSize:
		w.invalid = fmt.Errorf("hcvault: value of %d bytes: %w", len(value), kv.ErrTooLarge)
	case len(w.writes) >= maxTxnWrites || w.size > maxTxnBytes:
		w.invalid = fmt.Errorf("hcvault: transaction of %d writes, %d bytes: %w", len(w.writes), w.size, kv.ErrTooLarge)
	}
	return w.invalid == nil
}

// conflicts reports whether what w has read is another version in now.
func (w *writer) conflicts(now *btree.BTreeG[item]) bool {
	for key := range w.reads {
		before, _ := w.base.Get(item{key: key})
		after, _ := now.Get(item{key: key})
		if before.cell != after.cell {
			return true
		}
	}
	for _, on := range w.ranges {
		if !same(w.base, now, on) {
			return true
		}
	}
	return false
}

// same reports whether two trees show the same versions of the same keys in a range.
func same(a, b *btree.BTreeG[item], on span) bool {
	within := func(it item) bool { return on.hi == "" || it.key < on.hi }
	x, y := a.Iter(), b.Iter()
	defer x.Release()
	defer y.Release()
	okX, okY := x.Seek(item{key: on.lo}), y.Seek(item{key: on.lo})
	for {
		okX, okY = okX && within(x.Item()), okY && within(y.Item())
		if !okX || !okY {
			return okX == okY
		}
		if x.Item().cell != y.Item().cell {
			return false
		}
		okX, okY = x.Next(), y.Next()
	}
}
