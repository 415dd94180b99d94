package badgerkv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/prototypster/pdvault/vault/kv"
)

func TestFailedCommitEndsTheStore(t *testing.T) {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	var fatal []error
	o.Fatal = func(err error) { fatal = append(fatal, err) }
	s := mustCreate(t, o)
	cause := errors.New("input/output error")
	if err := s.fail(cause); !errors.Is(err, cause) {
		t.Errorf("fail gave %v", err)
	}
	if len(fatal) != 1 || !errors.Is(fatal[0], cause) {
		t.Errorf("Fatal got %v", fatal)
	}
	if _, _, err := get(s, "a"); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("View after a failed commit: %v", err)
	}
	if err := put(context.Background(), s, "a", "1"); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("Update after a failed commit: %v", err)
	}
	if st := s.Stats(); st.Writable || st.ReserveOK || !st.FailedToCommit {
		t.Errorf("stats say %+v", st)
	}
	mustClose(t, s)
	if _, err := os.Stat(filepath.Join(o.Dir, cleanFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the stop counts as clean")
	}
}

// TestDamageWhileRunning cuts the tables of an open store, so that reading them faults.
func TestDamageWhileRunning(t *testing.T) {
	o, _ := closedStore(t)
	s := mustOpen(t, o)
	for _, path := range tables(t, o.Dir) {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := get(s, key(1)); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("Get of a damaged table: %v", err)
	} else if strings.Contains(err.Error(), key(1)) {
		t.Errorf("the error names the key: %v", err)
	}
	err := s.View(context.Background(), func(r kv.Reader) error {
		_, err := r.Scan([]byte("key/"), nil, 10)
		return err
	})
	if !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("Scan of a damaged table: %v", err)
	}
	// A caller that overlooks the error must not succeed either.
	err = s.View(context.Background(), func(r kv.Reader) error { _, _ = r.Get([]byte(key(1))); return nil })
	if !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("View that overlooks damage: %v", err)
	}
	err = s.Update(context.Background(), func(w kv.Writer) error {
		_, _ = w.Get([]byte(key(1)))
		w.Set([]byte("a"), nil)
		return nil
	})
	if !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("Update that overlooks damage: %v", err)
	}
	if n := s.Stats().DamagedReads; n < 4 {
		t.Errorf("%d damaged reads were counted", n)
	}
}

func TestPanicOfTheCallerStaysLoud(t *testing.T) {
	s := mustCreate(t, testOptions(t, filepath.Join(t.TempDir(), "store")))
	defer func() {
		if p := recover(); p != "bug" {
			t.Errorf("recovered %v", p)
		}
		mustPut(t, s, "a", "1") // and the store goes on
		mustClose(t, s)
	}()
	_ = s.Update(context.Background(), func(kv.Writer) error { panic("bug") })
}

func TestUseAfterTransaction(t *testing.T) {
	s := mustCreate(t, testOptions(t, filepath.Join(t.TempDir(), "store")))
	var r kv.Reader
	var w kv.Writer
	_ = s.View(context.Background(), func(got kv.Reader) error { r = got; return nil })
	_ = s.Update(context.Background(), func(got kv.Writer) error { w = got; return nil })
	for name, use := range map[string]func() error{
		"Get":  func() error { _, err := r.Get([]byte("a")); return err },
		"Scan": func() error { _, err := r.Scan(nil, nil, 1); return err },
	} {
		if err := use(); !errors.Is(err, errOver) {
			t.Errorf("%s after the transaction: %v", name, err)
		}
	}
	if s.Stats().DamagedReads != 0 {
		t.Error("misuse was counted as damage")
	}
	defer func() {
		if recover() == nil {
			t.Error("Set after the transaction did not panic")
		}
	}()
	w.Set([]byte("a"), nil)
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	running := goleak.IgnoreCurrent()
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, o)
	mustPut(t, s, "a", "1")
	mustClose(t, s)
	mustClose(t, mustOpen(t, o))
	goleak.VerifyNone(t, running)
}

func TestEngineLog(t *testing.T) {
	var out bytes.Buffer
	l := engineLog{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	l.Errorf("a %d\n", 1)
	l.Warningf("b")
	l.Infof("c")
	l.Debugf("d")
	for _, want := range []string{`level=ERROR msg="badger: a 1"`, `level=WARN msg="badger: b"`, `level=DEBUG msg="badger: c"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %q", want)
		}
	}
	if strings.Contains(out.String(), "badger: d") {
		t.Error("log has the messages of each commit")
	}
	l.Warningf(msgFailed, 1, errors.New("for: {left=6b6579} err: no space"), "{left=6b6579}")
	l.Warningf(msgNotDone, errors.New("for: {left=6b6579} err: no space"))
	l.Infof("This Range (numTables: %d)\nLeft:\n%s\nRight:\n%s\n", 1, "6b6579", "6b6579")
	if got := out.String(); strings.Contains(got, "6b6579") || strings.Count(got, "no space") != 2 {
		t.Errorf("log has keys, or not the cause: %s", got)
	}
}

const (
	helperDir     = "PDVAULT_TEST_STORE"
	helperNoSync  = "PDVAULT_TEST_NO_SYNC"
	helperCommits = 60
)

// TestHelperCommits is not a test: it is the program that the tests below run under strace. It prints the
// number of each commit that was acknowledged.
func TestHelperCommits(t *testing.T) {
	dir := os.Getenv(helperDir)
	if dir == "" {
		t.Skip("runs as the child of other tests")
	}
	o := testOptions(t, dir)
	o.Fatal = nil // the default, which exits
	o.Logger = nil
	o.hooks.noSync = os.Getenv(helperNoSync) != ""
	o.hooks.skipVerify = o.hooks.noSync
	s, err := Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range helperCommits {
		mustPut(t, s, key(i), value(i))
		fmt.Printf("acknowledged %d\n", i)
	}
	fmt.Println("all acknowledged")
	os.Exit(0) // no Close
}

// commitUnderFault runs the helper with every msync after the first few failing. It returns the helper's
// exit code and output.
func commitUnderFault(t *testing.T, dir string, env ...string) (code int, out string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace to make msync fail")
	}
	cmd := exec.Command(strace, "-f", "-qq", "-o", os.DevNull, "-e", "trace=msync", "-e", "inject=msync:error=EIO:when=20+",
		os.Args[0], "-test.run=^TestHelperCommits$")
	cmd.Env = append(append(os.Environ(), helperDir+"="+dir), env...)
	data, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
	case err != nil:
		t.Fatal(err)
	}
	if strings.Contains(string(data), "PTRACE") || strings.Contains(string(data), "ptrace") {
		t.Skipf("needs the right to trace: %s", data)
	}
	return cmd.ProcessState.ExitCode(), string(data)
}

func acknowledged(out string) (n int) {
	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "acknowledged ") {
			n++
		}
	}
	return n
}

func TestFailedSyncEndsTheProcess(t *testing.T) {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	code, out := commitUnderFault(t, o.Dir)
	acked := acknowledged(out)
	if code != ExitCode || acked == 0 || acked == helperCommits || !strings.Contains(out, "cannot commit") {
		t.Fatalf("exit code %d after %d acknowledged commits:\n%s", code, acked, out)
	}
	s := mustOpen(t, o)
	for i := range acked {
		wantValue(t, s, key(i), value(i))
	}
}

// TestFailedSyncControl shows that the test above can fail: an engine that does not sync acknowledges
// everything. Only a hook of this package's tests can bring it about.
func TestFailedSyncControl(t *testing.T) {
	code, out := commitUnderFault(t, filepath.Join(t.TempDir(), "store"), helperNoSync+"=1")
	if code != 0 || acknowledged(out) != helperCommits {
		t.Errorf("exit code %d after %d acknowledged commits:\n%s", code, acknowledged(out), out)
	}
}
