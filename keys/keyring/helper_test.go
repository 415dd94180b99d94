package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

var errInjected = errors.New("injected fault")

// testKEK is a KEK in a file, in front of which a test can place faults. It is strict: it fails the test
// when an item comes without context or data.
type testKEK struct {
	keyring.KEK
	t testing.TB

	calls, items, unwraps atomic.Int64

	mu     sync.Mutex                            // guards the rest
	before func(op string) error                 // returns an error instead of the call
	after  func(op string) error                 // returns an error in spite of the call
	gate   chan struct{}                         // when not nil, Unwrap waits until it is closed, or ctx ends
	change func(op string, r *keyring.KEKResult) // changes results
	kept   []keyring.Secret                      // plaintexts that were given or returned
}

func newKEK(t testing.TB) *testKEK {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root-key")
	if err := localkek.Create(path); err != nil {
		t.Fatal(err)
	}
	k, err := localkek.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return &testKEK{KEK: k, t: t}
}

func (k *testKEK) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func (k *testKEK) Wrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return k.do(ctx, "wrap", items, k.KEK.Wrap)
}

func (k *testKEK) Unwrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	k.unwraps.Add(int64(len(items)))
	return k.do(ctx, "unwrap", items, k.KEK.Unwrap)
}

func (k *testKEK) do(ctx context.Context, op string, items []keyring.KEKItem, call func(context.Context, []keyring.KEKItem) ([]keyring.KEKResult, error)) ([]keyring.KEKResult, error) {
	k.calls.Add(1)
	k.items.Add(int64(len(items)))
	for _, it := range items {
		if len(it.Context) == 0 || len(it.Data) == 0 {
			k.t.Error("KEK was given an item without context or data")
		}
	}
	k.mu.Lock()
	before, after, gate, change := k.before, k.after, k.gate, k.change
	k.mu.Unlock()
	if before != nil {
		if err := before(op); err != nil {
			return nil, err
		}
	}
	if gate != nil && op == "unwrap" {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	results, err := call(ctx, items)
	k.set(func() {
		for i := range items {
			if op == "wrap" {
				k.kept = append(k.kept, items[i].Data)
			} else if i < len(results) {
				k.kept = append(k.kept, results[i].Data)
			}
		}
	})
	if change != nil {
		for i := range results {
			change(op, &results[i])
		}
	}
	if after != nil {
		if err := after(op); err != nil {
			return nil, err
		}
	}
	return results, err
}

// testStore is a key store in front of which a test can place faults.
type testStore struct {
	kv.Store
	mu            sync.Mutex
	before, after func(op string) error
	slow          time.Duration
}

func (s *testStore) hooks() (before, after func(string) error, slow time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	nothing := func(string) error { return nil }
	before, after = s.before, s.after
	if before == nil {
		before = nothing
	}
	if after == nil {
		after = nothing
	}
	return before, after, s.slow
}

func (s *testStore) View(ctx context.Context, fn func(kv.Reader) error) error {
	before, _, _ := s.hooks()
	if err := before("view"); err != nil {
		return err
	}
	return s.Store.View(ctx, fn)
}

func (s *testStore) Update(ctx context.Context, fn func(kv.Writer) error) error {
	before, after, slow := s.hooks()
	time.Sleep(slow)
	if err := before("update"); err != nil {
		return err
	}
	if err := s.Store.Update(ctx, fn); err != nil {
		return err
	}
	return after("update")
}

// ring is a keyring with its parts at hand.
type ring struct {
	*keyring.Keyring
	t     testing.TB
	kek   *testKEK
	store *testStore
	cfg   keyring.Config
}

// newRing makes an instance. change may adapt its configuration.
func newRing(t testing.TB, change func(*keyring.Config)) *ring {
	t.Helper()
	r := &ring{t: t, kek: newKEK(t), store: &testStore{Store: memkv.New()}}
	r.cfg = keyring.Config{Instance: "test", KEK: r.kek, Store: r.store}
	if change != nil {
		change(&r.cfg)
	}
	var err error
	if r.Keyring, err = keyring.Create(context.Background(), r.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// reopen returns another keyring on the same key store, as a second node or after a restart.
func (r *ring) reopen() *ring {
	r.t.Helper()
	k, err := keyring.Open(context.Background(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = k.Close() })
	again := *r
	again.Keyring = k
	return &again
}

func sealOf(subject uuid.UUID, create bool, value string) keyring.SealSubject {
	return keyring.SealSubject{Subject: subject, Create: create, Fields: []keyring.SealField{
		{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte(value)},
	}}
}

// seal seals one value at ("profile", "email", 1).
func (r *ring) seal(subject uuid.UUID, create bool, value string) ([]byte, error) {
	out, err := r.Seal(context.Background(), []keyring.SealSubject{sealOf(subject, create, value)})
	if err != nil {
		return nil, err
	}
	if out[0].Err != nil {
		return nil, out[0].Err
	}
	return out[0].Fields[0].Ciphertext, nil
}

// mustCreate makes a subject with one value.
func (r *ring) mustCreate(value string) (uuid.UUID, []byte) {
	r.t.Helper()
	subject := uuid.New()
	ciphertext, err := r.seal(subject, true, value)
	if err != nil {
		r.t.Fatal(err)
	}
	return subject, ciphertext
}

func openOf(subject uuid.UUID, ciphertext []byte) keyring.OpenSubject {
	return keyring.OpenSubject{Subject: subject, Collection: "profile", Version: 1,
		Fields: []keyring.OpenField{{Field: "email", Ciphertext: ciphertext}}}
}

// open opens what seal sealed.
func (r *ring) open(ctx context.Context, subject uuid.UUID, ciphertext []byte) (string, error) {
	out, err := r.Open(ctx, []keyring.OpenSubject{openOf(subject, ciphertext)})
	if err != nil {
		return "", err
	}
	if out[0].Err != nil {
		if out[0].Fields != nil {
			r.t.Error("an outcome has an error and fields")
		}
		return "", out[0].Err
	}
	return string(out[0].Fields[0].Plaintext), nil
}

func (r *ring) wantOpen(subject uuid.UUID, ciphertext []byte, want string) {
	r.t.Helper()
	if got, err := r.open(context.Background(), subject, ciphertext); err != nil || got != want {
		r.t.Errorf("opening gave %v, or another value", err)
	}
}

func (r *ring) wantOpenErr(subject uuid.UUID, ciphertext []byte, want error) {
	r.t.Helper()
	_, err := r.open(context.Background(), subject, ciphertext)
	wantErr(r.t, err, want)
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

// wantWiped fails the test unless every secret that the KEK was given or gave, at least so many, is overwritten.
func (r *ring) wantWiped(atLeast int) {
	r.t.Helper()
	r.kek.mu.Lock()
	defer r.kek.mu.Unlock()
	if len(r.kek.kept) < atLeast {
		r.t.Fatalf("only %d secrets were seen", len(r.kek.kept))
	}
	for i, secret := range r.kek.kept {
		if !bytes.Equal(secret, make([]byte, len(secret))) {
			r.t.Errorf("secret %d of %d bytes was not wiped", i, len(secret))
		}
	}
}

// raw reads and writes the key store behind the keyring's back.
func (r *ring) raw(fn func(kv.Writer) error) {
	r.t.Helper()
	if err := r.store.Store.Update(context.Background(), fn); err != nil {
		r.t.Fatal(err)
	}
}

func (r *ring) rawGet(key []byte) (value []byte) {
	r.t.Helper()
	r.raw(func(w kv.Writer) error {
		v, err := w.Get(key)
		if err == nil {
			value = bytes.Clone(v[0])
		}
		return err
	})
	return value
}

func (r *ring) rawSet(key, value []byte) {
	r.t.Helper()
	r.raw(func(w kv.Writer) error { w.Set(key, value); return nil })
}

// clock is a clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
