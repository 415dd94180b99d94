// Command fault runs the long form of the fault harnesses and prints a table: what was broken how often, with which
// seed, and what came of it. It exits with 1 when a promise was broken, or when a negative control went unnoticed.
//
// It must never count a fault that did not happen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
	"github.com/prototypster/pdvault/test/fault"
)

// harness is one way of breaking things, with its negative control.
type harness struct {
	name    string
	n       int
	missing func() string // why it cannot run here; empty: it can
	run     func(context.Context, fault.Trial) (fault.Result, error)
	control func(context.Context, fault.Trial) error
}

func main() {
	fault.Shim()
	if code, done := fault.Isolate(); done {
		os.Exit(code)
	}
	kills := flag.Int("kills", 0, "how often programs are killed")
	cuts := flag.Int("cuts", 0, "how often the power is cut")
	dying := flag.Int("dying", 0, "how often a disk dies under programs that go on")
	flips := flag.Int("flips", 0, "how many bits are flipped while the programs do not run")
	running := flag.Int("running-flips", 0, "how many bits are flipped while the programs run")
	clocks := flag.Int("clocks", 0, "how often the clock is stepped")
	losses := flag.Int("losses", 0, "how many files are removed, cut or made older, at most")
	fills := flag.Int("fills", 0, "how often a disk is filled")
	hangs := flag.Int("hangs", 0, "how often a program hangs, is slow, loses its socket or its descriptors")
	starves := flag.Int("starves", 0, "how often a program gets no more memory")
	sweep := flag.Bool("sweep", false, "make the n-th call of the kernel fail, for n = 1, 2, ...")
	seed := flag.Uint64("seed", 1, "of the dice")
	most := flag.Duration("time", 0, "of all together: each kind of fault gets an equal share, after which none is begun; 0: no end")
	verbose := flag.Bool("v", false, "tell of each fault")
	dir := flag.String("dir", "", "for what is broken; stays when something was found. Empty: a temporary one")
	flag.Parse()

	sweeps := 0
	if *sweep {
		sweeps = 1 << 20
	}
	none := func() string { return "" }
	list := []harness{
		{"kill -9", *kills, none, fault.Kills, fault.ControlCheckers},
		{"power cut", *cuts, disks, func(ctx context.Context, t fault.Trial) (fault.Result, error) { return fault.Cuts(ctx, t) }, fault.ControlCut},
		{"dying disk", *dying, disks, fault.Dying, fault.ControlCut},
		{"flipped bit", *flips, none, fault.Flips, fault.ControlLosses},
		{"flipped bit, running", *running, none, fault.FlipsRunning, fault.ControlLosses},
		{"lost, cut or older file", *losses, none, fault.Losses, fault.ControlLosses},
		{"n-th call fails", sweeps, fault.StraceMissing, fault.Sweep, fault.ControlSweep},
		{"full disk", *fills, disks, fault.Fills, fault.ControlCheckers},
		{"hang, descriptors", *hangs, none, fault.Hangs, fault.ControlCheckers},
		{"clock step", *clocks, none, fault.Clocks, fault.ControlCheckers},
		{"no memory", *starves, none, fault.Starve, fault.ControlCheckers},
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	t := fault.Trial{Seed: *seed, Dir: *dir, Log: func(format string, args ...any) {
		if *verbose {
			fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
		}
	}}
	ok, err := report(ctx, t, list, *most)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
	}
	if !ok || err != nil {
		stop()
		os.Exit(1)
	}
}

// disks says why there can be neither disks nor their control.
func disks() string {
	if why := fault.DisksMissing(); why != "" {
		return why
	}
	return fault.StraceMissing()
}

// report runs what was asked for, for most at longest, and prints the table.
func report(ctx context.Context, t fault.Trial, list []harness, most time.Duration) (ok bool, err error) {
	if t.Dir == "" {
		if t.Dir, err = os.MkdirTemp("", "pdf"); err != nil {
			return false, err
		}
		defer func() {
			if ok && err == nil {
				err = os.RemoveAll(t.Dir)
			}
		}()
	}
	t.Bin = filepath.Join(t.Dir, "bin")
	if err := stack.Build(ctx, ".", t.Bin, false); err != nil {
		return false, err
	}
	ok = true
	var rows []string
	var errs []error
	list = slices.DeleteFunc(list, func(h harness) bool { return h.n == 0 })
	for n, h := range list {
		if ctx.Err() != nil {
			break
		}
		if why := h.missing(); why != "" {
			rows, ok = append(rows, fmt.Sprintf("| %s | 0 | | | | | | %s |", h.name, why)), false
			continue
		}
		one := t
		one.N, one.Dir = h.n, filepath.Join(t.Dir, fmt.Sprint(n))
		if most > 0 {
			one.End = time.Now().Add(most / time.Duration(len(list)))
		}
		r, runErr := h.run(ctx, one)
		one.N, one.End, one.Dir = 3, time.Time{}, filepath.Join(t.Dir, fmt.Sprint(n, "c"))
		control := "fails, as it must"
		if ctx.Err() != nil {
			control = "not run"
		} else if err := h.control(ctx, one); err != nil {
			control, ok = "NOT NOTICED: "+err.Error(), false
		}
		rows = append(rows, fmt.Sprintf("| %s | %d | %d | %d | %d | %d | %d | %s | %v, %d requests acknowledged |", h.name, r.Count, r.Seed, r.Recovered,
			r.Refused, r.Integrity, len(r.Broken), control, r.Took.Round(time.Second), r.Acknowledged))
		for _, b := range r.Broken {
			fmt.Fprintf(os.Stderr, "BROKEN %s: %s\n", h.name, b)
		}
		if len(r.Broken) > 0 {
			ok = false
		}
		if runErr != nil && !errors.Is(runErr, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", h.name, runErr))
		}
	}
	fmt.Println("| fault | count | seed | recovered | refused | integrity errors | broken | negative control | time |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, row := range rows {
		fmt.Println(row)
	}
	if !ok {
		fmt.Fprintln(os.Stderr, "what was found lies in", t.Dir)
	}
	return ok, errors.Join(errs...)
}
