package access

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// PermitBackup tells whether the caller may take a backup: who may rotate keys may. A denial is on record.
func (b *Broker) PermitBackup(ctx context.Context, r Request) error {
	_, err := again(func() (struct{}, error) {
		return struct{}{}, b.permit(ctx, b.current.Load(), r, policy.ActionKeysRotate, "", noSubject)
	})
	return err
}

// IsIdempotencyRow reports whether a row is the outcome of an idempotency key, or leads to one from its subject, from
// the first byte of its key. Such rows are left out of backups.
func IsIdempotencyRow(key []byte) bool { return len(key) > 0 && (key[0] == 'i' || key[0] == 'y') }

// Restoration is what a restored store must be told before it serves.
type Restoration struct {
	Backup   string    // id of the archive
	Size     int64     // of the ledger in it
	Lost     int64     // size that the witness has seen; Size when it has seen no more
	LostRoot tlog.Hash // its root, when it is above Size
	// Since is what the lost part of the ledger says, as far as it concerns people's rights; nil: not known.
	Since *Since
	// KeyState tells what an error of Opener.Prepare says of a subject's key. Required.
	KeyState func(error) KeyState
}

// KeyState is what became of a subject's key.
type KeyState int

// States of keys. KeyUnknown is any failure that says nothing about the key.
const (
	KeyUnknown KeyState = iota
	KeyDestroyed
	KeyAbsent
)

// Since collects, from a verified log, the acts after a backup that must not be undone by restoring it.
type Since struct {
	Withdrawn  map[string]string // consent id to subject_ref
	Restricted map[string]bool   // subject_ref to whether the last act set the restriction
	Erased     map[string]bool   // subject_ref
	Kinds      map[string]int64  // entries by kind, for the operator
}

// Add takes the next entry of the log.
func (s *Since) Add(e verify.Entry) {
	if s.Kinds == nil {
		*s = Since{map[string]string{}, map[string]bool{}, map[string]bool{}, map[string]int64{}}
	}
	s.Kinds[e.Kind]++
	switch {
	case e.Kind == verify.KindConsentWithdrawn && e.Consent != nil:
		s.Withdrawn[e.Consent.ID] = e.SubjectRef
	case e.Kind == verify.KindRestrictionSet:
		s.Restricted[e.SubjectRef] = true
	case e.Kind == verify.KindRestrictionLift:
		s.Restricted[e.SubjectRef] = false
	case e.Kind == verify.KindSubjectErased:
		s.Erased[e.SubjectRef] = true
	}
}

// RestoreReport is what a restoration came to.
type RestoreReport struct {
	verify.Restored
	Entry    int64 // index of ledger.restored
	Subjects int   // that live
	Keyless  int   // subjects without a key: the key store is older than the data
	Lifted   int   // restrictions that were lifted again
	Unkept   int   // erasures of the log after which the subject's key is still there
}

// Restore brings a store that was just put back from a backup up to what must not be undone: subjects whose key was
// destroyed since are purged, and withdrawals and restrictions are carried out again, each by an entry of its own.
// Before any of them stands one entry that says what was restored and what is lost. Nobody else may use the store.
func (b *Broker) Restore(ctx context.Context, r Restoration) (RestoreReport, error) {
	if r.KeyState == nil {
		return RestoreReport{}, errors.New("access: KeyState is required")
	}
	if size := b.ledger.Checkpoint().Size; size != r.Size {
		return RestoreReport{}, fmt.Errorf("%w: the restored ledger has %d entries, not %d", ErrIntegrity, size, r.Size)
	}
	report := RestoreReport{Restored: verify.Restored{Backup: r.Backup, Size: r.Size, Lost: max(r.Lost, r.Size)}}
	if r.Lost > r.Size {
		report.LostRoot = base64.StdEncoding.EncodeToString(r.LostRoot[:])
	}
	since := r.Since
	if since == nil {
		since = new(Since)
	}
	byRef, err := b.purgeDestroyed(ctx, r.KeyState, since, &report)
	if err != nil {
		return RestoreReport{}, err
	}
	withdrawals, err := b.pendingWithdrawals(ctx, since)
	if err != nil {
		return RestoreReport{}, err
	}
	restrictions, err := b.pendingRestrictions(ctx, since, byRef)
	if err != nil {
		return RestoreReport{}, err
	}
	report.Withdrawn = len(withdrawals)
	for _, p := range restrictions {
		if p.on {
			report.Restrict++
		} else {
			report.Lifted++
		}
	}

	by := Request{Caller: verify.Caller{ID: "restore", Kind: "system", Role: "system", Authn: "local"}}
	entry := b.newEntry(verify.KindLedgerRestored, by)
	restored := report.Restored
	entry.Restored = &restored
	receipt, err := b.ledger.Append(ctx, entry, nil)
	if err != nil {
		return RestoreReport{}, wrapf(err, "recording the restore")
	}
	report.Entry = receipt.Index
	for _, w := range withdrawals {
		if err := b.withdrawAgain(ctx, by, w); err != nil {
			return RestoreReport{}, err
		}
	}
	for _, p := range restrictions {
		if err := b.restrictAgain(ctx, by, p); err != nil {
			return RestoreReport{}, err
		}
	}
	return report, nil
}

const (
	restorePage    = 1000
	restoreWorkers = 256 // calls of Prepare at once, which the sidecar's client gathers into batches
)

// purgeDestroyed asks for the key of every subject and purges those whose key was destroyed. It returns the
// subjects behind the references that since names.
func (b *Broker) purgeDestroyed(ctx context.Context, state func(error) KeyState, since *Since, report *RestoreReport) (map[string]uuid.UUID, error) {
	byRef := make(map[string]uuid.UUID)
	var last uuid.UUID
	for {
		var page []*vault.Subject
		err := b.store.View(ctx, func(r kv.Reader) (err error) {
			page, err = vault.Heads(r, last, restorePage)
			return err
		})
		if err != nil || len(page) == 0 {
			return byRef, err
		}
		last = page[len(page)-1].ID
		var mu sync.Mutex // guards destroyed, byRef and report
		var destroyed []uuid.UUID
		group, asking := errgroup.WithContext(ctx)
		group.SetLimit(restoreWorkers)
		for _, s := range page {
			if s.Head.Erased {
				continue
			}
			group.Go(func() error {
				ref, _, err := b.opener.Prepare(asking, s.ID, nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					report.Subjects++
					name := encodeRef(ref)
					if _, concerned := since.Restricted[name]; concerned {
						byRef[name] = s.ID
					}
					if since.Erased[name] {
						report.Unkept++
					}
					return nil
				}
				switch state(err) {
				case KeyDestroyed:
					destroyed = append(destroyed, s.ID)
				case KeyAbsent:
					report.Keyless++
				default:
					return wrapf(err, "asking for the keys of the restored subjects")
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		for _, id := range destroyed {
			if err := b.purge(ctx, id); err != nil {
				return nil, err
			}
		}
		report.Erased += len(destroyed)
	}
}

// purge removes what the store still holds of a subject whose key was destroyed: what an erasure deletes.
func (b *Broker) purge(ctx context.Context, subject uuid.UUID) error {
	t, err := b.target(ctx, subject)
	if err != nil {
		return err
	}
	if t.pending != nil {
		return wrapf(ErrIntegrity, "an erasure of a subject that is there is pending")
	}
	ref, err := b.refOfRecords(ctx, t.subject)
	if err != nil {
		return err
	}
	if ref != nil {
		if err := b.sweepDetails(ctx, ref); err != nil {
			return err
		}
	}
	change, err := t.deletions()
	if err != nil {
		return err
	}
	if err := b.store.Update(ctx, func(w kv.Writer) error { return change.Apply(w) }); err != nil {
		return wrapf(err, "purging an erased subject")
	}
	return nil
}

// refOfRecords finds the reference of a subject whose key is gone through an entry that wrote a record. It is nil when
// the subject never had one.
func (b *Broker) refOfRecords(ctx context.Context, s *vault.Subject) ([]byte, error) {
	if len(s.Head.Records) == 0 {
		return nil, nil
	}
	first := slices.Min(slices.Collect(maps.Keys(s.Head.Records)))
	raw, err := b.ledger.Entry(ctx, s.Head.Records[first].Entry)
	if err != nil {
		return nil, wrapf(err, "reading the entry of an erased subject")
	}
	e, err := verify.ParseEntry(raw)
	if err != nil || e.SubjectRef == "" {
		return nil, wrapf(ErrIntegrity, "entry of a record names no subject")
	}
	return verify.ParseRef(e.SubjectRef)
}

// pendingWithdrawal is a withdrawal to be carried out again.
type pendingWithdrawal struct {
	list *consent.List
	id   uuid.UUID
	ref  string
}

func (b *Broker) pendingWithdrawals(ctx context.Context, since *Since) ([]pendingWithdrawal, error) {
	var out []pendingWithdrawal
	err := b.store.View(ctx, func(r kv.Reader) error {
		out = nil
		for _, text := range slices.Sorted(maps.Keys(since.Withdrawn)) {
			id, err := uuid.Parse(text)
			if err != nil {
				return wrapf(ErrIntegrity, "id of a withdrawn consent")
			}
			subject, err := consent.Owner(r, id)
			if errors.Is(err, consent.ErrNotFound) {
				continue // given after the backup, or its subject was erased
			} else if err != nil {
				return err
			}
			l, err := consent.Load(r, subject)
			if err != nil {
				return err
			}
			if c := l.Find(id); c != nil && c.State != consent.Withdrawn {
				out = append(out, pendingWithdrawal{l, id, since.Withdrawn[text]})
			}
		}
		return nil
	})
	return out, err
}

func (b *Broker) withdrawAgain(ctx context.Context, by Request, w pendingWithdrawal) error {
	var l *consent.List // as it is now: another withdrawal may be of the same subject
	err := b.store.View(ctx, func(r kv.Reader) (err error) {
		l, err = consent.Load(r, w.list.Subject)
		return err
	})
	if err != nil {
		return err
	}
	p := b.current.Load()
	entry := b.newEntry(verify.KindConsentWithdrawn, by)
	entry.SubjectRef, entry.Policy = w.ref, p.Version
	entry.Consent = consentChange(*l.Find(w.id))
	entry.Consent.State = consent.Withdrawn
	_, err = b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
		change, _ := l.Withdraw(w.id, at.Time, at.Index)
		return change
	})
	if err != nil {
		return wrapf(err, "withdrawing a consent again")
	}
	return nil
}

// pendingRestriction is a restriction to be set or lifted again.
type pendingRestriction struct {
	subject *vault.Subject
	ref     string
	on      bool
}

func (b *Broker) pendingRestrictions(ctx context.Context, since *Since, byRef map[string]uuid.UUID) ([]pendingRestriction, error) {
	var out []pendingRestriction
	err := b.store.View(ctx, func(r kv.Reader) error {
		out = nil
		for _, ref := range slices.SortedFunc(maps.Keys(byRef), strings.Compare) {
			s, err := vault.Load(r, byRef[ref])
			if errors.Is(err, vault.ErrNoSubject) {
				continue
			} else if err != nil {
				return err
			}
			if on := since.Restricted[ref]; s.Head.Restricted != on {
				out = append(out, pendingRestriction{s, ref, on})
			}
		}
		return nil
	})
	return out, err
}

func (b *Broker) restrictAgain(ctx context.Context, by Request, p pendingRestriction) error {
	kind := verify.KindRestrictionLift
	if p.on {
		kind = verify.KindRestrictionSet
	}
	entry := b.newEntry(kind, by)
	entry.SubjectRef, entry.Policy = p.ref, b.current.Load().Version
	_, err := b.ledger.Append(ctx, entry, func(ledger.Position) kv.Change { return b.vault.SetRestriction(p.subject, p.on) })
	if err != nil {
		return wrapf(err, "setting a restriction again")
	}
	return nil
}
