package sidecar

import (
	"context"
	"errors"
	"sync"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// destroyers bounds the bundles that one call destroys at the same time. Their commits are one.
const destroyers = 16

// Destroy implements the call of this name. Its proofs are those of Open, for an entry subject.erased that names
// the subject by the reference of its bundle: whoever holds the socket destroys nobody who was not erased on
// record. An erasure may be old, since one that was interrupted is finished later, and may be shown again, since
// destroying twice is destroying once.
func (s *Server) Destroy(ctx context.Context, req *keyspb.DestroyRequest) (*keyspb.DestroyResponse, error) {
	if len(req.Items) == 0 || len(req.Items) > MaxItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	resp := &keyspb.DestroyResponse{Items: make([]*keyspb.DestroyedItem, len(req.Items))}
	seen, err := s.witness.advance(ctx, req.Checkpoint, req.From, req.Consistency)
	switch {
	case err != nil:
		for i := range resp.Items {
			resp.Items[i] = undestroyed(err)
		}
		cp, _ := s.witness.status()
		resp.WitnessedSize = cp.Size
	case seen.stale:
		return &keyspb.DestroyResponse{Stale: true, WitnessedSize: seen.size, Generation: s.ring.Generation()}, nil
	default:
		resp.WitnessedSize, resp.Cosignature = seen.size, seen.lines
		s.destroyItems(ctx, seen.cp, req.Items, resp.Items)
	}
	resp.Generation = s.ring.Generation()
	s.reportDestroyed(resp.Items)
	return resp, nil
}

// destroyItems destroys what the proofs admit, and fills in one outcome for each item.
func (s *Server) destroyItems(ctx context.Context, cp verify.Checkpoint, items []*keyspb.DestroyItem, out []*keyspb.DestroyedItem) {
	plan, planErr := s.epochPlan(ctx)
	var work sync.WaitGroup
	room := make(chan struct{}, destroyers)
	for i, item := range items {
		e, err := admitErasure(cp, item)
		if err == nil {
			err = planErr
		}
		if err != nil {
			out[i] = undestroyed(err)
			continue
		}
		room <- struct{}{}
		work.Go(func() {
			defer func() { <-room }()
			defer func() {
				if r := recover(); r != nil {
					out[i] = undestroyed(s.panicked(keyspb.Sidecar_Destroy_FullMethodName))
				}
			}()
			d, err := s.ring.DestroyRef(ctx, e.subject, e.ref, e.reason)
			if err != nil {
				if errors.Is(err, keys.ErrProofRefused) {
					err = refuse(keys.ErrProofRefused, whySubject)
				}
				out[i] = undestroyed(err)
				return
			}
			out[i] = &keyspb.DestroyedItem{
				Generation: d.Generation, KekVersion: d.KEKVersion, Already: d.Already, DeadBy: plan.deadBy(s.cfg.Now(), d.KEKVersion),
			}
		})
	}
	work.Wait()
}

// erasure is what an entry subject.erased allows to destroy.
type erasure struct {
	subject uuid.UUID
	ref     []byte
	reason  string
}

// admitErasure makes every check of one item that needs no key. That the reference is this subject's, the keyring
// checks.
func admitErasure(cp verify.Checkpoint, item *keyspb.DestroyItem) (erasure, error) {
	id, err := subjectID(item.GetSubject())
	if err != nil {
		return erasure{}, err
	}
	if item.Index < 0 || len(item.Entry) == 0 || len(item.Entry) > verify.MaxEntrySize {
		return erasure{}, invalid("proof")
	}
	proof, err := hashes(item.Inclusion)
	if err != nil {
		return erasure{}, err
	}
	if err := verify.CheckInclusion(item.Entry, item.Index, proof, cp); err != nil {
		return erasure{}, refuse(keys.ErrProofRefused, whyNotIncluded)
	}
	entry, err := verify.ParseEntry(item.Entry)
	switch {
	case err != nil:
		return erasure{}, refuse(keys.ErrProofRefused, whyEntry)
	case entry.Kind != verify.KindSubjectErased, entry.Erasure == nil:
		return erasure{}, refuse(keys.ErrProofRefused, whyNotErased)
	}
	e := erasure{subject: id, reason: entry.Reason}
	if e.ref, err = verify.ParseRef(entry.SubjectRef); err != nil {
		return erasure{}, refuse(keys.ErrProofRefused, whySubject)
	}
	if len(e.reason) > keyring.MaxReason || !isCode(e.reason) {
		e.reason = "erased" // it is kept in clear, for good
	}
	return e, nil
}

func undestroyed(err error) *keyspb.DestroyedItem {
	return &keyspb.DestroyedItem{Code: keys.CodeOf(err), Why: whyOf(err)}
}

// reportDestroyed logs the outcomes of one call, and counts the refusals.
func (s *Server) reportDestroyed(items []*keyspb.DestroyedItem) {
	destroyed := 0
	why := make(map[string]int)
	for _, item := range items {
		if item.Code == keyspb.Code_OK {
			destroyed++
			continue
		}
		why[item.Why]++
	}
	if destroyed > 0 {
		s.recount()
		s.cfg.Logger.Info("bundles destroyed", "items", destroyed)
	}
	for w, n := range why {
		s.cfg.Observer.Refused(w, n)
		s.cfg.Logger.Warn("destroy refused", "why", w, "items", n)
	}
}
