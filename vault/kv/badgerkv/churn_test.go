package badgerkv

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// churn writes so that the engine compacts, and knows what was acknowledged.
type churn struct {
	store *Store
	mu    sync.Mutex
	acked map[string]int // version of each key
	keys  int
	seed  *rand.Rand
}

const churnKeys = 600

func newChurn(s *Store) *churn {
	return &churn{store: s, acked: map[string]int{}, keys: churnKeys, seed: rand.New(rand.NewPCG(1, 2))}
}

func churnValue(key string, version int) string {
	return fmt.Sprintf("%s %d %s", key, version, strings.Repeat("v", 8<<10))
}

// put writes one key and returns what Update returned.
func (c *churn) put() error {
	c.mu.Lock()
	k := key(c.seed.IntN(c.keys))
	next := c.acked[k] + 1
	c.mu.Unlock()
	if err := put(context.Background(), c.store, k, churnValue(k, next)); err != nil {
		return err
	}
	c.mu.Lock()
	c.acked[k] = next
	c.mu.Unlock()
	return nil
}

func (c *churn) acknowledged() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.acked)
}

// wrong is a value that was never written, or is older than one that was acknowledged before it was asked for. Nothing is
// wrong with an error.
func (c *churn) wrong(s *Store, want map[string]int, k string) error {
	got, ok, err := get(s, k)
	if err != nil {
		return nil
	}
	version := 0
	if ok {
		if _, err := fmt.Sscanf(strings.TrimPrefix(got, k), "%d", &version); err != nil {
			return fmt.Errorf("value of %s: %w", k, err)
		}
	}
	if ok && got != churnValue(k, version) {
		return fmt.Errorf("%s has a value that was never written", k)
	}
	if version < want[k] {
		return fmt.Errorf("%s has version %d, %d was acknowledged", k, version, want[k])
	}
	return nil
}

// readers read until stop is called, and report what is wrong. Where a commit waits for a compaction that must not go on, they wait
// for the commit, and are left to it.
func (c *churn) readers(t *testing.T, n int, reads *atomic.Int64) (stop func()) {
	quit := make(chan struct{})
	var running sync.WaitGroup
	var wrong sync.Once
	for r := range n {
		running.Go(func() {
			seed := rand.New(rand.NewPCG(uint64(r), 3))
			for {
				select {
				case <-quit:
					return
				default:
				}
				want := c.acknowledged()
				reads.Add(1)
				if err := c.wrong(c.store, want, key(seed.IntN(c.keys))); err != nil {
					wrong.Do(func() { t.Error(err) })
				}
			}
		})
	}
	return func() { close(quit); within(10*time.Second, running.Wait) }
}

// passed returns when n more reads have begun. A read may wait for a commit, and that for the compaction that calls this:
// then it gives up.
func passed(reads *atomic.Int64, n int64) {
	until := time.Now().Add(10 * time.Second)
	for seen := reads.Load(); reads.Load() < seen+n && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
}

// mustHold opens a store and reads all that was acknowledged.
func (c *churn) mustHold(t *testing.T, o Options) {
	t.Helper()
	o.hooks.compacting = nil
	o.Fatal = func(err error) { t.Errorf("store would have ended the process: %v", err) }
	s := mustOpen(t, o)
	want := c.acknowledged()
	for k := range want {
		if _, ok, err := get(s, k); !ok || err != nil {
			t.Fatalf("%s is there: %t, error: %v", k, ok, err)
		}
		if err := c.wrong(s, want, k); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(o.Dir, unfinishedFile)); err == nil && s.compactions.under.Load() == nil {
		t.Error("the record is still there")
	}
	mustClose(t, s)
	mustClose(t, mustOpen(t, o))
}

// compacting are options under which a store compacts soon.
func compacting(t testing.TB) Options {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	o.MemTableSize, o.NumMemtables = 1<<20, 2
	return o
}

// points counts how often compactions came to each point.
type points struct {
	mu    sync.Mutex
	times map[string]int
	then  func(point string, times int)
}

func (p *points) at(point string) {
	p.mu.Lock()
	if p.times == nil {
		p.times = map[string]int{}
	}
	p.times[point]++
	n := p.times[point]
	p.mu.Unlock()
	if p.then != nil {
		p.then(point, n)
	}
}

func (p *points) count(point string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.times[point]
}
