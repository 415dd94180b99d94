// Package badgerkv is the embedded engine of vault/kv: Badger, with settings under which an acknowledged
// commit survives a power cut, and with guards around the ways in which Badger loses data without an error.
//
// It must never acknowledge a commit that is not synced, never create a store when asked to open one,
// never open what it cannot recognise as its own, and never turn damage into "not found" where it can see
// the damage. What it cannot see, a store that is whole but older than it was, is for its owner to detect:
// the ledger's checkpoints do.
package badgerkv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/internal/occ"
)

const (
	closeTimeout = 30 * time.Second // a Badger that does not close must not keep a process from ending
)

var _ kv.Store = (*Store)(nil)

// Store is one open directory. Any goroutine may use it.
type Store struct {
	id      string
	db      *badger.DB
	opts    Options
	log     *slog.Logger
	lock    *os.File // the sentinel, flocked as long as the store is open
	commits *occ.Log
	flight  *flight
	space   *spaceGuard

	compactions *compactions
	verifier    *verifier

	damage atomic.Int64           // reads that met damage
	told   atomic.Int64           // when the log was last told of it, in nanoseconds since 1970
	failed *atomic.Pointer[error] // set once, when a commit or a compaction failed: memory and disk may differ from then on

	life      sync.RWMutex // guards closed, and running.Add against Close
	closed    bool
	running   sync.WaitGroup
	closeOnce sync.Once
}

// ID returns the random identity that the store got when it was created.
func (s *Store) ID() string { return s.id }

// View implements [kv.Store].
func (s *Store) View(ctx context.Context, fn func(kv.Reader) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	if err := ctx.Err(); err != nil {
		return err
	}
	txn, err := s.snapshot(false)
	if err != nil {
		return err
	}
	r := newReader(s, txn)
	defer r.discard()
	if err := fn(r); err != nil {
		return err
	}
	return r.damaged
}

// Update implements [kv.Store].
func (s *Store) Update(ctx context.Context, fn func(kv.Writer) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	return kv.Retry(ctx, "badgerkv", time.Millisecond, func() (bool, error) { return s.try(ctx, fn) })
}

// try runs fn once. It tells a conflict apart from an error of fn, which may itself wrap kv.ErrConflict.
func (s *Store) try(ctx context.Context, fn func(kv.Writer) error) (conflict bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := s.space.admit(ctx); err != nil {
		return false, err
	}
	tx := s.commits.Begin() // before the snapshot, see occ
	txn, err := s.snapshot(true)
	if err != nil {
		return false, err
	}
	w := newWriter(s, txn, tx)
	defer w.discard()
	if err := fn(w); err != nil {
		return false, err
	}
	if w.damaged != nil {
		return false, w.damaged // fn did not look at it, but what it decided rests on a failed read
	}
	if w.invalid != nil {
		return false, w.invalid
	}
	if tx.ReadOnly() {
		return false, nil
	}
	if !w.sets {
		if err := w.txn.Set(tickKey, nil); err != nil {
			return false, fmt.Errorf("badgerkv: transaction: %w", kv.ErrTooLarge) // it holds one write too many
		}
	}
	return s.commit(ctx, tx, w.txn)
}

// commit hands the transaction to Badger in the order that occ has validated, and waits for the disk
// outside of that order, so that Badger can write several commits in one go.
func (s *Store) commit(ctx context.Context, tx *occ.Tx, txn *badger.Txn) (conflict bool, err error) {
	done := make(chan error, 1)
	var away *takeoff
	err = s.commits.Commit(tx, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		away = s.flight.begin()
		// CommitWith takes the commit timestamp before it returns; only the sync happens later.
		txn.CommitWith(func(err error) { done <- err })
		return nil
	})
	if err != nil {
		return errors.Is(err, kv.ErrConflict), err
	}
	err = <-done
	if s.opts.hooks.committed != nil {
		err = s.opts.hooks.committed(err)
	}
	if errors.Is(err, badger.ErrConflict) {
		s.flight.refused(away)
	} else {
		defer s.flight.end(away)
	}
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, badger.ErrConflict):
		return true, err // Badger compares hashes of keys, so it may see a conflict that occ does not
	case errors.Is(err, badger.ErrTxnTooBig):
		return false, fmt.Errorf("badgerkv: committing: %w", kv.ErrTooLarge)
	default:
		return false, s.fail(fmt.Errorf("badgerkv: commit failed, its outcome is unknown: %w", err))
	}
}

// fail is called when a commit failed. After a failed sync the value is readable although it is
// not durable, and a second sync may succeed without having written it: the page cache has dropped it.
// Only a new start, which reads what the disk really holds, is safe.
func (s *Store) fail(err error) error { return s.opts.stop(s.failed, err) }

// stop ends the process through Options.Fatal.
func (o Options) stop(failed *atomic.Pointer[error], err error) error {
	failed.CompareAndSwap(nil, &err)
	o.Fatal(err)
	return err // only where Fatal returns: in tests
}

// enter admits a transaction. It counts instead of holding the lock, so that a transaction inside another
// one cannot deadlock with Close.
func (s *Store) enter() error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return kv.ErrClosed
	}
	if err := s.stopped(); err != nil {
		return err
	}
	s.running.Add(1)
	return nil
}

// tell counts a read that met damage. The log hears of it once a minute.
func (s *Store) tell(err error) {
	s.damage.Add(1)
	last, now := s.told.Load(), time.Now().UnixNano()
	if since := time.Duration(now - last); since.Abs() >= remindInterval && s.told.CompareAndSwap(last, now) {
		s.log.Error("a read met damage: restore the store from a backup", "error", err)
	}
}

// stopped refuses everything after a failed commit or compaction.
func (s *Store) stopped() error {
	if s.failed.Load() != nil {
		return fmt.Errorf("badgerkv: stopped after a failure: %w", kv.ErrIntegrity)
	}
	return nil
}

// Close implements [kv.Store]. It leaves a marker that says that the stop was clean, unless a commit or a compaction
// failed, or Badger did not close in time.
func (s *Store) Close() (err error) {
	s.closeOnce.Do(func() {
		s.life.Lock()
		s.closed = true
		s.life.Unlock()
		s.compactions.hasten()
		if s.await() {
			err = s.shutDown()
		} else {
			s.space.stop()
			err = s.compactions.whyLeft()
		}
	})
	return err
}

// await returns when all transactions have ended. It is false if they may never, since a compaction for which they wait
// must not go on.
func (s *Store) await() bool {
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }()
	select {
	case <-ended:
		return true
	case <-s.compactions.ended:
	}
	if s.compactions.noRoom { // those that run are sound
		select {
		case <-ended:
		case <-time.After(closeTimeout):
		}
	}
	return false
}

func (s *Store) shutDown() error {
	err := s.compactions.shut()
	s.space.stop()
	if err != nil {
		return fmt.Errorf("badgerkv: closing: %w", err) // with the lock, since the engine may not have ended
	}
	defer s.lock.Close() // releases the flock, last
	if s.failed.Load() != nil {
		return nil
	}
	return writeClean(s.opts.Dir, s.id, s.opts.Now())
}
