package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
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

// errFinished is returned, through a condition, when another has finished the erasure.
var errFinished = errors.New("access: erasure is finished already")

// FinishErasures finishes what a crash, or a sidecar that could not answer, has left half done. It is run at
// the start, before anything is served, and then from time to time, by the owner of the broker. One that
// cannot be finished does not hold up the others.
func (b *Broker) FinishErasures(ctx context.Context) (finished int, err error) {
	unfinished, err := b.pendingErasures(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, pending := range unfinished {
		if _, err := b.finish(ctx, systemRequest, pending); err != nil {
			errs = append(errs, fmt.Errorf("finishing erasure %s: %w", pending.ID, err))
			continue
		}
		finished++
	}
	return finished, errors.Join(errs...)
}

// PendingErasures counts the erasures that are on record and not finished.
func (b *Broker) PendingErasures(ctx context.Context) (int, error) {
	pending, err := b.pendingErasures(ctx)
	return len(pending), err
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
