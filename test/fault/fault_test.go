package fault

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// bin is the directory of the programs under test.
var bin string

func TestMain(m *testing.M) {
	Shim()
	flag.Parse()
	if testing.Short() {
		fmt.Println("fault: skipped with -short: it builds and breaks the programs")
		return
	}
	if code, done := Isolate(); done {
		os.Exit(code)
	}
	os.Exit(stack.Programs("../..", func(dir string) int {
		bin = dir
		return m.Run()
	}))
}

// trial is the short form of a trial: few faults, each told in the log of the test.
func trial(t *testing.T, n int) Trial {
	t.Helper()
	dir, err := os.MkdirTemp("", "pdf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Trial{Bin: bin, Dir: dir, Seed: 1, N: n, Log: t.Logf}
}

func needs(t *testing.T, missing ...func() string) {
	t.Helper()
	for _, why := range missing {
		if why := why(); why != "" {
			t.Skip(why)
		}
	}
}

// damaged is a trial with the fixtures that all tests share.
func damaged(t *testing.T, n int) Trial {
	t.Helper()
	one := trial(t, n)
	var err error
	if one.Fixtures, err = shared(); err != nil {
		t.Fatal(err)
	}
	return one
}

var shared = sync.OnceValues(func() (map[string]fixture, error) {
	return Fixtures(context.Background(), Trial{Bin: bin, Dir: bin, Seed: 1})
})

// held fails the test when a promise was broken, or when nothing was done.
func held(t *testing.T, r Result, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range r.Broken {
		t.Error(b)
	}
	if r.Count == 0 {
		t.Error("nothing was broken, so nothing was shown")
	}
	t.Logf("%s: %d faults, %d recovered, %d refused, %d integrity errors, %d requests acknowledged, %v",
		r.Fault, r.Count, r.Recovered, r.Refused, r.Integrity, r.Acknowledged, r.Took)
}

// Whichever program is killed under load: every acknowledged write is there afterwards, every served read is on
// record, nothing erased opens, and the log verifies.
func TestKillingEitherProgramLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	r, err := Kills(t.Context(), trial(t, 6))
	held(t, r, err)
}

// Who gets no more memory may die of it, and loses nothing.
func TestAProgramWithoutMemoryLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	r, err := Starve(t.Context(), trial(t, 2))
	held(t, r, err)
}

func TestAClockThatIsSetLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	r, err := Clocks(t.Context(), trial(t, 5))
	held(t, r, err)
}

func TestAPowerCutLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	needs(t, DisksMissing)
	r, err := Cuts(t.Context(), trial(t, 4))
	held(t, r, err)
}

func TestPowerCutsOfProgramsThatDoNotSyncAreNoticed(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	needs(t, DisksMissing, StraceMissing)
	if err := ControlCut(t.Context(), trial(t, 1)); err != nil {
		t.Error(err)
	}
}

func TestAFlippedBitIsRefusedOrHarmless(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	r, err := Flips(t.Context(), damaged(t, 8))
	held(t, r, err)
}

func TestAFlippedBitUnderRunningProgramsIsRefusedOrHarmless(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	r, err := FlipsRunning(t.Context(), damaged(t, 6))
	held(t, r, err)
}

func TestALostFileIsRefusedOrHarmless(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	r, err := Losses(t.Context(), damaged(t, 8))
	held(t, r, err)
}

func TestBothStoresPutBackTogetherAreNoticedByTheCheckers(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	if err := ControlLosses(t.Context(), damaged(t, 1)); err != nil {
		t.Error(err)
	}
}

func TestTheNthFailedCallLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	needs(t, StraceMissing)
	for _, one := range []struct {
		op   string
		kind calls
	}{{"create", allCalls[0]}, {"erase", allCalls[3]}} {
		for _, op := range operations {
			if op.name == one.op {
				r, err := sweep(t.Context(), trial(t, 3), []operation{op}, []calls{one.kind}, false)
				held(t, r, err)
			}
		}
	}
}

func TestAProgramThatOverlooksErrorsIsNoticed(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	needs(t, StraceMissing)
	if err := ControlSweep(t.Context(), trial(t, 0)); err != nil {
		t.Error(err)
	}
}

func TestTheCheckersNoticeWhatNeverHappened(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	if err := ControlCheckers(t.Context(), trial(t, 1)); err != nil {
		t.Error(err)
	}
}

func TestADiskLeavesNothingBehind(t *testing.T) {
	t.Parallel() // most of the time programs that start are waited for
	needs(t, DisksMissing)
	dir := trial(t, 0).Dir
	mount, image := filepath.Join(dir, "m"), filepath.Join(dir, "image")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := NewDisk(t.Context(), image, mount, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mount, "unsynced"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Cut(); err != nil {
		t.Error(err)
	}
	if err := d.Unmount(); err != nil {
		t.Error(err)
	}
	if err := d.Mount(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(mount, "unsynced")); err == nil {
		t.Error("what was not synced outlived the cut")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	out, err := exec.Command("losetup", "-a").Output()
	if err != nil || strings.Contains(string(out), image) {
		t.Errorf("the loop device is left behind (error %v):\n%s", err, out)
	}
}
