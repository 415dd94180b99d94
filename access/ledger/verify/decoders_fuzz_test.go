package verify_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// FuzzDecodeTile: a tile has exactly the hashes of its width.
func FuzzDecodeTile(f *testing.F) {
	f.Add(make([]byte, 64), 2)
	f.Add(make([]byte, 64), 3)
	f.Add([]byte{}, 0)
	f.Add([]byte{}, -1)
	f.Add(make([]byte, verify.TileWidth*32), verify.TileWidth)
	f.Fuzz(func(t *testing.T, b []byte, width int) {
		hashes, err := verify.DecodeTile(b, width)
		if err != nil {
			if !errors.Is(err, verify.ErrTile) || hashes != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if len(hashes) != width || !bytes.Equal(verify.EncodeTile(hashes), b) {
			t.Errorf("%d hashes for width %d, or other bytes", len(hashes), width)
		}
	})
}

// FuzzParseRef: a reference has one spelling.
func FuzzParseRef(f *testing.F) {
	f.Add(verify.FormatRef(make([]byte, verify.RefSize)))
	f.Add(verify.FormatRef(bytes.Repeat([]byte{0xff}, verify.RefSize)))
	f.Add("")
	f.Add(verify.FormatRef(make([]byte, verify.RefSize)) + "=")
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := verify.ParseRef(s)
		if err != nil {
			if !errors.Is(err, verify.ErrEntry) || ref != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if verify.FormatRef(ref) != s {
			t.Error("two spellings")
		}
	})
}

// FuzzCosignatureLine: no bytes but those that the witness has signed for this very checkpoint are its cosignature.
func FuzzCosignatureLine(f *testing.F) {
	cosigner, err := verify.NewCosigner("witness", bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := verify.NewCosignatureVerifier(cosigner.VerifierKey())
	if err != nil {
		f.Fatal(err)
	}
	cp := verify.EmptyCheckpoint("main.pdvault/ledger")
	good, err := cosigner.Line(cp, time.Unix(1_700_000_000, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append(bytes.Clone(good), good...))
	f.Add([]byte("\u2014 witness AAAA\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := verify.VerifyCosignatureLine(line, cp, verifier)
		if err != nil {
			if !errors.Is(err, verify.ErrCosignature) {
				t.Errorf("%v", err)
			}
			return
		}
		if !bytes.Equal(line, good) || c.Time.Unix() != 1_700_000_000 {
			t.Errorf("taken: %q", line)
		}
	})
}
