package keyring

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// The jobs lie in the key store as states "job/<id>", the last maxJobs of them, and none is forgotten whose evidence
// is still to be recorded. They are not kept in memory: the key store decides which one runs, whatever restarts
// meanwhile.
const (
	maxJobs   = 100
	abandoned = 24 * time.Hour // without a report of its driver; then a job gives way to the next
	maxBy     = 128
	maxPhase  = 64 // bytes in a phase or a code of a failure
	jobFormat = "pdvault/job/v1"
)

var prefixJob = keyState("job/")

func keyJob(id uuid.UUID) []byte { return keyState("job/" + id.String()) }

// keyRotations is where the numbers of rotations lie: format 0x01, the newest rotation of subjects' keys (4 bytes,
// big endian), the newest version of the ledger key (4 bytes). Absent: 0 and 1.
var keyRotations = []byte("r")

type rotations struct{ subjects, ledger uint32 }

func (r rotations) encode() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{0x01}, r.subjects), r.ledger)
}

func decodeRotations(b []byte) (rotations, error) {
	if b == nil {
		return rotations{0, 1}, nil
	}
	if len(b) != 9 || b[0] != 0x01 {
		return rotations{}, fmt.Errorf("key store has no valid numbers of rotations: %w", kv.ErrIntegrity)
	}
	return rotations{binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:])}, nil
}

// jobRecord is a job in the key store: JSON with these members in this order and nothing else. Example:
//
//	{"format":"pdvault/job/v1","id":"0198c5a0-4b1e-7d3a-8f00-0123456789ab","scope":"kek","by":"schedule",
//	 "state":"running","phase":"rewrap","done":4000,"total":10012,"started":1790000000000,
//	 "updated":1790000004000,"target":3,"recorded":-1,"cursor":"Yi8wMTIzNDU2Nzg5YWJjZGVm"}
//
// Times are Unix milliseconds. The cursor is the last row that an epoch has seen to, and is only ever ahead of a
// row that is verified later.
type jobRecord struct {
	Format   string    `json:"format"`
	ID       uuid.UUID `json:"id"`
	Scope    string    `json:"scope"`
	Subject  uuid.UUID `json:"subject,omitzero"`
	By       string    `json:"by"`
	State    string    `json:"state"`
	Phase    string    `json:"phase,omitzero"`
	Done     int64     `json:"done,omitzero"`
	Total    int64     `json:"total,omitzero"`
	Started  int64     `json:"started"`
	Updated  int64     `json:"updated"`
	Finished int64     `json:"finished,omitzero"`
	Target   uint64    `json:"target,omitzero"`
	Failure  string    `json:"failure,omitzero"`
	Recorded int64     `json:"recorded"`
	Cursor   []byte    `json:"cursor,omitzero"` // base64
}

func (r *jobRecord) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding a job: %w", keys.ErrInvalid)
	}
	return b, nil
}

// decodeJob parses what encode gives, and nothing else.
func decodeJob(b []byte) (jobRecord, error) {
	damaged := fmt.Errorf("job does not parse: %w", kv.ErrIntegrity)
	var r jobRecord
	if err := json.Unmarshal(b, &r, json.RejectUnknownMembers(true)); err != nil || r.Format != jobFormat || r.ID == uuid.Nil {
		return jobRecord{}, damaged
	}
	if !slices.Contains(Scopes, r.Scope) || (r.Scope == ScopeSubject) != (r.Subject != uuid.Nil) || r.Recorded < -1 {
		return jobRecord{}, damaged
	}
	switch r.State {
	case JobRunning, JobDone, JobFailed:
	default:
		return jobRecord{}, damaged
	}
	if again, err := r.encode(); err != nil || !bytes.Equal(again, b) {
		return jobRecord{}, damaged
	}
	return r, nil
}

func (r *jobRecord) job() Job {
	at := func(ms int64) time.Time {
		if ms == 0 {
			return time.Time{}
		}
		return time.UnixMilli(ms).UTC()
	}
	finished := r.Finished
	if finished != 0 {
		finished = max(finished, r.Started) // the clock may have been set back, and nobody vouches for an end before the beginning
	}
	return Job{ID: r.ID, Scope: r.Scope, Subject: r.Subject, By: r.By, State: r.State, Phase: r.Phase, Done: r.Done, Total: r.Total,
		Started: at(r.Started), Updated: at(r.Updated), Finished: at(finished), Target: r.Target, Failure: r.Failure, Recorded: r.Recorded}
}

// end ends the job, well when failure is empty.
func (r *jobRecord) end(now time.Time, failure string) {
	r.Finished, r.Cursor = now.UnixMilli(), nil
	if failure != "" {
		r.State, r.Failure = JobFailed, failure
		return
	}
	r.State, r.Phase = JobDone, phaseDone
	r.Total = max(r.Total, r.Done)
	r.Done = r.Total
}

// insertJob puts a new job into the key store, with the number of its rotation, if no other runs.
func (k *Keyring) insertJob(ctx context.Context, rec jobRecord) (jobRecord, error) {
	var refused error
	var out jobRecord
	var rotation uint32
	err := k.writes.do(ctx, &change{items: 2, bytes: 1 << 10, reserve: true,
		apply: func(w kv.Writer, _ uint64) (bool, error) {
			refused, out = nil, rec
			have, err := readJobs(w)
			if err != nil {
				return false, err
			}
			given, err := k.makeWay(have, &rec)
			if err != nil {
				refused = err
				return false, nil
			}
			for i := range given {
				if err := setJob(w, &given[i]); err != nil {
					refused = err
					return false, nil
				}
			}
			values, err := w.Get(keyRotations)
			if err != nil {
				return false, err
			}
			numbers, err := decodeRotations(values[0])
			if err != nil {
				return false, err
			}
			switch rec.Scope {
			case ScopeSubject, ScopeAllSubjects:
				numbers.subjects++
				out.Target, rotation = uint64(numbers.subjects), numbers.subjects
				w.Set(keyRotations, numbers.encode())
			case ScopeLedger:
				numbers.ledger++
				out.Target = uint64(numbers.ledger)
				w.Set(keyRotations, numbers.encode())
			}
			for i := 0; i < len(have) && len(have)-i >= maxJobs; i++ {
				if !have[i].needed() {
					w.Delete(keyJob(have[i].ID))
				}
			}
			refused = setJob(w, &out)
			return false, nil
		}})
	if err != nil {
		return jobRecord{}, err
	}
	if refused != nil {
		return jobRecord{}, refused
	}
	raise32(&k.rotation, rotation)
	k.cfg.Logger.Info("rotation begun", "scope", out.Scope, "job", out.ID, "target", out.Target)
	return out, nil
}

// makeWay refuses rec when one of have must end before it, or when the evidence of too many is still to be recorded. It
// returns those that give way to it instead, ended: their drivers are gone, or hold everything up, an epoch too.
func (k *Keyring) makeWay(have []jobRecord, rec *jobRecord) (given []jobRecord, err error) {
	now := k.cfg.Now()
	needed := 0
	for _, r := range have {
		if r.needed() {
			needed++
		}
		if r.State != JobRunning || atOnce(r.Scope) || atOnce(rec.Scope) {
			continue
		}
		if ours(r.Scope) || now.Sub(time.UnixMilli(r.Updated)).Abs() < abandoned {
			return nil, fmt.Errorf("scope %s: %w", r.Scope, keys.ErrJobRunning)
		}
		r.end(now, "abandoned")
		given = append(given, r)
	}
	if needed >= maxJobs && rec.Scope != ScopeKEK { // an epoch is what erasures wait for
		return nil, fmt.Errorf("the evidence of %d rotations is not in the ledger yet: %w", needed, keys.ErrJobRunning)
	}
	return given, nil
}

// needed reports whether the job must not be forgotten: it runs, or its evidence is still to be recorded.
func (r *jobRecord) needed() bool {
	return r.State == JobRunning || r.State == JobDone && r.Recorded < 0
}

// setJob writes a job.
func setJob(w kv.Writer, r *jobRecord) error {
	b, err := r.encode()
	if err == nil {
		w.Set(keyJob(r.ID), b)
	}
	return err
}

// readJobs reads all jobs, the oldest first: ids of version 7 ascend with time.
func readJobs(r kv.Reader) ([]jobRecord, error) {
	var jobs []jobRecord
	var after []byte
	for {
		pairs, err := r.Scan(prefixJob, after, maxJobs)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs {
			rec, err := decodeJob(p.Value)
			if err != nil {
				return nil, err
			}
			jobs = append(jobs, rec)
		}
		if len(pairs) < maxJobs {
			return jobs, nil
		}
		after = pairs[len(pairs)-1].Key
	}
}

func (k *Keyring) jobRecords(ctx context.Context) (records []jobRecord, err error) {
	var numbers rotations
	err = k.store.View(ctx, func(r kv.Reader) error {
		values, err := r.Get(keyRotations)
		if err != nil {
			return err
		}
		if numbers, err = decodeRotations(values[0]); err != nil {
			return err
		}
		records, err = readJobs(r)
		return err
	})
	if err != nil {
		return nil, storeError("reading", err)
	}
	raise32(&k.rotation, numbers.subjects) // another node may have begun it
	return records, nil
}

// editJob changes a job in the key store. edit may run more than once; its first error refuses the change, its
// second is one of the writer. It returns the job as it is then.
func (k *Keyring) editJob(ctx context.Context, id uuid.UUID, edit func(kv.Writer, *jobRecord) (refused, err error)) (jobRecord, error) {
	var refused error
	var out jobRecord
	err := k.writes.do(ctx, &change{items: 2, bytes: 1 << 10, reserve: true,
		apply: func(w kv.Writer, _ uint64) (bool, error) {
			refused = nil
			values, err := w.Get(keyJob(id))
			if err != nil {
				return false, err
			}
			if values[0] == nil {
				refused = keys.ErrNoJob
				return false, nil
			}
			if out, err = decodeJob(values[0]); err != nil {
				return false, err
			}
			out.Updated = k.cfg.Now().UnixMilli()
			if refused, err = edit(w, &out); err != nil || refused != nil {
				return false, err
			}
			if refused = setJob(w, &out); refused != nil {
				return false, nil
			}
			if out.Scope == ScopeKEK && out.State == JobDone {
				w.Set(keyLastEpoch, binary.BigEndian.AppendUint64(nil, uint64(out.Finished)))
			}
			return false, nil
		}})
	if err != nil {
		return jobRecord{}, err
	}
	if refused != nil {
		return jobRecord{}, refused
	}
	if out.State != JobRunning && out.Recorded < 0 {
		k.cfg.Logger.Info("rotation ended", "scope", out.Scope, "job", out.ID, "state", out.State, "failure", out.Failure, "total", out.Total)
	}
	return out, nil
}
