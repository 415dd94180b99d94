package sidecar_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

// TestAFinishedRotationHasEvidence that the witness key has signed, in every answer, and an unfinished one has none.
func TestAFinishedRotationHasEvidence(t *testing.T) {
	w := sidecartest.Bound(t)
	fake := w.FakeKeys()
	ctx := t.Context()
	started, err := w.Server.StartJob(ctx, &keyspb.StartJobRequest{Scope: keyring.ScopeAllSubjects, By: "security"})
	if err != nil {
		t.Fatal(err)
	}
	job := started.Job
	if job.State != keyring.JobRunning || job.Evidence != "" || job.By != "security" || job.Recorded != -1 || job.Subject != nil {
		t.Errorf("started %v", job)
	}
	if _, err := w.Server.StartJob(ctx, &keyspb.StartJobRequest{Scope: keyring.ScopeIndex, By: "security"}); codeOf(t, err) != keyspb.Code_JOB_RUNNING {
		t.Errorf("a second one: %v", err)
	}
	moved, err := w.Server.AdvanceJob(ctx, &keyspb.AdvanceJobRequest{Id: job.Id, Phase: "reseal", Done: 3, Total: 7, Recorded: -1})
	if err != nil || moved.Job.Phase != "reseal" || moved.Job.Done != 3 || moved.Job.Evidence != "" {
		t.Errorf("advanced: %v, %v", moved, err)
	}
	done, err := w.Server.AdvanceJob(ctx, &keyspb.AdvanceJobRequest{Id: job.Id, Done: 7, Total: 7, Finish: true, Recorded: -1})
	if err != nil {
		t.Fatal(err)
	}
	st, err := w.Server.Status(ctx, &keyspb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	check := func(j *keyspb.Job, key string) {
		t.Helper()
		e, err := verify.OpenEvidence([]byte(j.Evidence), key)
		if err != nil {
			t.Fatalf("%v\n%s", err, j.Evidence)
		}
		if e.Job != job.Id || e.Scope != job.Scope || e.Target != job.Target || e.Total != 7 || e.Left != 0 ||
			e.Instance != sidecartest.Instance || e.Sidecar != st.Sidecar || e.Finished.UnixMilli() != j.Finished {
			t.Errorf("evidence %+v of %v", e, j)
		}
	}
	check(done.Job, st.WitnessKey)
	list, err := w.Server.Jobs(ctx, &keyspb.JobsRequest{})
	if err != nil || len(list.Jobs) != 1 {
		t.Fatal(list, err)
	}
	check(list.Jobs[0], st.WitnessKey)
	recorded, err := w.Server.AdvanceJob(ctx, &keyspb.AdvanceJobRequest{Id: job.Id, Recorded: 42})
	if err != nil || recorded.Job.Recorded != 42 {
		t.Errorf("recorded: %v, %v", recorded, err)
	}
	check(recorded.Job, st.WitnessKey)
	// After a change of the witness key the newest one signs.
	fake.RotateWitness()
	fake.RotateWitness()
	if st, err = w.Server.Status(ctx, &keyspb.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if list, err = w.Server.Jobs(ctx, &keyspb.JobsRequest{}); err != nil {
		t.Fatal(err)
	}
	check(list.Jobs[0], st.WitnessKey)

	failed := keyring.Job{ID: uuid.New(), Scope: keyring.ScopeKEK, State: keyring.JobFailed, Failure: "forbidden", Finished: time.Now(), Recorded: -1}
	fake.SetJobs(failed)
	if list, err = w.Server.Jobs(ctx, &keyspb.JobsRequest{}); err != nil || list.Jobs[0].Evidence != "" || list.Jobs[0].Failure != "forbidden" {
		t.Errorf("a failed one: %v, %v", list, err)
	}
	if _, err := w.Server.AdvanceJob(ctx, &keyspb.AdvanceJobRequest{Id: uuid.NewString(), Recorded: -1}); codeOf(t, err) != keyspb.Code_NO_JOB {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestMalformedJobCallsAreRefused(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys()
	id := uuid.New()
	for i, req := range []*keyspb.StartJobRequest{
		{},
		{Scope: "all", By: "x"},
		{Scope: keyring.ScopeKEK},
		{Scope: keyring.ScopeKEK, By: strings.Repeat("x", sidecar.MaxName+1)},
		{Scope: keyring.ScopeKEK, By: "x", Subject: id[:]},
		{Scope: keyring.ScopeSubject, By: "x"},
		{Scope: keyring.ScopeSubject, By: "x", Subject: make([]byte, 16)},
		{Scope: keyring.ScopeSubject, By: "x", Subject: id[:15]},
	} {
		if _, err := w.Server.StartJob(t.Context(), req); codeOf(t, err) != keyspb.Code_INVALID {
			t.Errorf("start %d: %v", i, err)
		}
	}
	for i, req := range []*keyspb.AdvanceJobRequest{
		{Recorded: -1},
		{Id: "x", Recorded: -1},
		{Id: strings.ToUpper(id.String()), Recorded: -1},
		{Id: "urn:uuid:" + id.String(), Recorded: -1},
		{Id: id.String(), Phase: "A phase", Recorded: -1},
		{Id: id.String(), Failure: "a\nline", Recorded: -1},
		{Id: id.String(), Failure: "x", Finish: true, Recorded: -1},
		{Id: id.String(), Done: -1, Recorded: -1},
		{Id: id.String(), Done: 2, Total: 1, Recorded: -1},
		{Id: id.String(), Recorded: -2},
		{Id: id.String(), Recorded: 1 << 60},
	} {
		if _, err := w.Server.AdvanceJob(t.Context(), req); codeOf(t, err) != keyspb.Code_INVALID {
			t.Errorf("advance %d: %v", i, err)
		}
	}
}

func TestInventoryIsCountedAtMostOncePerSecond(t *testing.T) {
	w := sidecartest.Bound(t)
	fake := w.FakeKeys()
	count := func() (n int) {
		for _, a := range fake.Asked() {
			if a == "Inventory" {
				n++
			}
		}
		return n
	}
	for range 10 {
		resp, err := w.Server.Inventory(t.Context(), &keyspb.InventoryRequest{})
		if err != nil || resp.Subjects != 1 || len(resp.Versions) != 1 || resp.EpochInterval != 7*24*3600 || resp.NextEpoch == 0 || resp.Kek == "" {
			t.Fatal(resp, err)
		}
	}
	if n := count(); n != 1 {
		t.Errorf("counted %d times", n)
	}
	w.Clock.Advance(2 * time.Second)
	if _, err := w.Server.Inventory(t.Context(), &keyspb.InventoryRequest{}); err != nil || count() != 2 {
		t.Errorf("counted %d times, %v", count(), err)
	}
	if _, err := w.Server.StartJob(t.Context(), &keyspb.StartJobRequest{Scope: keyring.ScopeToken, By: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Server.Inventory(t.Context(), &keyspb.InventoryRequest{}); err != nil || count() != 3 {
		t.Errorf("after a rotation counted %d times, %v", count(), err)
	}
}

func TestResealing(t *testing.T) {
	w := sidecartest.Bound(t)
	fake := w.FakeKeys()
	fake.RotateSubjects(2)
	id := uuid.New()
	field := &keyspb.ResealItem{Collection: "profile", Field: "email", Version: 3, Ciphertext: []byte("a")}
	resp, err := w.Server.Reseal(t.Context(), &keyspb.ResealRequest{Rotation: 2, Subjects: []*keyspb.ResealSubject{
		{Subject: id[:], Items: []*keyspb.ResealItem{
			field,
			{Kind: keyspb.ResealItem_INDEX, Collection: "profile", Field: "email", Normaliser: 1, Ciphertext: []byte("newest")},
			{Kind: keyspb.ResealItem_DETAIL, Ciphertext: []byte("c")},
		}},
		nil,
		{Subject: id[:], Items: []*keyspb.ResealItem{{Kind: keyspb.ResealItem_DETAIL, Collection: "profile", Ciphertext: []byte("c")}}},
		{Subject: id[:]},
	}})
	if err != nil || len(resp.Subjects) != 4 {
		t.Fatal(resp, err)
	}
	if got := resp.Subjects[0]; got.Code != keyspb.Code_OK || len(got.Ref) != 32 || got.Rotation != 2 ||
		fmt.Sprintf("%q", got.Ciphertexts) != `["+a" "" "+c"]` {
		t.Errorf("got %v", got)
	}
	for _, i := range []int{1, 2} {
		if got := resp.Subjects[i]; got.Code != keyspb.Code_INVALID || got.Ref != nil || got.Ciphertexts != nil {
			t.Errorf("subject %d: %v", i, got)
		}
	}
	if got := resp.Subjects[3]; got.Code != keyspb.Code_OK {
		t.Errorf("a subject without items: %v", got)
	}
	if asked := fake.Asked(); len(asked) != 2 {
		t.Errorf("asked %q", asked)
	}

	for name, item := range map[string]*keyspb.ResealItem{
		"nothing":                nil,
		"no ciphertext":          {Collection: "profile", Field: "email"},
		"too long":               {Collection: "profile", Field: "email", Ciphertext: make([]byte, sidecar.MaxCiphertext+1)},
		"no name":                {Collection: "profile", Ciphertext: []byte("a")},
		"field with normaliser":  {Collection: "profile", Field: "email", Normaliser: 1, Ciphertext: []byte("a")},
		"index with version":     {Kind: keyspb.ResealItem_INDEX, Collection: "profile", Field: "email", Version: 1, Ciphertext: []byte("a")},
		"index too long":         {Kind: keyspb.ResealItem_INDEX, Collection: "profile", Field: "email", Ciphertext: make([]byte, 2*sidecar.MaxIndexValue+1)},
		"detail with version":    {Kind: keyspb.ResealItem_DETAIL, Version: 1, Ciphertext: []byte("a")},
		"kind that is not known": {Kind: 7, Ciphertext: []byte("a")},
	} {
		resp, err := w.Server.Reseal(t.Context(), &keyspb.ResealRequest{Rotation: 2, Subjects: []*keyspb.ResealSubject{{Subject: id[:], Items: []*keyspb.ResealItem{item}}}})
		if err != nil || resp.Subjects[0].Code != keyspb.Code_INVALID {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	many := &keyspb.ResealSubject{Subject: id[:], Items: slices.Repeat([]*keyspb.ResealItem{field}, sidecar.MaxResealItems+1)}
	for name, req := range map[string]*keyspb.ResealRequest{
		"nobody": {}, "too many subjects": {Subjects: make([]*keyspb.ResealSubject, sidecar.MaxItems+1)}, "too many items": {Subjects: []*keyspb.ResealSubject{many}},
	} {
		if _, err := w.Server.Reseal(t.Context(), req); codeOf(t, err) != keyspb.Code_INVALID {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSubjectsKeysChangeInARotationOnly: who holds the socket, and no more, can neither make nor drop a key beside a
// job that others see.
func TestSubjectsKeysChangeInARotationOnly(t *testing.T) {
	id, other := uuid.New(), uuid.New()
	job := func(scope, state string, target uint64) keyring.Job {
		j := keyring.Job{ID: uuid.New(), Scope: scope, State: state, Target: target, Recorded: -1}
		if scope == keyring.ScopeSubject {
			j.Subject = id
		}
		return j
	}
	for name, tt := range map[string]struct {
		job      keyring.Job
		subjects []uuid.UUID
		ok       bool
	}{
		"of all":                  {job(keyring.ScopeAllSubjects, keyring.JobRunning, 2), []uuid.UUID{id, other}, true},
		"of the one":              {job(keyring.ScopeSubject, keyring.JobRunning, 2), []uuid.UUID{id, id}, true},
		"of another one":          {job(keyring.ScopeSubject, keyring.JobRunning, 2), []uuid.UUID{id, other}, false},
		"over":                    {job(keyring.ScopeAllSubjects, keyring.JobDone, 2), []uuid.UUID{id}, false},
		"failed":                  {job(keyring.ScopeAllSubjects, keyring.JobFailed, 2), []uuid.UUID{id}, false},
		"of another number":       {job(keyring.ScopeAllSubjects, keyring.JobRunning, 3), []uuid.UUID{id}, false},
		"of the KEK, same number": {job(keyring.ScopeKEK, keyring.JobRunning, 2), []uuid.UUID{id}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := sidecartest.Bound(t)
			fake := w.FakeKeys()
			fake.SetJobs(tt.job)
			reseal, retire := &keyspb.ResealRequest{Rotation: 2}, &keyspb.RetireRequest{Rotation: 2}
			for _, s := range tt.subjects {
				reseal.Subjects = append(reseal.Subjects, &keyspb.ResealSubject{Subject: s[:]})
				retire.Subjects = append(retire.Subjects, s[:])
			}
			_, resealErr := w.Server.Reseal(t.Context(), reseal)
			_, retireErr := w.Server.Retire(t.Context(), retire)
			asked := len(fake.Asked())
			if tt.ok {
				if resealErr != nil || retireErr != nil || asked == 0 {
					t.Errorf("refused: %v, %v", resealErr, retireErr)
				}
				return
			}
			for _, err := range []error{resealErr, retireErr} {
				if codeOf(t, err) != keyspb.Code_NO_JOB {
					t.Errorf("got %v", err)
				}
			}
			if asked > 0 {
				t.Errorf("the keyring was asked: %q", fake.Asked())
			}
		})
	}
}

func TestRetiringAndReindexing(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys().RotateSubjects(2)
	id := uuid.New()
	retired, err := w.Server.Retire(t.Context(), &keyspb.RetireRequest{Rotation: 2, Subjects: [][]byte{id[:], nil, id[:]}})
	if err != nil || !slices.Equal(retired.Codes, []keyspb.Code{keyspb.Code_OK, keyspb.Code_INVALID, keyspb.Code_OK}) {
		t.Errorf("Retire = %v, %v", retired, err)
	}
	if _, err := w.Server.Retire(t.Context(), &keyspb.RetireRequest{}); codeOf(t, err) != keyspb.Code_INVALID {
		t.Errorf("Retire of nobody = %v", err)
	}
	sealed := &keyspb.IndexValue{Collection: "profile", Field: "email", Normaliser: 1, Sealed: []byte("x")}
	resp, err := w.Server.Reindex(t.Context(), &keyspb.ReindexRequest{Subjects: []*keyspb.ReindexSubject{
		{Subject: id[:], Values: []*keyspb.IndexValue{sealed, sealed}},
		{Subject: id[:], Values: []*keyspb.IndexValue{{Collection: "profile", Field: "email", Value: "clear"}}},
		{Values: []*keyspb.IndexValue{sealed}},
	}})
	if err != nil || len(resp.Subjects) != 3 {
		t.Fatal(resp, err)
	}
	if got := resp.Subjects[0]; got.Code != keyspb.Code_OK || len(got.Values) != 2 || len(got.Values[0].Tokens) != 2 {
		t.Errorf("got %v", got)
	}
	if resp.Subjects[1].Code != keyspb.Code_INVALID || resp.Subjects[2].Code != keyspb.Code_INVALID {
		t.Errorf("got %v", resp)
	}
}

// TestMetricsOfTheKeys: each figure that an alert rests on is in the file.
func TestMetricsOfTheKeys(t *testing.T) {
	w := sidecartest.New(t)
	w.Configure = func(c *sidecar.Config) {
		c.TokenValid = func() time.Duration { return 90 * time.Second }
		c.Budget = sidecar.Budget{SubjectsPerHour: 1}
	}
	w.Restart()
	w.Bind()
	fake := w.FakeKeys()
	now := w.Clock.Now()
	fake.SetJobs(
		keyring.Job{ID: uuid.New(), Scope: keyring.ScopeKEK, State: keyring.JobRunning, Done: 5, Total: 9, Updated: now, Started: now},
		keyring.Job{ID: uuid.New(), Scope: keyring.ScopeIndex, State: keyring.JobFailed},
		keyring.Job{ID: uuid.New(), Scope: keyring.ScopeKEK, State: keyring.JobDone, Started: now, Finished: now},
	)
	for range 2 {
		id, ref, ciphertexts := w.Subject("email")
		entry := w.Entry(ref, []string{"email"}, nil)
		open(t, w, w.Request(w.Log, sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email")))
	}
	text := string(w.Stats.Text(w.Server.Gauges(t.Context())))
	for _, line := range []string{
		`pdkeys_job_running{scope="kek"} 1`, `pdkeys_job_running{scope="index"} 0`, `pdkeys_job_failed{scope="index"} 1`,
		`pdkeys_job_failed{scope="kek"} 0`, `pdkeys_job_done{scope="kek"} 5`, `pdkeys_job_total{scope="kek"} 9`,
		fmt.Sprintf(`pdkeys_job_finished_seconds{scope="kek"} %d`, now.Unix()),
		`pdkeys_key_version{kind="kek",version="1"} 5`, `pdkeys_token_valid_seconds 90`,
		`pdkeys_kek_state{state="ok"} 1`, `pdkeys_kek_state{state="sealed"} 0`,
		`pdkeys_budget_refused_total{caller="shop",limit="subjects"} 1`, `pdkeys_budget_use_ratio{limit="subjects"} 1.0000`,
		`pdkeys_refused_total{why="budget"} 1`, `pdkeys_subjects 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if !strings.Contains(text, "\npdkeys_epoch_due_seconds 604") {
		t.Error("no due time of the epoch")
	}
	names := make(map[string]bool)
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			if names[name] {
				t.Errorf("%s twice", name)
			}
			names[name] = true
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}
