package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

func TestAnErasedSubjectIsDestroyed(t *testing.T) {
	w := sidecartest.New(t)
	w.FakeKeys()
	c := dial(t, w, nil)
	ctx := t.Context()
	r, other := newRecord(w), newRecord(w)
	if err := r.read(ctx, w, c); err != nil {
		t.Fatal(err)
	}
	entry := w.Erasure(r.ref, nil)
	index := w.Log.Append(entry)
	for name, call := range map[string]func() error{
		"another subject":     func() error { _, err := c.Destroy(ctx, index, entry, other.id); return err },
		"entry not in ledger": func() error { _, err := c.Destroy(ctx, index+5, entry, r.id); return err },
		"another entry": func() error {
			_, err := c.Destroy(ctx, index, w.Erasure(r.ref, func(e *verify.Entry) { e.Reason = "x" }), r.id)
			return err
		},
	} {
		if err := call(); !errors.Is(err, keys.ErrProofRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Destroy(ctx, -1, entry, r.id); !errors.Is(err, keys.ErrInvalid) {
		t.Errorf("negative index: %v", err)
	}
	d, err := c.Destroy(ctx, index, entry, r.id)
	if err != nil || d.Generation == 0 || d.KEKVersion != 1 || d.Already || d.DeadBy.IsZero() || d.Generation > c.Generation() {
		t.Fatalf("Destroy = %+v, %v", d, err)
	}
	if err := r.read(ctx, w, c); !errors.Is(err, keys.ErrDestroyed) {
		t.Errorf("read after it: %v", err)
	}
	if err := other.read(ctx, w, c); err != nil {
		t.Errorf("read of another: %v", err)
	}
	if again, err := c.Destroy(ctx, index, entry, r.id); err != nil || !again.Already {
		t.Errorf("again: %+v, %v", again, err)
	}
	w.Stop()
	if _, err := c.Destroy(ctx, index, entry, r.id); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("without a sidecar: %v", err)
	}
}

// TestErasuresGoOnBesideReads, though each moves the witnessed checkpoint under the others.
func TestErasuresGoOnBesideReads(t *testing.T) {
	w := sidecartest.New(t)
	w.FakeKeys()
	c := dial(t, w, nil)
	c2, err := client.Dial(t.Context(), client.Config{Socket: w.Socket, Prover: w.Log})
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	reader := newRecord(w)
	go func() {
		for ctx.Err() == nil {
			if err := reader.read(ctx, w, c2); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 20 {
		r := newRecord(w)
		entry := w.Erasure(r.ref, nil)
		if _, err := c.Destroy(ctx, w.Log.Append(entry), entry, r.id); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("reading: %v", err)
	}
}

func TestRotationsCrossTheWire(t *testing.T) {
	w := sidecartest.New(t)
	fake := w.FakeKeys()
	c := dial(t, w, nil)
	ctx := t.Context()
	subject := uuid.New()
	j, err := c.StartJob(ctx, keyring.ScopeSubject, subject, "security")
	if err != nil || j.Subject != subject || j.By != "security" || j.State != keyring.JobRunning || j.Recorded != -1 || j.Started.IsZero() || !j.Finished.IsZero() {
		t.Fatalf("StartJob = %+v, %v", j, err)
	}
	if _, err := c.StartJob(ctx, keyring.ScopeIndex, uuid.Nil, "security"); !errors.Is(err, keys.ErrJobRunning) {
		t.Errorf("a second: %v", err)
	}
	if _, err := c.StartJob(ctx, "all", uuid.Nil, "security"); !errors.Is(err, keys.ErrInvalid) {
		t.Errorf("another scope: %v", err)
	}
	if _, err := c.AdvanceJob(ctx, uuid.NewString(), client.JobProgress{Recorded: -1}); !errors.Is(err, keys.ErrNoJob) {
		t.Errorf("an unknown one: %v", err)
	}
	if j, err = c.AdvanceJob(ctx, j.ID, client.JobProgress{Phase: "reseal", Done: 1, Total: 2, Recorded: -1}); err != nil || j.Phase != "reseal" || j.Total != 2 {
		t.Errorf("AdvanceJob = %+v, %v", j, err)
	}
	if j, err = c.AdvanceJob(ctx, j.ID, client.JobProgress{Done: 2, Total: 2, Finish: true, Recorded: -1}); err != nil {
		t.Fatal(err)
	}
	jobs, err := c.Jobs(ctx)
	if err != nil || len(jobs) != 1 || jobs[0] != j || j.State != keyring.JobDone {
		t.Errorf("Jobs = %+v, %v, want %+v", jobs, err, j)
	}
	st, err := c.Status(ctx)
	if err != nil || len(st.WitnessKeys) != 1 || len(st.LedgerKeys) != 1 || st.NextEpoch.IsZero() {
		t.Fatalf("Status = %+v, %v", st, err)
	}
	if e, err := verify.OpenEvidence([]byte(j.Evidence), st.WitnessKey); err != nil || e.Total != 2 {
		t.Errorf("evidence %+v, %v", e, err)
	}
	in, err := c.Inventory(ctx)
	if err != nil || in.Subjects != 1 || in.EpochInterval != 7*24*time.Hour || len(in.Versions) != 1 || in.Versions[0].Kind != "kek" ||
		!in.Versions[0].Newest || in.Versions[0].Made.IsZero() || in.KEK == "" {
		t.Errorf("Inventory = %+v, %v", in, err)
	}

	fake.RotateSubjects(2)
	resealed, err := c.Reseal(ctx, 2, []client.ResealSubject{{Subject: subject, Items: []client.ResealItem{
		{Collection: "profile", Field: "email", Version: 1, Ciphertext: []byte("a")},
		{Kind: keyring.ItemIndex, Collection: "profile", Field: "email", Normaliser: 1, Ciphertext: []byte("newest")},
		{Kind: keyring.ItemDetail, Ciphertext: []byte("c")},
	}}, {Subject: subject, Items: []client.ResealItem{{Kind: 9, Ciphertext: []byte("c")}}}})
	if err != nil || len(resealed) != 2 {
		t.Fatal(resealed, err)
	}
	if r := resealed[0]; r.Err != nil || len(r.Ref) != 32 || string(r.Ciphertexts[0]) != "+a" || r.Ciphertexts[1] != nil || string(r.Ciphertexts[2]) != "+c" {
		t.Errorf("Reseal = %+v", r)
	}
	if r := resealed[1]; !errors.Is(r.Err, keys.ErrInvalid) || r.Ref != nil {
		t.Errorf("Reseal of an unknown kind = %+v", r)
	}
	retired, err := c.Retire(ctx, 2, []uuid.UUID{subject, uuid.Nil})
	if err != nil || len(retired) != 2 || retired[0] != nil || !errors.Is(retired[1], keys.ErrInvalid) {
		t.Errorf("Retire = %v, %v", retired, err)
	}
	reindexed, err := c.Reindex(ctx, []client.ReindexSubject{{Subject: subject, Values: []client.ReindexValue{{Collection: "profile", Field: "email", Sealed: []byte("x")}}}})
	if err != nil || len(reindexed) != 1 || reindexed[0].Err != nil || len(reindexed[0].Tokens) != 1 || len(reindexed[0].Tokens[0]) != 2 {
		t.Errorf("Reindex = %+v, %v", reindexed, err)
	}
	for name, call := range map[string]func() error{
		"Reseal of nobody":  func() error { _, err := c.Reseal(ctx, 1, nil); return err },
		"Retire of nobody":  func() error { _, err := c.Retire(ctx, 1, nil); return err },
		"Reindex of nobody": func() error { _, err := c.Reindex(ctx, nil); return err },
		"too many items": func() error {
			_, err := c.Reseal(ctx, 1, []client.ResealSubject{{Subject: subject, Items: make([]client.ResealItem, sidecar.MaxResealItems+1)}})
			return err
		},
	} {
		if err := call(); !errors.Is(err, keys.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLongCallsOutliveTheUsualDeadline of the client and of the sidecar.
func TestLongCallsOutliveTheUsualDeadline(t *testing.T) {
	w := sidecartest.New(t)
	w.FakeKeys().RotateSubjects(1)
	c := dial(t, w, func(cfg *client.Config) { cfg.Timeout = 100 * time.Millisecond })
	w.Ring.Before(func(op string) error {
		if op == "Retire" {
			time.Sleep(300 * time.Millisecond)
		}
		return nil
	})
	if _, err := c.Retire(t.Context(), 1, []uuid.UUID{uuid.New()}); err != nil {
		t.Errorf("Retire: %v", err)
	}
}

// TestABudgetIsNoOutage: the caller can tell the two apart.
func TestABudgetIsNoOutage(t *testing.T) {
	w := sidecartest.New(t)
	w.Configure = func(cfg *sidecar.Config) { cfg.Budget.SubjectsPerHour = 1 }
	w.Restart()
	c := dial(t, w, nil)
	first, second := newRecord(w), newRecord(w)
	if err := first.read(t.Context(), w, c); err != nil {
		t.Fatal(err)
	}
	err := second.read(t.Context(), w, c)
	if !errors.Is(err, keys.ErrBudget) || errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("past the budget: %v", err)
	}
	if err := first.read(t.Context(), w, c); err != nil {
		t.Errorf("the subject that was read before: %v", err)
	}
}

func TestLedgerKeysAreChanged(t *testing.T) {
	w := sidecartest.New(t)
	first, second := sidecartest.NewLogKey(t, sidecartest.Origin), sidecartest.NewLogKey(t, sidecartest.Origin)
	w.Log = sidecartest.NewLogWith(t, sidecartest.Origin, first)
	c := dial(t, w, nil)
	ctx := t.Context()
	r := newRecord(w)
	rotate := func(newest, drop string, signers ...sidecartest.LogKey) error {
		w.Log.Grow(1)
		w.Log.SignWith(signers...)
		signed, size := w.Log.Checkpoint()
		return c.RotateLedger(ctx, signed, size, newest, drop)
	}
	if err := rotate(second.Text, "", first); !errors.Is(err, keys.ErrProofRefused) {
		t.Errorf("without the new key's signature: %v", err)
	}
	for _, step := range []func() error{
		func() error { return rotate(second.Text, "", first, second) },
		func() error { return r.read(ctx, w, c) },
		func() error { return c.Bind(ctx, sidecartest.Origin, second.Text) },
		func() error { return rotate(second.Text, first.Text, second) },
		func() error { return r.read(ctx, w, c) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	st, err := c.Status(ctx)
	if err != nil || len(st.LedgerKeys) != 1 || st.LedgerKey != second.Text {
		t.Errorf("Status = %+v, %v", st, err)
	}
	// A note that the ledger has left behind is of no use, and no refusal.
	signed, size := w.Log.Fork(1).Checkpoint()
	if err := c.RotateLedger(ctx, signed, size, second.Text, ""); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("an old note: %v", err)
	}
}

// TestEachCosignatureLineIsTold for itself, that of the newest key first.
func TestEachCosignatureLineIsTold(t *testing.T) {
	w := sidecartest.New(t)
	fake := w.FakeKeys()
	fake.RotateWitness()
	fake.RotateWitness()
	c := dial(t, w, nil)
	w.Log.Grow(1)
	lines, err := c.Witness(t.Context())
	if err != nil || strings.Count(string(lines), "\n") != 2 || w.Log.Cosignature(1) != string(lines) {
		t.Errorf("Witness = %q, %v; told %q", lines, err, w.Log.Cosignature(1))
	}
}

func TestAdmin(t *testing.T) {
	archive := bytes.Repeat([]byte("archive."), 100_000)
	w := sidecartest.New(t)
	w.Configure = func(cfg *sidecar.Config) {
		cfg.Backup = func(_ context.Context, out io.Writer) error {
			_, err := out.Write(archive)
			return err
		}
	}
	w.Restart()
	w.FakeKeys()
	w.Serve()
	a, err := client.DialAdmin(client.Config{Socket: w.Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx := t.Context()
	if in, err := a.Inventory(ctx); err != nil || in.Subjects != 1 {
		t.Errorf("Inventory = %+v, %v", in, err)
	}
	j, err := a.StartJob(ctx, keyring.ScopeKEK, uuid.Nil)
	if err != nil || j.By != "pdkeys" {
		t.Errorf("StartJob = %+v, %v", j, err)
	}
	if _, err := a.StartJob(ctx, keyring.ScopeKEK, uuid.Nil); !errors.Is(err, keys.ErrJobRunning) {
		t.Errorf("a second: %v", err)
	}
	if jobs, err := a.Jobs(ctx); err != nil || len(jobs) != 1 || jobs[0] != j {
		t.Errorf("Jobs = %+v, %v", jobs, err)
	}
	var got bytes.Buffer
	if err := a.Backup(ctx, &got); err != nil || !bytes.Equal(got.Bytes(), archive) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	if err := a.Backup(ctx, full{}); !errors.Is(err, errFull) {
		t.Errorf("Backup to a full disk = %v", err)
	}
	if _, err := client.DialAdmin(client.Config{Socket: filepath.Join(filepath.Dir(w.Socket), "absent")}); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("DialAdmin = %v", err)
	}
}

var errFull = errors.New("full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// nothing answers the calls about keys with nothing.
type nothing struct{ liar }

func (nothing) Destroy(context.Context, *keyspb.DestroyRequest) (*keyspb.DestroyResponse, error) {
	return &keyspb.DestroyResponse{Items: []*keyspb.DestroyedItem{{}}}, nil
}

func (nothing) Witness(_ context.Context, r *keyspb.WitnessRequest) (*keyspb.WitnessResponse, error) {
	return &keyspb.WitnessResponse{WitnessedSize: 1}, nil
}

func (nothing) Reseal(context.Context, *keyspb.ResealRequest) (*keyspb.ResealResponse, error) {
	return &keyspb.ResealResponse{Subjects: []*keyspb.ResealedSubject{{Ref: make([]byte, 32)}}}, nil
}

func (nothing) Retire(context.Context, *keyspb.RetireRequest) (*keyspb.RetireResponse, error) {
	return &keyspb.RetireResponse{}, nil
}

func (nothing) Reindex(context.Context, *keyspb.ReindexRequest) (*keyspb.ReindexResponse, error) {
	return &keyspb.ReindexResponse{Subjects: []*keyspb.ReindexedSubject{{Ref: make([]byte, 32), Values: []*keyspb.IndexTokens{nil}}}}, nil
}

func (nothing) StartJob(context.Context, *keyspb.StartJobRequest) (*keyspb.JobResponse, error) {
	return &keyspb.JobResponse{}, nil
}

func (nothing) Jobs(context.Context, *keyspb.JobsRequest) (*keyspb.JobsResponse, error) {
	return &keyspb.JobsResponse{Jobs: []*keyspb.Job{{}}}, nil
}

// TestEmptyAnswersAboutKeysAreNoAnswers: in particular nobody is taken for destroyed.
func TestEmptyAnswersAboutKeysAreNoAnswers(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	listenWith(t, path, 0o660, func(g *grpc.Server) { keyspb.RegisterSidecarServer(g, nothing{}) })
	log := sidecartest.NewLog(t, sidecartest.Origin)
	log.Grow(1)
	c, err := client.Dial(t.Context(), client.Config{Socket: path, Prover: log})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	id := uuid.New()
	item := []client.ResealItem{{Collection: "a", Field: "b", Ciphertext: []byte("x")}}
	value := []client.ReindexValue{{Collection: "a", Field: "b", Sealed: []byte("x")}}
	for name, call := range map[string]func() error{
		"Destroy": func() error { _, err := c.Destroy(ctx, 0, []byte("filler"), id); return err },
		"Reseal": func() error {
			r, err := c.Reseal(ctx, 1, []client.ResealSubject{{Subject: id, Items: item}})
			return errors.Join(err, r[0].Err)
		},
		"Retire": func() error { _, err := c.Retire(ctx, 1, []uuid.UUID{id}); return err },
		"Reindex": func() error {
			r, err := c.Reindex(ctx, []client.ReindexSubject{{Subject: id, Values: value}})
			return errors.Join(err, r[0].Err)
		},
		"StartJob": func() error { _, err := c.StartJob(ctx, "index", uuid.Nil, "x"); return err },
		"Jobs":     func() error { _, err := c.Jobs(ctx); return err },
	} {
		if err := call(); !errors.Is(err, keys.ErrUnavailable) {
			t.Errorf("%s = %v, want ErrUnavailable", name, err)
		}
	}
}
