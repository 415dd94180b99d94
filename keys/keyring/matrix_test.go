package keyring_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// place is what a ciphertext is bound to.
type place struct {
	instance          int
	subject           uuid.UUID
	collection, field string
	version           uint64
}

// instances makes keyrings of two instances under one KEK, both with the same subjects.
func instances(t *testing.T, subjects []uuid.UUID) []*ring {
	a := newRing(t, nil)
	b := &ring{t: t, kek: a.kek, store: &testStore{Store: memkv.New()}}
	b.cfg = keyring.Config{Instance: "test2", KEK: a.kek, Store: b.store}
	var err error
	if b.Keyring, err = keyring.Create(context.Background(), b.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	for _, r := range []*ring{a, b} {
		for _, s := range subjects {
			if _, err := r.seal(s, true, "x"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return []*ring{a, b}
}

// Promise 6, F44: a ciphertext opens where it was sealed for, and nowhere else. All pairs.
func TestMovedCiphertext(t *testing.T) {
	ctx := context.Background()
	subjects := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
	rings := instances(t, subjects)
	var places []place
	for i := range rings {
		for _, s := range subjects {
			for _, c := range []string{"profile", "profil", "payment"} {
				for _, f := range []string{"email", "name", "eemail"} {
					for _, v := range []uint64{1, 2} {
						places = append(places, place{i, s, c, f, v})
					}
				}
			}
		}
	}
	ciphertexts := make([][]byte, len(places))
	for i, p := range places {
		out, err := rings[p.instance].Seal(ctx, []keyring.SealSubject{{Subject: p.subject, Fields: []keyring.SealField{
			{Collection: p.collection, Field: p.field, Version: p.version, Plaintext: []byte("value")}}}})
		if err != nil || out[0].Err != nil {
			t.Fatal(err, out)
		}
		ciphertexts[i] = out[0].Fields[0].Ciphertext
	}
	pairs := 0
	for to, p := range places {
		calls := make([]keyring.OpenSubject, len(places))
		for from := range places {
			calls[from] = keyring.OpenSubject{Subject: p.subject, Collection: p.collection, Version: p.version,
				Fields: []keyring.OpenField{{Field: p.field, Ciphertext: ciphertexts[from]}}}
		}
		out, err := rings[p.instance].Open(ctx, calls)
		if err != nil {
			t.Fatal(err)
		}
		for from, o := range out {
			pairs++
			if from == to && (o.Err != nil || string(o.Fields[0].Plaintext) != "value") {
				t.Errorf("%v does not open in its place: %v", p, o.Err)
			}
			if from != to && (!errors.Is(o.Err, keys.ErrTampered) || o.Fields != nil) {
				t.Errorf("%v opens at %v: %v", places[from], p, o.Err)
			}
		}
	}
	t.Logf("%d pairs", pairs)
}

// A wrapped bundle serves the subject and instance that it was made for, and no other. All pairs.
func TestMovedBundle(t *testing.T) {
	subjects := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
	rings := instances(t, subjects)
	type home struct {
		ring    *ring
		subject uuid.UUID
		row, c  []byte
	}
	var homes []home
	for _, r := range rings {
		for _, s := range subjects {
			c, err := r.seal(s, false, "value")
			if err != nil {
				t.Fatal(err)
			}
			homes = append(homes, home{r, s, r.rawGet(keyring.KeyBundle(s)), c})
		}
	}
	for i, from := range homes {
		for j, to := range homes {
			to.ring.rawSet(keyring.KeyBundle(to.subject), from.row)
			want := keys.ErrTampered
			if i == j {
				want = nil
			}
			to.ring.wantOpenErr(to.subject, from.c, want)
			to.ring.wantOpenErr(to.subject, to.c, want)
			if i != j {
				_, err := to.ring.seal(to.subject, false, "value")
				wantErr(t, err, keys.ErrTampered)
			}
			to.ring.rawSet(keyring.KeyBundle(to.subject), to.row)
		}
	}
}

// The same with names and versions of any kind, and with bits flipped.
func TestCiphertextProperties(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	subjects := make([]uuid.UUID, 3)
	for i := range subjects {
		subjects[i], _ = r.mustCreate("x")
	}
	name := rapid.StringOfN(rapid.RuneFrom([]rune("ab\x00/é")), 1, 4, -1)
	gen := rapid.Custom(func(t *rapid.T) place {
		return place{0, rapid.SampledFrom(subjects).Draw(t, "subject"), name.Draw(t, "collection"), name.Draw(t, "field"),
			rapid.Uint64Range(0, 2).Draw(t, "version")}
	})
	open := func(p place, c []byte) (string, error) {
		out, err := r.Open(ctx, []keyring.OpenSubject{{Subject: p.subject, Collection: p.collection, Version: p.version,
			Fields: []keyring.OpenField{{Field: p.field, Ciphertext: c}}}})
		if err == nil {
			err = out[0].Err
		}
		if err != nil {
			return "", err
		}
		return string(out[0].Fields[0].Plaintext), nil
	}
	rapid.Check(t, func(t *rapid.T) {
		from, to := gen.Draw(t, "from"), gen.Draw(t, "to")
		value := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "value")
		out, err := r.Seal(ctx, []keyring.SealSubject{{Subject: from.subject, Fields: []keyring.SealField{
			{Collection: from.collection, Field: from.field, Version: from.version, Plaintext: value}}}})
		if err != nil || out[0].Err != nil {
			t.Fatal(err, out)
		}
		c := out[0].Fields[0].Ciphertext
		if got, err := open(from, c); err != nil || got != string(value) {
			t.Fatalf("does not open in its place: %v", err)
		}
		if _, err := open(to, c); from != to && !errors.Is(err, keys.ErrTampered) {
			t.Fatalf("opens elsewhere: %v", err)
		}
		i := rapid.IntRange(0, len(c)-1).Draw(t, "byte")
		c[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := open(from, c); !errors.Is(err, keys.ErrTampered) {
			t.Fatalf("opens with a bit flipped: %v", err)
		}
		if _, err := open(from, c[:i]); !errors.Is(err, keys.ErrTampered) {
			t.Fatalf("opens cut short: %v", err)
		}
	})
}
