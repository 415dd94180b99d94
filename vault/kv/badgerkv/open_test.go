package badgerkv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4/options"

	"github.com/prototypster/pdvault/vault/kv"
)

func TestOpenNeverCreates(t *testing.T) {
	empty := t.TempDir()
	if err := os.Chmod(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(empty, "absent")
	for _, dir := range []string{absent, empty} {
		_, err := Open(context.Background(), testOptions(t, dir))
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of %s: %v", dir, err)
		}
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 {
		t.Errorf("Open left %v (error %v)", entries, err)
	}
}

func TestCreateRefusesWhatIsNotEmpty(t *testing.T) {
	o, _ := closedStore(t)
	before := hashDir(t, o.Dir)
	if _, err := Create(context.Background(), o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a store: %v", err)
	}
	if hashDir(t, o.Dir) != before {
		t.Error("Create changed the store")
	}
	file := filepath.Join(t.TempDir(), "file")
	mustWrite(t, file, nil)
	if _, err := Create(context.Background(), testOptions(t, file)); err == nil {
		t.Error("Create took a file")
	}
	unmounted := filepath.Join(t.TempDir(), "absent", "store")
	if _, err := Create(context.Background(), testOptions(t, unmounted)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Create below an absent directory: %v", err)
	}
}

func TestCreateTakesTheRootOfAFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "lost+found"), 0o700), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, testOptions(t, dir))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode is %v (error %v)", info.Mode(), err)
	}
}

func TestIdentity(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	o.Now = func() time.Time { return now }
	s := mustCreate(t, o)
	other := mustCreate(t, testOptions(t, filepath.Join(t.TempDir(), "other")))
	if len(s.ID()) != 32 || s.ID() == other.ID() {
		t.Errorf("ids are %q and %q", s.ID(), other.ID())
	}
	mustClose(t, s)
	var got sentinel
	if err := json.Unmarshal(mustRead(t, filepath.Join(o.Dir, sentinelFile)), &got); err != nil {
		t.Fatal(err)
	}
	if want := (sentinel{Format: 1, ID: s.ID(), Kind: "test", Created: now}); got != want {
		t.Errorf("sentinel is %+v, want %+v", got, want)
	}
	o.Kind = "" // any
	if again := mustOpen(t, o); again.ID() != s.ID() {
		t.Errorf("id changed from %q to %q", s.ID(), again.ID())
	}
}

func TestOpenRefusesOtherModes(t *testing.T) {
	o, _ := closedStore(t)
	for _, mode := range []os.FileMode{0o750, 0o701, 0o777} {
		if err := os.Chmod(o.Dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), o); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

func TestOpenRefusesFileSystems(t *testing.T) {
	o, _ := closedStore(t)
	before := hashDir(t, o.Dir)
	for magic, name := range refusedFS {
		o.hooks.statfs = func(string) (fsInfo, error) { return fsInfo{magic: magic, total: 1 << 40, free: 1 << 40}, nil }
		if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Open on %s: %v", name, err)
		}
		other := o
		other.Dir = filepath.Join(t.TempDir(), "store")
		if _, err := Create(context.Background(), other); err == nil {
			t.Errorf("Create on %s succeeded", name)
		}
	}
	if hashDir(t, o.Dir) != before {
		t.Error("a refused Open changed the store")
	}
}

// TestOpenRefusesDamage covers what the guard itself sees. It must do so before anything is changed.
func TestOpenRefusesDamage(t *testing.T) {
	file := func(name string) func(o Options) string {
		return func(o Options) string { return filepath.Join(o.Dir, name) }
	}
	manifest, marker, store := file("MANIFEST"), file(cleanFile), file(sentinelFile)
	cases := map[string]func(t *testing.T, o Options, older []byte){
		"MANIFEST missing":          func(t *testing.T, o Options, _ []byte) { mustRemove(t, manifest(o)) },
		"MANIFEST missing, unclean": func(t *testing.T, o Options, _ []byte) { mustRemove(t, manifest(o)); mustRemove(t, marker(o)) },
		"MANIFEST missing, no tables": func(t *testing.T, o Options, _ []byte) {
			mustRemove(t, manifest(o))
			for _, path := range tables(t, o.Dir) {
				mustRemove(t, path)
			}
		},
		"MANIFEST older":            func(t *testing.T, o Options, older []byte) { mustWrite(t, manifest(o), older) },
		"MANIFEST empty, unclean":   func(t *testing.T, o Options, _ []byte) { mustWrite(t, manifest(o), nil); mustRemove(t, marker(o)) },
		"MANIFEST flipped, unclean": func(t *testing.T, o Options, _ []byte) { flip(t, manifest(o), -3); mustRemove(t, marker(o)) },
		"sentinel missing":          func(t *testing.T, o Options, _ []byte) { mustRemove(t, store(o)) },
		"sentinel empty":            func(t *testing.T, o Options, _ []byte) { mustWrite(t, store(o), nil) },
		"sentinel without id":       func(t *testing.T, o Options, _ []byte) { mustWrite(t, store(o), []byte(`{"format":1,"kind":"test"}`)) },
		"sentinel of another kind": func(t *testing.T, o Options, _ []byte) {
			editSentinel(t, store(o), func(s *sentinel) { s.Kind = "keys" })
		},
		"sentinel of a newer format": func(t *testing.T, o Options, _ []byte) {
			editSentinel(t, store(o), func(s *sentinel) { s.Format++ })
		},
		"sentinel of another store": func(t *testing.T, o Options, _ []byte) {
			editSentinel(t, store(o), func(s *sentinel) { s.ID = strings.Repeat("ab", 16) })
		},
		"clean marker damaged":   func(t *testing.T, o Options, _ []byte) { mustWrite(t, marker(o), []byte("{")) },
		"table missing":          func(t *testing.T, o Options, _ []byte) { mustRemove(t, tables(t, o.Dir)[0]) },
		"table empty":            func(t *testing.T, o Options, _ []byte) { mustWrite(t, tables(t, o.Dir)[0], nil) },
		"table cut":              func(t *testing.T, o Options, _ []byte) { truncate(t, tables(t, o.Dir)[0], 100) },
		"table's footer damaged": func(t *testing.T, o Options, _ []byte) { flip(t, tables(t, o.Dir)[0], -1) },
		"table's index damaged":  func(t *testing.T, o Options, _ []byte) { flip(t, tables(t, o.Dir)[0], -40) },
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			o, older := closedStore(t)
			damage(t, o, older)
			before := hashDir(t, o.Dir)
			s, err := Open(context.Background(), o)
			if err == nil {
				mustClose(t, s)
			}
			if !errors.Is(err, kv.ErrIntegrity) {
				t.Fatalf("Open: %v", err)
			}
			if hashDir(t, o.Dir) != before {
				t.Errorf("Open changed the directory, error %v", err)
			}
		})
	}
}

func TestMissingManifestSaysHowToRecover(t *testing.T) {
	o, _ := closedStore(t)
	mustRemove(t, filepath.Join(o.Dir, "MANIFEST"))
	_, err := Open(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "backup") || !strings.Contains(err.Error(), copyDir) {
		t.Errorf("error is %v", err)
	}
}

func TestOpenRefusesForeignData(t *testing.T) {
	o, _ := closedStore(t)
	editSentinel(t, filepath.Join(o.Dir, sentinelFile), func(s *sentinel) { s.ID = strings.Repeat("ab", 16) })
	mustRemove(t, filepath.Join(o.Dir, cleanFile)) // so that only the canary can tell
	if _, err := Open(context.Background(), o); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("Open: %v", err)
	}
}

// Whatever byte of a table is not what was written, it is noticed before the engine opens the table, which it does where
// damage ends the process.
func TestEachFlippedByteOfATableIsNoticed(t *testing.T) {
	o, _ := closedStore(t)
	for _, path := range tables(t, o.Dir) {
		eachFlip(t, path, func(at int, bit byte) {
			if _, err := checkTable(o.Dir, mustID(t, path)); err == nil {
				t.Errorf("bit %#02x of byte %d of %s is not noticed", bit, at, filepath.Base(path))
			}
		})
		if _, err := checkTable(o.Dir, mustID(t, path)); err != nil {
			t.Errorf("as it was: %v", err)
		}
	}
}

// TestFlippedBits damages tables all over. Each time the store must refuse to open, or hold what it held.
func TestFlippedBits(t *testing.T) {
	o, _ := closedStore(t)
	refused := 0
	for _, path := range tables(t, o.Dir) {
		whole := mustRead(t, path)
		const flips = 24
		for n := range flips {
			offset := len(whole) * n / flips
			damaged := crash(t, o)
			flip(t, filepath.Join(damaged.Dir, filepath.Base(path)), offset)
			s, err := Open(context.Background(), damaged)
			if err != nil {
				refused++
				if !errors.Is(err, kv.ErrIntegrity) {
					t.Errorf("offset %d of %d: %v", offset, len(whole), err)
				}
				continue
			}
			for i := range storeKeys {
				wantValue(t, s, key(i), value(i))
			}
			mustClose(t, s)
		}
	}
	if refused == 0 {
		t.Error("no flipped bit was noticed")
	}
	t.Logf("%d stores refused to open", refused)
}

func TestSecondOpenerFailsAtOnce(t *testing.T) {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, o)
	before := hashDir(t, o.Dir)
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrInUse) {
		t.Errorf("Open of a store that is open: %v", err)
	}
	if hashDir(t, o.Dir) != before {
		t.Error("the second opener changed the store")
	}
	mustPut(t, s, "a", "1")
	mustClose(t, s)
	wantValue(t, mustOpen(t, o), "a", "1")
}

func TestUncleanStopCopiesAside(t *testing.T) {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, o)
	mustPut(t, s, "a", "1")
	crashed := crash(t, o)
	wantCopy := func() {
		t.Helper()
		logs, err := memLogs(crashed.Dir)
		if err != nil || len(logs) == 0 {
			t.Fatalf("no logs (error %v)", err)
		}
		want := map[string][]byte{"MANIFEST": mustRead(t, filepath.Join(crashed.Dir, "MANIFEST"))}
		for _, path := range logs {
			want[filepath.Base(path)] = mustRead(t, path)
		}
		mustClose(t, mustOpen(t, crashed))
		got, err := list(filepath.Join(crashed.Dir, copyDir))
		if err != nil || len(got) != len(want) {
			t.Errorf("copied %v, want %d files (error %v)", got, len(want), err)
		}
		for name, data := range want {
			path := filepath.Join(crashed.Dir, copyDir, name)
			if !bytes.Equal(mustRead(t, path), data) {
				t.Errorf("the copy of %s differs", name)
			}
			if n, err := allocated(path); err != nil || n > 1<<20 {
				t.Errorf("the copy of %s takes %d bytes of %d (error %v)", name, n, len(data), err)
			}
		}
	}
	wantCopy()

	s2 := mustOpen(t, crashed)
	wantValue(t, s2, "a", "1")
	mustPut(t, s2, "b", "2")
	crashed = crash(t, crashed)
	if err := os.MkdirAll(filepath.Join(crashed.Dir, copyDir+".tmp", "left over"), 0o700); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(crashed.Dir, "CLEAN.json.tmp"), []byte("left over"))
	wantCopy()
}

func TestCleanStopCopiesNothing(t *testing.T) {
	o, _ := closedStore(t)
	mustClose(t, mustOpen(t, o))
	if _, err := os.Stat(filepath.Join(o.Dir, copyDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a copy (error %v)", err)
	}
}

func TestUnsyncedEngineIsRefused(t *testing.T) {
	o, _ := closedStore(t)
	o.hooks.noSync = true
	if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), "synced") {
		t.Errorf("Open without synced writes: %v", err)
	}
	o.Dir = filepath.Join(t.TempDir(), "store")
	if _, err := Create(context.Background(), o); err == nil || !strings.Contains(err.Error(), "synced") {
		t.Errorf("Create without synced writes: %v", err)
	}
}

func TestEngineOptions(t *testing.T) {
	o, err := Options{Dir: "x"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	sound := o.engine()
	if err := verifyEngine(sound); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
	if sound.ValueThreshold <= kv.MaxValueSize {
		t.Error("a value can reach the value log")
	}
	for name, weak := range map[string]error{
		"memory":      verifyEngine(sound.WithInMemory(true)),
		"lock":        verifyEngine(sound.WithBypassLockGuard(true)),
		"conflicts":   verifyEngine(sound.WithDetectConflicts(false)),
		"blocks":      verifyEngine(sound.WithChecksumVerificationMode(options.OnBlockRead)),
		"all blocks":  verifyEngine(sound.WithChecksumVerificationMode(options.OnTableAndBlockRead)),
		"sync":        verifyEngine(sound.WithSyncWrites(false)),
		"without log": verifyEngine(sound.WithLogger(nil)),
	} {
		if weak == nil {
			t.Errorf("%s: weak options were taken", name)
		}
	}
	for _, bad := range []Options{{}, {Dir: "x", MemTableSize: 1}} {
		if _, err := bad.withDefaults(); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func flip(t testing.TB, path string, offset int) {
	t.Helper()
	if offset < 0 {
		offset += len(mustRead(t, path))
	}
	flipBit(t, path, offset, 0x10)
}

// flipBit flips a bit of one byte of a file, in place.
func flipBit(t testing.TB, path string, at int, bit byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{b[0] ^ bit}, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// eachFlip calls fn with two bits of each byte of a file flipped, one after the other: one of eight in turn, and the high one,
// which makes numbers negative.
func eachFlip(t *testing.T, path string, fn func(at int, bit byte)) {
	t.Helper()
	for at := range mustRead(t, path) {
		for _, bit := range []byte{1 << (at % 8), 0x80} {
			flipBit(t, path, at, bit)
			fn(at, bit)
			flipBit(t, path, at, bit)
		}
	}
}

func truncate(t testing.TB, path string, less int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()-less)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func editSentinel(t testing.TB, path string, edit func(*sentinel)) {
	t.Helper()
	var s sentinel
	if err := json.Unmarshal(mustRead(t, path), &s); err != nil {
		t.Fatal(err)
	}
	edit(&s)
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, path, data)
}
