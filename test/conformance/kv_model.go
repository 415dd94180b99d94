package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/vault/kv"
)

const (
	bankAccounts  = 16
	bankClients   = 64
	bankTransfers = 4
	bankBalance   = 100
)

var modelCases = []kvCase{
	{"Transfers of 64 goroutines lose and make no money", bank},
	{"Increments of many goroutines are all counted", counter},
	{"Sequences of transactions behave like a sorted map", model},
}

// untilCommitted repeats an Update that met more conflicts than the engine retries, as a client would.
func untilCommitted(s kv.Store, fn func(kv.Writer) error) error {
	for {
		if err := s.Update(context.Background(), fn); !errors.Is(err, kv.ErrConflict) {
			return err
		}
	}
}

func account(i int) []byte { return fmt.Appendf(nil, "account/%02d", i) }

// total scans rather than gets, so that transfers must also be atomic for ranges.
func total(r kv.Reader) (int, error) {
	pairs, err := r.Scan([]byte("account/"), nil, 1000)
	if err != nil {
		return 0, err
	}
	sum := 0
	for _, p := range pairs {
		n, err := strconv.Atoi(string(p.Value))
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func bank(t *testing.T, s *kvStore) {
	s.mustUpdate(func(w kv.Writer) {
		for i := range bankAccounts {
			w.Set(account(i), []byte(strconv.Itoa(bankBalance)))
		}
	})
	var clients sync.WaitGroup
	for c := range bankClients {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(c), 1))
			for range bankTransfers {
				from, to := rng.IntN(bankAccounts), rng.IntN(bankAccounts)
				if err := untilCommitted(s, func(w kv.Writer) error { return transfer(w, from, to, rng.IntN(50)) }); err != nil {
					t.Errorf("transfer: %v", err)
					return
				}
				wantTotal(t, s)
			}
		})
	}
	clients.Wait()
	wantTotal(t, s)
}

// transfer closes an account that it empties, so that keys come and go.
func transfer(w kv.Writer, from, to, amount int) error {
	values, err := w.Get(account(from), account(to))
	if err != nil || from == to {
		return err
	}
	var balance [2]int
	for i, v := range values {
		if v != nil {
			if balance[i], err = strconv.Atoi(string(v)); err != nil {
				return err
			}
		}
	}
	amount = min(amount, balance[0])
	if balance[0] == amount {
		w.Delete(account(from))
	} else {
		w.Set(account(from), []byte(strconv.Itoa(balance[0]-amount)))
	}
	w.Set(account(to), []byte(strconv.Itoa(balance[1]+amount)))
	return nil
}

func wantTotal(t *testing.T, s *kvStore) {
	t.Helper()
	var sum int
	err := s.View(context.Background(), func(r kv.Reader) (err error) {
		sum, err = total(r)
		return err
	})
	if err != nil || sum != bankAccounts*bankBalance {
		t.Errorf("the accounts hold %d, want %d (error %v)", sum, bankAccounts*bankBalance, err)
	}
}

func counter(t *testing.T, s *kvStore) {
	const clients, each = 8, 10
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				err := untilCommitted(s, func(w kv.Writer) error {
					values, err := w.Get([]byte("n"))
					if err != nil {
						return err
					}
					n, _ := strconv.Atoi(string(values[0])) // absent is zero
					w.Set([]byte("n"), []byte(strconv.Itoa(n+1)))
					return nil
				})
				if err != nil {
					t.Errorf("increment: %v", err)
				}
			}
		})
	}
	wg.Wait()
	s.wantValue("n", strconv.Itoa(clients*each))
}

// model runs random transactions against the store and a map. All runs share the store, each under a
// prefix of its own, since opening a store costs more than a run.
func model(t *testing.T, s *kvStore) {
	var run int
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &kvModel{s: s, prefix: fmt.Sprintf("run%06d/", run), want: map[string]string{}}
		rt.Repeat(map[string]func(*rapid.T){
			"commit": func(rt *rapid.T) { m.update(rt, nil) },
			"fail":   func(rt *rapid.T) { m.update(rt, errStale) },
			"scan":   m.scan,
			"":       m.compare,
		})
	})
	if s.engine.Reopen != nil {
		before := s.scan(nil, nil, 1<<20)
		s.reopen()
		if after := s.scan(nil, nil, 1<<20); !slices.EqualFunc(before, after, samePair) {
			t.Errorf("reopening changed the store from %d to %d pairs", len(before), len(after))
		}
	}
}

func samePair(a, b kv.Pair) bool { return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) }

type kvModel struct {
	s      *kvStore
	prefix string
	want   map[string]string
}

// Few and similar keys, so that writes, deletes and cursors meet.
var modelKey = rapid.StringMatching(`[ab\x00\x{ff}]{0,3}`)

func (m *kvModel) update(rt *rapid.T, result error) {
	next := maps.Clone(m.want)
	err := m.s.Update(context.Background(), func(w kv.Writer) error {
		for range rapid.IntRange(0, 6).Draw(rt, "writes") {
			key := modelKey.Draw(rt, "key")
			if rapid.Bool().Draw(rt, "delete") {
				w.Delete([]byte(m.prefix + key))
				delete(next, key)
			} else {
				value := rapid.StringN(0, 8, 8).Draw(rt, "value")
				w.Set([]byte(m.prefix+key), []byte(value))
				next[key] = value
			}
		}
		m.check(rt, w, next) // own writes
		return result
	})
	if err != result {
		rt.Fatalf("Update gave %v, want %v", err, result)
	}
	if result == nil {
		m.want = next
	}
}

func (m *kvModel) compare(rt *rapid.T) {
	err := m.s.View(context.Background(), func(r kv.Reader) error { m.check(rt, r, m.want); return nil })
	if err != nil {
		rt.Fatal(err)
	}
}

func (m *kvModel) check(rt *rapid.T, r kv.Reader, want map[string]string) {
	m.checkScan(rt, r, want, "", nil, 1000)
	for _, key := range []string{"", "a", "ab"} {
		values, err := r.Get([]byte(m.prefix + key))
		if err != nil {
			rt.Fatal(err)
		}
		value, has := want[key]
		if (values[0] != nil) != has || string(values[0]) != value {
			rt.Fatalf("%q is %q, want %q (%t)", key, values[0], value, has)
		}
	}
}

func (m *kvModel) scan(rt *rapid.T) {
	prefix := modelKey.Draw(rt, "prefix")
	var after *string
	if rapid.Bool().Draw(rt, "cursor") {
		key := modelKey.Draw(rt, "after")
		after = &key
	}
	limit := rapid.IntRange(1, 5).Draw(rt, "limit")
	err := m.s.View(context.Background(), func(r kv.Reader) error {
		m.checkScan(rt, r, m.want, prefix, after, limit)
		return nil
	})
	if err != nil {
		rt.Fatal(err)
	}
}

func (m *kvModel) checkScan(rt *rapid.T, r kv.Reader, want map[string]string, prefix string, after *string, limit int) {
	var cursor []byte
	if after != nil {
		cursor = []byte(m.prefix + *after)
	}
	pairs, err := r.Scan([]byte(m.prefix+prefix), cursor, limit)
	if err != nil {
		rt.Fatal(err)
	}
	var expect []kv.Pair
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if strings.HasPrefix(key, prefix) && (after == nil || key > *after) && len(expect) < limit {
			expect = append(expect, kv.Pair{Key: []byte(m.prefix + key), Value: []byte(want[key])})
		}
	}
	if !slices.EqualFunc(pairs, expect, samePair) {
		rt.Fatalf("Scan(%q) gave %q, want %q", prefix, pairs, expect)
	}
}
