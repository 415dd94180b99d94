package access

import (
	"context"
	"errors"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

// Lookup finds subjects by the value of an indexed field. Each subject found is recorded as an access of
// mode lookup before it is named to the caller; a miss is recorded too. Lookups have a budget of their own,
// since an index can be tried with guesses.
func (b *Broker) Lookup(ctx context.Context, q LookupRequest) (LookupResult, error) {
	b.load.Add(1)
	return again(func() (LookupResult, error) { return b.lookup(ctx, q) })
}

func (b *Broker) lookup(ctx context.Context, q LookupRequest) (LookupResult, error) {
	p := b.current.Load()
	request := policy.Request{
		Action: policy.ActionLookup, Collection: q.Collection, Fields: []string{q.Field}, Purpose: q.Purpose,
		Mode: verify.ModeLookup, Justification: q.Justification != "", Subject: policy.Subject{Exists: true},
		Now: b.now(),
	}
	d := b.decide(p, q.Request, request)
	refusal := denial{
		decision: d, collection: q.Collection, fields: request.Fields, purpose: q.Purpose, mode: verify.ModeLookup,
		detail: newDetail(q.Request, q.Reference, q.Justification),
	}
	if !d.Allow {
		return LookupResult{}, b.recordDenial(ctx, p, q.Request, refusal)
	}
	c, _ := p.bundle.Collection(q.Collection) // the decision has seen it
	if f, ok := c.Field(q.Field); !ok || f.Index == schema.IndexNone {
		return LookupResult{}, &FieldError{"/field", "is not indexed"}
	}
	if err := b.budgets.lookup(p, q.Caller.ID, b.now()); err != nil {
		return LookupResult{}, err
	}
	value, normaliser, err := c.Normalise(q.Field, q.Value)
	if err != nil {
		return LookupResult{}, &FieldError{"/value", "is not a value that this field can have"}
	}
	tokens, err := b.opener.IndexTokens(ctx, q.Collection, q.Field, normaliser, value)
	if err != nil {
		return LookupResult{}, wrapf(err, "computing the index token")
	}

	var found []*vault.Subject
	err = b.store.View(ctx, func(r kv.Reader) error {
		found = nil
		ids, err := vault.Find(r, c, q.Field, tokens, MaxLookup)
		if err != nil {
			return err
		}
		for _, id := range ids {
			s, err := vault.Load(r, id, q.Collection)
			if errors.Is(err, vault.ErrNoSubject) {
				return wrapf(ErrIntegrity, "index names a subject that is not there")
			}
			if err != nil {
				return err
			}
			// A row of the index is believed only when the record says the same.
			if !s.Indexed(c, q.Field, normaliser, tokens) {
				return wrapf(ErrIntegrity, "index names a subject whose record does not")
			}
			found = append(found, s)
		}
		return nil
	})
	if errors.Is(err, vault.ErrStale) {
		return LookupResult{}, errAgain // the index key was replaced after the tokens were made
	}
	if err != nil {
		return LookupResult{}, wrapf(err, "looking up")
	}

	result := LookupResult{Subjects: []uuid.UUID{}}
	for _, s := range found {
		request.Subject = policy.Subject{Exists: true, Restricted: s.Head.Restricted}
		d := b.decide(p, q.Request, request)
		if !d.Allow {
			// A restricted subject is not found, and that somebody sought it is recorded.
			refusal.decision, refusal.subject = d, s.ID
			var denied *DeniedError
			if err := b.recordDenial(ctx, p, q.Request, refusal); !errors.As(err, &denied) {
				return LookupResult{}, err
			}
			result.Records = append(result.Records, denied.Record)
			continue
		}
		index, err := b.recordLookup(ctx, q, seen{policy: p, until: d.Until, subject: s}, d)
		if err != nil {
			return LookupResult{}, err
		}
		result.Subjects = append(result.Subjects, s.ID)
		result.Records = append(result.Records, index)
	}
	if len(result.Records) == 0 {
		index, err := b.recordLookup(ctx, q, seen{policy: p, until: d.Until}, d)
		if err != nil {
			return LookupResult{}, err
		}
		result.Records = append(result.Records, index)
	}
	return result, nil
}

// recordLookup appends the access of one subject found, or of a miss.
func (b *Broker) recordLookup(ctx context.Context, q LookupRequest, s seen, d policy.Decision) (int64, error) {
	entry := b.newEntry(verify.KindAccess, q.Request)
	entry.Recipient, entry.Collection, entry.Fields, entry.Mode = d.Recipient, q.Collection, []string{q.Field}, verify.ModeLookup
	entry.Purpose, entry.Ground, entry.Evidence = q.Purpose, d.Ground, d.Evidence
	entry.Policy, entry.Decision, entry.Rules = s.policy.Version, verify.Allow, d.Rules
	var sealed []byte
	if s.subject != nil {
		salted, commit := newDetail(q.Request, q.Reference, q.Justification).encode()
		ref, sealedDetail, err := b.ref(ctx, s.subject.ID, salted)
		if err != nil {
			return 0, err
		}
		entry.SubjectRef, entry.DetailCommit, sealed = encodeRef(ref[:]), commit, sealedDetail
	}
	receipt, err := b.append(ctx, entry, s, sealed)
	return receipt.Index, err
}

// Verify compares a supplied value with a field inside the sidecar. Only the outcome leaves it.
func (b *Broker) Verify(ctx context.Context, q VerifyRequest) (VerifyResult, error) {
	expect := jsontext.Value(q.Value).Clone()
	if err := expect.Canonicalize(); err != nil {
		return VerifyResult{}, &FieldError{"/value", "must be one JSON value"}
	}
	b.load.Add(1)
	if err := b.budgets.lookup(b.current.Load(), q.Caller.ID, b.now()); err != nil {
		return VerifyResult{}, err
	}
	read := ReadRequest{
		Request: q.Request, Subject: q.Subject, Collection: q.Collection, Fields: []string{q.Field},
		Purpose: q.Purpose, Mode: verify.ModeVerify, Reference: q.Reference, Justification: q.Justification,
	}
	return again(func() (VerifyResult, error) {
		g, err := b.grant(ctx, &read)
		if err != nil {
			return VerifyResult{}, err
		}
		result := VerifyResult{Record: g.index}
		_, opened, err := b.open(ctx, read, g, func(row *vault.Row) []OpenField {
			ciphertext := row.Field(q.Field)
			if ciphertext == nil {
				return nil
			}
			return []OpenField{{Field: q.Field, Ciphertext: ciphertext, Expect: expect}}
		}, nil)
		if err != nil {
			return VerifyResult{}, err
		}
		result.Match = len(opened) == 1 && opened[0].Match
		return result, nil
	})
}
