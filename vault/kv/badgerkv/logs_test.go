package badgerkv

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/vault/kv"
)

// twoLogs is a store as after two crashes: the first log was made a table, the second one goes on where it ends.
// The MANIFEST and the log of before are returned too.
func twoLogs(t *testing.T) (o Options, manifest, firstLog []byte) {
	t.Helper()
	first := testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, first)
	for i := range storeKeys {
		mustPut(t, s, key(i), value(i))
	}
	first = crash(t, first)
	manifest = mustRead(t, filepath.Join(first.Dir, "MANIFEST"))
	logs, err := memLogs(first.Dir)
	if err != nil || len(logs) != 1 {
		t.Fatalf("logs after the first crash: %v (error %v)", logs, err)
	}
	firstLog = mustRead(t, logs[0])
	mustClose(t, mustOpen(t, first)) // the log becomes a table
	s = mustOpen(t, first)
	mustPut(t, s, "last", "1")
	o = crash(t, first)
	// A store that was not opened in between would have gone on to count.
	if err := os.Rename(filepath.Join(o.Dir, "00001.mem"), filepath.Join(o.Dir, "00002.mem")); err != nil {
		t.Fatal(err)
	}
	return o, manifest, firstLog
}

// A table that the MANIFEST has forgotten, and a log that has lost its end while a later one is there, hide what was
// acknowledged behind "not found". What is whole opens.
func TestAHoleBetweenTablesAndLogsIsRefused(t *testing.T) {
	cases := map[string]struct {
		damage func(t *testing.T, o Options, manifest, log []byte)
		whole  bool
	}{
		"nothing": {func(*testing.T, Options, []byte, []byte) {}, true},
		"a forgotten table": {func(t *testing.T, o Options, manifest, _ []byte) {
			mustWrite(t, filepath.Join(o.Dir, "MANIFEST"), manifest)
		}, false},
		"a log instead of its table": {func(t *testing.T, o Options, manifest, log []byte) {
			mustWrite(t, filepath.Join(o.Dir, "MANIFEST"), manifest)
			mustWrite(t, filepath.Join(o.Dir, "00001.mem"), log)
		}, true},
		"a flipped bit in a log that is not the last": {func(t *testing.T, o Options, manifest, log []byte) {
			mustWrite(t, filepath.Join(o.Dir, "MANIFEST"), manifest)
			log[1000] ^= 1
			mustWrite(t, filepath.Join(o.Dir, "00001.mem"), log)
		}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o, manifest, log := twoLogs(t)
			c.damage(t, o, manifest, log)
			before := hashDir(t, o.Dir)
			s, err := Open(context.Background(), o)
			if !c.whole {
				if !errors.Is(err, kv.ErrIntegrity) {
					t.Errorf("Open: %v", err)
				}
				if hashDir(t, o.Dir) != before {
					t.Error("Open changed the directory")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range storeKeys {
				wantValue(t, s, key(i), value(i))
			}
			wantValue(t, s, "last", "1")
		})
	}
}

// A log that is in the tables already, and is there without the one after it, does not bring back what was deleted: the
// deletion has been compacted away together with what it deleted.
func TestALogThatOutlivedALaterOneBringsNothingBack(t *testing.T) {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, o)
	mustPut(t, s, "gone", "1")
	image := crash(t, o)
	log := mustRead(t, filepath.Join(image.Dir, "00001.mem"))
	mustClose(t, mustOpen(t, image)) // the log becomes a table
	s = mustOpen(t, image)
	if err := s.Update(context.Background(), func(w kv.Writer) error { w.Delete([]byte("gone")); return nil }); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "kept", "2")
	forgotten := false
	for i := 0; i < 20 && !forgotten; i++ {
		mustPut(t, s, "more", "2")
		mustClose(t, s)
		s = mustOpen(t, image)
		mustPut(t, s, "more", "3") // what is compacted away must be older than what is read
		time.Sleep(2 * renewInterval)
		if err := s.db.Flatten(1); err != nil {
			t.Fatal(err)
		}
		err := s.db.View(func(txn *badger.Txn) error {
			it := txn.NewKeyIterator(engineKey([]byte("gone")), badger.IteratorOptions{AllVersions: true})
			defer it.Close()
			it.Rewind()
			forgotten = !it.Valid()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !forgotten {
		t.Fatal("the deletion is still in the tables: this shows nothing")
	}
	mustPut(t, s, "later", "3")
	o = crash(t, image)
	mustWrite(t, filepath.Join(o.Dir, "00000.mem"), log)
	s = mustOpen(t, o)
	if _, ok, err := get(s, "gone"); ok || err != nil {
		t.Errorf("what was deleted is back: %v, error %v", ok, err)
	}
	wantValue(t, s, "kept", "2")
	wantValue(t, s, "later", "3")
}

func TestADeletionLeavesItsNumber(t *testing.T) {
	s := mustCreate(t, testOptions(t, filepath.Join(t.TempDir(), "store")))
	mustPut(t, s, "a", "1")
	if err := s.Update(context.Background(), func(w kv.Writer) error { w.Delete([]byte("a")); return nil }); err != nil {
		t.Fatal(err)
	}
	err := s.db.View(func(txn *badger.Txn) error { _, err := txn.Get(tickKey); return err })
	if err != nil {
		t.Errorf("number of the deletion: %v", err)
	}
}

func TestCommitsOfALogThatIsNoLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, content := range [][]byte{nil, make([]byte, 5), make([]byte, 100), append(make([]byte, logHeader), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if first, last, err := commitsOf(path); first != 0 || last != 0 || err != nil {
			t.Errorf("%d bytes: commits %d to %d, error %v", len(content), first, last, err)
		}
	}
}
