package badgerkv

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
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

// onFullDisk is a store in which a compaction waits for room.
func onFullDisk(t *testing.T, fatal func(error)) (*Store, *fakeDisk, *churn, *points) {
	disk, o := onFakeDisk(t)
	o.MemTableSize, o.NumMemtables = 1<<20, 2
	var p points
	o.hooks.compacting, o.hooks.impatient = p.at, true
	o.Fatal = fatal
	s := mustCreate(t, o)
	var refused atomic.Int64
	s.compactions.mu.Lock()
	s.compactions.room = func() error {
		err := s.opts.room()
		if errors.Is(err, unix.ENOSPC) {
			refused.Add(1)
		}
		return err
	}
	s.compactions.mu.Unlock()
	disk.free.Store(testReserve - 1)
	c := newChurn(s)
	for refused.Load() < 5 {
		if s.db.Levels()[0].NumTables >= compactTables {
			time.Sleep(time.Millisecond)
			continue
		}
		s.space.level.Store(int32(levelOpen)) // or nothing would be written that asks for a compaction
		if err := c.put(); err != nil && !errors.Is(err, kv.ErrStorageFull) {
			t.Fatal(err)
		}
	}
	return s, disk, c, &p
}

// quiet returns when the engine no longer makes or removes files, so that a copy of them is of one moment.
func quiet(t *testing.T, dir string) {
	t.Helper()
	var before map[string]bool
	for same := 0; same < 10; time.Sleep(50 * time.Millisecond) {
		now, err := list(dir)
		if err != nil {
			t.Fatal(err)
		}
		if same++; !maps.Equal(now, before) {
			same, before = 0, now
		}
	}
}

// On a full disk compactions wait, however long, and answers are right; with room again everything goes on.
func TestCompactionsWaitForRoom(t *testing.T) {
	s, disk, c, p := onFullDisk(t, func(err error) { t.Errorf("the store has ended: %v", err) })
	if n := p.count("announced"); n > 0 {
		t.Errorf("%d tables of compactions were written on a full disk", n)
	}
	for i := range 20 {
		if err := c.wrong(s, c.acknowledged(), key(i)); err != nil {
			t.Error(err)
		}
	}
	disk.has(s, 1<<30)
	for p.count("done") < 3 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, s)
	c.mustHold(t, s.opts)
}

// A store closes on a full disk, though a compaction cannot go on, and loses nothing.
func TestCloseWhileACompactionWaitsForRoom(t *testing.T) {
	s, disk, c, _ := onFullDisk(t, func(err error) { t.Errorf("the store has ended: %v", err) })
	if err := s.Close(); !errors.Is(err, kv.ErrStorageFull) {
		t.Errorf("Close: %v", err)
	}
	if _, err := os.Stat(filepath.Join(s.opts.Dir, cleanFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stop counts as clean: %v", err)
	}
	disk.free.Store(1 << 30)
	quiet(t, s.opts.Dir)
	c.mustHold(t, crash(t, s.opts))
}

// When a commit waits for a compaction that waits for room, and so everybody, the store ends, for the next start to serve.
func TestAStallOnAFullDiskEndsTheStore(t *testing.T) {
	ended := make(chan error, 1)
	s, disk, c, _ := onFullDisk(t, func(err error) { ended <- err })
	go func() { // the last commit never returns
		for s.stopped() == nil {
			s.space.level.Store(int32(levelOpen)) // as if the disk had become full in the middle of a commit
			_ = c.put()
		}
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("the store has ended: %v", err)
		}
	case <-time.After(3 * time.Minute):
		t.Fatal("the store has not ended")
	}
	quiet(t, s.opts.Dir)
	image := crash(t, s.opts)
	image.Fatal = func(err error) { t.Errorf("nobody writes, and the store has ended again: %v", err) }
	open := mustOpen(t, image)
	time.Sleep(1500 * time.Millisecond) // compactors begin within the first second
	if n := open.db.Levels()[0].NumTables; n < stallTables {
		t.Errorf("level 0 has %d tables, so nothing is shown", n)
	}
	defer mustClose(t, open)
	defer disk.free.Store(1 << 30)
	for k, want := range c.acknowledged() {
		if err := c.wrong(open, map[string]int{k: want}, k); err != nil {
			t.Error(err)
		}
	}
}

// What is deleted while the first compaction is under way, for longer than the engine leaves new tables alone, stays
// deleted. Where more tables may come meanwhile the engine compacts those among themselves and drops the deletion, whenever
// its second compactor has the first compaction.
func TestADeletionOutlivesALongCompaction(t *testing.T) {
	const leftAlone = 10 * time.Second // tables that are younger; see fillTablesL0ToL0 in Badger's levels.go
	o := compacting(t)
	goOn := make(chan struct{})
	var p points
	p.then = func(point string, times int) {
		if point == "announced" && times == 1 {
			<-goOn
		}
	}
	o.hooks.compacting = p.at
	s := mustCreate(t, o)
	c := newChurn(s)
	if err := put(t.Context(), s, "victim", "value"); err != nil {
		t.Fatal(err)
	}
	for p.count("announced") == 0 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Update(t.Context(), func(w kv.Writer) error { w.Delete([]byte("victim")); return nil }); err != nil {
		t.Fatal(err)
	}
	writing := make(chan error)
	go func() { // writers wait for the compaction at some time
		var err error
		for n := 0; n < 600 && err == nil; n++ {
			err = c.put()
		}
		writing <- err
	}()
	time.Sleep(leftAlone + 2*time.Second)
	close(goOn)
	if err := <-writing; err != nil {
		t.Fatal(err)
	}
	for p.count("done") < 3 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
	}
	err := s.View(t.Context(), func(r kv.Reader) error {
		values, err := r.Get([]byte("victim"))
		if err == nil && values[0] != nil {
			t.Error("what was deleted is there again")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	mustClose(t, s)
	c.mustHold(t, o)
}

// There is room for a compaction whenever somebody may write, so that no writer has to wait for one that waits for room.
func TestThereIsRoomForACompactionWheneverSomebodyMayWrite(t *testing.T) {
	disk, o := onFakeDisk(t)
	s := mustCreate(t, o)
	defer mustClose(t, s)
	for _, free := range []int64{0, testReserve - 1, testReserve, testReadOnly - 1, testReadOnly, 1 << 30} {
		disk.has(s, free)
		err := o.room()
		if writes := s.space.admit(kv.UseReserve(t.Context())) == nil; writes && err != nil || err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%d free: writers %t, %v", free, writes, err)
		}
		if free < testReserve-testBallast && err == nil {
			t.Errorf("room in %d", free)
		}
	}
	disk.broken.Store(true)
	if o.room() == nil {
		t.Error("room on a file system that does not answer")
	}
	disk.broken.Store(false)
	disk.free.Store(testBallast + 1)
	o.Space = Space{ReadOnly: -1, Reserve: -1}
	if err := o.room(); err != nil {
		t.Errorf("the guard is off: %v", err)
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
	reads atomic.Int64

	pausing atomic.Bool
	pause   sync.RWMutex // held for reading by writers
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
			passed(&e.reads, 100)
		}
	}
	e.o, e.s = o, mustCreate(t, o)
	e.churn = newChurn(e.s)
	e.stop = e.churn.readers(t, 3, &e.reads)
	for range 2 {
		go func() { // never ends where a commit waits for the compaction
			for {
				for e.pausing.Load() {
					time.Sleep(time.Millisecond)
				}
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

// still keeps writers from writing until goOn is called. It is false if one is not going to end: it waits for a compaction.
func (e *ending) still() bool {
	e.pausing.Store(true)
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if e.pause.TryLock() {
			return true
		}
	}
	e.pausing.Store(false)
	return false
}

func (e *ending) goOn() {
	e.pausing.Store(false)
	e.pause.Unlock()
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
	quiet(t, e.o.Dir)
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
	var mu sync.Mutex
	var done bool
	var e *ending
	p.then = func(point string, _ int) {
		if point != "announced" || p.count("done") < 1 {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if !done && e.still() { // or a commit would end the store before the compaction does
			done = true
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
				e.goOn()
			})
		}
	}
	ready := make(chan struct{})
	o.hooks.compacting = func(point string) { <-ready; p.at(point) }
	e = newEnding(t, o)
	close(ready)
	e.await(t)
}
