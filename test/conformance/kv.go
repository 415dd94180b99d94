// Package conformance holds the contracts of interfaces as tests: one suite for each interface, with one subtest
// for each sentence, which every implementation runs in a few lines of its own.
//
// It must never know which implementation it tests, and no program may link it.
package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/prototypster/pdvault/vault/kv"
)

// KVEngine is an engine of vault/kv to be tested.
type KVEngine struct {
	// New opens an empty store. The suite closes it.
	New func(t testing.TB) kv.Store
	// Reopen closes s and opens what it held again. Nil for an engine that keeps nothing, which skips the
	// subtests on durability.
	Reopen func(t testing.TB, s kv.Store) kv.Store
}

// KV runs one subtest for each sentence of the contract in vault/kv against engine. A subtest is named
// after its sentence. A bug that one engine had becomes a subtest here.
func KV(t *testing.T, engine KVEngine) {
	t.Run("Reader", func(t *testing.T) { runKV(t, engine, readerCases) })
	t.Run("View", func(t *testing.T) { runKV(t, engine, viewCases) })
	t.Run("Update", func(t *testing.T) { runKV(t, engine, updateCases) })
	t.Run("Writer", func(t *testing.T) { runKV(t, engine, writerCases) })
	t.Run("Durability", func(t *testing.T) { runKV(t, engine, durabilityCases) })
	t.Run("Close", func(t *testing.T) { runKV(t, engine, closeCases) })
	t.Run("Change", func(t *testing.T) { runKV(t, engine, changeCases) })
	t.Run("Model", func(t *testing.T) { runKV(t, engine, modelCases) })
}

// kvCase is a sentence of the contract and the test of it.
type kvCase struct {
	sentence string
	test     func(t *testing.T, s *kvStore)
}

func runKV(t *testing.T, engine KVEngine, cases []kvCase) {
	for _, c := range cases {
		t.Run(c.sentence, func(t *testing.T) {
			s := &kvStore{t: t, Store: engine.New(t), engine: engine}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("closing the store: %v", err)
				}
			})
			c.test(t, s)
		})
	}
}

// kvStore is the store under test with helpers that fail the test.
type kvStore struct {
	t *testing.T
	kv.Store
	engine KVEngine
}

// reopen replaces the store by one that has only what the old one made durable.
func (s *kvStore) reopen() {
	s.t.Helper()
	if s.engine.Reopen == nil {
		s.t.Skip("the engine keeps nothing across Close")
	}
	s.Store = s.engine.Reopen(s.t, s.Store)
}

func (s *kvStore) mustUpdate(fn func(w kv.Writer)) {
	s.t.Helper()
	err := s.Update(context.Background(), func(w kv.Writer) error { fn(w); return nil })
	if err != nil {
		s.t.Fatalf("Update: %v", err)
	}
}

// mustSet writes keys and values given in turn.
func (s *kvStore) mustSet(pairs ...string) {
	s.t.Helper()
	s.mustUpdate(func(w kv.Writer) {
		for i := 0; i < len(pairs); i += 2 {
			w.Set([]byte(pairs[i]), []byte(pairs[i+1]))
		}
	})
}

// wantValue fails unless a new snapshot holds want under key.
func (s *kvStore) wantValue(key, want string) {
	s.t.Helper()
	got := s.read(key)
	if got == nil || string(got) != want {
		s.t.Errorf("value of %.40q is %.40q (nil: %t), want %.40q", key, got, got == nil, want)
	}
}

func (s *kvStore) wantAbsent(key string) {
	s.t.Helper()
	if got := s.read(key); got != nil {
		s.t.Errorf("value of %.40q is %.40q, want it absent", key, got)
	}
}

func (s *kvStore) read(key string) (value []byte) {
	s.t.Helper()
	err := s.View(context.Background(), func(r kv.Reader) error {
		value = mustGet(s.t, r, key)
		return nil
	})
	if err != nil {
		s.t.Fatalf("View: %v", err)
	}
	return value
}

func (s *kvStore) scan(prefix, after []byte, limit int) (pairs []kv.Pair) {
	s.t.Helper()
	err := s.View(context.Background(), func(r kv.Reader) error {
		pairs = mustScan(s.t, r, prefix, after, limit)
		return nil
	})
	if err != nil {
		s.t.Fatalf("View: %v", err)
	}
	return pairs
}

func mustGet(t testing.TB, r kv.Reader, key string) []byte {
	t.Helper()
	values, err := r.Get([]byte(key))
	if err != nil {
		t.Fatalf("Get(%.40q): %v", key, err)
	}
	if len(values) != 1 {
		t.Fatalf("Get of one key gave %d values", len(values))
	}
	return values[0]
}

func mustScan(t testing.TB, r kv.Reader, prefix, after []byte, limit int) []kv.Pair {
	t.Helper()
	pairs, err := r.Scan(prefix, after, limit)
	if err != nil {
		t.Fatalf("Scan(%q, %q, %d): %v", prefix, after, limit, err)
	}
	return pairs
}

func wantKeys(t testing.TB, pairs []kv.Pair, want ...string) {
	t.Helper()
	got := make([]string, 0, len(pairs))
	for _, p := range pairs {
		got = append(got, string(p.Key))
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("keys are %q, want %q", got, want)
	}
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want one that wraps %v", err, want)
	}
}

// fill overwrites b, to show that nobody else relies on it.
func fill(b []byte) { copy(b, bytes.Repeat([]byte{'#'}, len(b))) }
