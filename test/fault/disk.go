package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is an ext4 file system in a file, whose power can be cut.
type Disk struct {
	image, dir string
	mounted    bool
}

// NewDisk makes a disk of size bytes, of which the file takes what is used, and mounts it at dir.
func NewDisk(ctx context.Context, image, dir string, size int64) (*Disk, error) {
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	if err := run(ctx, "mkfs.ext4", "-q", "-F", image); err != nil {
		return nil, err
	}
	d := &Disk{image: image, dir: dir}
	return d, d.Mount(ctx)
}

// Mount mounts the disk, which replays its journal as after a cut. The loop device goes away with the mount.
func (d *Disk) Mount(ctx context.Context) error {
	if err := run(ctx, "mount", "-o", "loop", d.image, d.dir); err != nil {
		return err
	}
	d.mounted = true
	return nil
}

// Cut is a power cut: what was not synced is gone, the journal's tail too, and nothing is written any more.
func (d *Disk) Cut() error {
	const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("cutting the power of %s: %w", d.dir, err)
	}
	return nil
}

// Unmount waits until nobody uses the disk any more: a program that was killed may take a moment to be gone.
func (d *Disk) Unmount() error {
	if !d.mounted {
		return nil
	}
	var err error
	for range 100 {
		if err = unix.Unmount(d.dir, 0); err == nil {
			d.mounted = false
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("unmounting %s: %w", d.dir, err)
}

// Close unmounts the disk, whoever uses it, and removes its file.
func (d *Disk) Close() error {
	err := d.Unmount()
	if err != nil {
		err = errors.Join(err, unix.Unmount(d.dir, unix.MNT_DETACH))
	}
	return errors.Join(err, os.Remove(d.image))
}

// DisksMissing says why there can be no disks here; empty: there can.
func DisksMissing() string {
	if os.Geteuid() != 0 {
		return "needs root to mount a disk"
	}
	for _, program := range []string{"mkfs.ext4", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return "needs " + program
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "needs loop devices"
	}
	dir, err := os.MkdirTemp("", "pdv-disk")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d, err := NewDisk(ctx, dir+".img", dir, 16<<20)
	if err == nil {
		err = errors.Join(d.Cut(), d.Close())
	} else {
		_ = os.Remove(dir + ".img") // nothing was mounted
	}
	if err != nil {
		return "needs a disk whose power can be cut: " + err.Error()
	}
	return ""
}

const isolated = "PDVAULT_FAULT_MOUNTS" // set in a process that has its mounts for itself

// Isolate runs this program once more, in mounts of its own, and returns its exit code; done is false when this is
// that process already, or none can be made. However it ends, by a panic too, its mounts end with it.
func Isolate() (code int, done bool) {
	if os.Getenv(isolated) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	self, err := os.Executable()
	if err != nil {
		return 0, false
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, false // no right to: DisksMissing will say so
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() < 1 {
		return 1, true
	}
	return cmd.ProcessState.ExitCode(), true
}

// run runs a command to its end.
func run(ctx context.Context, line ...string) error {
	out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(line, " "), err, out)
	}
	return nil
}
