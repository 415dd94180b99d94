package sidecar_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

// rotating is a world whose ledger has further keys at hand.
type rotating struct {
	*sidecartest.World
	first, second, third, stranger sidecartest.LogKey
}

func newRotating(t *testing.T) *rotating {
	t.Helper()
	w := &rotating{World: sidecartest.New(t)}
	for _, k := range []*sidecartest.LogKey{&w.first, &w.second, &w.third, &w.stranger} {
		*k = sidecartest.NewLogKey(t, sidecartest.Origin)
	}
	w.Log = sidecartest.NewLogWith(t, sidecartest.Origin, w.first)
	w.Log.Grow(3)
	w.Bind()
	return w
}

// rotate shows a checkpoint, one entry further, with signatures of the given keys.
func (w *rotating) rotate(newest sidecartest.LogKey, drop string, signers ...sidecartest.LogKey) (*keyspb.RotateLedgerResponse, error) {
	w.T.Helper()
	w.Log.Grow(1)
	w.Log.SignWith(signers...)
	req := w.Request(w.Log)
	return w.Server.RotateLedger(w.T.Context(), &keyspb.RotateLedgerRequest{
		Checkpoint: req.Checkpoint, From: req.From, Consistency: req.Consistency, LedgerKey: newest.Text, Drop: drop,
	})
}

func (w *rotating) mustRotate(newest sidecartest.LogKey, drop string, signers ...sidecartest.LogKey) {
	w.T.Helper()
	if resp, err := w.rotate(newest, drop, signers...); err != nil || resp.Stale {
		w.T.Fatalf("rotating: %v, %v", resp, err)
	}
}

func (w *rotating) bound() []string {
	w.T.Helper()
	st, err := w.Server.Status(w.T.Context(), &keyspb.StatusRequest{})
	if err != nil {
		w.T.Fatal(err)
	}
	if len(st.LedgerKeys) == 0 || st.LedgerKey != st.LedgerKeys[0] {
		w.T.Errorf("newest %q of %q", st.LedgerKey, st.LedgerKeys)
	}
	return st.LedgerKeys
}

// TestLedgerKeysChangeOnlyWithBothSignatures.
func TestLedgerKeysChangeOnlyWithBothSignatures(t *testing.T) {
	w := newRotating(t)
	for _, tt := range []struct {
		name    string
		key     sidecartest.LogKey
		drop    string
		signers []sidecartest.LogKey
		why     string
	}{
		{"by the bound key alone", w.second, "", []sidecartest.LogKey{w.first}, "signers"},
		{"by the new key alone", w.second, "", []sidecartest.LogKey{w.second}, "signers"},
		{"by a stranger and the new key", w.second, "", []sidecartest.LogKey{w.stranger, w.second}, "signers"},
		{"by the bound key and a stranger", w.second, "", []sidecartest.LogKey{w.first, w.stranger}, "signers"},
		{"dropped without a newer one", w.first, w.first.Text, []sidecartest.LogKey{w.first}, "bad-message"},
		{"key of another origin", sidecartest.NewLogKey(t, "other.example.org/ledger"), "", []sidecartest.LogKey{w.first}, "bad-message"},
		{"no key", sidecartest.LogKey{}, "", []sidecartest.LogKey{w.first}, "bad-message"},
		{"key with a line in it", sidecartest.LogKey{Text: w.second.Text + "\n"}, "", []sidecartest.LogKey{w.first, w.second}, "bad-message"},
	} {
		if _, err := w.rotate(tt.key, tt.drop, tt.signers...); err == nil || whyOf(err) != tt.why {
			t.Errorf("%s: %v %q, want %q", tt.name, err, whyOf(err), tt.why)
		}
		if got := w.bound(); !slices.Equal(got, []string{w.first.Text}) {
			t.Fatalf("%s: bound to %q", tt.name, got)
		}
	}
	w.mustRotate(w.second, "", w.first, w.second)
	if got := w.bound(); !slices.Equal(got, []string{w.second.Text, w.first.Text}) {
		t.Fatalf("bound to %q", got)
	}
	w.mustRotate(w.second, "", w.first, w.second) // again: as after an answer that was lost
	for _, tt := range []struct {
		name    string
		key     sidecartest.LogKey
		drop    string
		signers []sidecartest.LogKey
	}{
		{"an older key back", w.first, "", []sidecartest.LogKey{w.first, w.second}},
		{"an older key takes another in", w.third, "", []sidecartest.LogKey{w.first, w.third}},
		{"an older key drops the newer", w.first, w.second.Text, []sidecartest.LogKey{w.first, w.first}},
		{"an older key drops itself", w.second, w.first.Text, []sidecartest.LogKey{w.first}},
	} {
		if _, err := w.rotate(tt.key, tt.drop, tt.signers...); codeOf(t, err) != keyspb.Code_PROOF_REFUSED {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if got := w.bound(); !slices.Equal(got, []string{w.second.Text, w.first.Text}) {
		t.Fatalf("bound to %q", got)
	}
	w.mustRotate(w.second, w.first.Text, w.second)
	w.mustRotate(w.second, w.first.Text, w.second)
	if got := w.bound(); !slices.Equal(got, []string{w.second.Text}) {
		t.Fatalf("bound to %q", got)
	}
	w.mustRotate(w.third, w.second.Text, w.second, w.third) // both steps in one
	if got := w.bound(); !slices.Equal(got, []string{w.third.Text}) {
		t.Fatalf("bound to %q", got)
	}
	w.Restart()
	if got := w.bound(); !slices.Equal(got, []string{w.third.Text}) {
		t.Errorf("after a restart bound to %q", got)
	}
}

// TestDuringTheOverlapEitherKeySigns, and after it only the newer.
func TestDuringTheOverlapEitherKeySigns(t *testing.T) {
	w := newRotating(t)
	w.mustRotate(w.second, "", w.first, w.second)
	for _, restarted := range []bool{false, true} {
		if restarted {
			w.Restart()
		}
		for _, signers := range [][]sidecartest.LogKey{{w.first}, {w.second}, {w.first, w.second}, {w.second, w.stranger}} {
			w.Log.Grow(1)
			w.Log.SignWith(signers...)
			req := w.Request(w.Log)
			if resp, err := witness(t, w.World, w.Log, req.From); err != nil || resp.Stale || len(resp.Cosignature) == 0 {
				t.Errorf("%d signers: %v, %v", len(signers), resp, err)
			}
		}
		bind := func(key sidecartest.LogKey) error {
			_, err := w.Server.Bind(t.Context(), &keyspb.BindRequest{Origin: w.Log.Origin, LedgerKey: key.Text})
			return err
		}
		if err := bind(w.second); err != nil {
			t.Errorf("binding with the newest key: %v", err)
		}
		if err := bind(w.first); whyOf(err) != "other-ledger" {
			t.Errorf("binding with an older key: %v", err)
		}
	}
	w.mustRotate(w.second, w.first.Text, w.first, w.second)
	w.Log.Grow(1)
	w.Log.SignWith(w.first)
	if _, err := witness(t, w.World, w.Log, w.Request(w.Log).From); whyOf(err) != "checkpoint" {
		t.Errorf("a dropped key signed: %v", err)
	}
}

// TestAChangeOfLedgerKeysIsKeptBeforeItHolds.
func TestAChangeOfLedgerKeysIsKeptBeforeItHolds(t *testing.T) {
	w := newRotating(t)
	w.mustRotate(w.first, "", w.first) // witnesses; changes nothing
	w.Ring.Before(func(op string) error {
		if op == "SaveState" && strings.Contains(strings.Join(w.Ring.Calls()[len(w.Ring.Calls())-1:], ""), "sidecar/bound") {
			return errors.New("disk")
		}
		return nil
	})
	if _, err := w.rotate(w.second, "", w.first, w.second); whyOf(err) != "not-saved" {
		t.Errorf("rotating: %v", err)
	}
	if got := w.bound(); !slices.Equal(got, []string{w.first.Text}) {
		t.Errorf("bound to %q", got)
	}
	w.Ring.Before(nil)
	w.mustRotate(w.second, "", w.first, w.second)
}

func TestAForkCannotChangeLedgerKeys(t *testing.T) {
	w := newRotating(t)
	w.Log.Grow(10)
	if _, err := witness(t, w.World, w.Log, 0); err != nil {
		t.Fatal(err)
	}
	fork := w.Log.Fork(5)
	fork.Append([]byte("forged"))
	fork.Grow(20)
	fork.SignWith(w.first, w.second)
	req := w.Request(fork)
	_, err := w.Server.RotateLedger(t.Context(), &keyspb.RotateLedgerRequest{
		Checkpoint: req.Checkpoint, From: req.From, Consistency: req.Consistency, LedgerKey: w.second.Text,
	})
	if whyOf(err) != "inconsistent" {
		t.Errorf("RotateLedger = %v", err)
	}
	// A checkpoint that does not join says where to prove from, and changes nothing.
	w.Log.Grow(1)
	w.Log.SignWith(w.first, w.second)
	signed, _ := w.Log.Checkpoint()
	resp, err := w.Server.RotateLedger(t.Context(), &keyspb.RotateLedgerRequest{Checkpoint: signed, From: 1, LedgerKey: w.second.Text})
	if err != nil || !resp.Stale || resp.WitnessedSize != 13 {
		t.Errorf("RotateLedger = %v, %v", resp, err)
	}
	if got := w.bound(); !slices.Equal(got, []string{w.first.Text}) {
		t.Errorf("bound to %q", got)
	}
}

func TestDamagedBindingsAreRefused(t *testing.T) {
	w := newRotating(t)
	good := "pdvault/bound/v2\n" + sidecartest.Origin + "\n" + w.second.Text + "\n" + w.first.Text + "\n"
	for name, tt := range map[string]struct {
		text string
		ok   bool
	}{
		"good":        {good, true},
		"old format":  {strings.Replace(good, "/v2", "/v1", 1), false},
		"no key":      {"pdvault/bound/v2\n" + sidecartest.Origin + "\n", false},
		"key twice":   {good + w.first.Text + "\n", false},
		"cut":         {good[:len(good)-1], false},
		"foreign key": {good + sidecartest.NewLogKey(t, "other.example.org").Text + "\n", false},
	} {
		if err := w.Ring.Keyring.SaveState(t.Context(), "sidecar/bound", []byte(tt.text)); err != nil {
			t.Fatal(err)
		}
		_, err := sidecar.New(t.Context(), sidecar.Config{Instance: sidecartest.Instance, Keyring: w.Ring})
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, sidecar.ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEachWitnessKeyCosigns while several are in use, a line each, the newest first.
func TestEachWitnessKeyCosigns(t *testing.T) {
	w := sidecartest.Bound(t)
	fake := w.FakeKeys()
	verifiers := func() (out []note.Verifier) {
		t.Helper()
		st, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range st.WitnessKeys {
			v, err := verify.NewCosignatureVerifier(key)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		if len(out) == 0 || st.WitnessKey != st.WitnessKeys[0] {
			t.Fatalf("newest %q of %q", st.WitnessKey, st.WitnessKeys)
		}
		return out
	}
	for _, step := range []struct {
		change func()
		grow   int
		want   int
	}{
		{func() {}, 1, 1},
		{func() { fake.RotateWitness() }, 1, 1},
		{func() { fake.RotateWitness() }, 0, 2}, // the same checkpoint, signed anew
		{func() { fake.RotateWitness() }, 4, 3},
		{func() { fake.DropWitness() }, 0, 2},
	} {
		step.change()
		w.Log.Grow(step.grow)
		req := w.Request(w.Log)
		resp, err := witness(t, w, w.Log, req.From)
		if err != nil || resp.Stale {
			t.Fatal(resp, err)
		}
		known := verifiers()
		lines := bytes.SplitAfter(resp.Cosignature, []byte("\n"))
		lines = lines[:len(lines)-1]
		if len(known) != step.want || len(lines) != step.want {
			t.Fatalf("%d keys, %d lines, want %d", len(known), len(lines), step.want)
		}
		for i, line := range lines {
			if _, err := verify.VerifyCosignatureLine(line, w.Log.CheckpointAt(w.Log.Size()), known[i]); err != nil {
				t.Errorf("line %d: %v", i, err)
			}
		}
	}
}

// TestARotationOfTheLedgerEndsWithAnotherKey: evidence never says that a key was rotated which is the same as before.
func TestARotationOfTheLedgerEndsWithAnotherKey(t *testing.T) {
	w := newRotating(t)
	w.FakeKeys()
	start := func() string {
		t.Helper()
		resp, err := w.Server.StartJob(t.Context(), &keyspb.StartJobRequest{Scope: "ledger", By: "test"})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Job.Id
	}
	finish := func(job string) error {
		_, err := w.Server.AdvanceJob(t.Context(), &keyspb.AdvanceJobRequest{Id: job, Finish: true, Recorded: -1})
		return err
	}
	mustFinish := func(job string) {
		t.Helper()
		// The answer is lost; the next process is asked again.
		w.Ring.FailOnce("AdvanceJob", keys.ErrUnavailable)
		if err := finish(job); codeOf(t, err) != keyspb.Code_UNAVAILABLE {
			t.Errorf("got %v", err)
		}
		w.Restart()
		if err := finish(job); err != nil {
			t.Errorf("after a rotation: %v", err)
		}
	}
	for i, next := range []sidecartest.LogKey{w.second, w.third} {
		before := []sidecartest.LogKey{w.first, w.second}[i]
		job := start()
		if err := finish(job); codeOf(t, err) != keyspb.Code_INVALID {
			t.Errorf("before any rotation: %v", err)
		}
		w.mustRotate(next, "", before, next)
		mustFinish(job)
		w.mustRotate(next, before.Text, next, before)
	}
	job := start()
	if err := finish(job); codeOf(t, err) != keyspb.Code_INVALID {
		t.Errorf("the key was dropped that the last rotation replaced: %v", err)
	}
}

// A rotation ends though the key that it has replaced is gone by then: the job of the first one too, of which nothing
// else tells that there was another key.
func TestARotationOfTheLedgerEndsAfterItsOlderKeyWasDropped(t *testing.T) {
	w := newRotating(t)
	w.FakeKeys()
	for i, next := range []sidecartest.LogKey{w.second, w.third} {
		before := []sidecartest.LogKey{w.first, w.second}[i]
		resp, err := w.Server.StartJob(t.Context(), &keyspb.StartJobRequest{Scope: "ledger", By: "test"})
		if err != nil {
			t.Fatal(err)
		}
		w.mustRotate(next, "", before, next)
		w.mustRotate(next, before.Text, next, before)
		w.Restart()
		finish := &keyspb.AdvanceJobRequest{Id: resp.Job.Id, Finish: true, Recorded: -1}
		if _, err := w.Server.AdvanceJob(t.Context(), finish); err != nil {
			t.Errorf("rotation %d: %v", i+1, err)
		}
	}
}
