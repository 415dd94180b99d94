package sidecar

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Harden makes the kernel keep this process's memory to itself: no core dumps, and no debugger of the same
// user. Call it first in main, before any key is in memory, and stop when it fails.
func Harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process not dumpable: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit.Cur != 0 || limit.Max != 0 {
		return fmt.Errorf("core dumps are still on: %d, %w", limit.Cur, err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		return fmt.Errorf("process is still dumpable: %d, %w", dumpable, err)
	}
	return nil
}
