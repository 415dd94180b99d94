package sidecar

import (
	"bytes"
	"context"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// underWay returns keys.ErrNoJob unless a rotation of the keys of these subjects is under way, of just that number.
// So a client cannot make or drop keys beside a job, which is counted, logged, seen by the team and recorded in the
// ledger when it is done; nor make bundles name a rotation that was never begun, which those to come would pass over.
func (s *Server) underWay(ctx context.Context, rotation uint32, subjects ...[]byte) error {
	jobs, err := s.ring.Jobs(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.State != keyring.JobRunning || j.Target != uint64(rotation) {
			continue
		}
		others := slices.ContainsFunc(subjects, func(b []byte) bool { return !bytes.Equal(b, j.Subject[:]) })
		if j.Scope == keyring.ScopeAllSubjects || j.Scope == keyring.ScopeSubject && !others {
			return nil
		}
	}
	return refuse(keys.ErrNoJob, whyNoRotation)
}

// Reseal implements the call of this name, for the driver of a rotation that is under way. What is sealed again is
// never handed out: plaintext stays between two lines of the keyring. Rotation 0 makes no key, so it needs no rotation:
// a restore finds out by it what opens.
func (s *Server) Reseal(ctx context.Context, req *keyspb.ResealRequest) (*keyspb.ResealResponse, error) {
	if len(req.Subjects) == 0 || len(req.Subjects) > MaxItems || countItems(req.Subjects) > MaxResealItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	ids := make([][]byte, len(req.Subjects))
	for i, subject := range req.Subjects {
		ids[i] = subject.GetSubject()
	}
	if req.Rotation > 0 {
		if err := s.underWay(ctx, req.Rotation, ids...); err != nil {
			return nil, s.refuse("Reseal", err)
		}
	}
	resp := &keyspb.ResealResponse{Subjects: make([]*keyspb.ResealedSubject, len(req.Subjects))}
	batch := make([]keyring.ResealSubject, 0, len(req.Subjects))
	where := make([]int, 0, len(req.Subjects))
	for i, subject := range req.Subjects {
		q, err := resealSubject(subject)
		if err != nil {
			resp.Subjects[i] = &keyspb.ResealedSubject{Code: keys.CodeOf(err)}
			continue
		}
		batch, where = append(batch, q), append(where, i)
	}
	if len(batch) > 0 {
		out, err := s.ring.Reseal(ctx, req.Rotation, batch)
		if err == nil && len(out) != len(batch) {
			err = errShape
		}
		if err != nil {
			return nil, failure(keys.CodeOf(err), "")
		}
		for j, r := range out {
			if r.Err == nil && len(r.Ciphertexts) != len(batch[j].Items) {
				r.Err = errShape
			}
			if r.Err != nil {
				resp.Subjects[where[j]] = &keyspb.ResealedSubject{Code: keys.CodeOf(r.Err)}
				continue
			}
			resp.Subjects[where[j]] = &keyspb.ResealedSubject{Ref: r.Ref, Ciphertexts: r.Ciphertexts, Rotation: r.Rotation}
		}
	}
	resp.Generation = s.ring.Generation()
	return resp, nil
}

func countItems(subjects []*keyspb.ResealSubject) (n int) {
	for _, s := range subjects {
		n += len(s.GetItems())
	}
	return n
}

// Retire implements the call of this name, for the driver of a rotation that is under way. That everything was
// sealed again it takes the driver's word for: who may write ciphertexts can lose them anyway. But then a backup of
// the data is of no use either, so it is never done without a trace.
func (s *Server) Retire(ctx context.Context, req *keyspb.RetireRequest) (*keyspb.RetireResponse, error) {
	if len(req.Subjects) == 0 || len(req.Subjects) > MaxItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	if err := s.underWay(ctx, req.Rotation, req.Subjects...); err != nil {
		return nil, s.refuse("Retire", err)
	}
	resp := &keyspb.RetireResponse{Codes: make([]keyspb.Code, len(req.Subjects))}
	batch := make([]uuid.UUID, 0, len(req.Subjects))
	where := make([]int, 0, len(req.Subjects))
	for i, subject := range req.Subjects {
		id, err := subjectID(subject)
		if err != nil {
			resp.Codes[i] = keys.CodeOf(err)
			continue
		}
		batch, where = append(batch, id), append(where, i)
	}
	if len(batch) > 0 {
		out, err := s.ring.Retire(ctx, req.Rotation, batch)
		if err == nil && len(out) != len(batch) {
			err = errShape
		}
		if err != nil {
			return nil, failure(keys.CodeOf(err), "")
		}
		retired := 0
		for j, err := range out {
			if resp.Codes[where[j]] = keys.CodeOf(err); err == nil {
				retired++
			}
		}
		s.cfg.Logger.Info("older keys of subjects were dropped", "items", retired, "target", req.Rotation)
	}
	resp.Generation = s.ring.Generation()
	return resp, nil
}

// Reindex implements the call of this name.
func (s *Server) Reindex(ctx context.Context, req *keyspb.ReindexRequest) (*keyspb.ReindexResponse, error) {
	values := 0
	for _, subject := range req.Subjects {
		values += len(subject.GetValues())
	}
	if len(req.Subjects) == 0 || len(req.Subjects) > MaxItems || values > MaxResealItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	resp := &keyspb.ReindexResponse{Subjects: make([]*keyspb.ReindexedSubject, len(req.Subjects))}
	batch := make([]keyring.ReindexSubject, 0, len(req.Subjects))
	where := make([]int, 0, len(req.Subjects))
	for i, subject := range req.Subjects {
		q, err := reindexSubject(subject)
		if err != nil {
			resp.Subjects[i] = &keyspb.ReindexedSubject{Code: keys.CodeOf(err)}
			continue
		}
		batch, where = append(batch, q), append(where, i)
	}
	if len(batch) > 0 {
		out, err := s.ring.Reindex(ctx, batch)
		if err == nil && len(out) != len(batch) {
			err = errShape
		}
		if err != nil {
			return nil, failure(keys.CodeOf(err), "")
		}
		for j, r := range out {
			if r.Err == nil && len(r.Tokens) != len(batch[j].Values) {
				r.Err = errShape
			}
			if r.Err != nil {
				resp.Subjects[where[j]] = &keyspb.ReindexedSubject{Code: keys.CodeOf(r.Err)}
				continue
			}
			p := &keyspb.ReindexedSubject{Ref: r.Ref, Values: make([]*keyspb.IndexTokens, len(r.Tokens))}
			for n, tokens := range r.Tokens {
				p.Values[n] = &keyspb.IndexTokens{Tokens: indexTokens(tokens)}
			}
			resp.Subjects[where[j]] = p
		}
	}
	resp.Generation = s.ring.Generation()
	return resp, nil
}

func resealSubject(p *keyspb.ResealSubject) (keyring.ResealSubject, error) {
	id, err := subjectID(p.GetSubject())
	if err != nil {
		return keyring.ResealSubject{}, err
	}
	s := keyring.ResealSubject{Subject: id, Items: make([]keyring.ResealItem, len(p.Items))}
	for i, item := range p.Items {
		if s.Items[i], err = resealItem(item); err != nil {
			return keyring.ResealSubject{}, err
		}
	}
	return s, nil
}

// resealItem demands the members that the kind has, and none of another's.
func resealItem(p *keyspb.ResealItem) (keyring.ResealItem, error) {
	q := keyring.ResealItem{
		Collection: p.GetCollection(), Field: p.GetField(), Version: p.GetVersion(), Normaliser: p.GetNormaliser(), Ciphertext: p.GetCiphertext(),
	}
	limit, named := MaxCiphertext, true
	switch p.GetKind() {
	case keyspb.ResealItem_FIELD:
		q.Kind, q.Normaliser = keyring.ItemField, 0
	case keyspb.ResealItem_INDEX:
		q.Kind, q.Version = keyring.ItemIndex, 0
		limit = 2 * MaxIndexValue
	case keyspb.ResealItem_DETAIL:
		q.Kind, q.Version, q.Normaliser, named = keyring.ItemDetail, 0, 0, false
	default:
		return keyring.ResealItem{}, invalid("kind")
	}
	switch {
	case q.Version != p.GetVersion(), q.Normaliser != p.GetNormaliser(), len(q.Ciphertext) == 0, len(q.Ciphertext) > limit:
		return keyring.ResealItem{}, invalid("item")
	case named && (!isName(q.Collection) || !isName(q.Field)), !named && (q.Collection != "" || q.Field != ""):
		return keyring.ResealItem{}, invalid("name")
	}
	return q, nil
}

func reindexSubject(p *keyspb.ReindexSubject) (keyring.ReindexSubject, error) {
	id, err := subjectID(p.GetSubject())
	if err != nil {
		return keyring.ReindexSubject{}, err
	}
	s := keyring.ReindexSubject{Subject: id, Values: make([]keyring.IndexValue, len(p.Values))}
	for i, v := range p.Values {
		if !isName(v.GetCollection()) || !isName(v.GetField()) || v.GetValue() != "" || len(v.GetSealed()) == 0 || len(v.GetSealed()) > 2*MaxIndexValue {
			return keyring.ReindexSubject{}, invalid("index value")
		}
		s.Values[i] = keyring.IndexValue{Collection: v.Collection, Field: v.Field, Normaliser: v.Normaliser, Sealed: v.Sealed}
	}
	return s, nil
}
