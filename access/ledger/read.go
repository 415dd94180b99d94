package ledger

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

// Checkpoint returns the newest durable checkpoint, with the witnesses' cosignatures if they have already
// cosigned this very one.
func (l *Ledger) Checkpoint() Signed {
	s := l.state.Load().Signed
	return l.cosigs.adorn(s)
}

// Cosigned returns the newest checkpoint that a witness has cosigned since the ledger was opened, with the
// cosignatures. Its Note is nil when there is none.
func (l *Ledger) Cosigned() Signed { return l.cosigs.newest() }

// ProveInclusion returns the proof that entry index is in the tree of the first size entries. An index or
// size outside the log gives ErrNotFound.
func (l *Ledger) ProveInclusion(ctx context.Context, index, size int64) ([]tlog.Hash, error) {
	s := l.state.Load()
	if index < 0 || index >= size || size > s.Size {
		return nil, ErrNotFound
	}
	proof, err := tlog.ProveRecord(size, index, l.reader(ctx, s))
	if err != nil {
		return nil, fmt.Errorf("proving inclusion: %w", err)
	}
	return proof, nil
}

// ProveConsistency returns the proof that the tree of the first to entries extends that of the first from.
// From 0 the proof is nil: everything extends the empty log. A size outside the log gives ErrNotFound.
func (l *Ledger) ProveConsistency(ctx context.Context, from, to int64) ([]tlog.Hash, error) {
	s := l.state.Load()
	if from < 0 || from > to || to > s.Size {
		return nil, ErrNotFound
	}
	if from == 0 {
		return nil, nil
	}
	proof, err := tlog.ProveTree(to, from, l.reader(ctx, s))
	if err != nil {
		return nil, fmt.Errorf("proving consistency: %w", err)
	}
	return proof, nil
}

// Entry returns the bytes of an entry, or ErrNotFound when the index is outside the log. An entry that
// should be there and is not gives kv.ErrIntegrity.
func (l *Ledger) Entry(ctx context.Context, index int64) ([]byte, error) {
	if index < 0 || index >= l.state.Load().Size {
		return nil, ErrNotFound
	}
	var entry []byte
	err := l.cfg.Store.View(ctx, func(r kv.Reader) error {
		got, err := r.Get(l.rows.entry(index))
		if err != nil {
			return err
		}
		entry = got[0]
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading entry %d: %w", index, err)
	}
	if entry == nil {
		return nil, damaged("entry %d is missing", index)
	}
	return entry, nil
}

// ProofFile returns the tlog-proof file of an entry, against the newest cosigned checkpoint that includes
// it, or else against the newest one.
func (l *Ledger) ProofFile(ctx context.Context, index int64) ([]byte, error) {
	cp := l.Cosigned()
	if cp.Note == nil || index >= cp.Size {
		cp = l.Checkpoint()
	}
	hashes, err := l.ProveInclusion(ctx, index, cp.Size)
	if err != nil {
		return nil, err
	}
	return verify.Proof{Index: index, Hashes: hashes, Checkpoint: cp.Note}.Marshal(), nil
}

// Tile returns the first width hashes of a tile, as C2SP tlog-tiles carries them. What the log does not
// have, or not yet, gives ErrNotFound.
func (l *Ledger) Tile(ctx context.Context, level int, n int64, width int) ([]byte, error) {
	s := l.state.Load()
	if level < 0 || level >= levels || !holds(s.Size>>(verify.TileHeight*level), n, width) {
		return nil, ErrNotFound
	}
	id := tileID{level, n}
	if n == s.Size>>(verify.TileHeight*(level+1)) {
		return s.edge[level].leaves(width), nil
	}
	tiles, err := l.findTiles([]tileID{id}, l.getter(ctx))
	if err != nil {
		return nil, err
	}
	return tiles[id].leaves(width), nil
}

// EntryBundle returns the first width entries of a bundle, as C2SP tlog-tiles carries them. What the log
// does not have, or not yet, gives ErrNotFound.
func (l *Ledger) EntryBundle(ctx context.Context, n int64, width int) ([]byte, error) {
	if !holds(l.state.Load().Size, n, width) {
		return nil, ErrNotFound
	}
	first := n * verify.TileWidth
	var found []kv.Pair
	err := l.cfg.Store.View(ctx, func(r kv.Reader) error {
		var err error
		found, err = r.Scan(l.rows.entries(), before(l.rows.entry, first), width)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading entries: %w", err)
	}
	if len(found) != width {
		return nil, damaged("entries of bundle %d are missing", n)
	}
	var bundle []byte
	for i, p := range found {
		if at, err := indexOf(p.Key); err != nil || at != first+int64(i) {
			return nil, damaged("entry %d is missing", first+int64(i))
		}
		if bundle, err = verify.AppendBundle(bundle, p.Value); err != nil {
			return nil, damaged("entry %d is too large", first+int64(i))
		}
	}
	return bundle, nil
}

// holds reports whether, of count items in all, tile n has width.
func holds(count, n int64, width int) bool {
	return n >= 0 && n < verify.MaxLogSize && width >= 1 && width <= verify.TileWidth &&
		n*verify.TileWidth+int64(width) <= count
}

func (l *Ledger) reader(ctx context.Context, s *state) treeReader {
	return s.reader(func(ids []tileID) (map[tileID]*tile, error) { return l.findTiles(ids, l.getter(ctx)) })
}

// getter reads rows in a snapshot of their own. Full tiles and entries never change, so it need not be the
// one that the rest was read from.
func (l *Ledger) getter(ctx context.Context) func(...[]byte) ([][]byte, error) {
	return func(keys ...[]byte) (values [][]byte, err error) {
		err = l.cfg.Store.View(ctx, func(r kv.Reader) error {
			values, err = r.Get(keys...)
			return err
		})
		return values, err
	}
}
