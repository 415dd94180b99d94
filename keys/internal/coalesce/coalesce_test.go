package coalesce_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/keys/internal/coalesce"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errSend = errors.New("send failed")

// wire records the batches that were sent and answers each call with its own value.
type wire struct {
	mu      sync.Mutex
	batches [][]int
	delay   func(batch []int) time.Duration
}

func (w *wire) send(ctx context.Context, batch []int) ([]coalesce.Outcome[int], error) {
	w.mu.Lock()
	w.batches = append(w.batches, append([]int(nil), batch...))
	w.mu.Unlock()
	if w.delay != nil {
		select {
		case <-time.After(w.delay(batch)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	out := make([]coalesce.Outcome[int], len(batch))
	for i, q := range batch {
		out[i].Value = q
	}
	return out, nil
}

func (w *wire) config() coalesce.Config[int, int] {
	return coalesce.Config[int, int]{
		Send: w.send, MaxItems: 8, MaxBytes: 1 << 20, MaxInFlight: 4, MaxQueue: 100,
		Young: time.Millisecond, Timeout: 3 * time.Second,
	}
}

func always(d time.Duration) func([]int) time.Duration {
	return func([]int) time.Duration { return d }
}

// start runs n calls, numbered from first, and returns a function that awaits them.
func start(t *testing.T, c *coalesce.Coalescer[int, int], first, n int) (wait func()) {
	t.Helper()
	var wg sync.WaitGroup
	for i := first; i < first+n; i++ {
		wg.Go(func() {
			if got, err := c.Do(t.Context(), i); err != nil || got != i {
				t.Errorf("Do(%d) = %d, %v", i, got, err)
			}
		})
	}
	return wg.Wait
}

func TestALoneCallIsSentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		c := coalesce.New(w.config())
		defer c.Close()
		begin := time.Now()
		if got, err := c.Do(t.Context(), 7); err != nil || got != 7 {
			t.Fatalf("Do = %d, %v", got, err)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("waited %v for nothing", took)
		}
	})
}

func TestWhatQueuesIsTheNextBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(500 * time.Microsecond)}
		c := coalesce.New(w.config())
		defer c.Close()
		first := start(t, c, 0, 1)
		synctest.Wait()
		rest := start(t, c, 1, 5)
		first()
		rest()
		if len(w.batches) != 2 || len(w.batches[1]) != 5 {
			t.Errorf("batches = %v, want one of 1 and one of 5", w.batches)
		}
	})
}

func TestASlowBatchHoldsBackOthersForItsYouthOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: func(batch []int) time.Duration {
			if batch[0] == 0 {
				return time.Second
			}
			return 100 * time.Microsecond
		}}
		c := coalesce.New(w.config())
		defer c.Close()
		begin := time.Now()
		slow := start(t, c, 0, 1)
		synctest.Wait()
		start(t, c, 1, 3)()
		if took := time.Since(begin); took > 2*time.Millisecond {
			t.Errorf("three calls waited %v behind a slow one", took)
		}
		// Beside the slow batch, which is no longer young, batches follow each other at their own pace.
		begin = time.Now()
		for i := range 10 {
			start(t, c, 10+i, 1)()
		}
		if took := time.Since(begin); took != time.Millisecond {
			t.Errorf("ten calls of 100 µs took %v", took)
		}
		slow()
	})
}

func TestAFullBatchDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(time.Second)}
		cfg := w.config()
		cfg.Young = time.Minute
		c := coalesce.New(cfg)
		defer c.Close()
		begin := time.Now()
		first := start(t, c, 0, 1)
		synctest.Wait()
		rest := start(t, c, 1, cfg.MaxItems)
		first()
		rest()
		if took := time.Since(begin); took != time.Second {
			t.Errorf("a full batch waited for the one before it: %v", took)
		}
	})
}

func TestCancelledWhileQueuedIsNeverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(time.Second)}
		cfg := w.config()
		cfg.MaxInFlight = 1
		c := coalesce.New(cfg)
		first := start(t, c, 0, 1)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := c.Do(ctx, 1)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Do = %v, want its context's error", err)
		}
		first()
		c.Close()
		if len(w.batches) != 1 {
			t.Errorf("batches = %v, want the first alone", w.batches)
		}
	})
}

func TestABatchWithoutWaitersIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int32
		c := coalesce.New(coalesce.Config[int, int]{
			Send: func(ctx context.Context, _ []int) ([]coalesce.Outcome[int], error) {
				<-ctx.Done()
				ended.Add(1)
				return nil, ctx.Err()
			},
			MaxItems: 8, MaxBytes: 1, MaxInFlight: 1, MaxQueue: 8, Timeout: time.Hour,
		})
		defer c.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = c.Do(ctx, 1)
		}()
		synctest.Wait()
		cancel()
		<-done
		synctest.Wait()
		if ended.Load() != 1 {
			t.Error("the batch runs on though nobody waits for it")
		}
	})
}

func TestAHangingSendEndsAtTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(time.Hour)}
		c := coalesce.New(w.config())
		defer c.Close()
		begin := time.Now()
		if _, err := c.Do(t.Context(), 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v, want DeadlineExceeded", err)
		}
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("took %v, want the timeout", took)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(time.Second)}
		cfg := w.config()
		cfg.MaxInFlight, cfg.MaxQueue = 1, 3
		c := coalesce.New(cfg)
		defer c.Close()
		wait := start(t, c, 0, 1)
		synctest.Wait()
		rest := start(t, c, 1, 3)
		synctest.Wait()
		if _, err := c.Do(t.Context(), 9); !errors.Is(err, coalesce.ErrFull) {
			t.Errorf("Do = %v, want ErrFull", err)
		}
		wait()
		rest()
	})
}

func TestCallsMadeTogetherTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(time.Second)}
		c := coalesce.New(w.config())
		defer c.Close()
		for i, o := range c.DoAll(t.Context(), []int{3, 1, 2}) {
			if o.Err != nil || o.Value != []int{3, 1, 2}[i] {
				t.Errorf("outcome %d: %v", i, o)
			}
		}
		if len(w.batches) != 1 || len(w.batches[0]) != 3 {
			t.Errorf("batches %v, want one of three calls", w.batches)
		}
		if out := c.DoAll(t.Context(), nil); len(out) != 0 {
			t.Errorf("outcomes of nothing: %v", out)
		}
	})
}

// What has come back before the context ends is told, though it stands behind what has not.
func TestOutcomesBehindALateOneAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: func(batch []int) time.Duration {
			if batch[0] == 0 {
				return 2 * time.Second
			}
			return 0
		}}
		cfg := w.config()
		cfg.MaxItems = 5
		c := coalesce.New(cfg)
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for i, o := range c.DoAll(ctx, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}) {
			if late := i < 5; late != errors.Is(o.Err, context.DeadlineExceeded) || !late && o.Err != nil {
				t.Errorf("outcome %d: %v", i, o.Err)
			}
		}
	})
}

func TestCallsMadeTogetherAreBoundedAndLeaveOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(time.Second)}
		cfg := w.config()
		cfg.MaxInFlight, cfg.MaxQueue, cfg.MaxItems = 1, 3, 2
		c := coalesce.New(cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		// Two travel at once, one after them and not back when the context ends, and two find the queue full.
		out := c.DoAll(ctx, []int{1, 2, 3, 4, 5})
		for i, want := range []error{nil, nil, context.DeadlineExceeded, coalesce.ErrFull, coalesce.ErrFull} {
			if !errors.Is(out[i].Err, want) {
				t.Errorf("outcome %d: %v, want %v", i, out[i].Err, want)
			}
		}
		for _, o := range c.DoAll(ctx, []int{6}) {
			if !errors.Is(o.Err, context.DeadlineExceeded) {
				t.Errorf("after the end of the context: %v", o.Err)
			}
		}
		c.Close()
		for _, o := range c.DoAll(t.Context(), []int{7}) {
			if !errors.Is(o.Err, coalesce.ErrClosed) {
				t.Errorf("after Close: %v", o.Err)
			}
		}
		for _, batch := range w.batches {
			for _, q := range batch {
				if q > 3 {
					t.Errorf("%d was sent", q)
				}
			}
		}
	})
}

func TestCloseDrainsAndThenRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: always(time.Second)}
		cfg := w.config()
		cfg.MaxInFlight = 1
		c := coalesce.New(cfg)
		wait := start(t, c, 0, 20)
		synctest.Wait()
		c.Close()
		wait()
		if _, err := c.Do(t.Context(), 1); !errors.Is(err, coalesce.ErrClosed) {
			t.Errorf("Do = %v, want ErrClosed", err)
		}
		c.Close()
	})
}

func TestOutcomesOfTheWrongNumberAreAnError(t *testing.T) {
	c := coalesce.New(coalesce.Config[int, int]{
		Send:     func(context.Context, []int) ([]coalesce.Outcome[int], error) { return nil, nil },
		MaxItems: 1, MaxBytes: 1, MaxInFlight: 1, MaxQueue: 1, Timeout: time.Second,
	})
	defer c.Close()
	if _, err := c.Do(t.Context(), 1); err == nil {
		t.Error("Do = nil error for an answer without outcomes")
	}
}

// TestProperties: whatever arrives when, each call is sent at most once, in one batch within the limits,
// gets its own outcome unless it was cancelled, and nothing is left at the end.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := coalesce.Config[int, int]{
			MaxItems:    rapid.IntRange(1, 10).Draw(rt, "items"),
			MaxBytes:    rapid.IntRange(1, 200).Draw(rt, "bytes"),
			MaxInFlight: rapid.IntRange(1, 5).Draw(rt, "inFlight"),
			MaxQueue:    1000,
			Young:       time.Duration(rapid.IntRange(0, 2000).Draw(rt, "young")) * time.Microsecond,
			Timeout:     time.Minute,
			Size:        func(q int) int { return q % 97 },
		}
		type caller struct{ arrive, patience, fail int }
		callers := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) caller {
			return caller{
				arrive:   rapid.IntRange(0, 5000).Draw(rt, "arrive"),
				patience: rapid.IntRange(0, 20000).Draw(rt, "patience"),
				fail:     rapid.IntRange(0, 9).Draw(rt, "fail"),
			}
		}), 1, 60).Draw(rt, "callers")
		delays := rapid.SliceOfN(rapid.IntRange(0, 4000), 1, 8).Draw(rt, "delays")

		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			sent := make(map[int]int)
			flying, batches := 0, 0
			var broken []string
			cfg.Send = func(_ context.Context, batch []int) ([]coalesce.Outcome[int], error) {
				mu.Lock()
				flying++
				batches++
				delay := delays[batches%len(delays)]
				size := 0
				for _, q := range batch {
					sent[q]++
					size += cfg.Size(q)
				}
				if flying > cfg.MaxInFlight || len(batch) > cfg.MaxItems || (size > cfg.MaxBytes && len(batch) > 1) {
					broken = append(broken, fmt.Sprintf("flying %d, items %d, bytes %d", flying, len(batch), size))
				}
				mu.Unlock()
				time.Sleep(time.Duration(delay) * time.Microsecond)
				mu.Lock()
				flying--
				mu.Unlock()
				out := make([]coalesce.Outcome[int], len(batch))
				for i, q := range batch {
					if out[i].Value = q; callers[q].fail == 0 {
						out[i].Err = errSend
					}
				}
				return out, nil
			}
			c := coalesce.New(cfg)
			var wg sync.WaitGroup
			for i, who := range callers {
				wg.Go(func() {
					time.Sleep(time.Duration(who.arrive) * time.Microsecond)
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(who.patience)*time.Microsecond)
					defer cancel()
					got, err := c.Do(ctx, i)
					switch {
					case errors.Is(err, context.DeadlineExceeded):
					case who.fail == 0 && errors.Is(err, errSend):
					case who.fail != 0 && err == nil && got == i:
					default:
						mu.Lock()
						broken = append(broken, fmt.Sprintf("Do(%d) = %d, %v", i, got, err))
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			c.Close()
			for q, n := range sent {
				if n > 1 {
					broken = append(broken, fmt.Sprintf("call %d sent %d times", q, n))
				}
			}
			if len(broken) > 0 {
				t.Error(broken)
			}
		})
	})
}

func BenchmarkDo(b *testing.B) {
	w := &wire{}
	cfg := w.config()
	cfg.Send = func(_ context.Context, batch []int) ([]coalesce.Outcome[int], error) {
		return make([]coalesce.Outcome[int], len(batch)), nil
	}
	c := coalesce.New(cfg)
	defer c.Close()
	ctx := context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Do(ctx, 1); err != nil {
				b.Error(err)
			}
		}
	})
}
