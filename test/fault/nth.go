package fault

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
)

// calls are calls of the kernel that fail, and how.
type calls struct{ name, set, errno string }

var allCalls = []calls{
	{"sync", "msync,fsync,fdatasync", "EIO"},
	{"write", "write,pwrite64,writev", "EIO"},
	{"space", "write,pwrite64,ftruncate,fallocate,mkdirat,renameat", "ENOSPC"},
	{"read", "read,pread64", "EIO"},
}

// operation is what is done while a call fails, for a person who was just made.
type operation struct {
	name string
	do   func(context.Context, *worker, *person)
}

var operations = []operation{
	{"create", func(ctx context.Context, w *worker, _ *person) { w.create(ctx) }},
	{"read", func(ctx context.Context, w *worker, p *person) { w.read(ctx, p) }},
	{"change", func(ctx context.Context, w *worker, p *person) { w.change(ctx, p) }},
	{"consent", func(ctx context.Context, w *worker, p *person) { w.consent(ctx, p) }},
	{"erase", func(ctx context.Context, w *worker, p *person) { w.erase(ctx, p) }},
	{"epoch", func(ctx context.Context, w *worker, _ *person) { w.epoch(ctx) }},
}

// epoch begins an epoch and waits for its end, for a while: it may have met the fault.
func (w *worker) epoch(ctx context.Context) {
	if a := w.l.ask(ctx, "security", "POST", "/v1/keys/rotations", `{"scope":"kek"}`); a.Status != http.StatusAccepted {
		return
	}
	for range 40 {
		a := w.l.ask(ctx, "security", "GET", "/v1/keys/rotations", "")
		if a.Status != http.StatusOK || !bytes.Contains(a.Body, []byte(`"state":"running"`)) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
}

const (
	mostCalls = 40 // an operation with more calls of one kind in one thread is not followed to its end
	quiet     = 2  // so many tries without a fault end the sweep of an operation
)

// Sweep has the n-th call of the kernel fail while an operation runs, for n = 1, 2, ... until the fault is not hit any
// more: each operation, each kind of call, each program. Calls are counted in each thread, so one try may meet several.
// After each try both programs are killed, started and checked.
func Sweep(ctx context.Context, t Trial) (r Result, err error) {
	return sweep(ctx, t, operations, allCalls, false)
}

// sweep is Sweep; believe says that what was not acknowledged is taken for done, as a program would have it that
// overlooks errors.
func sweep(ctx context.Context, t Trial, ops []operation, kinds []calls, believe bool) (r Result, err error) {
	begun := time.Now()
	r = Result{Fault: "n-th call fails", Seed: t.Seed}
	defer func() { r.Took = time.Since(begun) }()
	s := &sweeper{t: t, r: &r, believe: believe}
	defer func() { err = errors.Join(err, s.end()) }()
	for _, op := range ops {
		for _, kind := range kinds {
			for _, program := range []string{"pdvault", "pdkeys"} {
				missed := 0
				for n := 1; n <= mostCalls && missed < quiet && r.Count < t.N && !t.over(ctx); n++ {
					hits, err := s.try(ctx, program, op, kind, n)
					if err != nil {
						return r, fmt.Errorf("%s, %s, %s %d: %w", op.name, program, kind.name, n, err)
					}
					if missed++; hits > 0 {
						missed = 0
					}
				}
			}
		}
	}
	return r, ctx.Err()
}

// sweeper is the world of a sweep, made anew from time to time.
type sweeper struct {
	t       Trial
	r       *Result
	believe bool
	w       *World
	l       *Load
	used    int
	broken  int // of the result when the world was made
}

func (s *sweeper) fresh(ctx context.Context) error {
	if s.w != nil && s.used < perWorld && len(s.r.Broken) == s.broken {
		return nil
	}
	if err := s.end(); err != nil {
		return err
	}
	var err error
	if s.w, err = New(ctx, Options{Bin: s.t.Bin, Dir: filepath.Join(s.t.Dir, fmt.Sprintf("n%d", s.r.Count))}); err != nil {
		return err
	}
	s.l, s.used, s.broken = NewLoad(s.w, 1, s.t.Seed), 0, len(s.r.Broken)
	return s.l.Populate(ctx, 5)
}

func (s *sweeper) end() error {
	if s.w == nil {
		return nil
	}
	err := s.w.Close()
	if len(s.r.Broken) == s.broken {
		err = errors.Join(err, os.RemoveAll(s.w.Dir))
	}
	return err
}

func (s *sweeper) try(ctx context.Context, program string, op operation, kind calls, n int) (hits int, err error) {
	if err := s.fresh(ctx); err != nil {
		return 0, err
	}
	s.used++
	w := s.l.workers[0]
	w.create(ctx)
	p := w.people[len(w.people)-1]
	if p.id == "" {
		return 0, errors.New("a person was not made before the fault")
	}
	process := s.w.Vault
	if program == "pdkeys" {
		process = s.w.Keys
	}
	tracer, err := attach(ctx, process.PID(), s.w.Path("strace"), kind, n)
	if err != nil {
		return 0, err
	}
	op.do(ctx, w, p)
	if hits, err = tracer.detach(); err != nil {
		return hits, err
	}
	if s.believe {
		s.l.each((*person).believe)
	}
	s.w.KillBoth()
	what := fmt.Sprintf("%s: call %d of %s fails with %s in %s (%d times)", op.name, n, kind.set, kind.errno, program, hits)
	v := s.l.Check(ctx, Allow{Crash: true})
	if hits > 0 || len(v.Broken) > 0 {
		s.r.add(v, what)
	}
	s.t.log("%d: %s: broken %q, crashes %.400q", s.r.Count, what, v.Broken, v.Crashes)
	return hits, nil
}

// believe takes what was asked for without an answer for done.
func (p *person) believe() {
	switch {
	case p.id == "":
		p.id, p.version, p.name = uuid.NewString(), 1, fmt.Sprintf("Display %d", p.n)
	case p.pending != "":
		p.version, p.name, p.pending = p.version+1, p.pending, ""
	}
}

// tracer makes calls of a process fail.
type tracer struct {
	cmd  *exec.Cmd
	out  string
	read chan struct{} // closed when strace says nothing more
}

// attach returns when the process is traced.
func attach(ctx context.Context, pid int, out string, kind calls, n int) (*tracer, error) {
	cmd := exec.CommandContext(ctx, "strace", "-f", "-o", out, "-p", strconv.Itoa(pid),
		"-e", "trace="+kind.set, "-e", "signal=none", "-e", fmt.Sprintf("inject=%s:error=%s:when=%d", kind.set, kind.errno, n))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(pipe)
	if !lines.Scan() || !strings.Contains(lines.Text(), "attached") {
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("strace: %q: %w", lines.Text(), cmd.Wait())
	}
	t := &tracer{cmd, out, make(chan struct{})}
	go func() { // detach waits for it
		defer close(t.read)
		for lines.Scan() { // strace must not block on what it says
		}
	}()
	return t, nil
}

const detachTime = 5 * time.Second

// detach lets the process go and returns how many calls have failed.
func (t *tracer) detach() (hits int, err error) {
	_ = t.cmd.Process.Signal(syscall.SIGTERM) // it may have ended with the process
	select {
	case <-t.read:
	case <-time.After(detachTime): // it waits for a thread that a fault has left behind
		_ = t.cmd.Process.Kill()
		<-t.read
	}
	_ = t.cmd.Wait() // with the signal
	b, err := os.ReadFile(t.out)
	return bytes.Count(b, []byte("(INJECTED)")), err
}

// StraceMissing says why calls cannot be made to fail here; empty: they can.
func StraceMissing() string {
	if _, err := exec.LookPath("strace"); err != nil {
		return "needs strace"
	}
	if out, err := exec.Command("strace", "-qq", "-o", "/dev/null", "-e", "inject=sync:retval=0", "true").CombinedOutput(); err != nil {
		return "needs the right to trace: " + strings.TrimSpace(string(out))
	}
	return ""
}

// ControlSweep takes creations and changes that failed for done. That must be noticed.
func ControlSweep(ctx context.Context, t Trial) error {
	t.N = 3
	r, err := sweep(ctx, t, operations[:1], []calls{allCalls[1]}, true)
	if err != nil {
		return err
	}
	if len(r.Broken) == 0 {
		return fmt.Errorf("errors of %d faults were overlooked, and nothing is missing", r.Count)
	}
	t.log("control of the sweep: %d broken, such as: %.300s", len(r.Broken), r.Broken[0])
	return nil
}
