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

// IsIdempotencyRow reports whether a row is the outcome of an idempotency key, or leads to one, from the first byte of
// its key. Such rows are left out of backups.
func IsIdempotencyRow(key []byte) bool { return len(key) > 0 && (key[0] == 'i' || key[0] == 'y') }

// ErrUnreadable is returned by Restore when restored data cannot be opened with the keys that there are.
var ErrUnreadable = errors.New("access: restored data does not open with the keys that there are")

// Restoration is what a restored store must be told before it serves.
type Restoration struct {
	Backup   string    // id of the archive
	Size     int64     // of the ledger in it
	Lost     int64     // size that the ledger is known to have had; Size when it had no more
	LostRoot tlog.Hash // its root, when it is above Size
	// Since is what the lost part of the ledger says, as far as it concerns people's rights; nil: not known.
	Since *Since
	// AcceptUnreadable goes on when there is data that does not open.
	AcceptUnreadable bool
	Keys             RotationKeys // required
	// KeyState tells what an error of Keys says of a subject's key. Required.
	KeyState func(error) KeyState
}

// KeyState is what became of a subject's key.
type KeyState int

// States of keys. KeyUnknown is any failure that says nothing about the key; KeyOther, that it is not the one that the
// subject's data was sealed under.
const (
	KeyUnknown KeyState = iota
	KeyDestroyed
	KeyAbsent
	KeyOther
)

// Since collects, from a verified log, the acts after a backup that must not be undone by restoring it.
type Since struct {
	Withdrawn  map[string]string // consent id to subject_ref
	Restricted map[string]bool   // subject_ref to whether the last act set the restriction
	Erased     map[string]int    // subject_ref to its place in erasures
	Kinds      map[string]int64  // entries by kind, for the operator
	Policy     int64             // version that was published last; 0: none

	erasures []pastErasure
}

// pastErasure is an erasure that a log tells of.
type pastErasure struct {
	erased    verify.Entry
	destroyed *verify.Entry // nil: the log ends before
}

// Add takes the next entry of the log.
func (s *Since) Add(e verify.Entry) {
	if s.Kinds == nil {
		*s = Since{Withdrawn: map[string]string{}, Restricted: map[string]bool{}, Erased: map[string]int{}, Kinds: map[string]int64{}}
	}
	s.Kinds[e.Kind]++
	switch {
	case e.Kind == verify.KindConsentWithdrawn && e.Consent != nil:
		s.Withdrawn[e.Consent.ID] = e.SubjectRef
	case e.Kind == verify.KindRestrictionSet:
		s.Restricted[e.SubjectRef] = true
	case e.Kind == verify.KindRestrictionLift:
		s.Restricted[e.SubjectRef] = false
	case e.Kind == verify.KindPolicyPublished && e.Bundle != nil:
		s.Policy = e.Bundle.Version
	case e.Kind == verify.KindSubjectErased && e.Erasure != nil:
		s.Erased[e.SubjectRef] = len(s.erasures)
		s.erasures = append(s.erasures, pastErasure{erased: e})
	case e.Kind == verify.KindKeyDestroyed && e.Erasure != nil:
		if i, ok := s.Erased[e.SubjectRef]; ok {
			s.erasures[i].destroyed = &e
		}
	}
}

// RestoreReport is what a restoration came to.
type RestoreReport struct {
	verify.Restored
	Entry      int64 // index of ledger.restored
	Subjects   int   // that live
	Keyless    int   // subjects without a key: the key store is older than the data
	Unreadable int   // subjects whose data was sealed under keys that are gone
	Lifted     int   // restrictions that were lifted again
	Pending    int   // erasures whose keys are destroyed, and recorded to be, at the start
	Policy     int64 // version of the policy that is in force again, when a later one is lost; 0: none is
}

// Restore brings a store that was just put back from a backup up to what must not be undone: erasures, withdrawals and
// restrictions since are carried out again, each by an entry of its own. Before any of them stands one entry that says
// what was restored and what is lost. An erasure that the log tells of keeps its certificate; the key of the person, if
// it is there still, is destroyed by FinishErasures. Of people whose key was destroyed, and of whose erasure nothing is
// known, what is left is purged.
//
// When data does not open with the keys that there are, it fails with ErrUnreadable, and the report counts. After an
// error the store must not be used. Nobody else may use it meanwhile.
func (b *Broker) Restore(ctx context.Context, r Restoration) (RestoreReport, error) {
	if r.KeyState == nil || r.Keys == nil {
		return RestoreReport{}, errors.New("access: Keys and KeyState are required")
	}
	if size := b.ledger.Checkpoint().Size; size != r.Size {
		return RestoreReport{}, fmt.Errorf("%w: the restored ledger has %d entries, not %d", ErrIntegrity, size, r.Size)
	}
	report := RestoreReport{Restored: verify.Restored{Backup: r.Backup, Size: r.Size, Lost: max(r.Lost, r.Size)}}
	if r.Lost > r.Size {
		report.LostRoot = base64.StdEncoding.EncodeToString(r.LostRoot[:])
	}
	if r.Since == nil {
		r.Since = new(Since)
	}
	if current := b.current.Load().Version; r.Since.Policy > current {
		report.Policy = current
	}
	v := &survey{state: r.KeyState, since: r.Since, byRef: make(map[string]uuid.UUID)}
	if err := b.survey(ctx, r.Keys, v); err != nil {
		return RestoreReport{}, err
	}
	report.Subjects, report.Keyless, report.Unreadable, report.Erased = v.live, v.keyless, v.unreadable, len(v.erased)
	if v.keyless+v.unreadable > 0 && !r.AcceptUnreadable {
		return report, ErrUnreadable
	}
	withdrawals, err := b.pendingWithdrawals(ctx, v)
	if err != nil {
		return RestoreReport{}, err
	}
	restrictions, err := b.pendingRestrictions(ctx, v)
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
	if err := b.eraseAllAgain(ctx, by, v); err != nil {
		return RestoreReport{}, err
	}
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
	report.Pending, err = b.PendingErasures(ctx)
	return report, err
}

// survey is what the sidecar knows of the subjects of a restored store.
type survey struct {
	state func(error) KeyState
	since *Since

	mu                        sync.Mutex // guards the rest
	live, keyless, unreadable int
	byRef                     map[string]uuid.UUID // subjects that since restricts or lifts
	erased                    []gone
}

// gone is a subject that was erased after the backup.
type gone struct {
	id  uuid.UUID
	ref string // empty: not known
}

// survey asks for the key of every subject, and whether it opens everything that is sealed of the subject. Nothing is
// changed by that, and what is under the newest key is not even opened: it is as it was signed for. The sealed details
// of accesses are left out: who has lost these has lost the records too.
func (b *Broker) survey(ctx context.Context, keys RotationKeys, v *survey) error {
	r := &Rotator{RotatorConfig: RotatorConfig{Broker: b, Keys: keys, Observer: unobservedRotation{}}, broker: b}
	asked := &resealing{Rotator: r} // rotation 0: no key is made
	err := r.eachBatch(ctx, func(ctx context.Context, ids []uuid.UUID) error {
		all, err := asked.load(ctx, ids)
		if err != nil {
			return err
		}
		outcomes, err := asked.reseal(ctx, itemsOf(all))
		if err != nil {
			return wrapf(err, "asking for the keys of the restored subjects")
		}
		for i, l := range all {
			if err := b.surveyed(ctx, v, l.subject, outcomes[i]); err != nil {
				return err
			}
		}
		return nil
	})
	v.unreadable += int(asked.failed.Load())
	return err
}

// surveyed takes what the sidecar says of one subject.
func (b *Broker) surveyed(ctx context.Context, v *survey, s *vault.Subject, o ResealedSubject) error {
	state := KeyUnknown
	if o.Err != nil {
		if state = v.state(o.Err); state == KeyUnknown {
			return wrapf(o.Err, "asking for the keys of the restored subjects")
		}
	}
	var name string
	if ref := o.Ref; state == KeyDestroyed || ref == nil {
		found, err := b.refOfRecords(ctx, s)
		if err != nil {
			return err
		}
		if found != nil {
			name = encodeRef(found)
		}
	} else {
		name = encodeRef(ref)
	}
	_, erased := v.since.Erased[name]
	_, restricted := v.since.Restricted[name]
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case erased, state == KeyDestroyed:
		v.erased = append(v.erased, gone{s.ID, name})
		return nil
	case state == KeyAbsent:
		v.keyless++
	case state == KeyOther:
		v.unreadable++
	default:
		v.live++
	}
	if restricted {
		v.byRef[name] = s.ID
	}
	return nil
}

// eraseAllAgain carries out the erasures since the backup, in the order in which they came.
func (b *Broker) eraseAllAgain(ctx context.Context, by Request, v *survey) error {
	here := make(map[int]uuid.UUID)
	for _, g := range v.erased {
		if i, told := v.since.Erased[g.ref]; told {
			here[i] = g.id
			continue
		}
		if err := b.purge(ctx, g.id); err != nil {
			return err
		}
	}
	for i, past := range v.since.erasures {
		subject, found := here[i]
		if !found && past.destroyed == nil {
			continue // nothing of it is here, and nobody knows what became of the key
		}
		if err := b.eraseAgain(ctx, by, subject, past); err != nil {
			return wrapf(err, "erasing again")
		}
	}
	return nil
}

// eraseAgain repeats the entries of an erasure, so that its certificate is found here too, and leaves nothing of the
// subject. What happens to the key, and is on record of that, is for FinishErasures. A zero subject is not in the store.
func (b *Broker) eraseAgain(ctx context.Context, by Request, subject uuid.UUID, past pastErasure) error {
	id, err := uuid.Parse(past.erased.Erasure.ID)
	if err != nil {
		return wrapf(ErrIntegrity, "id of an erasure")
	}
	var deletions kv.Change
	if subject != uuid.Nil {
		if deletions, err = b.wholeSubject(ctx, subject, past.erased.SubjectRef); err != nil {
			return err
		}
	}
	repeat := func(e verify.Entry) verify.Entry {
		entry := b.newEntry(e.Kind, by)
		entry.SubjectRef, entry.Reason, entry.DetailCommit, entry.Erasure = e.SubjectRef, e.Reason, e.DetailCommit, e.Erasure
		entry.Policy = b.current.Load().Version
		return entry
	}
	receipt, err := b.ledger.Append(ctx, repeat(past.erased), func(at ledger.Position) kv.Change {
		change := deletions
		if subject != uuid.Nil {
			change.Set(pendingKey(subject), encodeRow(&pendingErasure{Entry: at.Index, ID: id}))
		}
		return change
	})
	if err != nil || subject != uuid.Nil {
		return err
	}
	entry := repeat(*past.destroyed)
	entry.Policy, entry.Of = 0, &receipt.Index
	_, err = b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
		var change kv.Change
		change.Set(finishedKey(id), encodeRow(&finishedErasure{Erased: receipt.Index, Destroyed: at.Index}))
		return change
	})
	return err
}

// wholeSubject is the change that deletes a subject as an erasure does. The details that it leaves are deleted when the
// erasure is finished.
func (b *Broker) wholeSubject(ctx context.Context, subject uuid.UUID, name string) (kv.Change, error) {
	ref, err := verify.ParseRef(name)
	if err != nil {
		return kv.Change{}, wrapf(ErrIntegrity, "reference of an erased subject")
	}
	t, err := b.target(ctx, subject)
	if err != nil {
		return kv.Change{}, err
	}
	rows, err := b.ledger.SubjectRows(ctx, ref, nil, detailsAtOnce)
	if err != nil {
		return kv.Change{}, wrapf(err, "looking for details")
	}
	change, err := t.deletions()
	if err != nil {
		return kv.Change{}, err
	}
	for _, row := range rows {
		change.Delete(row)
		change.Delete(detailKey(indexIn(row)))
	}
	return change, nil
}

// purge removes what the store still holds of a subject whose key was destroyed.
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

// refOfRecords finds the reference of a subject whose key is gone through an entry that wrote one of its records. It is
// nil when the subject never had one.
func (b *Broker) refOfRecords(ctx context.Context, s *vault.Subject) ([]byte, error) {
	names := slices.Sorted(maps.Keys(s.Head.Records))
	if len(names) == 0 {
		return nil, nil
	}
	raw, err := b.ledger.Entry(ctx, s.Head.Records[names[0]].Entry)
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

func (b *Broker) pendingWithdrawals(ctx context.Context, v *survey) ([]pendingWithdrawal, error) {
	since, erased := v.since, make(map[uuid.UUID]bool, len(v.erased))
	for _, g := range v.erased {
		erased[g.id] = true
	}
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
				continue // given after the backup
			} else if err != nil {
				return err
			}
			if erased[subject] {
				continue
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

func (b *Broker) pendingRestrictions(ctx context.Context, v *survey) ([]pendingRestriction, error) {
	since, byRef := v.since, v.byRef
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
