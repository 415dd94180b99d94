package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	connectTimeout = 250 * time.Millisecond // a call waits no longer for a connection
	maxMessage     = 32 << 20
)

func (cfg Config) serverUID() uint32 {
	if cfg.ServerUID != nil {
		return *cfg.ServerUID
	}
	return uint32(os.Getuid())
}

// checkSocket refuses anything at path but a socket of uid that only its owner, and perhaps one group, may
// use. A symbolic link is not followed.
func checkSocket(path string, uid uint32) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is not a socket but %v", path, info.Mode().Type())
	}
	if perm := info.Mode().Perm(); perm != 0o660 && perm != 0o600 {
		return fmt.Errorf("%s has mode %v, not 0660 or 0600", path, perm)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: owner is not known", path)
	}
	if st.Uid != uid {
		return fmt.Errorf("%s belongs to uid %d, not %d", path, st.Uid, uid)
	}
	return nil
}

// dialSocket connects to the socket at path after checking it, and checks that the process which listens
// there runs as uid: a file may have been replaced between the two.
func dialSocket(ctx context.Context, path string, uid uint32) (net.Conn, error) {
	if err := checkSocket(path, uid); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn, uid); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func checkPeer(conn net.Conn, uid uint32) error {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return errors.New("connection has no descriptor")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("reading peer credentials: %w", credErr)
	}
	if cred.Uid != uid {
		return fmt.Errorf("process behind the socket runs as uid %d, not %d", cred.Uid, uid)
	}
	return nil
}

// connect returns a connection that is made on first use and again whenever it was lost. While the sidecar
// is down a call fails at once. The transport is not encrypted: both ends are on one machine, and each
// has asked the kernel who the other is.
func connect(cfg Config) (*grpc.ClientConn, error) {
	uid := cfg.serverUID()
	return grpc.NewClient("passthrough:///pdkeys",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialSocket(ctx, cfg.Socket, uid)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: connectTimeout},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second}),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(),
		grpc.WithInitialWindowSize(4<<20),
		grpc.WithInitialConnWindowSize(8<<20),
		grpc.WithReadBufferSize(64<<10),
		grpc.WithWriteBufferSize(64<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
}
