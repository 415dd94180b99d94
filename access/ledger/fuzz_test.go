package ledger

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// FuzzTile: a stored tile is 256 hashes or none, and gives the hashes of the tree above them.
func FuzzTile(f *testing.F) {
	full := make([]byte, verify.TileWidth*tlog.HashSize)
	for i := range full {
		full[i] = byte(i * 7)
	}
	f.Add(full)
	f.Add(full[:len(full)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeTile(b)
		if err != nil {
			if !errors.Is(err, verify.ErrTile) || got != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(got.leaves(verify.TileWidth), b) {
			t.Error("encodes to other bytes")
		}
		// The same hashes put one by one give the same tree.
		built := new(tile)
		for i := range verify.TileWidth {
			built.put(i, tlog.Hash(b[i*tlog.HashSize:]))
		}
		if *built != *got {
			t.Error("another tree above the same hashes")
		}
	})
}

// FuzzStoredCheckpoint: the row of the newest checkpoint is one, in its canonical form, or damage.
func FuzzStoredCheckpoint(f *testing.F) {
	body := verify.EmptyCheckpoint("main.pdvault/ledger").Format()
	f.Add(append(append(bytes.Clone(body), '\n'), "\u2014 main.pdvault/ledger AAAA\n"...))
	f.Add(body)
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, row []byte) {
		s, err := StoredCheckpoint(row)
		if err != nil {
			if s.Note != nil || s.Size != 0 {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.HasPrefix(row, append(s.Checkpoint.Format(), '\n')) {
			t.Error("taken, and not in its canonical form")
		}
	})
}

// FuzzRecord: an entry's row gives the entry that it holds, or damage.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"v":1,"id":"x","kind":"access","time":"2026-11-22T12:27:08.476Z"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, row []byte) {
		r, err := decodeRecord(3, row)
		if err != nil {
			if r.Entry != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		_ = timeOf(r.Value) // a parsed entry has one
		again, err := verify.Encode(r.Value)
		if err != nil || !bytes.Equal(again, row) {
			t.Errorf("encodes to other bytes: %v", err)
		}
	})
}

// FuzzIndexOf: a key of the log ends in an index that the log can have, or is damage.
func FuzzIndexOf(f *testing.F) {
	r := rows{[]byte("l/")}
	f.Add(r.entry(258))
	f.Add(r.subjectEntry(make([]byte, verify.RefSize), verify.MaxLogSize-1))
	f.Add([]byte("l/e/"))
	f.Fuzz(func(t *testing.T, key []byte) {
		n, err := indexOf(key)
		if err == nil && (n < 0 || n >= verify.MaxLogSize || !bytes.HasSuffix(key, be64(n))) {
			t.Errorf("index %d", n)
		}
	})
}
