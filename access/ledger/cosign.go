package ledger

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// cosigs keeps the witnesses' cosignatures of the newest checkpoint that has any. They are kept in memory
// only: a witness gives them again for the next checkpoint.
type cosigs struct {
	mu     sync.Mutex
	recent map[int64]Signed // guarded by mu; by size, what a cosignature may still come for
	order  []int64          // guarded by mu; sizes in recent, oldest first
	best   Signed           // guarded by mu; with cosignatures; zero at first
	names  map[string]bool  // guarded by mu; of the witnesses on best
}

// AddCosignature takes the signature line that a witness returned for the checkpoint of the given size.
// It is verified against Config.Witnesses. A line for an older checkpoint than the newest cosigned one is
// of no use any more and is dropped without an error.
func (l *Ledger) AddCosignature(size int64, line []byte) error {
	cp, useful := l.cosigs.wanted(size)
	if !useful {
		return nil
	}
	if cp.Note == nil {
		return fmt.Errorf("%w: no recent checkpoint of size %d", ErrCosignature, size)
	}
	sig, err := verify.VerifyCosignatureLine(line, cp.Checkpoint, l.cfg.Witnesses...)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCosignature, err)
	}
	l.cosigs.add(cp, sig.Name, line)
	return nil
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

func (c *cosigs) add(cp Signed, name string, line []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.best.Note == nil || cp.Size > c.best.Size:
		c.best, c.names = cp, make(map[string]bool)
	case cp.Size < c.best.Size || c.names[name]:
		return
	}
	c.names[name] = true
	c.best.Note = append(bytes.Clone(c.best.Note), line...) // a clone: readers hold the old one
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
