package load

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// served is a server in virtual time: each request takes a millisecond, and one of them holds everything up.
type served struct {
	stall   int64 // number of the request that stalls; -1: none
	stalls  time.Duration
	asked   *atomic.Int64
	refuses bool
}

func (s served) Do(n int64) error {
	s.asked.Add(1)
	switch {
	case s.refuses:
		return errors.New("nobody there")
	case n == s.stall:
		time.Sleep(s.stalls)
	default:
		time.Sleep(time.Millisecond)
	}
	return nil
}

func (s served) Close() error { return nil }

// do carries out p in virtual time, so that figures are exact on any machine.
func do(t *testing.T, p Plan, s served) (r Result, err error) {
	t.Helper()
	s.asked = new(atomic.Int64)
	synctest.Test(t, func(t *testing.T) {
		r, err = Do(p, func(int) (Worker, error) { return s, nil })
	})
	if got := r.Requests + r.Failed; got != s.asked.Load() {
		t.Errorf("%d requests are counted, %d were made", got, s.asked.Load())
	}
	return r, err
}

// near allows for the three digits that a histogram keeps.
func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-want/100 || got > want+want/100 {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

func TestAStallShowsInTheOpenRunAndHidesInTheClosedOne(t *testing.T) {
	stall := served{stall: 100, stalls: time.Second}

	open, err := do(t, Plan{Connections: 1, Duration: 10 * time.Second, Rate: 500}, stall)
	if err != nil {
		t.Fatal(err)
	}
	// 500 requests fall due in the stalled second, and as many while the connection catches up, a millisecond a
	// request gained: a fifth of all waits, the longest of them the whole second.
	if open.Requests != 5000 || open.Unsent != 0 || open.Failed != 0 {
		t.Errorf("open: %d requests, %d unsent, %d failed, want 5000, 0, 0", open.Requests, open.Unsent, open.Failed)
	}
	near(t, "open: longest", open.Max, time.Second)
	near(t, "open: p50", open.P50, time.Millisecond)
	near(t, "open: p99", open.P99, 950*time.Millisecond)

	closed, err := do(t, Plan{Connections: 1, Duration: 10 * time.Second, Count: 5000}, stall)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "closed: longest", closed.Max, time.Second)
	near(t, "closed: p99", closed.P99, time.Millisecond) // one of 5000
}

func TestWhatAnOpenRunCannotSendCounts(t *testing.T) {
	// The server never comes back within the run: 400 of the 500 requests are never sent.
	r, err := do(t, Plan{Connections: 1, Duration: time.Second, Rate: 500}, served{stall: 100, stalls: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 101 || r.Unsent != 399 {
		t.Errorf("%d requests and %d unsent, want 101 and 399", r.Requests, r.Unsent)
	}
	// 100 took a millisecond, so the 250th shortest wait is that of the 150th request from the end, due at 700 ms.
	near(t, "p50", r.P50, 2500*time.Millisecond)
}

func TestAnOpenRunSpreadsItsRequestsOverConnections(t *testing.T) {
	for _, connections := range []int{1, 3, 64} {
		r, err := do(t, Plan{Connections: connections, Duration: 2 * time.Second, Rate: 300}, served{stall: -1})
		if err != nil {
			t.Fatal(err)
		}
		if r.Requests != 600 || r.Unsent != 0 {
			t.Errorf("%d connections: %d requests and %d unsent, want 600 and 0", connections, r.Requests, r.Unsent)
		}
		near(t, "longest", r.Max, time.Millisecond) // each is sent when it is due
	}
}

func TestRunsEndByCountByTimeAndWhenStopped(t *testing.T) {
	for _, rate := range []float64{0, 100} {
		r, err := do(t, Plan{Connections: 4, Duration: time.Minute, Count: 42, Rate: rate}, served{stall: -1})
		if err != nil || r.Requests != 42 {
			t.Errorf("rate %v: %d requests, error %v, want 42 by count", rate, r.Requests, err)
		}
		r, err = do(t, Plan{Connections: 4, Duration: time.Second, Rate: rate}, served{stall: -1})
		if err != nil || r.Took > time.Second+time.Millisecond {
			t.Errorf("rate %v: took %v, error %v, want a second", rate, r.Took, err)
		}
		synctest.Test(t, func(t *testing.T) {
			stop := make(chan struct{})
			time.AfterFunc(time.Second, func() { close(stop) })
			s := served{stall: -1, asked: new(atomic.Int64)}
			r, err := Do(Plan{Connections: 4, Duration: time.Minute, Rate: rate, Stop: stop}, func(int) (Worker, error) { return s, nil })
			if err != nil || r.Took > time.Second+time.Millisecond {
				t.Errorf("rate %v: took %v, error %v, want to be stopped after a second", rate, r.Took, err)
			}
		})
	}
}

func TestAServerThatIsGoneIsNotHammered(t *testing.T) {
	r, err := do(t, Plan{Connections: 2, Duration: time.Second}, served{refuses: true})
	if err == nil {
		t.Error("the run does not say that nobody was there")
	}
	if r.Requests != 0 || r.Failed > 2*101 {
		t.Errorf("%d requests, %d failed, want none and at most one in 10 ms for each connection", r.Requests, r.Failed)
	}
}

func TestPlansAreBounded(t *testing.T) {
	ok := Plan{Connections: 1, Duration: time.Second}
	for name, change := range map[string]func(*Plan){
		"no connection":    func(p *Plan) { p.Connections = 0 },
		"many connections": func(p *Plan) { p.Connections = maxConnections + 1 },
		"no duration":      func(p *Plan) { p.Duration = 0 },
		"long duration":    func(p *Plan) { p.Duration = maxDuration + 1 },
		"negative rate":    func(p *Plan) { p.Rate = -1 },
		"high rate":        func(p *Plan) { p.Rate = maxRate + 1 },
	} {
		p := ok
		change(&p)
		r, err := Do(p, func(int) (Worker, error) { t.Errorf("%s: a worker is made", name); return nil, errors.New("no") })
		if err == nil || r.Rate() != 0 {
			t.Errorf("%s: a rate of %v, error %v", name, r.Rate(), err)
		}
	}
}
