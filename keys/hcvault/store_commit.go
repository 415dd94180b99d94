package hcvault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	maxGroup    = 256             // transactions in one commit
	commitTries = 3               // of a write whose outcome is not known, before it is left in doubt
	maxBacklog  = 4_000           // writes that are not applied yet, beyond which commits wait
	stalledWait = 5 * time.Second // without any progress of the applier; then commits are refused
)

// committer gathers transactions: what queued while the last commit was on its way is the next one. A
// request takes milliseconds, whatever is in it.
type committer struct {
	wake  chan struct{} // capacity 1
	doubt *commit       // owned by commitLoop: a commit whose outcome is not known

	mu    sync.Mutex // guards queue
	queue []*proposal

	// versions of the secrets of the ring. A place belongs to commitLoop while it writes a commit there,
	// then to applyLoop until that commit is done.
	versions [ringSize]uint64
}

// proposal is a transaction that is to be committed.
type proposal struct {
	ctx     context.Context
	w       *writer
	outcome chan outcome // capacity 1
}

type outcome struct {
	seq      uint64
	removes  bool // rows that were there
	conflict bool
	err      error
}

// commit is a record on its way: the transactions in it, and what they do to the rows.
type commit struct {
	record
	writes []write
	rows   *btree.BTreeG[item] // with the writes
	group  []*proposal
}

// write is one change of a row.
type write struct {
	key  string
	was  *cell // the version before; nil: there was none, or it is not known
	is   *cell // nil: removed
	done bool
}

// commit hands w over and waits for the outcome. Once the commit has begun it waits whatever ctx does.
func (s *Store) commit(ctx context.Context, w *writer) (conflict bool, err error) {
	p := &proposal{ctx: ctx, w: w, outcome: make(chan outcome, 1)}
	s.commits.mu.Lock()
	s.commits.queue = append(s.commits.queue, p)
	s.commits.mu.Unlock()
	signal(s.commits.wake)
	var o outcome
	select {
	case o = <-p.outcome:
	case <-ctx.Done():
		s.commits.mu.Lock()
		i := slices.Index(s.commits.queue, p)
		if i >= 0 {
			s.commits.queue = slices.Delete(s.commits.queue, i, i+1)
		}
		s.commits.mu.Unlock()
		if i >= 0 {
			return false, ctx.Err()
		}
		o = <-p.outcome
	}
	if o.err == nil && !o.conflict && o.removes {
		ctx, cancel := context.WithTimeout(ctx, appliedTimeout)
		defer cancel()
		if !s.awaitApplied(ctx, o.seq) {
			s.log.Warn("a removal is committed, but HashiCorp Vault has not removed the row yet")
		}
	}
	return o.conflict, o.err
}

func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// commitLoop is the committer's goroutine. It ends when the store closes, which waits for transactions first.
func (s *Store) commitLoop() {
	for {
		select {
		case <-s.commits.wake:
		case <-s.ctx.Done():
			return
		}
		for {
			err := s.awaitRoom() // before any commit begins, so that whoever waits can still leave
			group := s.commits.take()
			if len(group) == 0 {
				break
			}
			s.commitGroup(group, err)
		}
	}
}

// take removes from the queue what makes one commit.
func (c *committer) take() []*proposal {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, size := 0, 0
	for n < min(len(c.queue), maxGroup) {
		if size += c.queue[n].w.size; n > 0 && size > maxPart*3/4 {
			break
		}
		n++
	}
	group := slices.Clone(c.queue[:n])
	c.queue = slices.Delete(c.queue, 0, n)
	return group
}

// awaitRoom waits until the ring has a free place and the applier is not too far behind. It gives up when
// that one does not get on.
func (s *Store) awaitRoom() error {
	done, since := s.applies.done.Load(), time.Now()
	for {
		s.mu.Lock()
		room := s.seq+2 <= s.applied+ringSize && s.backlog < maxBacklog // settle may take a place besides
		moved := s.moved
		s.mu.Unlock()
		if room {
			return nil
		}
		if err := s.usable(); err != nil {
			return err
		}
		if now := s.applies.done.Load(); now != done {
			done, since = now, time.Now()
		}
		if time.Since(since) > stalledWait {
			return fmt.Errorf("HashiCorp Vault does not take the rows of earlier commits: %w", keys.ErrUnavailable)
		}
		select {
		case <-moved:
		case <-time.After(100 * time.Millisecond):
		case <-s.ctx.Done():
			return fmt.Errorf("key store is closing: %w", keys.ErrUnavailable)
		}
	}
}

// commitGroup gives each proposal its outcome; err is why there can be no commit.
func (s *Store) commitGroup(group []*proposal, err error) {
	var c *commit
	if err == nil {
		c, err = s.prepare(group)
	}
	if err == nil {
		if len(c.group) == 0 {
			return
		}
		group = c.group
		if err = s.write(c); err == nil {
			s.publish(c)
			return
		}
	}
	for _, p := range group {
		p.outcome <- outcome{err: fmt.Errorf("hcvault: committing: %w", err)}
	}
}

// prepare decides which proposals go into the next commit; the others have their outcome already.
func (s *Store) prepare(group []*proposal) (*commit, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if s.commits.doubt != nil {
		if err := s.settle(); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	c := &commit{rows: s.rows.Copy(), record: record{F: storeFormat, Seq: s.seq + 1, Fence: s.lease.content.Fence, ID: newID()}}
	s.mu.Unlock()
	for _, p := range group {
		if err := p.ctx.Err(); err != nil {
			p.outcome <- outcome{err: err}
			continue
		}
		// Nothing to compare when nothing was committed since the snapshot.
		if (p.w.seq != c.Seq-1 || len(c.group) > 0) && p.w.conflicts(c.rows) {
			p.outcome <- outcome{conflict: true, err: kv.ErrConflict}
			continue
		}
		c.group = append(c.group, p)
		for key, is := range p.w.writes {
			var was item
			if is == nil {
				was, _ = c.rows.Delete(item{key: key})
				c.Tx = appendDelete(c.Tx, key)
			} else {
				was, _ = c.rows.Set(item{key, is})
				c.Tx = appendSet(c.Tx, key, is.value)
				is.seq = c.Seq
			}
			if was.cell != nil || is != nil { // removing what is not there changes nothing
				c.writes = append(c.writes, write{key: key, was: was.cell, is: is})
			}
		}
	}
	c.Rows, c.Sum = c.rows.Len(), sumOf(c.Tx)
	return c, nil
}

// write makes c durable: nil means that it is. Otherwise it is not, or it is in doubt, in which case the next
// commit settles that first. awaitRoom has seen that its place is free.
func (s *Store) write(c *commit) error {
	full := c.record
	if len(full.Tx) > maxPart {
		for part := range slices.Chunk(full.Tx, maxPart) {
			if err := s.writePart(c.ID, c.Parts, part); err != nil {
				s.dropParts(c.ID, c.Parts+1)
				return err
			}
			c.Parts++
		}
		full.Parts, full.Tx = c.Parts, nil
	}
	err := s.writeRecord(full)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNotSent):
		s.dropParts(c.ID, c.Parts)
	case s.failed.Load() == nil:
		s.commits.doubt = c
		err = fmt.Errorf("outcome of the commit is not known: %w", err)
	}
	return err
}

// writePart writes a piece of a commit. Its name is used once, so finding it there means that it was written.
func (s *Store) writePart(id string, n int, tx []byte) (err error) {
	for range commitTries {
		_, err = s.secrets.write(s.ctx, partName(id, n), 0, part{F: storeFormat, Tx: tx})
		if err == nil || errors.Is(err, errMoved) {
			return nil
		}
	}
	return err
}

// dropParts removes pieces of a commit. Those that it does not get at are removed at the next opening.
func (s *Store) dropParts(id string, n int) {
	for i := range n {
		if err := s.secrets.destroy(s.ctx, partName(id, i)); err != nil {
			s.log.Warn("a piece of a commit could not be removed; the next opening does it", "error", err)
			return
		}
	}
}

// writeRecord puts r into its place of the ring. When it is not known whether a try has succeeded, it looks,
// and tries again: of tries on the condition of the same version one succeeds at most. An error that wraps
// errNotSent says that r is not there and will not be; any other leaves it in doubt, unless the store has
// failed.
func (s *Store) writeRecord(r record) error {
	place := &s.commits.versions[r.Seq%ringSize]
	sent := false
	for try := 0; ; try++ {
		version, err := s.secrets.write(s.ctx, slotName(r.Seq), *place, r)
		if err == nil {
			*place = version
			return nil
		}
		if sent = sent || !errors.Is(err, errNotSent); !sent {
			return err
		}
		there, e := s.readRecord(r.Seq)
		switch {
		case e != nil:
		case there.ID == r.ID:
			*place = there.version
			return nil
		case there.version > *place:
			return s.fail(fmt.Errorf("another process has committed: %w", ErrStoreInUse))
		}
		if try+1 == commitTries || s.usable() != nil {
			// Whatever the last try gave: an earlier one may still arrive.
			return fmt.Errorf("%w: %w", keys.ErrUnavailable, hideNotSent(err))
		}
	}
}

// hideNotSent keeps the text and the kind of err but not that a request was not made, which holds for the
// last try only.
func hideNotSent(err error) error {
	for _, kind := range []error{keys.ErrSealed, keys.ErrForbidden} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return errors.New(err.Error())
}

// placed is a record and the version of its secret; the zero value where there is none.
type placed struct {
	record
	version uint64
}

func (s *Store) readRecord(seq uint64) (placed, error) {
	sec, err := s.secrets.read(s.ctx, slotName(seq))
	if err != nil || sec == nil {
		return placed{}, err
	}
	r, err := decodeRecord(sec)
	if err != nil {
		return placed{}, err
	}
	if r.Seq%ringSize != seq%ringSize {
		return placed{}, fmt.Errorf("a commit lies in another's place: %w", kv.ErrIntegrity)
	}
	return placed{r, sec.version}, nil
}

// settle finds out what became of the commit in doubt, by taking its place with an empty one: that succeeds
// only if the one in doubt is not there, and then it never will be. Its callers were told that the outcome
// is not known.
func (s *Store) settle() error {
	c := s.commits.doubt
	place := &s.commits.versions[c.Seq%ringSize]
	empty := &commit{rows: nil, record: record{F: storeFormat, Seq: c.Seq, Fence: c.Fence, ID: newID(), Sum: sumOf(nil)}}
	s.mu.Lock()
	empty.rows = s.rows.Copy()
	s.mu.Unlock()
	empty.Rows = empty.rows.Len()
	version, err := s.secrets.write(s.ctx, slotName(c.Seq), *place, empty.record)
	if err != nil {
		there, e := s.readRecord(c.Seq)
		switch {
		case e != nil || there.version <= *place:
			return fmt.Errorf("outcome of an earlier commit is not known: %w", err)
		case there.ID == c.ID:
			s.log.Info("a commit whose outcome was not known is there", "id", c.ID)
			*place, s.commits.doubt = there.version, nil
			c.group = nil // they were told that it is not known
			s.publish(c)
			return nil
		case there.ID != empty.ID:
			return s.fail(fmt.Errorf("another process has committed: %w", ErrStoreInUse))
		}
		version = there.version
	}
	s.log.Info("a commit whose outcome was not known is not there", "id", c.ID)
	*place, s.commits.doubt = version, nil
	s.dropParts(c.ID, c.Parts)
	s.publish(empty)
	return nil
}

// publish makes a durable commit visible and leaves its rows to the applier.
func (s *Store) publish(c *commit) {
	removes := false
	s.mu.Lock()
	s.rows, s.seq = c.rows, c.Seq
	for _, w := range c.writes {
		if w.was != nil {
			w.was.old = true
			s.cache.forget(w.was) // what a snapshot still shows must not be dropped
			removes = removes || w.is == nil
		}
	}
	c.Tx = nil
	s.pending = append(s.pending, c)
	s.backlog += len(c.writes)
	s.mu.Unlock()
	signal(s.applies.wake)
	for _, p := range c.group {
		p.outcome <- outcome{seq: c.Seq, removes: removes}
	}
	c.group = nil
}
