package badgerkv

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/vault/kv"
)

// Whoever waits for a commit that then fails does not see it: it may not be there at the next start, and what was
// answered on the strength of it would have been wrong.
func TestACommitThatFailsIsSeenByNobody(t *testing.T) {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	o.Fatal = func(error) {}
	var s *Store
	var readers sync.WaitGroup
	seen := make(chan error, 2)
	fail := false
	o.hooks.committed = func(err error) error {
		if !fail {
			return err
		}
		// The engine shows the commit by now, to all who begin.
		readers.Go(func() {
			seen <- s.View(context.Background(), func(r kv.Reader) error { _, err := r.Get([]byte("a")); return err })
		})
		readers.Go(func() {
			seen <- s.Update(context.Background(), func(w kv.Writer) error { _, err := w.Get([]byte("a")); return err })
		})
		for end := time.Now().Add(10 * time.Second); s.flight.waiting.Load() < 2 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		return syscall.EIO
	}
	s = mustCreate(t, o)
	mustPut(t, s, "a", "1")
	fail = true
	if err := put(context.Background(), s, "a", "2"); !errors.Is(err, syscall.EIO) {
		t.Errorf("the failed commit: %v", err)
	}
	readers.Wait()
	for range 2 {
		if err := <-seen; !errors.Is(err, kv.ErrIntegrity) {
			t.Errorf("a reader beside it: %v", err)
		}
	}
}

func TestNumbersOfCommitsAreTheEngines(t *testing.T) {
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, o)
	check := func() {
		t.Helper()
		txn := s.db.NewTransaction(false)
		defer txn.Discard()
		if s.flight.next != txn.ReadTs()+1 || len(s.flight.open) != 0 {
			t.Errorf("next is %d after %d, %d are open", s.flight.next, txn.ReadTs(), len(s.flight.open))
		}
	}
	check()
	for range 5 {
		mustPut(t, s, "a", "1")
	}
	check()
	refuse := true
	s.opts.hooks.committed = func(err error) error {
		if refuse {
			refuse = false
			s.flight.mu.Lock()
			s.flight.next++ // as if the engine had not taken it
			s.flight.mu.Unlock()
			return badger.ErrConflict
		}
		return err
	}
	mustPut(t, s, "a", "2") // the second time it is taken
	check()
	mustClose(t, s)
	o.hooks.committed = nil
	s = mustOpen(t, o)
	check()
}
