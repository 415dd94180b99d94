package access

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// groupsAtOnce is how many groups of gathered reads are under way: what comes meanwhile is the next group. With two of
	// them one is committed while the other is opened.
	groupsAtOnce = 2
	// patience is how long a group counts as one of them. A longer one waits for something, such as a key, and the others
	// go on beside it.
	patience = 50 * time.Millisecond
)

// gatherer makes groups of the reads that come at the same time, whoever asks for them. A read that comes while there
// is nothing to wait for goes at once. The caller of the first read of a group leads it, so there is no goroutine that
// somebody would have to wait for.
type gatherer struct {
	read func(context.Context, []ReadRequest) []readOutcome

	mu      sync.Mutex
	waiting []*gathered // guarded by mu; in the order in which they came
	leading int         // guarded by mu; groups that hold the next one back, at most groupsAtOnce
}

// gathered is a read on its way into a group.
type gathered struct {
	asked ReadRequest
	until time.Time // when its caller gives up; zero: never
	turn  chan turn // of capacity 1; written once
}

// turn is what a waiting read is told: to lead the next group, or what became of it in the group of another.
type turn struct {
	lead    bool
	outcome readOutcome
}

// do has q read in a group, and returns what became of it. When ctx ends before a group has begun with it, nothing was
// done; after that the outcome is awaited, since it may be on record by then.
func (g *gatherer) do(ctx context.Context, q ReadRequest) readOutcome {
	r := &gathered{asked: q, turn: make(chan turn, 1)}
	r.until, _ = ctx.Deadline()
	g.mu.Lock()
	lead := g.leading < groupsAtOnce
	if lead {
		g.leading++
	} else {
		g.waiting = append(g.waiting, r)
	}
	g.mu.Unlock()
	if lead {
		return g.lead(ctx, r)
	}
	select {
	case t := <-r.turn:
		return g.take(ctx, r, t)
	case <-ctx.Done():
		if g.withdraw(r) {
			return readOutcome{err: wrapf(context.Cause(ctx), "waiting for other reads")}
		}
		return g.take(ctx, r, <-r.turn)
	}
}

func (g *gatherer) take(ctx context.Context, r *gathered, t turn) readOutcome {
	if t.lead {
		return g.lead(ctx, r)
	}
	return t.outcome
}

// withdraw takes r out of those that wait, if it is still one of them.
func (g *gatherer) withdraw(r *gathered) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := slices.Index(g.waiting, r)
	if at < 0 {
		return false
	}
	g.waiting = slices.Delete(g.waiting, at, at+1)
	return true
}

// lead makes a group of first and those that wait, and returns what became of first.
func (g *gatherer) lead(ctx context.Context, first *gathered) readOutcome {
	g.mu.Lock()
	members := make([]*gathered, 0, 1+min(len(g.waiting), together-1))
	members = append(members, first)
	n := min(len(g.waiting), together-1)
	members = append(members, g.waiting[:n]...)
	g.waiting = slices.Delete(g.waiting, 0, n)
	g.mu.Unlock()

	var once sync.Once
	next := func() { once.Do(g.next) }
	slow := time.AfterFunc(patience, next)
	outcomes := slices.Repeat([]readOutcome{{err: wrapf(ErrUnavailable, "the group of this read has come to no end")}}, len(members))
	defer func() { // also when it panics: the others must neither wait for ever nor be told what is not so
		slow.Stop()
		next()
		for i, m := range members[1:] {
			m.turn <- turn{outcome: outcomes[i+1]}
		}
	}()
	asked := make([]ReadRequest, len(members))
	for i, m := range members {
		asked[i] = m.asked
	}
	ctx, cancel := shared(ctx, members)
	defer cancel()
	outcomes = g.read(ctx, asked)
	return outcomes[0]
}

// shared is a context for all members: whoever leads, and goes away, must not end the reads of the others. It ends when
// the last of them has given up.
func shared(ctx context.Context, members []*gathered) (context.Context, context.CancelFunc) {
	ctx = context.WithoutCancel(ctx)
	var latest time.Time
	for _, m := range members {
		if m.until.IsZero() {
			return ctx, func() {}
		}
		if m.until.After(latest) {
			latest = m.until
		}
	}
	return context.WithDeadline(ctx, latest)
}

// next hands the place of a group on to who waits the longest, who leads the next one, or frees it.
func (g *gatherer) next() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.leading--
		return
	}
	leader := g.waiting[0]
	g.waiting = slices.Delete(g.waiting, 0, 1)
	leader.turn <- turn{lead: true}
}
