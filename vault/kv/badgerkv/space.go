package badgerkv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prototypster/pdvault/vault/kv"
)

const spaceInterval = time.Second

// level says who may write.
type level int32

const (
	levelOpen    level = iota // everybody
	levelReserve              // contexts from kv.UseReserve
	levelFull                 // nobody
)

func (l level) String() string { return [...]string{"open", "reserve", "full"}[l] }

// limits are the bytes of Space after defaults.
type limits struct{ readOnly, reserve, ballast int64 }

func (o Options) limits(total int64) limits {
	l := limits{readOnly: o.Space.ReadOnly, reserve: o.Space.Reserve, ballast: o.Space.Ballast}
	if l.readOnly == 0 {
		l.readOnly = max(1<<30, total/20, 3*o.mappedLogs())
	}
	if l.reserve == 0 {
		l.reserve = min(o.mappedLogs()+o.compaction(), max(l.readOnly, 0)*3/4)
	}
	if l.ballast == 0 {
		l.ballast = 256 << 20
	}
	l = limits{max(l.readOnly, 0), max(l.reserve, 0), max(l.ballast, 0)}
	l.reserve = min(l.reserve, l.readOnly)
	return l
}

// room is an error that wraps ENOSPC if there is none for a compaction: it may write all it reads before it deletes any of
// it. The guard admits no writer then, so nobody has to wait for the compaction. Where the guard is off, there always is.
func (o Options) room() error {
	info, err := o.hooks.statfs(o.Dir)
	if err != nil {
		return err
	}
	if lim := o.limits(info.total); info.free < lim.reserve {
		return fmt.Errorf("badgerkv: %d bytes free, %d needed: %w", info.free, lim.reserve, syscall.ENOSPC)
	}
	return nil
}

// spaceGuard watches the free space of the store's file system. Badger cannot: it writes to holes in
// mapped files, where a full disk is a SIGBUS.
type spaceGuard struct {
	dir    string
	limits limits
	statfs func(string) (fsInfo, error)
	log    *slog.Logger

	level       atomic.Int32 // of type level; read by each Update
	free, total atomic.Int64
	ballast     atomic.Bool // the ballast file is in place

	mu sync.Mutex // one check at a time: a check may create or remove the ballast

	quit chan struct{}
	done chan struct{}
}

// newSpaceGuard looks at the file system once and then each second until stop.
func newSpaceGuard(o Options, lim limits) *spaceGuard {
	g := &spaceGuard{
		dir: o.Dir, limits: lim, statfs: o.hooks.statfs, log: o.Logger,
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	// A copied ballast is a hole: it counts only if it really takes the space.
	size, err := allocated(g.ballastPath())
	g.ballast.Store(err == nil && size >= lim.ballast)
	g.check()
	go g.watch()
	return g
}

func (g *spaceGuard) watch() {
	defer close(g.done)
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.check()
		case <-g.quit:
			return
		}
	}
}

func (g *spaceGuard) stop() {
	close(g.quit)
	<-g.done
}

// admit returns kv.ErrStorageFull if ctx may not write now.
func (g *spaceGuard) admit(ctx context.Context) error {
	switch l := level(g.level.Load()); {
	case l == levelOpen, l == levelReserve && kv.ReserveAllowed(ctx):
		return nil
	default:
		return fmt.Errorf("badgerkv: %d bytes free: %w", g.free.Load(), kv.ErrStorageFull)
	}
}

// check sets the level, and gives up the ballast or takes it back.
func (g *spaceGuard) check() {
	g.mu.Lock()
	defer g.mu.Unlock()
	free, ok := g.look()
	if ok && free < g.limits.reserve && g.ballast.Load() {
		g.dropBallast()
		free, ok = g.look()
	}
	if ok && free >= g.limits.readOnly+g.limits.ballast && g.limits.ballast > 0 && !g.ballast.Load() {
		g.takeBallast()
		free, ok = g.look()
	}
	g.set(free, ok)
}

func (g *spaceGuard) look() (free int64, ok bool) {
	info, err := g.statfs(g.dir)
	if err != nil {
		g.log.Error("free space cannot be read, store is read-only", "error", err)
		return 0, false
	}
	g.free.Store(info.free)
	g.total.Store(info.total)
	return info.free, true
}

func (g *spaceGuard) set(free int64, ok bool) {
	next := levelOpen
	switch {
	case !ok, free < g.limits.reserve:
		next = levelFull
	case free < g.limits.readOnly:
		next = levelReserve
	}
	if prev := level(g.level.Swap(int32(next))); prev != next {
		g.log.Warn("writing to the store", "was", prev.String(), "is", next.String(), "free", free)
	}
}

func (g *spaceGuard) ballastPath() string { return filepath.Join(g.dir, ballastFile) }

// takeBallast never fails the caller: a store without ballast is worse, but not wrong.
func (g *spaceGuard) takeBallast() {
	f, err := os.OpenFile(g.ballastPath(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err == nil {
		err = allocate(f, g.limits.ballast)
		if err == nil {
			err = f.Sync() // some file systems allocate only then
		}
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}
	if err != nil {
		g.log.Warn("ballast cannot be allocated", "error", err)
		g.dropBallast()
		return
	}
	g.ballast.Store(true)
}

func (g *spaceGuard) dropBallast() {
	if err := os.Remove(g.ballastPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.log.Error("ballast cannot be removed", "error", err)
		return
	}
	g.ballast.Store(false)
}

// Stats are figures for metrics and readiness.
type Stats struct {
	TableBytes     int64 // in tables; Badger counts once a minute
	LogBytes       int64 // in value logs; theirs is the size of the map, not of the data
	FreeBytes      int64 // on the file system, at the last look
	TotalBytes     int64
	Writable       bool  // ordinary Updates are admitted
	ReserveOK      bool  // Updates with kv.UseReserve are admitted
	Ballast        bool  // the ballast is in place
	DamagedReads   int64 // reads that met damage; any above zero needs an operator
	FailedToCommit bool  // a commit or a compaction failed, and the process ought to have ended
}

// Stats may be called at any time, also after Close.
func (s *Store) Stats() Stats {
	tables, logs := s.db.Size()
	l, failed := level(s.space.level.Load()), s.failed.Load() != nil
	return Stats{
		TableBytes: tables, LogBytes: logs,
		FreeBytes: s.space.free.Load(), TotalBytes: s.space.total.Load(),
		Writable: l == levelOpen && !failed, ReserveOK: l <= levelReserve && !failed,
		Ballast:      s.space.ballast.Load(),
		DamagedReads: s.damage.Load(), FailedToCommit: failed,
	}
}
