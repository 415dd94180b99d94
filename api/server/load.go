package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// errBusy is answered when more is asked than is worked on at once. Nothing has happened then.
var errBusy = errors.New("more requests are under way than the server works on")

const (
	maxInFlight = 512             // requests that the broker works on, weighed by their bodies
	maxWeight   = 64              // of one request
	maxLarge    = 32              // bodies above smallBody, and batches, that are in memory
	smallBody   = 64 << 10        // bytes
	maxWait     = 2 * time.Second // for the broker
	unreadBody  = time.Second     // how long a body is read on that nobody wants any more
)

// load bounds what is under way at once, so that more clients than can be served cost a refusal each, and neither
// memory nor the answers of the others.
type load struct {
	metrics  *Metrics
	log      *slog.Logger
	wait     time.Duration
	most     int64 // requests in any state
	requests atomic.Int64
	capacity int64
	slots    *semaphore.Weighted // of capacity, for the broker
	large    *semaphore.Weighted // of maxLarge

	mu     sync.Mutex // guards shares
	shares map[string]*share

	said atomic.Int64 // when the log was told last that requests are refused, Unix seconds
}

// share is what one caller may take of the places, for as long as it has requests: not all of them, or a single caller that
// asks for more than can be served would leave none to the others, and their requests would wait behind all of its own.
type share struct {
	caller       string
	requests     int
	slots, large *semaphore.Weighted
}

// shareOf is three quarters at most, and never nothing.
func shareOf(places int64) int64 { return max(1, places*3/4) }

func newLoad(c Config) *load {
	return &load{
		metrics: c.Metrics, log: c.Logger, wait: maxWait, most: 2 * int64(c.MaxConnections), capacity: int64(c.MaxInFlight),
		slots: semaphore.NewWeighted(int64(c.MaxInFlight)), large: semaphore.NewWeighted(maxLarge),
		shares: map[string]*share{},
	}
}

// enter counts a request of any kind; leave must follow. HTTP/2 carries many requests in one connection, so the bound
// on connections, spare ones included, is none on requests.
func (l *load) enter() bool { return l.requests.Add(1) <= l.most }

func (l *load) leave() { l.requests.Add(-1) }

// join counts a request of a caller; part must follow.
func (l *load) join(caller string) *share {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.shares[caller]
	if s == nil {
		s = &share{
			caller: caller,
			slots:  semaphore.NewWeighted(shareOf(l.capacity)), large: semaphore.NewWeighted(shareOf(maxLarge)),
		}
		l.shares[caller] = s
	}
	s.requests++
	return s
}

func (l *load) part(s *share) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.requests--; s.requests == 0 {
		delete(l.shares, s.caller)
	}
}

// weightOf says how much of the capacity a request takes: batches and large records are more work than a read.
func (l *load) weightOf(body int) int64 {
	return min(1+int64(body)>>10, maxWeight, shareOf(l.capacity))
}

// begin waits for a place among those that the broker works for, for a while; done must follow.
func (l *load) begin(ctx context.Context, s *share, weight int64) error {
	if err := l.acquire(ctx, s, s.slots, l.slots, weight, "in-flight"); err != nil {
		return err
	}
	l.metrics.inFlight.Add(float64(weight))
	return nil
}

func (l *load) done(s *share, weight int64) {
	l.metrics.inFlight.Sub(float64(weight))
	l.slots.Release(weight)
	s.slots.Release(weight)
}

// beginLarge is begin for what takes much memory; doneLarge must follow.
func (l *load) beginLarge(ctx context.Context, s *share) error {
	return l.acquire(ctx, s, s.large, l.large, 1, "memory")
}

func (l *load) doneLarge(s *share) {
	l.large.Release(1)
	s.large.Release(1)
}

// acquire takes n places of a caller's own, and then of all. Who waits for its own is not among those who wait for one of all.
func (l *load) acquire(ctx context.Context, s *share, own, all *semaphore.Weighted, n int64, limit string) error {
	if own.TryAcquire(n) {
		if all.TryAcquire(n) {
			return nil
		}
		own.Release(n)
	}
	limited, cancel := context.WithTimeout(ctx, l.wait)
	defer cancel()
	if own.Acquire(limited, n) != nil {
		return l.refuseCaller(ctx, s)
	}
	if all.Acquire(limited, n) != nil {
		own.Release(n)
		return l.refuse(ctx, limit)
	}
	return nil
}

// refuse is for what meets a limit of all callers.
func (l *load) refuse(ctx context.Context, limit string) error {
	return l.shed(ctx, limit, "requests are refused: more are under way than the server works on")
}

// refuseCaller is for what meets the share of one.
func (l *load) refuseCaller(ctx context.Context, s *share) error {
	return l.shed(ctx, "caller", "requests of one caller are refused: it has its share of what the server works on",
		slog.String("caller", s.caller))
}

// shed counts a refusal, unless the client has gone away meanwhile.
func (l *load) shed(ctx context.Context, limit, what string, more ...slog.Attr) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return errBusy
	}
	l.metrics.shed.WithLabelValues(limit).Inc()
	// A line for each would be work that overload makes more of.
	now, last := time.Now().Unix(), l.said.Load()
	if (now-last >= 10 || now < last) && l.said.CompareAndSwap(last, now) {
		l.log.LogAttrs(ctx, slog.LevelWarn, what, append(more, slog.String("limit", limit))...)
	}
	return errBusy
}

// enter refuses what is more than is taken at once, before any work is done for it; leave must follow.
func (q *call) enter() error {
	l := q.server.load
	within := l.enter()
	switch {
	case q.route.always():
	case onSpare(q.ctx):
		return l.refuse(q.ctx, "connections")
	case !within:
		return l.refuse(q.ctx, "requests")
	}
	return nil
}

func (q *call) leave() {
	if q.large {
		q.server.load.doneLarge(q.share)
	}
	if q.share != nil {
		q.server.load.part(q.share)
	}
	q.server.load.leave()
}

// takeLarge counts the call among what takes much memory, until it is answered.
func (q *call) takeLarge() error {
	if q.large {
		return nil
	}
	if err := q.server.load.beginLarge(q.ctx, q.share); err != nil {
		return err
	}
	q.large = true
	return nil
}

// discard sees to it that a body which is not read holds the connection for a moment only: net/http reads on, for as
// long as a request may take.
func (q *call) discard() {
	if r := q.gin.Request; r.ContentLength == 0 || q.read {
		return
	}
	// What cannot be set is bounded by the server's own deadlines.
	_ = http.NewResponseController(q.gin.Writer).SetReadDeadline(time.Now().Add(unreadBody))
}
