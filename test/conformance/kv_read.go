package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/vault/kv"
)

var readerCases = []kvCase{
	{"Get returns the values of keys in their order", func(t *testing.T, s *kvStore) {
		s.mustSet("a", "1", "b", "2", "c", "3")
		err := s.View(context.Background(), func(r kv.Reader) error {
			got, err := r.Get([]byte("c"), []byte("a"), []byte("x"), []byte("a"))
			if err != nil {
				return err
			}
			if len(got) != 4 || string(got[0]) != "3" || string(got[1]) != "1" || got[2] != nil || string(got[3]) != "1" {
				t.Errorf("Get gave %q", got)
			}
			none, err := r.Get()
			if len(none) != 0 {
				t.Errorf("Get of no keys gave %q", none)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}},
	{"An absent key gives nil; an empty value gives an empty slice that is not nil", func(t *testing.T, s *kvStore) {
		s.mustUpdate(func(w kv.Writer) {
			w.Set([]byte("empty"), []byte{})
			w.Set([]byte("nil"), nil)
			if v := mustGet(t, w, "empty"); v == nil || len(v) != 0 {
				t.Errorf("an own empty value is %#v", v)
			}
		})
		s.wantValue("empty", "")
		s.wantValue("nil", "")
		s.wantAbsent("absent")
		s.wantAbsent("")
		s.wantAbsent(strings.Repeat("x", kv.MaxKeySize+1))
		for _, p := range s.scan(nil, nil, 10) {
			if p.Value == nil {
				t.Errorf("Scan gave nil for the empty value of %q", p.Key)
			}
		}
	}},
	{"Scan returns pairs whose key begins with prefix in ascending byte order", func(t *testing.T, s *kvStore) {
		s.mustSet("b", "", "b\xff", "", "b\xff\xff", "", "b\x00", "", "a", "", "c", "", "ba", "", "\xff", "", "\xff\xff", "")
		wantKeys(t, s.scan([]byte("b"), nil, 100), "b", "b\x00", "ba", "b\xff", "b\xff\xff")
		wantKeys(t, s.scan([]byte("\xff"), nil, 100), "\xff", "\xff\xff")
		wantKeys(t, s.scan([]byte("b\xff"), nil, 100), "b\xff", "b\xff\xff")
		wantKeys(t, s.scan([]byte("d"), nil, 100))
		wantKeys(t, s.scan(nil, nil, 100), "a", "b", "b\x00", "ba", "b\xff", "b\xff\xff", "c", "\xff", "\xff\xff")
	}},
	{"Scan returns the values of the pairs", func(t *testing.T, s *kvStore) {
		s.mustSet("p1", "one", "p2", "two")
		pairs := s.scan([]byte("p"), nil, 2)
		wantKeys(t, pairs, "p1", "p2")
		if string(pairs[0].Value) != "one" || string(pairs[1].Value) != "two" {
			t.Errorf("values are %q and %q", pairs[0].Value, pairs[1].Value)
		}
	}},
	{"Scan returns up to limit pairs; to go on pass the last key received", func(t *testing.T, s *kvStore) {
		var want []string
		s.mustUpdate(func(w kv.Writer) {
			for i := range 25 {
				want = append(want, fmt.Sprintf("p/%02d", i))
				w.Set([]byte(want[i]), []byte("v"))
			}
			w.Set([]byte("p0"), []byte("outside"))
		})
		var got []kv.Pair
		var after []byte
		for {
			page := s.scan([]byte("p/"), after, 10)
			if len(page) > 10 {
				t.Fatalf("a page has %d pairs", len(page))
			}
			got = append(got, page...)
			if len(page) < 10 {
				break
			}
			after = page[len(page)-1].Key
		}
		wantKeys(t, got, want...)
	}},
	{"Scan returns keys greater than after; a nil after means from the beginning", func(t *testing.T, s *kvStore) {
		s.mustSet("p", "", "p1", "", "p2", "", "p3", "")
		prefix := []byte("p")
		wantKeys(t, s.scan(prefix, nil, 100), "p", "p1", "p2", "p3")
		wantKeys(t, s.scan(prefix, []byte{}, 100), "p", "p1", "p2", "p3")
		wantKeys(t, s.scan(prefix, []byte("p"), 100), "p1", "p2", "p3")
		wantKeys(t, s.scan(prefix, []byte("p1"), 100), "p2", "p3")
		wantKeys(t, s.scan(prefix, []byte("p11"), 100), "p2", "p3")
		wantKeys(t, s.scan(prefix, []byte("a"), 100), "p", "p1", "p2", "p3")
		wantKeys(t, s.scan(prefix, []byte("p3"), 100))
		wantKeys(t, s.scan(prefix, []byte("z"), 100))
	}},
	{"limit must be positive", func(t *testing.T, s *kvStore) {
		for _, limit := range []int{0, -1} {
			err := s.View(context.Background(), func(r kv.Reader) error {
				_, err := r.Scan(nil, nil, limit)
				return err
			})
			if err == nil {
				t.Errorf("limit %d was taken", limit)
			}
		}
	}},
	{"Returned slices belong to the caller", func(t *testing.T, s *kvStore) {
		s.mustSet("k", "value")
		scribble := func(r kv.Reader) {
			fill(mustGet(t, r, "k"))
			for _, p := range mustScan(t, r, nil, nil, 10) {
				fill(p.Key)
				fill(p.Value)
			}
		}
		if err := s.View(context.Background(), func(r kv.Reader) error { scribble(r); return nil }); err != nil {
			t.Fatal(err)
		}
		s.wantValue("k", "value")
		s.mustUpdate(func(w kv.Writer) {
			w.Set([]byte("own"), []byte("value"))
			scribble(w)
			fill(mustGet(t, w, "own"))
		})
		s.wantValue("k", "value")
		s.wantValue("own", "value")
	}},
	{"Returned slices stay as they are after the transaction", func(t *testing.T, s *kvStore) {
		s.mustSet("k", "before")
		old, pairs := s.read("k"), s.scan(nil, nil, 1)
		for i := range 10 {
			s.mustSet("k", fmt.Sprint("after", i))
		}
		if string(old) != "before" || string(pairs[0].Value) != "before" || string(pairs[0].Key) != "k" {
			t.Errorf("slices changed to %q and %q: %q", old, pairs[0].Key, pairs[0].Value)
		}
	}},
}

var viewCases = []kvCase{
	{"View calls fn once", func(t *testing.T, s *kvStore) {
		calls := 0
		if err := s.View(context.Background(), func(kv.Reader) error { calls++; return nil }); err != nil || calls != 1 {
			t.Errorf("fn was called %d times, error %v", calls, err)
		}
	}},
	{"View shows one consistent snapshot; no commit that happens while fn runs is seen by it", func(t *testing.T, s *kvStore) {
		s.mustSet("changed", "old", "deleted", "old")
		err := s.View(context.Background(), func(r kv.Reader) error {
			for range 2 {
				if v := mustGet(t, r, "changed"); string(v) != "old" {
					t.Errorf("changed is %q", v)
				}
				if v := mustGet(t, r, "deleted"); string(v) != "old" {
					t.Errorf("deleted is %q", v)
				}
				if v := mustGet(t, r, "added"); v != nil {
					t.Errorf("added is %q", v)
				}
				wantKeys(t, mustScan(t, r, nil, nil, 10), "changed", "deleted")
				s.mustUpdate(func(w kv.Writer) {
					w.Set([]byte("changed"), []byte("new"))
					w.Set([]byte("added"), []byte("new"))
					w.Delete([]byte("deleted"))
				})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.wantValue("changed", "new")
	}},
	{"View shows every commit that was acknowledged before", func(t *testing.T, s *kvStore) {
		for i := range 50 {
			v := fmt.Sprint(i)
			s.mustSet("k", v)
			s.wantValue("k", v)
		}
	}},
	{"An error of fn is returned as it is", func(t *testing.T, s *kvStore) {
		want := errors.New("mine")
		if err := s.View(context.Background(), func(kv.Reader) error { return want }); err != want {
			t.Errorf("View gave %v", err)
		}
		if err := s.Update(context.Background(), func(kv.Writer) error { return want }); err != want {
			t.Errorf("Update gave %v", err)
		}
	}},
}
