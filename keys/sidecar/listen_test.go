package sidecar_test

import (
	"errors"
	"fmt"

	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/sidecar"
)

const nobody = 65534

func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pdk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to act as another user")
	}
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestListenMakesTheSocketAsItMustBe(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	gid := os.Getgid()
	l, err := sidecar.Listen(sidecar.SocketConfig{Path: path, GroupID: &gid})
	do(t, err)
	info, err := os.Lstat(path)
	do(t, err)
	if info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("mode %v, want a socket with 0660", info.Mode())
	}
	do(t, l.Close())
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left behind: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, dir string) (path string)
		root bool
	}{
		{name: "relative path", make: func(*testing.T, string) string { return "s" }},
		{name: "path that is not clean", make: func(_ *testing.T, dir string) string { return dir + "/x/../s" }},
		{name: "long path", make: func(_ *testing.T, dir string) string { return filepath.Join(dir, strings.Repeat("x", 107)) }},
		{name: "no directory", make: func(_ *testing.T, dir string) string { return filepath.Join(dir, "absent", "s") }},
		{name: "directory is a file", make: func(t *testing.T, dir string) string {
			do(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
			return filepath.Join(dir, "f", "s")
		}},
		{name: "directory writable by all", make: func(t *testing.T, dir string) string {
			do(t, os.Chmod(dir, 0o777))
			return filepath.Join(dir, "s")
		}},
		{name: "directory writable by all, sticky", make: func(t *testing.T, dir string) string {
			do(t, os.Chmod(dir, 0o777|os.ModeSticky))
			return filepath.Join(dir, "s")
		}},
		{name: "directory of another user", root: true, make: func(t *testing.T, dir string) string {
			do(t, os.Chown(dir, nobody, nobody))
			return filepath.Join(dir, "s")
		}},
		{name: "file", make: func(t *testing.T, dir string) string {
			do(t, os.WriteFile(filepath.Join(dir, "s"), []byte("precious"), 0o600))
			return filepath.Join(dir, "s")
		}},
		{name: "directory at the path", make: func(t *testing.T, dir string) string {
			do(t, os.Mkdir(filepath.Join(dir, "s"), 0o700))
			return filepath.Join(dir, "s")
		}},
		{name: "symbolic link to nothing", make: func(t *testing.T, dir string) string {
			do(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "s")))
			return filepath.Join(dir, "s")
		}},
		{name: "symbolic link to a stale socket", make: func(t *testing.T, dir string) string {
			stale(t, filepath.Join(dir, "real"))
			do(t, os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "s")))
			return filepath.Join(dir, "s")
		}},
		{name: "socket of another user", root: true, make: func(t *testing.T, dir string) string {
			stale(t, filepath.Join(dir, "s"))
			do(t, os.Lchown(filepath.Join(dir, "s"), nobody, nobody))
			return filepath.Join(dir, "s")
		}},
		{name: "socket that is listened on", make: func(t *testing.T, dir string) string {
			l, err := sidecar.Listen(sidecar.SocketConfig{Path: filepath.Join(dir, "s")})
			do(t, err)
			t.Cleanup(func() { _ = l.Close() })
			return filepath.Join(dir, "s")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root {
				needRoot(t)
			}
			path := tt.make(t, socketDir(t))
			before, beforeErr := os.Lstat(path)
			l, err := sidecar.Listen(sidecar.SocketConfig{Path: path})
			if l != nil || !errors.Is(err, sidecar.ErrSocket) {
				t.Errorf("Listen = %v, %v, want ErrSocket", l, err)
			}
			after, afterErr := os.Lstat(path)
			if (beforeErr == nil) != (afterErr == nil) || (beforeErr == nil && !os.SameFile(before, after)) {
				t.Error("what lay at the path was touched")
			}
		})
	}
}

// stale leaves a socket that nobody listens on.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	do(t, err)
	l.SetUnlinkOnClose(false)
	do(t, l.Close())
}

func TestListenReplacesAStaleSocketOfOurs(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	stale(t, path)
	l, err := sidecar.Listen(sidecar.SocketConfig{Path: path})
	do(t, err)
	do(t, l.Close())
}

// asUser runs f on a thread of another user and group, which then ends.
func asUser(uid, gid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
			done <- errno
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

func TestConnectionsOfOtherUsersAreClosedUnread(t *testing.T) {
	needRoot(t)
	path := filepath.Join(socketDir(t), "s")
	gid := nobody // so that the file's mode alone would let them in
	stats := sidecar.NewStats()
	l, err := sidecar.Listen(sidecar.SocketConfig{Path: path, GroupID: &gid, Observer: stats})
	do(t, err)
	accepted := make(chan net.Conn)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	defer func() {
		do(t, l.Close())
		<-ended
	}()

	err = asUser(nobody, nobody, func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return err
		}
		var b [1]byte
		n, err := unix.Read(fd, b[:])
		if n != 0 {
			return errors.New("the connection was not closed")
		}
		if err != nil && !errors.Is(err, unix.ECONNRESET) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Errorf("connecting as another user: %v", err)
	}
	select {
	case <-accepted:
		t.Error("the connection of another user was accepted")
	default:
	}
	// The connection is closed first and counted then.
	counted := func() bool { return strings.Contains(string(stats.Text(nil)), "pdkeys_peers_refused_total 1\n") }
	for end := time.Now().Add(10 * time.Second); !counted(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the refusal was not counted")
		}
	}

	// Ours goes through.
	conn, err := net.Dial("unix", path)
	do(t, err)
	do(t, (<-accepted).Close())
	do(t, conn.Close())
}

// connectTo names a socket to the helper process.
const connectTo = "SIDECAR_TEST_CONNECT"

// connectAndTell is the helper process: it prints whether it was let in.
func connectAndTell(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		fmt.Println("closed")
		return
	}
	fmt.Println("open")
}

// TestConnectionOfAnotherUsersProcess does the same with a whole process.
func TestConnectionOfAnotherUsersProcess(t *testing.T) {
	needRoot(t)
	dir := socketDir(t)
	path, program := filepath.Join(dir, "s"), filepath.Join(dir, "connect")
	self, err := os.Executable()
	do(t, err)
	text, err := os.ReadFile(self) // a copy, since the other user may not be able to reach the original
	do(t, err)
	do(t, os.WriteFile(program, text, 0o755))
	gid := nobody
	allowed := []uint32{0, nobody}
	for _, tt := range []struct {
		uids []uint32
		want string
	}{{nil, "closed"}, {allowed, "open"}} {
		l, err := sidecar.Listen(sidecar.SocketConfig{Path: path, GroupID: &gid, AllowUIDs: tt.uids})
		do(t, err)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte("x"))
				_ = conn.Close()
			}
		}()
		cmd := exec.Command(program)
		cmd.Env = []string{connectTo + "=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir = "/"
		out, err := cmd.Output()
		if err != nil || strings.TrimSpace(string(out)) != tt.want {
			t.Errorf("allowed %v: %v, %q, want %s", tt.uids, err, out, tt.want)
		}
		do(t, l.Close())
		<-ended
	}
}

func TestHarden(t *testing.T) {
	if os.Getenv("SIDECAR_TEST_HARDEN") != "1" {
		self, err := os.Executable()
		do(t, err)
		cmd := exec.Command(self, "-test.run=^TestHarden$")
		cmd.Env = append(os.Environ(), "SIDECAR_TEST_HARDEN=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	do(t, sidecar.Harden())
	// What belongs to a process that is not dumpable belongs to root; its memory cannot be read by others.
	info, err := os.Stat("/proc/self/mem")
	do(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 {
		t.Errorf("memory of the process belongs to uid %d", st.Uid)
	}
}

func TestStatsFileIsReplacedAsAWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.prom")
	stats := sidecar.NewStats()
	stats.Opened(2, 3)
	stats.Refused("too-old", 1)
	stats.Keyring().Epoch("rewrap", 1, 2, nil)
	stats.Keyring().Epoch("rewrap", 1, 2, keys.ErrSealed)
	ctx, cancel := contextFor(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		stats.Run(ctx, discardLogger(), path, time.Millisecond, nil)
	}()
	cancel()
	<-done
	text, err := os.ReadFile(path)
	do(t, err)
	for _, want := range []string{"pdkeys_opens_total 2\n", "pdkeys_opened_fields_total 3\n", "pdkeys_epoch_held_up_total 1\n", `pdkeys_refused_total{why="too-old"} 1` + "\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %q:\n%s", want, text)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("%d files, want one", len(names))
	}
}
