package badgerkv

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// flight knows which commits are on their way to the disk. Badger lets a snapshot wait for them, but not for how they
// end: it shows a commit whose sync has failed. The process is about to end then, and what it would show may not be on
// the disk when it starts again. So a snapshot is used only once all commits that it shows are known to be durable.
type flight struct {
	mu      sync.Mutex // guards next and open
	next    uint64     // number of the next commit: Badger's commit timestamps are consecutive
	open    []*takeoff // in the order of their numbers
	waiting atomic.Int32
}

// takeoff is one commit on its way.
type takeoff struct {
	number uint64
	over   chan struct{} // closed when it has ended; a failure is known in Store.failed by then
}

func newFlight(db *badger.DB) *flight {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	return &flight{next: txn.ReadTs() + 1}
}

// begin is called in the order of the commits, for each before Badger numbers it.
func (f *flight) begin() *takeoff {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &takeoff{number: f.next, over: make(chan struct{})}
	f.next++
	f.open = append(f.open, t)
	return t
}

// end is called when the commit has ended.
func (f *flight) end(t *takeoff) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(t)
}

// refused is called instead of end when Badger has not taken the commit, and so not numbered it.
func (f *flight) refused(t *takeoff) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next--
	for _, later := range f.open[slices.Index(f.open, t)+1:] {
		later.number--
	}
	f.remove(t)
}

func (f *flight) remove(t *takeoff) {
	f.open = slices.DeleteFunc(f.open, func(o *takeoff) bool { return o == t })
	close(t.over)
}

// busy reports whether a commit is on its way.
func (f *flight) busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open) > 0
}

// await returns when all commits up to a number have ended. Badger has waited for them already, so that is at once.
func (f *flight) await(number uint64) {
	for {
		f.mu.Lock()
		var t *takeoff
		if len(f.open) > 0 && f.open[0].number <= number {
			t = f.open[0]
		}
		f.mu.Unlock()
		if t == nil {
			return
		}
		f.waiting.Add(1)
		<-t.over
		f.waiting.Add(-1)
	}
}

// snapshot begins a transaction of the engine.
func (s *Store) snapshot(update bool) (*badger.Txn, error) {
	txn := s.db.NewTransaction(update)
	s.flight.await(txn.ReadTs())
	if err := s.stopped(); err != nil {
		txn.Discard()
		return nil, err
	}
	return txn, nil
}
