package consent

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// subject is whose consents the fuzzer damages.
var subject = uuid.MustParse("6f1c0a52-7f6b-4a3e-9d57-0d2f5a9b1c11")

func given(n int) Consent {
	return Consent{
		ID: uuid.UUID{15: byte(n + 1)}, Subject: subject, Purpose: "newsletter", Policy: 1, State: Given, Fields: []string{"email"},
		Recipients: []string{"shop"}, GivenAt: time.Unix(1_700_000_000, 0).UTC(), NotAfter: time.Unix(1_800_000_000, 0).UTC(), Entry: int64(n),
	}
}

// stored returns a store with row as the consents of subject.
func stored(tb testing.TB, row []byte) kv.Store {
	tb.Helper()
	store := memkv.New()
	tb.Cleanup(func() { store.Close() })
	if err := store.Update(tb.Context(), func(w kv.Writer) error { w.Set(listKey(subject), row); return nil }); err != nil {
		tb.Fatal(err)
	}
	return store
}

func load(tb testing.TB, store kv.Store) (l *List, err error) {
	tb.Helper()
	if e := store.View(tb.Context(), func(r kv.Reader) error { l, err = Load(r, subject); return nil }); e != nil {
		tb.Fatal(e)
	}
	return l, err
}

// FuzzList: a row is the consents of the person that it is stored for, at least one, or a violation of integrity.
func FuzzList(f *testing.F) {
	withdrawn := given(1)
	withdrawn.State, withdrawn.WithdrawnAt, withdrawn.WithdrawnEntry = Withdrawn, time.Unix(1_700_000_100, 0).UTC(), 7
	f.Add(encode([]Consent{given(0)}))
	f.Add(encode([]Consent{given(0), withdrawn}))
	f.Add([]byte(`[]`))
	f.Add([]byte(`null`))
	f.Add([]byte(`[{}]`))
	f.Add([]byte(`[{"id":"x"}]`))
	f.Fuzz(func(t *testing.T, row []byte) {
		l, err := load(t, stored(t, row))
		if err != nil {
			if !errors.Is(err, ErrIntegrity) || l != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if len(l.Consents) == 0 {
			t.Error("a row without a consent was taken")
		}
		for _, c := range l.Consents {
			if c.Subject != subject || c.ID == uuid.Nil {
				t.Errorf("consent %v of %v was taken", c.ID, c.Subject)
			}
		}
		again, err := load(t, stored(t, encode(l.Consents)))
		if err != nil || string(encode(again.Consents)) != string(encode(l.Consents)) {
			t.Errorf("what was taken does not come back: %v", err)
		}
	})
}

// A row that stands for another person, or holds nothing, is no answer.
func TestTheConsentsOfAnotherAreNotTaken(t *testing.T) {
	other := given(0)
	other.Subject = uuid.UUID{15: 9}
	for name, row := range map[string][]byte{
		"another's":         encode([]Consent{other}),
		"another's as well": encode([]Consent{given(0), other}),
		"none":              []byte(`[]`),
		"null":              []byte(`null`),
		"one without an id": encode([]Consent{{Subject: subject}}),
	} {
		if _, err := load(t, stored(t, row)); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l, err := load(t, stored(t, encode([]Consent{given(0), given(1)}))); err != nil || len(l.Consents) != 2 {
		t.Errorf("sound ones: %v", err)
	}
}
