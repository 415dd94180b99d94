package daemon

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// keeper is a sidecar that wraps nothing and knows keys of the ledger.
type keeper struct {
	t     *testing.T
	bound []string // the newest first
	fail  error    // of RotateLedger, after it was carried out
}

func (*keeper) Protect(_ context.Context, _ string, secret []byte) ([]byte, error) {
	return append([]byte("wrapped:"), secret...), nil
}

func (*keeper) Unprotect(_ context.Context, _ string, protected []byte) ([]byte, error) {
	return append([]byte(nil), protected[len("wrapped:"):]...), nil
}

func (k *keeper) RotateLedger(_ context.Context, signed []byte, size int64, newKey, drop string) error {
	for _, key := range []string{k.bound[0], newKey} {
		v, err := note.NewVerifier(key)
		if err != nil {
			return err
		}
		if cp, _, err := verify.OpenCheckpoint(signed, testOrigin, v); err != nil || cp.Size != size {
			k.t.Errorf("the checkpoint is not signed by %s: %v", key, err)
		}
	}
	if k.bound[0] != newKey {
		k.bound = append([]string{newKey}, k.bound...)
	}
	for i, key := range k.bound {
		if key == drop {
			k.bound = append(k.bound[:i:i], k.bound[i+1:]...)
			break
		}
	}
	return k.fail
}

const testOrigin = "main.pdvault/ledger"

// openKeys opens the ledger of the identity in store, creating both the first time.
func openKeys(t *testing.T, store kv.Store, k *keeper) *ledgerKeys {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	id, err := loadIdentity(t.Context(), store)
	fresh := errors.Is(err, errNotInitialised)
	if fresh {
		id = identity{Instance: "main", Origin: testOrigin}
		id.Verifier, id.Protected, err = newLedgerKey(t.Context(), k, testOrigin)
		must(err)
		id.raw, err = id.encode()
		must(err)
		must(store.Update(t.Context(), func(w kv.Writer) error { w.Set(identityKey, id.raw); return nil }))
		k.bound = []string{id.Verifier}
		err = nil
	}
	must(err)
	config := ledger.Config{Store: store, Origin: testOrigin}
	config.Signer, config.Verifier, err = id.ledgerKey(t.Context(), k)
	must(err)
	config.Older, err = id.olderKeys(t.Context(), k)
	must(err)
	open := ledger.Open
	if fresh {
		open = ledger.Create
	}
	l, err := open(t.Context(), config)
	must(err)
	t.Cleanup(func() { _ = l.Close() })
	return &ledgerKeys{store: store, ledger: l, sidecar: k, overlap: time.Hour, log: slog.New(slog.DiscardHandler)}
}

func (k *ledgerKeys) signedBy(t *testing.T, vkeys ...string) {
	t.Helper()
	e := verify.Entry{ID: "x", Kind: verify.KindLoginDenied}
	if _, err := k.ledger.Append(t.Context(), e, nil); err != nil {
		t.Fatal(err)
	}
	n := k.ledger.Checkpoint().Note
	for _, vkey := range vkeys {
		v, err := note.NewVerifier(vkey)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := verify.OpenCheckpoint(n, testOrigin, v); err != nil {
			t.Errorf("not signed by %s: %v", vkey, err)
		}
	}
}

func TestALedgerKeyIsReplacedWithAnOverlap(t *testing.T) {
	store := memkv.New()
	sidecar := &keeper{t: t, fail: errors.New("injected")}
	k := openKeys(t, store, sidecar)
	first := sidecar.bound[0]
	job := access.RotationJob{ID: "job", Scope: "ledger", Target: 2, Started: time.Now()}

	// The first call is carried out and answered by an error; the second, after a restart, finds everything done.
	if err := k.rotate(t.Context(), job); !errors.Is(err, sidecar.fail) {
		t.Fatal(err)
	}
	if err := k.ledger.Close(); err != nil {
		t.Fatal(err)
	}
	sidecar.fail = nil
	k = openKeys(t, store, sidecar)
	if err := k.rotate(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	id, err := loadIdentity(t.Context(), store)
	if err != nil || len(id.Older) != 1 || id.Older[0].Verifier != first || id.Verifier == first {
		t.Fatalf("%v, %+v", err, id)
	}
	if len(sidecar.bound) != 2 || sidecar.bound[0] != id.Verifier {
		t.Errorf("the sidecar knows %v", sidecar.bound)
	}
	k.signedBy(t, id.Verifier, first)

	if err := k.dropDue(t.Context(), time.Now().Add(59*time.Minute)); err != nil {
		t.Fatal(err)
	}
	k.signedBy(t, id.Verifier, first)
	if err := k.dropDue(t.Context(), time.Now().Add(61*time.Minute)); err != nil {
		t.Fatal(err)
	}
	k.signedBy(t, id.Verifier)
	if len(sidecar.bound) != 1 || sidecar.bound[0] != id.Verifier {
		t.Errorf("the sidecar knows %v", sidecar.bound)
	}
	var keys []verify.KeyChange
	for i := range k.ledger.Checkpoint().Size {
		raw, err := k.ledger.Entry(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := verify.ParseEntry(raw); err == nil && e.Kind == verify.KindKeyRotated {
			keys = append(keys, *e.Keys)
		}
	}
	if len(keys) != 2 || keys[0].Key != id.Verifier || keys[1].Dropped != first {
		t.Errorf("the ledger says %+v", keys)
	}
	// The instance opens with the newer key alone.
	if err := k.ledger.Close(); err != nil {
		t.Fatal(err)
	}
	openKeys(t, store, sidecar).signedBy(t, id.Verifier)
}
