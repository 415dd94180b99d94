package access

import (
	"errors"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// FuzzRows: no row of ours in the data store makes its reader panic; what is taken is encoded to what is taken again,
// and what is not is a violation of integrity.
func FuzzRows(f *testing.F) {
	id := uuid.MustParse("6f1c0a52-7f6b-4a3e-9d57-0d2f5a9b1c11")
	at := time.Unix(1_700_000_000, 0).UTC()
	for _, row := range []any{
		&pendingErasure{Entry: 3, ID: id, Salt: "c2FsdA"},
		&PolicyVersion{Version: 2, SHA256: "ab", TextSHA256: "cd", Published: at, Entry: 9},
		&Epoch{Index: 4, Version: 2},
		&finishedErasure{Erased: 3, Destroyed: 5},
		&outcome{Fingerprints: []fingerprint{{1, "ab"}}, Subject: id, Version: 1, Entry: 7, At: at},
	} {
		f.Add(encodeRow(row))
	}
	f.Add([]byte("null"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, row []byte) {
		check := func(name string, v any, err error, again func([]byte) (any, error)) {
			if err != nil {
				if !errors.Is(err, ErrIntegrity) {
					t.Errorf("%s: %v", name, err)
				}
				return
			}
			encoded := encodeRow(v)
			w, err := again(encoded)
			if err != nil || string(encodeRow(w)) != string(encoded) {
				t.Errorf("%s: what was taken does not come back: %v", name, err)
			}
		}
		pending := func(b []byte) (any, error) { return parsePending(id, b) }
		v, err := pending(row)
		check("pending erasure", v, err, pending)
		version := func(b []byte) (any, error) { return parsePolicyVersion(b) }
		v, err = version(row)
		check("policy version", v, err, version)
		epoch := func(b []byte) (e any, err error) {
			store := memkv.New()
			defer store.Close()
			if err := store.Update(t.Context(), func(w kv.Writer) error { w.Set(epochKey, b); return nil }); err != nil {
				t.Fatal(err)
			}
			err = store.View(t.Context(), func(r kv.Reader) error { e, err = LoadEpoch(r); return err })
			return e, err
		}
		v, err = epoch(row)
		check("epoch", v, err, epoch)
		var o outcome
		if json.Unmarshal(row, &o, json.RejectUnknownMembers(true)) == nil {
			var back outcome
			if err := json.Unmarshal(encodeRow(&o), &back, json.RejectUnknownMembers(true)); err != nil {
				t.Errorf("outcome: what was taken does not come back: %v", err)
			}
		}
	})
}
