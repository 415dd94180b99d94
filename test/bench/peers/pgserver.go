package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// debianBin is where Debian keeps the programs of a server that are not on the PATH.
const debianBin = "/usr/lib/postgresql/*/bin"

// pgServer is a private PostgreSQL on a socket in a directory of its own.
type pgServer struct {
	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
}

// pgProgram finds a program of the server.
func pgProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	found, err := filepath.Glob(filepath.Join(debianBin, name))
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%w: no %s on the PATH or in %s", ErrMissing, name, debianBin)
	}
	return found[len(found)-1], nil
}

// pgUser is whom PostgreSQL runs as: it refuses root. Nil: as we do.
func pgUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("%w: neither a user postgres nor nobody to run PostgreSQL as", ErrMissing)
}

// startPG makes a cluster with checksums in a temporary directory and starts it.
func startPG(ctx context.Context) (_ *pgServer, err error) {
	initdb, err := pgProgram("initdb")
	if err != nil {
		return nil, err
	}
	postgres, err := pgProgram("postgres")
	if err != nil {
		return nil, err
	}
	as, err := pgUser()
	if err != nil {
		return nil, err
	}
	s := &pgServer{}
	if s.dir, err = os.MkdirTemp("", "pdvpg"); err != nil { // not below a directory that is ours alone
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if as != nil {
		if err := os.Chown(s.dir, int(as.Uid), int(as.Gid)); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(s.dir, "data")
	init := exec.CommandContext(ctx, initdb, "-D", data, "-U", "bench", "--auth=trust", "--data-checksums", "--encoding=UTF8", "--locale=C")
	init.Dir, init.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: as}
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	s.cmd = exec.Command(postgres, "-D", data, "-k", s.dir,
		"-c", "listen_addresses=", "-c", "max_connections=300", "-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB",
		"-c", "synchronous_commit=on", "-c", "fsync=on", "-c", "full_page_writes=on", "-c", "unix_socket_permissions=0700")
	s.cmd.Dir = s.dir
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// SIGQUIT: at once, and with all of its processes.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: syscall.SIGQUIT}
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return nil, err
	}
	s.exited = make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // its log says more
		close(s.exited)
	}()
	return s, s.await(ctx)
}

// await waits until it takes connections.
func (s *pgServer) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := s.connect(ctx)
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-s.exited:
			log, _ := os.ReadFile(filepath.Join(s.dir, "log")) // what cannot be read is shown as nothing
			return fmt.Errorf("PostgreSQL ended at start: %s", log)
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not come up: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// connect makes a connection that ignores the PG* variables of whoever runs this.
func (s *pgServer) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=5432 user=bench dbname=postgres sslmode=disable connect_timeout=10", s.dir))
}

// close stops the server and removes its directory.
func (s *pgServer) close() error {
	if s.cmd != nil {
		if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-s.exited:
		case <-time.After(20 * time.Second):
			if err := s.cmd.Process.Signal(syscall.SIGQUIT); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return err
			}
			<-s.exited
		}
	}
	return os.RemoveAll(s.dir)
}
