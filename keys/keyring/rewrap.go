package keyring

import (
	"bytes"
	"context"
	"crypto/subtle"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// passed is what a pass found.
type passed struct {
	rows    int64 // seen
	below   int64 // of those, wrapped under an older version when they were seen
	wrapped int64 // of those, wrapped again and committed
	broken  error // the first reason why one could not be, and cannot; nil: none
}

func (p *passed) breaks(err error) {
	if p.broken == nil {
		p.broken = err
	}
}

// pass goes through everything wrapped, from r.Cursor on, and wraps again what is below the target. While nobody asks
// for keys, maxCalls batches are with the KEK while the one before is committed: each of them is worked on by one
// thread at a time, there or here. While somebody does, there is one, a smaller one, and a rest after it: its commit
// holds up those of the witness, without which nothing opens.
func (e *epochs) pass(ctx context.Context, r jobRecord) (found passed, _ jobRecord, err error) {
	k := e.k
	calls, cancel := context.WithCancel(ctx)
	saved := k.cfg.Now()
	done := r.Done
	var calling []*call // the oldest first
	var committing *commit
	settle := func() error {
		if committing == nil {
			return nil
		}
		c := committing
		committing = nil
		if err := c.wait(); err != nil {
			return err
		}
		found.wrapped += int64(c.written)
		r.Cursor = c.last
		if r.Phase == phaseRewrap {
			r.Done = min(done+c.seen, r.Total)
		}
		e.observe(r, nil)
		if now := k.cfg.Now(); now.Sub(saved) >= saveEvery {
			saved = now
			cursor, progress := r.Cursor, r.Done
			if r.Phase != phaseRewrap {
				cursor = nil
			}
			_, err := e.advance(ctx, r, func(_ kv.Writer, r *jobRecord) error { r.Cursor, r.Done = cursor, progress; return nil })
			return err
		}
		return nil
	}
	// answered waits for the oldest call, and commits what it gave when what the one before gave is committed.
	answered := func() error {
		c := calling[0]
		calling = calling[1:]
		<-c.done
		if c.err != nil {
			return c.err
		}
		if c.broken != nil {
			found.breaks(c.broken)
		}
		if err := settle(); err != nil {
			return err
		}
		committing = k.beginCommit(ctx, c.batch, c.last, c.seen)
		return nil
	}
	all := func() error {
		for len(calling) > 0 {
			if err := answered(); err != nil {
				return err
			}
		}
		return settle()
	}
	defer func() {
		cancel()
		for _, c := range calling {
			<-c.done
		}
		_ = settle() // after an error, which is told; what was committed is found so
	}()
	used, limit := k.cache.used.Load(), k.cfg.EpochBatch
	for _, prefix := range wrappedBundle {
		after := r.Cursor
		if !bytes.HasPrefix(after, prefix) {
			if bytes.Compare(after, prefix) > 0 {
				continue // seen before the process ended
			}
			after = nil
		}
		for {
			start := time.Now()
			page, err := k.page(ctx, prefix, after, limit)
			if err != nil {
				return found, r, err
			}
			if len(page) > 0 {
				after = page[len(page)-1].Key
			}
			batch := e.batch(page, r.Target, &found)
			last := len(page) < limit
			if len(batch) > 0 {
				calling = append(calling, e.begin(calls, batch, r.Target, after, found.rows))
			}
			now := k.cache.used.Load()
			if limit = k.cfg.EpochBatch; now != used {
				limit = max(1, limit/busyPart)
			}
			if now != used && len(batch) > 0 {
				// Others are asking for keys, or did while this slept: they come first.
				used = now
				if err := all(); err != nil {
					return found, r, err
				}
				e.sleep(ctx, min(time.Duration(k.cfg.EpochPause)*time.Since(start), maxPause), nil)
			}
			if len(calling) == maxCalls {
				if err := answered(); err != nil {
					return found, r, err
				}
			}
			if ctx.Err() != nil {
				return found, r, context.Cause(ctx)
			}
			if last {
				break
			}
		}
	}
	err = all()
	return found, r, err
}

// lifted is a row on its way to a newer version of the KEK.
type lifted struct {
	key, old []byte
	row      row
	context  []byte
	was      []byte // what the KEK had given for it before
	version  uint64 // of the KEK, that has wrapped it now
}

// batch gives the rows of page that are below target.
func (e *epochs) batch(page []kv.Pair, target uint64, found *passed) []lifted {
	k := e.k
	var batch []lifted
	for _, p := range page {
		found.rows++
		l := lifted{key: p.Key, old: p.Value}
		var err error
		if l.row, err = decodeRow(p.Value); err == nil && l.row.kek != k.cfg.KEK.Name() {
			err = fmt.Errorf("row is wrapped by another kind of KEK: %w", keys.ErrKEKMissing)
		}
		if err == nil {
			l.context, err = k.contextOf(p.Key)
		}
		var version uint64
		if err == nil {
			version, err = k.cfg.KEK.Version(l.row.wrapped)
		}
		if err != nil {
			found.below++
			found.breaks(err)
			continue
		}
		if version < target {
			found.below++
			batch = append(batch, l)
		}
	}
	return batch
}

// contextOf is what a row at key is bound to.
func (k *Keyring) contextOf(key []byte) ([]byte, error) {
	if name, ok := bytes.CutPrefix(key, prefixKeyset); ok {
		return keysetContext(k.cfg.Instance, string(name)), nil
	}
	id, err := uuid.FromBytes(bytes.TrimPrefix(key, prefixBundle))
	if err != nil {
		return nil, fmt.Errorf("row in a place of no subject: %w", keys.ErrTampered)
	}
	return bundleContext(k.cfg.Instance, id), nil
}

// errUnproven is the failure of a wrap that the KEK does not take back. What it was to replace stays.
var errUnproven = fmt.Errorf("KEK does not give back what it has wrapped: %w", keys.ErrUnavailable)

// call is a batch that the KEK was asked to wrap again.
type call struct {
	last []byte // key of the row that was seen last when the call was begun
	seen int64  // rows seen by then

	done   chan struct{} // closed when the rest is set
	batch  []lifted      // what was wrapped again
	broken error         // why one of the others cannot be; nil: they all were
	err    error         // why nothing is known of the batch
}

// begin begins a call. Who takes it waits for it.
func (e *epochs) begin(ctx context.Context, batch []lifted, target uint64, last []byte, seen int64) *call {
	c := &call{last: last, seen: seen, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		var found passed
		c.batch, c.err = e.rewrapped(ctx, batch, target, &found)
		c.broken = found.broken
	}()
	return c
}

// rewrapped has the KEK wrap batch again and returns those that it did, each proven.
func (e *epochs) rewrapped(ctx context.Context, batch []lifted, target uint64, found *passed) ([]lifted, error) {
	results, err := e.rewrapBatch(ctx, batch)
	if err != nil {
		return nil, err
	}
	out := batch[:0]
	for i, r := range results {
		switch err := r.Err; {
		case err != nil && permanent(kekError(err)):
			found.breaks(kekError(err))
			continue
		case err != nil:
			return nil, kekError(err)
		}
		version, err := e.k.cfg.KEK.Version(r.Data)
		if err != nil || version < target || len(r.Data) > maxWrappedBytes {
			return nil, fmt.Errorf("KEK wrapped under an older version, or gave nothing: %w", keys.ErrUnavailable)
		}
		l := batch[i]
		l.was, l.row.wrapped, l.version = l.row.wrapped, r.Data, version
		out = append(out, l)
	}
	return e.prove(ctx, out, found)
}

// prove returns those of batch whose new wraps the KEK takes back. It comes before they are committed: a new wrap
// takes the place of the only other one there is. The KEK wraps each once more, which it can only when it
// is whole and bound to its place, and that is thrown away; so no key comes out of it. One of the batch, drawn by
// lot, is unwrapped before and after, which would show a KEK that wraps whole and binds right, but something else.
func (e *epochs) prove(ctx context.Context, batch []lifted, found *passed) ([]lifted, error) {
	if len(batch) == 0 {
		return nil, nil
	}
	results, err := e.rewrapBatch(ctx, batch)
	if err != nil {
		return nil, err
	}
	drawn := batch[rand.N(len(batch))]
	same, err := e.same(ctx, drawn)
	switch {
	case err != nil:
		return nil, err
	case !same:
		return nil, errUnproven // of one batch that lies, nothing is believed
	}
	out := batch[:0]
	for i, r := range results {
		if r.Err != nil {
			if !permanent(kekError(r.Err)) {
				return nil, kekError(r.Err)
			}
			found.breaks(errUnproven)
			continue
		}
		out = append(out, batch[i])
	}
	return out, nil
}

// same reports whether l holds the same, wrapped now, as it did before.
func (e *epochs) same(ctx context.Context, l lifted) (bool, error) {
	results, err := e.k.unwraps.direct(ctx, []KEKItem{{l.context, l.was}, {l.context, l.row.wrapped}})
	if err != nil {
		return false, err
	}
	defer results[0].Data.Wipe()
	defer results[1].Data.Wipe()
	for _, r := range results {
		if r.Err != nil && !permanent(r.Err) {
			return false, r.Err
		}
	}
	return results[0].Err == nil && results[1].Err == nil && subtle.ConstantTimeCompare(results[0].Data, results[1].Data) == 1, nil
}

// rewrapBatch asks the KEK once.
func (e *epochs) rewrapBatch(ctx context.Context, batch []lifted) ([]KEKResult, error) {
	k := e.k
	items := make([]KEKItem, len(batch))
	for i, l := range batch {
		items[i] = KEKItem{l.context, l.row.wrapped}
	}
	calling, cancel := context.WithTimeout(ctx, k.cfg.KEKTimeout)
	defer cancel()
	start := k.cfg.Now()
	results, err := k.cfg.KEK.Rewrap(calling, items)
	if err == nil && len(results) != len(items) {
		err = fmt.Errorf("KEK gave %d results for %d items: %w", len(results), len(items), keys.ErrUnavailable)
	}
	if k.cfg.Observe.KEK != nil {
		k.cfg.Observe.KEK("rewrap", len(items), k.cfg.Now().Sub(start), err)
	}
	if err != nil {
		return nil, kekError(err)
	}
	return results, nil
}

// commit is rows on their way into the key store.
type commit struct {
	parts   []*commitPart
	last    []byte // key that was seen last
	seen    int64  // rows seen by then
	written int    // valid after wait
}

type commitPart struct {
	written int
	done    chan error
}

// beginCommit writes batch, each row if it is still what was wrapped again: one that was erased or changed
// meanwhile stays as it is.
func (k *Keyring) beginCommit(ctx context.Context, batch []lifted, last []byte, seen int64) *commit {
	c := &commit{last: last, seen: seen}
	for len(batch) > 0 {
		n, size := 0, 0
		for n < len(batch) && n < maxCommitChanges && (n == 0 || size < maxCommitBytes/2) {
			size += len(batch[n].old)
			n++
		}
		part := batch[:n]
		batch = batch[n:]
		p := &commitPart{done: make(chan error, 1)}
		c.parts = append(c.parts, p)
		ch := k.lift(part, size, &p.written)
		go func() { p.done <- k.writes.do(ctx, ch) }()
	}
	return c
}

// wait returns when all is committed, or the first error.
func (c *commit) wait() (err error) {
	for _, p := range c.parts {
		if e := <-p.done; e != nil {
			err = e
			continue
		}
		c.written += p.written
	}
	return err
}

func (k *Keyring) lift(part []lifted, size int, written *int) *change {
	asked := make([][]byte, len(part))
	for i, l := range part {
		asked[i] = l.key
	}
	return &change{items: len(part), bytes: size, reserve: true,
		apply: func(w kv.Writer, generation uint64) (bool, error) {
			*written = 0
			floor, err := floorOf(w)
			if err != nil {
				return false, err
			}
			values, err := w.Get(asked...)
			if err != nil {
				return false, err
			}
			for i, l := range part {
				if !bytes.Equal(values[i], l.old) || l.version < floor {
					continue
				}
				*written++
				l.row.generation = generation
				b := l.row.encode()
				w.Set(l.key, b)
				if id, ok := bytes.CutPrefix(l.key, prefixBundle); ok {
					w.Set(keyNewest, id)
					k.cache.move(uuid.UUID(id), l.old, b)
				}
			}
			return *written > 0, nil
		}}
}
