package access

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	// detailsAtOnce bounds how many entries' details, and rows of the index by subject, one transaction deletes.
	// What an erasure leaves of them is deleted by whoever finishes it; it opens no more by then.
	detailsAtOnce = 1000
	// maxErasedNames bounds the names of fields that an entry lists, in bytes. Of more than that it lists the
	// collections, since no person may have too much data to be erased.
	maxErasedNames = 24 << 10
)

// Erase erases a person: in one transaction every record, index row, consent and sealed detail is deleted and
// the erasure is recorded; then the key is destroyed. From the moment that the transaction commits nothing
// allowed follows about the subject, and nobody without rights can tell it from one that never was.
//
// The certificate names the subject. Nobody keeps what it takes to do so, so a later one does not.
//
// Possible errors: *DeniedError, *FieldError, ErrNotFound also for a subject that was erased before, ErrBusy,
// ErrIntegrity, *PendingErasureError when the data is gone and the erasure on record, but the key could not yet
// be destroyed (asking again goes on with it, and so does FinishErasures); and the errors of ledger and
// sidecar, after which nothing was erased, but for ledger.ErrUnavailable, which leaves that open.
func (b *Broker) Erase(ctx context.Context, q EraseRequest) (erasure.Certificate, error) {
	pending, err := again(func() (*pendingErasure, error) { return b.erase(ctx, q) })
	if err != nil {
		return erasure.Certificate{}, err
	}
	done, err := b.finish(ctx, q.Request, pending)
	if err != nil {
		return erasure.Certificate{}, pending.unfinished(err)
	}
	c, err := b.certificate(ctx, done)
	if err != nil {
		return erasure.Certificate{}, err
	}
	c.Subject, c.Salt = q.Subject.String(), pending.Salt
	return c, nil
}

// Erasure returns the certificate of an earlier erasure, which is final once an epoch has ended since. It names
// no subject. Of an erasure that is not finished it fails with *PendingErasureError.
func (b *Broker) Erasure(ctx context.Context, r Request, id uuid.UUID) (erasure.Certificate, error) {
	p := b.current.Load()
	if !b.decide(p, r, policy.Request{Action: policy.ActionErase}).Allow {
		if err := b.permit(ctx, p, r, policy.ActionAccessRecords, "", noSubject); err != nil {
			return erasure.Certificate{}, err
		}
	}
	done, err := b.finished(ctx, id)
	if errors.Is(err, ErrNotFound) {
		unfinished, scanErr := b.pendingErasures(ctx)
		if scanErr != nil {
			return erasure.Certificate{}, scanErr
		}
		for _, pending := range unfinished {
			if pending.ID == id {
				pending.Salt = "" // it is for who erased
				return erasure.Certificate{}, pending.unfinished(nil)
			}
		}
	}
	if err != nil {
		return erasure.Certificate{}, err
	}
	return b.certificate(ctx, done)
}

// erase is one attempt at the transaction. Of a subject that is erased already it returns what is pending.
func (b *Broker) erase(ctx context.Context, q EraseRequest) (*pendingErasure, error) {
	p := b.current.Load()
	if err := b.permit(ctx, p, q.Request, policy.ActionErase, "", q.Subject); err != nil {
		return nil, err
	}
	if _, known := erasure.FindReason(q.Reason); !known {
		return nil, &FieldError{"/reason", "is not one of the codes of a reason"}
	}
	t, err := b.target(ctx, q.Subject)
	if err != nil {
		return nil, absent(err)
	}
	if t.pending != nil {
		return t.pending, nil
	}
	if err := b.permitOn(ctx, p, q.Request, policy.ActionErase, "", t.subject); err != nil {
		return nil, err
	}
	// The reference dies with the key: it is asked for first.
	ref, _, err := b.ref(ctx, q.Subject, nil)
	if err != nil {
		if _, now := b.subjectState(ctx, q.Subject); errors.Is(now, vault.ErrNoSubject) {
			return nil, errAgain // another erasure was faster, and its key is gone already
		}
		return nil, err
	}
	rows, details, err := b.detailsOf(ctx, ref[:])
	if err != nil {
		return nil, err
	}
	deletions, err := t.deletions()
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		deletions.Delete(row)
		deletions.Delete(detailKey(indexIn(row)))
	}

	pending := &pendingErasure{ID: uuid.Must(uuid.NewV7()), subject: q.Subject}
	entry := b.newEntry(verify.KindSubjectErased, q.Request)
	entry.SubjectRef, entry.Policy, entry.Reason = encodeRef(ref[:]), p.Version, q.Reason
	pending.Salt, entry.DetailCommit = erasure.Commit(q.Subject.String())
	entry.Erasure = p.describe(t.subject)
	entry.Erasure.ID, entry.Erasure.Consents, entry.Erasure.Details = pending.ID.String(), len(t.consents.Consents), details
	_, err = b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
		pending.Entry = at.Index
		pending.raw = encodeRow(pending)
		var change kv.Change
		p.expect(&change)
		change.Merge(deletions)
		change.Expect(pendingKey(q.Subject), nil, wrapf(ErrIntegrity, "an erasure of a subject that is there is pending"))
		change.Set(pendingKey(q.Subject), pending.raw)
		return change
	})
	if err := b.mapAppend(ctx, err); err != nil {
		return nil, err
	}
	b.refs.Remove(q.Subject)
	return pending, nil
}

// target is the state of a subject that is to be erased, as one snapshot showed it.
type target struct {
	pending  *pendingErasure // when it was erased already, and nothing else is set
	subject  *vault.Subject
	consents *consent.List
	outcomes kv.Change // what becomes of the outcomes of idempotency keys
}

// target loads everything that an erasure deletes, but for details.
func (b *Broker) target(ctx context.Context, subject uuid.UUID) (*target, error) {
	t := new(target)
	err := b.store.View(ctx, func(r kv.Reader) error {
		rows, err := r.Get(pendingKey(subject))
		if err != nil {
			return err
		}
		if rows[0] != nil {
			t.pending, err = parsePending(subject, rows[0])
			return err
		}
		if t.subject, err = vault.LoadAll(r, subject); err != nil {
			return err
		}
		if t.consents, err = consent.Load(r, subject); err != nil {
			return err
		}
		t.outcomes, err = forgetOutcomes(r, subject)
		return err
	})
	return t, err
}

// deletions is the change that leaves nothing of the subject but a tombstone, and details.
func (t *target) deletions() (kv.Change, error) {
	change, err := t.subject.Erase()
	if err != nil {
		return kv.Change{}, err
	}
	change.Merge(t.consents.Erase())
	change.Merge(t.outcomes)
	return change, nil
}

// detailsOf returns the first rows of the index by subject, and the number of sealed details in all. Details
// that are added meanwhile are not counted, and deleted like the others.
func (b *Broker) detailsOf(ctx context.Context, ref []byte) (first [][]byte, details int, err error) {
	var after []byte
	for {
		rows, err := b.ledger.SubjectRows(ctx, ref, after, detailsAtOnce)
		if err != nil {
			return nil, 0, wrapf(err, "looking for details")
		}
		if len(rows) == 0 {
			return first, details, nil
		}
		if first == nil {
			first = rows
		}
		after = rows[len(rows)-1]
		keys := make([][]byte, len(rows))
		for i, row := range rows {
			keys[i] = detailKey(indexIn(row))
		}
		err = b.store.View(ctx, func(r kv.Reader) error {
			found, err := r.Get(keys...)
			for _, detail := range found {
				if detail != nil {
					details++
				}
			}
			return err
		})
		if err != nil {
			return nil, 0, wrapf(err, "counting details")
		}
	}
}

// indexIn returns the index of the entry that a row of the ledger's index by subject is about.
func indexIn(row []byte) int64 { return int64(binary.BigEndian.Uint64(row[len(row)-8:])) }

// describe says what data of s there is to erase, without values.
func (p *published) describe(s *vault.Subject) *verify.Erasure {
	e := &verify.Erasure{Method: verify.MethodCryptographicErase, Operator: p.bundle.Operator().Name}
	size := 0
	for name, row := range s.Rows {
		c, known := p.bundle.Collection(name)
		for _, f := range row.Fields {
			e.Fields = append(e.Fields, name+"."+f.Name)
			size += len(name) + len(f.Name) + len(`".",`)
			if !known {
				continue
			}
			if field, ok := c.Field(f.Name); ok && field.Category != "" {
				e.Categories = append(e.Categories, field.Category)
			}
		}
	}
	if size > maxErasedNames {
		e.Fields = e.Fields[:0]
		for _, name := range slices.Sorted(maps.Keys(s.Rows)) {
			e.Fields = append(e.Fields, name+".*")
		}
	}
	slices.Sort(e.Fields)
	slices.Sort(e.Categories)
	e.Categories = slices.Compact(e.Categories)
	return e
}
