package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program that was started here.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended; err is set before
	err  error
}

// start starts a program whose standard error is appended to log.
func start(log string, env []string, program string, args ...string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = f, f
	// Nothing that is started here outlives the one who started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	p := &Process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// await waits until up says so, the process ends or 60 s have passed.
func (p *Process) await(ctx context.Context, up func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !up() {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at start: %w\n%s", p.cmd.Path, p.err, p.Log())
		case <-ctx.Done():
			return fmt.Errorf("%s did not come up: %w\n%s", p.cmd.Path, ctx.Err(), p.Log())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns what the program has written so far, by all its runs.
func (p *Process) Log() string {
	b, _ := os.ReadFile(p.log) // what cannot be read is shown as nothing
	return string(b)
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is the exit code of an ended process, -1 when a signal ended it.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// Stop ends the process in an orderly way and waits; after 20 s it is killed and an error returned.
func (p *Process) Stop() error {
	if p == nil {
		return nil
	}
	p.signal(syscall.SIGCONT)
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(20 * time.Second):
		p.Kill()
		return fmt.Errorf("%s did not stop when asked to", p.cmd.Path)
	}
}

// Freeze stops the process from running; Thaw lets it go on.
func (p *Process) Freeze() { p.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { p.signal(syscall.SIGCONT) }

func (p *Process) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic("stack: signalling a process of ours: " + err.Error())
	}
}

// Memory returns, in bytes, the memory that the process alone holds, and the highest value so far of its
// resident memory, which counts mapped files as well: pages that the kernel can take back.
func (p *Process) Memory() (own, peak int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64) // the kernel writes numbers
		switch f[0] {
		case "RssAnon:":
			own = kb << 10
		case "VmHWM:":
			peak = kb << 10
		}
	}
	return own, peak
}

// CPU returns the processor time that the process has used so far, in steps of 10 ms.
func (p *Process) CPU() time.Duration { return CPU(p.PID()) }

// CPU returns the processor time that the process pid has used so far, in steps of 10 ms; 0 if there is none.
func CPU(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name stands in parentheses and may hold spaces; utime and stime are fields 14 and 15 of proc(5).
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64) // the kernel writes numbers
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// WatchMemory looks at the memory of both programs until end is called, which returns the most that each held alone,
// in bytes.
func (s *Stack) WatchMemory() (end func() (vault, keys int64)) {
	stop, done := make(chan struct{}), make(chan struct{})
	var vault, keys int64
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			a, _ := s.Vault.Memory()
			b, _ := s.Keys.Memory()
			vault, keys = max(vault, a), max(keys, b)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() (int64, int64) {
		close(stop)
		<-done
		return vault, keys
	}
}
