// Package occ decides whether a transaction may commit: optimistic concurrency control with detection of
// phantoms. Engines whose own check covers single keys only, or that have none, put it in front of their
// commit to make transactions serializable.
//
// The package must never lose a committed key that a running transaction could have missed. It may report
// a conflict that was none, when two transactions begin and commit at the same moment.
package occ

import (
	"bytes"
	"sync"

	"github.com/prototypster/pdvault/vault/kv"
)

// Log remembers the keys of recent commits. The zero value is not usable; see [NewLog].
//
// The commits form a list whose links point forward, and each transaction holds the commit that was the
// last one when it began. So what no running transaction can ask about is unreachable, and the garbage
// collector does the pruning.
type Log struct {
	mu   sync.Mutex // guards last, and every commit's next; held while a commit is validated and applied
	last *commit
}

type commit struct {
	keys map[string]struct{} // not changed once the commit is in the list
	next *commit
}

// Tx is what one transaction has read and written. It is used by one goroutine.
type Tx struct {
	since  *commit
	reads  map[string]struct{}
	ranges []span
	writes map[string]struct{}
}

// span is the keys from lo up to but not including hi; a nil hi has no end.
type span struct{ lo, hi []byte }

// NewLog returns an empty log.
func NewLog() *Log { return &Log{last: &commit{}} }

// Begin starts a transaction. It must be called before the engine's snapshot is taken: a commit between
// the two then counts as a conflict, which is safe, whereas the other order would miss it.
func (l *Log) Begin() *Tx {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Tx{since: l.last}
}

// Read notes that the transaction depends on the value or absence of key. Reading an own write is no
// dependency.
func (t *Tx) Read(key []byte) {
	if t.Wrote(key) {
		return
	}
	if t.reads == nil {
		t.reads = make(map[string]struct{})
	}
	t.reads[string(key)] = struct{}{}
}

// ReadRange notes that the transaction depends on which keys are in [lo, hi) and on their values. A nil hi
// means that the range has no end. The slices are kept.
func (t *Tx) ReadRange(lo, hi []byte) { t.ranges = append(t.ranges, span{lo, hi}) }

// Write notes that the transaction writes key.
func (t *Tx) Write(key []byte) {
	if t.writes == nil {
		t.writes = make(map[string]struct{})
	}
	t.writes[string(key)] = struct{}{}
}

// Wrote reports whether the transaction writes key.
func (t *Tx) Wrote(key []byte) bool {
	_, own := t.writes[string(key)]
	return own
}

// ReadOnly reports whether the transaction has written nothing. Such a one needs no commit: its snapshot
// is its place in the order.
func (t *Tx) ReadOnly() bool { return len(t.writes) == 0 }

// Commit returns [kv.ErrConflict] if a commit since Begin wrote what t has read. Otherwise it calls apply,
// which must make the commit visible to every snapshot taken afterwards, or fix its place in the engine's
// order; if apply returns an error then nothing was committed and the error is returned. Commits run one
// at a time, so apply must not wait for the disk.
func (l *Log) Commit(t *Tx, apply func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := t.since.next; c != nil; c = c.next {
		if t.dependsOn(c) {
			return kv.ErrConflict
		}
	}
	if err := apply(); err != nil {
		return err
	}
	l.last.next = &commit{keys: t.writes}
	l.last = l.last.next
	return nil
}

func (t *Tx) dependsOn(c *commit) bool {
	if len(t.reads) == 0 && len(t.ranges) == 0 {
		return false
	}
	for key := range c.keys {
		if _, read := t.reads[key]; read {
			return true
		}
		for _, r := range t.ranges {
			if r.contains(key) {
				return true
			}
		}
	}
	return false
}

func (s span) contains(key string) bool {
	return key >= string(s.lo) && (s.hi == nil || key < string(s.hi))
}

// ScanRange returns the range that a scan of the contract depends on: the keys with prefix that are
// greater than after, up to and including last when the scan stopped there because of its limit, or to the
// end of the prefix when last is nil. The slices are new.
func ScanRange(prefix, after, last []byte) (lo, hi []byte) {
	lo = bytes.Clone(prefix)
	if after != nil && bytes.Compare(after, prefix) >= 0 {
		lo = Successor(after)
	}
	if last != nil {
		return lo, Successor(last)
	}
	return lo, PrefixEnd(prefix)
}

// Successor returns the key that follows key directly in byte order.
func Successor(key []byte) []byte {
	next := make([]byte, len(key)+1)
	copy(next, key)
	return next
}

// PrefixEnd returns the first key after all keys that begin with prefix, or nil if there is none.
func PrefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}
