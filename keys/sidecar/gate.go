package sidecar

import (
	"context"
	"errors"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Open implements the call of this name. Nothing is opened before the checkpoint it rests on is durable in
// the sidecar's own store; each item then passes all checks of its access record or none of it is opened.
//
// An access record is used up when plaintext, or the outcome of a comparison, is handed out under it. An
// item that fails before that, as when the KEK is down, may be tried again while its record is fresh.
func (s *Server) Open(ctx context.Context, req *keyspb.OpenRequest) (*keyspb.OpenResponse, error) {
	if len(req.Items) == 0 || len(req.Items) > MaxItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	resp := &keyspb.OpenResponse{Items: make([]*keyspb.OpenedItem, len(req.Items))}
	seen, err := s.witness.advance(ctx, req.Checkpoint, req.From, req.Consistency)
	switch {
	case err != nil:
		for i := range resp.Items {
			resp.Items[i] = refusedItem(err)
		}
		cp, _ := s.witness.status()
		resp.WitnessedSize = cp.Size
	case seen.stale:
		return &keyspb.OpenResponse{Stale: true, WitnessedSize: seen.size, Generation: s.ring.Generation()}, nil
	default:
		resp.WitnessedSize, resp.Cosignature = seen.size, seen.lines
		s.openItems(ctx, seen.cp, req.Items, resp.Items)
	}
	resp.Generation = s.ring.Generation()
	s.report(resp.Items)
	return resp, nil
}

// openItems opens what the gate admits, and fills in one outcome for each item.
func (s *Server) openItems(ctx context.Context, cp verify.Checkpoint, items []*keyspb.OpenItem, out []*keyspb.OpenedItem) {
	now := s.cfg.Now()
	batch := make([]keyring.OpenSubject, 0, len(items))
	where := make([]int, 0, len(items))
	for i, item := range items {
		q, err := s.admit(now, cp, item)
		if err != nil {
			out[i] = refusedItem(err)
			continue
		}
		batch, where = append(batch, q), append(where, i)
	}
	if len(batch) == 0 {
		return
	}
	// From here on each item of the batch holds a claim, which is kept only with a good outcome. After a
	// panic they stay claimed.
	opened, err := s.ring.Open(ctx, batch)
	if err == nil && len(opened) != len(batch) {
		err = errShape
	}
	for j, i := range where {
		itemErr := err
		if itemErr == nil {
			itemErr = opened[j].Err
		}
		if itemErr == nil && !complete(batch[j], opened[j]) {
			itemErr = errShape
		}
		if itemErr != nil {
			s.served.release(items[i].Index)
			if errors.Is(itemErr, keys.ErrProofRefused) {
				itemErr = refuse(keys.ErrProofRefused, whySubject)
			}
			out[i] = refusedItem(itemErr)
			continue
		}
		fields := make([]*keyspb.OpenedField, len(opened[j].Fields))
		for n, f := range opened[j].Fields {
			fields[n] = &keyspb.OpenedField{Plaintext: f.Plaintext, Match: f.Match}
		}
		out[i] = &keyspb.OpenedItem{Fields: fields}
	}
}

// admit makes every check of one item that needs no key, and claims its access record last, so that an item
// which is refused uses nothing up. What only the bundle can tell, that the record's subject_ref is this
// subject's, the keyring checks by the Ref it is given.
func (s *Server) admit(now time.Time, cp verify.Checkpoint, item *keyspb.OpenItem) (keyring.OpenSubject, error) {
	q, compare, err := openItem(item)
	if err != nil {
		return q, err
	}
	proof, err := hashes(item.Inclusion)
	if err != nil {
		return q, err
	}
	if err := verify.CheckInclusion(item.Entry, item.Index, proof, cp); err != nil {
		return q, refuse(keys.ErrProofRefused, whyNotIncluded)
	}
	entry, err := verify.ParseEntry(item.Entry)
	if err != nil {
		return q, refuse(keys.ErrProofRefused, whyEntry)
	}
	fields := make([]string, len(q.Fields))
	for i, f := range q.Fields {
		fields[i] = f.Field
	}
	// An entry of another kind may lack a reference, and is then refused for its kind.
	if q.Ref, err = verify.ParseRef(entry.SubjectRef); err != nil {
		q.Ref = nil
	}
	err = verify.AccessRequest{
		Now: now, Sidecar: s.id, SubjectRef: q.Ref, Collection: q.Collection, Fields: fields, Compare: compare,
	}.Check(entry)
	switch {
	case errors.Is(err, verify.ErrTooOld), errors.Is(err, verify.ErrFromFuture):
		return q, refuse(keys.ErrClock, verify.RefusalCode(err))
	case err != nil && verify.RefusalCode(err) != "":
		return q, refuse(keys.ErrProofRefused, verify.RefusalCode(err))
	case err != nil:
		return q, refuse(keys.ErrProofRefused, whyEntry)
	case len(q.Ref) != verify.RefSize:
		return q, refuse(keys.ErrProofRefused, whySubject)
	}
	if t, err := time.Parse(verify.TimeLayout, entry.Time); err != nil || t.Sub(now) > maxFuture {
		return q, refuse(keys.ErrClock, whyFuture)
	}
	if err := s.afford(now, entry, q.Ref); err != nil {
		return q, err
	}
	switch why := s.served.claim(item.Index); why {
	case "":
	case whyBeforeRestart:
		// Nothing is wrong with it but our memory; a new record will be served.
		return q, refuse(keys.ErrUnavailable, why)
	default:
		return q, refuse(keys.ErrReplayed, why)
	}
	return q, nil
}

// afford counts one open in the budget of the caller that entry names, or refuses it. It comes before the record
// is used up, so that the same record may be shown again while it is fresh.
func (s *Server) afford(now time.Time, entry verify.Entry, ref []byte) error {
	var caller string
	if entry.Caller != nil {
		caller = entry.Caller.ID
	}
	label, limit := s.budget.take(caller, ref)
	if limit == "" {
		return nil
	}
	s.cfg.Observer.BudgetRefused(label, limit)
	if count, loud := s.alarm.ring(now); loud {
		s.cfg.Logger.Error("budget of opens is used up", "caller", label, "limit", limit, "count", count)
	}
	return refuse(keys.ErrBudget, whyBudget)
}

// complete reports whether r is a whole answer to q: a value where one was asked for, none where not.
func complete(q keyring.OpenSubject, r keyring.OpenedSubject) bool {
	if len(r.Fields) != len(q.Fields) {
		return false
	}
	for i, f := range r.Fields {
		if (len(f.Plaintext) == 0) != (len(q.Fields[i].Expect) > 0) {
			return false
		}
	}
	return true
}

func refusedItem(err error) *keyspb.OpenedItem {
	return &keyspb.OpenedItem{Code: keys.CodeOf(err), Why: whyOf(err)}
}

// report counts the outcomes of one call, and logs the refusals.
func (s *Server) report(items []*keyspb.OpenedItem) {
	var records, fields int
	var why map[string]int
	for _, item := range items {
		if item.Code == keyspb.Code_OK {
			records++
			fields += len(item.Fields)
			continue
		}
		if why == nil {
			why = make(map[string]int)
		}
		why[item.Why]++
	}
	if records > 0 {
		s.cfg.Observer.Opened(records, fields)
	}
	for w, n := range why {
		s.cfg.Observer.Refused(w, n)
		s.cfg.Logger.Warn("open refused", "why", w, "items", n)
	}
}
