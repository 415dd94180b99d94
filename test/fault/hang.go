package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// hang is something that stops a program from answering and passes: begin does it and returns what ends it.
type hang struct {
	name  string
	begin func(*World) (end func() error, err error)
}

var hangs = []hang{
	{"pdkeys stopped", func(w *World) (func() error, error) {
		w.Keys.Freeze()
		return func() error { w.Keys.Thaw(); return nil }, nil
	}},
	{"pdvault stopped", func(w *World) (func() error, error) {
		w.Vault.Freeze()
		return func() error { w.Vault.Thaw(); return nil }, nil
	}},
	{"socket of pdkeys replaced", (*World).replaceSocket},
	{"pdvault without descriptors", func(w *World) (func() error, error) { return noDescriptors(w.Vault.PID()) }},
	{"pdkeys without descriptors", func(w *World) (func() error, error) { return noDescriptors(w.Keys.PID()) }},
	{"HashiCorp Vault stopped", func(w *World) (func() error, error) { return w.HashiCorp.Cont, w.HashiCorp.Stop() }},
}

// Hangs stops programs under load, replaces the socket between them and takes their descriptors away, for a while. They
// are not started again: they go on by themselves.
func Hangs(ctx context.Context, t Trial) (Result, error) {
	kinds := hangs
	_, err := hcserver.Binary()
	o := Options{HashiCorp: err == nil}
	if !o.HashiCorp {
		kinds = hangs[:len(hangs)-1]
	}
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
