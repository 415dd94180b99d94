// Package fault breaks the real programs and checks after every fault that each promise still holds: they are
// killed, their disk loses power, files are damaged, the n-th call of the kernel fails. What was acknowledged is
// remembered outside of what is broken.
//
// It must never reach into a program, never take a refusal for a success, and never leave a mount, a loop device or
// a process behind.
package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// Options say what world to make. Only Bin and Dir are required.
type Options struct {
	Bin string // directory with the programs; see stack.Build
	Dir string // absent or empty; keep it short, it holds a socket
	// Memtable is the size of the memtables of pdvault; the smallest is 1 MiB. 0: the default.
	Memtable int64
	// Disks puts the data and the keys on file systems of their own, whose power can be cut.
	Disks bool
	// HashiCorp has a real HashiCorp Vault keep the key-encryption key.
	HashiCorp bool
}

// World is one instance that is broken again and again.
type World struct {
	*stack.Stack
	Data, Keep *Disk // of pdvault and of pdkeys; nil without Options.Disks
	HashiCorp  *hcserver.Server

	crashes []string // panics and data races that were found in logs
}

// freeEnough are limits of the data store's free space that fit a small disk.
const freeEnough = "read_only_below: 67108864, reserve_below: 33554432, ballast: 1048576"

const diskSize = 3 << 30 // sparse; the key store wants 1 GiB free

// New makes a world and starts it.
func New(ctx context.Context, o Options) (w *World, err error) {
	w = new(World)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	// The stores and the root key lie in directories below the instance's, which may be disks of their own.
	data, keep := filepath.Join(o.Dir, "d"), filepath.Join(o.Dir, "k")
	if err := errors.Join(os.MkdirAll(data, 0o700), os.MkdirAll(keep, 0o700)); err != nil {
		return w, err
	}
	if o.Disks {
		if w.Data, err = NewDisk(ctx, data+".img", data, diskSize); err != nil {
			return w, err
		}
		if w.Keep, err = NewDisk(ctx, keep+".img", keep, diskSize); err != nil {
			return w, err
		}
	}
	so := stack.Options{
		Bin: o.Bin, Dir: o.Dir,
		Store:    fmt.Sprintf("{dir: d/store, memtable: %d, %s}", o.Memtable, freeEnough),
		KeyStore: "{dir: k/store}",
		KEK:      "{type: local, local: {path: k/root.key}}",
	}
	if o.HashiCorp {
		if w.HashiCorp, err = hcserver.Start(ctx, filepath.Join(o.Dir, "hc")); err != nil {
			return w, err
		}
		if so.KEK, err = stack.HashiCorpKEK(ctx, w.HashiCorp, o.Dir); err != nil {
			return w, err
		}
	}
	w.Stack, err = stack.New(ctx, so)
	return w, err
}

// Close ends the programs and takes the disks away. What is in the directory stays.
func (w *World) Close() error {
	var errs []error
	if w.Stack != nil {
		w.HTTP.CloseIdleConnections()
		w.KillBoth()
	}
	if w.HashiCorp != nil {
		errs = append(errs, w.HashiCorp.Close())
	}
	for _, d := range []*Disk{w.Data, w.Keep} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return errors.Join(errs...)
}

// KillBoth ends both programs at once, if they run.
func (w *World) KillBoth() {
	for _, p := range []*stack.Process{w.Vault, w.Keys} {
		if p != nil {
			p.Kill()
		}
	}
}

// StopBoth has both programs stop in order.
func (w *World) StopBoth() error { return errors.Join(w.Vault.Stop(), w.Keys.Stop()) }

// Refusal is a program that did not start, or did not stay, and what it said.
type Refusal struct {
	Program string
	Code    int
	Said    string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%s refused to start, exit code %d: %s", r.Program, r.Code, r.Said)
}

// Explains reports whether the refusal is one: it ended by itself, not in a panic, and says how to go on.
func (r *Refusal) Explains() bool {
	return r.Code > 0 && r.Code != 2 && crash.FindString(r.Said) == "" && says.MatchString(r.Said)
}

var (
	crash = regexp.MustCompile(`(?m)^(panic:|fatal error:|unexpected fault address|SIG[A-Z]+:|WARNING: DATA RACE).*$`)
	// says is what an operator is told to do.
	says = regexp.MustCompile(`(?i)restor|put (it|the file) back|backup`)
)

// Start starts what does not run. A program that refuses gives a *Refusal.
func (w *World) Start(ctx context.Context) error {
	if !running(w.Keys) {
		if err := w.start(ctx, "pdkeys", w.StartKeys, func() *stack.Process { return w.Keys }); err != nil {
			return err
		}
	}
	if running(w.Vault) {
		return nil
	}
	return w.start(ctx, "pdvault", w.StartVault, func() *stack.Process { return w.Vault })
}

func (w *World) start(ctx context.Context, program string, start func(context.Context) error, process func() *stack.Process) error {
	w.readLog(program)
	err := start(ctx)
	if err == nil {
		return nil
	}
	p := process()
	if p == nil {
		return err
	}
	select {
	case <-p.Done():
		said := p.Log()
		w.readLog(program)
		return &Refusal{program, p.ExitCode(), tail(said)}
	default:
		p.Kill()
		return fmt.Errorf("%s neither starts nor ends: %w", program, err)
	}
}

// readLog notes crashes that a program has logged so far, and begins a new log.
func (w *World) readLog(program string) {
	path := w.Path(program + ".log")
	b, err := os.ReadFile(path)
	if err != nil {
		return // it has not run yet
	}
	if at := crash.FindIndex(b); at != nil {
		w.crashes = append(w.crashes, program+": "+tail(string(b[at[0]:min(len(b), at[0]+1500)])))
	}
	_ = os.Rename(path, path+".before") // for people; a log that stays is no harm
}

// Crashes returns the panics and races in the logs since the last call, those of what runs included.
func (w *World) Crashes() []string {
	for _, program := range []string{"pdvault", "pdkeys"} {
		b, _ := os.ReadFile(w.Path(program + ".log")) // it may not have run yet
		if at := crash.FindIndex(b); at != nil {
			w.readLog(program)
		}
	}
	found := w.crashes
	w.crashes = nil
	return found
}

// toldDamage reports whether a program that runs has told in its log that stored data is damaged.
func (w *World) toldDamage() bool {
	for _, program := range []string{"pdvault", "pdkeys"} {
		b, _ := os.ReadFile(w.Path(program + ".log")) // it may not have run yet
		if strings.Contains(string(b), "a read met damage: restore") {
			return true
		}
	}
	return false
}

func running(p *stack.Process) bool {
	if p == nil {
		return false
	}
	select {
	case <-p.Done():
		return false
	default:
		return true
	}
}

var errGivenUp = errors.New("the instance says why it is not ready")

// Ready waits until the instance says that it is ready, for most at longest; where hopeless says so, it gives up earlier, with
// errGivenUp.
func (w *World) Ready(ctx context.Context, most time.Duration, hopeless func() bool) error {
	var last string
	begun := time.Now()
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		a, err := w.Do(ctx, "", "GET", "/readyz", nil)
		if err == nil && a.Status == http.StatusOK {
			return nil
		}
		if last = string(a.Body); err != nil {
			last = err.Error()
		}
		if !running(w.Vault) || ctx.Err() != nil {
			break
		}
		if time.Since(begun) > givenUpAfter && hopeless() {
			return errGivenUp
		}
	}
	return fmt.Errorf("the instance is not ready after %v: %s", most, last)
}

// Copy copies what is stored of an instance, with its holes, to a directory that does not exist yet.
func Copy(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "-a", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copying %s: %w: %s", filepath.Base(from), err, out)
	}
	return nil
}

func tail(s string) string {
	const most = 2000
	if s = strings.TrimSpace(s); len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}
