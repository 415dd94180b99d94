package keyring

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"

	"github.com/prototypster/pdvault/keys"
)

// FuzzRow: what parses encodes to the same bytes; what does not is ErrTampered and gives nothing.
func FuzzRow(f *testing.F) {
	f.Add(row{7, 3, 2, true, "localkek", []byte{8, 8}, []byte{1, 0, 0, 0, 1, 9}}.encode())
	f.Add(row{7, 3, 1, false, "localkek", nil, []byte{1}}.encode())
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 'x', 0, 3, 1, 1})
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
		got, err := parseBundle(b, nil, nil)
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

// FuzzOlderKeys: no bytes that were sealed as older keys make it panic, and what is accepted is one more key.
func FuzzOlderKeys(f *testing.F) {
	ad := []byte("ad")
	first, clear, err := newBundle()
	if err != nil {
		f.Fatal(err)
	}
	_, again, older, err := renewBundle(clear, nil, ad, 1)
	if err != nil {
		f.Fatal(err)
	}
	if b, err := parseBundle(again, older, ad); err != nil || len(b.keys) != 2 || b.ref != first.ref || b.keys[1].prefix != first.keys[0].prefix {
		f.Fatalf("what was renewed does not come back: %v", err)
	}
	keyset := clear[1+refSecretSize:]
	good := append(binary.BigEndian.AppendUint16(nil, uint16(len(keyset))), keyset...)
	for _, seed := range [][]byte{good, append(bytes.Clone(good), older...), good[:10], {0, 0, 1}, {255, 255}, {}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed, err := first.keys[0].aead.Encrypt(b, ad)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseBundle(clear, sealed, ad)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || got != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if len(got.keys) != 2 {
			t.Errorf("%d keys", len(got.keys))
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
		if _, err := parseBundle(bundleOf(t, template), nil, nil); !errors.Is(err, keys.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseBundle(bundleOf(t, aead.AES256GCMKeyTemplate()), nil, nil); err != nil {
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
	if _, err := parseBundle(buf.Bytes(), nil, nil); !errors.Is(err, keys.ErrTampered) {
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

// FuzzTombstone: what parses encodes to the same bytes.
func FuzzTombstone(f *testing.F) {
	f.Add(tombstone{9, 1_700_000_000, 3, "erasure"}.encode())
	f.Add(append([]byte{1}, make([]byte, 24)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeTombstone(b)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || got != (tombstone{}) {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(got.encode(), b) {
			t.Error("encodes to other bytes")
		}
	})
}

// FuzzIdentity: what parses encodes to the same bytes, and each of its keys signs.
func FuzzIdentity(f *testing.F) {
	id := newIdentity(time.Unix(1_700_000_000, 0))
	f.Add([]byte(id.encode()))
	older := id.keys[0]
	older.retire = 1_800_000_000
	id.keys = []witnessKey{newWitnessKey(2, time.Unix(1_700_000_001, 0)), older}
	f.Add([]byte(id.encode()))
	f.Add(append([]byte{1}, make([]byte, 48)...)) // the format before
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseIdentity(b)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || got != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(got.encode(), b) {
			t.Error("encodes to other bytes")
		}
		for _, w := range got.keys {
			if !ed25519.Verify(w.public, []byte("x"), ed25519.Sign(w.private, []byte("x"))) {
				t.Error("accepted, and does not sign")
			}
		}
	})
}

// FuzzVersions: what parses encodes to the same bytes, versions ascend, and no two have one key.
func FuzzVersions(f *testing.F) {
	f.Add(encodeVersions([]keyVersion{{1, 7, 1_700_000_000}}))
	f.Add(append(encodeVersions([]keyVersion{{1, 7, 1_700_000_000}, {3, 8, 0}}), 8, 9))
	f.Add(encodeVersions([]keyVersion{{1, 7, 0}, {2, 7, 0}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		versions, rest, err := decodeVersions(b)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || versions != nil || rest != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(append(encodeVersions(versions), rest...), b) {
			t.Error("encodes to other bytes")
		}
		seen := make(map[uint32]bool)
		for i, v := range versions {
			if v.version == 0 || seen[v.id] || i > 0 && v.version <= versions[i-1].version {
				t.Errorf("accepted %v", versions)
			}
			seen[v.id] = true
		}
	})
}

// FuzzKeyset: no bytes make it panic; a keyset that is accepted is ready for use, a key for each version.
func FuzzKeyset(f *testing.F) {
	for _, name := range []string{"index", "token", "service"} {
		s, err := newKeyset(name, time.Unix(1_700_000_000, 0))
		if err != nil {
			f.Fatal(err)
		}
		for range 2 {
			b, err := s.serialise()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(name, []byte(b))
			if err := s.add(name, time.Unix(1_700_000_001, 0)); err != nil {
				f.Fatal(err)
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		if _, ok := keysetKinds[name]; !ok {
			return
		}
		got, err := makeReady(name, b)
		if err != nil {
			if !errors.Is(err, keys.ErrTampered) || got.keys != 0 || got.index != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		in := (&instance{rows: make(map[string][]byte), versions: make(map[string][]keyVersion)}).with(got, nil)
		switch name {
		case "index":
			tokens, err := in.indexTokens(&IndexValue{Collection: "a", Field: "b"}, []byte("c"))
			if err != nil || len(tokens) != got.keys {
				t.Errorf("accepted, and gives %d tokens: %v", len(tokens), err)
			}
		case "token":
			tag, err := in.token.ComputeMAC([]byte("x"))
			if err != nil || in.token.VerifyMAC(tag, []byte("x")) != nil {
				t.Errorf("accepted, and does not verify: %v", err)
			}
		case "service":
			c, err := in.service.Encrypt([]byte("x"), nil)
			if err == nil {
				_, err = in.service.Decrypt(c, nil)
			}
			if err != nil {
				t.Errorf("accepted, and does not open: %v", err)
			}
		}
	})
}

// A list of versions that is not that of the keys beside it is refused, and so are keys of another keyset.
func TestForeignVersionsAreRefused(t *testing.T) {
	s, err := newKeyset("index", time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.add("index", time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	good := s.versions
	for name, versions := range map[string][]keyVersion{
		"exchanged":   {{1, good[1].id, 0}, {2, good[0].id, 0}},
		"one missing": good[1:],
		"one more":    {good[0], {2, good[0].id ^ good[1].id ^ 1, 0}, {3, good[1].id, 0}},
		"another":     {{1, good[0].id + 1, 0}, good[1]},
	} {
		s.versions = versions
		b, err := s.serialise()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseKeyset("index", b); !errors.Is(err, keys.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.versions = good
	b, err := s.serialise()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"index": nil, "token": keys.ErrTampered, "service": keys.ErrTampered} {
		if _, err := parseKeyset(name, b); !errors.Is(err, want) {
			t.Errorf("as %s: %v", name, err)
		}
	}
}
