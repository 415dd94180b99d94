package access

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// pendingErasure is an erasure that is in the ledger, and whose rows are gone, but whose key may be there still.
//
// Stored as JSON under 'z' ‖ subject, from the transaction of subject.erased to that of key.destroyed.
type pendingErasure struct {
	Entry int64     `json:"e"`  // index of subject.erased
	ID    uuid.UUID `json:"id"` // of the certificate
	Salt  string    `json:"s"`  // of the entry's commitment to the subject

	subject uuid.UUID
	raw     []byte // the row
}

// finishedErasure is where the entries of a certificate are. It leads to nobody.
//
// Stored as JSON under 'e' ‖ certificate id.
type finishedErasure struct {
	Erased    int64 `json:"erased"`    // index of subject.erased
	Destroyed int64 `json:"destroyed"` // index of key.destroyed
}

func pendingKey(subject uuid.UUID) []byte { return append([]byte{'z'}, subject[:]...) }
func finishedKey(id uuid.UUID) []byte     { return append([]byte{'e'}, id[:]...) }

const (
	// detailsAtOnce bounds how many entries' details, and rows of the index by subject, one transaction deletes.
	// What an erasure leaves of them is deleted by whoever finishes it; it opens no more by then.
	detailsAtOnce = 1000
	// maxErasedNames bounds the names of fields that an entry lists, in bytes. Of more than that it lists the
	// collections, since no person may have too much data to be erased.
	maxErasedNames = 24 << 10
)

// errFinished is returned, through a condition, when another has finished the erasure.
var errFinished = errors.New("access: erasure is finished already")

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

// FinishErasures finishes what a crash, or a sidecar that could not answer, has left half done. It is run at
// the start, before anything is served, and then from time to time, by the owner of the broker. One that
// cannot be finished does not hold up the others.
func (b *Broker) FinishErasures(ctx context.Context) (finished int, err error) {
	unfinished, err := b.pendingErasures(ctx)
	if err != nil {
		return 0, err
	}
	system := Request{Caller: verify.Caller{ID: "system", Kind: "system", Role: "system", Authn: "local"}}
	var errs []error
	for _, pending := range unfinished {
		if _, err := b.finish(ctx, system, pending); err != nil {
			errs = append(errs, fmt.Errorf("finishing erasure %s: %w", pending.ID, err))
			continue
		}
		finished++
	}
	return finished, errors.Join(errs...)
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
		return nil, err
	}
	rows, details, err := b.detailsOf(ctx, ref[:])
	if err != nil {
		return nil, err
	}
	deletions, err := t.subject.Erase()
	if err != nil {
		return nil, err
	}
	deletions.Merge(t.consents.Erase())
	deletions.Merge(t.outcomes)
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
		if t.subject, err = vault.LoadWhole(r, subject); err != nil {
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

// finish destroys the key and records that. Each of its steps can be repeated, and the last one ends it for
// whoever comes to it first.
func (b *Broker) finish(ctx context.Context, r Request, pending *pendingErasure) (finishedErasure, error) {
	raw, err := b.ledger.Entry(ctx, pending.Entry)
	if err != nil {
		return finishedErasure{}, wrapf(err, "reading the erasure")
	}
	erased, err := verify.ParseEntry(raw)
	if err != nil || erased.Kind != verify.KindSubjectErased || erased.Erasure == nil || erased.Erasure.ID != pending.ID.String() {
		return finishedErasure{}, wrapf(ErrIntegrity, "a pending erasure is not the one in the ledger")
	}
	ref, err := verify.ParseRef(erased.SubjectRef)
	if err != nil {
		return finishedErasure{}, wrapf(ErrIntegrity, "an erasure names no subject")
	}
	destroyed, err := b.opener.Destroy(ctx, pending.Entry, raw, pending.subject)
	if err != nil {
		return finishedErasure{}, wrapf(err, "destroying the key")
	}
	if err := b.sweepDetails(ctx, ref); err != nil {
		return finishedErasure{}, err
	}

	entry := b.newEntry(verify.KindKeyDestroyed, r)
	entry.SubjectRef, entry.Of = erased.SubjectRef, &pending.Entry
	entry.Erasure = &verify.Erasure{ID: erased.Erasure.ID, Generation: destroyed.Generation, KEKVersion: destroyed.KEKVersion}
	if !destroyed.DeadBy.IsZero() {
		entry.Erasure.DeadBy = verify.FormatTime(destroyed.DeadBy)
	}
	done := finishedErasure{Erased: pending.Entry}
	_, err = b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
		done.Destroyed = at.Index
		var change kv.Change
		change.Expect(pendingKey(pending.subject), pending.raw, errFinished)
		change.Delete(pendingKey(pending.subject))
		change.Set(finishedKey(pending.ID), encodeRow(&done))
		return change
	})
	b.refs.Remove(pending.subject) // should a call that was under way have put it back
	if errors.Is(err, errFinished) {
		return b.finished(ctx, pending.ID)
	}
	return done, b.mapAppend(ctx, err)
}

// sweepDetails deletes what the transaction of an erasure has left of the index by subject and of sealed details.
func (b *Broker) sweepDetails(ctx context.Context, ref []byte) error {
	ctx = kv.UseReserve(ctx) // it makes room
	for {
		rows, err := b.ledger.SubjectRows(ctx, ref, nil, detailsAtOnce)
		if err != nil {
			return wrapf(err, "looking for details")
		}
		if len(rows) == 0 {
			return nil
		}
		err = b.store.Update(ctx, func(w kv.Writer) error {
			for _, row := range rows {
				w.Delete(detailKey(indexIn(row)))
				w.Delete(row)
			}
			return nil
		})
		if err != nil {
			return wrapf(err, "deleting details")
		}
	}
}

// unfinished is the error of an erasure that is on record and could not be finished because of cause.
func (p *pendingErasure) unfinished(cause error) error {
	return &PendingErasureError{ID: p.ID, Entry: p.Entry, Salt: p.Salt, Cause: cause}
}

// pendingErasures returns all erasures that are not finished.
func (b *Broker) pendingErasures(ctx context.Context) ([]*pendingErasure, error) {
	var all []*pendingErasure
	err := b.store.View(ctx, func(r kv.Reader) error {
		all = nil
		var after []byte
		for {
			pairs, err := r.Scan([]byte{'z'}, after, 100)
			if err != nil {
				return err
			}
			for _, pair := range pairs {
				subject, err := uuid.FromBytes(pair.Key[1:])
				if err != nil {
					return wrapf(ErrIntegrity, "key of a pending erasure")
				}
				pending, err := parsePending(subject, pair.Value)
				if err != nil {
					return err
				}
				all, after = append(all, pending), pair.Key
			}
			if len(pairs) < 100 {
				return nil
			}
		}
	})
	return all, wrapNotNil(err, "looking for pending erasures")
}

// finished returns where the entries of a certificate are, or ErrNotFound.
func (b *Broker) finished(ctx context.Context, id uuid.UUID) (done finishedErasure, err error) {
	err = b.store.View(ctx, func(r kv.Reader) error {
		rows, err := r.Get(finishedKey(id))
		switch {
		case err != nil:
			return err
		case rows[0] == nil:
			return ErrNotFound
		}
		if json.Unmarshal(rows[0], &done, json.RejectUnknownMembers(true)) != nil {
			return wrapf(ErrIntegrity, "row of an erasure")
		}
		return nil
	})
	return done, err
}

func parsePending(subject uuid.UUID, raw []byte) (*pendingErasure, error) {
	p := &pendingErasure{subject: subject, raw: bytes.Clone(raw)}
	if err := json.Unmarshal(raw, p, json.RejectUnknownMembers(true)); err != nil {
		return nil, wrapf(ErrIntegrity, "row of a pending erasure")
	}
	return p, nil
}

func wrapNotNil(err error, doing string) error {
	if err == nil {
		return nil
	}
	return wrapf(err, doing)
}
