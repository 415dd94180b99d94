package hcvault

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/vault/kv"
)

const (
	minApplyPause = 100 * time.Millisecond // after a failure
	maxApplyPause = 2 * time.Second
	applyTries    = 4
	maxBatch      = 1_000 // writes, unless a single commit has more
)

// applier carries commits over to the rows. What queued while it was at work is its next batch, of which it
// writes each row once.
type applier struct {
	wake chan struct{} // capacity 1
	done atomic.Uint64 // rows written so far, to see whether it gets on
}

// change is what a batch of commits does to one row.
type change struct {
	write
	seq uint64 // of the first of them that touches it
}

// applyLoop is the applier's goroutine. It tries until it succeeds: what it works on is committed.
func (s *Store) applyLoop() {
	pause := minApplyPause
	for {
		batch := s.nextBatch()
		if len(batch) == 0 {
			select {
			case <-s.applies.wake:
				continue
			case <-s.ctx.Done():
				return
			}
		}
		changes := merge(batch)
		for {
			err := s.apply(batch, changes)
			if err == nil {
				pause = minApplyPause
				break
			}
			if errors.Is(err, ErrStoreInUse) || errors.Is(err, kv.ErrIntegrity) {
				_ = s.fail(err)
				return
			}
			if s.ctx.Err() != nil {
				return
			}
			s.log.Warn("carrying commits over to the rows failed, trying again", "error", err, "wait", pause)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return
			}
			pause = min(2*pause, maxApplyPause)
		}
	}
}

// nextBatch takes commits off pending.
func (s *Store) nextBatch() []*commit {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, writes := 0, 0
	for n < len(s.pending) {
		if writes += len(s.pending[n].writes); n > 0 && writes > maxBatch {
			break
		}
		n++
	}
	batch := slices.Clone(s.pending[:n])
	s.pending = slices.Delete(s.pending, 0, n)
	return batch
}

// merge makes one change per row of the writes of a batch, which is in the order of commits.
func merge(batch []*commit) []*change {
	var changes []*change
	last := map[string]*change{}
	for _, c := range batch {
		for _, w := range c.writes {
			if ch := last[w.key]; ch != nil {
				ch.is = w.is
				continue
			}
			ch := &change{write: w, seq: c.Seq}
			last[w.key] = ch
			changes = append(changes, ch)
		}
	}
	return changes
}

// apply writes the rows, then takes the writes out of the log. May be called again after an error.
func (s *Store) apply(batch []*commit, changes []*change) error {
	if err := s.usable(); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(maxAtOnce)
	for _, ch := range changes {
		if !ch.done {
			g.Go(func() error {
				if err := s.applyRow(ch); err != nil {
					return err
				}
				ch.done = true
				s.applies.done.Add(1)
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// A record that is done says that all before it are, so this begins when all rows are written.
	for _, c := range batch {
		if !c.Done {
			g.Go(func() error { return s.finish(c) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ch := range changes {
		if ch.is != nil && !ch.is.old {
			s.cache.add(ch.is)
		}
	}
	for _, c := range batch {
		s.backlog -= len(c.writes)
		c.writes = nil
	}
	s.applied = batch[len(batch)-1].Seq
	s.signal()
	return nil
}

// applyRow makes one row what the batch says.
func (s *Store) applyRow(ch *change) error {
	if err := s.usable(); err != nil {
		return err
	}
	if ch.was != nil && s.shown(ch) {
		// A snapshot that is older still shows the version that is about to go.
		if _, err := s.fetch(s.ctx, item{ch.key, ch.was}); err != nil {
			return err
		}
	}
	if ch.is == nil {
		return s.secrets.destroy(s.ctx, rowName(ch.key))
	}
	s.mu.Lock()
	var version uint64
	known := false
	if ch.was != nil {
		version = ch.was.version
		known = version != 0
	} else {
		known = ch.seq > 0 // not so in recovery
	}
	s.mu.Unlock()
	version, err := s.writeRow(ch.key, row{F: storeFormat, Seq: ch.is.seq, V: ch.is.value}, version, known)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ch.is.version = version
	return nil
}

// shown reports whether a snapshot may ask for the version that ch replaces, which is not in memory.
func (s *Store) shown(ch *change) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch.was.value != nil {
		return false
	}
	for r := range s.open {
		if r.seq < ch.seq {
			return true
		}
	}
	return false
}

// writeRow writes a row on the condition that its secret is still at version, and looks what is there when
// it is not, or when the version is not known. A row of a later commit is that of another process.
func (s *Store) writeRow(key string, r row, version uint64, known bool) (uint64, error) {
	name := rowName(key)
	var err error
	for range applyTries {
		if !known {
			sec, e := s.secrets.read(s.ctx, name)
			if e != nil {
				return 0, e
			}
			version = 0
			if sec != nil {
				there, e := decodeRow(sec)
				switch {
				case e != nil:
					return 0, e
				case there.Seq == r.Seq:
					return sec.version, nil
				case there.Seq > r.Seq:
					return 0, fmt.Errorf("a row is of a later commit: %w", ErrStoreInUse)
				}
				version = sec.version
			}
		}
		var made uint64
		if made, err = s.secrets.write(s.ctx, name, version, r); err == nil {
			return made, nil
		}
		if errors.Is(err, errNotSent) || s.usable() != nil {
			return 0, err
		}
		known = false
	}
	return 0, err
}

// finish overwrites a record in the ring by itself without its writes, and removes its pieces.
func (s *Store) finish(c *commit) error {
	place := &s.commits.versions[c.Seq%ringSize]
	done := c.record
	done.Tx, done.Parts, done.Sum, done.Done = nil, 0, "", true
	version, err := s.secrets.write(s.ctx, slotName(c.Seq), *place, done)
	if err != nil {
		there, e := s.readRecord(c.Seq)
		if e != nil {
			return e
		}
		if there.ID != c.ID {
			return fmt.Errorf("a commit was replaced: %w", ErrStoreInUse)
		}
		if !there.Done {
			*place = there.version
			return err
		}
		version = there.version
	}
	*place = version
	for i := range c.Parts {
		if err := s.secrets.destroy(s.ctx, partName(c.ID, i)); err != nil {
			return err
		}
	}
	c.Done = true
	return nil
}
