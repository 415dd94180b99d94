package keyring

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// Scopes of rotations.
const (
	ScopeKEK         = "kek"          // an epoch: every bundle is wrapped under a new version of the KEK, older ones are destroyed
	ScopeSubject     = "subject"      // one subject's key
	ScopeAllSubjects = "all-subjects" // every subject's key
	ScopeIndex       = "index"        // the key of the blind index
	ScopeToken       = "token"        // the key of links; older ones go on verifying
	ScopeLedger      = "ledger"       // pdvault's signing key of the ledger
	ScopeWitness     = "witness"      // the sidecar's key; older ones go on cosigning for a while
)

// States of a job.
const (
	JobRunning = "running"
	JobDone    = "done"
	JobFailed  = "failed"
)

// Job is a rotation. Those of scope kek, token and witness are carried out by the keyring itself; the others by
// the process that holds what is to be sealed again, which reports with Advance.
type Job struct {
	ID       uuid.UUID // version 7
	Scope    string
	Subject  uuid.UUID // for ScopeSubject
	By       string    // who asked: id of a caller, "pdkeys", or "schedule"
	State    string
	Phase    string
	Done     int64
	Total    int64 // 0: not known yet
	Started  time.Time
	Updated  time.Time
	Finished time.Time // zero: not yet
	Target   uint64    // version that everything is brought to: of the KEK, a rotation, an index key, ...
	Failure  string    // code, when it failed
	Recorded int64     // index of the ledger entry that holds the evidence; -1: none yet
}

// Progress is what the driver of a job reports.
type Progress struct {
	Phase    string // empty: unchanged
	Done     int64
	Total    int64
	Finish   bool   // all is done: the keyring verifies what it can, or refuses with keys.ErrInvalid
	Failure  string // code of a failure that ends the job; empty: none
	Recorded int64  // -1: unchanged
}

// KeyVersion counts what is on one version of one kind of key.
type KeyVersion struct {
	Kind    string // kek, subject, index, token, service, witness
	Version uint64
	Newest  bool
	Count   int64
	Made    time.Time // zero: not known
}

// Inventory is every version in use.
type Inventory struct {
	Versions      []KeyVersion // by kind, the newest version first
	Subjects      int64        // bundles
	Destroyed     int64        // tombstones
	Counted       time.Time
	NextEpoch     time.Time     // by which the next epoch is due; zero: none is planned
	EpochInterval time.Duration // 0: none is planned
}

// Phases of a job that the keyring carries out itself.
const (
	phaseBegin  = "begin"  // of every job that the keyring has to prepare for
	phaseRotate = "rotate" // the KEK gets a new version
	phaseRewrap = "rewrap" // everything is wrapped under it
	phaseVerify = "verify" // nothing can be written under an older one; everything is looked at again
	phaseRetire = "retire" // the older ones are destroyed
	phaseDone   = "done"

	phaseOrphans = "orphans" // the driver has done every subject that it knows
)

// Scopes lists the scopes of rotations.
var Scopes = []string{ScopeKEK, ScopeSubject, ScopeAllSubjects, ScopeIndex, ScopeToken, ScopeLedger, ScopeWitness}

// atOnce tells the scopes that take no time, so that they neither wait for others nor hold them up.
func atOnce(scope string) bool { return scope == ScopeToken || scope == ScopeWitness }

// ours tells the scopes that the keyring carries out.
func ours(scope string) bool { return scope == ScopeKEK || atOnce(scope) }

// failureCode is the code of err in Job.Failure, such as "kek-missing".
func failureCode(err error) string {
	return strings.ReplaceAll(strings.ToLower(keys.CodeOf(err).String()), "_", "-")
}

// StartJob begins a rotation, asked for by by. It is durable when StartJob returns; one of scope token or witness
// is done by then. It fails with keys.ErrJobRunning while another one runs (one that its driver has not reported on for
// a day ends as failed instead) or the evidence of too many is unrecorded, with keys.ErrInvalid when the scope is
// unknown or subject is set for another scope than ScopeSubject, with keys.ErrNoKey or keys.ErrDestroyed when the
// subject has no key, with keys.ErrTooManyKeys when older keys of the kind have to go first, and for ScopeKEK with
// keys.ErrForbidden when Config.Epochs is not set, and as Ready does when the KEK does not unwrap what is stored.
func (k *Keyring) StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (Job, error) {
	if _, err := k.current(); err != nil {
		return Job{}, err
	}
	if !slices.Contains(Scopes, scope) || (scope == ScopeSubject) != (subject != uuid.Nil) || by == "" || len(by) > maxBy {
		return Job{}, fmt.Errorf("scope, subject or author of a rotation: %w", keys.ErrInvalid)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Job{}, fmt.Errorf("starting a rotation: %w: %w", keys.ErrUnavailable, err)
	}
	now := k.cfg.Now().UnixMilli()
	rec := jobRecord{Format: jobFormat, ID: id, Scope: scope, Subject: subject, By: by, State: JobRunning, Started: now, Updated: now, Recorded: -1}
	switch scope {
	case ScopeKEK:
		if k.cfg.Epochs == nil {
			return Job{}, fmt.Errorf("no role for epochs is configured: %w", keys.ErrForbidden)
		}
		// On a key that was put back to an older state, an epoch would make the version that is lost once more, as
		// another key; and what is wrapped under that would be lost when the key is put right.
		if err := k.unwrapsStored(ctx); err != nil {
			return Job{}, fmt.Errorf("starting an epoch: %w", err)
		}
		newest, err := k.newestVersion(ctx)
		if err != nil {
			return Job{}, fmt.Errorf("starting an epoch: %w", err)
		}
		rec.Target, rec.Phase = newest+1, phaseRotate
	case ScopeSubject:
		found, err := k.lookup(ctx, []uuid.UUID{subject})
		if err != nil {
			return Job{}, err
		}
		if found[0].err != nil {
			return Job{}, found[0].err
		}
		rec.Total = 1
	case ScopeIndex, ScopeToken, ScopeWitness:
		rec.Phase = phaseBegin
	}
	// A caller that leaves cannot call the job back: it may be in the store by then, and must be carried out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.cfg.KEKTimeout)
	defer cancel()
	if scope == ScopeKEK {
		defer k.epochs.poke() // also when the outcome of the commit is not known
	}
	if rec, err = k.insertJob(ctx, rec); err != nil {
		return Job{}, err
	}
	switch scope {
	case ScopeIndex:
		version, err := k.beginIndex(ctx)
		return k.begun(ctx, rec, uint64(version), err)
	case ScopeToken:
		version, err := k.addKeyset(ctx, "token")
		return k.begun(ctx, rec, version, err)
	case ScopeWitness:
		version, err := k.rotateWitness(ctx)
		return k.begun(ctx, rec, version, err)
	}
	return rec.job(), nil
}

// begun goes on with a job after its new key was made, or was not.
func (k *Keyring) begun(ctx context.Context, rec jobRecord, version uint64, failed error) (Job, error) {
	// The key is made, or the caller must hear why not: either is kept even if the caller has left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.cfg.KEKTimeout)
	defer cancel()
	j, err := k.editJob(ctx, rec.ID, func(_ kv.Writer, r *jobRecord) (error, error) {
		if r.State != JobRunning || r.Phase != phaseBegin {
			return nil, nil
		}
		r.Target = version
		switch {
		case failed != nil:
			r.end(k.cfg.Now(), failureCode(failed))
		case atOnce(r.Scope):
			r.Done = 1
			r.end(k.cfg.Now(), "")
		default:
			r.Phase = ""
		}
		return nil, nil
	})
	if failed != nil {
		return Job{}, fmt.Errorf("rotating: %w", failed)
	}
	if err != nil {
		return Job{}, err
	}
	return j.job(), nil
}

// Jobs lists rotations, the newest first; of those that have ended, the last 100.
func (k *Keyring) Jobs(ctx context.Context) ([]Job, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	records, err := k.jobRecords(ctx)
	if err != nil {
		return nil, err
	}
	jobs := make([]Job, 0, len(records))
	for _, r := range slices.Backward(records) {
		if r.State == JobRunning && r.Phase == phaseBegin {
			continue // its key is being made: there is nothing for a driver to do yet
		}
		jobs = append(jobs, r.job())
	}
	return jobs, nil
}

// AdvanceJob takes the report of a job's driver. While the job runs, the keyring accepts reports on the scopes that
// it does not carry out itself. With Finish it verifies first that nothing is left on an older key, which keys.ErrInvalid
// denies, and for ScopeIndex drops the older index key. Once the job has ended, only Recorded is accepted, once. It
// fails with keys.ErrNoJob for an unknown id.
func (k *Keyring) AdvanceJob(ctx context.Context, id uuid.UUID, p Progress) (Job, error) {
	if _, err := k.current(); err != nil {
		return Job{}, err
	}
	if len(p.Phase) > maxPhase || len(p.Failure) > maxPhase || p.Done < 0 || p.Total < 0 || p.Recorded < -1 || p.Finish && p.Failure != "" ||
		p.Phase == phaseBegin {
		return Job{}, fmt.Errorf("report on a rotation: %w", keys.ErrInvalid)
	}
	if p.Finish {
		total, err := k.finishable(ctx, id)
		if err != nil {
			return Job{}, err
		}
		if total > 0 { // which evidence will say, so it is not taken from the driver
			p.Done, p.Total = total, total
		}
	}
	rec, err := k.editJob(ctx, id, func(_ kv.Writer, r *jobRecord) (error, error) {
		if r.State != JobRunning {
			if p.Phase != "" || p.Finish || p.Failure != "" || p.Recorded < 0 || r.Recorded >= 0 && r.Recorded != p.Recorded {
				return fmt.Errorf("rotation has ended: %w", keys.ErrInvalid), nil
			}
			r.Recorded = p.Recorded
			return nil, nil
		}
		if ours(r.Scope) || r.Phase == phaseBegin || p.Recorded >= 0 {
			return fmt.Errorf("report on a rotation that is under way: %w", keys.ErrInvalid), nil
		}
		if p.Phase != "" {
			r.Phase = p.Phase
		}
		if p.Done > 0 || p.Total > 0 {
			r.Done, r.Total = p.Done, p.Total
		}
		if p.Finish || p.Failure != "" {
			r.end(k.cfg.Now(), p.Failure)
		}
		return nil, nil
	})
	if err != nil {
		return Job{}, err
	}
	return rec.job(), nil
}

// finishable verifies what a driver says is done, and does what is left for the keyring to do. It returns how many
// things it has found to be on the target; 0: it cannot tell.
func (k *Keyring) finishable(ctx context.Context, id uuid.UUID) (total int64, err error) {
	records, err := k.jobRecords(ctx)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(records, func(r jobRecord) bool { return r.ID == id })
	if i < 0 {
		return 0, keys.ErrNoJob
	}
	r := &records[i]
	if r.State != JobRunning || ours(r.Scope) || r.Phase == phaseBegin {
		return 0, nil // which AdvanceJob refuses
	}
	switch r.Scope {
	case ScopeSubject:
		found, err := k.lookup(ctx, []uuid.UUID{r.Subject})
		if err != nil {
			return 0, err
		}
		if found[0].err != nil {
			return 0, nil // erased meanwhile
		}
		return 1, rotated(found[0].row, r.Target)
	case ScopeAllSubjects:
		if r.Phase == phaseOrphans {
			if err := k.spare(ctx, uint32(r.Target)); err != nil {
				return 0, err
			}
		}
		err := k.scan(ctx, prefixBundle, nil, func(p kv.Pair) error { total++; return rotated(p.Value, r.Target) })
		return total, err
	case ScopeIndex:
		return 0, k.endIndex(ctx, uint32(r.Target))
	}
	return 0, nil
}

// rotated refuses a bundle that is older than rotation target, or that still holds older keys.
func rotated(b []byte, target uint64) error {
	r, err := decodeRow(b)
	if err != nil {
		return err
	}
	if uint64(r.rotation) < target || r.keys != 1 && !r.spare {
		return fmt.Errorf("a bundle holds an older key: %w", keys.ErrInvalid)
	}
	return nil
}

// currentRotation is the newest rotation of subjects' keys, which new bundles belong to.
func (k *Keyring) currentRotation() uint32 { return k.rotation.Load() }

// endInterrupted ends the jobs whose key was being made when the process ended. The key may be there; nobody
// was told.
func (k *Keyring) endInterrupted(ctx context.Context) error {
	records, err := k.jobRecords(ctx)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.State != JobRunning || r.Phase != phaseBegin {
			continue
		}
		_, err := k.editJob(ctx, r.ID, func(_ kv.Writer, r *jobRecord) (error, error) {
			if r.State == JobRunning && r.Phase == phaseBegin {
				r.end(k.cfg.Now(), "interrupted")
			}
			return nil, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// raise32 sets v to at least n.
func raise32(v *atomic.Uint32, n uint32) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}
