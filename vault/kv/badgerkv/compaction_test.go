package badgerkv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

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
	stop := c.readers(t, 2, new(atomic.Int64))
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
	for _, n := range []int{0, 1, 3, 6} {
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
	cases := map[string]struct {
		after       int // compactions that are let pass
		skip, taken int // tables that are let pass, and that are not
		levels      bool
	}{
		"all of the first":  {0, 0, 400, false},
		"one of the first":  {0, 0, 1, false},
		"all of a later":    {2, 0, 400, false},
		"one of a later":    {2, 1, 1, false},
		"all among levels":  {8, 0, 400, true},
		"some among levels": {9, 1, 2, true},
		"one among levels":  {13, 0, 1, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o := compacting(t)
			if c.levels {
				o.hooks.tune = manyLevels
			}
			var p points
			var once sync.Once
			p.then = func(point string, _ int) {
				if point == "announced" && p.count("done") >= c.after {
					once.Do(func() { obstruct(t, o.Dir, c.skip, c.taken) })
				}
			}
			o.hooks.compacting = p.at
			newEnding(t, o).await(t)
		})
	}
}

// manyLevels makes small tables, and of few megabytes several levels.
func manyLevels(o badger.Options) badger.Options {
	return o.WithBaseTableSize(128 << 10).WithBaseLevelSize(512 << 10).WithLevelSizeMultiplier(2)
}

// ending is a store under load that is going to end itself.
type ending struct {
	o     Options
	s     *Store
	churn *churn
	ended chan struct{}
	cause atomic.Pointer[error]
	stop  func() // of the readers
	pause sync.RWMutex
	reads atomic.Int64
}

func newEnding(t *testing.T, o Options) *ending {
	e := &ending{ended: make(chan struct{})}
	o.Fatal = func(err error) {
		if e.cause.CompareAndSwap(nil, &err) {
			close(e.ended)
		}
	}
	compacting := o.hooks.compacting
	o.hooks.compacting = func(point string) {
		compacting(point)
		if point == "done" { // readers get time to see what there is now
			for seen := e.reads.Load(); e.reads.Load() < seen+100; {
				time.Sleep(time.Millisecond)
			}
		}
	}
	e.o, e.s = o, mustCreate(t, o)
	e.churn = newChurn(e.s)
	e.stop = e.churn.readers(t, 3, &e.reads)
	for range 2 {
		go func() { // never ends where a commit waits for the compaction
			for {
				e.pause.RLock()
				err := e.churn.put()
				e.pause.RUnlock()
				if err != nil {
					return
				}
			}
		}()
	}
	return e
}

// await waits for the end, and opens what is left.
func (e *ending) await(t *testing.T) {
	t.Helper()
	select {
	case <-e.ended:
	case <-time.After(3 * time.Minute):
		t.Fatal("the store has not ended")
	}
	e.stop()
	if err := *e.cause.Load(); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("Fatal got %v", err)
	}
	if _, _, err := get(e.s, key(0)); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("View afterwards: %v", err)
	}
	crashed := crash(t, e.o)
	wantUndo(t, crashed)
	e.churn.mustHold(t, crashed)
}

// wantUndo makes sure that there is something to put back: else the test would show nothing.
func wantUndo(t *testing.T, o Options) *undo {
	t.Helper()
	plan, err := planUndo(o, false)
	if err != nil {
		t.Fatal(err)
	}
	if plan == nil || plan.lost == 0 {
		t.Fatalf("nothing is to be put back: %+v", plan)
	}
	return plan
}

// Without descriptors no table can be written, nor anything be recorded. The compaction waits until it can be.
func TestACompactionWithoutDescriptorsLosesNothing(t *testing.T) {
	o := compacting(t)
	var p points
	var once sync.Once
	var e *ending
	p.then = func(point string, _ int) {
		if point != "announced" || p.count("done") < 1 {
			return
		}
		once.Do(func() {
			e.pause.Lock() // or a commit would end the store before the compaction does
			var limit unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				t.Error(err)
			}
			none := limit
			none.Cur = 3
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
				t.Error(err)
			}
			time.AfterFunc(time.Second, func() {
				if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
					t.Error(err)
				}
				e.pause.Unlock()
			})
		})
	}
	ready := make(chan struct{})
	o.hooks.compacting = func(point string) { <-ready; p.at(point) }
	e = newEnding(t, o)
	close(ready)
	e.await(t)
}

// A compaction that begins while the store closes may lose what was flushed meanwhile too. Its logs are still there.
func TestALossWhileClosingIsUndone(t *testing.T) {
	o := compacting(t)
	o.NumMemtables = 5
	var fatal atomic.Int32
	o.Fatal = func(error) { fatal.Add(1) }
	var p points
	closes := make(chan struct{})
	var once sync.Once
	p.then = func(point string, n int) {
		switch {
		case point == "held":
			for begun := p.count("announced"); p.count("announced") == begun; {
				time.Sleep(time.Millisecond)
			}
		case point == "announced" && p.count("held") > 0:
			once.Do(func() { obstruct(t, o.Dir, 0, 400) })
		case point == "announced" && p.count("done") == 1:
			<-closes // so that there is more to compact when it is over
		}
	}
	o.hooks.compacting = p.at
	s := mustCreate(t, o)
	c := newChurn(s)
	for p.count("done") < 1 || s.db.Levels()[0].NumTables < 12 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for !s.isClosed() {
		time.Sleep(time.Millisecond)
	}
	close(closes)
	if err := <-closed; !errors.Is(err, kv.ErrIntegrity) || fatal.Load() != 1 {
		t.Errorf("Close: %v, Fatal was called %d times", err, fatal.Load())
	}
	if _, err := os.Stat(filepath.Join(o.Dir, cleanFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stop counts as clean: %v", err)
	}
	crashed := crash(t, o)
	wantUndo(t, crashed)
	c.mustHold(t, crashed)
}

func (s *Store) isClosed() bool {
	s.life.RLock()
	defer s.life.RUnlock()
	return s.closed
}

// A crash at any point of a compaction, and of undoing it, loses nothing.
func TestACrashWhileCompactingLosesNothing(t *testing.T) {
	for _, bad := range []bool{false, true} {
		images := map[string]Options{}
		o := compacting(t)
		o.hooks.tune = manyLevels
		o.Fatal = func(error) {}
		var p points
		var s *Store
		var once sync.Once
		o.hooks.compacting = func(point string) {
			p.at(point)
			if p.count("done") < 3 {
				return
			}
			if bad && point == "announced" {
				once.Do(func() { obstruct(t, o.Dir, 0, 400) })
			}
			for flushing := true; flushing; { // or the image would not be of one moment
				logs, err := memLogs(o.Dir)
				if err != nil {
					t.Error(err)
				}
				flushing = len(logs) > 1
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if _, ok := images[point]; !ok && (point == "announced" || len(images) > 0) {
				images[point] = crash(t, o)
			}
		}
		s = mustCreate(t, o)
		c := newChurn(s)
		imaged := func() int { p.mu.Lock(); defer p.mu.Unlock(); return len(images) }
		// Nothing is written while images are made.
		for imaged() < 3 && s.stopped() == nil {
			for s.db.Levels()[0].NumTables < 6 && imaged() == 0 && s.stopped() == nil {
				if err := c.put(); err != nil {
					break
				}
			}
			time.Sleep(time.Millisecond)
		}
		for point, image := range images {
			t.Run(fmt.Sprintf("%s, bad: %t", point, bad), func(t *testing.T) {
				if point == "done" {
					crashesOfUndo(t, c, image, bad)
				}
				c.mustHold(t, image)
			})
		}
	}
}

// crashesOfUndo are images of what Open does with a compaction that is in the MANIFEST.
func crashesOfUndo(t *testing.T, c *churn, image Options, bad bool) {
	if !bad { // as when the MANIFEST could not be synced: the engine removes what it names
		removed := crash(t, image)
		u, s := mustUnfinished(t, removed)
		for id := range u.made(s) {
			mustRemove(t, filepath.Join(removed.Dir, table.IDToFilename(id)))
		}
		wantUndo(t, removed)
		c.mustHold(t, removed)
		return
	}
	begun := crash(t, image)
	mustWrite(t, filepath.Join(begun.Dir, "MANIFEST.tmp"), []byte("half"))
	mustWrite(t, filepath.Join(begun.Dir, unfinishedFile+".tmp"), []byte("half"))
	c.mustHold(t, begun)

	replaced := crash(t, image)
	plan := wantUndo(t, replaced)
	if err := writeManifest(replaced, plan.header, plan.tables); err != nil {
		t.Fatal(err)
	}
	if again, err := planUndo(replaced, false); err != nil || again.tables != nil {
		t.Errorf("after the MANIFEST was put back: %+v, %v", again, err)
	}
	c.mustHold(t, replaced)

	// And as if the engine had written the MANIFEST anew.
	rewritten := crash(t, image)
	_, s := mustUnfinished(t, rewritten)
	if err := writeManifest(rewritten, plan.header, s.tables); err != nil {
		t.Fatal(err)
	}
	wantUndo(t, rewritten)
	c.mustHold(t, rewritten)

	damaged := crash(t, image)
	flip(t, filepath.Join(damaged.Dir, unfinishedFile), 10)
	before := hashDir(t, damaged.Dir)
	if _, err := Open(context.Background(), damaged); !errors.Is(err, kv.ErrIntegrity) || !strings.Contains(err.Error(), "backup") {
		t.Errorf("Open with a damaged record: %v", err)
	}
	if hashDir(t, damaged.Dir) != before {
		t.Error("Open changed the directory")
	}
}

func mustUnfinished(t *testing.T, o Options) (unfinished, since) {
	t.Helper()
	u, err := decodeUnfinished(mustRead(t, filepath.Join(o.Dir, unfinishedFile)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := u.since(mustRead(t, filepath.Join(o.Dir, "MANIFEST")))
	if err != nil {
		t.Fatal(err)
	}
	return u, s
}

// An engine that compacts without a word is not closed as if all were well.
func TestUnannouncedCompactionsAreNoticed(t *testing.T) {
	o := compacting(t)
	var fatal error
	o.Fatal = func(err error) { fatal = err }
	o.hooks.tune = func(o badger.Options) badger.Options {
		return o.WithLogger(engineLog{log: slog.New(slog.DiscardHandler)})
	}
	s := mustCreate(t, o)
	c := newChurn(s)
	for s.db.Levels()[6].NumTables == 0 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); !errors.Is(err, kv.ErrIntegrity) || !errors.Is(fatal, errUnannounced) {
		t.Errorf("Close: %v, Fatal got %v", err, fatal)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, cleanFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stop counts as clean: %v", err)
	}
}
