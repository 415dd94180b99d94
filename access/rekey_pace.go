package access

import (
	"context"
	"time"

	"github.com/google/uuid"
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

// eachBatch calls round with batches of subjects, all subjects in all. While requests are being served, batches are
// small and one at a time, and as much rest follows as keeps the requests going.
func (r *Rotator) eachBatch(ctx context.Context, round func(context.Context, [][]uuid.UUID) error) error {
	var after uuid.UUID
	var pace pace
	before := r.broker.load.Load() // when the last burst ended
	for busy := false; ; {
		size, parallel := rekeyBatch, rekeyParallel
		if busy {
			size, parallel = rekeyBatchBusy, 1
		}
		start, load := time.Now(), r.broker.load.Load()
		ids, err := r.subjects(ctx, after, size*parallel)
		if err != nil || len(ids) == 0 {
			return err
		}
		after = ids[len(ids)-1]
		var batches [][]uuid.UUID
		for len(ids) > 0 {
			n := min(size, len(ids))
			batches, ids = append(batches, ids[:n]), ids[n:]
		}
		if err := round(ctx, batches); err != nil {
			return err
		}
		ended, now, took := time.Now(), r.broker.load.Load(), time.Since(start)
		if busy {
			pace.beside.add(now-load, took)
		}
		if busy, before = now > before, now; !busy {
			continue
		}
		if !wait(ctx, pace.rest(took)) {
			return context.Cause(ctx)
		}
		pace.without.add(r.broker.load.Load()-now, time.Since(ended))
	}
}
