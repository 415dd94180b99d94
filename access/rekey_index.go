package access

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

// Phases of a rotation of the index.
const (
	phaseBackfill = "backfill" // writes make tokens under both keys, lookups read the older ones
	phaseSwitch   = "switch"   // every value has both, lookups read the newer ones
	phaseDrop     = "drop"     // writes make the newer ones only, the older ones are removed
)

// reindexSubjects carries out a job of scope index. How far it is stands in the state of the index, which each phase
// changes by an entry of its own. At each moment, what lookups read and what unique values are compared by is there of
// every value: a token is read only when all values have one, and goes only when nobody reads it.
func (r *Rotator) reindexSubjects(ctx context.Context, job RotationJob, p *progress) error {
	target, err := targetOf(job)
	if err != nil {
		return err
	}
	state, err := r.broker.indexState(ctx)
	if err != nil {
		return err
	}
	become := func(phase string, next vault.IndexState) error {
		state, err = r.become(ctx, job, phase, p, state, next)
		return err
	}
	if !slices.Contains(state.Keys, target) {
		keys := append(slices.Clone(state.Keys), target)
		slices.Sort(keys)
		if err := become(phaseBackfill, vault.IndexState{Keys: keys, Read: state.Read}); err != nil {
			return err
		}
	}
	if state.Read != target {
		if err := r.reindexAll(ctx, phaseBackfill, p); err != nil {
			return err
		}
		if err := become(phaseSwitch, vault.IndexState{Keys: state.Keys, Read: target}); err != nil {
			return err
		}
	}
	if len(state.Keys) > 1 {
		if err := become(phaseDrop, vault.IndexState{Keys: []uint32{target}, Read: target}); err != nil {
			return err
		}
	}
	if err := r.reindexAll(ctx, phaseDrop, p); err != nil {
		return err
	}
	return r.dropStray(ctx, job, state)
}

// become announces a phase by an entry that changes the state of the index, and returns the new state.
func (r *Rotator) become(ctx context.Context, job RotationJob, phase string, p *progress, from, to vault.IndexState) (vault.IndexState, error) {
	change, err := from.Become(to)
	if err != nil {
		return from, err
	}
	entry := r.entry(verify.KindKeyRotated, job)
	entry.Keys.Phase, entry.Keys.Total = phase, p.total
	if phase == phaseBackfill {
		if p.total, err = r.countSubjects(ctx); err != nil {
			return from, err
		}
		entry.Keys.Total, entry.Keys.Left = p.total, p.total
	}
	if _, err := r.broker.ledger.Append(ctx, entry, func(ledger.Position) kv.Change { return change }); err != nil {
		return from, wrapf(err, "announcing a phase")
	}
	if err := r.broker.keepIndexChecks(ctx); err != nil {
		return from, err
	}
	return r.broker.indexState(ctx)
}

// reindexing is one pass over all subjects.
type reindexing struct {
	*Rotator
	phase   string
	changed atomic.Int64
	schemas func(string) (*schema.Collection, bool)
	anew    bool         // every token is made, and a subject whose values do not open is left out
	lost    atomic.Int64 // subjects that were left out
}

// all goes over all subjects once.
func (x *reindexing) all(ctx context.Context, p *progress) error {
	return x.eachBatch(ctx, func(ctx context.Context, ids []uuid.UUID) error {
		if err := x.batch(ctx, ids); err != nil {
			return err
		}
		return p.add(ctx, len(ids))
	})
}

// reindexAll gives every value the tokens of the state of the index, and ends when a pass over all subjects has found
// none without them.
func (r *Rotator) reindexAll(ctx context.Context, phase string, p *progress) error {
	total, err := r.countSubjects(ctx)
	if err != nil {
		return err
	}
	for range rekeyPasses {
		if err := p.begin(ctx, phase, total); err != nil {
			return err
		}
		pass := &reindexing{Rotator: r, phase: phase, schemas: r.broker.schemas(ctx)}
		if err := pass.all(ctx, p); err != nil {
			return err
		}
		if pass.changed.Load() == 0 {
			return nil
		}
	}
	return ErrBusy
}

// schemas finds collections in the policy in force, and those that left it in the newest version that has them: how
// many bits of a token are kept does not change by it.
func (b *Broker) schemas(ctx context.Context) func(string) (*schema.Collection, bool) {
	p := b.current.Load()
	return func(name string) (*schema.Collection, bool) {
		if c, ok := p.bundle.Collection(name); ok {
			return c, true
		}
		for version := p.Version - 1; version > 0; version-- {
			bundle, err := b.bundleOf(ctx, p, version)
			if err != nil {
				return nil, false
			}
			if c, ok := bundle.Collection(name); ok {
				return c, true
			}
		}
		return nil, false
	}
}

// batch indexes subjects again that lack a token or have one too many.
func (x *reindexing) batch(ctx context.Context, ids []uuid.UUID) error {
	for try := 0; len(ids) > 0; try++ {
		if try == rekeyTries {
			return ErrBusy
		}
		subjects, err := x.load(ctx, ids)
		if err != nil {
			return err
		}
		ids = nil
		outcomes, err := x.tokens(ctx, subjects)
		if err != nil {
			return err
		}
		var units []unit
		for i, s := range subjects {
			if err := outcomes[i].Err; err != nil && x.Gone(err) {
				continue
			} else if err != nil && x.Damaged(err) && try < rekeyTries-1 {
				ids = append(ids, s.ID) // its key may have been replaced since it was loaded
				continue
			} else if err != nil && x.Damaged(err) && x.anew {
				x.lost.Add(1)
				continue
			} else if err != nil && x.Damaged(err) {
				return &rotationError{x.broker.failureCode(err), 1}
			} else if err != nil {
				return err
			}
			renewed, err := s.Reindex(outcomes[i].Tokens, x.schemas)
			if err != nil {
				return err
			}
			u := newUnit(outcomes[i].Ref, renewed)
			u.close()
			units = append(units, u)
		}
		again, err := x.commit(ctx, verify.KindRecordResealed, nil, units)
		if errors.Is(err, vault.ErrNotUnique) {
			// The value has one owner under the older key, so the row that is in the way is nobody's.
			return &rotationError{"index-row-taken", 1}
		}
		if err != nil {
			return err
		}
		x.changed.Add(int64(len(units) - len(again)))
		x.Observer.RotationResealed(len(units) - len(again))
		for id := range again {
			ids = append(ids, id)
		}
	}
	return nil
}

// load reads the subjects of ids that have something to be done.
func (x *reindexing) load(ctx context.Context, ids []uuid.UUID) (subjects []*vault.Subject, err error) {
	err = x.broker.store.View(ctx, func(r kv.Reader) error {
		subjects = nil
		for _, id := range ids {
			s, err := vault.LoadAll(r, id)
			if errors.Is(err, vault.ErrNoSubject) {
				continue
			}
			if errors.Is(err, vault.ErrIntegrity) && x.anew {
				x.lost.Add(1)
				continue
			}
			if err != nil {
				return err
			}
			if x.anew {
				s = s.WithoutTokens()
			}
			if len(s.Unindexed()) > 0 {
				subjects = append(subjects, s)
			}
		}
		return nil
	})
	return subjects, err
}

// tokens asks the sidecar for the tokens that subjects lack, in as many calls as their number demands. Those that only
// have too many are asked for too, without values, for the reference alone.
func (x *reindexing) tokens(ctx context.Context, subjects []*vault.Subject) ([]ReindexedSubject, error) {
	var out []ReindexedSubject
	for len(subjects) > 0 {
		n, values := 0, 0
		for n < len(subjects) && (n == 0 || values+len(subjects[n].Unindexed()) <= rekeyCallItems) {
			values += len(subjects[n].Unindexed())
			n++
		}
		outcomes, err := x.someTokens(ctx, subjects[:n])
		if err != nil {
			return nil, err
		}
		out, subjects = append(out, outcomes...), subjects[n:]
	}
	return out, nil
}

func (x *reindexing) someTokens(ctx context.Context, subjects []*vault.Subject) ([]ReindexedSubject, error) {
	call := make([]ReindexSubject, len(subjects))
	for i, s := range subjects {
		call[i].Subject = s.ID
		if !s.Missing() {
			continue
		}
		for _, v := range s.Unindexed() {
			call[i].Values = append(call[i].Values, ReindexValue{
				Collection: v.Collection, Field: v.Field, Normaliser: v.Normaliser, Sealed: v.Ciphertext,
			})
		}
	}
	outcomes, err := x.Keys.Reindex(ctx, call)
	if err == nil && len(outcomes) != len(call) {
		err = wrapf(ErrIntegrity, "sidecar answered another number of subjects")
	}
	if err != nil {
		return nil, wrapf(err, "indexing again")
	}
	for i := range outcomes {
		if outcomes[i].Err != nil {
			continue
		}
		if len(outcomes[i].Tokens) != len(call[i].Values) {
			return nil, wrapf(ErrIntegrity, "sidecar answered another number of values")
		}
		if len(call[i].Values) == 0 {
			outcomes[i].Tokens = make([][]vault.IndexToken, len(subjects[i].Unindexed()))
		}
	}
	return outcomes, nil
}

// dropStray removes what is left in the index under keys that are no longer in use. A record lists each of its rows,
// so there is something only where a row had lost its record.
func (r *Rotator) dropStray(ctx context.Context, job RotationJob, state vault.IndexState) error {
	var after []byte
	for {
		var stray [][]byte
		err := r.broker.store.View(ctx, func(reader kv.Reader) (err error) {
			stray, after, err = vault.StrayTokens(reader, state, after, 1000)
			return err
		})
		if err != nil {
			return err
		}
		if len(stray) > 0 {
			r.broker.log.Warn("rows of the index without a record were removed", "rows", len(stray))
			entry := r.entry(verify.KindKeyRotated, job)
			entry.Keys.Phase = phaseDrop
			_, err := r.broker.ledger.Append(ctx, entry, func(ledger.Position) kv.Change {
				return kv.Change{Deletes: stray}
			})
			if err != nil {
				return wrapf(err, "removing rows of the index")
			}
		}
		if after == nil {
			return nil
		}
	}
}
