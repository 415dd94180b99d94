package fault

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Clock is what programs see as the wall clock. The machine's own must not be stepped, and only a program's monotonic clock
// can have a namespace. So the kernel hands each of their calls for the wall clock to this process, which answers it with the
// time of its choice (seccomp_unotify(2)). Programs in Go ask the kernel only when they have no vDSO; theirs is taken away
// while they start.
type Clock struct {
	offset atomic.Int64 // nanoseconds
	ln     *net.UnixListener
	wg     sync.WaitGroup // programs that are answered, and whoever waits for the next

	mu     sync.Mutex  // guards the rest
	asked  map[int]int // how often, by process
	failed error
}

// clockShim is the first argument of this program when it is to become another one with a [Clock].
const clockShim = "run-with-clock"

// NewClock makes a clock that is right, at a socket that does not exist yet.
func NewClock(socket string) (*Clock, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		return nil, err
	}
	c := &Clock{ln: ln, asked: map[int]int{}}
	c.wg.Go(func() {
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.serve(conn) })
		}
	})
	return c, nil
}

// Close is called when the programs have ended. It tells whether one of them did not get the time it should.
func (c *Clock) Close() error {
	err := c.ln.Close()
	c.wg.Wait()
	return errors.Join(err, c.failed)
}

func (c *Clock) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = errors.Join(c.failed, err)
}

// Asked is how often a process has asked for the time.
func (c *Clock) Asked(pid int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[pid]
}

// Set makes the clock wrong by d.
func (c *Clock) Set(d time.Duration) { c.offset.Store(int64(d)) }

// Now is what the programs see.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

// Before stands before the command line of a program.
func (c *Clock) Before() ([]string, error) {
	self, err := os.Executable()
	return []string{self, clockShim, c.ln.Addr().String()}, err
}

// Shim must be the first that main calls. It returns only if this process is not to become another program.
func Shim() {
	if len(os.Args) < 4 || os.Args[1] != clockShim {
		return
	}
	err := becomeClocked(os.Args[2], os.Args[3:])
	fmt.Fprintln(os.Stderr, "fault: giving a program a clock:", err)
	os.Exit(1)
}

func becomeClocked(socket string, line []string) error {
	runtime.LockOSThread() // the filter is this thread's, and goes on to what it becomes
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket})
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const number, firstArgument = 0, 16 // where they stand in what a filter sees
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: startingCall, Jt: 3},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLOCK_GETTIME, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: firstArgument},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.CLOCK_REALTIME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	pid := binary.NativeEndian.AppendUint64(nil, uint64(os.Getpid()))
	if _, _, err := conn.WriteMsgUnix(pid, unix.UnixRights(int(fd)), nil); err != nil {
		return err
	}
	return syscall.Exec(line[0], line, os.Environ())
}

// startingCall is one that the runtime of Go makes once, when it has looked for the vDSO and runs on one thread.
const startingCall = unix.SYS_SCHED_GETAFFINITY

// serve answers one program until it has ended.
func (c *Clock) serve(conn *net.UnixConn) {
	defer conn.Close()
	body, rights := make([]byte, 8), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(body, rights)
	if err != nil {
		return
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return
	}
	defer unix.Close(fds[0])
	pid := int(binary.NativeEndian.Uint64(body))
	for {
		poll := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) || poll[0].Revents&unix.POLLHUP != 0 {
			return
		}
		if poll[0].Revents&unix.POLLIN != 0 {
			c.answer(fds[0], pid)
		}
	}
}

// call and reply are struct seccomp_notif and seccomp_notif_resp of <linux/seccomp.h>.
type call struct {
	id         uint64
	tid, flags uint32
	number     int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type reply struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

const (
	receiveCall = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	sendReply   = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	stillWaits  = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	letItPass   = 1          // SECCOMP_USER_NOTIF_FLAG_CONTINUE
)

func (c *Clock) answer(fd, pid int) {
	var asked call
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), receiveCall, uintptr(unsafe.Pointer(&asked))); errno != 0 {
		return // the thread has gone
	}
	answer := reply{id: asked.id}
	if asked.number == startingCall {
		if err := takeVDSO(pid); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it was killed
			c.fail(fmt.Errorf("taking the vDSO from a program: %w", err))
		}
		answer.flags = letItPass
	} else {
		now := unix.NsecToTimespec(c.Now().UnixNano())
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&now)), unsafe.Sizeof(now))
		local := unix.Iovec{Base: &raw[0], Len: uint64(len(raw))}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), stillWaits, uintptr(unsafe.Pointer(&asked.id))); errno != 0 {
			return // the thread has gone, and another may have its number
		}
		if _, err := unix.ProcessVMWritev(int(asked.tid), []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(asked.args[1]), Len: len(raw)}}, 0); err == nil {
			c.mu.Lock()
			c.asked[pid]++
			c.mu.Unlock()
		} else {
			answer.err = -int32(unix.EFAULT)
			if !errors.Is(err, unix.ESRCH) {
				c.fail(fmt.Errorf("answering a program: %w", err))
			}
		}
	}
	// It fails where the thread has gone.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), sendReply, uintptr(unsafe.Pointer(&answer)))
}

// takeVDSO makes a program in Go ask the kernel for the time: it forgets where else it could.
func takeVDSO(pid int) error {
	at, err := symbol(fmt.Sprintf("/proc/%d/exe", pid), "runtime.vdsoClockgettimeSym")
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	_, err = mem.WriteAt(make([]byte, 8), int64(at))
	return err
}

func symbol(path, name string) (uint64, error) {
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return 0, err
	}
	for _, s := range symbols {
		if s.Name == name {
			return s.Value, nil
		}
	}
	return 0, errors.New("no such symbol")
}

// steps are how wrong the clock becomes: what a machine without a battery, a bad time server, or a virtual machine that was
// asleep would do.
var steps = []time.Duration{
	0, time.Second, -time.Second, time.Minute, -time.Minute, time.Hour, -time.Hour, 25 * time.Hour, -25 * time.Hour, dueStep,
}

// dueStep is one after which an epoch is due: they come once a week.
const dueStep = 9 * 24 * time.Hour

// Clocks steps the wall clock of both programs under load, forwards and back. While it is behind the log, reads may be refused
// for that; nothing may be lost or be taken for damage. Once it is right, everything must be served.
func Clocks(ctx context.Context, t Trial) (r Result, err error) {
	if err := os.MkdirAll(t.Dir, 0o700); err != nil {
		return r, err
	}
	c, err := NewClock(filepath.Join(t.Dir, "clock"))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	before, err := c.Before()
	if err != nil {
		return r, err
	}
	var latest time.Duration // the clock is right when it is so far ahead: the log has seen that
	return t.rounds(ctx, "clock step", Options{Memtable: 1 << 20}, Allow{}, func(w *World, l *Load, rng *rand.Rand) (string, error) {
		if w.RunKeys == nil {
			latest = 0
			c.Set(latest)
			if err := w.StopBoth(); err != nil {
				return "", err
			}
			w.RunKeys, w.RunVault = before, before
			if err := w.Start(ctx); err != nil {
				return "", err
			}
			l.sound.Store(true)
		}
		step := steps[rng.IntN(len(steps))]
		due := step == dueStep && latest < step
		stop := l.Run(ctx, Beside{Epochs: rng.IntN(2) == 0 && !due, Backups: rng.IntN(4) == 0})
		time.Sleep(pause(rng))
		c.Set(step)
		err := w.goesBy(ctx, c)
		time.Sleep(pause(rng))
		stop()
		restart := due || rng.IntN(4) == 0
		if restart && err == nil { // with the clock that is wrong
			err = errors.Join(w.StopBoth(), w.Start(ctx))
			if err == nil {
				err = w.goesBy(ctx, c)
			}
		}
		if due && err == nil {
			err = l.epochComes(ctx)
		}
		latest = max(latest, step)
		c.Set(latest)
		return fmt.Sprintf("to %v, restart %t, then to %v", step, restart, latest), err
	})
}

// goesBy makes sure that both programs go by the clock.
func (w *World) goesBy(ctx context.Context, c *Clock) error {
	keys, vault := c.Asked(w.Keys.PID()), c.Asked(w.Vault.PID())
	var last string
	for range 200 {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.URL+"/readyz", nil)
		if err != nil {
			return err
		}
		if a, err := w.HTTP.Do(r); err == nil {
			_ = a.Body.Close()
			last = a.Header.Get("Date")
			at, err := http.ParseTime(last)
			if err == nil && at.Sub(c.Now()).Abs() < 3*time.Second && c.Asked(w.Keys.PID()) > keys && c.Asked(w.Vault.PID()) > vault {
				return nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("the programs do not go by the clock that they were given: pdvault says %s, pdkeys has asked %d times, pdvault %d times",
		last, c.Asked(w.Keys.PID())-keys, c.Asked(w.Vault.PID())-vault)
}

// epochComes waits for an epoch that nobody asked for.
func (l *Load) epochComes(ctx context.Context) error {
	type rotation struct{ By string }
	var last []byte
	for end := time.Now().Add(readyWithin); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		a := l.ask(ctx, "security", "GET", "/v1/keys/rotations", "")
		var list struct{ Rotations []rotation }
		last = a.Body
		if a.Status == http.StatusOK && json.Unmarshal(a.Body, &list) == nil &&
			slices.ContainsFunc(list.Rotations, func(r rotation) bool { return r.By == "schedule" }) {
			return nil
		}
	}
	return fmt.Errorf("no epoch comes though one is due: %.200s; pdkeys says: %s", last, tail(l.w.Keys.Log()))
}
