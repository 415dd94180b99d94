package sidecar_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

// dialRaw connects to a socket as any program can.
func dialRaw(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	do(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestTheAdminSocketIsForOurUserAlone(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	gid := nobody
	l, err := sidecar.ListenAdmin(sidecar.SocketConfig{Path: path, GroupID: &gid, AllowUIDs: []uint32{0, nobody}})
	do(t, err)
	defer l.Close()
	info, err := os.Lstat(path + keys.AdminSuffix)
	do(t, err)
	if info.Mode() != os.ModeSocket|0o600 || int(info.Sys().(*syscall.Stat_t).Gid) != os.Getgid() {
		t.Errorf("mode %v, group %d", info.Mode(), info.Sys().(*syscall.Stat_t).Gid)
	}
}

// TestAnotherUsersProcessIsRefusedAsAdmin: by the file's mode, and by the kernel's word if that is gone.
func TestAnotherUsersProcessIsRefusedAsAdmin(t *testing.T) {
	needRoot(t)
	dir := socketDir(t)
	program := filepath.Join(dir, "connect")
	self, err := os.Executable()
	do(t, err)
	text, err := os.ReadFile(self)
	do(t, err)
	do(t, os.WriteFile(program, text, 0o755))
	stats := sidecar.NewStats()
	l, err := sidecar.ListenAdmin(sidecar.SocketConfig{Path: filepath.Join(dir, "s"), AllowUIDs: []uint32{nobody}, Observer: stats})
	do(t, err)
	path := filepath.Join(dir, "s") + keys.AdminSuffix
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if conn, err := l.Accept(); err == nil {
			t.Error("a connection was accepted")
			_ = conn.Close()
		}
	}()
	for _, tt := range []struct {
		mode os.FileMode
		want string
	}{{0o600, "permission denied"}, {0o666, "closed"}} {
		do(t, os.Chmod(path, tt.mode))
		cmd := exec.Command(program)
		cmd.Env = []string{connectTo + "=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir = "/"
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("mode %v: %v, %q, want %s", tt.mode, err, out, tt.want)
		}
	}
	do(t, l.Close())
	<-ended
	if !strings.Contains(string(stats.Text(nil)), "pdkeys_peers_refused_total 1\n") {
		t.Error("the refusal was not counted")
	}
}

func TestEachSocketServesItsOwnServiceOnly(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys()
	w.Serve()
	ctx := t.Context()
	main, admin := dialRaw(t, w.Socket), dialRaw(t, w.Socket+keys.AdminSuffix)
	if _, err := keyspb.NewAdminClient(main).Jobs(ctx, &keyspb.JobsRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("Admin on the main socket: %v", err)
	}
	stream, err := keyspb.NewAdminClient(main).Backup(ctx, &keyspb.BackupRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("Backup on the main socket: %v", err)
	}
	if _, err := keyspb.NewSidecarClient(admin).Status(ctx, &keyspb.StatusRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("Sidecar on the admin socket: %v", err)
	}
	a := keyspb.NewAdminClient(admin)
	if in, err := a.Inventory(ctx, &keyspb.InventoryRequest{}); err != nil || in.Subjects != 1 {
		t.Errorf("Inventory = %v, %v", in, err)
	}
	started, err := a.StartJob(ctx, &keyspb.StartJobRequest{Scope: keyring.ScopeKEK, By: "somebody else"})
	if err != nil || started.Job.By != "pdkeys" {
		t.Errorf("StartJob = %v, %v", started, err)
	}
	if jobs, err := a.Jobs(ctx, &keyspb.JobsRequest{}); err != nil || len(jobs.Jobs) != 1 {
		t.Errorf("Jobs = %v, %v", jobs, err)
	}
}

// TestBackupStreamsInBoundedChunks, and says when it fails.
func TestBackupStreamsInBoundedChunks(t *testing.T) {
	archive := bytes.Repeat([]byte("0123456789abcdef"), 60_000)
	var mu sync.Mutex
	var failing error
	panics := false
	w := sidecartest.New(t)
	w.Configure = func(c *sidecar.Config) {
		c.Backup = func(_ context.Context, out io.Writer) error {
			mu.Lock()
			defer mu.Unlock()
			if panics {
				panic("canary")
			}
			for _, n := range []int{1, 0, 700_000} {
				if _, err := out.Write(archive[:n]); err != nil {
					return err
				}
			}
			if failing != nil {
				return failing
			}
			_, err := out.Write(archive[700_001:])
			return err
		}
	}
	w.Restart()
	w.Serve()
	read := func() ([]byte, error) {
		stream, err := keyspb.NewAdminClient(dialRaw(t, w.Socket+keys.AdminSuffix)).Backup(t.Context(), &keyspb.BackupRequest{})
		if err != nil {
			return nil, err
		}
		var all []byte
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return all, nil
			}
			if err != nil {
				return all, err
			}
			if len(chunk.Data) > 256<<10 || len(chunk.Data) == 0 {
				t.Errorf("chunk of %d bytes", len(chunk.Data))
			}
			all = append(all, chunk.Data...)
		}
	}
	got, err := read()
	if err != nil || !bytes.Equal(got, append(append(bytes.Clone(archive[:1]), archive[:700_000]...), archive[700_001:]...)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	mu.Lock()
	failing = errors.New("disk canary")
	mu.Unlock()
	if _, err := read(); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "canary") {
		t.Errorf("failing: %v", err)
	}
	mu.Lock()
	panics = true
	mu.Unlock()
	if _, err := read(); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "canary") {
		t.Errorf("panicking: %v", err)
	}

	none := sidecartest.New(t)
	none.Serve()
	stream, err := keyspb.NewAdminClient(dialRaw(t, none.Socket+keys.AdminSuffix)).Backup(t.Context(), &keyspb.BackupRequest{})
	do(t, err)
	if _, err := stream.Recv(); whyOf(err) != "no-backup" {
		t.Errorf("without a backup: %v", err)
	}
}

// TestLongCallsMayTakeLong, and others may not.
func TestLongCallsMayTakeLong(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys().RotateSubjects(1)
	w.Serve()
	left := make(map[string]time.Duration)
	var mu sync.Mutex
	w.Ring.Deadline(func(op string, d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		left[op] = d
	})
	c := keyspb.NewSidecarClient(dialRaw(t, w.Socket))
	id := bytes.Repeat([]byte{7}, 16)
	ctx := t.Context()
	_, err := c.Retire(ctx, &keyspb.RetireRequest{Rotation: 1, Subjects: [][]byte{id}})
	do(t, err)
	_, err = c.Reseal(ctx, &keyspb.ResealRequest{Rotation: 1, Subjects: []*keyspb.ResealSubject{{Subject: id}}})
	do(t, err)
	_, err = c.Jobs(ctx, &keyspb.JobsRequest{})
	do(t, err)
	mu.Lock()
	defer mu.Unlock()
	if left["Retire"] < 4*time.Second || left["Reseal"] < 4*time.Second || left["Jobs"] > 3*time.Second || left["Jobs"] == 0 {
		t.Errorf("time left: %v", left)
	}
}
