// Package coalesce gathers concurrent calls into batches: what queued while a batch was on its way is the
// next batch. A lone call is sent at once, so nothing waits for a timer when there is nothing to wait for.
//
// A batch holds back those behind it for [Config.Young] only. After that it is taken for a slow one, a cold
// key perhaps, and the queue moves on beside it.
//
// The package must never send a call twice, nor look into what it carries.
package coalesce

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

var (
	// ErrFull is returned by Do when the queue is full. Nothing was sent.
	ErrFull = errors.New("coalesce: queue is full")
	// ErrClosed is returned by Do after Close. Nothing was sent.
	ErrClosed = errors.New("coalesce: closed")
)

// Outcome is the result of one call in a batch.
type Outcome[R any] struct {
	Value R
	Err   error
}

// Config says how to send a batch and how large things may become. All members but Size must be set.
type Config[Q, R any] struct {
	// Send carries one batch and returns one outcome for each call, in their order, or one error for all.
	// Its context ends after Timeout, or when every call of the batch has gone. It runs on a goroutine of
	// its own, up to MaxInFlight at a time.
	Send func(ctx context.Context, batch []Q) ([]Outcome[R], error)
	// Size estimates the bytes that a call takes on the wire; nil counts nothing.
	Size func(Q) int

	MaxItems    int           // calls in a batch
	MaxBytes    int           // bytes in a batch; a larger call travels alone
	MaxInFlight int           // batches on their way
	MaxQueue    int           // calls that wait to be sent; more are refused with ErrFull
	Young       time.Duration // how long a batch on its way holds back the next one
	Timeout     time.Duration // how long a batch may take
}

// Coalescer turns calls into batches. Its methods may be called from any goroutine.
type Coalescer[Q, R any] struct {
	cfg Config[Q, R]

	mu          sync.Mutex // guards all below, and the links and batch of each call
	first, last *call[Q, R]
	queued      int
	queuedBytes int
	inFlight    []*batch // in the order of sending
	delivering  int      // batches whose outcomes are not all delivered yet
	timer       *time.Timer
	closed      bool
	idle        chan struct{} // set by Close, closed when nothing is queued or on its way
}

// call is one waiting Do. result is written before done is closed, and read after.
type call[Q, R any] struct {
	q          Q
	size       int
	prev, next *call[Q, R]
	batch      *batch // nil while queued
	done       chan struct{}
	result     Outcome[R]
}

type batch struct {
	sent    time.Time
	waiting int // calls whose Do has not returned; guarded by Coalescer.mu
	cancel  context.CancelFunc
}

// New returns a Coalescer. It panics when cfg is not usable, since that is written in the program.
func New[Q, R any](cfg Config[Q, R]) *Coalescer[Q, R] {
	if cfg.Send == nil || cfg.MaxItems < 1 || cfg.MaxBytes < 1 || cfg.MaxInFlight < 1 || cfg.MaxQueue < 1 || cfg.Timeout <= 0 {
		panic("coalesce: incomplete Config")
	}
	if cfg.Size == nil {
		cfg.Size = func(Q) int { return 0 }
	}
	return &Coalescer[Q, R]{cfg: cfg}
}

// Do sends q in some batch and waits for its outcome. When ctx ends first, Do returns ctx.Err() at once: a
// call still queued is never sent, one on its way goes on without its waiter.
func (c *Coalescer[Q, R]) Do(ctx context.Context, q Q) (R, error) {
	var zero R
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	k := &call[Q, R]{q: q, size: c.cfg.Size(q), done: make(chan struct{})}

	c.mu.Lock()
	switch {
	case c.closed:
		c.mu.Unlock()
		return zero, ErrClosed
	case c.queued >= c.cfg.MaxQueue:
		c.mu.Unlock()
		return zero, ErrFull
	}
	c.pushLocked(k)
	c.dispatchLocked()
	c.mu.Unlock()

	select {
	case <-k.done:
		return k.result.Value, k.result.Err
	case <-ctx.Done():
		c.leave(k)
		return zero, ctx.Err()
	}
}

// DoAll is Do for several calls at once, which travel together as far as they fit into one batch. Each has an outcome
// of its own.
func (c *Coalescer[Q, R]) DoAll(ctx context.Context, qs []Q) []Outcome[R] {
	out := make([]Outcome[R], len(qs))
	calls := make([]call[Q, R], len(qs))
	err := ctx.Err()
	c.mu.Lock()
	if err == nil && c.closed {
		err = ErrClosed
	}
	for i, q := range qs {
		switch {
		case err != nil:
			out[i].Err = err
		case c.queued >= c.cfg.MaxQueue:
			out[i].Err = ErrFull
		default:
			calls[i] = call[Q, R]{q: q, size: c.cfg.Size(q), done: make(chan struct{})}
			c.pushLocked(&calls[i])
		}
	}
	c.dispatchLocked()
	c.mu.Unlock()
	for i := range calls {
		k := &calls[i]
		if k.done == nil {
			continue // it was not taken
		}
		select {
		case <-k.done:
			out[i] = k.result
			continue
		default:
		}
		select {
		case <-k.done:
			out[i] = k.result
		case <-ctx.Done():
			c.leave(k)
			out[i].Err = ctx.Err()
		}
	}
	return out
}

// Close refuses new calls, sends what is queued, and returns when all outcomes are delivered.
func (c *Coalescer[Q, R]) Close() {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		c.idle = make(chan struct{})
		c.dispatchLocked()
		c.settleLocked()
	}
	idle := c.idle
	c.mu.Unlock()
	<-idle
}

// leave takes k out of the queue, or tells its batch that one waiter is gone.
func (c *Coalescer[Q, R]) leave(k *call[Q, R]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.batch == nil {
		c.unlinkLocked(k)
		c.settleLocked()
		return
	}
	if k.batch.waiting--; k.batch.waiting == 0 {
		k.batch.cancel()
	}
}

// dispatchLocked sends batches for as long as the rules allow, and otherwise sees to it that it is called
// again: by the end of a batch, or by the timer when the youngest batch stops holding the queue back.
func (c *Coalescer[Q, R]) dispatchLocked() {
	for c.queued > 0 && len(c.inFlight) < c.cfg.MaxInFlight {
		full := c.queued >= c.cfg.MaxItems || c.queuedBytes >= c.cfg.MaxBytes
		if n := len(c.inFlight); n > 0 && !full && !c.closed {
			if wait := c.cfg.Young - time.Since(c.inFlight[n-1].sent); wait > 0 {
				if c.timer == nil {
					c.timer = time.AfterFunc(wait, c.tick)
				} else {
					c.timer.Reset(wait)
				}
				return
			}
		}
		c.startLocked()
	}
}

func (c *Coalescer[Q, R]) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dispatchLocked()
}

// startLocked takes one batch off the queue and sends it.
func (c *Coalescer[Q, R]) startLocked() {
	calls := make([]*call[Q, R], 0, min(c.queued, c.cfg.MaxItems))
	size := 0
	for k := c.first; k != nil && len(calls) < c.cfg.MaxItems; k = c.first {
		if len(calls) > 0 && size+k.size > c.cfg.MaxBytes {
			break
		}
		c.unlinkLocked(k)
		calls = append(calls, k)
		size += k.size
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Timeout)
	b := &batch{sent: time.Now(), waiting: len(calls), cancel: cancel}
	for _, k := range calls {
		k.batch = b
	}
	c.inFlight = append(c.inFlight, b)
	c.delivering++
	go c.run(ctx, b, calls)
}

// run sends one batch, delivers its outcomes and lets the next one go.
func (c *Coalescer[Q, R]) run(ctx context.Context, b *batch, calls []*call[Q, R]) {
	defer b.cancel()
	qs := make([]Q, len(calls))
	for i, k := range calls {
		qs[i] = k.q
	}
	out, err := c.cfg.Send(ctx, qs)
	if err == nil && len(out) != len(calls) {
		err = fmt.Errorf("coalesce: %d outcomes for %d calls", len(out), len(calls))
	}

	c.mu.Lock()
	for i, other := range c.inFlight {
		if other == b {
			c.inFlight = append(c.inFlight[:i], c.inFlight[i+1:]...)
			break
		}
	}
	c.dispatchLocked()
	c.mu.Unlock()

	for i, k := range calls {
		if err != nil {
			k.result.Err = err
		} else {
			k.result = out[i]
		}
		close(k.done)
	}

	c.mu.Lock()
	c.delivering--
	c.settleLocked()
	c.mu.Unlock()
}

// settleLocked lets Close return when nothing is left.
func (c *Coalescer[Q, R]) settleLocked() {
	if !c.closed || c.queued > 0 || c.delivering > 0 {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	select {
	case <-c.idle:
	default:
		close(c.idle)
	}
}

func (c *Coalescer[Q, R]) pushLocked(k *call[Q, R]) {
	k.prev = c.last
	if c.last == nil {
		c.first = k
	} else {
		c.last.next = k
	}
	c.last = k
	c.queued++
	c.queuedBytes += k.size
}

func (c *Coalescer[Q, R]) unlinkLocked(k *call[Q, R]) {
	if k.prev == nil {
		c.first = k.next
	} else {
		k.prev.next = k.next
	}
	if k.next == nil {
		c.last = k.prev
	} else {
		k.next.prev = k.prev
	}
	k.prev, k.next = nil, nil
	c.queued--
	c.queuedBytes -= k.size
}
