package badgerkv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/vault/kv"
)

func testOptions(t testing.TB, dir string) Options {
	return Options{
		Dir:          dir,
		Kind:         "test",
		Logger:       slog.New(slog.DiscardHandler),
		Fatal:        func(err error) { t.Errorf("store would have ended the process: %v", err) },
		Space:        Space{ReadOnly: -1, Reserve: -1, Ballast: -1},
		MemTableSize: 8 << 20,
	}
}

func mustCreate(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, s) })
	return s
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, s) })
	return s
}

// closes closes a store that may have failed. A test that left something for which it waits fails, and does not hang.
func closes(t testing.TB, s *Store) {
	t.Helper()
	if !within(2*time.Minute, func() { s.Close() }) {
		stacks := make([]byte, 1<<20)
		t.Errorf("the store does not close:\n%s", stacks[:runtime.Stack(stacks, true)])
	}
}

// within reports whether fn ends in time. If it does not, it is left to itself.
func within(limit time.Duration, fn func()) bool {
	ended := make(chan struct{})
	go func() { fn(); close(ended) }()
	select {
	case <-ended:
		return true
	case <-time.After(limit):
		return false
	}
}

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(ctx context.Context, s *Store, key, value string) error {
	return s.Update(ctx, func(w kv.Writer) error { w.Set([]byte(key), []byte(value)); return nil })
}

func mustPut(t testing.TB, s *Store, key, value string) {
	t.Helper()
	if err := put(context.Background(), s, key, value); err != nil {
		t.Fatal(err)
	}
}

// get returns the value and whether there is one.
func get(s *Store, key string) (value string, ok bool, err error) {
	err = s.View(context.Background(), func(r kv.Reader) error {
		values, err := r.Get([]byte(key))
		if err == nil {
			value, ok = string(values[0]), values[0] != nil
		}
		return err
	})
	return value, ok, err
}

func wantValue(t testing.TB, s *Store, key, want string) {
	t.Helper()
	if got, ok, err := get(s, key); got != want || !ok || err != nil {
		t.Errorf("value of %q is %q (there: %t, error: %v), want %q", key, got, ok, err, want)
	}
}

// closedStore makes a store with two generations of tables and closes it. It returns its options and the
// MANIFEST of the first generation.
func closedStore(t testing.TB) (o Options, olderManifest []byte) {
	t.Helper()
	o = testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, o)
	for i := range storeKeys {
		mustPut(t, s, key(i), "old")
	}
	mustClose(t, s)
	olderManifest = mustRead(t, filepath.Join(o.Dir, "MANIFEST"))
	s = mustOpen(t, o)
	for i := range storeKeys {
		mustPut(t, s, key(i), value(i))
	}
	mustClose(t, s)
	return o, olderManifest
}

const storeKeys = 20

func key(i int) string   { return fmt.Sprintf("key/%04d", i) }
func value(i int) string { return fmt.Sprintf("value %d %s", i, strings.Repeat("x", 100)) }

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustWrite(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustRemove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// tables returns the paths of the tables in dir, oldest first.
func tables(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("the store has no tables (error %v)", err)
	}
	return paths
}

// hashDir is one hash over names, modes and contents of everything below dir.
func hashDir(t testing.TB, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %s %d\n", path, info.Mode(), info.Size())
		if d.IsDir() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(h, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// crash copies the directory of an open store to a new one, which then looks as after a kill -9.
func crash(t testing.TB, o Options) Options {
	t.Helper()
	from := o.Dir
	o.Dir = filepath.Join(t.TempDir(), "crashed")
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		to := filepath.Join(o.Dir, e.Name())
		if err := copySparse(filepath.Join(from, e.Name()), to); err != nil {
			t.Fatal(err)
		}
		if e.Name() == ballastFile { // of which the copy has become a hole
			f, err := os.OpenFile(to, os.O_WRONLY, 0)
			if err == nil {
				err = errors.Join(allocate(f, o.Space.Ballast), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return o
}
