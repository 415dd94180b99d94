package badgerkv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/prototypster/pdvault/vault/kv"
)

// A compaction that begins while the store closes may lose what was flushed meanwhile too. Its logs are still there.
func TestALossWhileClosingIsUndone(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		t.Run(fmt.Sprintf("what it makes is damaged: %t", damaged), func(t *testing.T) {
			for tries := 1; !loseWhileClosing(t, damaged); tries++ {
				if tries == 5 {
					t.Fatal("nothing was compacted while the store closed")
				}
			}
		})
	}
}

// loseWhileClosing has a compaction lose its output while the store closes: it cannot write it, or what it writes is damaged. It
// is false if there was none: the last one may have begun just before.
func loseWhileClosing(t *testing.T, damaged bool) bool {
	o := compacting(t)
	o.NumMemtables = 5
	var fatal atomic.Int32
	o.Fatal = func(error) { fatal.Add(1) }
	var p points
	var s *Store
	closing := func() bool { s.compactions.mu.Lock(); defer s.compactions.mu.Unlock(); return s.compactions.closing }
	closes, compacts := make(chan struct{}), make(chan struct{})
	var begins, flips sync.Once
	p.then = func(point string, n int) {
		switch {
		case point == "held":
			select {
			case <-compacts:
			case <-time.After(5 * time.Second):
			}
		case damaged && point == "done" && closing():
			flips.Do(func() { flipOutput(t, s, func([]byte) int { return 100 }) })
		case point == "announced" && closing():
			begins.Do(func() {
				if !damaged {
					obstruct(t, o.Dir, 0, 400)
				}
				close(compacts)
			})
		case point == "announced" && p.count("done") == 1:
			<-closes // so that there is more to compact when it is over
		}
	}
	o.hooks.compacting = p.at
	s = mustCreate(t, o)
	c := newChurn(s)
	more := 300 // which wait in memtables
	for p.count("done") < 1 || s.db.Levels()[0].NumTables < stallTables || more > 0 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
		if s.db.Levels()[0].NumTables == stallTables {
			more--
		}
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for !s.isClosed() {
		time.Sleep(time.Millisecond)
	}
	close(closes)
	err := <-closed
	select {
	case <-compacts:
	default:
		return false
	}
	if !errors.Is(err, kv.ErrIntegrity) || fatal.Load() != 1 {
		t.Errorf("Close: %v, Fatal was called %d times", err, fatal.Load())
	}
	if _, err := os.Stat(filepath.Join(o.Dir, cleanFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stop counts as clean: %v", err)
	}
	quiet(t, o.Dir)
	crashed := crash(t, o)
	wantUndo(t, crashed)
	c.mustHold(t, crashed)
	return true
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
		o.hooks.tune = func(o badger.Options) badger.Options {
			return manyLevels(o).WithNumLevelZeroTablesStall(15) // a flush must not wait for the compaction that waits for it
		}
		o.Fatal = func(error) {}
		var p points
		var s *Store
		var once sync.Once
		var writing sync.Mutex
		var enough bool // guarded by writing: nothing is written while images are made
		o.hooks.compacting = func(point string) {
			p.at(point)
			if p.count("done") < 3 {
				return
			}
			writing.Lock()
			enough = true
			writing.Unlock()
			for flushing := true; flushing; { // or the image would not be of one moment
				logs, err := memLogs(o.Dir)
				if err != nil {
					t.Error(err)
				}
				if flushing = len(logs) > 1; flushing {
					time.Sleep(time.Millisecond)
				}
			}
			if bad && point == "announced" { // not before, or the flush would use up what is taken
				once.Do(func() { obstruct(t, o.Dir, 0, 400) })
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
		for imaged() < 3 && s.stopped() == nil {
			writing.Lock()
			for n := 0; n < 10 && !enough && s.db.Levels()[0].NumTables < 6; n++ {
				if c.put() != nil {
					break
				}
			}
			writing.Unlock()
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
