package access_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// Many reads, in a batch larger than one group or at the same time, share steps, commits and calls. Each is what it is
// alone: its own decision, record and answer, and one record.
func TestEachOfManyReadsIsARead(t *testing.T) {
	for name, way := range map[string]func(*world, []access.ReadRequest) []access.BatchResult{
		"in a batch": func(w *world, reads []access.ReadRequest) []access.BatchResult {
			q := access.BatchRequest{Request: w.as("shop"), Purpose: "order-fulfilment"}
			for _, r := range reads {
				q.Reads = append(q.Reads, access.BatchItem{Subject: r.Subject, Collection: r.Collection, Fields: r.Fields})
			}
			got, err := w.ReadBatch(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			return got
		},
		"at the same time": func(w *world, reads []access.ReadRequest) []access.BatchResult {
			got := make([]access.BatchResult, len(reads))
			var all sync.WaitGroup
			for i, q := range reads {
				if i%50 == 31 {
					q.Reference = "ticket"
				}
				all.Go(func() {
					r, err := w.Read(t.Context(), q)
					if got[i].Err = err; err == nil {
						got[i].Read = &r
					}
				})
			}
			all.Wait()
			return got
		},
	} {
		t.Run(name, func(t *testing.T) { manyReads(t, way) })
	}
}

func manyReads(t *testing.T, way func(*world, []access.ReadRequest) []access.BatchResult) {
	w := newWorld(t)
	var people []uuid.UUID
	for i := range 7 {
		people = append(people, w.mustCreate(fmt.Sprintf(`{"email":"person%d@example.org","displayName":"Person %d"}`, i, i)))
	}
	damaged := w.mustCreate(`{"email":"damaged@example.org"}`)
	w.damageRecord(damaged)

	var reads []access.ReadRequest
	wrong := map[int]error{11: access.ErrNotFound, 23: access.ErrDenied, 37: vault.ErrIntegrity} // of each 50
	for i := range 500 {
		q := access.ReadRequest{
			Request: w.as("shop"), Subject: people[i%len(people)], Collection: "profile", Fields: []string{"email"}, Purpose: "order-fulfilment",
		}
		switch i % 50 {
		case 11:
			q.Subject = uuid.New()
		case 23:
			q.Fields = []string{"birthdate"}
		case 37:
			q.Subject = damaged
		}
		reads = append(reads, q)
	}
	before := w.size()
	got := way(w, reads)
	if len(got) != len(reads) {
		t.Fatalf("%d results of %d reads", len(got), len(reads))
	}
	records := map[int64]uuid.UUID{}
	for i, r := range got {
		if want := wrong[i%50]; want != nil {
			if !errors.Is(r.Err, want) || r.Read != nil {
				t.Errorf("read %d: %v, want %v", i, r.Err, want)
			}
			continue
		}
		if r.Err != nil {
			t.Fatalf("read %d: %v", i, r.Err)
		}
		if email := fmt.Sprintf(`"person%d@example.org"`, i%len(people)); string(r.Read.Fields["email"]) != email || r.Read.Subject != reads[i].Subject {
			t.Errorf("read %d has the answer of another", i)
		}
		if _, twice := records[r.Read.Record]; twice || r.Read.Record < before {
			t.Errorf("read %d has the record of another", i)
		}
		records[r.Read.Record] = r.Read.Subject
	}
	failed := len(reads) / 50
	if n := w.size() - before; n != int64(len(reads)-failed) {
		t.Errorf("%d entries for %d reads, of which %d met damage", n, len(reads), failed)
	}
	refs := map[uuid.UUID]string{}
	for i, e := range w.entries(before) {
		subject, served := records[before+int64(i)]
		if !served {
			continue
		}
		if e.Kind != verify.KindAccess || e.Decision != verify.Allow || refs[subject] != "" && refs[subject] != e.SubjectRef {
			t.Errorf("entry %d is not the record of its read", before+int64(i))
		}
		refs[subject] = e.SubjectRef
	}
}

// What changes between the decisions on a batch and their records is decided anew.
func TestABatchDecidesAnewOnWhatChangedMeanwhile(t *testing.T) {
	w := newWorld(t)
	people := []uuid.UUID{w.mustCreate(someone), w.mustCreate(`{"email":"other@example.org"}`)}
	var given access.Consent
	for _, id := range people {
		given = w.mustConsent(id, "newsletter")
	}
	w.config.Opener = &interrupted{Opener: w.config.Opener, before: func() {
		if _, err := w.WithdrawConsent(t.Context(), w.as("shop"), given.ID); err != nil {
			t.Error(err)
		}
	}}
	b, err := access.New(t.Context(), w.config)
	if err != nil {
		t.Fatal(err)
	}
	q := access.BatchRequest{Request: w.as("shop"), Purpose: "newsletter", Reference: "campaign 7"}
	for _, id := range people {
		q.Reads = append(q.Reads, access.BatchItem{Subject: id, Collection: "profile", Fields: []string{"email"}})
	}
	got, err := b.ReadBatch(t.Context(), q)
	if err != nil || got[0].Err != nil || !errors.Is(got[1].Err, access.ErrDenied) {
		t.Fatalf("%v: %v, %v", err, got[0].Err, got[1].Err)
	}
	var withdrawn string
	for _, e := range w.entries(0) {
		if e.Kind == verify.KindConsentWithdrawn {
			withdrawn = e.SubjectRef
		}
		if withdrawn != "" && e.SubjectRef == withdrawn && e.Kind == verify.KindAccess && e.Decision == verify.Allow {
			t.Error("an allowed access follows the withdrawal")
		}
	}
	if withdrawn == "" {
		t.Error("nothing was withdrawn")
	}
}

// A policy that is published between the decisions on a batch and their records decides, on what was allowed and on what
// was denied, and says which fields a read covers that names none.
func TestAPolicyPublishedMeanwhileDecidesOnABatch(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	var publish sync.Once
	published := func() {
		w.publish(func(d *policy.Document) {
			for i, p := range d.Purposes {
				if p.ID == "order-fulfilment" {
					d.Purposes[i].Fields["profile"] = []string{"name", "birthdate"}
				}
			}
		})
	}
	w.sidecar.Ring.Before(func(op string) error {
		if op == "Prepare" {
			publish.Do(published)
		}
		return nil
	})
	before := w.size()
	got, err := w.ReadBatch(t.Context(), access.BatchRequest{
		Request: w.as("shop"), Purpose: "order-fulfilment", Reference: "ticket 1",
		Reads: []access.BatchItem{
			{Subject: id, Collection: "profile"},
			{Subject: id, Collection: "profile", Fields: []string{"email"}},
			{Subject: id, Collection: "profile", Fields: []string{"displayName"}},
			{Subject: uuid.New(), Collection: "profile", Fields: []string{"name"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Err != nil || got[0].Read.Fields["email"] != nil || got[0].Read.Fields["name"] == nil {
		t.Errorf("a read that names no fields: %v", got[0].Err)
	}
	for i, want := range []error{1: access.ErrDenied, 2: access.ErrDenied, 3: access.ErrNotFound} {
		if want != nil && !errors.Is(got[i].Err, want) {
			t.Errorf("read %d: %v, want %v", i, got[i].Err, want)
		}
	}
	if n := w.size() - before; n != 1+4 { // the policy, and each read once
		t.Errorf("%d entries", n)
	}
}

// blunder is an Opener that answers calls for several records wrongly.
type blunder struct {
	access.Opener
	answer func([]access.OpenCall, []access.OpenOutcome) []access.OpenOutcome
}

func (o *blunder) OpenAll(ctx context.Context, calls []access.OpenCall) []access.OpenOutcome {
	return o.answer(calls, o.Opener.OpenAll(ctx, calls))
}

// Each item of a batch that was recorded and not served is followed by access.failed, and by nothing else.
func TestAnItemOfABatchThatIsNotServedIsRecordedAsFailed(t *testing.T) {
	for name, c := range map[string]struct {
		answer func([]access.OpenCall, []access.OpenOutcome) []access.OpenOutcome
		failed int
	}{
		"one is refused": {func(_ []access.OpenCall, out []access.OpenOutcome) []access.OpenOutcome {
			out[1] = access.OpenOutcome{Err: keys.ErrUnavailable}
			return out
		}, 1},
		"one lacks a field": {func(_ []access.OpenCall, out []access.OpenOutcome) []access.OpenOutcome {
			out[2].Fields = out[2].Fields[:1]
			return out
		}, 1},
		"one too few": {func(_ []access.OpenCall, out []access.OpenOutcome) []access.OpenOutcome {
			return out[:len(out)-1]
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.config.Opener = &blunder{w.config.Opener, c.answer}
			b, err := access.New(t.Context(), w.config)
			if err != nil {
				t.Fatal(err)
			}
			q := access.BatchRequest{Request: w.as("shop"), Purpose: "order-fulfilment"}
			for i := range 3 {
				id := w.mustCreate(fmt.Sprintf(`{"email":"person%d@example.org","name":{"givenName":"Some"}}`, i))
				q.Reads = append(q.Reads, access.BatchItem{Subject: id, Collection: "profile", Fields: []string{"email", "name"}})
			}
			before := w.size()
			got, err := b.ReadBatch(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			failed := 0
			for _, r := range got {
				if r.Err != nil {
					failed++
				}
			}
			of := make(map[int64]bool)
			for _, e := range w.entries(before) {
				if e.Kind == verify.KindAccessFailed {
					of[*e.Of] = true
				}
			}
			for _, r := range got {
				if r.Read != nil && of[r.Read.Record] {
					t.Error("a read that was served is recorded as failed")
				}
			}
			if failed != c.failed || len(of) != c.failed || w.size() != before+int64(3+c.failed) {
				t.Errorf("%d failed, %d recorded as failed, %d entries, want %d", failed, len(of), w.size()-before, c.failed)
			}
		})
	}
}

// damageRecord changes the stored record of a person, which its head then no longer names.
func (w *world) damageRecord(id uuid.UUID) {
	w.t.Helper()
	changed := false
	err := w.store.Store.Update(w.t.Context(), func(tx kv.Writer) error {
		changed = false
		pairs, err := tx.Scan([]byte("r"), nil, 10_000)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if bytes.Contains(p.Key, id[:]) && strings.Contains(string(p.Key), "profile") {
				value := bytes.Clone(p.Value)
				value[len(value)-1] ^= 1
				tx.Set(p.Key, value)
				changed = true
			}
		}
		return nil
	})
	if err != nil || !changed {
		w.t.Fatalf("%v, changed %v", err, changed)
	}
}
