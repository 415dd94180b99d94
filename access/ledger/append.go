package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

// Position is where an entry is about to be in the log.
type Position struct {
	Index int64
	Time  time.Time // of the batch; what the entry will carry
}

// Receipt says where an entry is.
type Receipt struct {
	Index int64
	Entry []byte // as stored and hashed
	Time  time.Time
}

// timeUnset stands in an encoded entry until the committer knows the time.
const timeUnset = "0000-01-01T00:00:00.000Z"

// Append puts entry into the log and makes its effects in the same transaction. When it returns nil, both
// are durable and a checkpoint that includes the entry is published. It sets the entry's time.
//
// effects gives the change of state that belongs to the entry; it may be nil. The committer calls it, so
// it must be quick, must not call the ledger and must have no effects of its own: after a conflict it is
// called again, perhaps with another position. When a check of the change fails, this entry alone is
// refused with an error that wraps the check's Else, and no index is used up.
//
// Errors: a failed check's Else; ErrInvalidEntry, ErrEntryTooLarge; kv.ErrTooLarge when the effects are;
// kv.ErrStorageFull when storage is full and the kind of entry may not use the reserve; ErrUnavailable when
// the store failed; ErrClosed; the cause of ctx when it ended before the committer took the entry. Once the
// committer has it, the outcome is awaited whatever becomes of ctx.
func (l *Ledger) Append(ctx context.Context, entry verify.Entry, effects func(Position) kv.Change) (Receipt, error) {
	if err := ctx.Err(); err != nil {
		return Receipt{}, fmt.Errorf("appending to the ledger: %w", context.Cause(ctx))
	}
	it, err := newItem(entry, effects)
	if err != nil {
		return Receipt{}, err
	}
	if err := l.queue.push(it); err != nil {
		return Receipt{}, err
	}
	return it.receipt(ctx)
}

// Draft is an entry that is to be put into the log, with its effects, as Append has them.
type Draft struct {
	Entry   verify.Entry
	Effects func(Position) kv.Change
}

// Outcome is what became of a Draft: its receipt, or an error of Append.
type Outcome struct {
	Receipt Receipt
	Err     error
}

// AppendAll is Append for several entries, each with an outcome of its own. They share commits as far as they fit.
func (l *Ledger) AppendAll(ctx context.Context, drafts []Draft) []Outcome {
	out := make([]Outcome, len(drafts))
	items := make([]*item, 0, len(drafts))
	where := make([]int, 0, len(drafts))
	for i, d := range drafts {
		it, err := newItem(d.Entry, d.Effects)
		if err != nil {
			out[i].Err = err
			continue
		}
		items, where = append(items, it), append(where, i)
	}
	err := ctx.Err()
	if err != nil {
		err = fmt.Errorf("appending to the ledger: %w", context.Cause(ctx))
	} else {
		err = l.queue.push(items...)
	}
	for n, i := range where {
		if err != nil {
			out[i].Err = err
			continue
		}
		out[i].Receipt, out[i].Err = items[n].receipt(ctx)
	}
	return out
}

// newItem encodes the entry in its caller's goroutine, so that the committer only has to put the time in.
func newItem(entry verify.Entry, effects func(Position) kv.Change) (*item, error) {
	if entry.ID == "" || entry.Kind == "" {
		return nil, fmt.Errorf("%w: it has no id or no kind", ErrInvalidEntry)
	}
	it := &item{reserve: mayUseReserve(entry), effects: effects, done: make(chan result, 1)}
	if entry.SubjectRef != "" {
		ref, err := verify.ParseRef(entry.SubjectRef)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalidEntry, err)
		}
		if indexed(entry) {
			it.ref = ref
		}
	}
	entry.Time = timeUnset
	encoded, err := verify.Encode(entry)
	if errors.Is(err, verify.ErrEntry) {
		return nil, fmt.Errorf("%w: %w", ErrEntryTooLarge, err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidEntry, err)
	}
	// Quotes inside of JSON strings are escaped, so the first match is the member itself.
	member := []byte(`"time":"` + timeUnset + `"`)
	at := bytes.Index(encoded, member)
	if at < 0 {
		return nil, fmt.Errorf("%w: it has no time", ErrInvalidEntry)
	}
	it.entry, it.timeAt = encoded, at+len(`"time":"`)
	return it, nil
}

// mayUseReserve reports whether an entry is written even when storage is full: those without which reads
// would stop, and those by which a person's rights are served. Denials are not among them, or a caller
// without rights could use the reserve up and stop the reads of the others.
func mayUseReserve(e verify.Entry) bool {
	switch e.Kind {
	case verify.KindAccess:
		return e.Decision != verify.Deny
	case verify.KindAccessFailed, verify.KindConsentWithdrawn, verify.KindSubjectErased, verify.KindKeyDestroyed,
		verify.KindRestrictionSet:
		return true
	}
	return false
}

// indexed reports whether an entry has a row in the index by subject. An erasure empties the index of the
// person, so its own entries have none.
func indexed(e verify.Entry) bool {
	return e.Kind != verify.KindSubjectErased && e.Kind != verify.KindKeyDestroyed
}
