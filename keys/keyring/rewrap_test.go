package keyring_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// A new wrap takes the place of the only copy of a key. One that is not good never does, and nothing is retired.
func TestEpochCommitsNoWrapThatTheKEKDoesNotTakeBack(t *testing.T) {
	type lie = func(r *epochRing, items []keyring.KEKItem, results []keyring.KEKResult)
	wrap := func(r *epochRing, item keyring.KEKItem) keyring.Secret {
		out, err := r.epoch.file.Wrap(context.Background(), []keyring.KEKItem{item})
		if err != nil || out[0].Err != nil {
			t.Fatal(err, out[0].Err)
		}
		return out[0].Data
	}
	flip := func(r *keyring.KEKResult) {
		if n := len(r.Data); n > 0 {
			r.Data[n-1] ^= 1
		}
	}
	for name, lie := range map[string]lie{
		"all are garbage": func(_ *epochRing, _ []keyring.KEKItem, results []keyring.KEKResult) {
			for i := range results {
				flip(&results[i])
			}
		},
		"one is garbage": func(_ *epochRing, _ []keyring.KEKItem, results []keyring.KEKResult) {
			flip(&results[0])
		},
		"two are exchanged": func(_ *epochRing, _ []keyring.KEKItem, results []keyring.KEKResult) {
			if n := len(results); n > 1 {
				results[0], results[n-1] = results[n-1], results[0]
			}
		},
		"whole, and something else": func(r *epochRing, items []keyring.KEKItem, results []keyring.KEKResult) {
			for i := range results {
				results[i].Data = wrap(r, keyring.KEKItem{Context: items[i].Context, Data: []byte("not what it was")})
			}
		},
		"nothing was done": func(_ *epochRing, items []keyring.KEKItem, results []keyring.KEKResult) {
			for i := range results {
				results[i].Data = append(keyring.Secret(nil), items[i].Data...)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			held := make(chan error, 100)
			r := newEpochRing(t, func(c *keyring.Config) {
				c.EpochBatch = 7
				c.Observe.Epoch = func(_ string, _, _ int64, err error) {
					if err != nil {
						select {
						case held <- err:
						default:
						}
					}
				}
			})
			sealed := make(map[uuid.UUID][]byte)
			for range 20 {
				s, c := r.mustCreate("value")
				sealed[s] = c
			}
			set := func(l func([]keyring.KEKItem, []keyring.KEKResult)) {
				r.epoch.mu.Lock()
				defer r.epoch.mu.Unlock()
				r.epoch.lie = l
			}
			set(func(items []keyring.KEKItem, results []keyring.KEKResult) { lie(r, items, results) })
			r.start()
			select {
			case err := <-held:
				wantErr(t, err, keys.ErrUnavailable)
			case <-time.After(30 * time.Second):
				t.Fatal("the epoch is not held up")
			}
			if _, retired := r.epoch.state(); retired != 0 {
				t.Fatal("versions were retired")
			}
			opens := func() {
				t.Helper()
				other := r.reopen() // with an empty cache
				for s, c := range sealed {
					other.wantOpen(s, c, "value")
				}
			}
			set(nil) // so that what opens goes on by itself
			opens()
			if j := r.ends(); j.State != keyring.JobDone {
				t.Errorf("the epoch failed: %+v", j)
			}
			opens()
			if n := below(t, r.store.Store, r.epoch, 2); n > 0 {
				t.Errorf("%d rows are on the old version", n)
			}
		})
	}
}

// The same holds for what a rotation puts in the place of a bundle or a keyset.
func TestRotationCommitsNoWrapThatTheKEKDoesNotGiveBack(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	rotate := func() error {
		out, err := r.Reseal(ctx, 1, []keyring.ResealSubject{{Subject: s}})
		if err != nil {
			return err
		}
		return out[0].Err
	}
	lying := func(do func() error) error {
		r.kek.set(func() {
			r.kek.change = func(op string, out *keyring.KEKResult) {
				if op == "wrap" {
					out.Data[len(out.Data)-1] ^= 1
				}
			}
		})
		defer r.kek.set(func() { r.kek.change = nil })
		return do()
	}
	generation := r.Generation()
	wantErr(t, lying(rotate), keys.ErrUnavailable)
	for what, do := range map[string]func() error{
		"index":   func() error { _, err := r.BeginIndex(ctx); return err },
		"token":   func() error { _, err := r.AddKeyset(ctx, "token"); return err },
		"witness": func() error { _, err := r.RotateWitness(ctx); return err },
	} {
		if err := lying(do); err == nil {
			t.Errorf("%s: a wrap that does not unwrap was taken", what)
		} else {
			wantErr(t, err, keys.ErrUnavailable)
		}
	}
	if r.Generation() != generation {
		t.Error("something was written")
	}
	r.reopen().wantOpen(s, c, "value")
	if err := rotate(); err != nil {
		t.Fatal(err)
	}
	r.reopen().wantOpen(s, c, "value")
}
