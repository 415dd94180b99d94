package access

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/policy"
)

// Scopes of rotations.
const (
	ScopeKEK         = "kek"          // an epoch: every bundle is wrapped anew, the old wrapping is destroyed
	ScopeSubject     = "subject"      // one subject's key
	ScopeAllSubjects = "all-subjects" // every subject's key
	ScopeIndex       = "index"        // the key of the blind index
	ScopeToken       = "token"        // the key of links; older ones go on verifying
	ScopeLedger      = "ledger"       // the signing key of the ledger
	ScopeWitness     = "witness"      // the sidecar's key
)

var scopes = []string{ScopeKEK, ScopeSubject, ScopeAllSubjects, ScopeIndex, ScopeToken, ScopeLedger, ScopeWitness}

// States of rotations.
const (
	RotationRunning = "running"
	RotationDone    = "done"
	RotationFailed  = "failed"
)

// KeyCount counts what is on one version of one kind of key. Like RotationJob and KeyInventory it is an alias of an
// unnamed struct, so that the sidecar's client satisfies Keys by shape.
type KeyCount = struct {
	Kind    string
	Version uint64
	Newest  bool
	Count   int64
	Made    time.Time
}

// KeyInventory is every version in use.
type KeyInventory = struct {
	KEK                 string
	Generation          uint64
	Versions            []KeyCount
	Subjects, Destroyed int64
	Counted             time.Time
	NextEpoch           time.Time
	EpochInterval       time.Duration
}

// Keys is what the broker needs of the sidecar about the keys themselves. No key comes out of it.
type Keys interface {
	// Inventory counts every version in use.
	Inventory(ctx context.Context) (KeyInventory, error)
	// StartJob begins a rotation, of subject for ScopeSubject, and returns at once. It fails while another one
	// is running.
	StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (RotationJob, error)
	// Jobs lists rotations, the newest first.
	Jobs(ctx context.Context) ([]RotationJob, error)
}

const day = 24 * time.Hour

// DefaultKeyAges returns the ages at which keys are to be rotated. That of the KEK is the interval of the
// epochs when one is set.
func DefaultKeyAges() map[string]time.Duration {
	return map[string]time.Duration{
		"kek":     30 * day,
		"subject": 2 * 365 * day,
		"index":   365 * day,
		"token":   365 * day,
		"service": 2 * 365 * day,
		"ledger":  2 * 365 * day,
		"witness": 2 * 365 * day,
	}
}

// verifying are the kinds of which older versions stay, to verify what was made with them.
var verifying = []string{"token", "ledger", "witness"}

// KeysInfo says which keys are in use, how old they are, and what becomes of them next.
type KeysInfo struct {
	KEK                 string // kind of the key-encryption key
	Generation          uint64 // of the key store
	Versions            []KeyVersion
	Subjects, Destroyed int64 // that have a key; whose key was destroyed
	Counted             time.Time
	NextEpoch           time.Time     // zero: none is planned
	EpochInterval       time.Duration // 0: none is planned
	Running             *Rotation     // nil: none
}

// KeyVersion is one version of one kind of key.
type KeyVersion struct {
	KeyCount
	Age     time.Duration // 0: not known
	MaxAge  time.Duration // at which it is to be rotated; 0: never
	Overdue bool          // it is in use past MaxAge
}

// Rotation is one rotation of keys.
type Rotation struct {
	ID                         uuid.UUID
	Scope                      string
	Subject                    uuid.UUID // for ScopeSubject; zero otherwise
	By                         string    // id of the caller, or who else asked for it
	State, Phase               string
	Done, Total                int64 // Total is 0 while it is not known
	Started, Updated, Finished time.Time
	Target                     uint64 // version that all is brought to; 0: not known yet
	Failure                    string // code, when it failed
	Evidence                   string // signed note of the sidecar; empty: none yet
	Record                     int64  // index of the entry that holds the evidence; -1: none yet
}

// Percent says how much is done. Only what is finished is 100.
func (r *Rotation) Percent() int {
	switch {
	case r.State == RotationDone:
		return 100
	case r.Total <= 0 || r.Done <= 0:
		return 0
	}
	return int(min(99, float64(r.Done)/float64(r.Total)*100))
}

// Remaining estimates how long a running rotation will take, at the pace that it had until its last report.
func (r *Rotation) Remaining() (time.Duration, bool) {
	took := r.Updated.Sub(r.Started)
	if r.State != RotationRunning || r.Done <= 0 || r.Total < r.Done || took <= 0 {
		return 0, false
	}
	return time.Duration(float64(took) / float64(r.Done) * float64(r.Total-r.Done)), true
}

// Keys tells which keys are in use.
func (b *Broker) Keys(ctx context.Context, r Request) (KeysInfo, error) {
	return again(func() (KeysInfo, error) {
		if err := b.permitKeys(ctx, r, policy.ActionKeysRead, noSubject); err != nil {
			return KeysInfo{}, err
		}
		i, err := b.keys.Inventory(ctx)
		if err != nil {
			return KeysInfo{}, wrapf(err, "counting the keys")
		}
		rotations, err := b.rotations(ctx)
		if err != nil {
			return KeysInfo{}, err
		}
		info := KeysInfo{
			KEK: i.KEK, Generation: i.Generation, Subjects: i.Subjects, Destroyed: i.Destroyed,
			Counted: i.Counted, NextEpoch: i.NextEpoch, EpochInterval: i.EpochInterval, Running: running(rotations),
		}
		for _, v := range i.Versions {
			info.Versions = append(info.Versions, b.aged(v, i.EpochInterval))
		}
		return info, nil
	})
}

// aged compares the age of v with the policy.
func (b *Broker) aged(v KeyCount, epoch time.Duration) KeyVersion {
	out := KeyVersion{KeyCount: v, MaxAge: b.keyAges[v.Kind]}
	if v.Kind == "kek" && epoch > 0 {
		out.MaxAge = epoch
	}
	if !v.Made.IsZero() {
		out.Age = max(b.now().Sub(v.Made), 0)
	}
	used := v.Newest || v.Count > 0 && !slices.Contains(verifying, v.Kind)
	out.Overdue = used && out.MaxAge > 0 && out.Age > out.MaxAge
	return out
}

// StartRotation begins a rotation of scope; subject is for ScopeSubject and must be zero for every other. It
// returns at once; see Rotation. While another one is running it fails with a *RotationError.
func (b *Broker) StartRotation(ctx context.Context, r Request, scope string, subject uuid.UUID) (Rotation, error) {
	switch {
	case !slices.Contains(scopes, scope):
		return Rotation{}, &FieldError{Field: "/scope", Why: "is not known"}
	case (scope == ScopeSubject) != (subject != noSubject):
		return Rotation{}, &FieldError{Field: "/subject", Why: "is for the scope subject, and only for it"}
	}
	return again(func() (Rotation, error) {
		if err := b.permitKeys(ctx, r, policy.ActionKeysRotate, subject); err != nil {
			return Rotation{}, err
		}
		if subject != noSubject {
			if _, err := b.subjectState(ctx, subject); err != nil {
				return Rotation{}, absent(err)
			}
		}
		job, err := b.keys.StartJob(ctx, scope, subject, r.Caller.ID)
		if err == nil {
			select {
			case b.rotate <- struct{}{}:
			default: // the rotator will look for jobs in any case
			}
			return rotation(job)
		}
		if rotations, e := b.rotations(ctx); e == nil {
			if now := running(rotations); now != nil {
				return Rotation{}, &RotationError{Running: now.ID, Err: err}
			}
		}
		return Rotation{}, wrapf(err, "starting a rotation")
	})
}

// Rotations lists the rotations, the newest first.
func (b *Broker) Rotations(ctx context.Context, r Request) ([]Rotation, error) {
	return again(func() ([]Rotation, error) {
		if err := b.permitKeys(ctx, r, policy.ActionKeysRead, noSubject); err != nil {
			return nil, err
		}
		return b.rotations(ctx)
	})
}

// Rotation returns one rotation.
func (b *Broker) Rotation(ctx context.Context, r Request, id uuid.UUID) (Rotation, error) {
	rotations, err := b.Rotations(ctx, r)
	if err != nil {
		return Rotation{}, err
	}
	i := slices.IndexFunc(rotations, func(r Rotation) bool { return r.ID == id })
	if i < 0 {
		return Rotation{}, ErrNotFound
	}
	return rotations[i], nil
}

// permitKeys decides an action about keys, before anything is asked about them.
func (b *Broker) permitKeys(ctx context.Context, r Request, action string, subject uuid.UUID) error {
	if err := b.permit(ctx, b.current.Load(), r, action, "", subject); err != nil {
		return err
	}
	if b.keys == nil {
		return wrapf(ErrUnavailable, "keys are not managed here")
	}
	return nil
}

func (b *Broker) rotations(ctx context.Context) ([]Rotation, error) {
	jobs, err := b.keys.Jobs(ctx)
	if err != nil {
		return nil, wrapf(err, "listing rotations")
	}
	out := make([]Rotation, len(jobs))
	for i, job := range jobs {
		if out[i], err = rotation(job); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// running returns the rotation that is running; nil: none is.
func running(rotations []Rotation) *Rotation {
	for i := range rotations {
		if rotations[i].State == RotationRunning {
			return &rotations[i]
		}
	}
	return nil
}

func rotation(j RotationJob) (Rotation, error) {
	id, err := uuid.Parse(j.ID)
	if err != nil {
		return Rotation{}, wrapf(ErrIntegrity, "a rotation has no id")
	}
	return Rotation{
		ID: id, Scope: j.Scope, Subject: j.Subject, By: j.By, State: j.State, Phase: j.Phase, Done: j.Done, Total: j.Total,
		Started: j.Started, Updated: j.Updated, Finished: j.Finished, Target: j.Target, Failure: j.Failure,
		Evidence: j.Evidence, Record: j.Recorded,
	}, nil
}
