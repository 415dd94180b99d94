package access

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// groups records what a gatherer makes of reads, and answers each with its own subject.
type groups struct {
	gatherer
	mu   sync.Mutex
	made [][]ReadRequest
}

func newGroups(before func(ctx context.Context, asked []ReadRequest)) *groups {
	g := &groups{}
	g.read = func(ctx context.Context, asked []ReadRequest) []readOutcome {
		g.mu.Lock()
		g.made = append(g.made, asked)
		g.mu.Unlock()
		before(ctx, asked)
		out := make([]readOutcome, len(asked))
		for i, q := range asked {
			out[i].result.Subject = q.Subject
		}
		return out
	}
	return g
}

// ask has n reads made at once, and returns a function that waits for their outcomes.
func (g *groups) ask(ctx context.Context, n int) (outcomes func() []readOutcome) {
	out := make([]readOutcome, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			q := ReadRequest{Subject: uuid.New()}
			out[i] = g.do(ctx, q)
			if o := out[i]; o.err == nil && o.result.Subject != q.Subject {
				out[i].err = errors.New("the answer of another")
			}
		})
	}
	return func() []readOutcome { all.Wait(); return out }
}

func (g *groups) sizes() (sizes []int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, asked := range g.made {
		sizes = append(sizes, len(asked))
	}
	return sizes
}

// What comes while groups are under way makes the next ones, of a bounded size, and each read has its own outcome.
func TestReadsThatWaitMakeTheNextGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroups(func(context.Context, []ReadRequest) { time.Sleep(10 * time.Millisecond) })
		first := g.ask(t.Context(), groupsAtOnce)
		synctest.Wait()
		rest := g.ask(t.Context(), together+10)
		synctest.Wait()
		for _, o := range append(first(), rest()...) {
			if o.err != nil {
				t.Error(o.err)
			}
		}
		total, largest := 0, 0
		for _, n := range g.sizes() {
			total, largest = total+n, max(largest, n)
		}
		if total != groupsAtOnce+together+10 || len(g.sizes()) > groupsAtOnce+3 || largest > together {
			t.Errorf("groups of %v", g.sizes())
		}
		if g.leading != 0 || len(g.waiting) != 0 {
			t.Errorf("%d groups under way and %d reads waiting after the last", g.leading, len(g.waiting))
		}
	})
}

// A group that waits for something does not hold the others back for long.
func TestASlowGroupHoldsNobodyBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := make(chan struct{})
		calls := make(chan struct{}, 2*groupsAtOnce)
		for range groupsAtOnce {
			calls <- struct{}{}
		}
		g := newGroups(func(context.Context, []ReadRequest) {
			select {
			case <-calls:
				<-hung
			default:
			}
		})
		slow := g.ask(t.Context(), groupsAtOnce)
		synctest.Wait()
		for range 3 {
			for _, o := range g.ask(t.Context(), 5)() {
				if o.err != nil {
					t.Error(o.err)
				}
			}
		}
		close(hung)
		slow()
		if g.leading != 0 {
			t.Errorf("%d groups are under way after the last", g.leading)
		}
	})
}

// Who gives up before a group has begun with its read is out of it; who gives up later does not end the group of others.
func TestACallerThatLeavesTakesNobodyAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		var begun atomic.Int32
		g := newGroups(func(ctx context.Context, _ []ReadRequest) {
			leads := begun.Add(1) <= groupsAtOnce
			<-goOn
			if !leads && ctx.Err() != nil {
				t.Error("a group has ended with one of its callers")
			}
		})
		leaders, leave := context.WithTimeout(t.Context(), patience/4)
		defer leave()
		led := g.ask(leaders, groupsAtOnce)
		synctest.Wait()
		queued := g.ask(leaders, 3)
		stay := g.ask(t.Context(), 3)
		for _, o := range queued() {
			if !errors.Is(o.err, context.DeadlineExceeded) {
				t.Errorf("a read that left while it waited: %v", o.err)
			}
		}
		lead := g.ask(t.Context(), 1)
		close(goOn)
		led()
		for _, o := range append(stay(), lead()...) {
			if o.err != nil {
				t.Error(o.err)
			}
		}
		total := 0
		for _, n := range g.sizes() {
			total += n
		}
		if total != groupsAtOnce+4 {
			t.Errorf("groups of %v: who left was read too", g.sizes())
		}
	})
}

// A group ends when the last of its callers has given up, however long what it waits for.
func TestAGroupEndsWithTheLastOfItsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended time.Duration
		begun := time.Now()
		g := newGroups(func(ctx context.Context, asked []ReadRequest) {
			if len(asked) == 1 {
				time.Sleep(time.Millisecond)
				return
			}
			<-ctx.Done()
			ended = time.Since(begun)
		})
		first := g.ask(t.Context(), groupsAtOnce)
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		long, cancelLong := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancelLong()
		some := g.ask(short, 2)
		synctest.Wait()
		others := g.ask(long, 2)
		first()
		some()
		others()
		if ended != 3*time.Second {
			t.Errorf("the group ended after %v", ended)
		}
	})
}

// A group that comes to no end by itself leaves nobody waiting, and answers nobody.
func TestAPanicInAGroupLeavesNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroups(func(_ context.Context, asked []ReadRequest) {
			time.Sleep(time.Millisecond)
			if len(asked) > 1 {
				panic("a defect")
			}
		})
		first := g.ask(t.Context(), groupsAtOnce)
		synctest.Wait()
		var all sync.WaitGroup
		var mu sync.Mutex
		panicked, refused := 0, 0
		for range 4 {
			all.Go(func() {
				defer func() {
					if recover() != nil {
						mu.Lock()
						panicked++
						mu.Unlock()
					}
				}()
				if o := g.do(t.Context(), ReadRequest{}); errors.Is(o.err, ErrUnavailable) {
					mu.Lock()
					refused++
					mu.Unlock()
				}
			})
		}
		all.Wait()
		first()
		groups, members := 0, 0
		for _, n := range g.sizes() {
			if n > 1 {
				groups, members = groups+1, members+n
			}
		}
		if groups == 0 || panicked != groups || refused != members-groups {
			t.Errorf("%d panicked, %d were refused, in groups of %v", panicked, refused, g.sizes())
		}
		if o := g.ask(t.Context(), 1)(); o[0].err != nil {
			t.Error(o[0].err)
		}
	})
}
