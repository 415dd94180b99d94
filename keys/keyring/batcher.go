package keyring

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
)

const (
	maxBatch    = 1_000  // items in one call to the KEK
	maxInFlight = 4      // calls to the KEK at a time, per direction
	maxQueued   = 50_000 // items waiting for a call; more are refused at once

	// A call that takes longer than slowCall does not hold up the next any more.
	slowCall = 20 * time.Millisecond
)

// batcher turns concurrent requests to the KEK into few calls: what was queued while the last call was on
// its way is the next batch. A request costs HashiCorp Vault some hundred times what an item in it does, so
// one call at a time is also the fastest, as long as it is answered: a further one starts when the last is
// slow or the queue is a full batch. An idle keyring calls at once.
//
// Calls run apart from whoever waits: a waiter leaves when its context ends, and a hanging KEK holds at
// most maxInFlight goroutines, each until timeout.
type batcher struct {
	op      string
	call    func(context.Context, []KEKItem) ([]KEKResult, error)
	timeout time.Duration
	observe func(op string, items int, took time.Duration, err error)
	now     func() time.Time
	finish  func(*job) // runs once for each answered job, before its waiters are woken; may be nil
	secret  bool       // items are plaintext: they are the batcher's, which wipes them when they are done with

	ctx    context.Context // ends at close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the rest, and job.waiters
	queue    []*job
	inFlight int
	started  time.Time       // of the newest call in flight
	armed    bool            // dispatch will run when that call is slow
	pending  map[jobKey]*job // queued or in flight, those with a key
	closed   bool
}

// jobKey makes requests for the same thing share one job.
type jobKey struct {
	subject uuid.UUID
	row     string
}

// job is one item on its way through the KEK.
type job struct {
	key     jobKey // zero: not shared
	item    KEKItem
	passing bool // what comes of it is not kept; true of who began it, whoever has joined since
	waiters int
	done    chan struct{} // closed when result and bundle are set
	result  KEKResult
	bundle  *bundle // set by finish
}

// submit queues jobs as one, so that up to maxBatch of them go in one call, and returns what to wait for,
// in the same order: a job with a key that is already on its way takes the place of the new one.
func (b *batcher) submit(jobs []*job) ([]*job, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	if len(b.queue)+len(jobs) > maxQueued {
		return nil, fmt.Errorf("too many requests wait for the KEK: %w", keys.ErrUnavailable)
	}
	for i, j := range jobs {
		if j.key != (jobKey{}) {
			if p := b.pending[j.key]; p != nil {
				p.waiters++
				jobs[i] = p
				continue
			}
			b.pending[j.key] = j
		}
		j.waiters = 1
		j.done = make(chan struct{})
		b.queue = append(b.queue, j)
	}
	b.dispatchLocked()
	return jobs, nil
}

// wait returns when every job is done, or with an error when ctx ends first. Either way the caller has
// left all of them.
func (b *batcher) wait(ctx context.Context, jobs []*job) error {
	for i, j := range jobs {
		select {
		case <-j.done:
			continue
		default:
		}
		select {
		case <-j.done:
		case <-ctx.Done():
			b.mu.Lock()
			for _, left := range jobs[i:] {
				left.waiters--
			}
			b.mu.Unlock()
			return fmt.Errorf("waiting for the KEK: %w: %w", keys.ErrUnavailable, context.Cause(ctx))
		}
	}
	return nil
}

// dispatchLocked starts calls while there is something to ask and a reason not to wait.
func (b *batcher) dispatchLocked() {
	for b.inFlight < maxInFlight && len(b.queue) > 0 {
		if b.inFlight > 0 && len(b.queue) < maxBatch {
			if wait := slowCall - time.Since(b.started); wait > 0 {
				if !b.armed {
					b.armed = true
					time.AfterFunc(wait, b.recheck)
				}
				return
			}
		}
		n := min(len(b.queue), maxBatch)
		batch := make([]*job, 0, n)
		for _, j := range b.queue[:n] {
			if j.waiters > 0 {
				batch = append(batch, j)
				continue
			}
			// Everyone has left; nobody can join any more once it is out of pending.
			delete(b.pending, j.key)
			b.wipe(j)
		}
		clear(b.queue[:n])
		if b.queue = b.queue[n:]; len(b.queue) == 0 {
			b.queue = nil
		}
		if len(batch) == 0 {
			continue
		}
		b.inFlight++
		b.started = time.Now()
		b.wg.Add(1)
		go b.run(batch)
	}
}

func (b *batcher) recheck() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.armed = false
	if !b.closed {
		b.dispatchLocked()
	}
}

func (b *batcher) run(batch []*job) {
	defer b.wg.Done()
	items := make([]KEKItem, len(batch))
	for i, j := range batch {
		items[i] = j.item
	}
	start := b.now()
	ctx, cancel := context.WithTimeout(b.ctx, b.timeout)
	results, err := b.call(ctx, items)
	cancel()
	if err == nil && len(results) != len(items) {
		err = fmt.Errorf("KEK gave %d results for %d items: %w", len(results), len(items), keys.ErrUnavailable)
	}
	if b.observe != nil {
		b.observe(b.op, len(items), b.now().Sub(start), err)
	}
	for i, j := range batch {
		if err != nil {
			j.result = KEKResult{Err: kekError(err)}
		} else {
			j.result = checkResult(results[i])
		}
		b.wipe(j)
		if b.finish != nil {
			b.finish(j)
		}
	}
	b.mu.Lock()
	for _, j := range batch {
		if b.pending[j.key] == j {
			delete(b.pending, j.key)
		}
	}
	b.inFlight--
	b.dispatchLocked()
	b.mu.Unlock()
	for _, j := range batch {
		close(j.done)
	}
}

// checkResult makes sure that a result is data or a failure that is one of the sentinels of package keys.
func checkResult(r KEKResult) KEKResult {
	switch {
	case r.Err != nil:
		r.Data.Wipe()
		return KEKResult{Err: kekError(r.Err)}
	case len(r.Data) == 0:
		// What a proxy's empty answer looks like. It says nothing about the data.
		return KEKResult{Err: fmt.Errorf("KEK gave an empty result: %w", keys.ErrUnavailable)}
	}
	return r
}

// direct makes one call of at most maxBatch items at once, beside the queue, and waits for it: what it returns
// is the caller's alone, who wipes it, and so are the items. The error is for the call as a whole.
func (b *batcher) direct(ctx context.Context, items []KEKItem) ([]KEKResult, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, ErrClosed
	}
	b.wg.Add(1)
	b.mu.Unlock()
	defer b.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	start := b.now()
	results, err := b.call(ctx, items)
	if err == nil && len(results) != len(items) {
		err = fmt.Errorf("KEK gave %d results for %d items: %w", len(results), len(items), keys.ErrUnavailable)
	}
	if b.observe != nil {
		b.observe(b.op, len(items), b.now().Sub(start), err)
	}
	if err != nil {
		return nil, kekError(err)
	}
	for i := range results {
		results[i] = checkResult(results[i])
	}
	return results, nil
}

// one is direct for a single item.
func (b *batcher) one(ctx context.Context, item KEKItem) (Secret, error) {
	results, err := b.direct(ctx, []KEKItem{item})
	if err != nil {
		return nil, err
	}
	return results[0].Data, results[0].Err
}

func (b *batcher) wipe(j *job) {
	if b.secret {
		j.item.Data.Wipe()
	}
	j.item = KEKItem{}
}

// close refuses further jobs, ends calls in flight and answers what was queued.
func (b *batcher) close() {
	b.mu.Lock()
	b.closed = true
	queued := b.queue
	b.queue = nil
	clear(b.pending)
	b.mu.Unlock()
	for _, j := range queued {
		b.wipe(j)
		j.result = KEKResult{Err: ErrClosed}
		close(j.done)
	}
	b.cancel()
	b.wg.Wait()
}

// kekError makes sure that a failure of the KEK is one of the sentinels of package keys.
func kekError(err error) error {
	for _, known := range []error{keys.ErrUnavailable, keys.ErrTampered, keys.ErrKEKMissing, keys.ErrKEKRetired, keys.ErrInvalid} {
		if isOf(err, known) {
			return err
		}
	}
	return fmt.Errorf("KEK: %w: %w", keys.ErrUnavailable, err)
}
