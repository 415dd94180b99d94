package sidecar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// maxLedgerKeys bounds the ledger keys that are bound at once.
const maxLedgerKeys = 8

// binding is the ledger that is witnessed: its origin and the keys that it may be signed with, the newest
// first. The zero value is no ledger.
type binding struct {
	origin string
	keys   []ledgerKey
}

// ledgerKey is a verifier key of the ledger.
type ledgerKey struct {
	text     string
	verifier note.Verifier
}

// newest is the verifier key that the ledger should sign with, empty when none is bound.
func (b binding) newest() string {
	if len(b.keys) == 0 {
		return ""
	}
	return b.keys[0].text
}

func (b binding) texts() []string {
	var out []string
	for _, k := range b.keys {
		out = append(out, k.text)
	}
	return out
}

// index is the place of key, -1 when it is not bound.
func (b binding) index(key string) int {
	return slices.IndexFunc(b.keys, func(k ledgerKey) bool { return k.text == key })
}

// open verifies a checkpoint that one of the keys has signed.
func (b binding) open(signed []byte) (verify.Checkpoint, error) {
	err := verify.ErrSignature
	for _, k := range b.keys {
		cp, _, e := verify.OpenCheckpoint(signed, b.origin, k.verifier)
		if e == nil {
			return cp, nil
		}
		if err = e; !errors.Is(e, verify.ErrSignature) {
			break // it is no checkpoint whoever signed it
		}
	}
	return verify.Checkpoint{}, err
}

// signedBy reports whether key has signed the checkpoint.
func (b binding) signedBy(signed []byte, key ledgerKey) bool {
	_, _, err := verify.OpenCheckpoint(signed, b.origin, key.verifier)
	return err == nil
}

func (b binding) format() []byte {
	return []byte(headBound + b.origin + "\n" + strings.Join(b.texts(), "\n") + "\n")
}

func parseBound(b []byte) (binding, error) {
	rest, ok := strings.CutPrefix(string(b), headBound)
	lines := strings.Split(rest, "\n")
	if !ok || len(lines) < 3 || len(lines) > maxLedgerKeys+2 || lines[len(lines)-1] != "" {
		return binding{}, fmt.Errorf("%w: binding", ErrState)
	}
	out := binding{origin: lines[0]}
	for _, text := range lines[1 : len(lines)-1] {
		k, err := newLedgerKey(out.origin, text)
		if err != nil || out.index(text) >= 0 {
			return binding{}, fmt.Errorf("%w: binding", ErrState)
		}
		out.keys = append(out.keys, k)
	}
	return out, nil
}

// newLedgerKey checks that origin and key are those of a ledger: C2SP names the key after the origin.
func newLedgerKey(origin, key string) (ledgerKey, error) {
	if len(origin) > MaxBinding || len(key) > MaxBinding {
		return ledgerKey{}, invalid("binding")
	}
	empty := verify.EmptyCheckpoint(origin)
	if cp, err := verify.ParseCheckpoint(empty.Format()); err != nil || cp != empty {
		return ledgerKey{}, invalid("origin")
	}
	v, err := note.NewVerifier(key)
	if err != nil || v.Name() != origin || strings.Contains(key, "\n") {
		return ledgerKey{}, invalid("ledger key")
	}
	return ledgerKey{key, v}, nil
}

// bind pins the ledger, durably, or checks that it is the one pinned and key its newest.
func (w *witness) bind(ctx context.Context, origin, key string) error {
	k, err := newLedgerKey(origin, key)
	if err != nil {
		return err
	}
	w.bindMu.Lock()
	defer w.bindMu.Unlock()
	_, bound := w.status()
	switch {
	case bound.origin == origin && bound.newest() == key:
		return nil
	case bound.origin != "":
		return refuse(keys.ErrProofRefused, whyOtherLedger)
	}
	// A save that failed before may have been kept all the same, so the store is asked and not our memory.
	ctx = context.WithoutCancel(ctx) // saves must not overlap, so this one is awaited
	kept, err := w.ring.LoadState(ctx, stateBound)
	if err != nil {
		return fmt.Errorf("loading the ledger's binding: %w", err)
	}
	b := binding{origin: origin, keys: []ledgerKey{k}}
	if kept != nil && !bytes.Equal(kept, b.format()) {
		return refuse(keys.ErrProofRefused, whyOtherLedger)
	}
	if err := w.ring.SaveState(ctx, stateBound, b.format()); err != nil {
		return fmt.Errorf("saving the ledger's binding: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bound = b
	w.seen = verify.EmptyCheckpoint(origin)
	return nil
}

// RotateLedger implements the call of this name. The checkpoint shown must be signed by the newest bound key and
// by the key that is to be newest, which may be the same, to drop an older one. So who holds an older key only,
// or a key of their own only, changes nothing; nor does a request that is shown again later.
func (s *Server) RotateLedger(ctx context.Context, req *keyspb.RotateLedgerRequest) (*keyspb.RotateLedgerResponse, error) {
	seen, err := s.witness.rotate(ctx, req)
	if err != nil {
		return nil, s.refuse("RotateLedger", err)
	}
	return &keyspb.RotateLedgerResponse{Stale: seen.stale, WitnessedSize: seen.size}, nil
}

func (w *witness) rotate(ctx context.Context, req *keyspb.RotateLedgerRequest) (outcome, error) {
	_, bound := w.status()
	if bound.origin == "" {
		return outcome{}, refuse(keys.ErrProofRefused, whyNotBound)
	}
	key, err := newLedgerKey(bound.origin, req.LedgerKey)
	switch {
	case err != nil:
		return outcome{}, err
	case len(req.Checkpoint) > MaxCheckpoint, len(req.Drop) > MaxBinding, req.Drop == req.LedgerKey:
		return outcome{}, invalid("ledger keys")
	}
	w.bindMu.Lock()
	defer w.bindMu.Unlock()
	_, bound = w.status()
	next, err := bound.rotated(req.Checkpoint, key, req.Drop)
	if err != nil {
		return outcome{}, err
	}
	seen, err := w.advance(ctx, req.Checkpoint, req.From, req.Consistency)
	if err != nil || seen.stale || bytes.Equal(next.format(), bound.format()) {
		return seen, err
	}
	if next.newest() != bound.newest() {
		if err := w.rememberFirst(ctx, bound); err != nil {
			return outcome{}, err
		}
	}
	// After a failed save either state may be what was kept; both were asked for by those who may ask.
	if err := w.ring.SaveState(context.WithoutCancel(ctx), stateBound, next.format()); err != nil {
		return outcome{}, refuse(fmt.Errorf("saving the ledger's binding: %w: %w", err, keys.ErrUnavailable), whyNotSaved)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bound = next
	return seen, nil
}

// stateRotated remembers for which job the ledger's key was changed last, and to which: three lines,
//
//	pdvault/ledger-rotated/v1
//	<id of the job, or - for the first key there was>
//	<note verifier key of the ledger>
const (
	stateRotated = "sidecar/ledger-rotated"
	headRotated  = "pdvault/ledger-rotated/v1\n"
)

// rememberFirst notes, durably, which key was the first, before it is replaced. It may be dropped before the job that
// has replaced it is at its end, and then nothing else would tell that there was one.
func (w *witness) rememberFirst(ctx context.Context, before binding) error {
	kept, err := w.ring.LoadState(ctx, stateRotated)
	if err != nil {
		return fmt.Errorf("loading the last rotation of the ledger's key: %w", err)
	}
	if kept != nil {
		return nil
	}
	if err := w.ring.SaveState(context.WithoutCancel(ctx), stateRotated, []byte(headRotated+"-\n"+before.newest()+"\n")); err != nil {
		return refuse(fmt.Errorf("saving the first key of the ledger: %w: %w", err, keys.ErrUnavailable), whyNotSaved)
	}
	return nil
}

// rotatedFor notes that the newest key is the one that job was for, durably. It refuses when that key was noted for
// another job, or is the only one there ever was: then nothing was rotated.
func (w *witness) rotatedFor(ctx context.Context, job string) error {
	w.bindMu.Lock()
	defer w.bindMu.Unlock()
	_, bound := w.status()
	kept, err := w.ring.LoadState(ctx, stateRotated)
	if err != nil {
		return fmt.Errorf("loading the last rotation of the ledger's key: %w", err)
	}
	next := headRotated + job + "\n" + bound.newest() + "\n"
	switch before, ok := strings.CutPrefix(string(kept), headRotated); {
	case kept != nil && !ok:
		return fmt.Errorf("%w: last rotation of the ledger's key: %w", ErrState, keys.ErrUnavailable)
	case string(kept) == next:
		return nil
	case kept == nil && len(bound.keys) < 2, kept != nil && strings.HasSuffix(before, "\n"+bound.newest()+"\n"):
		return refuse(keys.ErrInvalid, whyNotRotated)
	}
	// Saves of one name must not overlap, so this one is awaited.
	if err := w.ring.SaveState(context.WithoutCancel(ctx), stateRotated, []byte(next)); err != nil {
		return refuse(fmt.Errorf("saving the last rotation of the ledger's key: %w: %w", err, keys.ErrUnavailable), whyNotSaved)
	}
	return nil
}

// rotated returns the binding with key as the newest and without drop, if the checkpoint bears the signatures
// that this takes.
func (b binding) rotated(signed []byte, key ledgerKey, drop string) (binding, error) {
	if !b.signedBy(signed, b.keys[0]) || !b.signedBy(signed, key) {
		return binding{}, refuse(keys.ErrProofRefused, whySigners)
	}
	next := binding{origin: b.origin, keys: slices.Clone(b.keys)}
	switch i := b.index(key.text); {
	case i > 0:
		return binding{}, refuse(keys.ErrProofRefused, whyOtherLedger) // what was replaced does not come back
	case i < 0:
		next.keys = slices.Insert(next.keys, 0, key)
	}
	// The key to drop is older than the newest bound one, which has signed, or is that one and older than key.
	if i := next.index(drop); drop != "" && i > 0 {
		next.keys = slices.Delete(next.keys, i, i+1)
	}
	if len(next.keys) > maxLedgerKeys {
		return binding{}, invalid("number of ledger keys")
	}
	return next, nil
}
