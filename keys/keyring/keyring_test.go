package keyring_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

func TestCreateAndOpen(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	_, err := keyring.Create(ctx, r.cfg)
	wantErr(t, err, keyring.ErrNotEmpty)
	if r.Generation() != 1 || r.KEKName() != "localkek" {
		t.Errorf("generation %d, KEK %q", r.Generation(), r.KEKName())
	}
	if _, err := uuid.Parse(r.SidecarID()); err != nil {
		t.Errorf("sidecar id: %v", err)
	}
	signature, err := r.WitnessSign([]byte("checkpoint"))
	if err != nil || !ed25519.Verify(r.WitnessPublic(), []byte("checkpoint"), signature) {
		t.Error("the witness's signature does not verify")
	}
	again := r.reopen()
	if again.SidecarID() != r.SidecarID() || !bytes.Equal(again.WitnessPublic(), r.WitnessPublic()) {
		t.Error("identity changed when opened again")
	}
	if err := again.Ready(ctx); err != nil {
		t.Error(err)
	}

	cfg := r.cfg
	cfg.Store = memkv.New()
	_, err = keyring.Open(ctx, cfg)
	wantErr(t, err, keyring.ErrNotCreated)
	if err := cfg.Store.View(ctx, func(v kv.Reader) error {
		pairs, err := v.Scan(nil, nil, 1)
		if len(pairs) != 0 {
			t.Error("Open created something")
		}
		return err
	}); err != nil {
		t.Error(err)
	}

	cfg = r.cfg
	cfg.Instance = "other"
	_, err = keyring.Open(ctx, cfg)
	wantErr(t, err, keyring.ErrOtherInstance)

	cfg = r.cfg
	cfg.KEK = newKEK(t) // of the same kind, with another root key
	_, err = keyring.Open(ctx, cfg)
	wantErr(t, err, keys.ErrTampered)
}

func TestConfigRefused(t *testing.T) {
	kek := newKEK(t)
	for name, change := range map[string]func(*keyring.Config){
		"no instance":       func(c *keyring.Config) { c.Instance = "" },
		"long instance":     func(c *keyring.Config) { c.Instance = strings.Repeat("x", 129) },
		"no KEK":            func(c *keyring.Config) { c.KEK = nil },
		"no store":          func(c *keyring.Config) { c.Store = nil },
		"TTL too long":      func(c *keyring.Config) { c.CacheTTL = 301 * time.Second },
		"negative TTL":      func(c *keyring.Config) { c.CacheTTL = -1 },
		"negative size":     func(c *keyring.Config) { c.CacheSize = -1 },
		"negative deadline": func(c *keyring.Config) { c.KEKTimeout = -1 },
		"negative overlap":  func(c *keyring.Config) { c.WitnessOverlap = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := keyring.Config{Instance: "test", KEK: kek, Store: memkv.New()}
			change(&cfg)
			_, err := keyring.Create(context.Background(), cfg)
			wantErr(t, err, keys.ErrInvalid)
			_, err = keyring.Open(context.Background(), cfg)
			wantErr(t, err, keys.ErrInvalid)
		})
	}
}

// unboundKEK does not bind contexts, as a transit key that is not derived.
type unboundKEK struct{ keyring.KEK }

func (u unboundKEK) Wrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return u.KEK.Wrap(ctx, sameContext(items))
}

func (u unboundKEK) Unwrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return u.KEK.Unwrap(ctx, sameContext(items))
}

func sameContext(items []keyring.KEKItem) []keyring.KEKItem {
	same := make([]keyring.KEKItem, len(items))
	for i := range items {
		same[i] = keyring.KEKItem{Context: []byte("same"), Data: items[i].Data}
	}
	return same
}

// plainKEK gives back what it is given.
type plainKEK struct{ keyring.KEK }

func (plainKEK) Wrap(_ context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	out := make([]keyring.KEKResult, len(items))
	for i := range items {
		out[i].Data = bytes.Clone(items[i].Data)
	}
	return out, nil
}

func TestSelfTest(t *testing.T) {
	r := newRing(t, nil)
	for name, kek := range map[string]keyring.KEK{"unbound": unboundKEK{r.kek}, "plain": plainKEK{r.kek}} {
		t.Run(name, func(t *testing.T) {
			cfg := keyring.Config{Instance: "test", KEK: kek, Store: memkv.New()}
			_, err := keyring.Create(context.Background(), cfg)
			wantErr(t, err, keyring.ErrNotBound)
			cfg.Store = r.store
			_, err = keyring.Open(context.Background(), cfg)
			wantErr(t, err, keyring.ErrNotBound)
		})
	}
}

func TestSealAndOpen(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	subject := uuid.New()
	index := keyring.IndexValue{Collection: "profile", Field: "email", Normaliser: 1, Value: "a@example.org"}
	sealed, err := r.Seal(ctx, []keyring.SealSubject{{Subject: subject, Create: true, Fields: []keyring.SealField{
		{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte(`"a@example.org"`), Index: []keyring.IndexValue{index}},
		{Collection: "profile", Field: "name", Version: 1, Plaintext: []byte(`{"given":"A"}`)},
		{Collection: "payment", Field: "card", Version: 7, Plaintext: bytes.Repeat([]byte("x"), keyring.MaxValue)},
	}}})
	if err != nil || sealed[0].Err != nil {
		t.Fatal(err, sealed)
	}
	s := sealed[0]
	if len(s.Ref) != 32 || len(s.Fields) != 3 || len(s.Fields[0].Index) != 1 || len(s.Fields[1].Index) != 0 {
		t.Errorf("outcome has other lengths")
	}
	first := s.Fields[0].Index[0].Tokens
	if len(first) != 1 || first[0].Key != 1 || len(first[0].Token) != 16 {
		t.Fatalf("tokens are %v", first)
	}
	tokens, err := r.Index(ctx, []keyring.IndexValue{index, {Collection: "profile", Field: "email", Normaliser: 2, Value: "a@example.org"}})
	if err != nil || !reflect.DeepEqual(tokens[0], first) || bytes.Equal(tokens[0][0].Token, tokens[1][0].Token) {
		t.Errorf("tokens of Seal and Index do not agree: %v", err)
	}
	if r.Generation() != 2 {
		t.Errorf("generation is %d", r.Generation())
	}

	for name, k := range map[string]*ring{"warm": r, "cold": r.reopen()} {
		refs, err := k.Ref(ctx, []uuid.UUID{subject, uuid.New()})
		if err != nil || !bytes.Equal(refs[0].Ref, s.Ref) || !errors.Is(refs[1].Err, keys.ErrNoKey) {
			t.Errorf("%s: references: %v %v", name, err, refs[1].Err)
		}
		opened, err := k.Open(ctx, []keyring.OpenSubject{
			{Subject: subject, Ref: s.Ref, Collection: "profile", Version: 1, Fields: []keyring.OpenField{
				{Field: "email", Ciphertext: s.Fields[0].Ciphertext},
				{Field: "name", Ciphertext: s.Fields[1].Ciphertext, Expect: []byte(`{"given":"A"}`)},
				{Field: "name", Ciphertext: s.Fields[1].Ciphertext, Expect: []byte(`{"given":"B"}`)},
				{Field: "name", Ciphertext: s.Fields[1].Ciphertext, Expect: []byte(`x`)},
			}},
			{Subject: subject, Collection: "payment", Version: 7, Fields: []keyring.OpenField{{Field: "card", Ciphertext: s.Fields[2].Ciphertext}}},
			{Subject: subject, Ref: make([]byte, 32), Collection: "profile", Version: 1},
			{Subject: subject, Ref: []byte{}, Collection: "profile", Version: 1},
			{Subject: uuid.New(), Collection: "profile", Version: 1},
		})
		if err != nil || opened[0].Err != nil || opened[1].Err != nil {
			t.Fatal(err, opened[0].Err, opened[1].Err)
		}
		f := opened[0].Fields
		if string(f[0].Plaintext) != `"a@example.org"` || f[0].Match {
			t.Errorf("%s: the plaintext is another", name)
		}
		if !f[1].Match || f[2].Match || f[3].Match || f[1].Plaintext != nil || f[2].Plaintext != nil || f[3].Plaintext != nil {
			t.Errorf("%s: the comparison is wrong, or reveals", name)
		}
		if len(opened[1].Fields[0].Plaintext) != keyring.MaxValue {
			t.Errorf("%s: the long value is another", name)
		}
		wantErr(t, opened[2].Err, keys.ErrProofRefused)
		wantErr(t, opened[3].Err, keys.ErrProofRefused)
		wantErr(t, opened[4].Err, keys.ErrNoKey)
	}
}

// One subject that fails has no fields and does not harm the others.
func TestOutcomesAreSeparate(t *testing.T) {
	r := newRing(t, nil)
	a, ca := r.mustCreate("a")
	b, cb := r.mustCreate("b")
	out, err := r.Open(context.Background(), []keyring.OpenSubject{
		openOf(a, cb),
		openOf(b, cb),
		{Subject: a, Collection: "profile", Version: 1, Fields: []keyring.OpenField{{Field: "email", Ciphertext: ca}, {Field: "email", Ciphertext: cb}}},
		openOf(a, ca),
		{Subject: a, Collection: "profile", Version: 1, Fields: []keyring.OpenField{{Field: "email", Ciphertext: ca, Expect: []byte{}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{keys.ErrTampered, nil, keys.ErrTampered, nil, keys.ErrInvalid} {
		if !errors.Is(out[i].Err, want) || want != nil && out[i].Fields != nil {
			t.Errorf("outcome %d: %v, want %v", i, out[i].Err, want)
		}
	}
	sealed, err := r.Seal(context.Background(), []keyring.SealSubject{
		sealOf(uuid.New(), false, "x"), sealOf(a, true, "x"), sealOf(a, false, "x"), sealOf(uuid.Nil, true, "x"), sealOf(uuid.New(), true, "x"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{keys.ErrNoKey, keys.ErrKeyExists, nil, keys.ErrInvalid, nil} {
		if !errors.Is(sealed[i].Err, want) || want != nil && (sealed[i].Fields != nil || sealed[i].Ref != nil) {
			t.Errorf("outcome %d: %v, want %v", i, sealed[i].Err, want)
		}
	}
}

func TestCreateTwice(t *testing.T) {
	r := newRing(t, nil)
	s := uuid.New()
	out, err := r.Seal(context.Background(), []keyring.SealSubject{sealOf(s, true, "a"), sealOf(s, true, "b"), sealOf(s, false, "c")})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{nil, keys.ErrKeyExists, nil} {
		if !errors.Is(out[i].Err, want) {
			t.Errorf("outcome %d: %v, want %v", i, out[i].Err, want)
		}
	}
	r.wantOpen(s, out[0].Fields[0].Ciphertext, "a")
	r.wantOpen(s, out[2].Fields[0].Ciphertext, "c")

	// Concurrently, from several nodes: one wins.
	for range 20 {
		s, nodes := uuid.New(), []*ring{r, r.reopen()}
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				switch _, err := nodes[i%2].seal(s, true, "x"); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, keys.ErrKeyExists):
					t.Errorf("a loser got %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d creations of one subject succeeded", won.Load())
		}
	}
}

func TestCarry(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, c1 := r.mustCreate("value")
	carry := func(carry []byte, from, to uint64) keyring.SealSubject {
		return keyring.SealSubject{Subject: s, Fields: []keyring.SealField{
			{Collection: "profile", Field: "email", Version: to, Carry: carry, CarryVersion: from}}}
	}
	out, err := r.Seal(ctx, []keyring.SealSubject{carry(c1, 1, 2), carry(c1, 2, 3)})
	if err != nil || out[0].Err != nil {
		t.Fatal(err, out[0].Err)
	}
	wantErr(t, out[1].Err, keys.ErrTampered)
	c2 := out[0].Fields[0].Ciphertext
	r.wantOpenErr(s, c2, keys.ErrTampered) // is bound to version 2 now
	opened, err := r.Open(ctx, []keyring.OpenSubject{{Subject: s, Collection: "profile", Version: 2, Fields: []keyring.OpenField{{Field: "email", Ciphertext: c2}}}})
	if err != nil || opened[0].Err != nil || string(opened[0].Fields[0].Plaintext) != "value" {
		t.Errorf("the carried value does not open: %v", err)
	}
}

func TestDetail(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, field := r.mustCreate("value")
	other, _ := r.mustCreate("other")
	out, err := r.Prepare(ctx, []keyring.PrepareItem{
		{Subject: s, Detail: []byte("reason")}, {Subject: s}, {Subject: uuid.New()}, {Subject: s, Detail: make([]byte, keyring.MaxValue+1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{nil, nil, keys.ErrNoKey, keys.ErrInvalid} {
		if !errors.Is(out[i].Err, want) {
			t.Errorf("outcome %d: %v, want %v", i, out[i].Err, want)
		}
	}
	if len(out[0].Ref) != 32 || !bytes.Equal(out[0].Ref, out[1].Ref) || out[1].SealedDetail != nil {
		t.Error("references differ, or nothing was sealed")
	}
	if got, err := r.OpenDetail(ctx, s, out[0].SealedDetail); err != nil || string(got) != "reason" {
		t.Errorf("detail: %v", err)
	}
	_, err = r.OpenDetail(ctx, other, out[0].SealedDetail)
	wantErr(t, err, keys.ErrTampered)
	_, err = r.OpenDetail(ctx, s, field)
	wantErr(t, err, keys.ErrTampered)
	r.wantOpenErr(s, out[0].SealedDetail, keys.ErrTampered)
}

func TestProtect(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	p, err := r.Protect(ctx, "ledger-key", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.reopen().Unprotect(ctx, "ledger-key", p); err != nil || string(got) != "secret" {
		t.Errorf("unprotecting: %v", err)
	}
	_, err = r.Unprotect(ctx, "other", p)
	wantErr(t, err, keys.ErrTampered)
	_, err = r.Unprotect(ctx, "ledger-key", p[1:])
	wantErr(t, err, keys.ErrTampered)
	_, err = r.Protect(ctx, "ledger-key", nil)
	wantErr(t, err, keys.ErrInvalid)
	_, err = r.Protect(ctx, "", []byte("x"))
	wantErr(t, err, keys.ErrInvalid)

	tag, err := r.Token(ctx, "unsubscribe", []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.reopen().VerifyToken(ctx, "unsubscribe", []byte("data"), tag), nil)
	wantErr(t, r.VerifyToken(ctx, "unsubscribe", []byte("datA"), tag), keys.ErrTampered)
	wantErr(t, r.VerifyToken(ctx, "confirm", []byte("data"), tag), keys.ErrTampered)
	wantErr(t, r.VerifyToken(ctx, "unsubscribe", []byte("data"), nil), keys.ErrTampered)
}

func TestState(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	get := func(want string) {
		t.Helper()
		if got, err := r.reopen().LoadState(ctx, "checkpoint"); err != nil || string(got) != want {
			t.Errorf("state is %q, %v", got, err)
		}
	}
	get("")
	for _, v := range []string{"one", "two"} {
		if err := r.SaveState(ctx, "checkpoint", []byte(v)); err != nil {
			t.Fatal(err)
		}
		get(v)
	}
	if err := r.SaveState(ctx, "checkpoint", nil); err != nil {
		t.Fatal(err)
	}
	get("")
	if r.Generation() != 1 {
		t.Error("a state changed the generation of the keys")
	}
	wantErr(t, r.SaveState(ctx, "", []byte("x")), keys.ErrInvalid)
	wantErr(t, r.SaveState(ctx, "big", make([]byte, keyring.MaxState+1)), keys.ErrInvalid)
}

func TestLimits(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, c := r.mustCreate("x")
	field := func(change func(*keyring.SealField)) keyring.SealSubject {
		sub := sealOf(s, false, "x")
		change(&sub.Fields[0])
		return sub
	}
	long := strings.Repeat("n", keyring.MaxName+1)
	for name, sub := range map[string]keyring.SealSubject{
		"empty value":       field(func(f *keyring.SealField) { f.Plaintext = nil }),
		"value and carry":   field(func(f *keyring.SealField) { f.Carry = c }),
		"large value":       field(func(f *keyring.SealField) { f.Plaintext = make([]byte, keyring.MaxValue+1) }),
		"large carry":       field(func(f *keyring.SealField) { f.Plaintext, f.Carry = nil, make([]byte, keyring.MaxValue+100) }),
		"no collection":     field(func(f *keyring.SealField) { f.Collection = "" }),
		"long collection":   field(func(f *keyring.SealField) { f.Collection = long }),
		"no field":          field(func(f *keyring.SealField) { f.Field = "" }),
		"long field":        field(func(f *keyring.SealField) { f.Field = long }),
		"empty index value": field(func(f *keyring.SealField) { f.Index = []keyring.IndexValue{{Collection: "a", Field: "b"}} }),
		"many index values": field(func(f *keyring.SealField) { f.Index = make([]keyring.IndexValue, keyring.MaxIndexValues+1) }),
		"value and sealed value": field(func(f *keyring.SealField) {
			f.Index = []keyring.IndexValue{{Collection: "a", Field: "b", Value: "c", Sealed: c}}
		}),
		"large sealed value": field(func(f *keyring.SealField) {
			f.Index = []keyring.IndexValue{{Collection: "a", Field: "b", Sealed: make([]byte, keyring.MaxIndexValue+100)}}
		}),
		"carry into new":  {Subject: uuid.New(), Create: true, Fields: []keyring.SealField{{Collection: "a", Field: "b", Carry: c}}},
		"too many fields": {Subject: s, Fields: make([]keyring.SealField, keyring.MaxFields+1)},
	} {
		out, err := r.Seal(ctx, []keyring.SealSubject{sub})
		if err != nil || !errors.Is(out[0].Err, keys.ErrInvalid) {
			t.Errorf("%s: %v, %v", name, err, out)
		}
	}
	_, err := r.Seal(ctx, make([]keyring.SealSubject, keyring.MaxItems+1))
	wantErr(t, err, keys.ErrInvalid)
	_, err = r.Open(ctx, make([]keyring.OpenSubject, keyring.MaxItems+1))
	wantErr(t, err, keys.ErrInvalid)
	_, err = r.Index(ctx, []keyring.IndexValue{{Collection: "a", Field: "b", Value: strings.Repeat("x", keyring.MaxIndexValue+1)}})
	wantErr(t, err, keys.ErrInvalid)
	wantErr(t, r.Destroy(ctx, s, strings.Repeat("x", keyring.MaxReason+1)), keys.ErrInvalid)
}

// Lengths are hidden to within 32 bytes.
func TestPadding(t *testing.T) {
	r := newRing(t, nil)
	s, first := r.mustCreate("x")
	for n := 1; n <= 27; n++ {
		c, err := r.seal(s, false, strings.Repeat("x", n))
		if err != nil || len(c) != len(first) {
			t.Errorf("a value of %d bytes shows in its ciphertext: %v", n, err)
		}
	}
	if c, err := r.seal(s, false, strings.Repeat("x", 28)); err != nil || len(c) != len(first)+32 {
		t.Errorf("a value of 28 bytes: %v", err)
	}
}

// Promise 7, F34: erasure beats the cache, on this node and on any other of the same key store.
func TestDestroy(t *testing.T) {
	ctx := context.Background()
	a := newRing(t, nil)
	b := a.reopen()
	s, c := a.mustCreate("value")
	kept, ck := a.mustCreate("kept")
	b.wantOpen(s, c, "value") // in the cache of both now
	b.wantOpen(kept, ck, "kept")
	generation := a.Generation()
	if err := a.Destroy(ctx, s, "erasure"); err != nil {
		t.Fatal(err)
	}
	unwraps := a.kek.unwraps.Load()
	a.wantOpenErr(s, c, keys.ErrDestroyed)
	b.wantOpenErr(s, c, keys.ErrDestroyed)
	a.wantOpen(kept, ck, "kept")
	b.wantOpen(kept, ck, "kept")
	if a.kek.unwraps.Load() != unwraps {
		t.Error("the KEK was asked")
	}
	a.reopen().wantOpenErr(s, c, keys.ErrDestroyed)
	if a.Generation() != generation+1 || b.Generation() != generation+1 {
		t.Errorf("generations are %d and %d", a.Generation(), b.Generation())
	}
	_, err := a.seal(s, true, "again")
	wantErr(t, err, keys.ErrKeyExists)
	_, err = b.seal(s, false, "again")
	wantErr(t, err, keys.ErrDestroyed)
	wantErr(t, a.Destroy(ctx, s, "erasure"), nil)
	wantErr(t, a.Destroy(ctx, uuid.New(), "erasure"), keys.ErrNoKey)
	if a.rawGet(keyring.KeyBundle(s)) != nil {
		t.Error("the row is still there")
	}
}

// An engine that loses a deletion does not bring a key back.
func TestTombstoneBeatsRow(t *testing.T) {
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	row := r.rawGet(keyring.KeyBundle(s))
	if err := r.Destroy(context.Background(), s, "erasure"); err != nil {
		t.Fatal(err)
	}
	r.rawSet(keyring.KeyBundle(s), row)
	r.wantOpenErr(s, c, keys.ErrDestroyed)
}

// An erasure that is acknowledged while the KEK is asked wins, for those it was asked for and for those
// in the cache beside them.
func TestDestroyWhileUnwrapping(t *testing.T) {
	ctx := context.Background()
	a := newRing(t, nil)
	cold, cc := a.mustCreate("cold")
	warm, cw := a.mustCreate("warm")
	b := a.reopen()
	b.wantOpen(warm, cw, "warm")
	gate := make(chan struct{})
	a.kek.set(func() { a.kek.gate = gate })
	before := a.kek.calls.Load()
	done := make(chan []keyring.OpenedSubject)
	go func() {
		out, err := b.Open(ctx, []keyring.OpenSubject{openOf(cold, cc), openOf(warm, cw)})
		if err != nil {
			t.Error(err)
		}
		done <- out
	}()
	for a.kek.calls.Load() == before {
		runtime.Gosched()
	}
	for _, s := range []uuid.UUID{cold, warm} {
		if err := a.Destroy(ctx, s, "erasure"); err != nil {
			t.Fatal(err)
		}
	}
	close(gate)
	for _, o := range <-done {
		wantErr(t, o.Err, keys.ErrDestroyed)
	}
}

// F23: a hanging KEK holds up those who need it, until their deadline, and nobody else.
func TestHangingKEK(t *testing.T) {
	const long = 30 * time.Second // what somebody who waited for the KEK would take
	r := newRing(t, func(c *keyring.Config) { c.KEKTimeout = long })
	var colds []keyring.OpenSubject
	for range 50 {
		s, c := r.mustCreate("cold")
		colds = append(colds, openOf(s, c))
	}
	b := r.reopen()
	warm, cw := r.mustCreate("warm")
	b.wantOpen(warm, cw, "warm")
	gate := make(chan struct{})
	r.kek.set(func() { r.kek.gate = gate })

	before := runtime.NumGoroutine()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	var wg sync.WaitGroup
	for _, cold := range colds {
		wg.Go(func() {
			_, err := b.Open(ctx, []keyring.OpenSubject{cold})
			wantErr(t, err, keys.ErrUnavailable)
			wantErr(t, err, context.DeadlineExceeded)
		})
	}
	for ctx.Err() == nil {
		b.wantOpen(warm, cw, "warm")
		if _, err := b.Index(context.Background(), []keyring.IndexValue{{Collection: "a", Field: "b", Value: "c"}}); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if took := time.Since(start); took > long/3 {
		t.Errorf("hits, or waiters with a deadline of 300 ms, took %v", took)
	}
	if after := runtime.NumGoroutine(); after > before+10 {
		t.Errorf("%d goroutines, before %d", after, before)
	}
	close(gate)
	for _, cold := range colds {
		b.wantOpen(cold.Subject, cold.Fields[0].Ciphertext, "cold")
	}
}

// The keyring's own timeout ends a call for who would wait longer.
func TestKEKTimeout(t *testing.T) {
	r := newRing(t, func(c *keyring.Config) { c.KEKTimeout = 50 * time.Millisecond })
	s, c := r.mustCreate("value")
	b := r.reopen()
	r.kek.set(func() { r.kek.gate = make(chan struct{}) })
	b.wantOpenErr(s, c, keys.ErrUnavailable)
	r.kek.set(func() { r.kek.gate = nil })
	b.wantOpen(s, c, "value")
}

// Misses of one subject share one request, misses of many share few.
func TestMissesAreGathered(t *testing.T) {
	r := newRing(t, nil)
	s, c := r.mustCreate("one")
	var many []keyring.OpenSubject
	for range 500 {
		s, c := r.mustCreate("many")
		many = append(many, openOf(s, c))
	}
	b := r.reopen()
	gate := make(chan struct{})
	r.kek.set(func() { r.kek.gate = gate })
	calls, items := r.kek.calls.Load(), r.kek.items.Load()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() { b.wantOpen(s, c, "one") })
	}
	for _, o := range many {
		wg.Go(func() { b.wantOpen(o.Subject, o.Fields[0].Ciphertext, "many") })
	}
	time.Sleep(200 * time.Millisecond) // all of them wait
	close(gate)
	wg.Wait()
	if got := r.kek.items.Load() - items; got != 501 {
		t.Errorf("%d items were asked for, want 501", got)
	}
	if got := r.kek.calls.Load() - calls; got > 8 {
		t.Errorf("%d calls", got)
	}
}

// One Seal call is one batch to the KEK and one transaction; concurrent calls share them.
func TestCreationsAreGathered(t *testing.T) {
	var commits, changes atomic.Int64
	r := newRing(t, func(c *keyring.Config) {
		c.Observe.Commit = func(n int, _ time.Duration, _ error) { commits.Add(1); changes.Add(int64(n)) }
	})
	batch := make([]keyring.SealSubject, 1000)
	for i := range batch {
		batch[i] = sealOf(uuid.New(), true, "x")
	}
	calls := r.kek.calls.Load()
	out, err := r.Seal(context.Background(), batch)
	if err != nil {
		t.Fatal(err)
	}
	for i := range out {
		if out[i].Err != nil {
			t.Fatal(out[i].Err)
		}
	}
	if r.kek.calls.Load()-calls != 1 || commits.Load() != 1 || r.Generation() != 2 {
		t.Errorf("%d calls to the KEK, %d commits, generation %d", r.kek.calls.Load()-calls, commits.Load(), r.Generation())
	}

	r.store.mu.Lock()
	r.store.slow = 5 * time.Millisecond
	r.store.mu.Unlock()
	commits.Store(0)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() { r.mustCreate("x") })
	}
	wg.Wait()
	if commits.Load() > 50 {
		t.Errorf("%d commits for 200 concurrent creations", commits.Load())
	}
}

// A bundle is kept for the TTL since it was unwrapped, however often it is used, and not longer in memory.
func TestCacheTTL(t *testing.T) {
	clk := newClock()
	var hits, misses atomic.Int64
	r := newRing(t, func(c *keyring.Config) {
		c.Now, c.CacheTTL = clk.Now, time.Second
		c.Observe.Cache = func(h, m int) { hits.Add(int64(h)); misses.Add(int64(m)) }
	})
	s, c := r.mustCreate("value")
	r.wantOpen(s, c, "value")
	clk.add(900 * time.Millisecond)
	r.wantOpen(s, c, "value")
	if misses.Load() != 0 {
		t.Error("the KEK was asked early")
	}
	clk.add(200 * time.Millisecond)
	r.kek.set(func() { r.kek.before = func(string) error { return keys.ErrSealed } })
	r.wantOpenErr(s, c, keys.ErrSealed)
	r.kek.set(func() { r.kek.before = nil })
	r.wantOpen(s, c, "value")
	if misses.Load() != 2 || hits.Load() != 2 {
		t.Errorf("%d hits, %d misses", hits.Load(), misses.Load())
	}
	if r.Cached() != 1 {
		t.Errorf("%d bundles in the cache", r.Cached())
	}
	clk.add(2 * time.Second)
	for end := time.Now().Add(5 * time.Second); r.Cached() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an expired bundle stays in memory")
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	r := newRing(t, func(c *keyring.Config) { c.CacheSize = 10 })
	var all []keyring.OpenSubject
	for range 100 {
		s, c := r.mustCreate("value")
		all = append(all, openOf(s, c))
	}
	if r.Cached() != 10 {
		t.Errorf("%d bundles in the cache", r.Cached())
	}
	out, err := r.Open(context.Background(), all) // more than the cache holds, in one call
	if err != nil {
		t.Fatal(err)
	}
	for i := range out {
		if out[i].Err != nil || string(out[i].Fields[0].Plaintext) != "value" {
			t.Errorf("outcome %d: %v", i, out[i].Err)
		}
	}
}

// What the KEK says about an item is what the caller hears, and nothing is ever taken for an answer that
// is none.
func TestKEKFailures(t *testing.T) {
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	for name, tc := range map[string]struct {
		before error
		change func(*keyring.KEKResult)
		want   error
	}{
		"sealed":           {before: keys.ErrSealed, want: keys.ErrSealed},
		"forbidden":        {before: keys.ErrForbidden, want: keys.ErrForbidden},
		"missing":          {before: keys.ErrKEKMissing, want: keys.ErrKEKMissing},
		"unknown":          {before: errInjected, want: keys.ErrUnavailable},
		"no key, says it":  {before: keys.ErrNoKey, want: keys.ErrUnavailable},
		"item retired":     {change: func(r *keyring.KEKResult) { *r = keyring.KEKResult{Err: keys.ErrKEKRetired} }, want: keys.ErrKEKRetired},
		"item tampered":    {change: func(r *keyring.KEKResult) { *r = keyring.KEKResult{Err: keys.ErrTampered} }, want: keys.ErrTampered},
		"item unknown":     {change: func(r *keyring.KEKResult) { *r = keyring.KEKResult{Err: errInjected} }, want: keys.ErrUnavailable},
		"empty":            {change: func(r *keyring.KEKResult) { *r = keyring.KEKResult{} }, want: keys.ErrUnavailable},
		"other bytes":      {change: func(r *keyring.KEKResult) { r.Data[0] ^= 1 }, want: keys.ErrTampered},
		"cut short":        {change: func(r *keyring.KEKResult) { r.Data = r.Data[:40] }, want: keys.ErrTampered},
		"only a secret":    {change: func(r *keyring.KEKResult) { r.Data = r.Data[:33] }, want: keys.ErrTampered},
		"keyset is broken": {change: func(r *keyring.KEKResult) { r.Data[len(r.Data)-1] ^= 0x40 }, want: keys.ErrTampered},
	} {
		t.Run(name, func(t *testing.T) {
			b := r.reopen()
			r.kek.set(func() {
				r.kek.before = func(string) error { return tc.before }
				if tc.change != nil {
					r.kek.change = func(_ string, res *keyring.KEKResult) { tc.change(res) }
				}
			})
			defer r.kek.set(func() { r.kek.before, r.kek.change = nil, nil })
			_, err := b.open(context.Background(), s, c)
			wantErr(t, err, tc.want)
			if errors.Is(err, keys.ErrNoKey) && tc.want != keys.ErrNoKey && !errors.Is(err, keys.ErrUnavailable) {
				t.Error("a failure of the KEK reads as no such subject")
			}
		})
	}
	r.reopen().wantOpen(s, c, "value")
}

// Rows that are damaged, foreign or moved are refused; a counter that goes back is noticed.
func TestDamagedStore(t *testing.T) {
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	other, _ := r.mustCreate("other")
	row := r.rawGet(keyring.KeyBundle(s))
	change := func(f func([]byte) []byte) []byte { return f(bytes.Clone(row)) }
	for name, tc := range map[string]struct {
		row  []byte
		want error
	}{
		"empty":                  {[]byte{}, keys.ErrTampered},
		"unknown format":         {change(func(b []byte) []byte { b[0] = 1; return b }), keys.ErrTampered},
		"cut short":              {row[:16], keys.ErrTampered},
		"flipped bit":            {change(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), keys.ErrTampered},
		"another subject's":      {r.rawGet(keyring.KeyBundle(other)), keys.ErrTampered},
		"a keyset's":             {r.rawGet(keyring.KeyKeyset("service")), keys.ErrTampered},
		"another KEK's":          {change(func(b []byte) []byte { b[15] = 'X'; return b }), keys.ErrKEKMissing},
		"another number of keys": {change(func(b []byte) []byte { b[13]++; return b }), keys.ErrTampered},
		"without keys":           {change(func(b []byte) []byte { b[13] = 0; return b }), keys.ErrTampered},
		"from the future":        {change(func(b []byte) []byte { b[1] = 1; return b }), kv.ErrIntegrity},
		"without a generation":   {change(func(b []byte) []byte { clear(b[1:9]); return b }), keys.ErrTampered},
	} {
		t.Run(name, func(t *testing.T) {
			r.rawSet(keyring.KeyBundle(s), tc.row)
			r.wantOpenErr(s, c, tc.want) // although the right bundle was in the cache
			r.reopen().wantOpenErr(s, c, tc.want)
			r.rawSet(keyring.KeyBundle(s), row)
			r.wantOpen(s, c, "value")
		})
	}
	counter := r.rawGet(keyring.KeyGeneration)
	for name, v := range map[string][]byte{"older": binary.BigEndian.AppendUint64(nil, 1), "zero": make([]byte, 8), "short": {1}} {
		t.Run("counter "+name, func(t *testing.T) {
			r.rawSet(keyring.KeyGeneration, v)
			defer r.rawSet(keyring.KeyGeneration, counter)
			r.wantOpenErr(s, c, kv.ErrIntegrity)
			r.wantOpenErr(s, c, keys.ErrUnavailable)
			_, err := r.seal(uuid.New(), true, "x")
			wantErr(t, err, kv.ErrIntegrity)
			wantErr(t, r.Destroy(context.Background(), s, "x"), kv.ErrIntegrity)
		})
	}
	r.wantOpen(s, c, "value")
	for _, name := range []string{"identity", "index", "token", "service"} {
		t.Run("keyset "+name, func(t *testing.T) {
			key := keyring.KeyKeyset(name)
			good := r.rawGet(key)
			defer r.rawSet(key, good)
			for _, from := range []string{"identity", "index", "token", "service"} {
				if from == name {
					continue
				}
				r.rawSet(key, r.rawGet(keyring.KeyKeyset(from)))
				_, err := keyring.Open(context.Background(), r.cfg)
				if !errors.Is(err, keys.ErrTampered) {
					t.Errorf("the keyset %s in its place: %v", from, err)
				}
				r.rawSet(key, good)
			}
			r.raw(func(w kv.Writer) error { w.Delete(key); return nil })
			_, err := keyring.Open(context.Background(), r.cfg)
			wantErr(t, err, keys.ErrTampered)
		})
	}
}

// When space runs out, no person is added, but erasures and what reads need go on.
func TestStorageFull(t *testing.T) {
	ctx := context.Background()
	full := &fullStore{Store: memkv.New()}
	r := newRing(t, func(c *keyring.Config) { c.Store = full })
	s, c := r.mustCreate("value")
	full.full.Store(true)
	_, err := r.seal(uuid.New(), true, "x")
	wantErr(t, err, kv.ErrStorageFull)
	wantErr(t, err, keys.ErrUnavailable)
	wantErr(t, r.SaveState(ctx, "checkpoint", []byte("x")), nil)
	r.wantOpen(s, c, "value")
	wantErr(t, r.Destroy(ctx, s, "erasure"), nil)
	r.wantOpenErr(s, c, keys.ErrDestroyed)
	// Together in one group as well.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { _, err := r.seal(uuid.New(), true, "x"); wantErr(t, err, kv.ErrStorageFull) })
		wg.Go(func() { wantErr(t, r.SaveState(ctx, "checkpoint", []byte("x")), nil) })
	}
	wg.Wait()
	full.full.Store(false)
	r.mustCreate("value")
}

// fullStore refuses writes that may not use the reserve.
type fullStore struct {
	kv.Store
	full atomic.Bool
}

func (s *fullStore) Update(ctx context.Context, fn func(kv.Writer) error) error {
	if s.full.Load() && !kv.ReserveAllowed(ctx) {
		return kv.ErrStorageFull
	}
	return s.Store.Update(ctx, fn)
}

// A damaged row is told as such, and refuses nothing that is committed beside it.
func TestDamageOfOneRow(t *testing.T) {
	ctx := context.Background()
	damaged := &damagedStore{Store: memkv.New()}
	r := newRing(t, func(c *keyring.Config) { c.Store = damaged })
	s, _ := r.mustCreate("value")
	damaged.subject.Store(&s)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { wantErr(t, r.Destroy(ctx, s, "erasure"), keys.ErrDamaged) })
		wg.Go(func() { wantErr(t, r.SaveState(ctx, "checkpoint", []byte("x")), nil) })
	}
	wg.Wait()
	damaged.subject.Store(nil)
	wantErr(t, r.Destroy(ctx, s, "erasure"), nil)
}

// damagedStore cannot read what concerns a subject in a transaction that writes.
type damagedStore struct {
	kv.Store
	subject atomic.Pointer[uuid.UUID]
}

func (s *damagedStore) Update(ctx context.Context, fn func(kv.Writer) error) error {
	return s.Store.Update(ctx, func(w kv.Writer) error { return fn(damagedWriter{w, s.subject.Load()}) })
}

type damagedWriter struct {
	kv.Writer
	subject *uuid.UUID
}

func (w damagedWriter) Get(rows ...[]byte) ([][]byte, error) {
	for _, row := range rows {
		if w.subject != nil && bytes.Contains(row, w.subject[:]) {
			return nil, kv.ErrIntegrity
		}
	}
	return w.Writer.Get(rows...)
}

// Promise 11: what was secret is overwritten, and shows nowhere.
func TestSecretsAreWiped(t *testing.T) {
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	r.reopen().wantOpen(s, c, "value")
	r.wantWiped(10)
}

func TestSecretsDoNotPrint(t *testing.T) {
	const canary = "canary-5f3a"
	secret := keyring.Secret(canary)
	values := []any{
		secret, &secret, keyring.KEKItem{Context: []byte("c"), Data: secret}, keyring.KEKResult{Data: secret},
		keyring.SealField{Collection: "a", Field: "b", Plaintext: secret, Index: []keyring.IndexValue{{Value: canary}}},
		keyring.IndexValue{Collection: "a", Field: "b", Value: canary}, &keyring.IndexValue{Value: canary},
		keyring.PrepareItem{Detail: secret}, keyring.OpenField{Expect: secret}, keyring.OpenedField{Plaintext: secret},
		[]keyring.OpenedSubject{{Fields: []keyring.OpenedField{{Plaintext: secret}}}},
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	text := slog.New(slog.NewTextHandler(&log, nil))
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&log, verb, v)
		}
		logger.Info("x", "v", v)
		text.Info("x", "v", v)
		if b, err := json.Marshal(v); err == nil {
			log.Write(b)
		}
	}
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), "Y2FuYXJ5", fmt.Sprint([]byte(canary)), "0x63, 0x61, 0x6e"} {
		if strings.Contains(log.String(), form) {
			i := strings.Index(log.String(), form)
			t.Errorf("the secret shows as %q: %s", form, log.String()[max(0, i-60):i+20])
		}
	}
}

func TestErrorsHoldNoData(t *testing.T) {
	const canary = "canary-5f3a"
	var log bytes.Buffer
	r := newRing(t, func(c *keyring.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	s, c := r.mustCreate(canary)
	broken := bytes.Clone(c)
	broken[len(broken)-1] ^= 1
	var errs []error
	_, err := r.open(context.Background(), s, broken)
	errs = append(errs, err)
	_, err = r.seal(s, true, canary)
	errs = append(errs, err)
	_, err = r.seal(uuid.New(), false, canary)
	errs = append(errs, err)
	_, err = r.seal(s, false, strings.Repeat(canary, 10_000))
	errs = append(errs, err)
	for _, err := range errs {
		if err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), s.String()) {
			t.Errorf("error is %v", err)
		}
	}
	if strings.Contains(log.String(), canary) || strings.Contains(log.String(), s.String()) {
		t.Error("the log shows data")
	}
}

func TestClose(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("the second Close gave %v", err)
	}
	ctx := context.Background()
	calls := map[string]func() error{
		"Seal":          func() error { _, err := r.Seal(ctx, []keyring.SealSubject{sealOf(s, false, "x")}); return err },
		"Seal create":   func() error { _, err := r.Seal(ctx, []keyring.SealSubject{sealOf(uuid.New(), true, "x")}); return err },
		"Open":          func() error { _, err := r.Open(ctx, []keyring.OpenSubject{openOf(s, c)}); return err },
		"Prepare":       func() error { _, err := r.Prepare(ctx, nil); return err },
		"Ref":           func() error { _, err := r.Ref(ctx, nil); return err },
		"Index":         func() error { _, err := r.Index(ctx, nil); return err },
		"OpenDetail":    func() error { _, err := r.OpenDetail(ctx, s, nil); return err },
		"Protect":       func() error { _, err := r.Protect(ctx, "l", []byte("x")); return err },
		"Unprotect":     func() error { _, err := r.Unprotect(ctx, "l", []byte("x")); return err },
		"Token":         func() error { _, err := r.Token(ctx, "l", nil); return err },
		"VerifyToken":   func() error { return r.VerifyToken(ctx, "l", nil, nil) },
		"Destroy":       func() error { return r.Destroy(ctx, s, "x") },
		"DestroyRef":    func() error { _, err := r.DestroyRef(ctx, s, nil, "x"); return err },
		"Reseal":        func() error { _, err := r.Reseal(ctx, 1, []keyring.ResealSubject{{Subject: s}}); return err },
		"Retire":        func() error { _, err := r.Retire(ctx, 1, []uuid.UUID{s}); return err },
		"Reindex":       func() error { _, err := r.Reindex(ctx, nil); return err },
		"BeginIndex":    func() error { _, err := r.BeginIndex(ctx); return err },
		"EndIndex":      func() error { return r.EndIndex(ctx, 1) },
		"AddKeyset":     func() error { _, err := r.AddKeyset(ctx, "token"); return err },
		"RotateWitness": func() error { _, err := r.RotateWitness(ctx); return err },
		"LoadState":     func() error { _, err := r.LoadState(ctx, "x"); return err },
		"SaveState":     func() error { return r.SaveState(ctx, "x", nil) },
		"WitnessSign":   func() error { _, err := r.WitnessSign(nil); return err },
		"Ready":         func() error { return r.Ready(ctx) },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, keyring.ErrClosed) || !errors.Is(err, keys.ErrUnavailable) {
			t.Errorf("%s gave %v", name, err)
		}
	}
	if r.Cached() != 0 || r.SidecarID() != "" || r.WitnessPublic() != nil || r.WitnessKeys() != nil {
		t.Error("keys are still there")
	}
	goleak.VerifyNone(t, ignore)
}

// Close while everything is in use, under the race detector.
func TestCloseWhileInUse(t *testing.T) {
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	b := r.reopen()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				_, err := b.open(context.Background(), s, c)
				if _, e := b.WitnessSign([]byte("x")); err == nil {
					err = e
				}
				if _, e := b.seal(uuid.New(), true, "x"); err == nil {
					err = e
				}
				if err != nil {
					wantErr(t, err, keys.ErrUnavailable)
					return
				}
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
