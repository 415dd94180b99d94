package load

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	maxConnections = 4096
	maxRate        = 1_000_000
	maxDuration    = time.Hour
	// afterError keeps a connection to a server that is gone from spinning.
	afterError = 10 * time.Millisecond
)

// Plan bounds a run, whatever carries its requests.
type Plan struct {
	Connections int
	Duration    time.Duration
	Count       int64
	Rate        float64
	Stop        <-chan struct{}
}

// Worker makes the requests of one connection, one after the other.
type Worker interface {
	// Do makes the n-th request of the run and returns when it is answered. It must give up on its own.
	Do(n int64) error
	Close() error
}

// Result is what a run measured.
type Result struct {
	Requests int64 // answered well
	Failed   int64 // answered otherwise, or not at all
	Unsent   int64 // of an open run: due within Duration, and not sent by its end
	Took     time.Duration
	// Latencies of the requests that were answered well, in an open run from the time at which they were due.
	// There the unsent count as well, with the time that they had waited by then: no less has passed.
	P50, P99, P999 time.Duration
	Max            time.Duration
}

// Rate is the number of requests per second that were answered well.
func (r Result) Rate() float64 {
	if r.Took <= 0 { // nothing was run
		return 0
	}
	return float64(r.Requests) / r.Took.Seconds()
}

// run is a plan that is carried out.
type run struct {
	Plan
	start, deadline  time.Time
	next             atomic.Int64
	good, bad, never atomic.Int64
}

// Do carries out p with a worker of open for each connection, made before the time starts.
func Do(p Plan, open func(connection int) (Worker, error)) (Result, error) {
	switch {
	case p.Connections < 1 || p.Connections > maxConnections:
		return Result{}, errors.New("load: Connections must be within 1 and 4096")
	case p.Duration <= 0 || p.Duration > maxDuration:
		return Result{}, errors.New("load: Duration must be within an hour")
	case p.Rate < 0 || p.Rate > maxRate:
		return Result{}, errors.New("load: Rate must be within 0 and 1,000,000")
	}
	workers := make([]Worker, p.Connections)
	errs := make([]error, p.Connections+1)
	defer func() {
		for _, w := range workers {
			if w != nil {
				_ = w.Close() // what it has done is counted
			}
		}
	}()
	for i := range workers {
		w, err := open(i)
		if err != nil {
			return Result{}, err
		}
		workers[i] = w
	}
	histograms := make([]*hdrhistogram.Histogram, p.Connections)
	r := &run{Plan: p, start: time.Now()}
	r.deadline = r.start.Add(p.Duration)
	var wg sync.WaitGroup
	for i, w := range workers {
		histograms[i] = newHistogram()
		wg.Go(func() {
			if p.Rate > 0 {
				errs[i] = r.open(i, w, histograms[i])
			} else {
				errs[i] = r.closed(w, histograms[i])
			}
		})
	}
	wg.Wait()
	all := newHistogram()
	for _, h := range histograms {
		all.Merge(h)
	}
	at := func(q float64) time.Duration { return time.Duration(all.ValueAtQuantile(q)) * time.Microsecond }
	return Result{
		Requests: r.good.Load(), Failed: r.bad.Load(), Unsent: r.never.Load(), Took: time.Since(r.start),
		P50: at(50), P99: at(99), P999: at(99.9), Max: time.Duration(all.Max()) * time.Microsecond,
	}, errors.Join(errs...)
}

// closed sends the next request when the last one is answered.
func (r *run) closed(w Worker, h *hdrhistogram.Histogram) (first error) {
	for time.Now().Before(r.deadline) && !r.stopped() {
		n := r.next.Add(1) - 1
		if r.Count > 0 && n >= r.Count {
			break
		}
		r.one(w, n, time.Now(), h, &first)
	}
	return first
}

// open sends each request when it is due, or, when the connection is behind, as soon as it can. Connection i of c
// has the requests i, i+c, i+2c and so on of the run, evenly spread over it.
func (r *run) open(i int, w Worker, h *hdrhistogram.Histogram) (first error) {
	for n := int64(i); r.Count == 0 || n < r.Count; n += int64(r.Connections) {
		due := r.start.Add(time.Duration(float64(n) / r.Rate * float64(time.Second)))
		if !due.Before(r.deadline) {
			break
		}
		if !r.sleep(time.Until(due)) {
			break
		}
		if now := time.Now(); !now.Before(r.deadline) {
			r.never.Add(1)
			record(h, now.Sub(due))
			continue
		}
		r.one(w, n, due, h, &first)
	}
	return first
}

// one makes a request whose time counts from since.
func (r *run) one(w Worker, n int64, since time.Time, h *hdrhistogram.Histogram, first *error) {
	err := w.Do(n)
	if err == nil {
		r.good.Add(1)
		record(h, time.Since(since))
		return
	}
	r.bad.Add(1)
	if errors.Is(err, errRefused) {
		return
	}
	if *first == nil {
		*first = err
	}
	r.sleep(afterError)
}

// sleep reports false when the run was stopped meanwhile.
func (r *run) sleep(d time.Duration) bool {
	if d <= 0 {
		return !r.stopped()
	}
	if r.Stop == nil {
		time.Sleep(d)
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-r.Stop:
		return false
	case <-t.C:
		return true
	}
}

func (r *run) stopped() bool {
	select {
	case <-r.Stop:
		return true
	default:
		return false
	}
}

// maxLatency is longer than any run with its grace.
const maxLatency = 2 * maxDuration

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(maxLatency/time.Microsecond), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(int64(min(max(d, time.Microsecond), maxLatency) / time.Microsecond)) // it is within the bounds
}
