package sidecar_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

// destroy sends req and returns its one item. A stale answer gives nil.
func destroy(t *testing.T, w *sidecartest.World, req *keyspb.DestroyRequest) *keyspb.DestroyedItem {
	t.Helper()
	resp, err := w.Server.Destroy(t.Context(), req)
	if err != nil {
		t.Fatalf("Destroy: %v", err)
	}
	if resp.Stale {
		return nil
	}
	if len(resp.Items) != 1 {
		t.Fatalf("got %d items, want 1", len(resp.Items))
	}
	return resp.Items[0]
}

// lives reports whether the subject still has its key.
func lives(t *testing.T, w *sidecartest.World, id uuid.UUID) bool {
	t.Helper()
	out, err := w.Ring.Keyring.Prepare(t.Context(), []keyring.PrepareItem{{Subject: id}})
	if err != nil {
		t.Fatal(err)
	}
	if out[0].Err != nil && !errors.Is(out[0].Err, keys.ErrDestroyed) {
		t.Fatal(out[0].Err)
	}
	return out[0].Err == nil
}

// TestNobodyIsDestroyedWithoutAnErasureOnRecord: each row changes one thing of a request that would be carried
// out, and the sidecar must refuse for that reason. Then the honest request is carried out.
func TestNobodyIsDestroyedWithoutAnErasureOnRecord(t *testing.T) {
	const refused, malformed = keyspb.Code_PROOF_REFUSED, keyspb.Code_INVALID
	other := sidecartest.NewLog(t, sidecartest.Origin)
	for _, a := range []struct {
		name  string
		code  keyspb.Code
		why   string
		entry func(*verify.Entry)
		raw   func([]byte) []byte
		ask   func(*keyspb.DestroyRequest)
		log   *sidecartest.Log
	}{
		{name: "no checkpoint", code: refused, why: "checkpoint", ask: func(r *keyspb.DestroyRequest) { r.Checkpoint = nil }},
		{name: "no proof", code: refused, why: "not-included", ask: func(r *keyspb.DestroyRequest) { r.Items[0].Inclusion = nil }},
		{name: "no entry", code: malformed, why: "bad-message", ask: func(r *keyspb.DestroyRequest) { r.Items[0].Entry = nil }},
		{name: "forged entry", code: refused, why: "not-included", ask: func(r *keyspb.DestroyRequest) {
			r.Items[0].Entry = bytes.Replace(r.Items[0].Entry, []byte(`"request"`), []byte(`"because"`), 1)
		}},
		{name: "another index", code: refused, why: "not-included", ask: func(r *keyspb.DestroyRequest) { r.Items[0].Index-- }},
		{name: "negative index", code: malformed, why: "bad-message", ask: func(r *keyspb.DestroyRequest) { r.Items[0].Index = -1 }},
		{name: "foreign ledger key", code: refused, why: "checkpoint", log: other},
		{name: "an access record", code: refused, why: "not-erased", entry: func(e *verify.Entry) { e.Kind, e.Erasure = verify.KindAccess, nil }},
		{name: "a destruction", code: refused, why: "not-erased", entry: func(e *verify.Entry) { e.Kind = verify.KindKeyDestroyed }},
		{name: "no erasure in it", code: refused, why: "not-erased", entry: func(e *verify.Entry) { e.Erasure = nil }},
		{name: "no reference", code: refused, why: "other-subject", entry: func(e *verify.Entry) { e.SubjectRef = "" }},
		{name: "another subject's entry", code: refused, why: "other-subject", entry: func(e *verify.Entry) {
			e.SubjectRef = verify.FormatRef(make([]byte, 32))
		}},
		{name: "no strict JSON", code: refused, why: "bad-entry", raw: func(b []byte) []byte { return append(b, ' ') }},
		{name: "no subject", code: malformed, why: "bad-message", ask: func(r *keyspb.DestroyRequest) { r.Items[0].Subject = nil }},
		{name: "nil subject", code: malformed, why: "bad-message", ask: func(r *keyspb.DestroyRequest) { r.Items[0].Subject = make([]byte, 16) }},
	} {
		t.Run(a.name, func(t *testing.T) {
			w := sidecartest.Bound(t)
			w.FakeKeys()
			id, ref, _ := w.Subject("email")
			w.Log.Grow(3)
			entry := w.Erasure(ref, a.entry)
			if a.raw != nil {
				entry = a.raw(entry)
			}
			index := w.Log.Append(entry)
			log := w.Log
			if a.log != nil {
				log = a.log
				log.Grow(int(w.Log.Size() - log.Size()))
			}
			req := w.DestroyRequest(log, index, entry, id)
			if a.ask != nil {
				a.ask(req)
			}
			got := destroy(t, w, req)
			if got == nil || got.Code != a.code || got.Why != a.why || got.Generation != 0 || got.DeadBy != 0 {
				t.Errorf("got %v, want %v %q", got, a.code, a.why)
			}
			if !lives(t, w, id) {
				t.Fatal("the key is destroyed")
			}
			if text := string(w.Stats.Text(nil)); !strings.Contains(text, `pdkeys_refused_total{why="`+a.why+`"} 1`) {
				t.Errorf("not counted:\n%s", text)
			}
			honest := w.Erasure(ref, nil)
			if got := destroy(t, w, w.DestroyRequest(w.Log, w.Log.Append(honest), honest, id)); got.GetCode() != keyspb.Code_OK {
				t.Errorf("the honest request: %v", got)
			}
			if lives(t, w, id) {
				t.Error("the key is still there")
			}
		})
	}
}

// TestAnErasureIsFinishedDaysLater: after a restart and long after its entry, and again and again.
func TestAnErasureIsFinishedDaysLater(t *testing.T) {
	w := sidecartest.Bound(t)
	fake := w.FakeKeys()
	id, ref, _ := w.Subject("email")
	entry := w.Erasure(ref, nil)
	index := w.Log.Append(entry)
	w.Clock.Advance(72 * time.Hour)
	w.Restart()
	first := destroy(t, w, w.DestroyRequest(w.Log, index, entry, id))
	if first.GetCode() != keyspb.Code_OK || first.Already || first.Generation == 0 || first.KekVersion != 1 || first.DeadBy == 0 {
		t.Fatalf("got %v", first)
	}
	if lives(t, w, id) {
		t.Fatal("the key is still there")
	}
	w.Restart()
	w.Log.Grow(5)
	if again := destroy(t, w, w.DestroyRequest(w.Log, index, entry, id)); again.GetCode() != keyspb.Code_OK || !again.Already {
		t.Errorf("again: %v", again)
	}
	if asked := fake.Asked(); !strings.Contains(strings.Join(asked, "\n"), "DestroyRef request") {
		t.Errorf("asked %q", asked)
	}
}

func TestAStaleDestroyDestroysNothing(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys()
	id, ref, _ := w.Subject("email")
	entry := w.Erasure(ref, nil)
	req := w.DestroyRequest(w.Log, w.Log.Append(entry), entry, id)
	w.Log.Grow(2)
	if _, err := witness(t, w, w.Log, 0); err != nil {
		t.Fatal(err)
	}
	resp, err := w.Server.Destroy(t.Context(), req)
	if err != nil || !resp.Stale || resp.WitnessedSize != w.Log.Size() || len(resp.Items) != 0 || !lives(t, w, id) {
		t.Errorf("got %v, %v", resp, err)
	}
}

// TestTheDateByWhichBackupsAreDeadIsNotTooEarly.
func TestTheDateByWhichBackupsAreDeadIsNotTooEarly(t *testing.T) {
	const week = 7 * 24 * time.Hour
	for _, tt := range []struct {
		name string
		due  time.Duration // the next epoch, from now; 0: none is planned
		jobs []keyring.Job
		want time.Duration
	}{
		{name: "planned", due: 48 * time.Hour, want: 48 * time.Hour},
		{name: "none planned"},
		{name: "overdue", due: -time.Hour, want: week},
		{name: "under way, and past this bundle", due: time.Hour, want: week,
			jobs: []keyring.Job{{Scope: keyring.ScopeKEK, State: keyring.JobRunning, Target: 1}}},
		{name: "under way, and not at this bundle yet", due: time.Hour, want: time.Hour,
			jobs: []keyring.Job{{Scope: keyring.ScopeKEK, State: keyring.JobRunning, Target: 2}}},
		{name: "over", due: time.Hour, want: time.Hour,
			jobs: []keyring.Job{{Scope: keyring.ScopeKEK, State: keyring.JobDone, Target: 1, Finished: time.Now().Add(time.Hour - week)}}},
		{name: "over since the keys were counted", due: time.Hour, want: week,
			jobs: []keyring.Job{{Scope: keyring.ScopeKEK, State: keyring.JobDone, Target: 1, Finished: time.Now()}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := sidecartest.Bound(t)
			fake := w.FakeKeys()
			fake.SetJobs(tt.jobs...)
			now := w.Clock.Now()
			fake.SetInventory(func(in *keyring.Inventory) {
				in.NextEpoch, in.EpochInterval = now.Add(tt.due), week
				if tt.due == 0 {
					in.NextEpoch, in.EpochInterval = time.Time{}, 0
				}
			})
			id, ref, _ := w.Subject("email")
			entry := w.Erasure(ref, nil)
			got := destroy(t, w, w.DestroyRequest(w.Log, w.Log.Append(entry), entry, id))
			if got.GetCode() != keyspb.Code_OK {
				t.Fatal(got)
			}
			if tt.want == 0 {
				if got.DeadBy != 0 {
					t.Errorf("dead by %v, want none", time.UnixMilli(got.DeadBy))
				}
				return
			}
			if d := time.UnixMilli(got.DeadBy).Sub(now.Add(tt.want)); d < -time.Second || d > 10*time.Second {
				t.Errorf("dead by %v, want %v", time.UnixMilli(got.DeadBy), now.Add(tt.want))
			}
		})
	}
}

// TestWithoutAPlanNothingIsDestroyed: a certificate must not say less than is so.
func TestWithoutAPlanNothingIsDestroyed(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys()
	id, ref, _ := w.Subject("email")
	entry := w.Erasure(ref, nil)
	index := w.Log.Append(entry)
	w.Ring.Before(func(op string) error {
		if op == "NextEpoch" {
			return keys.ErrUnavailable
		}
		return nil
	})
	if got := destroy(t, w, w.DestroyRequest(w.Log, index, entry, id)); got.GetCode() != keyspb.Code_UNAVAILABLE || !lives(t, w, id) {
		t.Errorf("got %v", got)
	}
	w.Ring.Before(nil)
	if got := destroy(t, w, w.DestroyRequest(w.Log, index, entry, id)); got.GetCode() != keyspb.Code_OK {
		t.Errorf("got %v", got)
	}
}

// TestNothingWaitsForACount: one reads the whole key store, which takes as long as that is large.
func TestNothingWaitsForACount(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys()
	id, ref, _ := w.Subject("email")
	entry := w.Erasure(ref, nil)
	index := w.Log.Append(entry)
	counting, counted := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.Ring.Before(func(op string) error {
		if op == "Inventory" {
			once.Do(func() { close(counting) })
			<-counted
		}
		return nil
	})
	var counter sync.WaitGroup
	counter.Go(func() { _, _ = w.Server.Inventory(t.Context(), &keyspb.InventoryRequest{}) })
	<-counting
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := w.Server.Inventory(ctx, &keyspb.InventoryRequest{}); err == nil {
		t.Error("a second count did not wait for the first")
	}
	if _, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{}); err != nil {
		t.Errorf("status: %v", err)
	}
	if _, err := w.Server.StartJob(t.Context(), &keyspb.StartJobRequest{Scope: keyring.ScopeToken, By: "test"}); err != nil {
		t.Errorf("rotation: %v", err)
	}
	if got := destroy(t, w, w.DestroyRequest(w.Log, index, entry, id)); got.GetCode() != keyspb.Code_OK || lives(t, w, id) {
		t.Errorf("got %v", got)
	}
	close(counted)
	counter.Wait()
}

// TestAPanicWhileDestroyingIsOneOutcome.
func TestAPanicWhileDestroyingIsOneOutcome(t *testing.T) {
	w := sidecartest.Bound(t)
	w.FakeKeys()
	id, ref, _ := w.Subject("email")
	entry := w.Erasure(ref, nil)
	index := w.Log.Append(entry)
	w.Ring.Before(func(op string) error {
		if op == "DestroyRef" {
			panic("canary")
		}
		return nil
	})
	if got := destroy(t, w, w.DestroyRequest(w.Log, index, entry, id)); got.GetCode() != keyspb.Code_UNAVAILABLE {
		t.Errorf("got %v", got)
	}
}
