package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

// errMoved ends a transaction whose store holds another checkpoint than memory does.
var errMoved = errors.New("ledger: the stored checkpoint is not the last one seen")

// batch is one try to commit some items. A new try is a new batch, so nothing of one that met a conflict
// is left in the next.
type batch struct {
	ledger *Ledger
	from   *state
	items  []*item
	now    time.Time

	tree      growth
	taken     int // of items, from the front: committed or rejected
	committed int
	bytes     int
	results   []result // for items[:taken]
	next      *state   // when committed > 0
}

func newBatch(l *Ledger, items []*item) *batch {
	from := l.state.Load()
	return &batch{
		ledger: l, from: from, items: items,
		now:     l.batchTime(from.last),
		tree:    growth{size: from.Size, edge: from.edge},
		results: make([]result, 0, len(items)),
	}
}

// batchTime is the time for the next batch. It never goes back, whatever the clock does.
func (l *Ledger) batchTime(last time.Time) time.Time {
	now := l.cfg.Now().UTC().Truncate(time.Millisecond)
	behind := now.Before(last)
	if behind && !l.clockBehind {
		l.cfg.Logger.Warn("ledger: the clock is behind the log; entries carry the last time", "behind", last.Sub(now))
	}
	l.clockBehind = behind
	if behind {
		return last
	}
	return now
}

// fill writes the batch into the transaction w.
func (b *batch) fill(w kv.Writer) error {
	stored, err := w.Get(b.ledger.rows.checkpoint())
	if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	if !bytes.Equal(stored[0], b.from.Note) {
		return errMoved
	}
	cached := &readCache{Writer: w, seen: make(map[string][]byte)}
	for _, it := range b.items {
		fits, err := b.add(cached, it)
		if err != nil {
			return err
		}
		if !fits {
			break
		}
		b.taken++
	}
	if b.committed == 0 {
		return nil
	}
	return b.seal(w)
}

// add puts one item in. It returns false when the item has to wait for the next batch, and an error only
// when the whole batch has to fail.
func (b *batch) add(w *readCache, it *item) (bool, error) {
	pos := Position{Index: b.tree.size, Time: b.now}
	var change kv.Change
	if it.effects != nil {
		change = it.effects(pos)
	}
	size, err := b.ledger.measure(change)
	if err != nil {
		b.results = append(b.results, result{err: err})
		return true, nil
	}
	size += len(it.entry) + 2*len(b.ledger.cfg.Prefix) + 64
	if b.committed > 0 && b.bytes+size > maxBatchBytes {
		return false, nil
	}
	if err := change.Apply(w); w.err != nil {
		return false, w.err
	} else if err != nil {
		b.results = append(b.results, result{err: err})
		return true, nil
	}

	copy(it.entry[it.timeAt:], verify.FormatTime(b.now))
	w.Set(b.ledger.rows.entry(pos.Index), it.entry)
	if it.ref != nil {
		w.Set(b.ledger.rows.subjectEntry(it.ref, pos.Index), []byte{})
	}
	b.tree.add(tlog.RecordHash(it.entry))
	b.committed++
	b.bytes += size
	b.results = append(b.results, result{receipt: Receipt{Index: pos.Index, Entry: it.entry, Time: pos.Time}})
	return true, nil
}

// seal writes the tiles that became full, and the checkpoint. It signs nothing before it has seen that the
// old tree is still a part of the new one.
func (b *batch) seal(w kv.Writer) error {
	l, size := b.ledger, b.tree.size
	if size > verify.MaxLogSize {
		return errors.New("ledger: the log is full")
	}
	for _, f := range b.tree.full {
		w.Set(l.rows.tile(f.id), f.tile.leaves(verify.TileWidth))
	}
	again, err := tlog.TreeHash(b.from.Size, b.from.reader(nil))
	if err != nil || again != b.from.Root {
		return fmt.Errorf("%w: the tree in memory is not that of the last checkpoint", kv.ErrIntegrity)
	}
	next := &state{last: b.now, edge: b.tree.edge}
	root, err := tlog.TreeHash(size, treeReader{size: size, edge: next.edge})
	if err != nil {
		return fmt.Errorf("computing the root: %w", err)
	}
	next.Checkpoint = verify.Checkpoint{Origin: l.cfg.Origin, Size: size, Root: root}
	if next.Note, err = sign(*l.keys.Load(), next.Checkpoint); err != nil {
		return err
	}
	w.Set(l.rows.checkpoint(), next.Note)
	b.next = next
	return nil
}

// measure returns the size of a change and refuses one that would make the transaction fail for all, or
// that touches rows of the log. Rows of the index by subject may be deleted: an erasure does.
func (l *Ledger) measure(c kv.Change) (int, error) {
	size := 0
	for _, p := range c.Sets {
		if len(p.Key) == 0 || len(p.Key) > kv.MaxKeySize || len(p.Value) > kv.MaxValueSize {
			return 0, fmt.Errorf("effects of the entry: %w", kv.ErrTooLarge)
		}
		if bytes.HasPrefix(p.Key, l.cfg.Prefix) {
			return 0, fmt.Errorf("%w: effects write into the ledger", ErrInvalidEntry)
		}
		size += len(p.Key) + len(p.Value)
	}
	for _, key := range c.Deletes {
		if len(key) == 0 || len(key) > kv.MaxKeySize {
			return 0, fmt.Errorf("effects of the entry: %w", kv.ErrTooLarge)
		}
		if bytes.HasPrefix(key, l.cfg.Prefix) && !bytes.HasPrefix(key, l.rows.subjects()) {
			return 0, fmt.Errorf("%w: effects delete from the ledger", ErrInvalidEntry)
		}
		size += len(key)
	}
	return size, nil
}

// readCache remembers what a transaction has read, since many items of a batch check the same rows. What
// the batch itself writes is read anew.
type readCache struct {
	kv.Writer
	seen map[string][]byte
	err  error // the first failed read: a failure of the store and not of a check
}

func (c *readCache) Get(keys ...[]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		value, ok := c.seen[string(key)]
		if !ok {
			got, err := c.Writer.Get(key)
			if err != nil {
				c.err = fmt.Errorf("reading a condition: %w", err)
				return nil, c.err
			}
			value = got[0]
			c.seen[string(key)] = value
		}
		values[i] = value
	}
	return values, nil
}

func (c *readCache) Set(key, value []byte) {
	delete(c.seen, string(key))
	c.Writer.Set(key, value)
}

func (c *readCache) Delete(key []byte) {
	delete(c.seen, string(key))
	c.Writer.Delete(key)
}
