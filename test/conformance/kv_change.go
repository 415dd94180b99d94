package conformance

import (
	"context"
	"errors"
	"testing"

	"github.com/prototypster/pdvault/vault/kv"
)

var (
	errStale   = errors.New("stale")
	errMissing = errors.New("missing")
)

func (s *kvStore) apply(c kv.Change) error {
	return s.Update(context.Background(), func(w kv.Writer) error { return c.Apply(w) })
}

var changeCases = []kvCase{
	{"Apply makes the writes if all conditions hold", func(t *testing.T, s *kvStore) {
		s.mustSet("have", "1", "empty", "", "gone", "x")
		var c kv.Change
		c.Expect([]byte("have"), []byte("1"), errStale)
		c.Expect([]byte("empty"), []byte{}, errStale)
		c.Expect([]byte("absent"), nil, errStale)
		c.Set([]byte("new"), []byte("2"))
		c.Delete([]byte("gone"))
		if err := s.apply(c); err != nil {
			t.Fatal(err)
		}
		s.wantValue("new", "2")
		s.wantAbsent("gone")
	}},
	{"When a condition fails Apply makes no write and wraps its Else", func(t *testing.T, s *kvStore) {
		s.mustSet("have", "1", "empty", "")
		for name, check := range map[string]kv.Check{
			"another value":           {Key: []byte("have"), Want: []byte("2"), Else: errMissing},
			"absent, wanted a value":  {Key: []byte("absent"), Want: []byte("1"), Else: errMissing},
			"absent, wanted empty":    {Key: []byte("absent"), Want: []byte{}, Else: errMissing},
			"a value, wanted absent":  {Key: []byte("have"), Want: nil, Else: errMissing},
			"empty, wanted absent":    {Key: []byte("empty"), Want: nil, Else: errMissing},
			"a value, wanted empty":   {Key: []byte("have"), Want: []byte{}, Else: errMissing},
			"only the prefix matches": {Key: []byte("have"), Want: []byte("11"), Else: errMissing},
		} {
			var c kv.Change
			c.Set([]byte("new"), nil)
			c.Delete([]byte("have"))
			c.Expect([]byte("have"), []byte("1"), errStale)
			c.Checks = append(c.Checks, check)
			err := s.Update(context.Background(), func(w kv.Writer) error {
				err := c.Apply(w)
				if !errors.Is(err, errMissing) || errors.Is(err, errStale) {
					t.Errorf("%s: error is %v", name, err)
				}
				return nil // commits whatever Apply has written
			})
			if err != nil {
				t.Errorf("%s: Update: %v", name, err)
			}
			s.wantAbsent("new")
			s.wantValue("have", "1")
		}
	}},
	{"The first condition that fails gives the error", func(t *testing.T, s *kvStore) {
		var c kv.Change
		c.Expect([]byte("a"), []byte("1"), errStale)
		c.Expect([]byte("b"), []byte("1"), errMissing)
		wantError(t, s.apply(c), errStale)
	}},
	{"Apply deletes first and then sets", func(t *testing.T, s *kvStore) {
		s.mustSet("a", "old")
		var c kv.Change
		c.Set([]byte("a"), []byte("new"))
		c.Delete([]byte("a"))
		if err := s.apply(c); err != nil {
			t.Fatal(err)
		}
		s.wantValue("a", "new")
	}},
	{"Conditions are checked before any write", func(t *testing.T, s *kvStore) {
		var c kv.Change
		c.Set([]byte("a"), []byte("1"))
		c.Expect([]byte("a"), nil, errStale)
		if err := s.apply(c); err != nil {
			t.Fatal(err)
		}
		s.wantValue("a", "1")
		wantError(t, s.apply(c), errStale)
	}},
	{"Merge adds everything of the other change", func(t *testing.T, s *kvStore) {
		s.mustSet("gone", "x")
		var a, b kv.Change
		a.Set([]byte("a"), []byte("1"))
		b.Set([]byte("b"), []byte("2"))
		b.Delete([]byte("gone"))
		b.Expect([]byte("once"), nil, errStale)
		b.Set([]byte("once"), nil)
		a.Merge(b)
		if err := s.apply(a); err != nil {
			t.Fatal(err)
		}
		s.wantValue("a", "1")
		s.wantValue("b", "2")
		s.wantAbsent("gone")
		wantError(t, s.apply(a), errStale)
	}},
	{"A condition holds at the commit and not only when it was checked", func(t *testing.T, s *kvStore) {
		s.mustSet("head", "1")
		var c kv.Change
		c.Expect([]byte("head"), []byte("1"), errStale)
		c.Set([]byte("head"), []byte("2"))
		runs := 0
		err := s.Update(context.Background(), func(w kv.Writer) error {
			runs++
			err := c.Apply(w)
			if runs == 1 {
				s.mustSet("head", "other")
			}
			return err
		})
		wantError(t, err, errStale)
		s.wantValue("head", "other")
	}},
}
