package badgerkv

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/prototypster/pdvault/vault/kv"
)

// fakeDisk is a file system of which the test says how much is free, apart from the ballast, which it
// counts as a real one would.
type fakeDisk struct {
	ballast int64
	free    atomic.Int64
	broken  atomic.Bool
}

func (d *fakeDisk) statfs(dir string) (fsInfo, error) {
	if d.broken.Load() {
		return fsInfo{}, errors.New("no answer")
	}
	info := fsInfo{magic: 0xef53, total: 1 << 30, free: d.free.Load()}
	if _, err := os.Stat(filepath.Join(dir, ballastFile)); err == nil {
		info.free -= d.ballast
	}
	return info, nil
}

// has sets the free space and has the guard look at it.
func (d *fakeDisk) has(s *Store, free int64) {
	d.free.Store(free)
	s.space.check()
}

const (
	testReadOnly = 40 << 20
	testReserve  = 20 << 20
	testBallast  = 10 << 20
)

func onFakeDisk(t *testing.T) (*fakeDisk, Options) {
	disk := &fakeDisk{ballast: testBallast}
	disk.free.Store(1 << 30)
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	o.Space = Space{ReadOnly: testReadOnly, Reserve: testReserve, Ballast: testBallast}
	o.hooks.statfs = disk.statfs
	return disk, o
}

func wantWriters(t *testing.T, s *Store, ordinary, reserve bool) {
	t.Helper()
	for _, c := range []struct {
		name string
		ctx  context.Context
		may  bool
	}{
		{"ordinary", context.Background(), ordinary},
		{"reserve", kv.UseReserve(context.Background()), reserve},
	} {
		err := put(c.ctx, s, c.name, "x")
		if c.may && err != nil {
			t.Errorf("%s write: %v", c.name, err)
		}
		if !c.may && !errors.Is(err, kv.ErrStorageFull) {
			t.Errorf("%s write: error is %v, want ErrStorageFull", c.name, err)
		}
	}
	if st := s.Stats(); st.Writable != ordinary || st.ReserveOK != reserve {
		t.Errorf("stats say %+v", st)
	}
	wantValue(t, s, "first", "x") // reads go on
}

func wantBallast(t *testing.T, s *Store, want bool) {
	t.Helper()
	n, err := allocated(s.space.ballastPath())
	if there := err == nil; there != want || s.Stats().Ballast != want {
		t.Errorf("ballast is there: %t, stats say %t, want %t", there, s.Stats().Ballast, want)
	}
	if want && n < testBallast {
		t.Errorf("ballast takes %d bytes, want %d", n, int64(testBallast))
	}
}

func TestSpaceGuard(t *testing.T) {
	disk, o := onFakeDisk(t)
	s := mustCreate(t, o)
	mustPut(t, s, "first", "x")
	wantWriters(t, s, true, true)
	wantBallast(t, s, true)

	disk.has(s, testBallast+testReadOnly) // exactly the limit is enough
	wantWriters(t, s, true, true)
	disk.has(s, testBallast+testReadOnly-1)
	wantWriters(t, s, false, true)
	wantBallast(t, s, true)
	disk.has(s, testBallast+testReserve)
	wantWriters(t, s, false, true)
	wantBallast(t, s, true)

	disk.has(s, testBallast+testReserve-1) // the ballast is what the reserve now lives on
	wantBallast(t, s, false)
	wantWriters(t, s, false, true)
	disk.has(s, testReserve-1)
	wantWriters(t, s, false, false)

	disk.has(s, testReadOnly+testBallast-1) // writable again, but no room for the ballast yet
	wantWriters(t, s, true, true)
	wantBallast(t, s, false)
	disk.has(s, testReadOnly+testBallast)
	wantWriters(t, s, true, true)
	wantBallast(t, s, true)
}

func TestSpaceThatCannotBeReadIsNoSpace(t *testing.T) {
	disk, o := onFakeDisk(t)
	s := mustCreate(t, o)
	mustPut(t, s, "first", "x")
	disk.broken.Store(true)
	s.space.check()
	wantWriters(t, s, false, false)
	disk.broken.Store(false)
	s.space.check()
	wantWriters(t, s, true, true)
}

func TestOpenOnAFullDisk(t *testing.T) {
	disk, o := onFakeDisk(t)
	s := mustCreate(t, o)
	mustPut(t, s, "first", "x")
	crashed := crash(t, o)
	disk.free.Store(testBallast) // nothing is free but for the ballast
	s2 := mustOpen(t, crashed)
	wantWriters(t, s2, false, false)
	wantBallast(t, s2, false)
	mustClose(t, s2)

	crashed = crash(t, o)
	before := hashDir(t, crashed.Dir)
	disk.free.Store(testBallast / 1000)
	if _, err := Open(context.Background(), crashed); !errors.Is(err, kv.ErrStorageFull) {
		t.Errorf("Open without space for recovery: %v", err)
	}
	if hashDir(t, crashed.Dir) != before {
		t.Error("a refused Open changed the directory")
	}
	o.Dir = filepath.Join(t.TempDir(), "new")
	if _, err := Create(context.Background(), o); !errors.Is(err, kv.ErrStorageFull) {
		t.Errorf("Create on a full disk: %v", err)
	}
}

func TestDefaultLimits(t *testing.T) {
	o, err := Options{Dir: "x"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	const mib, gib = 1 << 20, 1 << 30
	for total, want := range map[int64]limits{
		10 * gib:  {readOnly: gib, reserve: gib * 3 / 4, ballast: 256 * mib},
		100 * gib: {readOnly: 5 * gib, reserve: 192*mib + 8*(256*mib/5+32*mib) + 1, ballast: 256 * mib},
	} {
		if got := o.limits(total); got != want {
			t.Errorf("limits of %d GiB are %+v, want %+v", total/gib, got, want)
		}
	}
	o.MemTableSize = 512 * mib
	if got := o.limits(10 * gib).readOnly; got != 3*(2*512+2*64)*mib {
		t.Errorf("limit with large memtables is %d", got)
	}
	o.Space = Space{ReadOnly: 100, Ballast: -1}
	if got, want := o.limits(10*gib), (limits{readOnly: 100, reserve: 75}); got != want {
		t.Errorf("limits are %+v, want %+v", got, want)
	}
	o.Space = Space{ReadOnly: 100, Reserve: 200, Ballast: -1}
	if got, want := o.limits(10*gib), (limits{readOnly: 100, reserve: 100}); got != want {
		t.Errorf("limits are %+v, want %+v", got, want)
	}
	o.Space = Space{ReadOnly: -1, Reserve: -1, Ballast: -1}
	if got := o.limits(10 * gib); got != (limits{}) {
		t.Errorf("no limits are %+v", got)
	}
}

// TestFullFileSystem fills a real file system under an open store.
func TestFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=96m,mode=0700"); err != nil {
		t.Skipf("needs the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	o := testOptions(t, dir)
	o.Space = Space{ReadOnly: testReadOnly, Reserve: testReserve, Ballast: testBallast}
	s := mustCreate(t, o)
	mustPut(t, s, "first", "x")
	wantWriters(t, s, true, true)
	wantBallast(t, s, true)

	filler := filepath.Join(dir, "lost+found") // a name that the store takes no notice of
	take := func(leave int64) {
		t.Helper()
		info, err := statfs(dir)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		have, err := allocated(filler)
		if err == nil {
			err = allocate(f, have+info.free-leave)
		}
		if err != nil {
			t.Fatal(err)
		}
		s.space.check()
	}
	take(testReadOnly - 1<<20)
	wantWriters(t, s, false, true)
	wantBallast(t, s, true)
	take(testReserve - 1<<20)
	wantBallast(t, s, false)
	wantWriters(t, s, false, true)
	take(testReserve - 1<<20)
	wantWriters(t, s, false, false)
	mustRemove(t, filler)
	s.space.check()
	wantWriters(t, s, true, true)
	wantBallast(t, s, true)
	mustClose(t, s)
}
