// Package sidecartest runs a real sidecar in the test's own process: a real keyring over a root-key file
// and a store in memory, behind a real socket, with a ledger that can be bent as an attacker would.
//
// It must never be imported by anything but tests.
package sidecartest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// Instance is the name of the instance that worlds use, Origin that of their ledger.
const (
	Instance = "test"
	Origin   = "pdvault.example.org/ledger"
)

// ErrInjected is what Ring gives when it is told to fail without a better error.
var ErrInjected = errors.New("sidecartest: injected")

// Clock is the sidecar's clock: the real one, moved by Advance.
type Clock struct {
	mu     sync.Mutex
	offset time.Duration // guarded by mu
}

// Now returns the moved time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

// Advance moves the clock, back when d is negative.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// Ring is a keyring whose calls can be made to fail, wait or panic, and which remembers the order of Save
// and Open.
type Ring struct {
	*keyring.Keyring

	mu     sync.Mutex
	before func(op string) error // guarded by mu
	calls  []string              // guarded by mu
	keys   *Keys                 // guarded by mu; nil: the keyring's own

	deadline func(op string, left time.Duration) // guarded by mu
}

// Deadline makes the ring call f with the time that is left to each call of Retire, Reseal and Jobs.
func (r *Ring) Deadline(f func(op string, left time.Duration)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = f
}

func (r *Ring) tellDeadline(ctx context.Context, op string) {
	r.mu.Lock()
	f := r.deadline
	r.mu.Unlock()
	if at, ok := ctx.Deadline(); ok && f != nil {
		f(op, time.Until(at))
	}
}

var _ sidecar.Keyring = (*Ring)(nil)

// Before makes the ring call f at the start of each call: Seal, Prepare, Index, Open, Ready, SaveState, DestroyRef,
// Reseal, Retire, Reindex, StartJob, Jobs, AdvanceJob, Inventory, NextEpoch. An error is returned as the call's own. Nil ends it.
func (r *Ring) Before(f func(op string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = f
}

// FailOnce makes the next call of op fail with err.
func (r *Ring) FailOnce(op string, err error) {
	var once sync.Once
	r.Before(func(got string) (e error) {
		if got == op {
			once.Do(func() { e = err })
		}
		return e
	})
}

// Calls returns the calls so far, SaveState with its value.
func (r *Ring) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.calls...)
}

func (r *Ring) enter(op, detail string) error {
	r.mu.Lock()
	f := r.before
	r.calls = append(r.calls, op+detail)
	r.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(op)
}

// Seal implements sidecar.Keyring.
func (r *Ring) Seal(ctx context.Context, s []keyring.SealSubject) ([]keyring.SealedSubject, error) {
	if err := r.enter("Seal", ""); err != nil {
		return nil, err
	}
	return r.Keyring.Seal(ctx, s)
}

// Prepare implements sidecar.Keyring.
func (r *Ring) Prepare(ctx context.Context, items []keyring.PrepareItem) ([]keyring.PreparedItem, error) {
	if err := r.enter("Prepare", ""); err != nil {
		return nil, err
	}
	return r.Keyring.Prepare(ctx, items)
}

// Index implements sidecar.Keyring.
func (r *Ring) Index(ctx context.Context, v []keyring.IndexValue) ([][]keyring.IndexToken, error) {
	if err := r.enter("Index", ""); err != nil {
		return nil, err
	}
	return r.Keyring.Index(ctx, v)
}

// Open implements sidecar.Keyring.
func (r *Ring) Open(ctx context.Context, s []keyring.OpenSubject) ([]keyring.OpenedSubject, error) {
	if err := r.enter("Open", ""); err != nil {
		return nil, err
	}
	return r.Keyring.Open(ctx, s)
}

// Ready implements sidecar.Keyring.
func (r *Ring) Ready(ctx context.Context) error {
	if err := r.enter("Ready", ""); err != nil {
		return err
	}
	return r.Keyring.Ready(ctx)
}

// SaveState implements sidecar.Keyring.
func (r *Ring) SaveState(ctx context.Context, name string, value []byte) error {
	if err := r.enter("SaveState", " "+name+" "+string(value)); err != nil {
		return err
	}
	return r.Keyring.SaveState(ctx, name, value)
}

// about is who answers what concerns the keys themselves.
func (r *Ring) about() keysOf {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys != nil {
		return r.keys
	}
	return r.Keyring
}

// keysOf is the part of sidecar.Keyring that Keys stands in for.
type keysOf interface {
	WitnessKeys() []ed25519.PublicKey
	WitnessSignWith(i int, message []byte) ([]byte, error)
	DestroyRef(ctx context.Context, subject uuid.UUID, ref []byte, reason string) (keyring.Destroyed, error)
	Reseal(ctx context.Context, rotation uint32, subjects []keyring.ResealSubject) ([]keyring.ResealedSubject, error)
	Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error)
	Reindex(ctx context.Context, subjects []keyring.ReindexSubject) ([]keyring.ReindexedSubject, error)
	StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (keyring.Job, error)
	Jobs(ctx context.Context) ([]keyring.Job, error)
	AdvanceJob(ctx context.Context, id uuid.UUID, p keyring.Progress) (keyring.Job, error)
	Inventory(ctx context.Context) (keyring.Inventory, error)
	NextEpoch(ctx context.Context) (due time.Time, interval time.Duration, err error)
}

var (
	_ keysOf = (*Keys)(nil)
	_ keysOf = (*keyring.Keyring)(nil)
)

// WitnessKeys implements sidecar.Keyring.
func (r *Ring) WitnessKeys() []ed25519.PublicKey { return r.about().WitnessKeys() }

// WitnessSignWith implements sidecar.Keyring.
func (r *Ring) WitnessSignWith(i int, message []byte) ([]byte, error) {
	return r.about().WitnessSignWith(i, message)
}

// DestroyRef implements sidecar.Keyring.
func (r *Ring) DestroyRef(ctx context.Context, subject uuid.UUID, ref []byte, reason string) (keyring.Destroyed, error) {
	if err := r.enter("DestroyRef", ""); err != nil {
		return keyring.Destroyed{}, err
	}
	return r.about().DestroyRef(ctx, subject, ref, reason)
}

// Reseal implements sidecar.Keyring.
func (r *Ring) Reseal(ctx context.Context, rotation uint32, s []keyring.ResealSubject) ([]keyring.ResealedSubject, error) {
	r.tellDeadline(ctx, "Reseal")
	if err := r.enter("Reseal", ""); err != nil {
		return nil, err
	}
	return r.about().Reseal(ctx, rotation, s)
}

// Retire implements sidecar.Keyring.
func (r *Ring) Retire(ctx context.Context, rotation uint32, s []uuid.UUID) ([]error, error) {
	r.tellDeadline(ctx, "Retire")
	if err := r.enter("Retire", ""); err != nil {
		return nil, err
	}
	return r.about().Retire(ctx, rotation, s)
}

// Reindex implements sidecar.Keyring.
func (r *Ring) Reindex(ctx context.Context, s []keyring.ReindexSubject) ([]keyring.ReindexedSubject, error) {
	if err := r.enter("Reindex", ""); err != nil {
		return nil, err
	}
	return r.about().Reindex(ctx, s)
}

// StartJob implements sidecar.Keyring.
func (r *Ring) StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (keyring.Job, error) {
	if err := r.enter("StartJob", ""); err != nil {
		return keyring.Job{}, err
	}
	return r.about().StartJob(ctx, scope, subject, by)
}

// Jobs implements sidecar.Keyring.
func (r *Ring) Jobs(ctx context.Context) ([]keyring.Job, error) {
	r.tellDeadline(ctx, "Jobs")
	if err := r.enter("Jobs", ""); err != nil {
		return nil, err
	}
	return r.about().Jobs(ctx)
}

// AdvanceJob implements sidecar.Keyring.
func (r *Ring) AdvanceJob(ctx context.Context, id uuid.UUID, p keyring.Progress) (keyring.Job, error) {
	if err := r.enter("AdvanceJob", ""); err != nil {
		return keyring.Job{}, err
	}
	return r.about().AdvanceJob(ctx, id, p)
}

// Inventory implements sidecar.Keyring.
func (r *Ring) Inventory(ctx context.Context) (keyring.Inventory, error) {
	if err := r.enter("Inventory", ""); err != nil {
		return keyring.Inventory{}, err
	}
	return r.about().Inventory(ctx)
}

// NextEpoch implements sidecar.Keyring.
func (r *Ring) NextEpoch(ctx context.Context) (due time.Time, interval time.Duration, err error) {
	if err := r.enter("NextEpoch", ""); err != nil {
		return time.Time{}, 0, err
	}
	return r.about().NextEpoch(ctx)
}

// World is one sidecar and one ledger.
type World struct {
	T      testing.TB
	Log    *Log
	Ring   *Ring
	Clock  *Clock
	Stats  *sidecar.Stats
	Server *sidecar.Server
	Socket string
	// Configure, unless nil, changes the configuration of the next server.
	Configure func(*sidecar.Config)

	stop func()
}

// New returns a world whose sidecar is not bound, and not served yet.
func New(t testing.TB) *World {
	t.Helper()
	return NewOn(t, memkv.New())
}

// NewOn is New with a key store of the caller's, which is closed with the world.
func NewOn(t testing.TB, store kv.Store) *World {
	t.Helper()
	dir, err := os.MkdirTemp("", "pdk") // short: the path of a socket is bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	root := filepath.Join(dir, "root-key.json")
	if err := localkek.Create(root); err != nil {
		t.Fatalf("creating root key: %v", err)
	}
	kek, err := localkek.Open(root)
	if err != nil {
		t.Fatalf("opening root key: %v", err)
	}
	ring, err := keyring.Create(t.Context(), keyring.Config{Instance: Instance, KEK: kek, Store: store})
	if err != nil {
		t.Fatalf("creating keyring: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(ring.Close(), store.Close()); err != nil {
			t.Errorf("closing keyring: %v", err)
		}
	})
	w := &World{
		T: t, Log: NewLog(t, Origin), Ring: &Ring{Keyring: ring}, Clock: new(Clock),
		Socket: filepath.Join(dir, "s"),
	}
	w.Restart()
	return w
}

// Bound returns a world whose sidecar is bound to its ledger.
func Bound(t testing.TB) *World {
	t.Helper()
	w := New(t)
	w.Bind()
	return w
}

// Restart replaces the server by a new one on the same key store, as a restart of the process would. When
// the old one was served, the new one is.
func (w *World) Restart() {
	w.T.Helper()
	served := w.stop != nil
	w.Stop()
	w.Stats = sidecar.NewStats()
	cfg := sidecar.Config{Instance: Instance, Keyring: w.Ring, Now: w.Clock.Now, Observer: w.Stats}
	if w.Configure != nil {
		w.Configure(&cfg)
	}
	s, err := sidecar.New(w.T.Context(), cfg)
	if err != nil {
		w.T.Fatalf("making sidecar: %v", err)
	}
	w.Server = s
	if served {
		w.Serve()
	}
}

// Serve serves both sockets until Stop, or the end of the test.
func (w *World) Serve() {
	w.T.Helper()
	cfg := sidecar.SocketConfig{Path: w.Socket, Observer: w.Stats}
	l, err := sidecar.Listen(cfg)
	if err != nil {
		w.T.Fatalf("listening: %v", err)
	}
	admin, err := sidecar.ListenAdmin(cfg)
	if err != nil {
		w.T.Fatalf("listening: %v", err)
	}
	w.ServeOn(l, admin)
}

// ServeOn is Serve with listeners of the test's.
func (w *World) ServeOn(l, admin net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	s := w.Server
	go func() { done <- s.Serve(ctx, l, 200*time.Millisecond) }()
	go func() { done <- s.ServeAdmin(ctx, admin, 200*time.Millisecond) }()
	w.stop = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				w.T.Errorf("serving: %v", err)
			}
		}
	}
	w.T.Cleanup(w.Stop)
}

// Stop ends Serve.
func (w *World) Stop() {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
}

// Subject makes a subject with one field per name in collection "profile" at version 1, whose value is the
// JSON string of the name, and returns its id, its reference and the ciphertexts.
func (w *World) Subject(fields ...string) (id uuid.UUID, ref []byte, ciphertexts map[string][]byte) {
	w.T.Helper()
	id = uuid.New()
	s := keyring.SealSubject{Subject: id, Create: true}
	for _, f := range fields {
		s.Fields = append(s.Fields, keyring.SealField{Collection: "profile", Field: f, Version: 1, Plaintext: Value(f)})
	}
	out, err := w.Ring.Keyring.Seal(context.Background(), []keyring.SealSubject{s})
	if err == nil {
		err = out[0].Err
	}
	if err != nil {
		w.T.Fatalf("sealing: %v", err)
	}
	ciphertexts = make(map[string][]byte)
	for i, f := range fields {
		ciphertexts[f] = out[0].Fields[i].Ciphertext
	}
	return id, out[0].Ref, ciphertexts
}

// Value is the plaintext of a field that Subject made.
func Value(field string) []byte { return fmt.Appendf(nil, "%q", "value of "+field) }

// Entry returns an access record that allows fields of the subject with this reference to be revealed now,
// by this sidecar. change may be nil.
func (w *World) Entry(ref []byte, fields []string, change func(*verify.Entry)) []byte {
	w.T.Helper()
	e := verify.Entry{
		ID:         uuid.NewString(),
		Time:       verify.FormatTime(w.Clock.Now()),
		Kind:       verify.KindAccess,
		Caller:     &verify.Caller{ID: "shop", Kind: "service", Role: "service", Authn: "token"},
		SubjectRef: verify.FormatRef(ref),
		Collection: "profile",
		Fields:     fields,
		Mode:       verify.ModeReveal,
		Purpose:    "order-fulfilment",
		Ground:     verify.GroundService,
		Evidence:   &verify.Evidence{Type: verify.EvidencePurpose, ID: "order-fulfilment"},
		Sidecar:    w.Ring.SidecarID(),
		Decision:   verify.Allow,
	}
	if change != nil {
		change(&e)
	}
	b, err := verify.Encode(e)
	if err != nil {
		w.T.Errorf("encoding entry: %v", err)
	}
	return b
}

// Erasure returns an entry that records the erasure of the subject with this reference now. change may be nil.
func (w *World) Erasure(ref []byte, change func(*verify.Entry)) []byte {
	w.T.Helper()
	e := verify.Entry{
		ID:         uuid.NewString(),
		Time:       verify.FormatTime(w.Clock.Now()),
		Kind:       verify.KindSubjectErased,
		Caller:     &verify.Caller{ID: "privacy", Kind: "person", Role: "privacy", Authn: "token"},
		SubjectRef: verify.FormatRef(ref),
		Reason:     "request",
		Erasure:    &verify.Erasure{ID: uuid.NewString(), Fields: []string{"profile.email"}, Method: verify.MethodCryptographicErase},
	}
	if change != nil {
		change(&e)
	}
	b, err := verify.Encode(e)
	if err != nil {
		w.T.Errorf("encoding entry: %v", err)
	}
	return b
}
