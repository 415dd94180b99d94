package keyring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"

	"github.com/prototypster/pdvault/keys"
)

// FuzzRow: what parses encodes to the same bytes; what does not is ErrTampered and gives nothing.
func FuzzRow(f *testing.F) {
	f.Add(row{7, 3, 2, "localkek", []byte{1, 0, 0, 0, 1, 9}}.encode())
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 'x'})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 'x', 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRow(b)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || r.generation != 0 || r.kek != "" || r.wrapped != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(r.encode(), b) {
			t.Error("encodes to other bytes")
		}
	})
}

// FuzzPadding: each value has one padded form.
func FuzzPadding(f *testing.F) {
	for _, n := range []int{0, 1, 26, 27, 28, 59, 60} {
		f.Add(make([]byte, n))
		f.Add(pad(make([]byte, n)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		padded := pad(b)
		if len(padded)%padStep != 0 || len(padded)-len(b) > padHeader+padStep {
			t.Errorf("%d bytes padded to %d", len(b), len(padded))
		}
		if back, err := unpad(padded); err != nil || !bytes.Equal(back, b) {
			t.Errorf("does not come back: %v", err)
		}
		v, err := unpad(b)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || v != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(pad(v), b) {
			t.Error("encodes to other bytes")
		}
	})
}

// FuzzBundle: no bytes make it panic; a bundle that is accepted seals and opens, with a prefix of Tink's.
func FuzzBundle(f *testing.F) {
	_, good, err := newBundle()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(good))
	for _, template := range foreignTemplates() {
		f.Add(bundleOf(f, template))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseBundle(b)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || got != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		c, err := got.seal([]byte("value"), []byte("ad"))
		if err != nil || c[0] != 1 {
			t.Fatalf("accepted, and does not seal with a key id: %v", err)
		}
		if v, err := got.open(c, []byte("ad")); err != nil || string(v) != "value" {
			t.Errorf("accepted, and does not open: %v", err)
		}
	})
}

func foreignTemplates() map[string]*tinkpb.KeyTemplate {
	return map[string]*tinkpb.KeyTemplate{
		"RAW prefix": aead.AES256GCMNoPrefixKeyTemplate(), "128 bits": aead.AES128GCMKeyTemplate(),
		"XAES": aead.XAES256GCM192BitNonceKeyTemplate(), "ChaCha": aead.ChaCha20Poly1305KeyTemplate(),
		"CTR and HMAC": aead.AES256CTRHMACSHA256KeyTemplate(),
	}
}

func bundleOf(t testing.TB, template *tinkpb.KeyTemplate) []byte {
	t.Helper()
	h, err := keyset.NewHandle(template)
	if err != nil {
		t.Fatal(err)
	}
	buf := bytes.NewBuffer(append([]byte{bundleFormat}, make([]byte, refSecretSize)...))
	if err := insecurecleartextkeyset.Write(h, keyset.NewBinaryWriter(buf)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestForeignKeysAreRefused(t *testing.T) {
	for name, template := range foreignTemplates() {
		if _, err := parseBundle(bundleOf(t, template)); !errors.Is(err, keys.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseBundle(bundleOf(t, aead.AES256GCMKeyTemplate())); err != nil {
		t.Errorf("our own: %v", err)
	}
	// A good key beside a foreign one.
	m := keyset.NewManager()
	for _, template := range []*tinkpb.KeyTemplate{aead.AES256GCMKeyTemplate(), aead.AES256GCMNoPrefixKeyTemplate()} {
		id, err := m.Add(template)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.SetPrimary(id); err != nil {
			t.Fatal(err)
		}
	}
	h, err := m.Handle()
	if err != nil {
		t.Fatal(err)
	}
	buf := bytes.NewBuffer(append([]byte{bundleFormat}, make([]byte, refSecretSize)...))
	if err := insecurecleartextkeyset.Write(h, keyset.NewBinaryWriter(buf)); err != nil {
		t.Fatal(err)
	}
	if _, err := parseBundle(buf.Bytes()); !errors.Is(err, keys.ErrTampered) {
		t.Errorf("a foreign key beside a good one: %v", err)
	}
}

// FuzzTuple: no two tuples have one encoding. The reader here is the proof: it gives back the parts.
func FuzzTuple(f *testing.F) {
	f.Add([]byte("a"), []byte("b"), []byte("c"))
	f.Add([]byte(""), []byte("\x00\x00\x00\x01a"), []byte(""))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		parts := [][]byte{a, b, c}
		for n := range len(parts) + 1 {
			rest := keys.Tuple(parts[:n]...)
			for i, want := range parts[:n] {
				if len(rest) < 4 {
					t.Fatalf("part %d of %d is missing", i, n)
				}
				size := int(binary.BigEndian.Uint32(rest))
				if rest = rest[4:]; size > len(rest) || !bytes.Equal(rest[:size], want) {
					t.Fatalf("part %d of %d is another", i, n)
				}
				rest = rest[size:]
			}
			if len(rest) != 0 {
				t.Fatalf("%d bytes are left over", len(rest))
			}
		}
	})
}
