package hcvault

import (
	"container/list"
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/vault/kv"
)

// item is a key and the version of its row that a snapshot shows.
type item struct {
	key  string
	cell *cell
}

// cell is one version of a row. Two snapshots show the same version if and only if they share the cell.
// Store.mu guards its members; a value is not changed once it is there.
type cell struct {
	value   []byte // nil: not in memory
	seq     uint64 // of the commit that wrote it; 0: not known until it is read
	version uint64 // of its secret; 0: not known, or not applied yet
	old     bool   // a later commit has replaced or removed it
	flight  *flight
	kept    *list.Element // in rowCache; nil if it is not there, also while its value may not be dropped
}

// flight is a fetch that somebody has begun and others wait for.
type flight struct {
	done  chan struct{}
	value []byte // valid once done is closed
	err   error
}

// rowCache bounds the values that are kept in memory because they were asked for: those that HashiCorp Vault
// holds as well. The least recently used go first. Store.mu guards it.
type rowCache struct {
	limit int
	bytes int
	used  list.List // of *cell
}

func (c *rowCache) touch(x *cell) {
	if x.kept != nil {
		c.used.MoveToFront(x.kept)
	}
}

func (c *rowCache) add(x *cell) {
	if x.kept != nil || x.value == nil {
		return
	}
	x.kept = c.used.PushFront(x)
	c.bytes += len(x.value)
	for c.used.Len() > c.limit || c.bytes > maxCacheBytes {
		last := c.used.Back().Value.(*cell)
		c.forget(last)
		last.value = nil
	}
}

// forget takes x out of the bound and leaves its value.
func (c *rowCache) forget(x *cell) {
	if x.kept == nil {
		return
	}
	c.used.Remove(x.kept)
	x.kept = nil
	c.bytes -= len(x.value)
}

// values returns copies of the values of items, fetching up to 16 at a time.
func (s *Store) values(ctx context.Context, items []item) ([][]byte, error) {
	out := make([][]byte, len(items))
	var missing []int
	s.mu.Lock()
	for i, it := range items {
		if it.cell == nil {
			continue
		}
		if out[i] = it.cell.value; out[i] == nil {
			missing = append(missing, i)
		}
		s.cache.touch(it.cell)
	}
	s.mu.Unlock()
	if len(missing) > 0 {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(maxAtOnce)
		for _, i := range missing {
			g.Go(func() (err error) {
				out[i], err = s.fetch(ctx, items[i])
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
	}
	for i, v := range out {
		if v != nil {
			out[i] = append(make([]byte, 0, len(v)), v...)
		}
	}
	return out, nil
}

// fetch returns the value of one version of a row. The request belongs to nobody: who waits may leave.
func (s *Store) fetch(ctx context.Context, it item) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if v := it.cell.value; v != nil {
		s.mu.Unlock()
		return v, nil
	}
	f := it.cell.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		it.cell.flight = f
		s.flights.Go(func() { s.fly(it, f) })
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Store) fly(it item, f *flight) {
	defer close(f.done)
	sec, err := s.secrets.read(s.ctx, rowName(it.key))
	var r row
	if err == nil && sec == nil {
		err = fmt.Errorf("hcvault: a row is not there any more: %w", kv.ErrIntegrity)
	}
	if err == nil {
		r, err = decodeRow(sec)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	it.cell.flight = nil
	if err == nil && it.cell.seq != 0 && it.cell.seq != r.Seq || err == nil && r.Seq > s.seq {
		err = fmt.Errorf("hcvault: a row is not of the commit that wrote it: %w", kv.ErrIntegrity)
	}
	if f.err = err; err != nil {
		return
	}
	it.cell.seq, it.cell.version = r.Seq, sec.version
	it.cell.value, f.value = r.V, r.V
	if !it.cell.old {
		s.cache.add(it.cell)
	}
}
