package access

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// maxRenewedEntry bounds what one entry says of subjects, well below verify.MaxEntrySize.
const maxRenewedEntry = 48 << 10

// unit is what a rotation changes of one subject: all of it is committed, or none.
type unit struct {
	id      uuid.UUID
	ref     []byte
	records []verify.RecordChange
	change  kv.Change
	size    int // of the change
	text    int // of what the entry says
}

func newUnit(ref []byte, r *vault.Renewed) unit {
	u := unit{id: r.Subject(), ref: ref, change: r.Change()}
	for _, item := range r.Records {
		u.records = append(u.records, verify.RecordChange{Collection: item.Collection, Version: item.Version, Digest: item.Digest})
	}
	return u
}

// close makes the failing of any condition name the subject. One condition is that it is not erased: a detail is
// committed without its head, and what the transaction of an erasure has left of details must not be recorded as
// sealed again behind it.
func (u *unit) close() {
	u.change.Expect(pendingKey(u.id), nil, vault.ErrStale)
	stale := &vault.StaleError{Subject: u.id}
	for i, c := range u.change.Checks {
		if !errors.Is(c.Else, vault.ErrNotUnique) {
			u.change.Checks[i].Else = stale
		}
	}
	u.size = 0
	for _, p := range u.change.Sets {
		u.size += len(p.Key) + len(p.Value)
	}
	u.text = 96
	for _, r := range u.records {
		u.text += 112 + len(r.Collection)
	}
}

// commit appends units, in as few entries as their size allows, and returns the subjects whose state had changed:
// nothing of theirs was committed.
func (r *Rotator) commit(ctx context.Context, kind string, keys *verify.KeyChange, units []unit) (again map[uuid.UUID]struct{}, err error) {
	again = make(map[uuid.UUID]struct{})
	for len(units) > 0 {
		n, size, text := 0, 0, 0
		for n < len(units) && (n == 0 || size+units[n].size <= rekeyBytes && text+units[n].text <= maxRenewedEntry) {
			size, text, n = size+units[n].size, text+units[n].text, n+1
		}
		if err := r.commitTogether(ctx, kind, keys, units[:n], again); err != nil {
			return nil, err
		}
		units = units[n:]
	}
	return again, nil
}

// commitTogether appends one entry, leaving out the subjects whose state had changed.
func (r *Rotator) commitTogether(ctx context.Context, kind string, keys *verify.KeyChange, units []unit, again map[uuid.UUID]struct{}) error {
	for len(units) > 0 {
		entry := r.broker.newEntry(kind, systemRequest)
		entry.Keys = keys
		var change kv.Change
		for _, u := range units {
			change.Merge(u.change)
			records := u.records
			if records == nil {
				records = []verify.RecordChange{}
			}
			entry.Resealed = append(entry.Resealed, verify.Resealed{SubjectRef: encodeRef(u.ref), Records: records})
		}
		_, err := r.broker.ledger.Append(ctx, entry, func(ledger.Position) kv.Change { return change })
		var stale *vault.StaleError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &stale):
			again[stale.Subject] = struct{}{}
			left := make([]unit, 0, len(units)-1)
			for _, u := range units {
				if u.id != stale.Subject {
					left = append(left, u)
				}
			}
			units = left
		case len(units) > 1 && (errors.Is(err, kv.ErrTooLarge) || errors.Is(err, ledger.ErrEntryTooLarge)):
			half := len(units) / 2
			if err := r.commitTogether(ctx, kind, keys, units[:half], again); err != nil {
				return err
			}
			units = units[half:]
		default:
			return wrapf(err, "committing a rotation")
		}
	}
	return nil
}
