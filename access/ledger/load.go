package ledger

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

// Signed is a checkpoint and the signed note that carries it.
type Signed struct {
	Note []byte
	verify.Checkpoint
}

// state is the log as of one durable commit. It does not change, but for scratch slots of its edge.
type state struct {
	Signed
	last time.Time // of the last entry
	edge edge
}

func (s *state) reader(find func([]tileID) (map[tileID]*tile, error)) treeReader {
	return treeReader{size: s.Size, edge: s.edge, find: find}
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: ledger: %s", kv.ErrIntegrity, fmt.Sprintf(format, args...))
}

// load reads the log from the store and verifies what it takes over: the checkpoint's signature, the rows
// at the right edge, their number, and that together they give the signed root. When known is given, the
// stored log must also extend it.
func (l *Ledger) load(ctx context.Context, known *state) (*state, error) {
	var s *state
	err := l.cfg.Store.View(ctx, func(r kv.Reader) error {
		var err error
		s, err = l.loadFrom(r, known)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (l *Ledger) loadFrom(r kv.Reader, known *state) (*state, error) {
	stored, err := r.Get(l.rows.checkpoint())
	if err != nil {
		return nil, fmt.Errorf("reading the checkpoint: %w", err)
	}
	if stored[0] == nil {
		return nil, l.absent(r, known)
	}
	cp, err := openCheckpoint(*l.keys.Load(), stored[0], l.cfg.Origin)
	if err != nil {
		return nil, fmt.Errorf("%w: ledger: stored checkpoint: %w", kv.ErrIntegrity, err)
	}
	s := &state{Signed: Signed{Note: stored[0], Checkpoint: cp}}
	find := func(ids []tileID) (map[tileID]*tile, error) { return l.findTiles(ids, r.Get) }

	for level := 1; level < levels; level++ {
		if err := s.loadLevel(level, find); err != nil {
			return nil, err
		}
	}
	last, err := l.loadEntries(r, s)
	if err != nil {
		return nil, err
	}
	if root, err := tlog.TreeHash(cp.Size, s.reader(find)); err != nil || root != cp.Root {
		return nil, damaged("the stored rows do not give the root of the checkpoint of size %d", cp.Size)
	}
	if err := s.checkLast(last, find); err != nil {
		return nil, err
	}
	if known == nil {
		return s, nil
	}
	if known.Size > s.Size {
		return nil, damaged("the stored log has %d entries, fewer than %d", s.Size, known.Size)
	}
	if root, err := tlog.TreeHash(known.Size, s.reader(find)); err != nil || root != known.Root {
		return nil, damaged("the stored log does not extend the one of size %d", known.Size)
	}
	return s, nil
}

// absent tells a log that was never created from one that has lost its checkpoint.
func (l *Ledger) absent(r kv.Reader, known *state) error {
	found, err := r.Scan(l.cfg.Prefix, nil, 1)
	if err != nil {
		return fmt.Errorf("looking for rows: %w", err)
	}
	if len(found) > 0 || known != nil {
		return damaged("there is no checkpoint")
	}
	return ErrNoLedger
}

// loadLevel fills the edge tile of a level above the lowest with the roots of the full tiles below it.
func (s *state) loadLevel(level int, find func([]tileID) (map[tileID]*tile, error)) error {
	count := s.Size >> (verify.TileHeight * level)
	first := count - count%verify.TileWidth
	if first == count {
		return nil
	}
	var ids []tileID
	for n := first; n < count; n++ {
		ids = append(ids, tileID{level - 1, n})
	}
	tiles, err := find(ids)
	if err != nil {
		return err
	}
	s.edge[level] = new(tile)
	for i, id := range ids {
		s.edge[level].put(i, tiles[id][1])
	}
	return nil
}

// loadEntries fills the lowest edge tile from the entries beyond the last full tile and demands that the
// last entry of the log is the last row. It returns the last entry's bytes.
func (l *Ledger) loadEntries(r kv.Reader, s *state) ([]byte, error) {
	first := s.Size - s.Size%verify.TileWidth
	if first == s.Size && first > 0 {
		first-- // at least the last one
	}
	found, err := r.Scan(l.rows.entries(), before(l.rows.entry, first), int(s.Size-first)+1)
	if err != nil {
		return nil, fmt.Errorf("reading the last entries: %w", err)
	}
	if int64(len(found)) != s.Size-first {
		return nil, damaged("there are other entries at the end than the %d of the checkpoint", s.Size)
	}
	var last []byte
	for i, p := range found {
		index := first + int64(i)
		if at, err := indexOf(p.Key); err != nil || at != index {
			return nil, damaged("entry %d is missing", index)
		}
		last = p.Value
		if s.Size%verify.TileWidth == 0 {
			break // it lies in a full tile
		}
		if s.edge[0] == nil {
			s.edge[0] = new(tile)
		}
		s.edge[0].put(int(index%verify.TileWidth), tlog.RecordHash(p.Value))
	}
	return last, nil
}

// checkLast takes over the time of the last entry, once it is proven to be the one in the tree.
func (s *state) checkLast(last []byte, find func([]tileID) (map[tileID]*tile, error)) error {
	if s.Size == 0 {
		return nil
	}
	in, err := s.reader(find).ReadHashes([]int64{tlog.StoredHashIndex(0, s.Size-1)})
	if err != nil || in[0] != tlog.RecordHash(last) {
		return damaged("entry %d is not the one in the tree", s.Size-1)
	}
	e, err := verify.ParseEntry(last)
	if err != nil {
		return fmt.Errorf("%w: ledger: entry %d: %w", kv.ErrIntegrity, s.Size-1, err)
	}
	if s.last, err = time.Parse(verify.TimeLayout, e.Time); err != nil {
		return damaged("entry %d has no time", s.Size-1)
	}
	return nil
}

// findTiles returns full tiles, from the cache or through get, which reads all that are missing at once.
func (l *Ledger) findTiles(ids []tileID, get func(...[]byte) ([][]byte, error)) (map[tileID]*tile, error) {
	tiles := make(map[tileID]*tile, len(ids))
	var missing []tileID
	var keys [][]byte
	for _, id := range ids {
		if _, ok := tiles[id]; ok {
			continue
		}
		t, ok := l.tiles.Get(id)
		if !ok {
			missing, keys = append(missing, id), append(keys, l.rows.tile(id))
		}
		tiles[id] = t
	}
	if len(missing) == 0 {
		return tiles, nil
	}
	values, err := get(keys...)
	if err != nil {
		return nil, fmt.Errorf("reading tiles: %w", err)
	}
	for i, id := range missing {
		t, err := decodeTile(values[i])
		if err != nil {
			return nil, damaged("tile %d of level %d is missing or damaged", id.n, id.level)
		}
		l.tiles.Add(id, t)
		tiles[id] = t
	}
	return tiles, nil
}
