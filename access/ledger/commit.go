package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prototypster/pdvault/vault/kv"
)

// maxReloads bounds how often one batch is tried again because another writer was faster. Two busy writers take
// turns by chance, so it is generous; each turn costs the loser one read of the right edge.
const maxReloads = 100

// run is the committer. It ends when the queue is closed and drained.
func (l *Ledger) run() {
	defer close(l.done)
	var batch []*item
	for {
		batch = l.queue.take(batch, l.cfg.MaxBatch)
		if len(batch) == 0 {
			return
		}
		batch = l.commit(batch)
	}
}

// commit commits as many of the items as one transaction takes and returns the others. Each item that is
// not returned has been answered.
//
// The failures, and the state that each leaves:
//   - a check of an item fails: that item is refused, the others commit;
//   - storage is full: items without right to the reserve are refused, the others are tried on it;
//   - the transaction is too large: it is halved; an item too large alone is refused;
//   - a row is damaged: the items are halved; one that needs the row gets ErrUnavailable;
//   - the stored checkpoint is not the one in memory, because an earlier commit reported an error and was
//     applied all the same, or because another process appended: the state is loaded from the store, by the
//     code that Open runs, and the batch is tried again;
//   - anything else: all items get ErrUnavailable. Memory is as before. If the commit was applied after
//     all, the next one notices as above.
func (l *Ledger) commit(items []*item) (rest []*item) {
	start := time.Now()
	ctx := context.Background()
	stats := BatchStats{}
	defer func() {
		stats.Took = time.Since(start)
		l.cfg.Observe(stats)
	}()

	for reloads := 0; ; {
		b, err := l.transact(ctx, items)
		attempted, left := items[:b.taken], items[b.taken:]
		switch {
		case err == nil:
			l.finish(b, &stats)
			return slices.Concat(left, rest)

		case errors.Is(err, errMoved) && reloads < maxReloads:
			reloads++
			s, loadErr := l.load(ctx, l.state.Load())
			if loadErr == nil {
				l.cfg.Logger.Warn("ledger: the stored log was ahead and has been loaded", "size", s.Size)
				l.publish(s)
				continue
			}
			err = loadErr

		case errors.Is(err, kv.ErrStorageFull) && !kv.ReserveAllowed(ctx):
			rest, items = slices.Concat(left, rest), nil
			for _, it := range attempted {
				if it.reserve {
					items = append(items, it)
					continue
				}
				stats.Failed++
				it.refuse(kv.ErrStorageFull)
			}
			if len(items) == 0 {
				return rest
			}
			ctx = kv.UseReserve(ctx)
			continue

		case errors.Is(err, kv.ErrIntegrity) && len(items) > 1:
			half := len(items) / 2
			rest, items = slices.Concat(items[half:], rest), items[:half]
			continue

		case errors.Is(err, kv.ErrTooLarge) && len(attempted) > 1:
			half := len(attempted) / 2
			rest, items = slices.Concat(items[half:], rest), items[:half]
			continue

		case errors.Is(err, kv.ErrTooLarge) && len(attempted) == 1:
			stats.Rejected++
			attempted[0].refuse(err)
			return slices.Concat(left, rest)
		}

		l.cfg.Logger.Error("ledger: commit failed", "entries", len(items), "error", err)
		stats.Failed += len(items)
		for _, it := range items {
			it.refuse(fmt.Errorf("%w: %w", ErrUnavailable, err))
		}
		return rest
	}
}

// transact tries to commit a first part of items. The batch it returns, never nil, is the last try's.
func (l *Ledger) transact(ctx context.Context, items []*item) (*batch, error) {
	b := &batch{}
	err := l.cfg.Store.Update(ctx, func(w kv.Writer) error {
		b = newBatch(l, items)
		return b.fill(w)
	})
	if err != nil && b.taken == 0 {
		b.taken = len(items) // it failed for all alike
	}
	return b, err
}

// finish publishes what a durable batch made and answers its items.
func (l *Ledger) finish(b *batch, stats *BatchStats) {
	if b.committed > 0 {
		for _, f := range b.tree.full {
			l.tiles.Add(f.id, f.tile)
		}
		l.publish(b.next)
	}
	stats.Committed, stats.Bytes = b.committed, b.bytes
	stats.Rejected += b.taken - b.committed
	for i, it := range b.items[:b.taken] {
		it.done <- b.results[i]
	}
}

// publish makes s what readers see.
func (l *Ledger) publish(s *state) {
	l.cosigs.remember(s.Signed)
	l.state.Store(s)
}
