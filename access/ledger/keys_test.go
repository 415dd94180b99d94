package ledger_test

import (
	"testing"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// While keys overlap, a checkpoint verifies by either; before by the older, after by the newer only.
func TestCheckpointsOfAnOverlapVerifyByEitherKey(t *testing.T) {
	store := memkv.New()
	older, newer := newKeys(t), newKeys(t)
	l := mustCreate(t, older.config(store))
	mustAppend(t, l, entry(1))
	before := l.Checkpoint().Note

	must(t, l.AddSigner(ledger.Key{Signer: newer.signer, Verifier: newer.ledger}))
	must(t, l.AddSigner(ledger.Key{Signer: newer.signer, Verifier: newer.ledger})) // it signs already
	mustAppend(t, l, entry(2))
	during := l.Checkpoint().Note

	must(t, l.DropSigner(older.ledger.KeyHash()))
	must(t, l.DropSigner(older.ledger.KeyHash())) // it signs no more
	if err := l.DropSigner(newer.ledger.KeyHash()); err == nil {
		t.Error("the only key was dropped")
	}
	mustAppend(t, l, entry(3))
	after := l.Checkpoint().Note

	for _, tt := range []struct {
		name         string
		note         []byte
		older, newer bool
	}{
		{"before", before, true, false},
		{"during", during, true, true},
		{"after", after, false, true},
	} {
		for _, by := range []struct {
			name string
			keys keys
			want bool
		}{{"older", older, tt.older}, {"newer", newer, tt.newer}} {
			if _, _, err := verify.OpenCheckpoint(tt.note, origin, by.keys.ledger); (err == nil) != by.want {
				t.Errorf("%s, by the %s key: %v", tt.name, by.name, err)
			}
		}
		if _, _, err := verify.OpenCheckpoint(tt.note, origin, verify.AnyKey(newer.ledger, older.ledger)); err != nil {
			t.Errorf("%s, by any key: %v", tt.name, err)
		}
		if _, _, err := verify.OpenCheckpoint(tt.note, origin, verify.AnyKey(newKeys(t).ledger, older.witness), newer.witness); err == nil {
			t.Errorf("%s, by keys of others", tt.name)
		}
	}
	if err := l.AddSigner(ledger.Key{Signer: older.signer, Verifier: newer.ledger}); err == nil {
		t.Error("halves of two keys are a key")
	}
}

// A stored checkpoint of any moment of a rotation opens with the keys that the instance has at that moment.
func TestALedgerOpensAtEachMomentOfARotation(t *testing.T) {
	older, newer := newKeys(t), newKeys(t)
	both := func(store *memkv.Store) ledger.Config {
		cfg := newer.config(store)
		cfg.Older = []ledger.Key{{Signer: older.signer, Verifier: older.ledger}}
		return cfg
	}
	t.Run("the announcement was not committed", func(t *testing.T) {
		store := memkv.New()
		l := mustCreate(t, older.config(store))
		must(t, l.AddSigner(ledger.Key{Signer: newer.signer, Verifier: newer.ledger}))
		mustAppend(t, l, entry(1))
		must(t, l.Close())
		mustOpen(t, older.config(store))
	})
	t.Run("no checkpoint carries the newer key yet", func(t *testing.T) {
		store := memkv.New()
		l := mustCreate(t, older.config(store))
		mustAppend(t, l, entry(1))
		must(t, l.Close())
		l = mustOpen(t, both(store))
		mustAppend(t, l, entry(2))
		must(t, l.Close())
		mustOpen(t, newer.config(store))
	})
	t.Run("the key of a stranger", func(t *testing.T) {
		store := memkv.New()
		l := mustCreate(t, older.config(store))
		mustAppend(t, l, entry(1))
		must(t, l.Close())
		if _, err := ledger.Open(t.Context(), newer.config(store)); err == nil {
			t.Error("it opens")
		}
	})
}
