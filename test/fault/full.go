package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// left is what another program leaves of a disk: between the limits of the free-space guard of the data, and nothing.
var left = []int64{48 << 20, 16 << 20, 0}

// Fills has another program fill the disk of the data, of the keys, or both, under load, for longer and shorter than the
// free-space guard takes to notice. A program may die of it; once there is space again, everything is there.
func Fills(ctx context.Context, t Trial) (Result, error) {
	return t.rounds(ctx, "full disk", Options{Memtable: 1 << 20, Disks: true}, Allow{Crash: true}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
		victim, leave := rng.IntN(len(victims)), left[rng.IntN(len(left))]
		stop := l.Run(ctx, Beside{Epochs: rng.IntN(2) == 0})
		time.Sleep(pause(rng))
		var err error
		if victim != 1 {
			err = w.Data.Fill(leave)
		}
		if victim != 0 {
			err = errors.Join(err, w.Keep.Fill(leave))
		}
		time.Sleep(time.Duration(100+rng.IntN(2400)) * time.Millisecond)
		stop()
		what := fmt.Sprintf("disk of %s has %d MiB left", victims[victim], leave>>20)
		if rng.IntN(2) == 0 {
			// A start on the full disk: it works, or is refused. Both are left behind at once.
			w.KillBoth()
			var refused *Refusal
			if e := w.Start(ctx); e != nil && !errors.As(e, &refused) {
				err = errors.Join(err, e)
			}
			what += ", and a start"
		}
		err = errors.Join(err, w.Data.Empty(), w.Keep.Empty())
		time.Sleep(guardLooks)
		return what, err
	})
}

// guardLooks is longer than the pause between two looks of the free-space guard.
const guardLooks = 1500 * time.Millisecond

func (d *Disk) filler() string { return filepath.Join(d.dir, "somebody-else") }

// Fill fills the disk but for some bytes.
func (d *Disk) Fill(leave int64) error {
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	// The last blocks go one by one: those who write meanwhile take some as well.
	for step := int64(1 << 30); step >= 4096; {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
			return err
		}
		if int64(fs.Bfree)*fs.Bsize-step < leave {
			step /= 2
			continue
		}
		switch err := unix.Fallocate(int(f.Fd()), 0, size, step); {
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case err != nil:
			return fmt.Errorf("filling a disk: %w", err)
		default:
			size += step
		}
	}
	return nil
}

// Empty takes away what Fill has put there.
func (d *Disk) Empty() error {
	if err := os.Remove(d.filler()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
