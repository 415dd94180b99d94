package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prototypster/pdvault/vault/kv"
)

// interfere runs an Update in whose first run of fn another commit happens after the reads and before the
// end. It reports how often fn ran.
func interfere(t *testing.T, s *kvStore, reads func(kv.Writer), meanwhile func(kv.Writer)) int {
	t.Helper()
	runs := 0
	s.mustUpdate(func(w kv.Writer) {
		runs++
		reads(w)
		if runs == 1 {
			s.mustUpdate(meanwhile)
		}
		w.Set([]byte("result"), fmt.Append(nil, runs))
	})
	s.wantValue("result", fmt.Sprint(runs))
	return runs
}

func wantRuns(t *testing.T, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("fn ran %d times, want %d", got, want)
	}
}

func set(key, value string) func(kv.Writer) {
	return func(w kv.Writer) { w.Set([]byte(key), []byte(value)) }
}

func del(key string) func(kv.Writer) { return func(w kv.Writer) { w.Delete([]byte(key)) } }

var updateCases = []kvCase{
	{"Update commits the writes together when fn returns nil", func(t *testing.T, s *kvStore) {
		s.mustSet("gone", "x")
		s.mustUpdate(func(w kv.Writer) {
			w.Set([]byte("a"), []byte("1"))
			w.Set([]byte("b"), []byte("2"))
			w.Delete([]byte("gone"))
			s.wantAbsent("a")
			s.wantValue("gone", "x")
		})
		s.wantValue("a", "1")
		s.wantValue("b", "2")
		s.wantAbsent("gone")
	}},
	{"Update shows fn its own writes", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "old", "p2", "old", "p4", "old")
		s.mustUpdate(func(w kv.Writer) {
			w.Set([]byte("p1"), []byte("new"))
			w.Delete([]byte("p2"))
			w.Set([]byte("p3"), []byte("new"))
			if v := mustGet(t, w, "p1"); string(v) != "new" {
				t.Errorf("p1 is %q", v)
			}
			if v := mustGet(t, w, "p2"); v != nil {
				t.Errorf("p2 is %q", v)
			}
			wantKeys(t, mustScan(t, w, []byte("p"), nil, 10), "p1", "p3", "p4")
			wantKeys(t, mustScan(t, w, []byte("p"), []byte("p1"), 1), "p3")
			w.Set([]byte("p2"), []byte("again"))
			w.Delete([]byte("p3"))
			wantKeys(t, mustScan(t, w, []byte("p"), nil, 10), "p1", "p2", "p4")
		})
		wantKeys(t, s.scan([]byte("p"), nil, 10), "p1", "p2", "p4")
	}},
	{"An error of fn writes nothing", func(t *testing.T, s *kvStore) {
		s.mustSet("kept", "x")
		want := errors.New("mine")
		err := s.Update(context.Background(), func(w kv.Writer) error {
			w.Set([]byte("a"), []byte("1"))
			w.Delete([]byte("kept"))
			return want
		})
		wantError(t, err, want)
		s.wantAbsent("a")
		s.wantValue("kept", "x")
	}},
	{"An error of fn that wraps ErrConflict is returned and fn does not run again", func(t *testing.T, s *kvStore) {
		runs := 0
		err := s.Update(context.Background(), func(kv.Writer) error {
			runs++
			return fmt.Errorf("inner: %w", kv.ErrConflict)
		})
		wantError(t, err, kv.ErrConflict)
		wantRuns(t, runs, 1)
	}},
	{"If a key that fn read was changed by another commit fn runs again on a new snapshot", func(t *testing.T, s *kvStore) {
		s.mustSet("n", "1")
		var seen []string
		runs := interfere(t, s, func(w kv.Writer) { seen = append(seen, string(mustGet(t, w, "n"))) }, set("n", "2"))
		wantRuns(t, runs, 2)
		if len(seen) == 2 && (seen[0] != "1" || seen[1] != "2") {
			t.Errorf("fn saw %q", seen)
		}
	}},
	{"If a key that fn found absent was added fn runs again", func(t *testing.T, s *kvStore) {
		wantRuns(t, interfere(t, s, func(w kv.Writer) { mustGet(t, w, "n") }, set("n", "")), 2)
	}},
	{"If a key that fn read was deleted fn runs again", func(t *testing.T, s *kvStore) {
		s.mustSet("n", "1")
		wantRuns(t, interfere(t, s, func(w kv.Writer) { mustGet(t, w, "n") }, del("n")), 2)
	}},
	{"A commit that touches nothing that fn read does not disturb it", func(t *testing.T, s *kvStore) {
		s.mustSet("n", "1", "p1", "")
		reads := func(w kv.Writer) {
			mustGet(t, w, "n")
			mustScan(t, w, []byte("p"), nil, 10)
		}
		wantRuns(t, interfere(t, s, reads, set("q", "")), 1)
	}},
	{"If a range that fn scanned was changed fn runs again: a key was added to an empty range", func(t *testing.T, s *kvStore) {
		wantRuns(t, interfere(t, s, scans(t, "p", "", 10), set("p1", "")), 2)
	}},
	{"If a range that fn scanned was changed fn runs again: a key was added between others", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "", "p3", "")
		wantRuns(t, interfere(t, s, scans(t, "p", "", 10), set("p2", "")), 2)
	}},
	{"If a range that fn scanned was changed fn runs again: a key was added after the last", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "")
		wantRuns(t, interfere(t, s, scans(t, "p", "p1", 10), set("p\xff\xff", "")), 2)
	}},
	{"If a range that fn scanned was changed fn runs again: a key was added within a full page", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "", "p3", "", "p5", "")
		wantRuns(t, interfere(t, s, scans(t, "p", "", 2), set("p2", "")), 2)
	}},
	{"If a range that fn scanned was changed fn runs again: a value changed", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "old", "p2", "old")
		wantRuns(t, interfere(t, s, scans(t, "p", "", 2), set("p2", "new")), 2)
	}},
	{"If a range that fn scanned was changed fn runs again: a key was deleted", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "", "p2", "")
		wantRuns(t, interfere(t, s, scans(t, "", "", 10), del("p2")), 2)
	}},
	{"A change outside of the page that fn scanned does not disturb it", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "", "p2", "", "p3", "")
		wantRuns(t, interfere(t, s, scans(t, "p", "p1", 1), func(w kv.Writer) {
			w.Set([]byte("p3"), []byte("new"))
			w.Set([]byte("p1"), []byte("new"))
			w.Set([]byte("p0"), []byte("new"))
		}), 1)
	}},
	{"Transactions are serializable: no write skew", func(t *testing.T, s *kvStore) {
		// At least one of two must stay on duty; each leaves if the other is there.
		s.mustSet("duty/a", "", "duty/b", "")
		leave := func(who string) func(kv.Writer) {
			return func(w kv.Writer) {
				if len(mustScan(t, w, []byte("duty/"), nil, 10)) > 1 {
					w.Delete([]byte("duty/" + who))
				}
			}
		}
		wantRuns(t, interfere(t, s, leave("a"), leave("b")), 2)
		wantKeys(t, s.scan([]byte("duty/"), nil, 10), "duty/a")
	}},
	{"ErrConflict is returned after bounded retries and nothing was written", func(t *testing.T, s *kvStore) {
		runs := 0
		err := s.Update(context.Background(), func(w kv.Writer) error {
			runs++
			mustGet(t, w, "n")
			w.Set([]byte("result"), nil)
			s.mustSet("n", fmt.Sprint(runs))
			return nil
		})
		wantError(t, err, kv.ErrConflict)
		if runs < 2 || runs > 100 {
			t.Errorf("fn ran %d times", runs)
		}
		s.wantAbsent("result")
		s.mustSet("result", "later")
		s.wantValue("result", "later")
	}},
	{"When ctx ends before the commit has begun nothing is written", func(t *testing.T, s *kvStore) {
		ctx, cancel := context.WithCancel(context.Background())
		err := s.Update(ctx, func(w kv.Writer) error {
			w.Set([]byte("a"), nil)
			cancel()
			return nil
		})
		wantError(t, err, context.Canceled)
		s.wantAbsent("a")
		wantError(t, s.Update(ctx, func(w kv.Writer) error { w.Set([]byte("b"), nil); return nil }), context.Canceled)
		s.wantAbsent("b")
	}},
	{"A commit that has begun is awaited: the result tells whether it happened", func(t *testing.T, s *kvStore) {
		for i := range 100 {
			key := fmt.Sprint("k", i)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			err := s.Update(ctx, func(w kv.Writer) error {
				w.Set([]byte(key), nil)
				go func() {
					for range i {
						runtime.Gosched()
					}
					cancel()
					close(ended)
				}()
				return nil
			})
			<-ended
			if err == nil {
				s.wantValue(key, "")
			} else {
				wantError(t, err, context.Canceled)
				s.wantAbsent(key)
			}
		}
	}},
	{"A transaction that is larger than the engine takes gives ErrTooLarge and writes nothing", func(t *testing.T, s *kvStore) {
		value := make([]byte, kv.MaxValueSize)
		err := s.Update(context.Background(), func(w kv.Writer) error {
			for i := range 64 {
				w.Set(fmt.Appendf(nil, "big/%02d", i), value)
			}
			return nil
		})
		if err == nil {
			return // the engine takes it
		}
		wantError(t, err, kv.ErrTooLarge)
		wantKeys(t, s.scan([]byte("big/"), nil, 100))
	}},
}

func scans(t *testing.T, prefix, after string, limit int) func(kv.Writer) {
	return func(w kv.Writer) {
		var cursor []byte
		if after != "" {
			cursor = []byte(after)
		}
		mustScan(t, w, []byte(prefix), cursor, limit)
	}
}

var writerCases = []kvCase{
	{"Set copies key and value", func(t *testing.T, s *kvStore) {
		s.mustUpdate(func(w kv.Writer) {
			key, value := []byte("key"), []byte("value")
			w.Set(key, value)
			fill(key)
			fill(value)
			gone := []byte("gone")
			w.Delete(gone)
			fill(gone)
		})
		s.wantValue("key", "value")
		wantKeys(t, s.scan(nil, nil, 10), "key")
	}},
	{"The last write of a key counts", func(t *testing.T, s *kvStore) {
		s.mustSet("b", "old")
		s.mustUpdate(func(w kv.Writer) {
			w.Set([]byte("a"), []byte("1"))
			w.Set([]byte("a"), []byte("2"))
			w.Delete([]byte("b"))
			w.Set([]byte("b"), []byte("new"))
			w.Set([]byte("c"), []byte("x"))
			w.Delete([]byte("c"))
		})
		s.wantValue("a", "2")
		s.wantValue("b", "new")
		s.wantAbsent("c")
	}},
	{"Deleting an absent key is not an error", func(t *testing.T, s *kvStore) {
		s.mustUpdate(del("absent"))
		s.wantAbsent("absent")
	}},
	{"Keys are any bytes up to MaxKeySize and values up to MaxValueSize", func(t *testing.T, s *kvStore) {
		longest, largest := strings.Repeat("k", kv.MaxKeySize), strings.Repeat("v", kv.MaxValueSize)
		// The third is a name that Badger keeps for itself.
		keys := []string{"\x00", "\x00\x00", "!badger!txn", "\xff", "\xff\xff\xff", "a\x00b", longest}
		s.mustUpdate(func(w kv.Writer) {
			for _, k := range keys {
				w.Set([]byte(k), []byte(largest[:len(k)]))
			}
			w.Set([]byte("largest"), []byte(largest))
		})
		for _, k := range keys {
			s.wantValue(k, largest[:len(k)])
		}
		s.wantValue("largest", largest)
		if n := len(s.scan(nil, nil, 100)); n != len(keys)+1 {
			t.Errorf("Scan gave %d keys, want %d", n, len(keys)+1)
		}
	}},
	{"An invalid write makes Update return ErrTooLarge and nothing is written", func(t *testing.T, s *kvStore) {
		for name, write := range map[string]func(kv.Writer){
			"empty key":               set("", "x"),
			"nil key":                 func(w kv.Writer) { w.Set(nil, []byte("x")) },
			"over-long key":           set(strings.Repeat("k", kv.MaxKeySize+1), "x"),
			"over-large value":        func(w kv.Writer) { w.Set([]byte("x"), bytes.Repeat([]byte("v"), kv.MaxValueSize+1)) },
			"delete of empty key":     del(""),
			"delete of over-long key": del(strings.Repeat("k", kv.MaxKeySize+1)),
		} {
			err := s.Update(context.Background(), func(w kv.Writer) error {
				w.Set([]byte("before"), nil)
				write(w)
				w.Set([]byte("after"), nil)
				return nil
			})
			if !errors.Is(err, kv.ErrTooLarge) {
				t.Errorf("%s: error is %v", name, err)
			}
			wantKeys(t, s.scan(nil, nil, 10))
		}
	}},
}

var durabilityCases = []kvCase{
	{"A nil result of Update means that the writes survive a reopen", func(t *testing.T, s *kvStore) {
		large := strings.Repeat("v", kv.MaxValueSize)
		s.mustSet("a", "1", "gone", "x", "empty", "", "large", large)
		s.mustUpdate(del("gone"))
		for range 2 {
			s.reopen()
			s.wantValue("a", "1")
			s.wantValue("empty", "")
			s.wantValue("large", large)
			s.wantAbsent("gone")
			wantKeys(t, s.scan(nil, nil, 10), "a", "empty", "large")
		}
	}},
	{"Nothing of a failed Update is there after a reopen", func(t *testing.T, s *kvStore) {
		s.mustSet("a", "1")
		_ = s.Update(context.Background(), func(w kv.Writer) error {
			w.Set([]byte("a"), []byte("2"))
			w.Set([]byte("b"), nil)
			return errors.New("mine")
		})
		s.reopen()
		s.wantValue("a", "1")
		s.wantAbsent("b")
	}},
	{"A reopened store goes on with newer versions", func(t *testing.T, s *kvStore) {
		for i := range 5 {
			v := fmt.Sprint(i)
			s.mustSet("k", v)
			s.reopen()
			s.wantValue("k", v)
		}
	}},
}

var closeCases = []kvCase{
	{"Close waits for running transactions", func(t *testing.T, s *kvStore) {
		started, closed := make(chan struct{}), make(chan error, 1)
		var over atomic.Bool
		ended := make(chan error, 1)
		go func() {
			ended <- s.Update(context.Background(), func(w kv.Writer) error {
				close(started)
				for i := range 1000 {
					w.Set(fmt.Append(nil, i), nil)
					runtime.Gosched()
				}
				over.Store(true)
				return nil
			})
		}()
		<-started
		go func() { closed <- s.Close() }()
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
		if !over.Load() {
			t.Error("Close returned while a transaction ran")
		}
		if err := <-ended; err != nil {
			t.Errorf("the running transaction: %v", err)
		}
	}},
	{"A second Close returns nil", func(t *testing.T, s *kvStore) {
		for range 3 {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	}},
	{"ErrClosed is returned by every call after Close", func(t *testing.T, s *kvStore) {
		s.mustSet("a", "1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantError(t, s.View(context.Background(), func(kv.Reader) error { t.Error("fn of View ran"); return nil }), kv.ErrClosed)
		wantError(t, s.Update(context.Background(), func(kv.Writer) error { t.Error("fn of Update ran"); return nil }), kv.ErrClosed)
	}},
}
