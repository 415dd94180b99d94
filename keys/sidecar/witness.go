package sidecar

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
)

// The sidecar's memory of the ledger, kept with the keyring. Each value is lines of text, the first of
// which names format and version:
//
//	bound:      pdvault/bound/v2 ⏎ <origin> ⏎ <note verifier key of the ledger> ⏎ [<an older one> ⏎ …]
//	witnessed:  pdvault/witnessed/v1 ⏎ <checkpoint body: origin, size, root>
//
// For example, witnessed:
//
//	pdvault/witnessed/v1
//	pdvault.example.org/ledger
//	20852163
//	CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
const (
	stateBound     = "sidecar/bound"
	stateWitnessed = "sidecar/witnessed"

	headBound     = "pdvault/bound/v2\n"
	headWitnessed = "pdvault/witnessed/v1\n"
)

// ErrState is returned by New when the sidecar's memory of the ledger is there but cannot be read.
var ErrState = errors.New("sidecar: memory of the ledger is damaged")

// witness is what the sidecar knows of the ledger.
type witness struct {
	ring     Keyring
	now      func() time.Time
	cosigner *cosigner

	mu    sync.Mutex // guards all below
	bound binding    // zero until bound
	// seen is the newest checkpoint that was found consistent. It runs ahead of saved, the size of the
	// newest one that is durable, so that one write may serve many requests.
	seen     verify.Checkpoint
	recent   map[int64]tlog.Hash // roots of the checkpoints seen last, by size
	order    []int64             // sizes in recent, oldest first
	saved    int64
	writing  bool
	writes   int           // that have ended
	writeErr error         // of the last one that has ended
	moved    chan struct{} // closed, and made anew, when seen changed or a write ended
	// signed is the checkpoint cosigned last, its lines, and the keys that made them.
	signed      int64
	signedLines []byte
	signedBy    []ed25519.PublicKey

	bindMu sync.Mutex // held while a binding is changed and saved; taken before mu
}

// outcome is what a request's checkpoint came to: stale, and then size is where to prove from; or witnessed
// durably, and then cp is what it says.
type outcome struct {
	cp    verify.Checkpoint
	stale bool
	size  int64  // witnessed
	lines []byte // of the cosignature
}

func loadWitness(ctx context.Context, ring Keyring, c *cosigner, now func() time.Time) (*witness, error) {
	bound, err := ring.LoadState(ctx, stateBound)
	if err != nil {
		return nil, fmt.Errorf("loading the ledger's binding: %w", err)
	}
	seen, err := ring.LoadState(ctx, stateWitnessed)
	if err != nil {
		return nil, fmt.Errorf("loading the witnessed checkpoint: %w", err)
	}
	w, err := parseMemory(bound, seen)
	if err != nil {
		return nil, err
	}
	w.ring, w.now, w.cosigner, w.moved = ring, now, c, make(chan struct{})
	return w, nil
}

// parseMemory returns a witness that knows what the two states say.
func parseMemory(bound, seen []byte) (w *witness, err error) {
	w = new(witness)
	if bound == nil {
		if seen != nil {
			return nil, fmt.Errorf("%w: a checkpoint but no ledger", ErrState)
		}
		return w, nil
	}
	if w.bound, err = parseBound(bound); err != nil {
		return nil, err
	}
	if seen == nil {
		w.seen = verify.EmptyCheckpoint(w.bound.origin)
		return w, nil
	}
	if w.seen, err = parseWitnessed(seen); err != nil {
		return nil, err
	}
	if w.seen.Origin != w.bound.origin {
		return nil, fmt.Errorf("%w: the checkpoint is of another ledger", ErrState)
	}
	w.saved = w.seen.Size
	return w, nil
}

func formatWitnessed(cp verify.Checkpoint) []byte {
	return append([]byte(headWitnessed), cp.Format()...)
}

func parseWitnessed(b []byte) (verify.Checkpoint, error) {
	body, ok := strings.CutPrefix(string(b), headWitnessed)
	if !ok {
		return verify.Checkpoint{}, fmt.Errorf("%w: checkpoint", ErrState)
	}
	cp, err := verify.ParseCheckpoint([]byte(body))
	if err != nil {
		return verify.Checkpoint{}, fmt.Errorf("%w: checkpoint", ErrState)
	}
	return cp, nil
}

// size is that of the newest durable checkpoint.
func (w *witness) size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.saved
}

func (w *witness) status() (seen verify.Checkpoint, bound binding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.bound
}

// advance checks a signed checkpoint and brings the witness up to it: signature, consistency with what was
// witnessed, and a durable note of it, before it returns. from and proof join it to a smaller size. When
// from is ahead of the witness, the request that brings it there is probably on its way, and advance waits
// for it a moment. A checkpoint that cannot be joined is stale; one that contradicts is refused; one that was seen
// before is taken again without a proof, and not signed again.
func (w *witness) advance(ctx context.Context, signed []byte, from int64, proof [][]byte) (outcome, error) {
	if len(signed) > MaxCheckpoint || from < 0 || from > verify.MaxLogSize {
		return outcome{}, invalid("checkpoint")
	}
	steps, err := hashes(proof)
	if err != nil {
		return outcome{}, err
	}
	_, bound := w.status()
	if bound.origin == "" {
		return outcome{}, refuse(keys.ErrProofRefused, whyNotBound)
	}
	cp, err := bound.open(signed)
	if err != nil {
		return outcome{}, refuse(keys.ErrProofRefused, whyCheckpoint)
	}
	at, stale, err := w.see(ctx, cp, from, func(seen verify.Checkpoint) error {
		return verify.CheckConsistency(seen, cp, steps)
	})
	if err != nil {
		return outcome{}, err
	}
	if stale >= 0 {
		return outcome{stale: true, size: stale}, nil
	}
	if err := w.save(ctx, cp.Size); err != nil {
		return outcome{}, err
	}
	if at.IsZero() {
		return outcome{cp: cp, size: cp.Size}, nil // a witness does not sign what is behind what it has seen
	}
	lines, err := w.cosign(cp, at)
	if err != nil {
		return outcome{}, fmt.Errorf("%w: %w", err, keys.ErrUnavailable)
	}
	return outcome{cp: cp, size: cp.Size, lines: lines}, nil
}

// maxRecent is how many checkpoints back a request may be and still need no new proof.
const maxRecent = 1024

// rememberLocked keeps cp as one that was seen, so that a request that rests on it and arrives late, as a
// large one does, is not stale for being overtaken.
func (w *witness) rememberLocked(cp verify.Checkpoint) {
	if w.recent == nil {
		w.recent = make(map[int64]tlog.Hash)
	}
	w.recent[cp.Size] = cp.Root
	if w.order = append(w.order, cp.Size); len(w.order) > maxRecent {
		delete(w.recent, w.order[0])
		w.order = w.order[1:]
	}
}

// see makes cp the newest checkpoint seen, if consistent holds between the two. It returns when that was,
// or, when the two cannot be joined, the size seen in stale, which is otherwise negative.
func (w *witness) see(ctx context.Context, cp verify.Checkpoint, from int64, consistent func(verify.Checkpoint) error) (at time.Time, stale int64, err error) {
	var patience *time.Timer
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch seen := w.seen; {
		case cp.Size == seen.Size && cp.Root != seen.Root:
			return at, -1, refuse(keys.ErrProofRefused, whyForked)
		case cp.Size == seen.Size:
			return w.now(), -1, nil
		case cp.Size < seen.Size:
			switch root, ok := w.recent[cp.Size]; {
			case !ok:
				return at, seen.Size, nil
			case root != cp.Root:
				return at, -1, refuse(keys.ErrProofRefused, whyForked)
			}
			return time.Time{}, -1, nil // it was joined when it was the newest, so it needs no proof
		case from < seen.Size:
			return at, seen.Size, nil
		case from == seen.Size:
			if err := consistent(seen); err != nil {
				return at, -1, refuse(keys.ErrProofRefused, whyInconsistent)
			}
			w.seen = cp
			w.rememberLocked(cp)
			w.changedLocked()
			return w.now(), -1, nil
		}
		if patience == nil {
			patience = time.NewTimer(catchUp)
			defer patience.Stop()
		}
		moved := w.moved
		w.mu.Unlock()
		late := false
		select {
		case <-moved:
		case <-patience.C:
			late = true
		case <-ctx.Done():
			late = true
		}
		w.mu.Lock()
		if late && from > w.seen.Size {
			return at, w.seen.Size, nil
		}
	}
}

// save returns when a checkpoint of at least size is durable. One write of the newest one seen serves all
// that wait. It runs on a goroutine of its own until it is done, since writes must not overlap and none of
// those who wait may end it for the others; a store that hangs makes each of them fail at its deadline.
func (w *witness) save(ctx context.Context, size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	began := w.writes
	for w.saved < size {
		if w.writes > began && w.writeErr != nil {
			return refuse(fmt.Errorf("saving the witnessed checkpoint: %w: %w", w.writeErr, keys.ErrUnavailable), whyNotSaved)
		}
		if !w.writing {
			w.writing = true
			go w.write(context.WithoutCancel(ctx), w.seen)
		}
		moved := w.moved
		w.mu.Unlock()
		var err error
		select {
		case <-moved:
		case <-ctx.Done():
			err = refuse(fmt.Errorf("saving the witnessed checkpoint: %w: %w", ctx.Err(), keys.ErrUnavailable), whyNotSaved)
		}
		w.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *witness) write(ctx context.Context, cp verify.Checkpoint) {
	err := w.ring.SaveState(ctx, stateWitnessed, formatWitnessed(cp))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing = false
	w.writes++
	if w.writeErr = err; err == nil {
		w.saved = cp.Size
	}
	w.changedLocked()
}

// cosign returns the cosignature of cp, which was the newest checkpoint seen at the given time.
func (w *witness) cosign(cp verify.Checkpoint, at time.Time) ([]byte, error) {
	now := w.ring.WitnessKeys()
	w.mu.Lock()
	if w.signedLines != nil && w.signed == cp.Size && sameKeys(w.signedBy, now) {
		lines := w.signedLines
		w.mu.Unlock()
		return lines, nil
	}
	w.mu.Unlock()
	lines, by, err := w.cosigner.lines(cp, at)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if cp.Size >= w.signed {
		w.signed, w.signedLines, w.signedBy = cp.Size, lines, by
	}
	return lines, nil
}

func (w *witness) changedLocked() {
	close(w.moved)
	w.moved = make(chan struct{})
}
