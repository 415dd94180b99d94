package hcvault

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	breakAfter = 3                      // outages in a row
	probeEvery = 250 * time.Millisecond // while open
)

// breaker fails requests at once while HashiCorp Vault gives no answer, so that a hang costs a few callers
// their deadline and not all of them. Probes of its own find out when it answers again; no caller waits
// for one.
type breaker struct {
	log   *slog.Logger
	probe func(context.Context) error // nil when HashiCorp Vault gave an answer, whatever it was

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the rest
	outages int
	open    bool
	closed  bool
}

func newBreaker(log *slog.Logger, probe func(context.Context) error) *breaker {
	b := &breaker{log: log, probe: probe}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// allows reports whether a request may be made.
func (b *breaker) allows() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.open
}

// record counts the outcome of a request.
func (b *breaker) record(outage bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !outage {
		b.outages = 0
		return
	}
	if b.outages++; b.outages < breakAfter || b.open || b.closed {
		return
	}
	b.open = true
	b.log.Warn("HashiCorp Vault gives no answer; requests to it fail at once until it does")
	b.wg.Add(1)
	go b.watch()
}

// watch probes until there is an answer.
func (b *breaker) watch() {
	defer b.wg.Done()
	since := time.Now()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-time.After(probeEvery):
		}
		ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
		err := b.probe(ctx)
		cancel()
		if err == nil {
			break
		}
	}
	b.mu.Lock()
	b.open, b.outages = false, 0
	b.mu.Unlock()
	b.log.Info("HashiCorp Vault answers again", "after", time.Since(since).Round(time.Millisecond))
}

func (b *breaker) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	b.wg.Wait()
}
