package verify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	// TileHeight is the height of a tile: 8 levels of the tree.
	TileHeight = 8
	// TileWidth is the number of hashes in a full tile, and of entries in a full bundle.
	TileWidth = 1 << TileHeight
	// CheckpointPath is where the signed checkpoint lies.
	CheckpointPath = "checkpoint"
	// EntriesLevel is the level of entry bundles in a [Tile]: beneath the leaves' hashes.
	EntriesLevel = -1

	maxTileLevel = 63
)

// ErrTile is returned for a path that names no tile, and for bytes that are not the tile or bundle they
// are said to be.
var ErrTile = errors.New("verify: malformed tile or tile path")

// Tile names a tile of hashes, or a bundle of entries, as C2SP tlog-tiles does.
type Tile struct {
	Level int   // EntriesLevel for a bundle of entries
	N     int64 // index within the level
	Width int   // 1 to TileWidth; less than TileWidth: partial
}

// Path returns the path of t below the prefix of the log:
//
//	tile/0/x001/x234/067   tile/1/000.p/112   tile/entries/x001/x234/067
func (t Tile) Path() string {
	level := "entries"
	if t.Level != EntriesLevel {
		level = strconv.Itoa(t.Level)
	}
	n := fmt.Sprintf("%03d", t.N%1000)
	for rest := t.N / 1000; rest > 0; rest /= 1000 {
		n = fmt.Sprintf("x%03d/%s", rest%1000, n)
	}
	if t.Width < TileWidth {
		return fmt.Sprintf("tile/%s/%s.p/%d", level, n, t.Width)
	}
	return fmt.Sprintf("tile/%s/%s", level, n)
}

// ParseTilePath decodes a path strictly: what it accepts has the same Path again.
func ParseTilePath(path string) (Tile, error) {
	bad := fmt.Errorf("%w: not a tile path", ErrTile)
	rest, ok := strings.CutPrefix(path, "tile/")
	level, rest, found := strings.Cut(rest, "/")
	if !ok || !found {
		return Tile{}, bad
	}
	t := Tile{Level: EntriesLevel, Width: TileWidth}
	if level != "entries" {
		l, err := parseDecimal(level)
		if err != nil || l > maxTileLevel {
			return Tile{}, bad
		}
		t.Level = int(l)
	}
	if n, width, partial := strings.Cut(rest, ".p/"); partial {
		w, err := parseDecimal(width)
		if err != nil || w < 1 || w >= TileWidth {
			return Tile{}, bad
		}
		rest, t.Width = n, int(w)
	}
	parts := strings.Split(rest, "/")
	if len(parts) > 6 { // 10^18 still fits an int64
		return Tile{}, bad
	}
	for i, part := range parts {
		digits, hasX := strings.CutPrefix(part, "x")
		if hasX != (i < len(parts)-1) || len(digits) != 3 {
			return Tile{}, bad
		}
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil {
			return Tile{}, bad
		}
		t.N = t.N*1000 + int64(n)
	}
	if t.Path() != path {
		return Tile{}, bad
	}
	return t, nil
}

// EncodeTile returns the bytes of a tile.
func EncodeTile(hashes []tlog.Hash) []byte {
	b := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

// DecodeTile returns the hashes of a tile that must have the given width.
func DecodeTile(b []byte, width int) ([]tlog.Hash, error) {
	if width < 1 || width > TileWidth || len(b) != width*tlog.HashSize {
		return nil, fmt.Errorf("%w: tile of %d bytes for width %d", ErrTile, len(b), width)
	}
	hashes := make([]tlog.Hash, width)
	for i := range hashes {
		hashes[i] = tlog.Hash(b[i*tlog.HashSize:])
	}
	return hashes, nil
}

// AppendBundle adds an entry to an entry bundle: its length in two bytes, big endian, and its bytes.
func AppendBundle(bundle, entry []byte) ([]byte, error) {
	if len(entry) > MaxEntrySize {
		return nil, fmt.Errorf("%w: %d bytes", ErrEntry, len(entry))
	}
	bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(entry)))
	return append(bundle, entry...), nil
}

// DecodeBundle returns the entries of a bundle, which must be exactly width. They are parts of b.
func DecodeBundle(b []byte, width int) ([][]byte, error) {
	if width < 1 || width > TileWidth {
		return nil, fmt.Errorf("%w: bundle of width %d", ErrTile, width)
	}
	entries := make([][]byte, 0, width)
	for len(b) > 0 {
		if len(b) < 2 || len(entries) == width {
			return nil, fmt.Errorf("%w: bundle does not hold %d entries", ErrTile, width)
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; n > len(b) {
			return nil, fmt.Errorf("%w: bundle is cut short", ErrTile)
		}
		entries = append(entries, b[:n:n])
		b = b[n:]
	}
	if len(entries) != width {
		return nil, fmt.Errorf("%w: bundle holds %d entries, not %d", ErrTile, len(entries), width)
	}
	return entries, nil
}

// TilesOf returns the tiles of hashes and the bundles of entries of a log of the given size: every full
// one, and the partial ones at its right edge. It is what an export must hold. It stops when yield
// returns false.
func TilesOf(size int64) func(yield func(Tile) bool) {
	return func(yield func(Tile) bool) {
		for level, count := EntriesLevel, size; count > 0; level++ {
			for n := range count / TileWidth {
				if !yield(Tile{level, n, TileWidth}) {
					return
				}
			}
			if w := int(count % TileWidth); w > 0 && !yield(Tile{level, count / TileWidth, w}) {
				return
			}
			if level != EntriesLevel {
				count /= TileWidth
			}
		}
	}
}
