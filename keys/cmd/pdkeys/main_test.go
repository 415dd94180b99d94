package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
)

// TestMain lets the tests run this program as a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("PDKEYS_TEST_MAIN") == "1" {
		main()
	}
	os.Exit(m.Run())
}

// program is pdkeys with these arguments.
func program(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "PDKEYS_TEST_MAIN=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// code runs pdkeys to its end.
func code(t *testing.T, args ...string) (int, string) {
	t.Helper()
	cmd, out := program(t, args...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// instance writes a configuration in a new directory.
func instance(t *testing.T, more string) (dir, config string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pdk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config = filepath.Join(dir, "pdkeys.yaml")
	text := "instance: test\nsocket: {path: s}\nstore: {dir: store}\nkek: {type: local, local: {path: root.key}}\n" + more
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, config
}

// start runs pdkeys serve and waits until it answers.
func start(t *testing.T, dir, config string) (cmd *exec.Cmd, out *bytes.Buffer, c *client.Client) {
	t.Helper()
	cmd, out = program(t, "serve", "--config", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		c, err := client.Dial(t.Context(), client.Config{Socket: filepath.Join(dir, "s")})
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return cmd, out, c
		}
		if !errors.Is(err, keys.ErrUnavailable) || time.Since(begin) > 20*time.Second {
			t.Fatalf("the sidecar does not answer: %v\n%s", err, out)
		}
	}
}

func TestLifeOfAnInstance(t *testing.T) {
	dir, config := instance(t, "metrics: {textfile: m.prom, interval: 1s}\nlog: {level: debug}\n")
	if rc, out := code(t, "serve", "--config", config); rc != exitStore || !strings.Contains(out, "pdkeys init") {
		t.Errorf("serve before init: %d, %s", rc, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "store")); err == nil {
		t.Error("serve created a store")
	}
	if rc, out := code(t, "init", "--config", config); rc != exitOK || !strings.Contains(out, "created key store") {
		t.Fatalf("init: %d, %s", rc, out)
	}
	if rc, out := code(t, "init", "--config", config); rc != exitStore {
		t.Errorf("init again: %d, %s", rc, out)
	}
	if rc, _ := code(t, "status", "--config", config); rc != exitFailed {
		t.Errorf("status without a sidecar: %d", rc)
	}

	cmd, out, c := start(t, dir, config)
	wrapped, err := c.Protect(t.Context(), "ledger-key", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	rc, table := code(t, "status", "--config", config)
	if rc != exitOK || !strings.Contains(table, "kek state") || !strings.Contains(table, "usable") {
		t.Errorf("status: %d, %s", rc, table)
	}
	if rc, text := code(t, "serve", "--config", config); rc != exitStore {
		t.Errorf("a second sidecar on the same store: %d, %s", rc, text)
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(dir, "m.prom")); err == nil && strings.Contains(string(text), `pdkeys_kek_state{state="ok"} 1`) {
			break
		}
		if time.Since(begin) > 10*time.Second { // less than the default interval
			t.Fatal("the metrics are not written at the interval")
		}
	}
	proc, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(proc)), " "), "Max core file size 0 0 bytes") {
		t.Errorf("core dumps are not off: %v", err)
	}

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve ended with %v\n%s", err, out)
	}
	if !strings.Contains(out.String(), `"msg":"ready"`) || strings.Contains(out.String(), "secret") {
		t.Errorf("log:\n%s", out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "m.prom")); err != nil || !strings.Contains(string(text), "pdkeys_opens_total 0\n") {
		t.Errorf("metrics: %v\n%s", err, text)
	}
	if _, err := os.Lstat(filepath.Join(dir, "s")); err == nil {
		t.Error("the socket was left behind")
	}

	// The next process has the same keys, also after a kill that leaves the socket.
	cmd, _, c2 := start(t, dir, config)
	if got, err := c2.Unprotect(t.Context(), "ledger-key", wrapped); err != nil || string(got) != "secret" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	_, _, c3 := start(t, dir, config)
	if got, err := c3.Unprotect(t.Context(), "ledger-key", wrapped); err != nil || string(got) != "secret" {
		t.Errorf("after a kill: %q, %v", got, err)
	}
	// The client of before finds the new process by itself.
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		got, err := c.Unprotect(t.Context(), "ledger-key", wrapped)
		if err == nil && string(got) == "secret" {
			break
		}
		if !errors.Is(err, keys.ErrUnavailable) || time.Since(begin) > 20*time.Second {
			t.Fatalf("the first client: %v", err)
		}
	}
}

func TestAnotherInstanceNameIsRefused(t *testing.T) {
	_, config := instance(t, "")
	if rc, out := code(t, "init", "--config", config); rc != exitOK {
		t.Fatalf("init: %d, %s", rc, out)
	}
	text, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, bytes.Replace(text, []byte("instance: test"), []byte("instance: other"), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if rc, out := code(t, "serve", "--config", config); rc == exitOK || rc == exitFailed {
		t.Errorf("serve: %d, %s", rc, out)
	}
}

func TestASocketThatIsNotOursIsRefused(t *testing.T) {
	dir, config := instance(t, "")
	if rc, out := code(t, "init", "--config", config); rc != exitOK {
		t.Fatalf("init: %d, %s", rc, out)
	}
	if err := os.Symlink("/dev/null", filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	if rc, out := code(t, "serve", "--config", config); rc != exitSocket {
		t.Errorf("serve: %d, %s", rc, out)
	}
}

func TestParentWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stopped := make(chan struct{})
	go watchParent(ctx, os.Getppid()+1, slog.New(slog.DiscardHandler), func() { close(stopped) })
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Error("the process goes on without its parent")
	}
}

func TestConfig(t *testing.T) {
	const good = "instance: main\nsocket: {path: /run/s, group: 0, allow_uids: [1, 2]}\nstore: {dir: d}\ncache: {size: 5, ttl: 20s}\n"
	const local = "kek: {type: local, local: {path: r}}\n"
	const hc = "kek: {type: hcvault, hcvault: {address: 'https://h', key: k, approle: {role_id_file: a, secret_id_file: b, wrapped: true}}}\n"
	for _, tt := range []struct {
		name, text string
		want       string // part of the error; none when empty
	}{
		{"local", good + local, ""},
		{"hcvault", good + hc, ""},
		{"json number as group", strings.Replace(good, "group: 0", "group: '0'", 1) + local, ""},
		{"empty", "", "instance"},
		{"no yaml", "{", "yaml"},
		{"unknown member", good + local + "dev: true\n", "dev"},
		{"unknown nested member", good + strings.Replace(local, "path: r", "path: r, key: abc", 1), "key"},
		{"other case", strings.Replace(good, "instance", "Instance", 1) + local, "Instance"},
		{"member twice", good + "instance: b\n" + local, "already defined"},
		{"flag for a text", strings.Replace(good, "main", "true", 1) + local, "instance"},
		{"instance with a plus", strings.Replace(good, "main", "a+b", 1) + local, "instance"},
		{"instance with a space", strings.Replace(good, "main", "a b", 1) + local, "instance"},
		{"ttl too long", strings.Replace(good, "20s", "301s", 1) + local, "cache.ttl"},
		{"ttl without a unit", strings.Replace(good, "20s", "'20'", 1) + local, "ttl"},
		{"negative uid", strings.Replace(good, "[1, 2]", "[-1]", 1) + local, "allow_uids"},
		{"unknown group", strings.Replace(good, "group: 0", "group: no-such-group", 1) + local, "socket.group"},
		{"both kinds of KEK", good + "kek: {type: local, local: {path: r}, hcvault: {key: k}}\n", "kek.type is local"},
		{"hcvault without a role", good + "kek: {type: hcvault, hcvault: {address: 'https://h', key: k}}\n", "role_id_file"},
		{"no kek", good, "kek.type"},
		{"bad level", good + local + "log: {level: loud}\n", "log.level"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.yaml")
			text := strings.Replace(tt.text, "group: 0", "group: '0'", 1)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := loadConfig(path)
			if tt.want == "" {
				if err != nil {
					t.Fatalf("loadConfig: %v", err)
				}
				if want := filepath.Join(filepath.Dir(path), "d"); c.Store.Dir != want || c.Cache.TTL != 20*time.Second {
					t.Errorf("loaded %+v", c)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("loadConfig = %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestConfigThatAllMayWriteIsRefused(t *testing.T) {
	_, config := instance(t, "")
	if err := os.Chmod(config, 0o602); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(config); err == nil {
		t.Error("loadConfig took it")
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"serve"}, {"bogus"}, {"serve", "--bogus"}, {"serve", "x", "--config", "y"}, {"serve", "--config", "/nowhere"}} {
		var out bytes.Buffer
		if rc := run(t.Context(), args, &out, &out); rc != exitUsage {
			t.Errorf("%q: %d, %s", args, rc, out.String())
		}
	}
	var out bytes.Buffer
	if rc := run(t.Context(), []string{"version"}, &out, &out); rc != exitOK || !strings.Contains(out.String(), "fips140") {
		t.Errorf("version: %d, %s", rc, out.String())
	}
}

func TestLogLeavesOutUnknownAttributes(t *testing.T) {
	var out bytes.Buffer
	newLogger(&out, slog.LevelInfo).With("token", "canary").Info("message", "value", "canary", "why", "shown", slog.Group("g", "plaintext", "canary"))
	if s := out.String(); strings.Contains(s, "canary") || !strings.Contains(s, "shown") {
		t.Errorf("log: %s", s)
	}
}
