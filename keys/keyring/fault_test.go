package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// faults makes the n-th call of KEK and key store fail, before it has an effect or after.
type faults struct {
	n       int
	applied bool
	seen    int
	fired   string // the call that failed
}

func (f *faults) place(r *ring) {
	hit := func(op string, late bool) error {
		if !late {
			f.seen++
		}
		if f.seen == f.n && f.fired == "" && late == f.applied {
			f.fired = op
			return errInjected
		}
		return nil
	}
	before := func(op string) error { return hit(op, false) }
	after := func(op string) error { return hit(op, true) }
	r.kek.set(func() { r.kek.before, r.kek.after = before, after })
	r.store.mu.Lock()
	r.store.before, r.store.after = before, after
	r.store.mu.Unlock()
}

func (f *faults) remove(r *ring) {
	r.kek.set(func() { r.kek.before, r.kek.after = nil, nil })
	r.store.mu.Lock()
	r.store.before, r.store.after = nil, nil
	r.store.mu.Unlock()
}

// world is what must hold whatever failed.
type world struct {
	*ring
	live, gone   uuid.UUID // a subject that exists, one that was destroyed
	sealed, lost []byte
	victim       uuid.UUID // the operation destroys it
	victimSealed []byte
	fresh        uuid.UUID // the operation makes it
	generation   uint64
}

func newWorld(t *testing.T) *world {
	w := &world{ring: newRing(t, nil), fresh: uuid.New()}
	w.live, w.sealed = w.mustCreate("live")
	w.gone, w.lost = w.mustCreate("gone")
	w.victim, w.victimSealed = w.mustCreate("victim")
	if err := w.Destroy(context.Background(), w.gone, "x"); err != nil {
		t.Fatal(err)
	}
	if err := w.SaveState(context.Background(), "s", []byte("old")); err != nil {
		t.Fatal(err)
	}
	w.generation = w.Generation()
	w.ring = w.reopen() // with an empty cache, so that the KEK is asked
	return w
}

// check opens the key store again, as after a restart, and verifies the invariants.
func (w *world) check(destroyed bool) {
	w.t.Helper()
	for _, r := range []*ring{w.ring, w.reopen()} {
		r.wantOpen(w.live, w.sealed, "live")
		r.wantOpenErr(w.gone, w.lost, keys.ErrDestroyed)
		_, err := r.open(context.Background(), w.victim, w.victimSealed)
		if destroyed && !errors.Is(err, keys.ErrDestroyed) {
			w.t.Errorf("after an acknowledged erasure: %v", err)
		}
		if err != nil && !errors.Is(err, keys.ErrDestroyed) {
			w.t.Errorf("the subject to be destroyed: %v", err)
		}
		if r.Generation() < w.generation {
			w.t.Errorf("generation fell from %d to %d", w.generation, r.Generation())
		}
		w.generation = max(w.generation, r.Generation())
		state, err := r.LoadState(context.Background(), "s")
		if err != nil || string(state) != "old" && string(state) != "new" {
			w.t.Errorf("state is %q, %v", state, err)
		}
	}
}

// each call of KEK and key store fails in each operation, without and with its effect; afterwards the
// invariants hold, and the operation succeeds when it is repeated.
func TestFaults(t *testing.T) {
	ctx := context.Background()
	opened := func(out []keyring.OpenedSubject, err error) error {
		if err == nil {
			err = out[0].Err
		}
		return err
	}
	operations := map[string]struct {
		run func(w *world) error
		// again is what a repetition may give, besides nil, when the fault was one whose call had its effect
		again error
	}{
		"Seal create": {run: func(w *world) error { _, err := w.seal(w.fresh, true, "x"); return err }, again: keys.ErrKeyExists},
		"Seal":        {run: func(w *world) error { _, err := w.seal(w.live, false, "x"); return err }},
		"Open":        {run: func(w *world) error { return opened(w.Open(ctx, []keyring.OpenSubject{openOf(w.live, w.sealed)})) }},
		"Prepare": {run: func(w *world) error {
			out, err := w.Prepare(ctx, []keyring.PrepareItem{{Subject: w.live, Detail: []byte("x")}})
			if err == nil {
				err = out[0].Err
			}
			return err
		}},
		"Ref": {run: func(w *world) error {
			out, err := w.Ref(ctx, []uuid.UUID{w.live})
			if err == nil {
				err = out[0].Err
			}
			return err
		}},
		"Destroy":   {run: func(w *world) error { return w.Destroy(ctx, w.victim, "x") }},
		"SaveState": {run: func(w *world) error { return w.SaveState(ctx, "s", []byte("new")) }},
		"LoadState": {run: func(w *world) error { _, err := w.LoadState(ctx, "s"); return err }},
		"Ready":     {run: func(w *world) error { return w.Ready(ctx) }},
		"Reopen": {run: func(w *world) error {
			k, err := keyring.Open(ctx, w.cfg)
			if err == nil {
				err = k.Close()
			} else if k != nil {
				w.t.Error("Open gave a keyring and an error")
			}
			return err
		}},
	}
	for name, op := range operations {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/applied=%v", name, applied), func(t *testing.T) {
				for n := 1; ; n++ {
					w := newWorld(t)
					f := &faults{n: n, applied: applied}
					f.place(w.ring)
					err := op.run(w)
					f.remove(w.ring)
					if f.fired == "" {
						if err != nil {
							t.Fatalf("without a fault: %v", err)
						}
						if f.seen >= n {
							continue // a View, which has no effect to fail after
						}
						if n == 1 {
							t.Fatal("no call was made")
						}
						return
					}
					if err == nil {
						t.Errorf("call %d (%s) failed, and nobody said so", n, f.fired)
					}
					if !errors.Is(err, keys.ErrUnavailable) {
						t.Errorf("call %d (%s) failed with %v", n, f.fired, err)
					}
					w.check(false)
					if err := op.run(w); err != nil && (!applied || op.again == nil || !errors.Is(err, op.again)) {
						t.Errorf("repeated after call %d (%s): %v", n, f.fired, err)
					}
					w.check(name == "Destroy")
				}
			})
		}
	}
}

// Create leaves nothing, or a complete instance.
func TestFaultsOfCreate(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for n := 1; ; n++ {
			r := &ring{t: t, kek: newKEK(t), store: &testStore{Store: memkv.New()}}
			r.cfg = keyring.Config{Instance: "test", KEK: r.kek, Store: r.store}
			f := &faults{n: n, applied: applied}
			f.place(r)
			k, err := keyring.Create(context.Background(), r.cfg)
			f.remove(r)
			if f.fired == "" {
				if err != nil {
					t.Fatal(err)
				}
				_ = k.Close()
				if f.seen >= n {
					continue
				}
				break
			}
			if err == nil {
				t.Fatalf("call %d (%s) failed, and nobody said so", n, f.fired)
			}
			k, err = keyring.Create(context.Background(), r.cfg)
			if errors.Is(err, keyring.ErrNotEmpty) {
				k, err = keyring.Open(context.Background(), r.cfg)
			}
			if err != nil {
				t.Fatalf("after call %d (%s) failed: %v", n, f.fired, err)
			}
			r.Keyring = k
			s, c := r.mustCreate("value")
			r.wantOpen(s, c, "value")
			_ = k.Close()
		}
	}
}

// A caller that leaves while its commit is under way and the commit have nothing in common any more. It is the race
// detector that tells.
func TestACallerLeavesItsCommit(t *testing.T) {
	r := newRing(t, nil)
	subject, _ := r.mustCreate("value")
	erased, _ := r.mustCreate("value")
	r.store.mu.Lock()
	r.store.slow = 100 * time.Millisecond
	r.store.mu.Unlock()
	for name, call := range map[string]func(context.Context) error{
		"create": func(ctx context.Context) error {
			out, err := r.Seal(ctx, []keyring.SealSubject{{Subject: uuid.New(), Create: true}})
			if err == nil {
				err = out[0].Err
			}
			return err
		},
		"rotate": func(ctx context.Context) error {
			out, err := r.Reseal(ctx, 1, []keyring.ResealSubject{{Subject: subject}})
			if err == nil {
				err = out[0].Err
			}
			return err
		},
		"destroy": func(ctx context.Context) error { return r.Destroy(ctx, erased, "test") },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			wantErr(t, call(ctx), keys.ErrUnavailable)
			time.Sleep(150 * time.Millisecond) // the commit ends
		})
	}
}
