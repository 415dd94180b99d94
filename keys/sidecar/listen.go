package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrSocket is returned by Listen when the socket cannot be made as it must be.
var ErrSocket = errors.New("sidecar: socket refused")

const (
	socketMode fs.FileMode = 0o660
	adminMode  fs.FileMode = 0o600

	maxPath = 107 // bytes in the path of a Unix socket
)

// SocketConfig says where the socket is and who may connect. Path must be set.
type SocketConfig struct {
	Path      string       // absolute; its directory must exist, be ours or root's, and not be writable by all
	GroupID   *int         // group of the socket; nil leaves this process's
	AllowUIDs []uint32     // users who may connect; nil means this process's own
	Logger    *slog.Logger // may be nil
	Observer  Observer     // may be nil
}

// Listen makes the socket and returns a listener that yields only connections of allowed users: the kernel
// is asked who connects before a byte is read. A socket of ours that nobody listens on any more is
// replaced; anything else at the path is left alone, and ErrSocket returned.
func Listen(cfg SocketConfig) (net.Listener, error) { return listen(cfg, socketMode) }

func listen(cfg SocketConfig, mode fs.FileMode) (net.Listener, error) {
	if !filepath.IsAbs(cfg.Path) || filepath.Clean(cfg.Path) != cfg.Path || len(cfg.Path) > maxPath {
		return nil, fmt.Errorf("%w: path must be absolute, clean and at most %d bytes", ErrSocket, maxPath)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observer == nil {
		cfg.Observer = discard{}
	}
	if cfg.AllowUIDs == nil {
		cfg.AllowUIDs = []uint32{uint32(os.Getuid())}
	}
	if err := checkParent(filepath.Dir(cfg.Path)); err != nil {
		return nil, err
	}
	if err := clearPath(cfg.Path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSocket, err)
	}
	if err := secure(cfg, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &guardedListener{UnixListener: l, cfg: cfg}, nil
}

func checkParent(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSocket, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a directory", ErrSocket, dir)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("%w: %s is writable by all (%v)", ErrSocket, dir, info.Mode())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || (st.Uid != uint32(os.Getuid()) && st.Uid != 0) {
		return fmt.Errorf("%w: %s belongs to another user", ErrSocket, dir)
	}
	return nil
}

// clearPath removes a stale socket of ours, and refuses anything else that it finds.
func clearPath(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSocket, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: %s exists and is not a socket (%v)", ErrSocket, path, info.Mode())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != uint32(os.Getuid()) {
		return fmt.Errorf("%w: %s belongs to another user", ErrSocket, path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("%w: another process listens on %s", ErrSocket, path), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", ErrSocket, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("%w: removing stale socket: %w", ErrSocket, err)
	}
	return nil
}

// secure sets group and mode, and looks at the result.
func secure(cfg SocketConfig, mode fs.FileMode) error {
	if cfg.GroupID != nil {
		if err := os.Lchown(cfg.Path, -1, *cfg.GroupID); err != nil {
			return fmt.Errorf("%w: %w", ErrSocket, err)
		}
	}
	if err := os.Chmod(cfg.Path, mode); err != nil {
		return fmt.Errorf("%w: %w", ErrSocket, err)
	}
	info, err := os.Lstat(cfg.Path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSocket, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok, info.Mode().Type() != fs.ModeSocket, info.Mode().Perm() != mode, st.Uid != uint32(os.Getuid()):
		return fmt.Errorf("%w: %s is not as it was made (%v)", ErrSocket, cfg.Path, info.Mode())
	case cfg.GroupID != nil && strconv.FormatUint(uint64(st.Gid), 10) != strconv.Itoa(*cfg.GroupID):
		return fmt.Errorf("%w: %s has another group", ErrSocket, cfg.Path)
	}
	return nil
}

// guardedListener closes connections of users who may not connect, before anything is read from them.
type guardedListener struct {
	*net.UnixListener
	cfg SocketConfig
}

func (l *guardedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := peerOf(conn)
		if err == nil && slices.Contains(l.cfg.AllowUIDs, cred.Uid) {
			return conn, nil
		}
		_ = conn.Close() // it is refused either way
		l.cfg.Observer.PeerRefused()
		if err != nil {
			l.cfg.Logger.Warn("connection refused: peer is not known", "error", err.Error())
			continue
		}
		l.cfg.Logger.Warn("connection refused: user may not connect", "uid", cred.Uid, "pid", cred.Pid)
	}
}

// peerOf asks the kernel who made the connection.
func peerOf(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}
