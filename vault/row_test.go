package vault

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestARowDecodesToItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &Row{Version: rapid.Uint64().Draw(t, "version")}
		for _, name := range rapid.SliceOfNDistinct(rapid.String(), 0, 5, rapid.ID[string]).Draw(t, "names") {
			f := Field{Name: name, Ciphertext: rapid.SliceOf(rapid.Byte()).Draw(t, "ciphertext")}
			for range rapid.IntRange(0, 3).Draw(t, "index") {
				x := Indexed{Unique: rapid.Bool().Draw(t, "unique"), Normaliser: rapid.Uint32().Draw(t, "normaliser")}
				x.Sealed = rapid.SliceOf(rapid.Byte()).Draw(t, "sealed")
				for key := range rapid.IntRange(0, 2).Draw(t, "tokens") {
					k := KeyedToken{Key: uint32(key + 1)}
					copy(k.Token[:], rapid.SliceOfN(rapid.Byte(), tokenSize, tokenSize).Draw(t, "token"))
					x.Tokens = append(x.Tokens, k)
				}
				f.Index = append(f.Index, x)
			}
			r.Fields = append(r.Fields, f)
		}
		sortFields(r.Fields)
		b := encodeRow(r)
		got, err := parseRow(b)
		if err != nil || !bytes.Equal(encodeRow(got), b) {
			t.Fatalf("%v", err)
		}
	})
}

// FuzzRow: what parses encodes to the same bytes.
func FuzzRow(f *testing.F) {
	f.Add(encodeRow(&Row{Version: 1, Fields: []Field{{Name: "name", Ciphertext: []byte("x"), Index: []Indexed{{Unique: true, Tokens: []KeyedToken{{Key: 1}}}}}}}))
	f.Add([]byte{1, 0x81, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRow(b)
		if err != nil {
			if r != nil {
				t.Error("a result beside an error")
			}
			return
		}
		if !bytes.Equal(encodeRow(r), b) {
			t.Error("another encoding")
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add(encodeHead(Head{Format: headFormat, Version: 3, Records: map[string]RecordHead{"profile": {Version: 1, Entry: 2, Digest: "x"}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHead(b)
		if err != nil {
			return
		}
		if again, err := parseHead(encodeHead(h)); err != nil || again.Version != h.Version {
			t.Errorf("not the same head: %v", err)
		}
	})
}

func TestTruncationKeepsTheFirstBits(t *testing.T) {
	for bits, want := range map[int][2]byte{0: {0, 0}, 1: {0x80, 0}, 8: {0xff, 0}, 12: {0xff, 0xf0}, 16: {0xff, 0xff}} {
		var token [tokenSize]byte
		for i := range token {
			token[i] = 0xff
		}
		truncate(&token, bits)
		if token[0] != want[0] || token[1] != want[1] || bits < 128 && token[15] != 0 {
			t.Errorf("%d bits: % x", bits, token)
		}
	}
}
