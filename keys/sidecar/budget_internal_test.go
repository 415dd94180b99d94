package sidecar

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is moved by hand.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, 1e18).Add(time.Duration(c.ns.Load())) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func testBudget(t testing.TB, limit Budget) (*budget, *clock) {
	t.Helper()
	limit, err := limit.verified()
	if err != nil {
		t.Fatal(err)
	}
	c := new(clock)
	return newBudget(limit, c.now), c
}

func refOf(n int) []byte {
	sum := sha256.Sum256(fmt.Append(nil, n))
	return sum[:]
}

// taken counts how many of n opens are allowed; each is of another subject from first on.
func taken(b *budget, caller string, first, n int) (allowed int, limit string) {
	for i := range n {
		if _, l := b.take(caller, refOf(first+i)); l == "" {
			allowed++
		} else {
			limit = l
		}
	}
	return allowed, limit
}

// TestTheBudgetStopsOnTimeUnderConcurrency: 64 goroutines at once get exactly what the budget holds.
func TestTheBudgetStopsOnTimeUnderConcurrency(t *testing.T) {
	for _, tt := range []struct {
		name  string
		limit Budget
		want  int64
	}{
		{"opens", Budget{OpensPerSecond: 1000}, 1000},
		{"subjects", Budget{SubjectsPerHour: 700}, 700},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBudget(t, tt.limit)
			var allowed atomic.Int64
			var wg sync.WaitGroup
			for g := range 64 {
				wg.Go(func() {
					for i := range 100 {
						if _, l := b.take("shop", refOf(100*g+i)); l == "" {
							allowed.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if got := allowed.Load(); got != tt.want {
				t.Errorf("%d were allowed, want %d", got, tt.want)
			}
		})
	}
}

func TestOpensComeBackAtTheRate(t *testing.T) {
	b, c := testBudget(t, Budget{OpensPerSecond: 100, Burst: 10})
	if got, limit := taken(b, "shop", 0, 50); got != 10 || limit != limitOpens {
		t.Errorf("%d at once, %s", got, limit)
	}
	c.advance(50 * time.Millisecond)
	if got, _ := taken(b, "shop", 0, 50); got != 5 {
		t.Errorf("%d after 50 ms, want 5", got)
	}
	c.advance(time.Hour)
	if got, _ := taken(b, "shop", 0, 50); got != 10 {
		t.Errorf("%d after an hour, want the burst of 10", got)
	}
	// A clock that was set back neither opens nor shuts it.
	c.advance(-30 * time.Minute)
	if got, _ := taken(b, "shop", 0, 50); got != 0 {
		t.Errorf("%d after the clock was set back, want none", got)
	}
	c.advance(50 * time.Millisecond)
	if got, _ := taken(b, "shop", 0, 50); got != 5 {
		t.Errorf("%d 50 ms later, want 5", got)
	}
}

// TestOneSubjectCountsOnce: however often, and in whatever slot.
func TestOneSubjectCountsOnce(t *testing.T) {
	b, c := testBudget(t, Budget{SubjectsPerHour: 10})
	for range 40 {
		if got, limit := taken(b, "shop", 0, 10); got != 10 {
			t.Fatalf("%d of ten subjects, %s", got, limit)
		}
		if got, limit := taken(b, "shop", 10, 1); got != 0 || limit != limitSubjects {
			t.Fatalf("an eleventh: %d, %s", got, limit)
		}
		c.advance(7 * time.Minute)
	}
}

// TestNoHourHasMoreSubjects is the property of the sliding window, over random times.
func TestNoHourHasMoreSubjects(t *testing.T) {
	const limit = 50
	r := rand.New(rand.NewPCG(1, 2))
	b, c := testBudget(t, Budget{SubjectsPerHour: limit})
	type open struct{ at, subject int64 }
	var opens []open
	next := 0
	for range 5000 {
		c.advance(time.Duration(r.IntN(60)) * time.Second)
		subject := next
		if r.IntN(4) == 0 && next > 0 {
			subject = r.IntN(next)
		} else {
			next++
		}
		if _, l := b.take("shop", refOf(subject)); l == "" {
			opens = append(opens, open{c.ns.Load(), int64(subject)})
		}
	}
	if len(opens) < 2*limit {
		t.Fatalf("only %d were allowed in all", len(opens))
	}
	for i := range opens {
		seen := make(map[int64]bool)
		for _, o := range opens[i:] {
			if o.at-opens[i].at > int64(time.Hour) {
				break
			}
			seen[o.subject] = true
		}
		if len(seen) > limit {
			t.Fatalf("%d subjects within an hour", len(seen))
		}
	}
}

func TestSubjectsComeBackAfterTheHour(t *testing.T) {
	b, c := testBudget(t, Budget{SubjectsPerHour: 10})
	taken(b, "shop", 0, 10)
	c.advance(59 * time.Minute)
	if got, _ := taken(b, "shop", 100, 10); got != 0 {
		t.Errorf("%d further subjects within the hour", got)
	}
	c.advance(12 * time.Minute)
	if got, _ := taken(b, "shop", 100, 20); got != 10 {
		t.Errorf("%d subjects after the hour, want 10", got)
	}
}

// TestInventedCallersShareTheTotal: whoever names another caller with each record gets no more than all together.
func TestInventedCallersShareTheTotal(t *testing.T) {
	for _, callers := range []int{100, 1_000_000} {
		b, c := testBudget(t, Budget{OpensPerSecond: 100, SubjectsPerHour: 500})
		n := 0
		flood := func() (allowed int, limit string) {
			for range 1000 {
				n++
				if _, l := b.take(fmt.Sprint("caller-", n%callers), refOf(n)); l == "" {
					allowed++
				} else {
					limit = l
				}
			}
			return allowed, limit
		}
		all, limit := flood()
		if all != 300 || limit != limitOpensTotal {
			t.Errorf("%d callers: %d opens at once, %s, want 300", callers, all, limit)
		}
		for range 20 {
			c.advance(time.Second)
			got, _ := flood()
			all += got
		}
		// Beyond the callers that have an account of their own, the rest are one caller.
		if all > 1500 || callers <= maxCallers && all != 1500 {
			t.Errorf("%d callers: %d subjects, want three times 500", callers, all)
		}
		if n := len(b.callers); n > maxCallers+1 {
			t.Errorf("%d callers have an account", n)
		}
	}
}

// TestARefusedOpenUsesNothingUp of any account.
func TestARefusedOpenUsesNothingUp(t *testing.T) {
	b, _ := testBudget(t, Budget{OpensPerSecond: 100, TotalBurst: 150})
	if got, limit := taken(b, "a", 0, 1000); got != 100 || limit != limitOpens {
		t.Fatal(got, limit)
	}
	if got, limit := taken(b, "b", 0, 1000); got != 50 || limit != limitOpensTotal {
		t.Errorf("the other caller got %d, %s, want the 50 that are left", got, limit)
	}
	if n := b.callers["b"].live; n != 50 {
		t.Errorf("%d subjects are counted, want 50", n)
	}
}

// TestTheBudgetsMemoryIsBounded: a client that invents callers and reads as fast as it may for many hours takes
// no more memory than its limits, and leaves none behind.
func TestTheBudgetsMemoryIsBounded(t *testing.T) {
	const limit = 10_000
	b, c := testBudget(t, Budget{OpensPerSecond: 10_000_000, SubjectsPerHour: limit})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	most := 0
	for step := range 24 {
		for i := range 30_000 {
			b.take(fmt.Sprint("caller-", (step*31+i)%5000), refOf(step*7000+i))
		}
		most = max(most, len(b.seen))
		if len(b.callers) > maxCallers+1 {
			t.Fatalf("%d callers have an account", len(b.callers))
		}
		c.advance(5 * time.Minute)
	}
	if most > 9*limit || most < limit { // three times the limit in all, and twice that in pairs
		t.Errorf("the table had %d entries at most", most)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 40<<20 {
		t.Errorf("grew by %d bytes", grown)
	}
	c.advance(3 * time.Hour)
	if use := b.use(); use.Subjects != 0 || use.SubjectsTotal != 0 || use.Callers != 0 || len(b.seen) != 0 || b.pairs != 0 {
		t.Errorf("after hours without an open: %+v, %d entries, %d pairs", use, len(b.seen), b.pairs)
	}
}

// TestTheBudgetsCountsAgreeWithItsTable over random use.
func TestTheBudgetsCountsAgreeWithItsTable(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	b, c := testBudget(t, Budget{SubjectsPerHour: 40, TotalSubjectsPerHour: 90})
	for range 20_000 {
		b.take(fmt.Sprint("caller-", r.IntN(5)), refOf(r.IntN(300)))
		if r.IntN(20) == 0 {
			c.advance(time.Duration(r.IntN(int(25 * time.Minute))))
		}
		if r.IntN(100) != 0 {
			continue
		}
		pairs := 0
		for name, a := range b.callers {
			sum := 0
			for _, n := range a.slots {
				if n < 0 {
					t.Fatalf("%s: negative slot", name)
				}
				sum += n
			}
			if sum != a.live || a.live > 40 {
				t.Fatalf("%s: %d in slots, %d live", name, sum, a.live)
			}
			pairs += a.live
		}
		if pairs != b.pairs || len(b.seen) != b.pairs+b.total.live || b.total.live > 90 {
			t.Fatalf("%d pairs by account, %d counted, %d subjects, %d entries", pairs, b.pairs, b.total.live, len(b.seen))
		}
	}
}

func TestLabelsOfCallersAreHarmless(t *testing.T) {
	b, _ := testBudget(t, Budget{})
	for caller, want := range map[string]string{
		"shop": "shop", "": "other", "anna@example.org": "other", "a\"} 1\nx": "other", string(make([]byte, 500)): "other",
	} {
		if got, _ := b.take(caller, refOf(0)); got != want {
			t.Errorf("%q is shown as %q, want %q", caller, got, want)
		}
	}
	s := NewStats()
	for i := range 1000 {
		s.BudgetRefused(fmt.Sprint("caller-", i), limitOpens)
	}
	if n := len(s.budget.counts); n > maxLabelled+1 {
		t.Errorf("%d labels", n)
	}
}

func TestBadBudgetsAreRefused(t *testing.T) {
	for _, b := range []Budget{{OpensPerSecond: -1}, {Burst: -1}, {SubjectsPerHour: maxBudget + 1}, {TotalOpensPerSecond: -5}} {
		if _, err := b.verified(); err == nil {
			t.Errorf("%+v was taken", b)
		}
	}
}

func BenchmarkBudget(b *testing.B) {
	for _, subjects := range []int{1, 10_000, 200_000} {
		b.Run(fmt.Sprint(subjects, " subjects"), func(b *testing.B) {
			budget, _ := testBudget(b, Budget{OpensPerSecond: maxBudget / 3, TotalOpensPerSecond: maxBudget})
			refs := make([][]byte, subjects)
			for i := range refs {
				refs[i] = refOf(i)
			}
			var n atomic.Int64
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					budget.take("shop", refs[int(n.Add(1))%subjects])
				}
			})
		})
	}
}
