package access

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
)

// Entries returns a page of ledger entries that the filter selects, for an auditor.
func (b *Broker) Entries(ctx context.Context, r Request, f EntryFilter) (EntryPage, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionAccessRecords, "", noSubject); err != nil {
		return EntryPage{}, err
	}
	q := ledger.Filter{
		Caller: f.Caller, Purpose: f.Purpose, Ground: f.Ground, Decision: f.Decision,
		From: f.From, To: f.To, Cursor: f.Cursor, Limit: f.Limit,
	}
	if f.Kind != "" {
		q.Kinds = []string{f.Kind}
	}
	if f.Subject != uuid.Nil {
		_, err := b.subjectState(ctx, f.Subject)
		if errors.Is(err, vault.ErrNoSubject) {
			return EntryPage{Next: -1}, nil // nobody's reference is known, so no entry is about them
		}
		if err != nil {
			return EntryPage{}, err
		}
		ref, _, err := b.ref(ctx, f.Subject, nil)
		if err != nil {
			return EntryPage{}, err
		}
		q.SubjectRef = ref[:]
	}
	page, err := b.ledger.Query(ctx, q)
	if err != nil {
		return EntryPage{}, wrapf(err, "querying the ledger")
	}
	result := EntryPage{Next: -1}
	if page.More {
		result.Next = page.Next
	}
	for _, e := range page.Records {
		result.Entries = append(result.Entries, Entry{Index: e.Index, Bytes: e.Entry})
	}
	return result, nil
}

// Entry returns the entry at index as it is stored and hashed.
func (b *Broker) Entry(ctx context.Context, r Request, index int64) (Entry, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionAccessRecords, "", noSubject); err != nil {
		return Entry{}, err
	}
	raw, err := b.ledger.Entry(ctx, index)
	if err != nil {
		return Entry{}, outside(err)
	}
	return Entry{Index: index, Bytes: raw}, nil
}

// Proof returns the entry's C2SP tlog-proof against the newest checkpoint.
func (b *Broker) Proof(ctx context.Context, r Request, index int64) ([]byte, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionAccessRecords, "", noSubject); err != nil {
		return nil, err
	}
	proof, err := b.ledger.ProofFile(ctx, index)
	return proof, outside(err)
}

// witnessPatience is how long a checkpoint may wait for the witness, who is some milliseconds behind a ledger
// that grows.
const witnessPatience = 500 * time.Millisecond

// LogCheckpoint returns a checkpoint that the witness has cosigned and that holds all that was in the ledger when
// it was asked for. When the witness does not follow in time, it returns the newest one that it has cosigned, and
// while there is none, the newest one.
func (b *Broker) LogCheckpoint(ctx context.Context, r Request) ([]byte, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionLedgerRead, "", noSubject); err != nil {
		return nil, err
	}
	newest := b.ledger.Checkpoint()
	wait, cancel := context.WithTimeout(ctx, witnessPatience)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		cosigned := b.ledger.Cosigned()
		if cosigned.Note != nil && cosigned.Size >= newest.Size {
			return cosigned.Note, nil
		}
		select {
		case <-ticker.C:
		case <-wait.Done():
			if cosigned.Note != nil {
				return cosigned.Note, nil
			}
			return newest.Note, ctx.Err()
		}
	}
}

// LogTile returns a tile or an entry bundle by its C2SP tlog-tiles path, such as tile/0/000.
func (b *Broker) LogTile(ctx context.Context, r Request, path string) ([]byte, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionLedgerRead, "", noSubject); err != nil {
		return nil, err
	}
	t, err := verify.ParseTilePath(path)
	if err != nil {
		return nil, ErrNotFound
	}
	var data []byte
	if t.Level == verify.EntriesLevel {
		data, err = b.ledger.EntryBundle(ctx, t.N, t.Width)
	} else {
		data, err = b.ledger.Tile(ctx, t.Level, t.N, t.Width)
	}
	return data, outside(err)
}

// LoginDenied records that a request could not be authenticated. It never fails the request further, and
// it is budgeted, so that a storm of bad tokens cannot fill the ledger.
func (b *Broker) LoginDenied(ctx context.Context, r Request, reason string) {
	if b.budgets.login(b.now()) != nil {
		return
	}
	entry := b.newEntry(verify.KindLoginDenied, r)
	entry.Caller, entry.Reason, entry.Decision = nil, reason, verify.Deny
	if _, err := b.ledger.Append(ctx, entry, nil); err != nil {
		b.log.Warn("login.denied could not be recorded")
	}
}

// outside maps an index outside the log to ErrNotFound.
func outside(err error) error {
	if errors.Is(err, ledger.ErrNotFound) {
		return ErrNotFound
	}
	return err
}
