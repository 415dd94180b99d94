package access_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault/schema"
)

func TestRacingCreatesWithOneEmailGiveOneSubject(t *testing.T) {
	w := newWorld(t)
	const racers = 200
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[uuid.UUID]bool{}
	for i := range racers {
		wg.Go(func() {
			got, err := w.CreateSubject(t.Context(), access.CreateRequest{
				Request: w.as("shop"),
				Records: map[string][]byte{"profile": fmt.Appendf(nil, `{"email":"racer@example.org","displayName":"racer %d"}`, i)},
			})
			mu.Lock()
			defer mu.Unlock()
			var taken *access.NotUniqueError
			switch {
			case err == nil:
				won[got.Subject] = true
			case !errors.As(err, &taken) || taken.Field != "email":
				t.Errorf("racer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d subjects were created", len(won))
	}
}

func TestAnInvalidRecordIsRefusedByPointerAndRuleAndChangesNothing(t *testing.T) {
	w := newWorld(t)
	before := w.size()
	for _, body := range []string{
		`{"email":7}`, `{"email":"no address"}`, `{"unknown":"x"}`, `[]`, `{"email":"a@example.org","email":"b@example.org"}`, `{`,
	} {
		_, err := w.CreateSubject(t.Context(), access.CreateRequest{Request: w.as("shop"), Records: map[string][]byte{"profile": []byte(body)}})
		var invalid *schema.ValidationError
		if !errors.As(err, &invalid) && !errors.Is(err, schema.ErrRecord) && !errors.Is(err, schema.ErrField) {
			t.Errorf("%s: %v", body, err)
		}
	}
	if w.size() != before {
		t.Error("a refused write is in the ledger")
	}
}

func TestWritesGoByVersion(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	put := func(q access.WriteRequest) (access.Written, error) {
		q.Request, q.Subject, q.Collection = w.as("shop"), subject, "profile"
		if q.Body == nil {
			q.Body = []byte(`{"email":"new@example.org"}`)
		}
		return w.PutRecord(t.Context(), q)
	}
	one, two := uint64(1), uint64(2)
	if _, err := put(access.WriteRequest{}); !errors.Is(err, access.ErrVersionRequired) {
		t.Errorf("without a version: %v", err)
	}
	if _, err := put(access.WriteRequest{IfMatch: &two}); !errors.Is(err, access.ErrVersion) {
		t.Errorf("wrong version: %v", err)
	}
	if _, err := put(access.WriteRequest{IfAbsent: true}); !errors.Is(err, access.ErrVersion) {
		t.Errorf("if absent: %v", err)
	}
	got, err := put(access.WriteRequest{IfMatch: &one})
	if err != nil || got.Version != 2 || got.Created {
		t.Fatalf("%v, %+v", err, got)
	}
	read, err := w.read("shop", "account", subject)
	if err != nil || len(read.Fields) != 1 || string(read.Fields["email"]) != `"new@example.org"` || read.Version != 2 {
		t.Errorf("%v, version %d, %d fields", err, read.Version, len(read.Fields))
	}
	// The old value of the unique field is free again, the new one is taken.
	w.mustCreate(`{"email":"someone@example.org"}`)
	var taken *access.NotUniqueError
	_, err = w.CreateSubject(t.Context(), access.CreateRequest{Request: w.as("shop"), Records: map[string][]byte{"profile": []byte(`{"email":"NEW@example.org"}`)}})
	if !errors.As(err, &taken) {
		t.Errorf("a taken value: %v", err)
	}
}

func TestAPatchKeepsWhatItDoesNotName(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	one := uint64(1)
	got, err := w.PatchRecord(t.Context(), access.WriteRequest{
		Request: w.as("shop"), Subject: subject, Collection: "profile", IfMatch: &one,
		Body: []byte(`{"displayName":"Another","phone":null}`),
	})
	if err != nil || got.Version != 2 {
		t.Fatal(err)
	}
	read, err := w.read("shop", "account", subject)
	if err != nil {
		t.Fatal(err)
	}
	if string(read.Fields["email"]) != `"someone@example.org"` || string(read.Fields["displayName"]) != `"Another"` || read.Fields["phone"] != nil {
		t.Errorf("fields: %d", len(read.Fields))
	}
	found, err := w.Lookup(t.Context(), access.LookupRequest{
		Request: w.as("shop"), Purpose: "order-fulfilment", Collection: "profile", Field: "email", Value: "someone@example.org",
	})
	if err != nil || len(found.Subjects) != 1 {
		t.Errorf("the index of a kept field is lost: %v", err)
	}
}

func TestADeletedRecordIsGoneAndItsVersionsAreNotUsedAgain(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	one := uint64(1)
	if _, err := w.DeleteRecord(t.Context(), access.WriteRequest{Request: w.as("shop"), Subject: subject, Collection: "profile", IfMatch: &one}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read("shop", "account", subject); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("read: %v", err)
	}
	got, err := w.PutRecord(t.Context(), access.WriteRequest{Request: w.as("shop"), Subject: subject, Collection: "profile", Body: []byte(someone)})
	if err != nil || !got.Created || got.Version != 3 {
		t.Errorf("%v, %+v", err, got)
	}
	w.mustCreate(`{"email":"other@example.org"}`)
}

func TestARepeatedCreateGivesTheFirstOutcome(t *testing.T) {
	w := newWorld(t)
	q := access.CreateRequest{
		Request: w.as("shop"), Records: map[string][]byte{"profile": []byte(someone)},
		Idempotency: access.Idempotency{Key: "key-1", Route: "POST /v1/subjects", Fingerprint: [32]byte{1}},
	}
	var wg sync.WaitGroup
	results := make([]access.Written, 20)
	for i := range results {
		wg.Go(func() {
			var err error
			if results[i], err = w.CreateSubject(t.Context(), q); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, r := range results {
		if r != results[0] {
			t.Errorf("%+v and %+v", r, results[0])
		}
	}
	q.Fingerprint = [32]byte{2}
	if _, err := w.CreateSubject(t.Context(), q); !errors.Is(err, access.ErrIdempotencyMismatch) {
		t.Errorf("another body: %v", err)
	}
	w.clock.Store(25 * 3600)
	if _, err := w.CreateSubject(t.Context(), q); !errors.Is(err, access.ErrNotUnique) {
		t.Errorf("after a day the key is free, but the e-mail is not: %v", err)
	}
	if n, err := w.Sweep(t.Context()); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
}

func TestWritesNeedTheRole(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	one := uint64(1)
	for _, caller := range []string{"courier", "auditor", "security"} {
		before := w.size()
		if _, err := w.PutRecord(t.Context(), access.WriteRequest{Request: w.as(caller), Subject: subject, Collection: "profile", IfMatch: &one, Body: []byte(someone)}); !errors.Is(err, access.ErrDenied) {
			t.Errorf("%s: %v", caller, err)
		}
		if e := w.entries(before); len(e) != 1 || e[0].Decision != verify.Deny {
			t.Errorf("%s: the denial is not recorded", caller)
		}
	}
}

func TestAPublishedPolicyDecidesFromThenOn(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	v, raw, err := w.Policy(t.Context(), w.as("privacy"))
	if err != nil || v.Version != 1 {
		t.Fatal(err, v)
	}
	same, err := w.PublishPolicy(t.Context(), w.as("privacy"), raw)
	if err != nil || same.Version != 1 {
		t.Errorf("the same bytes: %v, %+v", err, same)
	}
	b, err := policy.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	narrower := withoutField(t, raw, b, "order-fulfilment", "email")
	if _, err := w.PublishPolicy(t.Context(), w.as("shop"), narrower); !errors.Is(err, access.ErrDenied) {
		t.Errorf("a service publishes: %v", err)
	}
	if _, err := w.PublishPolicy(t.Context(), w.as("privacy"), []byte(`{}`)); !errors.Is(err, policy.ErrBundle) {
		t.Errorf("an invalid bundle: %v", err)
	}
	if _, err := w.read("shop", "order-fulfilment", subject, "email"); err != nil {
		t.Fatal(err)
	}
	v, err = w.PublishPolicy(t.Context(), w.as("privacy"), narrower)
	if err != nil || v.Version != 2 {
		t.Fatal(err, v)
	}
	if _, err := w.read("shop", "order-fulfilment", subject, "email"); !errors.Is(err, access.ErrDenied) {
		t.Errorf("under the new policy: %v", err)
	}
	versions, err := w.PolicyVersions(t.Context(), w.as("auditor"))
	if err != nil || len(versions) != 2 {
		t.Errorf("%v, %d versions", err, len(versions))
	}
	// A broker that starts later decides by the newest policy.
	again, err := access.New(t.Context(), w.config)
	if err != nil {
		t.Fatal(err)
	}
	if v, _, err := again.Policy(t.Context(), w.as("auditor")); err != nil || v.Version != 2 {
		t.Errorf("%v, %+v", err, v)
	}
}
