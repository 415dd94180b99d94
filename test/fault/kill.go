package fault

import (
	"context"
	"math/rand/v2"
	"time"
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
// that become tables, of epochs and of backups. The programs see it as a disk that fails; what they have acknowledged
// until they end must be on the disk when it is mounted again. Before, if not empty, stands before both programs.
func Cuts(ctx context.Context, t Trial, before ...string) (Result, error) {
	turn := 0
	return t.rounds(ctx, "power cut", Options{Memtable: 1 << 20, Disks: true}, Allow{Crash: true}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
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
		err := w.cut(victim)
		time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond) // nothing may be acknowledged now
		stop()
		if err != nil {
			return "", err
		}
		return "disk of " + victims[victim], w.remount(ctx)
	})
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
