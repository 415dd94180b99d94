// Package memkv is the engine of tests: the contract of vault/kv in memory, with the same limits, the same
// conflicts and the same errors as a real one, and strict about misuse.
//
// It must never hold anything that somebody wants back: nothing is durable, and no program may link it.
package memkv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/internal/occ"
)

// Limits of one transaction, those of badgerkv with its default memtable, so that a batch that passes in a
// test passes there too.
const (
	maxTxnBytes   = 32 << 20 * 15 / 100
	maxTxnWrites  = maxTxnBytes / 96
	entryOverhead = 12
)

var _ kv.Store = (*Store)(nil)

// Store is an ordered map in memory. Any goroutine may use it.
type Store struct {
	commits *occ.Log

	mu   sync.Mutex // guards tree, the current state; snapshots are copies of it
	tree *btree.BTreeG[kv.Pair]

	life    sync.RWMutex // guards closed, and running.Add against Close
	closed  bool
	running sync.WaitGroup
}

// New returns an empty store.
func New() *Store {
	less := func(a, b kv.Pair) bool { return bytes.Compare(a.Key, b.Key) < 0 }
	// NoLocks: a tree is either guarded by Store.mu or owned by one transaction.
	return &Store{commits: occ.NewLog(), tree: btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})}
}

// View implements [kv.Store].
func (s *Store) View(ctx context.Context, fn func(kv.Reader) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &reader{tree: s.snapshot()}
	defer r.over.Store(true)
	return fn(r)
}

// Update implements [kv.Store].
func (s *Store) Update(ctx context.Context, fn func(kv.Writer) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	return kv.Retry(ctx, "memkv", time.Millisecond, func() (bool, error) { return s.try(ctx, fn) })
}

// try runs fn once. It tells a conflict apart from an error of fn, which may itself wrap kv.ErrConflict.
func (s *Store) try(ctx context.Context, fn func(kv.Writer) error) (conflict bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	tx := s.commits.Begin() // before the snapshot, see occ
	w := &writer{reader: reader{tree: s.snapshot(), tx: tx}}
	defer w.over.Store(true)
	if err := fn(w); err != nil {
		return false, err
	}
	if w.failed != nil {
		return false, w.failed
	}
	if tx.ReadOnly() {
		return false, nil
	}
	err = s.commits.Commit(tx, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, op := range w.ops {
			op(s.tree)
		}
		return nil
	})
	return errors.Is(err, kv.ErrConflict), err
}

// Close implements [kv.Store].
func (s *Store) Close() error {
	s.life.Lock()
	s.closed = true
	s.life.Unlock()
	s.running.Wait()
	return nil
}

func (s *Store) enter() error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return kv.ErrClosed
	}
	s.running.Add(1)
	return nil
}

// snapshot is O(1): the copy shares all nodes until one side writes.
func (s *Store) snapshot() *btree.BTreeG[kv.Pair] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tree.Copy()
}

type reader struct {
	tree *btree.BTreeG[kv.Pair]
	tx   *occ.Tx // nil in a View
	over atomic.Bool
}

// check panics on a use after the transaction: in a real engine that is a read of another transaction's
// memory or a write that silently never happens, so a test must not get away with it.
func (r *reader) check() {
	if r.over.Load() {
		panic("memkv: Reader or Writer used after its transaction ended")
	}
}

func (r *reader) Get(keys ...[]byte) ([][]byte, error) {
	r.check()
	values := make([][]byte, len(keys))
	for i, key := range keys {
		if r.tx != nil {
			r.tx.Read(key)
		}
		if p, ok := r.tree.Get(kv.Pair{Key: key}); ok {
			values[i] = copyOf(p.Value)
		}
	}
	return values, nil
}

func (r *reader) Scan(prefix, after []byte, limit int) ([]kv.Pair, error) {
	r.check()
	if limit <= 0 {
		return nil, fmt.Errorf("memkv: scan limit %d is not positive", limit)
	}
	lo, _ := occ.ScanRange(prefix, after, nil)
	var pairs []kv.Pair
	r.tree.Ascend(kv.Pair{Key: lo}, func(p kv.Pair) bool {
		if !bytes.HasPrefix(p.Key, prefix) {
			return false
		}
		pairs = append(pairs, kv.Pair{Key: copyOf(p.Key), Value: copyOf(p.Value)})
		return len(pairs) < limit
	})
	if r.tx != nil {
		var last []byte
		if len(pairs) == limit {
			last = pairs[limit-1].Key
		}
		r.tx.ReadRange(occ.ScanRange(prefix, after, last))
	}
	return pairs, nil
}

type writer struct {
	reader
	ops    []func(*btree.BTreeG[kv.Pair]) // the writes, to be repeated on the store's tree
	bytes  int
	failed error // the first invalid write; guards against a commit of the rest
}

func (w *writer) Set(key, value []byte) {
	w.check()
	if !w.admit(key, value) {
		return
	}
	p := kv.Pair{Key: copyOf(key), Value: copyOf(value)}
	w.do(key, func(t *btree.BTreeG[kv.Pair]) { t.Set(p) })
}

func (w *writer) Delete(key []byte) {
	w.check()
	if !w.admit(key, nil) {
		return
	}
	p := kv.Pair{Key: copyOf(key)}
	w.do(key, func(t *btree.BTreeG[kv.Pair]) { t.Delete(p) })
}

func (w *writer) do(key []byte, op func(*btree.BTreeG[kv.Pair])) {
	op(w.tree) // the transaction's own copy: own writes are visible to it and to nobody else
	w.ops = append(w.ops, op)
	w.tx.Write(key)
}

func (w *writer) admit(key, value []byte) bool {
	w.bytes += len(key) + len(value) + entryOverhead
	switch {
	case w.failed != nil:
	case len(key) == 0:
		w.failed = fmt.Errorf("memkv: empty key: %w", kv.ErrTooLarge)
	case len(key) > kv.MaxKeySize:
		w.failed = fmt.Errorf("memkv: key of %d bytes: %w", len(key), kv.ErrTooLarge)
	case len(value) > kv.MaxValueSize:
		w.failed = fmt.Errorf("memkv: value of %d bytes: %w", len(value), kv.ErrTooLarge)
	case len(w.ops) >= maxTxnWrites || w.bytes >= maxTxnBytes:
		w.failed = fmt.Errorf("memkv: transaction of %d writes, %d bytes: %w", len(w.ops), w.bytes, kv.ErrTooLarge)
	}
	return w.failed == nil
}

// copyOf never returns nil, which would mean an absent key.
func copyOf(b []byte) []byte { return append(make([]byte, 0, len(b)), b...) }
