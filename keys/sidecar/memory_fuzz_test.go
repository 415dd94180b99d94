package sidecar

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

const fuzzOrigin = "main.pdvault/ledger"

func fuzzLedgerKey(tb testing.TB) string {
	tb.Helper()
	_, key, err := note.GenerateKey(rand.Reader, fuzzOrigin)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// FuzzMemory: what the sidecar remembers of its ledger is what it wrote, or no memory at all, with ErrState; and a
// binding has one form.
func FuzzMemory(f *testing.F) {
	first, second := fuzzLedgerKey(f), fuzzLedgerKey(f)
	bound := []byte(headBound + fuzzOrigin + "\n" + first + "\n" + second + "\n")
	seen := formatWitnessed(verify.EmptyCheckpoint(fuzzOrigin))
	f.Add(bound, seen)
	f.Add(bound, []byte{})
	f.Add([]byte(headBound+fuzzOrigin+"\n"+first+"\n"+first+"\n"), seen)
	f.Add([]byte(headBound+"other\n"+first+"\n"), seen)
	f.Add([]byte{}, seen)
	f.Fuzz(func(t *testing.T, bound, seen []byte) {
		if len(seen) == 0 {
			seen = nil // absent
		}
		w, err := parseMemory(bound, seen)
		if err != nil {
			if !errors.Is(err, ErrState) || w != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(w.bound.format(), bound) || seen != nil && !bytes.Equal(formatWitnessed(w.seen), seen) {
			t.Error("encodes to other bytes")
		}
		if m := w.memory(); m.Origin != w.seen.Origin || len(m.Keys) == 0 || len(m.Keys) != len(m.LedgerKeys) {
			t.Errorf("memory %+v", m)
		}
	})
}

// FuzzRewinds: the list of rewinds is what was written, or damage.
func FuzzRewinds(f *testing.F) {
	one := Rewound{Lost: verify.Checkpoint{Size: 9}, Size: 5, At: time.Unix(1_700_000_000, 0).UTC(), Keys: []string{fuzzLedgerKey(f)}}
	f.Add(one.append([]byte(headRewound)))
	f.Add(one.append(one.append([]byte(headRewound))))
	f.Add([]byte(headRewound))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseRewound(slices.Clip(append([]byte{}, b...)))
		if err != nil {
			if !errors.Is(err, ErrState) || all != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		again := []byte(headRewound)
		for _, r := range all {
			again = r.append(again)
		}
		if !bytes.Equal(again, b) {
			t.Error("encodes to other bytes")
		}
	})
}
