package sidecar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
)

// stateRewound remembers what a witness was made to forget: for each rewind, oldest first, five lines behind the head
// that names format and version:
//
//	pdvault/rewound/v1
//	<size that was witnessed>
//	<its root>
//	<size of the checkpoint that took its place>
//	<time, verify.TimeLayout>
//	<ledger keys that were forgotten, with spaces between>
const (
	stateRewound = "sidecar/rewound"
	headRewound  = "pdvault/rewound/v1\n"
)

// Memory is what a sidecar remembers of its ledger.
type Memory struct {
	Origin     string          // of the ledger it is bound to; empty: of none
	Keys       []note.Verifier // of that ledger, the newest first
	LedgerKeys []string        // the same as text
	Witnessed  verify.Checkpoint
}

func (w *witness) memory() Memory {
	if w.bound.origin == "" {
		return Memory{}
	}
	m := Memory{Origin: w.bound.origin, LedgerKeys: w.bound.texts(), Witnessed: w.seen}
	for _, k := range w.bound.keys {
		m.Keys = append(m.Keys, k.verifier)
	}
	return m
}

// LoadMemory reads what the sidecar of ring remembers, for who works on a key store that is not being served.
func LoadMemory(ctx context.Context, ring Keyring) (Memory, error) {
	w, err := loadWitness(ctx, ring, nil, time.Now)
	if err != nil {
		return Memory{}, err
	}
	return w.memory(), nil
}

// MemoryIn is LoadMemory for a backup of a key store; state returns what was saved under a name in it.
func MemoryIn(state func(name string) []byte) (Memory, error) {
	w, err := parseMemory(state(stateBound), state(stateWitnessed))
	if err != nil {
		return Memory{}, err
	}
	return w.memory(), nil
}

// Rewound is one rewind: what a witness was made to forget.
type Rewound struct {
	Lost verify.Checkpoint // without its origin
	Size int64             // of the checkpoint that took its place
	At   time.Time
	Keys []string // of the ledger, that were forgotten
}

// Rewinds lists the rewinds of the sidecar of ring, the oldest first.
func Rewinds(ctx context.Context, ring Keyring) ([]Rewound, error) {
	kept, err := ring.LoadState(ctx, stateRewound)
	if err != nil {
		return nil, fmt.Errorf("loading earlier rewinds: %w", err)
	}
	return parseRewound(kept)
}

func (r Rewound) append(b []byte) []byte {
	return fmt.Appendf(b, "%d\n%s\n%d\n%s\n%s\n", r.Lost.Size, r.Lost.Root, r.Size, verify.FormatTime(r.At), strings.Join(r.Keys, " "))
}

func parseRewound(b []byte) ([]Rewound, error) {
	if b == nil {
		return nil, nil
	}
	damaged := fmt.Errorf("%w: rewinds", ErrState)
	text, ok := strings.CutPrefix(string(b), headRewound)
	lines := strings.Split(text, "\n")
	if !ok || len(lines)%5 != 1 || lines[len(lines)-1] != "" {
		return nil, damaged
	}
	var all []Rewound
	for five := range slices.Chunk(lines[:len(lines)-1], 5) {
		// Size and root are those of a checkpoint, but for its origin.
		lost, err := verify.ParseCheckpoint([]byte("rewound\n" + five[0] + "\n" + five[1] + "\n"))
		size, sizeErr := strconv.ParseInt(five[2], 10, 64)
		at, timeErr := time.Parse(verify.TimeLayout, five[3])
		if errors.Join(err, sizeErr, timeErr) != nil {
			return nil, damaged
		}
		lost.Origin = ""
		all = append(all, Rewound{Lost: lost, Size: size, At: at, Keys: strings.Fields(five[4])})
	}
	again := []byte(headRewound)
	for _, r := range all {
		again = r.append(again)
	}
	if !bytes.Equal(again, b) { // numbers and times have other spellings, which we do not write
		return nil, damaged
	}
	return all, nil
}

// Rewind makes the sidecar go on with a ledger that was restored from a backup and has lost its end: cp, which the
// caller has found signed by key, becomes the checkpoint that was witnessed last, though a larger one was, and key the
// newest ledger key, though newer ones were bound: they were lost with the ledger that announced them. A key that is
// not bound any more, and that the caller vouches for, takes the place of all. What is forgotten is returned, and kept
// in the key store for good. The key store must not be served. A checkpoint that is not older than what was witnessed,
// under the newest key, needs no rewind and gives keys.ErrInvalid.
func Rewind(ctx context.Context, ring Keyring, cp verify.Checkpoint, key string, now time.Time) (Rewound, error) {
	w, err := loadWitness(ctx, ring, nil, time.Now)
	if err != nil {
		return Rewound{}, err
	}
	if w.bound.origin == "" || cp.Origin != w.bound.origin {
		return Rewound{}, fmt.Errorf("the checkpoint is of another ledger: %w", keys.ErrProofRefused)
	}
	signer, err := newLedgerKey(cp.Origin, key)
	if err != nil {
		return Rewound{}, err
	}
	next := binding{origin: cp.Origin, keys: []ledgerKey{signer}}
	newer := len(w.bound.keys)
	if i := w.bound.index(key); i >= 0 {
		next.keys, newer = w.bound.keys[i:], i
	}
	switch {
	case cp.Size >= w.seen.Size && newer == 0:
		return Rewound{}, fmt.Errorf("the sidecar has witnessed %d entries, the checkpoint has %d: nothing to rewind: %w", w.seen.Size, cp.Size, keys.ErrInvalid)
	case cp.Size == w.seen.Size && cp.Root != w.seen.Root:
		return Rewound{}, fmt.Errorf("the checkpoint contradicts the one of the same size that was witnessed: %w", keys.ErrProofRefused)
	}
	gone := Rewound{Lost: w.seen, Size: min(cp.Size, w.seen.Size), At: now, Keys: w.bound.texts()[:newer]}
	kept, err := ring.LoadState(ctx, stateRewound)
	if err != nil {
		return Rewound{}, fmt.Errorf("loading earlier rewinds: %w", err)
	}
	if kept == nil {
		kept = []byte(headRewound)
	}
	// Remembered first: before the last save the sidecar is as strict as before, and the rewind is done again.
	for _, s := range []struct {
		name  string
		value []byte
	}{
		{stateRewound, gone.append(kept)},
		{stateBound, next.format()},
		{stateWitnessed, formatWitnessed(earlier(cp, w.seen))},
	} {
		if err := ring.SaveState(ctx, s.name, s.value); err != nil {
			return Rewound{}, fmt.Errorf("saving what is remembered of the ledger: %w", err)
		}
	}
	return gone, nil
}

func earlier(a, b verify.Checkpoint) verify.Checkpoint {
	if a.Size < b.Size {
		return a
	}
	return b
}

// CatchUp brings what a restored sidecar remembers up to cp, which the caller has found signed by key, cosigned by the
// sidecar itself, and extending what it remembers: an older copy of the ledger is refused from then on, and a key that
// the backup did not know yet is the newest that is bound. The key store must not be served.
func CatchUp(ctx context.Context, ring Keyring, cp verify.Checkpoint, key string) error {
	w, err := loadWitness(ctx, ring, nil, time.Now)
	if err != nil {
		return err
	}
	signer, err := newLedgerKey(w.bound.origin, key)
	if err != nil || cp.Origin != w.bound.origin {
		return fmt.Errorf("the checkpoint is of another ledger: %w", keys.ErrProofRefused)
	}
	if w.bound.index(key) < 0 {
		next := binding{origin: w.bound.origin, keys: append([]ledgerKey{signer}, w.bound.keys...)}
		next.keys = next.keys[:min(len(next.keys), maxLedgerKeys)]
		if err := ring.SaveState(ctx, stateBound, next.format()); err != nil {
			return fmt.Errorf("saving the ledger's binding: %w", err)
		}
	}
	if cp.Size > w.seen.Size {
		if err := ring.SaveState(ctx, stateWitnessed, formatWitnessed(cp)); err != nil {
			return fmt.Errorf("saving the witnessed checkpoint: %w", err)
		}
	}
	return nil
}
