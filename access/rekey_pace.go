package access

import (
	"context"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// How a rotation makes room for requests.
const (
	// rekeyCost is the share of their throughput that requests may lose to a rotation.
	rekeyCost = 0.1
	// rekeyLeast and rekeyMost bound the share of the time that a rotation takes while there are requests.
	rekeyLeast, rekeyMost = 0.12, 0.5
	// rekeyFades is what is left of the weight of a measurement when the next is made.
	rekeyFades = 0.95
)

// pace finds out how much of the time a rotation may take. It works in bursts and rests after each; how many requests
// were begun in either tells what it costs them. On a machine with room to spare that is little, and the rotation is
// fast; where they fight for the processor it is much, and the rotation is slow.
type pace struct {
	beside, without frequency // of requests, while the rotation works and while it rests
}

// frequency is how often something happened, the more recent the more it counts.
type frequency struct{ times, seconds float64 }

func (f *frequency) add(times int64, took time.Duration) {
	f.times = f.times*rekeyFades + float64(times)
	f.seconds = f.seconds*rekeyFades + took.Seconds()
}

func (f *frequency) rate() float64 {
	if f.seconds == 0 {
		return 0
	}
	return f.times / f.seconds
}

// share is that of the time that the rotation may take.
func (p *pace) share() float64 {
	beside, without := p.beside.rate(), p.without.rate()
	if without == 0 {
		return rekeyLeast // nothing was measured yet
	}
	loss := 1 - beside/without // while the rotation works
	if loss*rekeyMost <= rekeyCost {
		return rekeyMost
	}
	return max(rekeyLeast, rekeyCost/loss)
}

// rest is how long to rest after a burst that took so long.
func (p *pace) rest(took time.Duration) time.Duration {
	share := p.share()
	return time.Duration(float64(took) * (1 - share) / share)
}

// eachBatch calls step with batches of subjects, all subjects in all, until an error. While nobody asks for anything,
// rekeyParallel batches are worked on at once; else they are small and one at a time, and as much rest follows as keeps
// the requests going.
func (r *Rotator) eachBatch(ctx context.Context, step func(context.Context, []uuid.UUID) error) error {
	w := &walk{rotator: r, step: step}
	for !w.over {
		if err := w.together(ctx); err != nil {
			return err
		}
		if err := w.paced(ctx); err != nil {
			return err
		}
	}
	return nil
}

// walk is where eachBatch is.
type walk struct {
	rotator *Rotator
	step    func(context.Context, []uuid.UUID) error
	after   uuid.UUID // the last subject that was taken
	over    bool      // there is none after it
	pace    pace
}

// next takes the next subjects, at most n.
func (w *walk) next(ctx context.Context, n int) ([]uuid.UUID, error) {
	ids, err := w.rotator.subjects(ctx, w.after, n)
	if err != nil {
		return nil, err
	}
	if w.over = len(ids) < n; len(ids) > 0 {
		w.after = ids[len(ids)-1]
	}
	return ids, nil
}

// together goes on for as long as there are no requests.
func (w *walk) together(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(rekeyParallel)
	var err error
	for load := w.load(); err == nil && !w.over && groupCtx.Err() == nil && w.load() == load; {
		var ids []uuid.UUID
		if ids, err = w.next(groupCtx, rekeyBatch); err == nil && len(ids) > 0 {
			group.Go(func() error { return w.step(groupCtx, ids) })
		}
	}
	// The first failure ends what the others do, so it is the one to tell.
	if failed := group.Wait(); failed != nil {
		return failed
	}
	return err
}

// paced goes on for as long as there are requests.
func (w *walk) paced(ctx context.Context) error {
	for !w.over {
		start, before := time.Now(), w.load()
		ids, err := w.next(ctx, rekeyBatchBusy)
		if err == nil && len(ids) > 0 {
			err = w.step(ctx, ids)
		}
		if err != nil {
			return err
		}
		ended, beside := time.Now(), w.load()
		took := ended.Sub(start)
		w.pace.beside.add(beside-before, took)
		if !wait(ctx, w.pace.rest(took)) {
			return context.Cause(ctx)
		}
		after := w.load()
		w.pace.without.add(after-beside, time.Since(ended))
		if after == before {
			return nil
		}
	}
	return nil
}

// load is how many requests were begun.
func (w *walk) load() int64 { return w.rotator.broker.load.Load() }
