package access

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

// noSubject stands where a request names no subject.
var noSubject uuid.UUID

// CreateSubject makes a subject with its first records, all or nothing. Possible errors: *DeniedError,
// *schema.ValidationError, *FieldError, *NotUniqueError, ErrIdempotencyMismatch, ErrBusy and the errors
// of ledger and sidecar; after any error nothing was written.
func (b *Broker) CreateSubject(ctx context.Context, q CreateRequest) (Written, error) {
	if len(q.Records) == 0 {
		return Written{}, &FieldError{"/records", "must name at least one collection"}
	}
	b.load.Add(1)
	return again(func() (Written, error) {
		p := b.current.Load()
		records := make(map[*schema.Collection]vault.Plain, len(q.Records))
		for _, name := range slices.Sorted(maps.Keys(q.Records)) {
			c, plain, err := b.admitWrite(ctx, p, q.Request, noSubject, name, q.Records[name])
			if err != nil {
				return Written{}, err
			}
			records[c] = plain
		}
		before, done, err := b.replay(ctx, q.Request, q.Idempotency)
		if err != nil || done {
			return Written{Subject: before.Subject, Version: before.Version, Created: true, Record: before.Entry}, err
		}
		if err := b.budgets.conflictLeft(p, q.Caller.ID, b.now()); err != nil {
			return Written{}, err
		}
		index, err := b.indexState(ctx)
		if err != nil {
			return Written{}, err
		}
		subject := uuid.New()
		begun := time.Now()
		prepared, err := b.vault.Create(ctx, subject, index, records)
		if err != nil {
			return Written{}, b.mapSeal(ctx, nil, err)
		}
		entry := b.writeEntry(verify.KindSubjectCreated, q.Request, p, prepared)
		receipt, err := b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
			// The idempotency key is checked first: who lost a race for it must not hear that the values
			// are taken, by the winner.
			var change kv.Change
			before.keep(&change, outcome{Subject: subject, Version: 1, Entry: at.Index, At: at.Time})
			change.Merge(prepared.Change(at.Index, at.Time))
			p.expect(&change)
			b.expectFresh(&change, begun)
			return change
		})
		if err := b.mapAppend(ctx, err); err != nil {
			return Written{}, b.conflict(ctx, p, q.Request, noSubject, err)
		}
		b.remember(subject, prepared.Ref)
		return Written{Subject: subject, Version: 1, Created: true, Record: receipt.Index}, nil
	})
}

// PutRecord writes a whole record. An existing one must be named by its version.
func (b *Broker) PutRecord(ctx context.Context, q WriteRequest) (Written, error) {
	b.load.Add(1)
	return again(func() (Written, error) {
		p := b.current.Load()
		c, plain, err := b.admitWrite(ctx, p, q.Request, q.Subject, q.Collection, q.Body)
		if err != nil {
			return Written{}, err
		}
		s, err := b.admitSubject(ctx, p, q, policy.ActionWrite)
		if err != nil {
			return Written{}, err
		}
		if err := precondition(q, s); err != nil {
			return Written{}, err
		}
		if err := b.budgets.conflictLeft(p, q.Caller.ID, b.now()); err != nil {
			return Written{}, err
		}
		prepared, err := b.vault.Put(ctx, s, c, plain)
		if err != nil {
			return Written{}, b.mapSeal(ctx, s, err)
		}
		w, err := b.commit(ctx, q.Request, p, verify.KindRecordWritten, prepared)
		w.Created = s.Rows[q.Collection] == nil
		return w, err
	})
}

// PatchRecord changes fields of a record by a merge patch. Fields that the patch does not name are resealed
// inside the sidecar. The patched record is validated as far as it can be without opening the rest: the
// named fields by their schemas, and the presence of required fields.
func (b *Broker) PatchRecord(ctx context.Context, q WriteRequest) (Written, error) {
	b.load.Add(1)
	return again(func() (Written, error) {
		p := b.current.Load()
		if err := b.permit(ctx, p, q.Request, policy.ActionWrite, q.Collection, q.Subject); err != nil {
			return Written{}, err
		}
		c, ok := p.bundle.Collection(q.Collection)
		if !ok {
			return Written{}, ErrNotFound
		}
		s, err := b.admitSubject(ctx, p, q, policy.ActionWrite)
		if err != nil {
			return Written{}, err
		}
		row := s.Rows[q.Collection]
		if row == nil {
			return Written{}, ErrNotFound
		}
		if err := precondition(q, s); err != nil {
			return Written{}, err
		}
		set, remove, err := c.MergePatch(q.Body)
		if err != nil {
			return Written{}, err
		}
		if err := b.budgets.conflictLeft(p, q.Caller.ID, b.now()); err != nil {
			return Written{}, err
		}
		prepared, err := b.vault.Patch(ctx, s, c, set, remove)
		if err != nil {
			return Written{}, b.mapSeal(ctx, s, err)
		}
		return b.commit(ctx, q.Request, p, verify.KindRecordWritten, prepared)
	})
}

// DeleteRecord removes a record.
func (b *Broker) DeleteRecord(ctx context.Context, q WriteRequest) (Written, error) {
	return again(func() (Written, error) {
		p := b.current.Load()
		if err := b.permit(ctx, p, q.Request, policy.ActionDelete, q.Collection, q.Subject); err != nil {
			return Written{}, err
		}
		s, err := b.admitSubject(ctx, p, q, policy.ActionDelete)
		if err != nil {
			return Written{}, err
		}
		if s.Rows[q.Collection] == nil {
			return Written{}, ErrNotFound
		}
		if err := precondition(q, s); err != nil {
			return Written{}, err
		}
		prepared, err := b.vault.Delete(s, q.Collection)
		if err != nil {
			return Written{}, err
		}
		ref, _, err := b.ref(ctx, q.Subject, nil)
		if err != nil {
			return Written{}, err
		}
		prepared.Ref = ref[:]
		return b.commit(ctx, q.Request, p, verify.KindRecordDeleted, prepared)
	})
}

// SetRestriction sets or lifts the restriction of processing: while it is set, only ground law reads.
func (b *Broker) SetRestriction(ctx context.Context, r Request, subject uuid.UUID, on bool, reason string) (Written, error) {
	return again(func() (Written, error) {
		p := b.current.Load()
		if err := b.permit(ctx, p, r, policy.ActionRestrict, "", subject); err != nil {
			return Written{}, err
		}
		s, err := b.subjectState(ctx, subject)
		if err != nil {
			return Written{}, absent(err)
		}
		salted, commit := newDetail(r, "", reason).encode()
		ref, sealed, err := b.ref(ctx, subject, salted)
		if err != nil {
			return Written{}, err
		}
		kind := verify.KindRestrictionLift
		if on {
			kind = verify.KindRestrictionSet
		}
		entry := b.newEntry(kind, r)
		entry.SubjectRef, entry.Policy, entry.DetailCommit = encodeRef(ref[:]), p.Version, commit
		receipt, err := b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
			change := b.vault.SetRestriction(s, on)
			p.expect(&change)
			if sealed != nil {
				change.Set(detailKey(at.Index), sealed)
			}
			return change
		})
		if err := b.mapAppend(ctx, err); err != nil {
			return Written{}, err
		}
		return Written{Subject: subject, Version: s.Head.Version + 1, Record: receipt.Index}, nil
	})
}

// Describe returns the metadata of a subject: no personal data.
func (b *Broker) Describe(ctx context.Context, r Request, subject uuid.UUID) (SubjectInfo, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionDescribe, "", subject); err != nil {
		return SubjectInfo{}, err
	}
	var s *vault.Subject
	var l *consent.List
	err := b.store.View(ctx, func(reader kv.Reader) error {
		var err error
		if s, err = vault.Load(reader, subject); err != nil {
			return err
		}
		l, err = consent.Load(reader, subject)
		return err
	})
	if err != nil {
		return SubjectInfo{}, absent(err)
	}
	info := SubjectInfo{
		ID: subject, Version: s.Head.Version, Created: s.Head.Created, Restricted: s.Head.Restricted,
		Records: make(map[string]RecordInfo), Consents: b.present(l),
	}
	for name, record := range s.Head.Records {
		if !record.Deleted {
			info.Records[name] = RecordInfo{Version: record.Version, Entry: record.Entry}
		}
	}
	return info, nil
}

// admitWrite permits the write and validates the record.
func (b *Broker) admitWrite(ctx context.Context, p *published, r Request, subject uuid.UUID, collection string, body []byte) (*schema.Collection, vault.Plain, error) {
	if err := b.permit(ctx, p, r, policy.ActionWrite, collection, subject); err != nil {
		return nil, nil, err
	}
	c, ok := p.bundle.Collection(collection)
	if !ok {
		return nil, nil, &FieldError{"collection", "is not one of the policy's collections"}
	}
	if err := c.Validate(body); err != nil {
		return nil, nil, err
	}
	plain, err := c.Split(body)
	if err != nil {
		return nil, nil, err
	}
	return c, plain, nil
}

// admitSubject loads the subject of a write, and decides again now that its state is known: a restricted
// person's records stay as they are.
func (b *Broker) admitSubject(ctx context.Context, p *published, q WriteRequest, action string) (*vault.Subject, error) {
	s, err := b.subjectState(ctx, q.Subject, q.Collection)
	if err != nil {
		return nil, absent(err)
	}
	if err := b.permitOn(ctx, p, q.Request, action, q.Collection, s); err != nil {
		return nil, err
	}
	return s, nil
}

// conflict records that a write was refused because a unique value is taken. That answer tells as much as a
// lookup does, so it is on record like one, has a budget, and is not given to a caller whose budget is used up. It returns err, or why it could not be recorded.
func (b *Broker) conflict(ctx context.Context, p *published, r Request, subject uuid.UUID, err error) error {
	var taken *NotUniqueError
	if !errors.As(err, &taken) {
		return err
	}
	if limited := b.budgets.conflict(p, r.Caller.ID, b.now()); limited != nil {
		return limited
	}
	return b.recordDenial(ctx, p, r, denial{
		decision: policy.Decision{Reason: reasonNotUnique}, subject: subject, collection: taken.Collection,
		fields: []string{taken.Field}, mode: verify.ModeLookup, result: err,
	})
}

// reasonNotUnique is recorded when a write was refused because another subject has the value.
const reasonNotUnique = "not-unique"

// indexState is which keys of the blind index a new subject is written for.
func (b *Broker) indexState(ctx context.Context) (state vault.IndexState, err error) {
	err = b.store.View(ctx, func(r kv.Reader) error {
		state, err = vault.LoadIndexState(r)
		return err
	})
	return state, err
}

// mapSeal gives an error of sealing its meaning: errAgain when the state that it was prepared on is no longer there.
// s is the subject that was loaded; nil for a new one.
func (b *Broker) mapSeal(ctx context.Context, s *vault.Subject, err error) error {
	if errors.Is(err, vault.ErrStale) {
		return errAgain
	}
	if s == nil || !b.stale(err) {
		return err
	}
	// A field that the write carries over does not open: it was sealed again, or it is damaged.
	now, loadErr := b.subjectState(ctx, s.ID)
	if loadErr == nil && now.Head.Version != s.Head.Version || errors.Is(loadErr, vault.ErrNoSubject) {
		return errAgain
	}
	return err
}

// precondition compares what the caller saw with what is there.
func precondition(q WriteRequest, s *vault.Subject) error {
	row := s.Rows[q.Collection]
	switch {
	case q.IfAbsent && row != nil, q.IfMatch != nil && (row == nil || row.Version != *q.IfMatch):
		return ErrVersion
	case row != nil && q.IfMatch == nil:
		return ErrVersionRequired
	}
	return nil
}

// writeEntry is the ledger entry of a prepared write.
func (b *Broker) writeEntry(kind string, r Request, p *published, prepared *vault.Prepared) verify.Entry {
	entry := b.newEntry(kind, r)
	entry.SubjectRef, entry.Policy = encodeRef(prepared.Ref), p.Version
	for _, item := range prepared.Records {
		entry.Records = append(entry.Records, verify.RecordChange{
			Collection: item.Collection, Version: item.Version, Fields: item.Fields, Digest: item.Digest,
		})
	}
	return entry
}

// commit appends the entry of a prepared write of one record together with its effects.
func (b *Broker) commit(ctx context.Context, r Request, p *published, kind string, prepared *vault.Prepared) (Written, error) {
	receipt, err := b.ledger.Append(ctx, b.writeEntry(kind, r, p, prepared), func(at ledger.Position) kv.Change {
		change := prepared.Change(at.Index, at.Time)
		p.expect(&change)
		return change
	})
	if err := b.mapAppend(ctx, err); err != nil {
		return Written{}, b.conflict(ctx, p, r, prepared.Subject(), err)
	}
	return Written{Subject: prepared.Subject(), Version: prepared.Records[0].Version, Record: receipt.Index}, nil
}

// absent maps an absent or erased subject to ErrNotFound.
func absent(err error) error {
	if errors.Is(err, vault.ErrNoSubject) || errors.Is(err, vault.ErrNoRecord) {
		return ErrNotFound
	}
	return err
}

// present returns the consents with their states now.
func (b *Broker) present(l *consent.List) []Consent {
	now := b.now()
	out := slices.Clone(l.Consents)
	for i := range out {
		out[i].State = out[i].StateAt(now)
	}
	return out
}
