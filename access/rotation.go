package access

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// The shapes of rotations. Like OpenField they are aliases of unnamed structs, so that the sidecar's client
// satisfies RotationKeys by shape.
type (
	// RotationJob is a rotation as the sidecar keeps it.
	RotationJob = struct {
		ID, Scope                  string
		Subject                    uuid.UUID // zero: none
		By, State, Phase           string
		Done, Total                int64
		Started, Updated, Finished time.Time
		Target                     uint64
		Failure                    string
		Evidence                   string
		Recorded                   int64 // index of the entry that holds the evidence; -1: none yet
	}
	// RotationProgress is what is reported of a job. Recorded is -1 when unchanged.
	RotationProgress = struct {
		Phase       string
		Done, Total int64
		Finish      bool
		Failure     string
		Recorded    int64
	}
	// ResealSubject is what to seal again for one subject.
	ResealSubject = struct {
		Subject uuid.UUID
		Items   []ResealItem
	}
	// ResealItem is one ciphertext of the subject. Kind is 0 for a field, 1 for an index value, 2 for a detail
	// or a capture.
	ResealItem = struct {
		Kind              int
		Collection, Field string
		Version           uint64
		Normaliser        uint32
		Ciphertext        []byte
	}
	// ResealedSubject is the outcome: Ref and Ciphertexts, nil where nothing changed, or Err.
	ResealedSubject = struct {
		Err         error
		Ref         []byte
		Ciphertexts [][]byte
	}
	// ReindexSubject is sealed index values of one subject.
	ReindexSubject = struct {
		Subject uuid.UUID
		Values  []ReindexValue
	}
	// ReindexValue is one sealed index value.
	ReindexValue = struct {
		Collection, Field string
		Normaliser        uint32
		Sealed            []byte
	}
	// ReindexedSubject is the outcome: Ref and the tokens of each value, or Err.
	ReindexedSubject = struct {
		Err    error
		Ref    []byte
		Tokens [][]vault.IndexToken
	}
)

// Kinds of a ResealItem.
const (
	itemField  = 0
	itemIndex  = 1
	itemDetail = 2
)

// RotationKeys is what the rotator needs of the sidecar. An error of a whole call says that nothing of it is known
// to have happened; every call may be made again.
type RotationKeys interface {
	// Jobs lists rotations, the newest first.
	Jobs(ctx context.Context) ([]RotationJob, error)
	// AdvanceJob reports what was done of a job, and returns it as it is then.
	AdvanceJob(ctx context.Context, id string, p RotationProgress) (RotationJob, error)
	// Reseal gives subjects whose keys are older than rotation new ones, durably, and seals what is not under the
	// newest key again.
	Reseal(ctx context.Context, rotation uint32, subjects []ResealSubject) ([]ResealedSubject, error)
	// Retire drops all keys of subjects but the newest. What is sealed under a dropped key opens no more.
	Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error)
	// Reindex computes tokens of sealed index values, under each index key in use.
	Reindex(ctx context.Context, subjects []ReindexSubject) ([]ReindexedSubject, error)
}

// RotationObserver is told how rotations go, for metrics. Nothing it gets names a person.
type RotationObserver interface {
	RotationProgress(scope string, done, total int64)
	RotationResealed(subjects int)
	RotationFailed(scope string)
}

// RotatorConfig is what a Rotator is made of.
type RotatorConfig struct {
	Broker *Broker      // required
	Keys   RotationKeys // required
	// Gone reports whether an error says that the subject's key was destroyed. Required.
	Gone func(error) bool
	// Damaged reports whether an error says that the key of one subject, or something sealed under it, cannot be
	// used, however often it is tried. Such a subject keeps all its keys, and the rotation fails. Required.
	Damaged func(error) bool
	// RotateLedger carries out a job of scope ledger, up to but without finishing it. It is called again after a
	// failure or a restart. nil: such jobs are left to others.
	RotateLedger func(context.Context, RotationJob) error
	Observer     RotationObserver // nil: none
	// Poll is how often jobs are looked for that the broker did not begin. 0 means 1 s.
	Poll time.Duration
	// Pause is how long after the commit of what was sealed again the key before is dropped: what was sealed with
	// it meanwhile must have been committed or refused. It must exceed the broker's SealedFor; 0 means an eighth more.
	Pause time.Duration
}

// Rotator carries out the rotations that the sidecar cannot carry out alone, because what is to be sealed or indexed
// again is in the data store: of subjects' keys, of the blind index, of the ledger key. It also puts the evidence of
// every finished rotation into the ledger.
//
// The jobs are kept by the sidecar and everything done for them is found again in the rows, so a rotation goes on
// after any interruption: a scan that is begun anew passes over what needs nothing.
type Rotator struct {
	RotatorConfig
	broker *Broker
}

// NewRotator returns a rotator; Run or Step make it work.
func NewRotator(c RotatorConfig) (*Rotator, error) {
	if c.Broker == nil || c.Keys == nil || c.Gone == nil || c.Damaged == nil {
		return nil, errors.New("access: broker, keys, Gone and Damaged are required")
	}
	if c.Observer == nil {
		c.Observer = unobservedRotation{}
	}
	if c.Poll == 0 {
		c.Poll = time.Second
	}
	if c.Pause == 0 {
		c.Pause = c.Broker.sealedFor * 9 / 8
	}
	if c.Pause <= c.Broker.sealedFor {
		return nil, errors.New("access: Pause must exceed SealedFor")
	}
	return &Rotator{RotatorConfig: c, broker: c.Broker}, nil
}

type unobservedRotation struct{}

func (unobservedRotation) RotationProgress(string, int64, int64) {}
func (unobservedRotation) RotationResealed(int)                  {}
func (unobservedRotation) RotationFailed(string)                 {}

// Run looks for jobs and carries them out until ctx ends. A failure is logged and tried again.
func (r *Rotator) Run(ctx context.Context) {
	failing := ""
	for {
		err := r.Step(ctx)
		switch code := r.broker.failureCode(err); {
		case ctx.Err() != nil:
			return
		case err == nil:
			failing = ""
		case failing != code: // each kind once, not each second
			failing = code
			r.broker.log.Error("rotation does not go on", "reason", code, "error", err)
		}
		if !r.idle(ctx) {
			return
		}
	}
}

// idle waits until there may be a job. It returns false when ctx ended first.
func (r *Rotator) idle(ctx context.Context) bool {
	t := time.NewTimer(r.Poll)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-r.broker.rotate:
	case <-t.C:
	}
	return ctx.Err() == nil
}

// wait returns false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// phaseBegin is the phase in which the sidecar prepares a job.
const phaseBegin = "begin"

// errTarget is returned for a job whose target cannot be that of its scope.
var errTarget = &rotationError{code: "invalid-target"}

// targetOf is the number of the rotation or the version of the index key that a job is about.
func targetOf(job RotationJob) (uint32, error) {
	if job.Target == 0 || job.Target > 1<<32-1 {
		return 0, errTarget
	}
	return uint32(job.Target), nil
}

// errJobEnded is returned inside the rotator when somebody else ended the job.
var errJobEnded = errors.New("access: the rotation was ended")

// Step records the evidence of finished jobs and carries out the running one, if there is any. It returns when that
// is finished, has failed, or cannot go on now.
func (r *Rotator) Step(ctx context.Context) error {
	jobs, err := r.Keys.Jobs(ctx)
	if err != nil {
		return wrapf(err, "asking for rotations")
	}
	var unrecorded error
	for i := len(jobs) - 1; i >= 0; i-- { // the oldest first
		if jobs[i].State == RotationDone && jobs[i].Recorded < 0 {
			if err := r.record(ctx, jobs[i]); err != nil {
				unrecorded = errors.Join(unrecorded, wrapf(err, "recording a rotation"))
			}
		}
	}
	for _, job := range jobs {
		if job.State != RotationRunning {
			continue
		}
		done, err := r.drive(ctx, job)
		if err == nil && done.State == RotationDone {
			err = r.record(ctx, done)
		}
		if err != nil && !errors.Is(err, errJobEnded) {
			return errors.Join(unrecorded, wrapf(err, "carrying out a rotation"))
		}
	}
	return unrecorded
}

// drive carries out a job of a scope of ours and returns it as it is in the end.
func (r *Rotator) drive(ctx context.Context, job RotationJob) (RotationJob, error) {
	if job.Phase == phaseBegin {
		return job, nil // the sidecar has not made the key yet
	}
	progress := &progress{rotator: r, job: job, phase: job.Phase}
	var err error
	switch job.Scope {
	case ScopeSubject, ScopeAllSubjects:
		err = r.resealSubjects(ctx, job, progress)
	case ScopeIndex:
		err = r.reindexSubjects(ctx, job, progress)
	case ScopeLedger:
		if r.RotateLedger == nil {
			return job, nil
		}
		err = r.RotateLedger(ctx, job)
	default:
		return job, nil // the sidecar carries it out
	}
	var failed *rotationError
	if errors.As(err, &failed) {
		r.Observer.RotationFailed(job.Scope)
		return r.Keys.AdvanceJob(ctx, job.ID, RotationProgress{
			Done: progress.done, Total: progress.total, Failure: failed.code, Recorded: -1,
		})
	}
	if err != nil {
		return job, err
	}
	return r.Keys.AdvanceJob(ctx, job.ID, RotationProgress{Done: progress.done, Total: progress.total, Finish: true, Recorded: -1})
}

// rotationError is a failure that trying again does not mend. It ends the job.
type rotationError struct {
	code  string
	count int64
}

func (e *rotationError) Error() string {
	return fmt.Sprintf("access: rotation failed for %d subjects: %s", e.count, e.code)
}

// progress is how far a job has come.
type progress struct {
	rotator *Rotator
	job     RotationJob
	phase   string // changed while no batch is under way

	mu          sync.Mutex // guards the rest while batches are under way; held during a report
	done, total int64
	reported    time.Time
}

// begin starts a phase over total subjects.
func (p *progress) begin(ctx context.Context, phase string, total int64) error {
	p.phase, p.done, p.total = phase, 0, total
	return p.report(ctx)
}

// add counts n subjects, and reports at most once in a while.
func (p *progress) add(ctx context.Context, n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += int64(n)
	p.total = max(p.total, p.done)
	if time.Since(p.reported) < p.rotator.Poll {
		return nil
	}
	return p.report(ctx)
}

func (p *progress) report(ctx context.Context) error {
	p.reported = time.Now()
	if p.phase == phaseMend {
		return nil // no sidecar knows of it
	}
	p.rotator.Observer.RotationProgress(p.job.Scope, p.done, p.total)
	job, err := p.rotator.Keys.AdvanceJob(ctx, p.job.ID, RotationProgress{Phase: p.phase, Done: p.done, Total: p.total, Recorded: -1})
	if err != nil {
		return wrapf(err, "reporting progress")
	}
	if job.State != RotationRunning {
		return errJobEnded
	}
	return nil
}

// Epoch is the newest epoch in the ledger.
//
// Stored as JSON under "ke", by the entry itself.
type Epoch struct {
	Index   int64  `json:"index"`   // of the entry key.epoch
	Version uint64 `json:"version"` // of the KEK
}

var epochKey = []byte("ke")

// KeyEpochRow is the row that the effects of the key.epoch entry at index set; version is that of the KEK.
func KeyEpochRow(index int64, version uint64) kv.Pair {
	return kv.Pair{Key: epochKey, Value: encodeRow(Epoch{index, version})}
}

// LoadEpoch returns the newest epoch; Version 0: there was none yet.
func LoadEpoch(r kv.Reader) (Epoch, error) {
	rows, err := r.Get(epochKey)
	if err != nil || rows[0] == nil {
		return Epoch{}, err
	}
	var e Epoch
	if err := json.Unmarshal(rows[0], &e, json.RejectUnknownMembers(true)); err != nil {
		return Epoch{}, wrapf(ErrIntegrity, "row of the newest epoch")
	}
	return e, nil
}

// recordedKey is the row that names the entry with the evidence of a job: "mj" ‖ job id, so that a job is recorded
// once, however often its recording is interrupted.
func recordedKey(job string) []byte { return append([]byte("mj"), job...) }

// record puts the evidence of a finished job into the ledger and tells the sidecar where it is.
func (r *Rotator) record(ctx context.Context, job RotationJob) error {
	if job.Evidence == "" {
		return wrapf(ErrIntegrity, "a finished rotation without evidence")
	}
	index, err := again(func() (int64, error) { return r.recordOnce(ctx, job) })
	if err != nil {
		return err
	}
	_, err = r.Keys.AdvanceJob(ctx, job.ID, RotationProgress{Done: job.Done, Total: job.Total, Recorded: index})
	return err
}

func (r *Rotator) recordOnce(ctx context.Context, job RotationJob) (int64, error) {
	var recorded, epochRow []byte
	var epoch Epoch // Version 0: there was none yet
	err := r.broker.store.View(ctx, func(reader kv.Reader) error {
		rows, err := reader.Get(recordedKey(job.ID), epochKey)
		if err != nil {
			return err
		}
		recorded, epochRow = rows[0], rows[1]
		epoch, err = LoadEpoch(reader)
		return err
	})
	if err != nil {
		return 0, err
	}
	if recorded != nil {
		var index int64
		if err := json.Unmarshal(recorded, &index); err != nil {
			return 0, wrapf(ErrIntegrity, "row of a recorded rotation")
		}
		return index, nil
	}
	entry := r.entry(verify.KindKeyRotated, job)
	if job.Scope == ScopeKEK {
		entry.Kind = verify.KindKeyEpoch
	}
	entry.Keys.Total = job.Total
	entry.Keys.Finished = verify.FormatTime(job.Finished)
	entry.Keys.Evidence = job.Evidence
	receipt, err := r.broker.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
		var change kv.Change
		change.Expect(recordedKey(job.ID), nil, errAgain)
		change.Set(recordedKey(job.ID), encodeRow(at.Index))
		if job.Scope == ScopeKEK && job.Target >= epoch.Version {
			change.Expect(epochKey, epochRow, errAgain)
			row := KeyEpochRow(at.Index, job.Target)
			change.Set(row.Key, row.Value)
		}
		return change
	})
	return receipt.Index, r.broker.mapAppend(ctx, err)
}

func encodeRow(v any) []byte {
	row, err := json.Marshal(v)
	if err != nil {
		panic("access: row cannot be encoded: " + err.Error()) // plain structs: a bug here, not input
	}
	return row
}

// entry is an entry of a job, by the system.
func (r *Rotator) entry(kind string, job RotationJob) verify.Entry {
	entry := r.broker.newEntry(kind, systemRequest)
	entry.Keys = &verify.KeyChange{Scope: job.Scope, Job: job.ID, Version: job.Target, Started: verify.FormatTime(job.Started)}
	return entry
}

// barrier returns when every append that was begun before has been committed or refused. It leaves nothing behind:
// the committer takes one entry after the other, and refuses this one.
func (r *Rotator) barrier(ctx context.Context) error {
	_, err := r.broker.ledger.Append(ctx, r.broker.newEntry(verify.KindRecordResealed, systemRequest), func(ledger.Position) kv.Change {
		var change kv.Change
		change.Expect(policyHeadKey, nil, errBarrier) // there is always a policy
		return change
	})
	if !errors.Is(err, errBarrier) {
		return fmt.Errorf("waiting for the ledger: %w", err)
	}
	return nil
}

// errBarrier refuses the entry of a barrier.
var errBarrier = errors.New("access: barrier")
