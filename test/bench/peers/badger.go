package peers

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/traffic"
)

// Kinds of work on raw Badger.
const (
	BadgerWrite   = "write"   // a record in a transaction of its own
	BadgerGrouped = "grouped" // all records that wait, in one transaction
	BadgerRead    = "read"
)

const (
	readable  = 10_000 // records that are there to be read
	groupSize = 256
)

// Badger is Badger alone, with the durability that badgerkv insists on.
type Badger struct {
	db      *badger.DB
	next    atomic.Int64
	waiting chan waiting // of the committer
	done    sync.WaitGroup
}

// waiting is a record that waits to be committed.
type waiting struct {
	n    int64
	done chan error
}

// OpenBadger makes a store in dir and fills it.
func OpenBadger(dir string) (_ *Badger, err error) {
	db, err := badger.Open(badger.DefaultOptions(dir).
		WithSyncWrites(true).
		WithValueThreshold(1 << 20).
		WithValueLogFileSize(64 << 20).
		WithMemTableSize(32 << 20).
		WithNumVersionsToKeep(1).
		WithCompression(options.None).
		WithNumCompactors(2).
		WithLogger(nil))
	if err != nil {
		return nil, fmt.Errorf("opening Badger: %w", err)
	}
	b := &Badger{db: db, waiting: make(chan waiting, groupSize)}
	b.done.Go(b.commit)
	for n := int64(0); n < readable; n += groupSize {
		var group []int64
		for i := n; i < min(n+groupSize, readable); i++ {
			group = append(group, i)
		}
		if err := b.set(group...); err != nil {
			_ = b.Close() // err says more
			return nil, fmt.Errorf("filling Badger: %w", err)
		}
	}
	b.next.Store(readable)
	return b, nil
}

// Close waits for what is under way.
func (b *Badger) Close() error {
	close(b.waiting)
	b.done.Wait()
	return b.db.Close()
}

// set commits records in one transaction.
func (b *Badger) set(people ...int64) error {
	return b.db.Update(func(txn *badger.Txn) error {
		for _, n := range people {
			key := id(n)
			if err := txn.Set(key[:], traffic.Profile(n)); err != nil {
				return err
			}
		}
		return nil
	})
}

// commit commits what waits, all of it at once, until Close.
func (b *Badger) commit() {
	for first := range b.waiting {
		people, group := []int64{first.n}, []waiting{first}
		for len(b.waiting) > 0 && len(group) < groupSize { // nobody else takes from it
			w := <-b.waiting
			people, group = append(people, w.n), append(group, w)
		}
		err := b.set(people...)
		for _, w := range group {
			w.done <- err
		}
	}
}

// Open makes a worker for each connection of a run of kind.
func (b *Badger) Open(kind string) (func(int) (load.Worker, error), error) {
	switch kind {
	case BadgerWrite:
		return func(int) (load.Worker, error) {
			return worker{do: func(int64) error {
				return b.set(b.next.Add(1) - 1)
			}}, nil
		}, nil
	case BadgerGrouped:
		return func(int) (load.Worker, error) {
			done := make(chan error, 1)
			return worker{do: func(int64) error {
				b.waiting <- waiting{b.next.Add(1) - 1, done}
				return <-done
			}}, nil
		}, nil
	case BadgerRead:
		return func(int) (load.Worker, error) {
			var buf []byte
			return worker{do: func(n int64) error {
				return b.db.View(func(txn *badger.Txn) error {
					key := id(n * 7919 % readable)
					item, err := txn.Get(key[:])
					if err != nil {
						return err
					}
					buf, err = item.ValueCopy(buf)
					return err
				})
			}}, nil
		}, nil
	}
	return nil, unknown(kind)
}
