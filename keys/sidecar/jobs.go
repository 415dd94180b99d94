package sidecar

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// StartJob implements the call of this name.
func (s *Server) StartJob(ctx context.Context, req *keyspb.StartJobRequest) (*keyspb.JobResponse, error) {
	subject, err := startJob(req)
	if err != nil {
		return nil, failure(keys.CodeOf(err), whyMessage)
	}
	job, err := s.ring.StartJob(ctx, req.Scope, subject, req.By)
	if err != nil {
		return nil, s.refuse("StartJob", err)
	}
	return s.jobResponse(job)
}

// Jobs implements the call of this name.
func (s *Server) Jobs(ctx context.Context, _ *keyspb.JobsRequest) (*keyspb.JobsResponse, error) {
	jobs, err := s.ring.Jobs(ctx)
	if err != nil {
		return nil, failure(keys.CodeOf(err), "")
	}
	resp := &keyspb.JobsResponse{Jobs: make([]*keyspb.Job, len(jobs))}
	for i, job := range jobs {
		if resp.Jobs[i], err = s.job(job); err != nil {
			return nil, failure(keys.CodeOf(err), whyInternal)
		}
	}
	return resp, nil
}

// AdvanceJob implements the call of this name.
func (s *Server) AdvanceJob(ctx context.Context, req *keyspb.AdvanceJobRequest) (*keyspb.JobResponse, error) {
	id, p, err := advanceJob(req)
	if err != nil {
		return nil, failure(keys.CodeOf(err), whyMessage)
	}
	if p.Finish {
		if err := s.ledgerRotated(ctx, id); err != nil {
			return nil, s.refuse("AdvanceJob", err)
		}
	}
	job, err := s.ring.AdvanceJob(ctx, id, p)
	if err != nil {
		return nil, s.refuse("AdvanceJob", err)
	}
	return s.jobResponse(job)
}

// ledgerRotated refuses the end of a rotation of the ledger's key, of which the keyring knows nothing, unless the newest
// key was changed for it. The evidence of the job will say that it was.
func (s *Server) ledgerRotated(ctx context.Context, id uuid.UUID) error {
	jobs, err := s.ring.Jobs(ctx)
	if err != nil {
		return err
	}
	ended := slices.ContainsFunc(jobs, func(j keyring.Job) bool {
		return j.ID == id && j.Scope == keyring.ScopeLedger && j.State == keyring.JobRunning
	})
	if !ended {
		return nil
	}
	return s.witness.rotatedFor(ctx, id.String())
}

func (s *Server) jobResponse(job keyring.Job) (*keyspb.JobResponse, error) {
	s.recount()
	p, err := s.job(job)
	if err != nil {
		return nil, failure(keys.CodeOf(err), whyInternal)
	}
	return &keyspb.JobResponse{Job: p}, nil
}

// job is a job as it is told, with evidence when it is done.
func (s *Server) job(job keyring.Job) (*keyspb.Job, error) {
	p := &keyspb.Job{
		Id: job.ID.String(), Scope: job.Scope, By: job.By, State: job.State, Phase: job.Phase, Done: job.Done, Total: job.Total,
		Started: unixMilli(job.Started), Updated: unixMilli(job.Updated), Finished: unixMilli(job.Finished),
		Target: job.Target, Failure: job.Failure, Recorded: job.Recorded,
	}
	if job.Subject != uuid.Nil {
		p.Subject = job.Subject[:]
	}
	if job.State != keyring.JobDone {
		return p, nil
	}
	evidence, err := s.evidence(job)
	if err != nil {
		return nil, err
	}
	p.Evidence = string(evidence)
	return p, nil
}

// evidence signs with the newest witness key that nothing is left on older versions than the job's target. The
// keyring has verified it before it called the job done.
func (s *Server) evidence(job keyring.Job) ([]byte, error) {
	e := verify.KeyEvidence{
		Instance: s.cfg.Instance, Sidecar: s.id, Job: job.ID.String(), Scope: job.Scope,
		Target: job.Target, Total: job.Total, Started: job.Started, Finished: job.Finished,
	}
	text, err := verify.FormatEvidence(e)
	if err != nil {
		return nil, err
	}
	sigs, by, err := s.witness.cosigner.sign(text, 1)
	if err != nil {
		return nil, err
	}
	// The note is made of the very text that was signed, by the key that has signed it.
	return verify.SignEvidence(e, s.witness.cosigner.vkey(by[0]), func([]byte) ([]byte, error) { return sigs[0], nil })
}

func startJob(p *keyspb.StartJobRequest) (uuid.UUID, error) {
	if !slices.Contains(keyring.Scopes, p.Scope) || !isName(p.By) {
		return uuid.Nil, invalid("rotation")
	}
	if p.Scope == keyring.ScopeSubject {
		return subjectID(p.Subject)
	}
	if len(p.Subject) > 0 {
		return uuid.Nil, invalid("a subject where none belongs")
	}
	return uuid.Nil, nil
}

func advanceJob(p *keyspb.AdvanceJobRequest) (uuid.UUID, keyring.Progress, error) {
	id, err := uuid.Parse(p.Id)
	switch {
	case err != nil, id.String() != p.Id:
		return uuid.Nil, keyring.Progress{}, invalid("job")
	case p.Phase != "" && !isCode(p.Phase), p.Failure != "" && !isCode(p.Failure), p.Finish && p.Failure != "":
		return uuid.Nil, keyring.Progress{}, invalid("phase or outcome")
	case p.Done < 0, p.Total < 0, p.Total > 0 && p.Done > p.Total, p.Recorded < -1, p.Recorded > verify.MaxLogSize:
		return uuid.Nil, keyring.Progress{}, invalid("count")
	}
	return id, keyring.Progress{
		Phase: p.Phase, Done: p.Done, Total: p.Total, Finish: p.Finish, Failure: p.Failure, Recorded: p.Recorded,
	}, nil
}

// isCode reports whether s is a word as reasons and phases are.
func isCode(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return s != "" && len(s) <= maxCode
}

const maxCode = 64

// epochPlan is what is known of the epochs to come, and of those that were.
type epochPlan struct {
	next     time.Time // by which the next one is due; zero: none is planned
	interval time.Duration
	jobs     []keyring.Job
}

// epochPlan is asked for before anything is destroyed. It counts nothing, since that takes as long as there are
// keys, and an erasure must not wait for it.
func (s *Server) epochPlan(ctx context.Context) (p epochPlan, err error) {
	if p.next, p.interval, err = s.ring.NextEpoch(ctx); err == nil {
		p.jobs, err = s.ring.Jobs(ctx)
	}
	if err != nil {
		return epochPlan{}, fmt.Errorf("looking for the next epoch: %w", err)
	}
	return p, nil
}

// deadBy is when the epoch is due that kills every older copy of a bundle which the KEK has wrapped at version.
// It errs on the late side, and is never more than an interval ahead: an epoch that is overdue, one under way that this bundle has passed already, and one that
// ended since next was read, are followed by another.
func (p epochPlan) deadBy(now time.Time, version uint64) int64 {
	if p.next.IsZero() {
		return 0
	}
	due := p.next
	for _, j := range p.jobs {
		ended := j.Finished
		if ended.After(now) {
			ended = now // the clock was ahead
		}
		if next := ended.Add(p.interval); j.Scope == keyring.ScopeKEK && j.State == keyring.JobDone && next.After(due) {
			due = next
		}
	}
	later := now.Add(p.interval)
	passed := slices.ContainsFunc(p.jobs, func(j keyring.Job) bool {
		return j.Scope == keyring.ScopeKEK && j.State == keyring.JobRunning && version >= j.Target
	})
	if due.Before(now) || passed && due.Before(later) {
		due = later
	}
	return due.UnixMilli()
}
