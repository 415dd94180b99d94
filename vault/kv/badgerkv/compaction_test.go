package badgerkv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4/table"
	"go.uber.org/goleak"

	"github.com/prototypster/pdvault/vault/kv"
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

// wrong is a value that is older than one that was acknowledged before it was asked for. Nothing is wrong with an error.
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
	if version < want[k] {
		return fmt.Errorf("%s has version %d, %d was acknowledged", k, version, want[k])
	}
	return nil
}

// readers read until stop is closed, and report what is wrong.
func (c *churn) readers(t *testing.T, n int) (stop func()) {
	quit := make(chan struct{})
	var running sync.WaitGroup
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
				if err := c.wrong(c.store, want, key(seed.IntN(c.keys))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return func() { close(quit); running.Wait() }
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

// A compaction is announced, recorded and over, in this order, and leaves nothing behind. An engine that says so in other
// words must fail here.
func TestCompactionsAreSeen(t *testing.T) {
	running := goleak.IgnoreCurrent()
	o := compacting(t)
	var p points
	var s *Store
	p.then = func(point string, _ int) {
		_, err := os.Stat(filepath.Join(o.Dir, unfinishedFile))
		switch {
		case point == "counted" && err != nil:
			t.Errorf("no record before the MANIFEST is changed: %v", err)
		case point == "done" && err != nil:
			t.Errorf("no record before the check: %v", err)
		}
	}
	o.hooks.compacting = p.at
	s = mustCreate(t, o)
	c := newChurn(s)
	stop := c.readers(t, 2)
	for p.count("done") < 6 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	mustClose(t, s)
	if _, err := os.Stat(filepath.Join(o.Dir, unfinishedFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("record of a compaction after a clean stop: %v", err)
	}
	if logs, err := memLogs(o.Dir); err != nil || len(logs) != 0 {
		t.Errorf("logs after a clean stop: %v (error %v)", logs, err)
	}
	listed, err := readManifest(mustRead(t, filepath.Join(o.Dir, "MANIFEST")))
	if got := len(tables(t, o.Dir)); err != nil || got != len(listed) {
		t.Errorf("%d tables, %d are listed (error %v)", got, len(listed), err)
	}
	if p.count("announced") == 0 || p.count("counted") == 0 {
		t.Errorf("points: %v", p.times)
	}
	c.mustHold(t, o)
	goleak.VerifyNone(t, running)
}

// Closing while compactions run, and begin, loses nothing and is clean.
func TestCloseWhileCompacting(t *testing.T) {
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			o := compacting(t)
			var p points
			o.hooks.compacting = p.at
			s := mustCreate(t, o)
			c := newChurn(s)
			for p.count("announced") <= n {
				if err := c.put(); err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, s)
			if _, err := os.Stat(filepath.Join(o.Dir, cleanFile)); err != nil {
				t.Errorf("the stop was not clean: %v", err)
			}
			c.mustHold(t, o)
		})
	}
}

// obstruct makes the engine fail to create its next n tables, the first skip of them excepted: their names are taken.
func obstruct(t *testing.T, dir string, skip, n int) {
	next := uint64(0)
	for _, path := range tables(t, dir) {
		if id, ok := table.ParseFileID(path); ok {
			next = max(next, id+1)
		}
	}
	for id := next + uint64(skip); id < next+uint64(skip+n); id++ {
		f, err := os.OpenFile(filepath.Join(dir, table.IDToFilename(id)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			f.Close()
		}
	}
}

// A compaction that cannot write its output, all or some of it, ends the store before anybody gets a wrong answer, and the
// next start has everything.
func TestACompactionThatCannotWriteLosesNothing(t *testing.T) {
	cases := []struct {
		name           string
		after          int // compactions that are let pass
		skip, obstruct int
	}{
		{"all of the first", 0, 0, 400},
		{"one of the first", 0, 0, 1},
		{"all of a later one", 3, 0, 400},
		{"one of a later one", 3, 1, 1},
		{"all of one deeper", 12, 0, 400},
		{"one of one deeper", 12, 0, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := compacting(t)
			var p points
			var once sync.Once
			p.then = func(point string, _ int) {
				if point == "announced" && p.count("done") >= c.after {
					once.Do(func() { obstruct(t, o.Dir, c.skip, c.obstruct) })
				}
			}
			o.hooks.compacting = p.at
			wantEnd(t, o, func() bool { return true })
		})
	}
}

// wantEnd writes and reads until the store has ended itself, and opens what it has left behind.
func wantEnd(t *testing.T, o Options, loss func() bool) (*churn, Options) {
	t.Helper()
	var fatal atomic.Pointer[error]
	ended := make(chan struct{})
	o.Fatal = func(err error) {
		if fatal.CompareAndSwap(nil, &err) {
			close(ended)
		}
	}
	s := mustCreate(t, o)
	c := newChurn(s)
	stop := c.readers(t, 3)
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for c.put() == nil {
			}
		})
	}
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		t.Fatal("the store has not ended")
	}
	stop()
	if err := *fatal.Load(); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("Fatal got %v", err)
	}
	want := c.acknowledged()
	for k := range want {
		if err := c.wrong(s, want, k); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := get(s, key(0)); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("View afterwards: %v", err)
	}
	crashed := crash(t, o)
	c.mustHold(t, crashed)
	return c, crashed
}
