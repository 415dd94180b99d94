package ledger

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// cosigs keeps the witnesses' cosignatures of the newest checkpoint that has any. They are kept in memory
// only: a witness gives them again for the next checkpoint.
type cosigs struct {
	mu     sync.Mutex
	recent map[int64]Signed // guarded by mu; by size, what a cosignature may still come for
	order  []int64          // guarded by mu; sizes in recent, oldest first
	best   Signed           // guarded by mu; with cosignatures; zero at first
	by     map[signer]bool  // guarded by mu; the keys whose lines are on best
}

// signer is one key of a witness. One that is changing its key has two, of the same name.
type signer struct {
	name string
	key  uint32
}

// AddCosignature takes what a witness returned for the checkpoint of the given size: a signature line, or one for
// each key while it is changing its key. They are verified against the witnesses of Config or SetWitnesses, and
// published together. Lines for an older checkpoint than the newest cosigned one are of no use any more and are
// dropped without an error.
//
// A line that none of the known keys has made gives ErrCosignature; the others are taken all the same.
func (l *Ledger) AddCosignature(size int64, lines []byte) error {
	cp, useful := l.cosigs.wanted(size)
	if !useful {
		return nil
	}
	if cp.Note == nil {
		return fmt.Errorf("%w: no recent checkpoint of size %d", ErrCosignature, size)
	}
	if len(lines) == 0 {
		return fmt.Errorf("%w: no line", ErrCosignature)
	}
	var refused error
	var good []cosigned
	for line := range bytes.Lines(lines) {
		sig, err := verify.VerifyCosignatureLine(line, cp.Checkpoint, *l.witnesses.Load()...)
		if err != nil {
			refused = fmt.Errorf("%w: %w", ErrCosignature, err)
			continue
		}
		good = append(good, cosigned{signer{sig.Name, sig.Key}, line})
	}
	if len(good) > 0 {
		l.cosigs.add(cp, good)
	}
	return refused
}

// SetWitnesses makes witnesses the keys whose cosignatures AddCosignature takes. What is on a checkpoint already
// stays there.
func (l *Ledger) SetWitnesses(witnesses ...note.Verifier) {
	witnesses = slices.Clone(witnesses)
	l.witnesses.Store(&witnesses)
}

// cosigned is a verified line of a cosignature.
type cosigned struct {
	by   signer
	line []byte
}

// remember makes s a checkpoint that cosignatures are taken for.
func (c *cosigs) remember(s Signed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recent == nil {
		c.recent = make(map[int64]Signed)
	}
	if _, ok := c.recent[s.Size]; !ok {
		c.order = append(c.order, s.Size)
	}
	c.recent[s.Size] = s
	if len(c.order) > recentNotes {
		delete(c.recent, c.order[0])
		c.order = c.order[1:]
	}
}

func (c *cosigs) wanted(size int64) (cp Signed, useful bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.best.Note != nil && size < c.best.Size {
		return Signed{}, false
	}
	return c.recent[size], true
}

func (c *cosigs) add(cp Signed, lines []cosigned) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.best.Note == nil || cp.Size > c.best.Size:
		c.best, c.by = cp, make(map[signer]bool)
	case cp.Size < c.best.Size:
		return
	}
	c.best.Note = bytes.Clone(c.best.Note) // readers hold the old one
	for _, l := range lines {
		if !c.by[l.by] {
			c.by[l.by] = true
			c.best.Note = append(c.best.Note, l.line...)
		}
	}
}

// adorn returns s with the cosignatures known for it.
func (c *cosigs) adorn(s Signed) Signed {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.best.Note != nil && c.best.Size == s.Size {
		return c.best
	}
	return s
}

func (c *cosigs) newest() Signed {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.best
}
