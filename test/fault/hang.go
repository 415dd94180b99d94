package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// hang is something that stops a program from answering and passes: begin does it and returns what ends it.
type hang struct {
	name      string
	begin     func(*World) (end func() error, err error)
	hashicorp bool // it needs HashiCorp Vault
}

var hangs = []hang{
	{name: "pdkeys stopped", begin: func(w *World) (func() error, error) { return stopped(w.Keys) }},
	{name: "pdvault stopped", begin: func(w *World) (func() error, error) { return stopped(w.Vault) }},
	{name: "pdkeys slow", begin: func(w *World) (func() error, error) { return slowed(w.Keys.Freeze, w.Keys.Thaw), nil }},
	{name: "pdvault slow", begin: func(w *World) (func() error, error) { return slowed(w.Vault.Freeze, w.Vault.Thaw), nil }},
	{name: "socket of pdkeys replaced", begin: (*World).replaceSocket},
	{name: "pdvault without descriptors", begin: func(w *World) (func() error, error) { return noDescriptors(w.Vault.PID()) }},
	{name: "pdkeys without descriptors", begin: func(w *World) (func() error, error) { return noDescriptors(w.Keys.PID()) }},
	{name: "HashiCorp Vault stopped", hashicorp: true, begin: func(w *World) (func() error, error) {
		return w.HashiCorp.Cont, w.HashiCorp.Stop()
	}},
	{name: "HashiCorp Vault slow", hashicorp: true, begin: func(w *World) (func() error, error) {
		return slowed(func() { _ = w.HashiCorp.Stop() }, func() { _ = w.HashiCorp.Cont() }), nil // it runs, or the check finds out
	}},
}

func stopped(p *stack.Process) (end func() error, err error) {
	p.Freeze()
	return func() error { p.Thaw(); return nil }, nil
}

// slowed lets a program run for a tenth of the time.
func slowed(freeze, thaw func()) (end func() error) {
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			freeze()
			time.Sleep(45 * time.Millisecond)
			thaw()
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() error { close(quit); <-over; return nil }
}

// Hangs stops programs under load, makes them slow, replaces the socket between them and takes their descriptors away,
// for a while. They are not started again: they go on by themselves.
func Hangs(ctx context.Context, t Trial) (Result, error) {
	_, err := hcserver.Binary()
	o := Options{HashiCorp: err == nil}
	kinds := slices.DeleteFunc(slices.Clone(hangs), func(h hang) bool { return h.hashicorp && !o.HashiCorp })
	n := 0
	return t.rounds(ctx, "hang, descriptors", o, Allow{}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
		h := kinds[n%len(kinds)]
		n++
		stop := l.Run(ctx, Beside{Epochs: rng.IntN(2) == 0})
		time.Sleep(pause(rng))
		end, err := h.begin(w)
		if err == nil {
			time.Sleep(time.Duration(100+rng.IntN(3000)) * time.Millisecond)
			err = end()
		}
		stop()
		return h.name, err
	})
}

// replaceSocket puts a listener that knows nothing in the place of pdkeys'.
func (w *World) replaceSocket() (func() error, error) {
	path := w.Path("pdkeys.sock")
	if err := os.Rename(path, path+".away"); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, errors.Join(err, os.Rename(path+".away", path))
	}
	accepted := make(chan struct{})
	go func() { // ends with the listener
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return func() error {
		err := l.Close() // removes what it listened on
		<-accepted
		return errors.Join(err, os.Rename(path+".away", path))
	}, nil
}

// noDescriptors lets a process open no further file.
func noDescriptors(pid int) (func() error, error) {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, err
	}
	var before unix.Rlimit
	now := unix.Rlimit{Cur: uint64(len(open)), Max: 1 << 20}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		return nil, err
	}
	now.Max = before.Max
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &now, nil); err != nil {
		return nil, err
	}
	return func() error { return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil) }, nil
}

// Starve lets programs under load have no more memory than they have, or a little more, for a while. Where a runtime
// cannot go on without, the program dies, and is started again.
func Starve(ctx context.Context, t Trial) (Result, error) {
	n := 0
	return t.rounds(ctx, "no memory", Options{Memtable: 1 << 20}, Allow{Crash: true}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
		name, p := "pdvault", w.Vault
		if n++; n%2 == 0 {
			name, p = "pdkeys", w.Keys
		}
		stop := l.Run(ctx, Beside{Epochs: rng.IntN(2) == 0, Backups: rng.IntN(4) == 0})
		time.Sleep(pause(rng))
		end, err := noMemory(p.PID(), rng.Uint64N(16<<20))
		if err == nil {
			time.Sleep(time.Duration(100+rng.IntN(2000)) * time.Millisecond)
			err = end()
		}
		stop()
		if !running(p) {
			name += ", which died"
		}
		return name, err
	})
}

// noMemory lets a process map only so many bytes more than it has.
func noMemory(pid int, more uint64) (end func() error, err error) {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return nil, err
	}
	var pages uint64
	if _, err := fmt.Sscan(string(statm), &pages); err != nil {
		return nil, err
	}
	var before unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_AS, nil, &before); err != nil {
		return nil, err
	}
	now := unix.Rlimit{Cur: pages*uint64(os.Getpagesize()) + more, Max: before.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_AS, &now, nil); err != nil {
		return nil, err
	}
	return func() error {
		if err := unix.Prlimit(pid, unix.RLIMIT_AS, &before, nil); !errors.Is(err, unix.ESRCH) {
			return err
		}
		return nil // it has died
	}, nil
}
