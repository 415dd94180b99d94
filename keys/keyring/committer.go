package keyring

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	maxCommitChanges = 1_000
	maxCommitBytes   = 1 << 20 // well under what a transaction of any engine takes
)

// committer makes all writes to the key store. A synced transaction costs some 300 µs alone, so concurrent
// changes share one: whatever queued while the last commit was on its way to disk is the next.
type committer struct {
	store   kv.Store
	observe func(changes int, took time.Duration, err error)
	now     func() time.Time
	seen    *atomic.Uint64 // newest generation known
	wg      sync.WaitGroup

	mu      sync.Mutex // guards the rest
	queue   []*change
	running bool
	closed  bool
}

// change is a part of a transaction.
type change struct {
	// apply reads and writes; generation is the one to write into rows. It reports whether it changed
	// keys, so that the store's generation must be raised. It may run more than once, and an error of
	// its own undoes the whole transaction, so it returns only those of w.
	apply   func(w kv.Writer, generation uint64) (raised bool, err error)
	items   int  // for the bounds of a transaction
	bytes   int  //
	reserve bool // may use the space kept back for what reads and erasures need

	done chan struct{}
	err  error // valid once done is closed
}

// do makes c part of a transaction and waits for it. Nil means that it is durable. When ctx ends before
// the transaction has begun, nothing is written; later, the outcome is unknown to the caller.
func (c *committer) do(ctx context.Context, ch *change) error {
	ch.done = make(chan struct{})
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	c.queue = append(c.queue, ch)
	if !c.running {
		c.running = true
		c.wg.Add(1)
		go c.run()
	}
	c.mu.Unlock()
	select {
	case <-ch.done:
		return ch.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	i := slices.Index(c.queue, ch)
	if i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
	}
	c.mu.Unlock()
	return fmt.Errorf("waiting for the key store: %w: %w", keys.ErrUnavailable, context.Cause(ctx))
}

// run commits until the queue is empty.
func (c *committer) run() {
	defer c.wg.Done()
	for {
		c.mu.Lock()
		n, items, bytes := 0, 0, 0
		for n < len(c.queue) {
			items += c.queue[n].items
			bytes += c.queue[n].bytes
			if n > 0 && (items > maxCommitChanges || bytes > maxCommitBytes) {
				break
			}
			n++
		}
		if n == 0 {
			c.running = false
			c.mu.Unlock()
			return
		}
		group := slices.Clone(c.queue[:n])
		c.queue = slices.Delete(c.queue, 0, n)
		c.mu.Unlock()

		c.commit(group)
		for _, ch := range group {
			close(ch.done)
		}
	}
}

// commit sets the error of each change of group.
func (c *committer) commit(group []*change) {
	err := c.update(context.Background(), group)
	if isOf(err, kv.ErrStorageFull) {
		// Erasures, and what the sidecar must remember to serve reads, go on from the reserve.
		var reserved []*change
		for _, ch := range group {
			if ch.err = err; ch.reserve {
				reserved = append(reserved, ch)
			}
		}
		if group = reserved; len(group) == 0 {
			return
		}
		err = c.update(kv.UseReserve(context.Background()), group)
	}
	if isOf(err, keys.ErrDamaged) && len(group) > 1 { // the others may not need what is damaged
		for _, ch := range group {
			c.commit([]*change{ch})
		}
		return
	}
	for _, ch := range group {
		ch.err = err
	}
}

func (c *committer) update(ctx context.Context, group []*change) error {
	start := c.now()
	before := c.seen.Load()
	var generation uint64
	err := c.store.Update(ctx, func(w kv.Writer) error {
		values, err := w.Get(keyGeneration)
		if err != nil {
			return err
		}
		if generation, err = decodeGeneration(values[0]); err != nil {
			return err
		}
		if generation < before {
			return errRolledBack
		}
		raised := false
		for _, ch := range group {
			r, err := ch.apply(w, generation+1)
			if err != nil {
				return err
			}
			raised = raised || r
		}
		if raised {
			generation++
			w.Set(keyGeneration, binary.BigEndian.AppendUint64(nil, generation))
		}
		return nil
	})
	if c.observe != nil {
		c.observe(len(group), c.now().Sub(start), err)
	}
	if err != nil {
		return storeError("writing to", err)
	}
	raise(c.seen, generation)
	return nil
}

// close waits for what was queued, then refuses more.
func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}

// raise sets v to at least n.
func raise(v *atomic.Uint64, n uint64) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}
