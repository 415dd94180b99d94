package ledger

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// TestGrowth compares the tree, its full tiles and its roots with those of the tlog package, over the edges
// of tiles at three levels.
func TestGrowth(t *testing.T) {
	var hashes []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = hashes[x]
		}
		return out, nil
	})
	var g growth
	full := map[tileID]*tile{}
	find := func(ids []tileID) (map[tileID]*tile, error) { return full, nil }
	const size = 65536 + 256 + 2
	for i := range int64(size) {
		h := tlog.RecordHash(binary.BigEndian.AppendUint64(nil, uint64(i)))
		more, err := tlog.StoredHashesForRecordHash(i, h, read)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
		g.add(h)
		for _, f := range g.full {
			full[f.id] = f.tile
		}
		g.full = nil
		if n := g.size % 256; n > 2 && n < 255 && g.size%97 != 0 {
			continue
		}
		want, err := tlog.TreeHash(g.size, read)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tlog.TreeHash(g.size, treeReader{g.size, g.edge, find}); err != nil || got != want {
			t.Fatalf("root at %d: %v", g.size, err)
		}
	}
	// Every hash that tlog stores is there.
	r := treeReader{g.size, g.edge, find}
	for i := range hashes {
		if got, err := r.ReadHashes([]int64{int64(i)}); err != nil || got[0] != hashes[i] {
			t.Fatalf("stored hash %d: %v", i, err)
		}
	}
	if len(full) != 257+1 {
		t.Fatalf("%d full tiles", len(full))
	}
	if _, err := r.ReadHashes([]int64{tlog.StoredHashIndex(24, 0)}); err == nil {
		t.Fatal("a hash of a level that is still empty")
	}
	for id, want := range full {
		if got, err := decodeTile(want.leaves(verify.TileWidth)); err != nil || *got != *want {
			t.Fatalf("tile %v is not the same when stored and read", id)
		}
	}
}

// TestDamagedMemoryIsNotSigned: when the tree in memory is not the one that was published, nothing more is
// signed or stored.
func TestDamagedMemoryIsNotSigned(t *testing.T) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "pdvault.example.org/ledger")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Create(t.Context(), Config{Store: memkv.New(), Origin: signer.Name(), Signer: signer, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := verify.Entry{ID: "x", Kind: verify.KindLoginDenied}
	for range 3 {
		if _, err := l.Append(context.Background(), e, nil); err != nil {
			t.Fatal(err)
		}
	}
	l.state.Load().edge[0][verify.TileWidth+2][0] ^= 1
	if _, err := l.Append(context.Background(), e, nil); !errors.Is(err, kv.ErrIntegrity) || !errors.Is(err, ErrUnavailable) {
		t.Fatalf("signed on a damaged tree: %v", err)
	}
	if l.Checkpoint().Size != 3 {
		t.Fatal("published on a damaged tree")
	}
}
