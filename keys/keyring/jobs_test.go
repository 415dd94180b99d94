package keyring_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

func (r *ring) mustStart(scope string, subject uuid.UUID) keyring.Job {
	r.t.Helper()
	j, err := r.StartJob(context.Background(), scope, subject, "test")
	if err != nil {
		r.t.Fatalf("starting %s: %v", scope, err)
	}
	return j
}

func (r *ring) advance(id uuid.UUID, p keyring.Progress) (keyring.Job, error) {
	return r.AdvanceJob(context.Background(), id, p)
}

func (r *ring) wantAdvanceErr(id uuid.UUID, p keyring.Progress, want error) {
	r.t.Helper()
	_, err := r.advance(id, p)
	wantErr(r.t, err, want)
}

func TestStartJobRefuses(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	live, _ := r.mustCreate("value")
	gone, _ := r.mustCreate("value")
	if err := r.Destroy(ctx, gone, "x"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, scope string
		subject     uuid.UUID
		by          string
		want        error
	}{
		{"an unknown scope", "everything", uuid.Nil, "x", keys.ErrInvalid},
		{"no scope", "", uuid.Nil, "x", keys.ErrInvalid},
		{"no author", keyring.ScopeIndex, uuid.Nil, "", keys.ErrInvalid},
		{"a subject without id", keyring.ScopeSubject, uuid.Nil, "x", keys.ErrInvalid},
		{"a subject for everybody", keyring.ScopeAllSubjects, live, "x", keys.ErrInvalid},
		{"a subject for the index", keyring.ScopeIndex, live, "x", keys.ErrInvalid},
		{"a subject that never was", keyring.ScopeSubject, uuid.New(), "x", keys.ErrNoKey},
		{"a subject that was erased", keyring.ScopeSubject, gone, "x", keys.ErrDestroyed},
		{"an epoch without a role for it", keyring.ScopeKEK, uuid.Nil, "x", keys.ErrForbidden},
	} {
		_, err := r.StartJob(ctx, c.scope, c.subject, c.by)
		if wantErr(t, err, c.want); err == nil {
			t.Errorf("%s was accepted", c.name)
		}
	}
	if jobs, err := r.Jobs(ctx); err != nil || len(jobs) != 0 {
		t.Errorf("refused jobs were kept: %v, %v", jobs, err)
	}
}

func TestOneJobRunsAtATime(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, nil)
	s, _ := r.mustCreate("value")
	j := r.mustStart(keyring.ScopeAllSubjects, uuid.Nil)
	for scope, subject := range map[string]uuid.UUID{keyring.ScopeAllSubjects: uuid.Nil, keyring.ScopeSubject: s, keyring.ScopeIndex: uuid.Nil,
		keyring.ScopeLedger: uuid.Nil, keyring.ScopeKEK: uuid.Nil} {
		_, err := r.StartJob(ctx, scope, subject, "x")
		wantErr(t, err, keys.ErrJobRunning)
	}
	for _, scope := range []string{keyring.ScopeToken, keyring.ScopeWitness} {
		if at := r.mustStart(scope, uuid.Nil); at.State != keyring.JobDone || at.Target != 2 || at.Finished.IsZero() {
			t.Errorf("%s is not done at once: %+v", scope, at)
		}
	}
	r.restart()
	_, err := r.StartJob(ctx, keyring.ScopeIndex, uuid.Nil, "x")
	wantErr(t, err, keys.ErrJobRunning)
	if _, err := r.advance(j.ID, keyring.Progress{Failure: "given-up", Recorded: -1}); err != nil {
		t.Fatal(err)
	}
	r.mustStart(keyring.ScopeIndex, uuid.Nil)
}

// A caller that leaves while its job is put into the store does not leave a job behind that nobody carries out.
func TestAJobWhoseCallerHasLeftIsCarriedOut(t *testing.T) {
	for _, scope := range []string{keyring.ScopeKEK, keyring.ScopeIndex, keyring.ScopeToken, keyring.ScopeWitness} {
		t.Run(scope, func(t *testing.T) {
			r := newEpochRing(t, nil)
			r.mustCreate("value")
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			var once sync.Once
			r.store.mu.Lock()
			r.store.before = func(op string) error {
				if op == "update" {
					once.Do(func() {
						leave()
						time.Sleep(50 * time.Millisecond) // for the caller to notice
					})
				}
				return nil
			}
			r.store.mu.Unlock()
			_, _ = r.StartJob(ctx, scope, uuid.Nil, "test")
			var last keyring.Job
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				jobs, err := r.Jobs(context.Background())
				if err != nil || len(jobs) > 1 {
					t.Fatalf("jobs %v, error %v", jobs, err)
				}
				if len(jobs) == 0 {
					continue
				}
				last = jobs[0]
				if last.State == keyring.JobDone || scope == keyring.ScopeIndex && last.Phase != "begin" {
					return
				}
			}
			t.Errorf("the job stays %s in phase %q", last.State, last.Phase)
		})
	}
}

func TestJobsSurviveARestart(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, nil)
	j := r.mustStart(keyring.ScopeLedger, uuid.Nil)
	if _, err := r.advance(j.ID, keyring.Progress{Phase: "overlap", Done: 3, Total: 7, Recorded: -1}); err != nil {
		t.Fatal(err)
	}
	before, err := r.Jobs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.restart()
	after, err := r.Jobs(ctx)
	if err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("jobs were %v, are %v, %v", before, after, err)
	}
	if a := after[0]; a.Scope != keyring.ScopeLedger || a.Phase != "overlap" || a.Done != 3 || a.Total != 7 || a.By != "test" ||
		a.Target != 2 || a.Recorded != -1 || !a.Started.Equal(j.Started) || a.State != keyring.JobRunning {
		t.Errorf("job is %+v", a)
	}
}

func TestTheLastHundredJobsAreKept(t *testing.T) {
	r := newEpochRing(t, nil)
	running := r.mustStart(keyring.ScopeLedger, uuid.Nil)
	var last keyring.Job
	for range 120 {
		last = r.mustStart(keyring.ScopeToken, uuid.Nil)
		if _, err := r.advance(last.ID, keyring.Progress{Recorded: 7}); err != nil {
			t.Fatal(err)
		}
	}
	jobs, err := r.Jobs(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) < 100 || len(jobs) > 101 || jobs[0].ID != last.ID || jobs[len(jobs)-1].ID != running.ID {
		t.Errorf("%d jobs, the first %v, the last %v", len(jobs), jobs[0].ID, jobs[len(jobs)-1].ID)
	}
	r.wantAdvanceErr(uuid.New(), keyring.Progress{Recorded: -1}, keys.ErrNoJob)
}

// However many come after it, a job stays until its evidence is in the ledger: while that is away, rotations wait
// rather than go unrecorded, but for epochs.
func TestNoJobIsForgottenBeforeItIsRecorded(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, nil)
	r.mustCreate("value")
	epoch := r.done()
	var err error
	started := 0
	for ; err == nil && started < 150; started++ {
		_, err = r.StartJob(ctx, keyring.ScopeToken, uuid.Nil, "x")
	}
	wantErr(t, err, keys.ErrJobRunning)
	r.done()
	jobs, err := r.Jobs(ctx)
	if err != nil || len(jobs) != 101 || jobs[100].ID != epoch.ID {
		t.Fatalf("%d jobs, %v", len(jobs), err)
	}
	for _, j := range jobs {
		if _, err := r.advance(j.ID, keyring.Progress{Recorded: 7}); err != nil {
			t.Fatal(err)
		}
	}
	r.mustStart(keyring.ScopeToken, uuid.Nil)
}

// A job whose driver is gone, or says nothing for a day, holds up neither an epoch nor other rotations any longer.
func TestAnAbandonedJobGivesWay(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, nil)
	s, _ := r.mustCreate("value")
	j := r.mustStart(keyring.ScopeAllSubjects, uuid.Nil)
	r.clock.add(23 * time.Hour)
	if _, err := r.advance(j.ID, keyring.Progress{Done: 1, Total: 2, Recorded: -1}); err != nil {
		t.Fatal(err)
	}
	r.clock.add(23 * time.Hour)
	_, err := r.StartJob(ctx, keyring.ScopeKEK, uuid.Nil, "x")
	wantErr(t, err, keys.ErrJobRunning)
	r.clock.add(time.Hour)
	if at := r.mustStart(keyring.ScopeToken, uuid.Nil); at.State != keyring.JobDone {
		t.Errorf("got %+v", at) // which it has never held up, so it does not end it
	}
	if jobs, err := r.Jobs(ctx); err != nil || jobs[1].State != keyring.JobRunning {
		t.Errorf("jobs are %+v, %v", jobs, err)
	}
	r.done()
	jobs, err := r.Jobs(ctx)
	if err != nil || jobs[2].ID != j.ID || jobs[2].State != keyring.JobFailed || jobs[2].Failure != "abandoned" {
		t.Errorf("jobs are %+v, %v", jobs, err)
	}
	r.wantAdvanceErr(j.ID, keyring.Progress{Finish: true, Recorded: -1}, keys.ErrInvalid)
	r.mustStart(keyring.ScopeSubject, s)
}

func TestAdvanceJob(t *testing.T) {
	r := newEpochRing(t, nil)
	j := r.mustStart(keyring.ScopeLedger, uuid.Nil)
	for name, p := range map[string]keyring.Progress{
		"a record of what runs":    {Recorded: 3},
		"negative progress":        {Done: -1, Recorded: -1},
		"an end and a failure":     {Finish: true, Failure: "x", Recorded: -1},
		"a record below none":      {Recorded: -2},
		"a phase of the keyring's": {Phase: "begin", Recorded: -1},
	} {
		if _, err := r.advance(j.ID, p); err == nil {
			t.Errorf("%s was accepted", name)
		}
		r.wantAdvanceErr(j.ID, p, keys.ErrInvalid)
	}
	r.clock.add(time.Minute)
	done, err := r.advance(j.ID, keyring.Progress{Done: 5, Total: 5, Finish: true, Recorded: -1})
	if err != nil || done.State != keyring.JobDone || done.Finished.Sub(done.Started) != time.Minute || done.Recorded != -1 {
		t.Errorf("finished: %+v, %v", done, err)
	}
	for _, p := range []keyring.Progress{{Finish: true, Recorded: -1}, {Failure: "x", Recorded: -1}, {Phase: "x", Recorded: -1},
		{Recorded: -1}, {Phase: "x", Recorded: 4}} {
		r.wantAdvanceErr(j.ID, p, keys.ErrInvalid)
	}
	for range 2 { // the answer may be lost
		if got, err := r.advance(j.ID, keyring.Progress{Recorded: 7}); err != nil || got.Recorded != 7 || got.State != keyring.JobDone {
			t.Errorf("recorded: %+v, %v", got, err)
		}
	}
	r.wantAdvanceErr(j.ID, keyring.Progress{Recorded: 8}, keys.ErrInvalid)

	// What the keyring carries out itself takes no report but the record.
	epoch := r.start()
	r.wantAdvanceErr(epoch.ID, keyring.Progress{Finish: true, Recorded: -1}, keys.ErrInvalid)
	r.ends()
	if got, err := r.advance(epoch.ID, keyring.Progress{Recorded: 9}); err != nil || got.Recorded != 9 {
		t.Errorf("recorded: %+v, %v", got, err)
	}
}

// A rotation of subjects' keys ends only when no bundle holds an older one.
func TestRotationOfSubjectsEndsWhenNothingIsLeft(t *testing.T) {
	ctx := context.Background()
	for _, scope := range []string{keyring.ScopeAllSubjects, keyring.ScopeSubject} {
		r := newEpochRing(t, nil)
		s, _ := r.mustCreate("value")
		other, _ := r.mustCreate("value")
		asked := []uuid.UUID{s, other}
		subject := uuid.Nil
		if scope == keyring.ScopeSubject {
			subject, asked = s, asked[:1]
		}
		j := r.mustStart(scope, subject)
		if j.Target != 1 {
			t.Errorf("%s: target is %d", scope, j.Target)
		}
		fresh, _ := r.mustCreate("made meanwhile")
		if rotation, n, err := keyring.RowOf(r.rawGet(keyring.KeyBundle(fresh))); rotation != 1 || n != 1 || err != nil {
			t.Errorf("%s: a new bundle is of rotation %d, %d keys, %v", scope, rotation, n, err)
		}
		finish := keyring.Progress{Done: 99, Total: 99, Finish: true, Recorded: -1}
		r.wantAdvanceErr(j.ID, finish, keys.ErrInvalid)
		var subjects []keyring.ResealSubject
		for _, id := range asked {
			subjects = append(subjects, keyring.ResealSubject{Subject: id})
		}
		if _, err := r.Reseal(ctx, uint32(j.Target), subjects); err != nil {
			t.Fatal(err)
		}
		r.wantAdvanceErr(j.ID, finish, keys.ErrInvalid) // the older keys are there still
		if _, err := r.Retire(ctx, uint32(j.Target), asked); err != nil {
			t.Fatal(err)
		}
		found := int64(1)
		if scope == keyring.ScopeAllSubjects {
			found = 3 // whatever its driver says
		}
		if got, err := r.advance(j.ID, finish); err != nil || got.State != keyring.JobDone || got.Total != found || got.Done != found {
			t.Errorf("%s: finishing gave %+v, %v", scope, got, err)
		}
		r.restart()
		if next := r.mustStart(keyring.ScopeAllSubjects, uuid.Nil); next.Target != 2 {
			t.Errorf("%s: the next target is %d", scope, next.Target)
		}
	}
}

// An index key is made by the start and the older one is dropped by the end.
func TestRotationOfTheIndex(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, nil)
	count := func() int {
		t.Helper()
		tokens, err := r.Index(ctx, []keyring.IndexValue{{Collection: "a", Field: "b", Value: "c"}})
		if err != nil {
			t.Fatal(err)
		}
		return len(tokens[0])
	}
	j := r.mustStart(keyring.ScopeIndex, uuid.Nil)
	if j.Target != 2 || j.Phase != "" || count() != 2 {
		t.Errorf("job is %+v, %d tokens", j, count())
	}
	if _, err := r.advance(j.ID, keyring.Progress{Finish: true, Recorded: -1}); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 1 {
		t.Errorf("%d tokens after the end", n)
	}
}

// A rotation whose key could not be made has failed, and says so.
func TestRotationThatCannotBeginFails(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, nil)
	for _, scope := range []string{keyring.ScopeToken, keyring.ScopeWitness, keyring.ScopeIndex} {
		r.kek.set(func() { r.kek.before = func(string) error { return keys.ErrSealed } })
		_, err := r.StartJob(ctx, scope, uuid.Nil, "x")
		wantErr(t, err, keys.ErrSealed)
		r.kek.set(func() { r.kek.before = nil })
		if j, ok := r.job(); !ok || j.State != keyring.JobFailed || j.Failure != "sealed" || j.Scope != scope {
			t.Errorf("job is %+v", j)
		}
	}
}
