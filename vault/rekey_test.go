package vault_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

// resealed marks everything of s as sealed again.
func resealed(s *vault.Subject) [][]byte {
	var out [][]byte
	for _, item := range s.Sealed() {
		out = append(out, append([]byte("again:"), item.Ciphertext...))
	}
	return out
}

func TestResealingChangesCiphertextsAndDigestsAndNothingElse(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	before := w.mustLoad(id)
	r, err := before.Reseal(resealed(before))
	must(t, err)
	must(t, w.apply(r.Change()))
	after := w.mustLoad(id)
	for _, item := range after.Sealed() {
		if !bytes.HasPrefix(item.Ciphertext, []byte("again:")) {
			t.Errorf("%s was not sealed again", item.Field)
		}
	}
	was, is := before.Head.Records["contact"], after.Head.Records["contact"]
	if is.Version != was.Version || is.Entry != was.Entry || is.Digest == was.Digest || is.Digest != r.Records[0].Digest {
		t.Errorf("head %+v, was %+v", is, was)
	}
	if after.Head.Version != before.Head.Version+1 || !after.Head.Created.Equal(before.Head.Created) {
		t.Errorf("head %+v", after.Head)
	}
	if ids := w.find("email", "a@example.org"); len(ids) != 1 || ids[0] != id {
		t.Errorf("index: %v", ids)
	}
}

// What was prepared before on the same state fails, also when nothing was to be sealed again.
func TestResealingOvertakesWhatWasPreparedBefore(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	s := w.mustLoad(id)
	put, err := w.vault.Put(t.Context(), s, w.c, plain("b@example.org", "Town"))
	must(t, err)
	r, err := s.Reseal(make([][]byte, len(s.Sealed())))
	must(t, err)
	if len(r.Records) != 0 {
		t.Error("a record changed")
	}
	must(t, w.apply(r.Change()))
	if err := w.commit(put); !errors.Is(err, vault.ErrStale) {
		t.Errorf("%v", err)
	}
	var stale *vault.StaleError
	if err := w.apply(r.Change()); !errors.As(err, &stale) || stale.Subject != id {
		t.Errorf("%v", err)
	}
	if _, err := s.Reseal(nil); !errors.Is(err, vault.ErrIntegrity) {
		t.Errorf("too few ciphertexts: %v", err)
	}
}

// become puts the index into another state.
func (w *world) become(read uint32, keys ...uint32) {
	w.t.Helper()
	change, err := w.index().Become(vault.IndexState{Keys: keys, Read: read})
	must(w.t, err)
	must(w.t, w.apply(change))
}

// reindex gives each subject the tokens of the present state and returns how many needed some.
func (w *world) reindex() (n int) {
	w.t.Helper()
	var ids []uuid.UUID
	must(w.t, w.store.View(w.t.Context(), func(r kv.Reader) (err error) {
		ids, err = vault.Subjects(r, uuid.Nil, 100)
		return err
	}))
	for _, id := range ids {
		s := w.mustLoad(id)
		var tokens [][]vault.IndexToken
		for _, v := range s.Unindexed() {
			tokens = append(tokens, w.sealer.tokens(v.Collection, v.Field, w.sealer.unsealed(v.Collection, v.Field, v.Ciphertext)))
		}
		if len(tokens) == 0 {
			continue
		}
		n++
		if !s.Missing() {
			tokens = make([][]vault.IndexToken, len(tokens))
		}
		r, err := s.Reindex(tokens, func(string) (*schema.Collection, bool) { return w.c, true })
		must(w.t, err)
		must(w.t, w.apply(r.Change()))
	}
	return n
}

// keysInIndex are the index keys that rows are under, with the number of rows.
func (w *world) keysInIndex() map[uint32]int {
	w.t.Helper()
	found := make(map[uint32]int)
	must(w.t, w.store.View(w.t.Context(), func(r kv.Reader) error {
		for prefix, tail := range map[string]int{"u": 20, "x": 36} {
			pairs, err := r.Scan([]byte(prefix), nil, 1000)
			if err != nil {
				return err
			}
			for _, p := range pairs {
				found[binary.BigEndian.Uint32(p.Key[len(p.Key)-tail:])]++
			}
		}
		return nil
	}))
	return found
}

func TestEachValueIsFoundAndUniqueInEveryPhaseOfAnIndexRotation(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	check := func(phase string, want map[uint32]int) {
		t.Helper()
		if got := w.keysInIndex(); !maps.Equal(got, want) {
			t.Errorf("%s: rows by key: %v", phase, got)
		}
		if ids := w.find("email", "a@example.org"); !slices.Equal(ids, []uuid.UUID{id}) {
			t.Errorf("%s: found %v", phase, ids)
		}
		if !w.mustLoad(id).Indexed(w.c, "email", 1, w.sealer.tokens("contact", "email", "a@example.org")) {
			t.Errorf("%s: the record does not list its row", phase)
		}
		p, err := w.create(uuid.New(), plain("a@example.org", "City"))
		must(t, err)
		if err := w.commit(p); !errors.Is(err, vault.ErrNotUnique) {
			t.Errorf("%s: %v", phase, err)
		}
	}
	check("before", map[uint32]int{1: 2})
	w.sealer.keys = []uint32{1, 2}
	check("the sidecar knows another key", map[uint32]int{1: 2})
	w.become(1, 1, 2)
	check("backfill begins", map[uint32]int{1: 2})
	if n := w.reindex(); n != 1 {
		t.Errorf("%d subjects were indexed again", n)
	}
	check("backfill has ended", map[uint32]int{1: 2, 2: 2})
	if n := w.reindex(); n != 0 {
		t.Errorf("%d subjects were indexed once more", n)
	}
	w.become(2, 1, 2)
	check("switch", map[uint32]int{1: 2, 2: 2})
	w.become(2, 2)
	check("drop begins", map[uint32]int{1: 2, 2: 2})
	stray := func() (n int) {
		must(t, w.store.View(t.Context(), func(r kv.Reader) error {
			var after []byte
			for {
				rows, next, err := vault.StrayTokens(r, w.index(), after, 1)
				if err != nil {
					return err
				}
				if n += len(rows); next == nil {
					return nil
				}
				after = next
			}
		}))
		return n
	}
	if n := stray(); n != 2 {
		t.Errorf("%d rows are under a key that is not in use", n)
	}
	w.reindex()
	check("drop has ended", map[uint32]int{2: 2})
	if n := stray(); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	w.sealer.keys = []uint32{2}
	check("the sidecar has dropped the key", map[uint32]int{2: 2})
}

func TestAWriteHasTheTokensOfTheStateItCommitsOn(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	s := w.mustLoad(id)
	put, err := w.vault.Put(t.Context(), s, w.c, plain("b@example.org", "Town"))
	must(t, err)
	create, err := w.create(uuid.New(), plain("c@example.org", "Town"))
	must(t, err)
	del, err := w.vault.Delete(s, "contact")
	must(t, err)
	w.become(1, 1, 2)
	for name, p := range map[string]*vault.Prepared{"put": put, "create": create, "delete": del} {
		if err := w.commit(p); !errors.Is(err, vault.ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The sidecar does not know the key yet.
	if _, err := w.create(uuid.New(), plain("c@example.org", "Town")); !errors.Is(err, vault.ErrStale) {
		t.Errorf("a token is missing: %v", err)
	}
	w.become(2, 1, 2)
	err = w.store.View(t.Context(), func(r kv.Reader) error {
		_, err := vault.Find(r, w.c, "email", w.sealer.tokens("contact", "email", "a@example.org"), 1)
		return err
	})
	if !errors.Is(err, vault.ErrStale) {
		t.Errorf("a lookup without the token: %v", err)
	}
}

func TestTheStateOfTheIndexIsStrict(t *testing.T) {
	w := newWorld(t)
	for _, row := range []string{
		`{}`, `{"keys":[1],"read":2}`, `{"keys":[],"read":1}`, `{"keys":[2,1],"read":1}`, `{"keys":[1,1],"read":1}`, `{"keys":[0],"read":0}`,
		`{"keys":[1],"read":1,"x":1}`, `{"read":1,"keys":[1]}`, `{"keys": [1],"read":1}`, `x`,
	} {
		must(t, w.store.Update(t.Context(), func(wr kv.Writer) error { wr.Set([]byte("mx"), []byte(row)); return nil }))
		err := w.store.View(t.Context(), func(r kv.Reader) error {
			_, err := vault.LoadIndexState(r)
			return err
		})
		if !errors.Is(err, vault.ErrIntegrity) {
			t.Errorf("%s: %v", row, err)
		}
	}
	if _, err := (vault.IndexState{Keys: []uint32{1}, Read: 1}).Become(vault.IndexState{Keys: []uint32{2}, Read: 1}); err == nil {
		t.Error("a state that reads a key it does not write")
	}
}
