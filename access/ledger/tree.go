package ledger

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// levels is how many levels of tiles a log of verify.MaxLogSize has.
const levels = 7

// tileID names a tile as C2SP tlog-tiles does.
type tileID struct {
	level int
	n     int64
}

// tile holds the 256 hashes of a tile and those of all complete subtrees above them, as a binary heap:
// slot 1 is the root of the tile, 2i and 2i+1 are below i, 256 to 511 are the hashes of the tile. So any
// hash of the tree is one look-up, with nothing to recompute.
//
// A slot is written once the subtree under it is complete and then never changes. Slots of entries beyond
// the published size are scratch of the committer; nobody else may read them. That is why tiles at the
// edge can be shared with readers without a lock or a copy.
type tile [2 * verify.TileWidth]tlog.Hash

// put stores the hash at position i of the tile and completes the subtrees that end there.
func (t *tile) put(i int, h tlog.Hash) {
	slot := verify.TileWidth + i
	t[slot] = h
	for slot&1 == 1 && slot > 1 {
		slot >>= 1
		t[slot] = tlog.NodeHash(t[2*slot], t[2*slot+1])
	}
}

// leaves returns the first width hashes of the tile, as C2SP tlog-tiles carries them.
func (t *tile) leaves(width int) []byte {
	return verify.EncodeTile(t[verify.TileWidth : verify.TileWidth+width])
}

// decodeTile rebuilds a full tile from its stored hashes.
func decodeTile(b []byte) (*tile, error) {
	hashes, err := verify.DecodeTile(b, verify.TileWidth)
	if err != nil {
		return nil, err
	}
	t := new(tile)
	copy(t[verify.TileWidth:], hashes)
	for slot := verify.TileWidth - 1; slot > 0; slot-- {
		t[slot] = tlog.NodeHash(t[2*slot], t[2*slot+1])
	}
	return t, nil
}

// edge is the partial tiles of a tree of some size, one for each level; nil where that level's is empty.
type edge [levels]*tile

// fullTile is a tile that has become full.
type fullTile struct {
	id   tileID
	tile *tile
}

// growth is a tree that grows. It is a value of the committer; what it grew from is not changed.
type growth struct {
	size int64
	edge edge
	full []fullTile // those that became full
}

// add appends the hash of an entry.
func (g *growth) add(h tlog.Hash) {
	for level := range g.edge {
		count := g.size >> (verify.TileHeight * level) // hashes at this level before h
		i := int(count % verify.TileWidth)
		if g.edge[level] == nil || i == 0 {
			g.edge[level] = new(tile)
		}
		t := g.edge[level]
		t.put(i, h)
		if i < verify.TileWidth-1 {
			break
		}
		g.full = append(g.full, fullTile{tileID{level, count / verify.TileWidth}, t})
		g.edge[level] = nil
		h = t[1]
	}
	g.size++
}

// treeReader reads hashes of a tree of the given size. Full tiles come from find.
type treeReader struct {
	size int64
	edge edge
	find func(ids []tileID) (map[tileID]*tile, error)
}

var _ tlog.HashReader = treeReader{}

// ReadHashes returns the hashes of complete subtrees by their tlog index.
func (r treeReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	var missing []tileID
	var places []place
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		p := placeOf(level, n)
		if p.id.level >= levels {
			return nil, fmt.Errorf("no such hash: level %d", level)
		}
		p.at = i
		if p.id.n == r.size>>(verify.TileHeight*(p.id.level+1)) {
			t := r.edge[p.id.level]
			if t == nil {
				return nil, fmt.Errorf("no such hash: level %d of %d entries", level, r.size)
			}
			hashes[i] = t[p.slot]
			continue
		}
		missing, places = append(missing, p.id), append(places, p)
	}
	if len(missing) == 0 {
		return hashes, nil
	}
	tiles, err := r.find(missing)
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		hashes[p.at] = tiles[p.id][p.slot]
	}
	return hashes, nil
}

// place is where a hash lies.
type place struct {
	id   tileID
	slot int
	at   int // in the answer
}

func placeOf(level int, n int64) place {
	inTile := level % verify.TileHeight
	below := verify.TileHeight - inTile // levels of the tile's heap above this one
	return place{
		id:   tileID{level / verify.TileHeight, n >> below},
		slot: 1<<below | int(n&(1<<below-1)),
	}
}
