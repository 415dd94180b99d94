package access_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
)

var errJobRunning = errors.New("a job is running")

// keySpy stands for the sidecar: it starts one rotation at a time and counts what it is asked.
type keySpy struct {
	mu        sync.Mutex // guards all below
	asked     int
	jobs      []access.RotationJob
	inventory access.KeyInventory
	fail      error
}

func (s *keySpy) Inventory(context.Context) (access.KeyInventory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.inventory, s.fail
}

func (s *keySpy) StartJob(_ context.Context, scope string, subject uuid.UUID, by string) (access.RotationJob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.fail != nil {
		return access.RotationJob{}, s.fail
	}
	for _, j := range s.jobs {
		if j.State == access.RotationRunning {
			return access.RotationJob{}, errJobRunning
		}
	}
	j := access.RotationJob{ID: uuid.NewString(), Scope: scope, Subject: subject, By: by, State: access.RotationRunning, Recorded: -1}
	s.jobs = slices.Insert(s.jobs, 0, j)
	return j, nil
}

func (s *keySpy) Jobs(context.Context) ([]access.RotationJob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return slices.Clone(s.jobs), nil
}

// withKeys returns a broker over the world that has keys.
func (w *world) withKeys(keys access.Keys) *access.Broker {
	w.t.Helper()
	config := w.config
	config.Keys = keys
	b, err := access.New(w.t.Context(), config)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func TestARotationIsStartedOnceAndFoundAgain(t *testing.T) {
	w, spy := newWorld(t), new(keySpy)
	b := w.withKeys(spy)
	security := w.as("security")
	started, err := b.StartRotation(t.Context(), security, access.ScopeIndex, uuid.Nil)
	if err != nil || started.By != "security" || started.Scope != access.ScopeIndex || started.Record != -1 {
		t.Fatalf("%+v, %v", started, err)
	}
	var running *access.RotationError
	if _, err := b.StartRotation(t.Context(), security, access.ScopeKEK, uuid.Nil); !errors.Is(err, errJobRunning) || !errors.As(err, &running) || running.Running != started.ID {
		t.Errorf("a second one: %v", err)
	}
	if got, err := b.Rotation(t.Context(), security, started.ID); err != nil || got != started {
		t.Errorf("%+v, %v", got, err)
	}
	if list, err := b.Rotations(t.Context(), security); err != nil || len(list) != 1 || list[0] != started {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := b.Rotation(t.Context(), security, uuid.New()); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("an unknown one: %v", err)
	}
	if info, err := b.Keys(t.Context(), security); err != nil || info.Running == nil || *info.Running != started {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestARotationOfOneSubjectNeedsTheSubject(t *testing.T) {
	w, spy := newWorld(t), new(keySpy)
	b := w.withKeys(spy)
	security := w.as("security")
	subject := w.mustCreate(someone)
	for _, tt := range []struct {
		name    string
		scope   string
		subject uuid.UUID
		want    error
	}{
		{"unknown scope", "everything", uuid.Nil, access.ErrInvalid},
		{"no scope", "", uuid.Nil, access.ErrInvalid},
		{"no subject", access.ScopeSubject, uuid.Nil, access.ErrInvalid},
		{"subject of another scope", access.ScopeAllSubjects, subject, access.ErrInvalid},
		{"absent subject", access.ScopeSubject, uuid.New(), access.ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := b.StartRotation(t.Context(), security, tt.scope, tt.subject); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	if spy.asked != 0 {
		t.Errorf("the sidecar was asked %d times", spy.asked)
	}
	if started, err := b.StartRotation(t.Context(), security, access.ScopeSubject, subject); err != nil || started.Subject != subject {
		t.Errorf("%+v, %v", started, err)
	}
}

// Everything about keys is for the security team. Another caller is denied on record, before anybody asks
// whether the subject exists, and an absent subject looks to it like any other.
func TestKeysAreForTheSecurityTeamAlone(t *testing.T) {
	w, spy := newWorld(t), new(keySpy)
	b := w.withKeys(spy)
	subject := w.mustCreate(someone)
	for _, caller := range []string{"shop", "courier", "privacy", "legal", "auditor"} {
		for name, call := range map[string]struct {
			action string
			call   func(access.Request) error
		}{
			"keys":      {policy.ActionKeysRead, func(r access.Request) error { _, err := b.Keys(t.Context(), r); return err }},
			"rotations": {policy.ActionKeysRead, func(r access.Request) error { _, err := b.Rotations(t.Context(), r); return err }},
			"rotation":  {policy.ActionKeysRead, func(r access.Request) error { _, err := b.Rotation(t.Context(), r, uuid.New()); return err }},
			"rotate": {policy.ActionKeysRotate, func(r access.Request) error {
				_, err := b.StartRotation(t.Context(), r, access.ScopeKEK, uuid.Nil)
				return err
			}},
			"rotate a subject": {policy.ActionKeysRotate, func(r access.Request) error {
				_, err := b.StartRotation(t.Context(), r, access.ScopeSubject, subject)
				return err
			}},
			"rotate nobody": {policy.ActionKeysRotate, func(r access.Request) error {
				_, err := b.StartRotation(t.Context(), r, access.ScopeSubject, uuid.New())
				return err
			}},
		} {
			t.Run(caller+" "+name, func(t *testing.T) {
				before := w.size()
				err := call.call(w.as(caller))
				var denied *access.DeniedError
				if !errors.As(err, &denied) || denied.Reason != policy.ReasonRoleNotAllowed || denied.Record != before {
					t.Fatalf("%v", err)
				}
				entries := w.entries(before)
				if len(entries) != 1 || entries[0].Kind != verify.KindAccess || entries[0].Decision != verify.Deny ||
					entries[0].Mode != call.action || entries[0].Caller.ID != caller {
					t.Errorf("%+v", entries)
				}
			})
		}
	}
	if spy.asked != 0 {
		t.Errorf("the sidecar was asked %d times", spy.asked)
	}
}

func TestAgesAreComparedWithThePolicy(t *testing.T) {
	w := newWorld(t)
	const day = 24 * time.Hour
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	spy := &keySpy{inventory: access.KeyInventory{EpochInterval: 7 * day, Versions: []access.KeyCount{
		{Kind: "kek", Version: 3, Newest: true, Count: 10, Made: ago(6 * day)},
		{Kind: "kek", Version: 2, Count: 1, Made: ago(13 * day)},
		{Kind: "kek", Version: 1, Count: 0, Made: ago(20 * day)},
		{Kind: "index", Version: 1, Newest: true, Count: 1, Made: ago(400 * day)},
		{Kind: "token", Version: 2, Newest: true, Count: 1, Made: ago(10 * day)},
		{Kind: "token", Version: 1, Count: 1, Made: ago(400 * day)},
		{Kind: "witness", Version: 1, Newest: true, Count: 1},
		{Kind: "other", Version: 1, Newest: true, Count: 1, Made: ago(4000 * day)},
	}}}
	info, err := w.withKeys(spy).Keys(t.Context(), w.as("security"))
	if err != nil {
		t.Fatal(err)
	}
	// An older wrapping in use is overdue, an unused one is not, nor is one that only verifies.
	for i, want := range []bool{false, true, false, true, false, false, false, false} {
		if v := info.Versions[i]; v.Overdue != want {
			t.Errorf("%s %d: overdue %v", v.Kind, v.Version, v.Overdue)
		}
	}
	if v := info.Versions[0]; v.MaxAge != 7*day || v.Age < 6*day || v.Age > 6*day+time.Hour {
		t.Errorf("%+v", v)
	}
	if v := info.Versions[6]; v.Age != 0 {
		t.Errorf("an age that is not known: %v", v.Age)
	}
}

func TestWhatIsLeftIsEstimatedFromThePaceSoFar(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name    string
		r       access.Rotation
		percent int
		left    time.Duration
		known   bool
	}{
		{"begun", access.Rotation{State: access.RotationRunning, Total: 10, Started: at, Updated: at}, 0, 0, false},
		{"total unknown", access.Rotation{State: access.RotationRunning, Done: 5, Started: at, Updated: at.Add(time.Minute)}, 0, 0, false},
		{"a quarter", access.Rotation{State: access.RotationRunning, Done: 5, Total: 20, Started: at, Updated: at.Add(time.Minute)}, 25, 3 * time.Minute, true},
		{"all but finished", access.Rotation{State: access.RotationRunning, Done: 20, Total: 20, Started: at, Updated: at.Add(time.Minute)}, 99, 0, true},
		{"large", access.Rotation{State: access.RotationRunning, Done: 1 << 61, Total: 1 << 62, Started: at, Updated: at.Add(time.Minute)}, 50, time.Minute, true},
		{"done", access.Rotation{State: access.RotationDone, Started: at, Updated: at.Add(time.Minute)}, 100, 0, false},
		{"failed", access.Rotation{State: access.RotationFailed, Done: 5, Total: 20, Started: at, Updated: at.Add(time.Minute)}, 25, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			left, known := tt.r.Remaining()
			if tt.r.Percent() != tt.percent || left != tt.left || known != tt.known {
				t.Errorf("%d %%, %v, %v", tt.r.Percent(), left, known)
			}
		})
	}
}

func TestWithoutKeysOrWithBrokenOnesNothingIsAnswered(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Keys(t.Context(), w.as("security")); !errors.Is(err, access.ErrUnavailable) {
		t.Errorf("without keys: %v", err)
	}
	failure := errors.New("sealed")
	spy := &keySpy{fail: failure}
	b := w.withKeys(spy)
	if _, err := b.Keys(t.Context(), w.as("security")); !errors.Is(err, failure) {
		t.Errorf("counting: %v", err)
	}
	if _, err := b.StartRotation(t.Context(), w.as("security"), access.ScopeKEK, uuid.Nil); !errors.Is(err, failure) {
		t.Errorf("starting: %v", err)
	}
	spy.jobs = []access.RotationJob{{ID: "x"}}
	if _, err := b.Rotations(t.Context(), w.as("security")); !errors.Is(err, access.ErrIntegrity) {
		t.Errorf("a rotation without an id: %v", err)
	}
}
