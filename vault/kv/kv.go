// Package kv is the contract that pdvault's state rests on: a small ordered, transactional key-value
// store, in the manner of FoundationDB. The data store and the sidecar's key store both use it, so that a
// second engine is one package and not a rewrite.
//
// The package must never know what the keys and values mean, and no engine beneath it may acknowledge what
// a power cut can take back.
//
// Every sentence of the contract below has a subtest in test/conformance, which each engine runs.
package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// Limits that every engine enforces and that callers may rely on.
const (
	MaxKeySize   = 1 << 10   // bytes in a key
	MaxValueSize = 512 << 10 // bytes in a value; larger ones would leave Badger's write-ahead log (see badgerkv)
)

var (
	// ErrConflict is returned by Update when the transaction still met a conflict after the engine's
	// bounded retries. Nothing was written; the caller may try again later.
	ErrConflict = errors.New("kv: transaction conflict")
	// ErrTooLarge is returned when a key, a value or a whole transaction is larger than the engine takes.
	// Nothing was written.
	ErrTooLarge = errors.New("kv: key, value or transaction too large")
	// ErrStorageFull is returned by Update when free space is below the engine's guard. Nothing was
	// written; reads go on. A context from [UseReserve] may still write, down to a lower guard.
	ErrStorageFull = errors.New("kv: storage is full, store is read-only")
	// ErrIntegrity is returned when the store itself is damaged, foreign, or older than it was. It is
	// never to be read as "not found".
	ErrIntegrity = errors.New("kv: store integrity violated")
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("kv: store is closed")
)

// Store is an ordered map from byte strings to byte strings with serializable transactions.
// All methods may be called from any goroutine.
type Store interface {
	// View calls fn once with one consistent snapshot: no commit that happens while fn runs is seen by it.
	// An error of fn is returned as it is. The Reader must not be used after fn has returned.
	View(ctx context.Context, fn func(Reader) error) error

	// Update calls fn with a snapshot that also shows fn's own writes, and commits them together when fn
	// returns nil. A nil result means that the writes are durable: they survive a power cut.
	// Transactions are serializable: if a key that fn read, or a range that it scanned, was changed by
	// another commit meanwhile, nothing is written and fn runs again on a new snapshot, so it must have no
	// effects of its own. An error of fn is returned as it is and nothing is written.
	// When ctx ends before the commit has begun, nothing is written; a commit that has begun is awaited.
	Update(ctx context.Context, fn func(Writer) error) error

	// Close waits for running transactions, then releases the store. A second Close returns nil.
	Close() error
}

// Reader reads one snapshot. Returned slices belong to the caller.
type Reader interface {
	// Get returns the values of keys, in their order. An absent key gives nil; an empty value gives an
	// empty slice that is not nil.
	Get(keys ...[]byte) ([][]byte, error)
	// Scan returns up to limit pairs whose key begins with prefix and is greater than after, in ascending
	// byte order of the keys. A nil after means from the beginning; to go on, pass the last key received.
	// limit must be positive.
	Scan(prefix, after []byte, limit int) ([]Pair, error)
}

// Writer is a Reader that collects writes. An invalid write (an empty or over-long key, a value above
// [MaxValueSize]) makes Update return [ErrTooLarge], and nothing is written.
type Writer interface {
	Reader
	// Set keeps value under key. Both are copied.
	Set(key, value []byte)
	// Delete removes key. Deleting an absent key is not an error.
	Delete(key []byte)
}

// Pair is a key and its value.
type Pair struct{ Key, Value []byte }

// Check is a condition of a Change: the value under Key must be exactly Want when the change commits.
type Check struct {
	Key  []byte
	Want []byte // nil: the key must be absent
	Else error  // returned, wrapped, when the condition does not hold
}

// Change is a set of writes that happen together, under conditions, inside somebody's Update. It lets one
// package say what a state change is while another commits it.
type Change struct {
	Checks  []Check
	Sets    []Pair
	Deletes [][]byte
}

// Set adds a write of value under key.
func (c *Change) Set(key, value []byte) { c.Sets = append(c.Sets, Pair{key, value}) }

// Delete adds a removal of key.
func (c *Change) Delete(key []byte) { c.Deletes = append(c.Deletes, key) }

// Expect adds the condition that key still holds want; otherwise is the error if it does not.
func (c *Change) Expect(key, want []byte, otherwise error) {
	c.Checks = append(c.Checks, Check{key, want, otherwise})
}

// Merge adds everything of other to c.
func (c *Change) Merge(other Change) {
	c.Checks = append(c.Checks, other.Checks...)
	c.Sets = append(c.Sets, other.Sets...)
	c.Deletes = append(c.Deletes, other.Deletes...)
}

// Apply verifies the conditions of c against w and, if all hold, makes its writes: deletes first, then
// sets. When a condition fails it makes no write and returns an error that wraps the condition's Else.
func (c *Change) Apply(w Writer) error {
	for _, check := range c.Checks {
		got, err := w.Get(check.Key)
		if err != nil {
			return fmt.Errorf("checking a condition: %w", err)
		}
		if (got[0] == nil) != (check.Want == nil) || !bytes.Equal(got[0], check.Want) {
			return fmt.Errorf("condition no longer holds: %w", check.Else)
		}
	}
	for _, key := range c.Deletes {
		w.Delete(key)
	}
	for _, p := range c.Sets {
		w.Set(p.Key, p.Value)
	}
	return nil
}

type reserveKey struct{}

// UseReserve returns a context whose Updates may use the space that the free-space guard keeps back, so
// that access records can still be written, and reads go on, when ordinary writes are refused.
func UseReserve(ctx context.Context) context.Context {
	return context.WithValue(ctx, reserveKey{}, true)
}

// ReserveAllowed reports whether ctx came from [UseReserve]. It is for engines.
func ReserveAllowed(ctx context.Context) bool {
	v, _ := ctx.Value(reserveKey{}).(bool)
	return v
}
