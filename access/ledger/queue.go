package ledger

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/prototypster/pdvault/vault/kv"
)

// item is one entry on its way into the log.
type item struct {
	entry   []byte // encoded; the committer puts the time in at timeAt
	timeAt  int
	ref     []byte // of the subject, or nil
	reserve bool   // may be written when storage is full
	effects func(Position) kv.Change

	claimed atomic.Bool // by the committer, which will answer, or by the caller, who has given up
	done    chan result // of capacity 1; written once
}

type result struct {
	receipt Receipt
	err     error
}

// receipt is the outcome as the caller of the ledger is told.
func (it *item) receipt(ctx context.Context) (Receipt, error) {
	r, err := it.wait(ctx)
	if err != nil {
		return Receipt{}, fmt.Errorf("appending to the ledger: %w", err)
	}
	return r, nil
}

// wait returns the outcome. When ctx ends while the item is still in the queue, it is dropped; once the
// committer has it the outcome is awaited, since the entry may be durable by then.
func (it *item) wait(ctx context.Context) (Receipt, error) {
	select {
	case r := <-it.done:
		return r.receipt, r.err
	case <-ctx.Done():
		if it.claimed.CompareAndSwap(false, true) {
			return Receipt{}, context.Cause(ctx)
		}
		r := <-it.done
		return r.receipt, r.err
	}
}

func (it *item) refuse(err error) { it.done <- result{err: err} }

// queue holds items in the order in which they came. It needs no bound of its own: each item has a caller
// that waits for it.
type queue struct {
	mu     sync.Mutex
	items  []*item // guarded by mu
	closed bool    // guarded by mu

	wake chan struct{} // of capacity 1; filled when items or closed change
}

func (q *queue) push(items ...*item) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	q.items = append(q.items, items...)
	q.signal()
	return nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default: // it is already filled
	}
}

// rounds bounds how often take lets others run: an item that it has claimed waits for them.
const rounds = 4

// take claims up to limit items and appends them to batch. When batch is empty it waits for the first
// item; it returns an empty batch only when the queue is closed and drained.
//
// Goroutines that are ready to run may be about to bring items too. They get the processor first, a few times at most
// and for as long as that brings any: a commit costs nearly the same for one item as for many.
func (q *queue) take(batch []*item, limit int) []*item {
	for {
		var closed bool
		batch, closed = q.claim(batch, limit)
		if closed {
			return batch
		}
		if len(batch) == 0 {
			<-q.wake
			continue
		}
		for range rounds {
			before := len(batch)
			runtime.Gosched()
			if batch, _ = q.claim(batch, limit); len(batch) == before || len(batch) >= limit {
				break
			}
		}
		return batch
	}
}

func (q *queue) claim(batch []*item, limit int) (taken []*item, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, it := range q.items {
		if len(batch) >= limit {
			break
		}
		if it.claimed.CompareAndSwap(false, true) {
			batch = append(batch, it)
		}
		n++
	}
	rest := copy(q.items, q.items[n:])
	clear(q.items[rest:])
	q.items = q.items[:rest]
	return batch, q.closed && rest == 0
}
