package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// tokensOf computes the tokens of one value, by version of the index key.
func (r *ring) tokensOf(v keyring.IndexValue) map[uint32]string {
	r.t.Helper()
	out, err := r.Index(context.Background(), []keyring.IndexValue{v})
	if err != nil {
		r.t.Fatal(err)
	}
	return r.byKey(out[0])
}

func (r *ring) byKey(tokens []keyring.IndexToken) map[uint32]string {
	r.t.Helper()
	byKey := make(map[uint32]string)
	last := uint32(0)
	for _, token := range tokens {
		if token.Key <= last || len(token.Token) != 16 {
			r.t.Errorf("tokens are not ascending by key, or of another length")
		}
		last, byKey[token.Key] = token.Key, string(token.Token)
	}
	return byKey
}

// The index key is rotated with both side by side: tokens under the first stay what they were until it is dropped,
// those under the second are others and stay too. Seal, Index and Reindex agree at each step.
func TestIndexRotation(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, _ := r.mustCreate("x")
	value := keyring.IndexValue{Collection: "profile", Field: "email", Normaliser: 1, Value: "a@example.org"}
	sealed, err := r.sealHeld(s, indexAt, value.Value)
	if err != nil {
		t.Fatal(err)
	}
	agree := func(want ...uint32) map[uint32]string {
		t.Helper()
		var first map[uint32]string
		for _, k := range []*ring{r, r.reopen()} {
			got := k.tokensOf(value)
			if len(got) != len(want) {
				t.Fatalf("tokens are under %d keys, want %v", len(got), want)
			}
			for _, version := range want {
				if got[version] == "" {
					t.Fatalf("there is no token under key %d", version)
				}
			}
			if first == nil {
				first = got
			}
			carried := keyring.IndexValue{Collection: "profile", Field: "email", Normaliser: 1, Sealed: sealed.item.Ciphertext}
			out, err := k.Reindex(ctx, []keyring.ReindexSubject{{Subject: s, Values: []keyring.IndexValue{carried}}, {Subject: uuid.New()}})
			if err != nil || out[0].Err != nil || len(out[0].Ref) != 32 {
				t.Fatal(err, out)
			}
			wantErr(t, out[1].Err, keys.ErrNoKey)
			field := keyring.SealField{Collection: "profile", Field: "email", Version: 2, Plaintext: []byte("x"),
				Index: []keyring.IndexValue{value, carried}}
			put, err := k.Seal(ctx, []keyring.SealSubject{{Subject: s, Fields: []keyring.SealField{field}}})
			if err != nil || put[0].Err != nil {
				t.Fatal(err, put)
			}
			for _, tokens := range [][]keyring.IndexToken{out[0].Tokens[0], put[0].Fields[0].Index[0].Tokens, put[0].Fields[0].Index[1].Tokens} {
				if !reflect.DeepEqual(k.byKey(tokens), first) {
					t.Error("Index, Reindex and Seal give different tokens")
				}
			}
		}
		return first
	}
	one := agree(1)
	for range 2 { // beginning twice is beginning once
		if version, err := r.BeginIndex(ctx); err != nil || version != 2 {
			t.Fatalf("beginning gave %d, %v", version, err)
		}
	}
	both := agree(1, 2)
	if both[1] != one[1] || both[2] == both[1] {
		t.Error("the token under the first key changed, or is that under the second")
	}
	wantErr(t, r.EndIndex(ctx, 3), keys.ErrInvalid)
	wantErr(t, r.EndIndex(ctx, 1), nil) // nothing is older
	agree(1, 2)
	for range 2 {
		wantErr(t, r.EndIndex(ctx, 2), nil)
	}
	two := agree(2)
	if two[2] != both[2] {
		t.Error("the token under the second key changed when the first was dropped")
	}
	wantErr(t, r.EndIndex(ctx, 1), keys.ErrInvalid)
	if version, err := r.BeginIndex(ctx); err != nil || version != 3 {
		t.Fatalf("a version was used again: %d, %v", version, err)
	}
	agree(2, 3)
}

// Each step of the instance's keysets raises the generation once, and what is no step does not.
func TestKeysetsRaiseTheGeneration(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	for _, step := range []struct {
		name  string
		run   func() error
		raise uint64
	}{
		{"begin", func() error { _, err := r.BeginIndex(ctx); return err }, 1},
		{"begin again", func() error { _, err := r.BeginIndex(ctx); return err }, 0},
		{"end", func() error { return r.EndIndex(ctx, 2) }, 1},
		{"end again", func() error { return r.EndIndex(ctx, 2) }, 0},
		{"token", func() error { _, err := r.AddKeyset(ctx, "token"); return err }, 1},
		{"service", func() error { _, err := r.AddKeyset(ctx, "service"); return err }, 1},
		{"witness", func() error { _, err := r.RotateWitness(ctx); return err }, 1},
		{"refresh", func() error { return r.Refresh(ctx) }, 0},
	} {
		before := r.Generation()
		if err := step.run(); err != nil || r.Generation() != before+step.raise {
			t.Errorf("%s: generation went from %d to %d, %v", step.name, before, r.Generation(), err)
		}
	}
	for _, name := range []string{"index", "identity", "bundle", ""} {
		_, err := r.AddKeyset(ctx, name)
		wantErr(t, err, keys.ErrInvalid)
	}
}

// Links and protected secrets of every version go on, and new ones are of the newest.
func TestTokenAndServiceRotation(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	var tags, secrets [][]byte
	for round := uint64(1); round <= 4; round++ {
		if round > 1 {
			for _, name := range []string{"token", "service"} {
				if version, err := r.AddKeyset(ctx, name); err != nil || version != round {
					t.Fatalf("%s: version %d, %v", name, version, err)
				}
			}
		}
		tag, err := r.Token(ctx, "unsubscribe", []byte("data"))
		if err != nil {
			t.Fatal(err)
		}
		secret, err := r.Protect(ctx, "ledger-key", []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		for _, older := range tags {
			if bytes.Equal(older[:5], tag[:5]) {
				t.Error("a tag is of an older key")
			}
		}
		for _, older := range secrets {
			if bytes.Equal(older[:5], secret[:5]) {
				t.Error("a secret is under an older key")
			}
		}
		tags, secrets = append(tags, tag), append(secrets, secret)
		for _, k := range []*ring{r, r.reopen()} {
			for i := range tags {
				wantErr(t, k.VerifyToken(ctx, "unsubscribe", []byte("data"), tags[i]), nil)
				wantErr(t, k.VerifyToken(ctx, "confirm", []byte("data"), tags[i]), keys.ErrTampered)
				wantErr(t, k.VerifyToken(ctx, "unsubscribe", []byte("datA"), tags[i]), keys.ErrTampered)
				if got, err := k.Unprotect(ctx, "ledger-key", secrets[i]); err != nil || string(got) != "secret" {
					t.Errorf("secret %d: %v", i, err)
				}
				_, err := k.Unprotect(ctx, "other", secrets[i])
				wantErr(t, err, keys.ErrTampered)
			}
		}
	}
	forged := bytes.Clone(tags[0])
	copy(forged, tags[1][:5]) // an older tag that claims to be of a newer key
	wantErr(t, r.VerifyToken(ctx, "unsubscribe", []byte("data"), forged), keys.ErrTampered)
}

// The inventory of the instance's keys names each version, the newest first, with its age.
func TestKeyVersions(t *testing.T) {
	ctx := context.Background()
	clk := newClock()
	r := newRing(t, func(c *keyring.Config) { c.Now = clk.Now })
	first := clk.Now()
	clk.add(time.Hour)
	second := clk.Now()
	_, err := r.BeginIndex(ctx)
	if err == nil {
		_, err = r.AddKeyset(ctx, "token")
	}
	if err == nil {
		_, err = r.RotateWitness(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := []keyring.KeyVersion{
		{Kind: "index", Version: 2, Newest: true, Count: 1, Made: second}, {Kind: "index", Version: 1, Count: 1, Made: first},
		{Kind: "token", Version: 2, Newest: true, Count: 1, Made: second}, {Kind: "token", Version: 1, Count: 1, Made: first},
		{Kind: "service", Version: 1, Newest: true, Count: 1, Made: first},
		{Kind: "witness", Version: 2, Newest: true, Count: 1, Made: second}, {Kind: "witness", Version: 1, Count: 1, Made: first},
	}
	if got := r.reopen().KeyVersions(); !reflect.DeepEqual(got, want) {
		t.Errorf("versions are %+v", got)
	}
}

// Keysets change while they are used, on two nodes: each change is made once, none undoes another.
func TestKeysetsWhileInUse(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, func(c *keyring.Config) { c.WitnessOverlap = time.Nanosecond })
	nodes := []*ring{r, r.reopen()}
	value := keyring.IndexValue{Collection: "a", Field: "b", Value: "c"}
	one := r.tokensOf(value)[1]
	tag, err := r.Token(ctx, "l", []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var users sync.WaitGroup
	for i := range 4 {
		node := nodes[i%2]
		users.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got := node.tokensOf(value)[1]; got != one {
					t.Error("the token under the first key changed")
				}
				wantErr(t, node.VerifyToken(ctx, "l", []byte("data"), tag), nil)
				_, err := node.WitnessSign([]byte("x"))
				wantErr(t, err, nil)
				node.WitnessKeys()
				node.KeyVersions()
			}
		})
	}
	const rounds = 5
	var changes sync.WaitGroup
	for _, node := range nodes {
		for _, run := range []func() error{
			func() error { _, err := node.AddKeyset(ctx, "token"); return err },
			func() error { _, err := node.AddKeyset(ctx, "service"); return err },
			func() error { _, err := node.RotateWitness(ctx); return err },
			func() error { _, err := node.BeginIndex(ctx); return err },
			func() error { return node.Refresh(ctx) },
		} {
			changes.Go(func() {
				for range rounds {
					if err := run(); err != nil && !errors.Is(err, keys.ErrInvalid) {
						t.Error(err)
					}
				}
			})
		}
	}
	changes.Wait()
	close(done)
	users.Wait()
	for _, node := range append(nodes, r.reopen()) {
		wantErr(t, node.Refresh(ctx), nil)
		newest := make(map[string]uint64)
		for _, v := range node.KeyVersions() {
			if v.Newest {
				newest[v.Kind] = v.Version
			}
		}
		if want := map[string]uint64{"index": 2, "token": 1 + 2*rounds, "service": 1 + 2*rounds, "witness": 1 + 2*rounds}; !reflect.DeepEqual(newest, want) {
			t.Errorf("newest versions are %v, want %v", newest, want)
		}
	}
}
