package badgerkv

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/internal/occ"
)

// First byte of each key in Badger. It keeps the owner's keys apart from ours and from Badger's own, which
// begin with "!badger!" and which a caller could otherwise neither read nor write.
const (
	ownerSpace = 'k'
	storeSpace = 's'
)

// errOver is returned by a Reader that is used after its function has returned.
var errOver = errors.New("badgerkv: Reader used after its transaction ended")

// reader is one snapshot. It is used by one goroutine.
type reader struct {
	store   *Store
	txn     *badger.Txn
	tx      *occ.Tx // nil in a View
	key     []byte  // reused for keys on their way to Badger, which does not keep them when reading
	value   []byte  // the last value that Badger handed to keep
	keep    func([]byte) error
	cursor  cursor
	at      []byte // reused for keys with the number of a commit
	damaged error  // the first damage met; a transaction that ignores it must not succeed
}

func newReader(s *Store, txn *badger.Txn) *reader {
	r := new(reader)
	r.init(s, txn)
	return r
}

func (r *reader) init(s *Store, txn *badger.Txn) {
	r.store, r.txn = s, txn
	r.keep = func(v []byte) error { r.value = v; return nil } // made once, not once for each key
}

func (r *reader) Get(keys ...[]byte) (values [][]byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // Badger reads through mmap: an EIO is a fault
	defer r.catch(&err)
	got := make([][]byte, len(keys))
	for i, key := range keys {
		if got[i], err = r.get(key); err != nil {
			return nil, err
		}
	}
	if err := r.sound(); err != nil {
		return nil, err
	}
	return got, nil
}

func (r *reader) get(key []byte) ([]byte, error) {
	if r.tx != nil {
		r.tx.Read(key)
	}
	if len(key) > kv.MaxKeySize {
		return nil, nil // no write can have put it there
	}
	r.key = append(append(r.key[:0], ownerSpace), key...)
	item, err := r.txn.Get(r.key)
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return nil, r.confirm(r.key, written{})
	case errors.Is(err, badger.ErrDiscardedTxn):
		return nil, errOver
	case err != nil:
		return nil, r.damage(err)
	}
	value, err := r.valueOf(item)
	if err != nil {
		return nil, err
	}
	return value, r.confirm(r.key, written{version: item.Version(), value: value})
}

// valueOf returns the value of item as a slice that the caller may keep.
func (r *reader) valueOf(item *badger.Item) ([]byte, error) {
	r.value = nil
	if err := item.Value(r.keep); err != nil {
		return nil, r.damage(err)
	}
	if r.value == nil {
		return []byte{}, nil // an empty value is not an absent one
	}
	if r.tx != nil {
		return bytes.Clone(r.value), nil // it may be a pending write, which must not change any more
	}
	return r.value, nil // Badger has made this copy for the item, and we use each item once
}

func (r *reader) Scan(prefix, after []byte, limit int) (pairs []kv.Pair, err error) {
	if limit <= 0 {
		return nil, fmt.Errorf("badgerkv: scan limit %d is not positive", limit)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer r.catch(&err)
	got, err := r.scan(prefix, after, limit)
	if err != nil {
		return nil, err
	}
	if err := r.sound(); err != nil {
		return nil, err
	}
	if r.tx != nil {
		var last []byte
		if len(got) == limit {
			last = got[limit-1].Key
		}
		r.tx.ReadRange(occ.ScanRange(prefix, after, last))
	}
	return got, nil
}

func (r *reader) scan(prefix, after []byte, limit int) ([]kv.Pair, error) {
	lo, _ := occ.ScanRange(prefix, after, nil)
	lo = engineKey(lo)
	pairs, versions, err := r.walk(engineKey(prefix), lo, limit)
	if err != nil {
		return nil, err
	}
	hi := occ.PrefixEnd(engineKey(prefix))
	if len(pairs) == limit {
		hi = occ.Successor(engineKey(pairs[limit-1].Key))
	}
	return pairs, r.confirmScan(lo, hi, pairs, versions)
}

// walk returns what the engine finds from a key on, and the numbers of the commits that wrote it.
func (r *reader) walk(prefix, from []byte, limit int) (pairs []kv.Pair, versions []uint64, err error) {
	// Prefetching starts a goroutine for each value, which only pays for values in the value log.
	it := r.txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	for it.Seek(from); it.Valid() && len(pairs) < limit; it.Next() {
		item := it.Item()
		r.value = nil
		if err := item.Value(r.keep); err != nil {
			return nil, nil, r.damage(err)
		}
		pairs = append(pairs, kv.Pair{ // the iterator reuses its items, so both are copied
			Key:   bytes.Clone(item.Key()[1:]),
			Value: append(make([]byte, 0, len(r.value)), r.value...),
		})
		versions = append(versions, item.Version())
	}
	return pairs, versions, nil
}

// sound is called with what was read in hand, before anybody gets it.
func (r *reader) sound() error {
	if err := r.store.compactions.gate(); err != nil {
		return r.unsound(err)
	}
	return nil
}

// unsound keeps the transaction from succeeding: what it decided rests on a read that failed.
func (r *reader) unsound(err error) error {
	if r.damaged == nil {
		r.damaged = err
	}
	return err
}

// catch turns a panic of Badger, or a fault in a mapped file, into an error. It stands around the calls of
// the engine only: a panic of the caller's own function is a bug that must stay loud.
func (r *reader) catch(err *error) {
	p := recover()
	if p == nil {
		return
	}
	if cause, ok := p.(error); ok && errors.Is(cause, badger.ErrDiscardedTxn) {
		*err = errOver
		return
	}
	*err = r.damage(fmt.Errorf("engine panicked: %v", p))
}

// damage records err as damage of the store. Badger puts keys into its messages; only the cause, which
// stands last, goes on.
func (r *reader) damage(err error) error {
	err = fmt.Errorf("badgerkv: reading: %s: %w", innermost(err), kv.ErrIntegrity)
	r.store.tell(err)
	return r.unsound(err)
}

// discard ends the transaction. An iterator that panicked may have stayed open, and then Badger panics
// once more here; that damage is already reported.
func (r *reader) discard() {
	defer func() {
		if p := recover(); p != nil && r.damaged == nil {
			panic(p)
		}
	}()
	r.txn.Discard()
}

// writer is a reader that collects writes.
type writer struct {
	reader
	invalid error // the first invalid write; guards against a commit of the rest
	sets    bool  // something is set, not only deleted
}

func newWriter(s *Store, txn *badger.Txn, tx *occ.Tx) *writer {
	w := new(writer)
	w.init(s, txn)
	w.tx = tx
	return w
}

func (w *writer) Set(key, value []byte) {
	if !w.admit(key, value) {
		return
	}
	w.sets = true
	// Badger keeps both until the commit. Copied apart, so that occ's memory of keys does not hold values.
	w.done(key, w.txn.Set(engineKey(key), append(make([]byte, 0, len(value)), value...)))
}

func (w *writer) Delete(key []byte) {
	if !w.admit(key, nil) {
		return
	}
	w.done(key, w.txn.Delete(engineKey(key)))
}

func (w *writer) admit(key, value []byte) bool {
	switch limit := w.store.opts.maxValueSize(); {
	case w.invalid != nil:
	case len(key) == 0:
		w.invalid = fmt.Errorf("badgerkv: empty key: %w", kv.ErrTooLarge)
	case len(key) > kv.MaxKeySize:
		w.invalid = fmt.Errorf("badgerkv: key of %d bytes: %w", len(key), kv.ErrTooLarge)
	case len(value) > limit:
		w.invalid = fmt.Errorf("badgerkv: value of %d bytes: %w", len(value), kv.ErrTooLarge)
	}
	return w.invalid == nil
}

func (w *writer) done(key []byte, err error) {
	switch {
	case err == nil:
		w.tx.Write(key)
	case errors.Is(err, badger.ErrTxnTooBig):
		w.invalid = fmt.Errorf("badgerkv: transaction: %w", kv.ErrTooLarge)
	case errors.Is(err, badger.ErrDiscardedTxn):
		panic("badgerkv: Writer used after its transaction ended") // or the write would vanish silently
	default:
		w.invalid = fmt.Errorf("badgerkv: writing: %w", err)
	}
}

func engineKey(key []byte) []byte {
	k := make([]byte, 0, 1+len(key))
	return append(append(k, ownerSpace), key...)
}
