package fault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// victims are the programs that a fault hits at the same moment.
var victims = []string{"pdvault", "pdkeys", "both"}

// Kills ends pdvault, pdkeys or both with SIGKILL at random moments under load, an epoch and backups beside it.
func Kills(ctx context.Context, t Trial) (Result, error) {
	turn := 0
	return t.rounds(ctx, "kill -9", Options{Memtable: 1 << 20}, Allow{}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
		beside := Beside{Epochs: rng.IntN(2) == 0, Backups: rng.IntN(4) == 0}
		stop := l.Run(ctx, beside)
		time.Sleep(pause(rng))
		victim := turn % len(victims)
		turn++
		if victim != 1 {
			w.Vault.Kill()
		}
		if victim != 0 {
			w.Keys.Kill()
		}
		if victim == 1 && rng.IntN(2) == 0 {
			time.Sleep(pause(rng)) // pdvault goes on without it for a while
		}
		stop()
		return victims[victim], nil
	})
}

// Cuts cuts the power of the disk of pdvault, of pdkeys, or of both, under load: in the middle of commits, of memtables
// that become tables, of epochs and of backups. Both programs are stopped at that moment, as by a real cut: a kernel
// that goes on after it may report a sync as done that was not. What was acknowledged before must be on the disk when it
// is mounted again. Before, if not empty, stands before both programs.
func Cuts(ctx context.Context, t Trial, before ...string) (Result, error) {
	turn := 0
	return t.rounds(ctx, "power cut", Options{Memtable: 1 << 20, Disks: true}, Allow{}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
		if len(before) > 0 && w.RunKeys == nil {
			if err := w.StopBoth(); err != nil {
				return "", err
			}
			w.RunKeys, w.RunVault = before, before
			if err := w.Start(ctx); err != nil {
				return "", err
			}
		}
		stop := l.Run(ctx, Beside{Epochs: rng.IntN(2) == 0, Backups: rng.IntN(4) == 0})
		time.Sleep(pause(rng))
		victim := turn % len(victims)
		turn++
		err := errors.Join(frozen(w.Vault), frozen(w.Keys), w.cut(victim))
		w.KillBoth()
		stop()
		return "disk of " + victims[victim], errors.Join(err, w.remount(ctx))
	})
}

// Dying is Cuts with programs that go on: their disk dies under them. What they acknowledge afterwards is in doubt.
func Dying(ctx context.Context, t Trial) (Result, error) {
	turn := 0
	return t.rounds(ctx, "dying disk", Options{Memtable: 1 << 20, Disks: true}, Allow{Crash: true}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
		stop := l.Run(ctx, Beside{Epochs: rng.IntN(2) == 0, Backups: rng.IntN(4) == 0})
		time.Sleep(pause(rng))
		victim := turn % len(victims)
		turn++
		l.doubt.Store(true)
		err := w.cut(victim)
		time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		stop()
		l.doubt.Store(false)
		return "disk of " + victims[victim], errors.Join(err, w.remount(ctx))
	})
}

// frozen stops a program, and returns when none of its threads runs any more. One that is in the kernel will not come
// back from there.
func frozen(p *stack.Process) error {
	p.Freeze()
	for range 1000 {
		if still(p.PID()) {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("a program does not stop")
}

func still(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		// The name stands in parentheses and may hold spaces; the state follows, see proc(5).
		if at := bytes.LastIndexByte(b, ')') + 2; at < len(b) && !bytes.ContainsRune([]byte("TtDZX"), rune(b[at])) {
			return false
		}
	}
	return true
}

// cut cuts the power of the disks of victims[victim], as close together as can be.
func (w *World) cut(victim int) error {
	if victim != 1 {
		if err := w.Data.Cut(); err != nil {
			return err
		}
	}
	if victim != 0 {
		return w.Keep.Cut()
	}
	return nil
}

// remount ends the programs and mounts the disks again, as a machine does that starts.
func (w *World) remount(ctx context.Context) error {
	w.KillBoth()
	for _, d := range []*Disk{w.Data, w.Keep} {
		if err := d.Unmount(); err != nil {
			return err
		}
		if err := d.Mount(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Lies stands before a program and makes every sync succeed without being done: what it acknowledges is in memory
// only. It is the negative control of the power cut.
func Lies() []string {
	const syncs = "msync,fsync,fdatasync,sync_file_range"
	return []string{"strace", "-D", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=" + syncs, "-e", "inject=" + syncs + ":retval=0"}
}
