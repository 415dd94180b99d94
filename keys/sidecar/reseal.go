package sidecar

import (
	"context"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Reseal implements the call of this name. What is sealed again is never handed out: plaintext stays between two
// lines of the keyring.
//
// A rotation that was never begun is refused: bundles that name it would be passed over by those to come.
func (s *Server) Reseal(ctx context.Context, req *keyspb.ResealRequest) (*keyspb.ResealResponse, error) {
	if req.Rotation > s.ring.Rotation() || len(req.Subjects) == 0 || len(req.Subjects) > MaxItems || countItems(req.Subjects) > MaxResealItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
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

// Retire implements the call of this name. It takes no proof: who may write ciphertexts can lose them anyway.
func (s *Server) Retire(ctx context.Context, req *keyspb.RetireRequest) (*keyspb.RetireResponse, error) {
	if len(req.Subjects) == 0 || len(req.Subjects) > MaxItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
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
		for j, err := range out {
			resp.Codes[where[j]] = keys.CodeOf(err)
		}
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
