package vault_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
	"github.com/prototypster/pdvault/vault/schema"
)

// sealer is a Sealer that marks what it is given instead of encrypting it, so that tests can see which field,
// version and content a row holds. It fails the test when it is misused.
type sealer struct {
	t    *testing.T
	fail error
	keys []uint32 // of the blind index
}

func (s *sealer) Seal(_ context.Context, subject uuid.UUID, _ bool, fields []vault.SealField) ([]byte, []vault.SealedField, error) {
	if s.fail != nil {
		return nil, nil, s.fail
	}
	out := make([]vault.SealedField, len(fields))
	for i, f := range fields {
		if (f.Plaintext == nil) == (f.Carry == nil) {
			s.t.Errorf("field %s has no proper content", f.Field)
		}
		content := f.Plaintext
		if f.Carry != nil {
			prefix := fmt.Appendf(nil, "%s/%s/%d:", f.Collection, f.Field, f.CarryVersion)
			var ok bool
			if content, ok = bytes.CutPrefix(f.Carry, prefix); !ok {
				s.t.Errorf("field %s is carried from another place or version: %s", f.Field, f.Carry)
			}
		}
		out[i].Ciphertext = append(fmt.Appendf(nil, "%s/%s/%d:", f.Collection, f.Field, f.Version), content...)
		for _, v := range f.Index {
			value := v.Value
			if v.Sealed != nil {
				value = s.unsealed(f.Collection, f.Field, v.Sealed)
			}
			out[i].Index = append(out[i].Index, vault.IndexedValue{
				Sealed: fmt.Appendf(nil, "%s/%s=%s", f.Collection, f.Field, value), Tokens: s.tokens(f.Collection, f.Field, value),
			})
		}
	}
	return bytes.Repeat([]byte{1}, 32), out, nil
}

// unsealed is the value that Seal has marked as one of the field's.
func (s *sealer) unsealed(collection, field string, sealed []byte) string {
	value, ok := bytes.CutPrefix(sealed, fmt.Appendf(nil, "%s/%s=", collection, field))
	if !ok {
		s.t.Errorf("index value of %s comes from another place: %s", field, sealed)
	}
	return string(value)
}

// tokens are those of a value under each key in use.
func (s *sealer) tokens(collection, field, value string) []vault.IndexToken {
	var out []vault.IndexToken
	for _, key := range s.keys {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d/%s/%s/%s", key, collection, field, value))
		out = append(out, vault.IndexToken{Key: key, Token: sum[:16]})
	}
	return out
}

const contact = `{"type":"object","additionalProperties":false,"properties":{
	"email":{"type":"string","maxLength":100,"x-pd-category":"pd:EmailAddress","x-pd-index":"unique","x-pd-normalise":"email"},
	"city":{"type":"string","maxLength":100,"x-pd-category":"pd:PhysicalAddress","x-pd-index":"exact","x-pd-normalise":"text"},
	"note":{"type":"string","maxLength":100,"x-pd-category":"pd:Name"}}}`

type world struct {
	t      *testing.T
	store  kv.Store
	vault  *vault.Vault
	sealer *sealer
	c      *schema.Collection
	at     int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: memkv.New(), sealer: &sealer{t: t, keys: []uint32{1}}}
	t.Cleanup(func() { _ = w.store.Close() })
	var err error
	if w.vault, err = vault.New(w.sealer); err != nil {
		t.Fatal(err)
	}
	if w.c, err = schema.Compile("contact", []byte(contact)); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) commit(p *vault.Prepared) error {
	w.at++
	return w.apply(p.Change(w.at, time.Unix(w.at, 0)))
}

func (w *world) apply(c kv.Change) error {
	return w.store.Update(w.t.Context(), func(wr kv.Writer) error { return c.Apply(wr) })
}

func (w *world) load(id uuid.UUID) (*vault.Subject, error) {
	var s *vault.Subject
	err := w.store.View(w.t.Context(), func(r kv.Reader) (err error) {
		s, err = vault.Load(r, id, "contact")
		return err
	})
	return s, err
}

func (w *world) mustLoad(id uuid.UUID) *vault.Subject {
	w.t.Helper()
	s, err := w.load(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) create(id uuid.UUID, plain vault.Plain) (*vault.Prepared, error) {
	w.t.Helper()
	return w.vault.Create(w.t.Context(), id, w.index(), map[*schema.Collection]vault.Plain{w.c: plain})
}

// index is the present state of the index.
func (w *world) index() (state vault.IndexState) {
	w.t.Helper()
	must(w.t, w.store.View(w.t.Context(), func(r kv.Reader) (err error) {
		state, err = vault.LoadIndexState(r)
		return err
	}))
	return state
}

func (w *world) mustCreate(plain vault.Plain) uuid.UUID {
	w.t.Helper()
	id := uuid.New()
	p, err := w.create(id, plain)
	if err == nil {
		err = w.commit(p)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) find(field, value string) []uuid.UUID {
	w.t.Helper()
	var ids []uuid.UUID
	err := w.store.View(w.t.Context(), func(r kv.Reader) (err error) {
		ids, err = vault.Find(r, w.c, field, w.sealer.tokens("contact", field, value), 10)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ids
}

func plain(email, city string) vault.Plain {
	return vault.Plain{"email": fmt.Appendf(nil, "%q", email), "city": fmt.Appendf(nil, "%q", city)}
}

func TestARecordIsWrittenWithItsHeadAndItsIndex(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	s := w.mustLoad(id)
	if !s.Exists() || s.Head.Version != 1 || s.Rows["contact"].Version != 1 {
		t.Errorf("head %+v", s.Head)
	}
	if got := string(s.Rows["contact"].Field("email")); got != `contact/email/1:"a@example.org"` {
		t.Errorf("row holds %s", got)
	}
	if ids := w.find("email", "a@example.org"); len(ids) != 1 || ids[0] != id {
		t.Errorf("unique index: %v", ids)
	}
	if ids := w.find("city", "town"); len(ids) != 1 || ids[0] != id {
		t.Errorf("index: %v", ids)
	}
}

func TestAPatchResealsWhatItDoesNotNameUnderTheNewVersion(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	p, err := w.vault.Patch(t.Context(), w.mustLoad(id), w.c, vault.Plain{"note": []byte(`"x"`)}, []string{"city"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.commit(p); err != nil {
		t.Fatal(err)
	}
	row := w.mustLoad(id).Rows["contact"]
	if string(row.Field("email")) != `contact/email/2:"a@example.org"` || string(row.Field("note")) != `contact/note/2:"x"` || row.Field("city") != nil {
		t.Errorf("row %+v", row)
	}
	if ids := w.find("email", "a@example.org"); len(ids) != 1 {
		t.Error("the index of a kept field is lost")
	}
	if ids := w.find("city", "town"); len(ids) != 0 {
		t.Error("the index of a removed field stays")
	}
}

func TestAUniqueValueHasOneOwnerAtATime(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	p, err := w.create(uuid.New(), plain("A@Example.org", "Town"))
	if err != nil {
		t.Fatal(err)
	}
	var taken *vault.NotUniqueError
	if err := w.commit(p); !errors.As(err, &taken) || taken.Field != "email" {
		t.Errorf("%v", err)
	}
	p, err = w.vault.Put(t.Context(), w.mustLoad(id), w.c, plain("b@example.org", "Town"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.commit(p); err != nil {
		t.Fatal(err)
	}
	w.mustCreate(plain("a@example.org", "Town"))
	if ids := w.find("city", "town"); len(ids) != 2 {
		t.Errorf("an index that is not unique finds %d", len(ids))
	}
}

func TestAWriteOnAnOlderStateIsStale(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	before := w.mustLoad(id)
	if err := w.apply(w.vault.SetRestriction(before, true)); err != nil {
		t.Fatal(err)
	}
	p, err := w.vault.Put(t.Context(), before, w.c, plain("b@example.org", "Town"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.commit(p); !errors.Is(err, vault.ErrStale) {
		t.Errorf("%v", err)
	}
	if !w.mustLoad(id).Head.Restricted {
		t.Error("the restriction is lost")
	}
}

// It does not know which index keys a write must have tokens for.
func TestWhatWasLoadedToReadIsNotWritten(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	var s *vault.Subject
	must(t, w.store.View(t.Context(), func(r kv.Reader) (err error) {
		s, err = vault.LoadToRead(r, id, "contact")
		return err
	}))
	if s.Rows["contact"] == nil || s.Head.Records["contact"].Version != 1 {
		t.Errorf("%+v", s)
	}
	if p, err := w.vault.Put(t.Context(), s, w.c, plain("b@example.org", "Town")); err == nil {
		t.Errorf("written: %+v", p)
	}
	if p, err := w.vault.Patch(t.Context(), s, w.c, plain("b@example.org", "Town"), nil); err == nil {
		t.Errorf("written: %+v", p)
	}
}

func TestADeletedRecordKeepsItsVersion(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(plain("a@example.org", "Town"))
	p, err := w.vault.Delete(w.mustLoad(id), "contact")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.commit(p); err != nil {
		t.Fatal(err)
	}
	s := w.mustLoad(id)
	if s.Rows["contact"] != nil || len(w.find("email", "a@example.org")) != 0 {
		t.Error("something of the record is left")
	}
	if p, err = w.vault.Put(t.Context(), s, w.c, plain("a@example.org", "Town")); err != nil {
		t.Fatal(err)
	}
	if p.Records[0].Version != 3 {
		t.Errorf("version %d is used again", p.Records[0].Version)
	}
}

// What the head lists must be there as the head says; an engine that answers "not found", an older row or
// another subject's row is found out.
func TestRowsThatContradictTheHeadAreDamageAndNotAbsence(t *testing.T) {
	w := newWorld(t)
	a, b := w.mustCreate(plain("a@example.org", "Town")), w.mustCreate(plain("b@example.org", "Town"))
	row := func(id uuid.UUID) []byte { return append(append([]byte{'r'}, id[:]...), "contact"...) }
	head := func(id uuid.UUID) []byte { return append([]byte{'s'}, id[:]...) }
	var older, other []byte
	must(t, w.store.View(t.Context(), func(r kv.Reader) error {
		v, err := r.Get(row(a), row(b))
		older, other = v[0], v[1]
		return err
	}))
	p, err := w.vault.Put(t.Context(), w.mustLoad(a), w.c, plain("c@example.org", "Town"))
	must(t, err)
	must(t, w.commit(p))
	for name, damage := range map[string]func(kv.Writer){
		"the row is gone":       func(wr kv.Writer) { wr.Delete(row(a)) },
		"the row is older":      func(wr kv.Writer) { wr.Set(row(a), older) },
		"the row is another's":  func(wr kv.Writer) { wr.Set(row(a), other) },
		"the row is cut":        func(wr kv.Writer) { wr.Set(row(a), older[:len(older)-1]) },
		"the head is damaged":   func(wr kv.Writer) { wr.Set(head(a), []byte("{}")) },
		"the head is no JSON":   func(wr kv.Writer) { wr.Set(head(a), []byte{0}) },
		"the row is not listed": func(wr kv.Writer) { wr.Set(head(a), []byte(`{"f":1,"version":1,"created":"2026-11-22T10:00:00Z"}`)) },
	} {
		t.Run(name, func(t *testing.T) {
			var before [][]byte
			must(t, w.store.View(t.Context(), func(r kv.Reader) (err error) {
				before, err = r.Get(row(a), head(a))
				return err
			}))
			must(t, w.store.Update(t.Context(), func(wr kv.Writer) error { damage(wr); return nil }))
			if _, err := w.load(a); !errors.Is(err, vault.ErrIntegrity) {
				t.Errorf("%v", err)
			}
			must(t, w.store.Update(t.Context(), func(wr kv.Writer) error {
				wr.Set(row(a), before[0])
				wr.Set(head(a), before[1])
				return nil
			}))
		})
	}
	if _, err := w.load(uuid.New()); !errors.Is(err, vault.ErrNoSubject) {
		t.Errorf("an unknown subject: %v", err)
	}
}

func TestAFailedSealLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.sealer.fail = errors.New("injected")
	if _, err := w.create(uuid.New(), plain("a@example.org", "Town")); !errors.Is(err, w.sealer.fail) {
		t.Errorf("%v", err)
	}
	if _, err := vault.New(nil); err == nil {
		t.Error("a vault without a sealer")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
