package access

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// Sizes of a rotation's steps.
const (
	rekeyBatch     = 220     // subjects that are sealed again in one call; one entry names as many, with a record each
	rekeyBatchBusy = 50      // the same, while requests are being served
	rekeyParallel  = 4       // batches at once, when none are
	retireMost     = 2       // batches whose keys are dropped after one was sealed again
	rekeyBytes     = 1 << 20 // of ciphertext in one call or commit
	rekeyItems     = 1000    // ciphertexts of one subject in one call
	rekeyCallItems = 5000    // ciphertexts in one call
	rekeyDetails   = 200     // rows of the index by subject that are looked at together
	rekeyPasses    = 20      // over all subjects, before it is left for a later try
	rekeyTries     = 10      // of one subject whose state keeps changing
)

// resealing is one run of a rotation of subjects' keys.
type resealing struct {
	*Rotator
	rotation uint32
	progress *progress
	changed  atomic.Int64 // subjects that had something to be sealed again in this pass
	failed   atomic.Int64 // subjects that cannot be sealed again
	code     atomic.Pointer[string]

	mu       sync.Mutex   // guards the rest
	retiring []retirement // whose keys are to be dropped, the oldest first
	retired  retired      // whose keys were dropped
}

// maxRetired bounds how many subjects a run remembers, some 40 bytes each.
const maxRetired = 1 << 20

// retired is subjects that a run has sealed again and whose older keys it has dropped. They have one key, so nothing
// that opens at all is under another, and a later pass has nothing to do for them. Those beyond maxRetired are looked
// at again.
type retired map[uuid.UUID]struct{}

func (r retired) add(ids []uuid.UUID) {
	for _, id := range ids {
		if len(r) < maxRetired {
			r[id] = struct{}{}
		}
	}
}

// without returns those of ids that are not among r, in the place of ids.
func (r retired) without(ids []uuid.UUID) []uuid.UUID {
	return slices.DeleteFunc(ids, func(id uuid.UUID) bool {
		_, ok := r[id]
		return ok
	})
}

// retirement is subjects that were sealed again by a commit.
type retirement struct {
	subjects  []resealed
	seen      int64 // size of the ledger before their details were looked at
	committed time.Time
}

// resealed is a subject of which nothing that was committed until then is under an older key.
type resealed struct {
	id   uuid.UUID
	ref  []byte
	last []byte // row of the index by subject up to which its details were looked at

	changed bool // something was sealed again
	unsound bool // something cannot be sealed again; it was counted by fail
}

// resealSubjects carries out a job of scope subject or all-subjects.
//
// Each pass goes over the subjects: gives each a key of the rotation, commits what it has sealed again under it,
// and, the pause later, drops the key before. Passes are made until one has found nothing to do, so that subjects
// which appeared meanwhile are done too.
func (r *Rotator) resealSubjects(ctx context.Context, job RotationJob, p *progress) error {
	rotation, err := targetOf(job)
	if err != nil {
		return err
	}
	s := &resealing{Rotator: r, rotation: rotation, progress: p, retired: make(retired)}
	begun := time.Now()
	total := int64(1)
	if job.Scope == ScopeAllSubjects {
		if total, err = r.countSubjects(ctx); err != nil {
			return err
		}
	}
	for pass := range rekeyPasses {
		phase := "verify"
		if pass == 0 {
			phase = "reseal"
		}
		if err := p.begin(ctx, phase, total); err != nil {
			return err
		}
		s.changed.Store(0)
		step := func(ctx context.Context, ids []uuid.UUID) error { return s.step(ctx, ids, pass == 0) }
		var err error
		if job.Scope == ScopeSubject {
			err = step(ctx, []uuid.UUID{job.Subject})
		} else {
			err = s.eachBatch(ctx, step)
		}
		if err == nil {
			err = s.retireAll(ctx)
		}
		if err != nil {
			return err
		}
		if n := s.failed.Load(); n > 0 {
			return &rotationError{*s.code.Load(), n}
		}
		if pass == 0 {
			// A subject that was being created when the rotation began is there from here on, or never will be.
			if !wait(ctx, r.Pause-time.Since(begun)) {
				return context.Cause(ctx)
			}
			if err := r.barrier(ctx); err != nil {
				return err
			}
			continue
		}
		if s.changed.Load() > 0 {
			continue
		}
		if job.Scope == ScopeAllSubjects {
			// Keys of subjects that never came to be are known to the sidecar alone.
			p.phase = "orphans"
			return p.report(ctx)
		}
		return nil
	}
	return ErrBusy
}

func (r *Rotator) countSubjects(ctx context.Context) (n int64, err error) {
	var after uuid.UUID
	for {
		ids, err := r.subjects(ctx, after, 1000)
		if err != nil || len(ids) == 0 {
			return n, err
		}
		n, after = n+int64(len(ids)), ids[len(ids)-1]
	}
}

func (r *Rotator) subjects(ctx context.Context, after uuid.UUID, limit int) (ids []uuid.UUID, err error) {
	err = r.broker.store.View(ctx, func(reader kv.Reader) error {
		ids, err = vault.Subjects(reader, after, limit)
		return err
	})
	return ids, err
}

// step seals a batch again, and drops keys of earlier ones whose pause is over.
func (s *resealing) step(ctx context.Context, ids []uuid.UUID, first bool) error {
	n := len(ids)
	s.mu.Lock()
	ids = s.retired.without(ids)
	s.mu.Unlock()
	if len(ids) > 0 {
		done, err := s.batch(ctx, ids, first)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if len(done.subjects) > 0 {
			s.retiring = append(s.retiring, done)
		}
		s.mu.Unlock()
	}
	if err := s.retire(ctx, s.takeDue(retireMost)); err != nil {
		return err
	}
	return s.progress.add(ctx, n)
}

// loaded is what is sealed of one subject, from one snapshot.
type loaded struct {
	subject  *vault.Subject
	consents *consent.List
	captures []consent.Capture
}

func (l loaded) items() []ResealItem {
	var items []ResealItem
	for _, x := range l.subject.Sealed() {
		item := ResealItem{Kind: itemField, Collection: x.Collection, Field: x.Field, Version: x.Version, Ciphertext: x.Ciphertext}
		if x.Index {
			item.Kind, item.Version, item.Normaliser = itemIndex, 0, x.Normaliser
		}
		items = append(items, item)
	}
	for _, c := range l.captures {
		items = append(items, ResealItem{Kind: itemDetail, Ciphertext: c.Sealed})
	}
	return items
}

// load reads the subjects that there are; those that were erased are left out.
func (s *resealing) load(ctx context.Context, ids []uuid.UUID) (all []loaded, err error) {
	err = s.broker.store.View(ctx, func(r kv.Reader) error {
		all = nil
		for _, id := range ids {
			subject, err := vault.LoadAll(r, id)
			if errors.Is(err, vault.ErrNoSubject) {
				continue
			}
			if errors.Is(err, vault.ErrIntegrity) {
				s.fail(err)
				continue
			}
			if err != nil {
				return err
			}
			l := loaded{subject: subject}
			if l.consents, err = consent.Load(r, id); err != nil {
				return err
			}
			if l.captures, err = l.consents.Captures(r); err != nil {
				return err
			}
			all = append(all, l)
		}
		return nil
	})
	return all, err
}

// fail counts a subject that cannot be sealed again. Its key is not dropped.
func (s *resealing) fail(err error) {
	code := s.broker.failureCode(err)
	s.code.Store(&code)
	s.failed.Add(1)
	s.broker.log.Error("a subject could not be sealed again", "reason", code)
}

// batch seals what there is of ids again, and returns those whose older keys may be dropped: all that are there in a
// first pass, and later those of which something was left.
func (s *resealing) batch(ctx context.Context, ids []uuid.UUID, first bool) (retirement, error) {
	done := retirement{seen: s.broker.ledger.Checkpoint().Size}
	for try := 0; len(ids) > 0; try++ {
		if try == rekeyTries {
			return done, ErrBusy
		}
		all, err := s.load(ctx, ids)
		if err != nil {
			return done, err
		}
		outcomes, err := s.reseal(ctx, itemsOf(all))
		if err != nil {
			return done, err
		}
		ids = nil
		var units []unit
		var sound []resealed
		for i, l := range all {
			id := l.subject.ID
			switch err := outcomes[i].Err; {
			case err != nil && s.Gone(err):
				// Erased since it was loaded, or about to be.
				continue
			case err != nil && s.Damaged(err) && try < rekeyTries-1:
				ids = append(ids, id) // it may have been written since it was loaded
				continue
			case err != nil && s.Damaged(err):
				s.fail(err)
				continue
			case err != nil:
				return done, err
			}
			u, needed, err := l.unit(outcomes[i].Ref, outcomes[i].Ciphertexts, first)
			if err != nil {
				return done, err
			}
			if needed {
				units = append(units, u)
			}
			sound = append(sound, resealed{id: id, ref: outcomes[i].Ref, changed: needed})
		}
		again, err := s.commit(ctx, verify.KindRecordResealed, nil, units)
		if err != nil {
			return done, err
		}
		s.changed.Add(int64(len(units) - len(again)))
		s.Observer.RotationResealed(len(units) - len(again))
		left := sound[:0]
		for _, x := range sound {
			if _, stale := again[x.id]; stale {
				ids = append(ids, x.id)
				continue
			}
			left = append(left, x)
		}
		if err := s.details(ctx, left); err != nil {
			return done, err
		}
		for _, x := range left {
			if !x.unsound && (x.changed || first) {
				done.subjects = append(done.subjects, x)
			}
		}
	}
	done.committed = time.Now()
	return done, nil
}

func itemsOf(all []loaded) []ResealSubject {
	subjects := make([]ResealSubject, len(all))
	for i, l := range all {
		subjects[i] = ResealSubject{Subject: l.subject.ID, Items: l.items()}
	}
	return subjects
}

// unit is the change that puts ciphertexts in the place of what was loaded, and whether it is needed. It renews the
// head, so that writes which were sealed under the key before fail. They fail already when something in the records
// is under the new key: it came by a commit that renewed the head.
func (l loaded) unit(ref []byte, ciphertexts [][]byte, first bool) (unit, bool, error) {
	n := len(ciphertexts) - len(l.captures)
	if n < 0 {
		return unit{}, false, wrapf(ErrIntegrity, "sidecar answered another number of ciphertexts")
	}
	renewed, err := l.subject.Reseal(ciphertexts[:n])
	if err != nil {
		return unit{}, false, err
	}
	var captures kv.Change
	for i, c := range l.captures {
		if sealed := ciphertexts[n+i]; sealed != nil {
			c.Replace(&captures, sealed)
		}
	}
	if len(renewed.Records) == 0 && len(captures.Sets) == 0 && (!first || n > 0) {
		return unit{}, false, nil
	}
	u := newUnit(ref, renewed)
	u.change.Merge(captures)
	l.consents.Expect(&u.change) // a capture that was added meanwhile is still under the key before
	u.close()
	return u, true, nil
}

// reseal asks the sidecar to seal subjects again, in as many calls as their size demands. Outcomes are in the order
// of subjects.
func (s *resealing) reseal(ctx context.Context, subjects []ResealSubject) ([]ResealedSubject, error) {
	out := make([]ResealedSubject, len(subjects))
	var call []ResealSubject
	var at []int // of each in call, its place in subjects
	size, count := 0, 0
	send := func() error {
		if len(call) == 0 {
			return nil
		}
		outcomes, err := s.Keys.Reseal(ctx, s.rotation, call)
		if err == nil && len(outcomes) != len(call) {
			err = wrapf(ErrIntegrity, "sidecar answered another number of subjects")
		}
		if err != nil {
			return wrapf(err, "sealing again")
		}
		for i, o := range outcomes {
			if o.Err == nil && len(o.Ciphertexts) != len(call[i].Items) {
				return wrapf(ErrIntegrity, "sidecar answered another number of ciphertexts")
			}
			to := &out[at[i]]
			if to.Err == nil {
				to.Err, to.Ref = o.Err, o.Ref
			}
			to.Ciphertexts = append(to.Ciphertexts, o.Ciphertexts...)
		}
		call, at, size, count = nil, nil, 0, 0
		return nil
	}
	for i, subject := range subjects {
		for items := subject.Items; ; {
			n, bytes := prefix(items, rekeyBytes)
			full := len(call) == rekeyBatch || size+bytes > rekeyBytes || count+n > rekeyCallItems || len(at) > 0 && at[len(at)-1] == i
			if full {
				if err := send(); err != nil {
					return nil, err
				}
			}
			call, at, size = append(call, ResealSubject{Subject: subject.Subject, Items: items[:n]}), append(at, i), size+bytes
			count += n
			if items = items[n:]; len(items) == 0 {
				break
			}
		}
	}
	return out, send()
}

// prefix returns how many items fit into one call, at least one if there is any, and their size.
func prefix(items []ResealItem, limit int) (n, size int) {
	for n < len(items) && n < rekeyItems {
		next := len(items[n].Ciphertext) + 64
		if n > 0 && size+next > limit {
			break
		}
		n, size = n+1, size+next
	}
	return n, size
}

// takeDue takes out those whose pause is over, at most n.
func (s *resealing) takeDue(n int) []retirement {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := 0
	for due < min(n, len(s.retiring)) && time.Since(s.retiring[due].committed) >= s.Pause {
		due++
	}
	taken := slices.Clone(s.retiring[:due])
	s.retiring = slices.Delete(s.retiring, 0, due)
	return taken
}

// retireAll drops the keys of all that are waiting, when their pause is over. No batch is under way.
func (s *resealing) retireAll(ctx context.Context) error {
	for len(s.retiring) > 0 {
		if !wait(ctx, s.Pause-time.Since(s.retiring[0].committed)) {
			return context.Cause(ctx)
		}
		due := s.takeDue(len(s.retiring))
		if err := s.barrier(ctx); err != nil {
			return err
		}
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(rekeyParallel)
		for _, d := range due {
			group.Go(func() error { return s.drop(groupCtx, d) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// retire drops older keys of batches whose pause is over.
func (s *resealing) retire(ctx context.Context, due []retirement) error {
	if len(due) == 0 {
		return nil
	}
	if err := s.barrier(ctx); err != nil {
		return err
	}
	for _, d := range due {
		if err := s.drop(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// drop drops the older keys of the subjects of d, after a barrier. A detail that was sealed under one before it was
// replaced, and committed without the head's knowing, is in the ledger by now: nothing that was sealed so long ago is
// committed any more, and the barrier waits for what is being committed.
func (s *resealing) drop(ctx context.Context, d retirement) error {
	late, err := s.detailsSince(ctx, d.seen)
	if err == nil && late { // of somebody
		err = s.details(ctx, d.subjects)
	}
	if err != nil {
		return err
	}
	ids := make([]uuid.UUID, 0, len(d.subjects))
	for _, x := range d.subjects {
		if !x.unsound {
			ids = append(ids, x.id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	outcomes, err := s.Keys.Retire(ctx, s.rotation, ids)
	if err == nil && len(outcomes) != len(ids) {
		err = wrapf(ErrIntegrity, "sidecar answered another number of subjects")
	}
	if err != nil {
		return wrapf(err, "dropping older keys")
	}
	for _, err := range outcomes {
		if err != nil && !s.Gone(err) {
			return wrapf(err, "dropping an older key")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired.add(ids)
	return nil
}
