package sidecar

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
)

// stateRewound remembers what a witness was made to forget: for each rewind, oldest first, four lines behind the head
// that names format and version:
//
//	pdvault/rewound/v1
//	<size that was witnessed>
//	<its root>
//	<size of the checkpoint that took its place>
//	<time, verify.TimeLayout>
const (
	stateRewound = "sidecar/rewound"
	headRewound  = "pdvault/rewound/v1\n"
)

// Memory is what a sidecar remembers of its ledger.
type Memory struct {
	Origin    string          // of the ledger it is bound to; empty: of none
	Keys      []note.Verifier // of that ledger
	Witnessed verify.Checkpoint
}

// LoadMemory reads what the sidecar of ring remembers, for who works on a key store that is not being served.
func LoadMemory(ctx context.Context, ring Keyring) (Memory, error) {
	w, err := loadWitness(ctx, ring, nil, time.Now)
	if err != nil || w.bound.origin == "" {
		return Memory{}, err
	}
	m := Memory{Origin: w.bound.origin, Witnessed: w.seen}
	for _, k := range w.bound.keys {
		m.Keys = append(m.Keys, k.verifier)
	}
	return m, nil
}

// Rewind makes cp, which the caller has found signed by a key of the ledger, the checkpoint that the sidecar has
// witnessed last, though it has witnessed a larger one: the ledger was restored and what followed is lost. It returns
// what is forgotten, which is kept in the key store for good. The key store must not be served. A checkpoint that is
// not older than what was witnessed needs no rewind and gives keys.ErrInvalid.
func Rewind(ctx context.Context, ring Keyring, cp verify.Checkpoint, now time.Time) (lost verify.Checkpoint, err error) {
	m, err := LoadMemory(ctx, ring)
	if err != nil {
		return lost, err
	}
	switch {
	case m.Origin == "" || cp.Origin != m.Origin:
		return lost, fmt.Errorf("the checkpoint is of another ledger: %w", keys.ErrProofRefused)
	case cp.Size >= m.Witnessed.Size:
		return lost, fmt.Errorf("the sidecar has witnessed %d entries, the checkpoint has %d: nothing to rewind: %w", m.Witnessed.Size, cp.Size, keys.ErrInvalid)
	}
	kept, err := ring.LoadState(ctx, stateRewound)
	if err != nil {
		return lost, fmt.Errorf("loading earlier rewinds: %w", err)
	}
	if kept == nil {
		kept = []byte(headRewound)
	}
	kept = fmt.Appendf(kept, "%d\n%s\n%d\n%s\n", m.Witnessed.Size, m.Witnessed.Root, cp.Size, verify.FormatTime(now))
	// Remembered first: between the two saves the sidecar is as strict as before, and the rewind is done again.
	if err := ring.SaveState(ctx, stateRewound, kept); err != nil {
		return lost, fmt.Errorf("keeping what is forgotten: %w", err)
	}
	if err := ring.SaveState(ctx, stateWitnessed, formatWitnessed(cp)); err != nil {
		return lost, fmt.Errorf("saving the witnessed checkpoint: %w", err)
	}
	return m.Witnessed, nil
}
