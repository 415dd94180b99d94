package access_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
)

func TestAReadIsRecordedBeforeTheSidecarOpens(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	before := w.size()
	opened := 0
	w.sidecar.Ring.Before(func(op string) error {
		if op != "Open" {
			return nil
		}
		opened++
		entries := w.entries(before)
		if len(entries) != 1 || entries[0].Kind != verify.KindAccess || entries[0].Decision != verify.Allow {
			t.Errorf("the sidecar opens and the ledger holds %d new entries", len(entries))
		}
		return nil
	})
	got, err := w.read("shop", "order-fulfilment", subject, "email")
	if err != nil {
		t.Fatal(err)
	}
	if opened != 1 || string(got.Fields["email"]) != `"someone@example.org"` || got.Record != before {
		t.Errorf("opened %d times, record %d", opened, got.Record)
	}
	e := w.entries(before)[0]
	if e.SubjectRef == "" || e.Purpose != "order-fulfilment" || e.Ground != verify.GroundService || e.Sidecar == "" ||
		!reflect.DeepEqual(e.Fields, []string{"email"}) || e.Evidence == nil || e.Policy != 1 {
		t.Errorf("entry lacks members: %+v", e)
	}
}

func TestNoRecordNoPlaintext(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	w.sidecar.Ring.Before(func(op string) error {
		if op == "Open" {
			t.Error("the sidecar was asked to open without a record")
		}
		return nil
	})
	w.store.setFail(errors.New("injected: disk gone"))
	if _, err := w.read("shop", "order-fulfilment", subject, "email"); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
}

func TestAReadThatIsNotServedIsFollowedByAccessFailed(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	before := w.size()
	w.sidecar.Ring.FailOnce("Open", keys.ErrSealed)
	if _, err := w.read("shop", "order-fulfilment", subject, "email"); !errors.Is(err, keys.ErrSealed) {
		t.Fatalf("error is %v", err)
	}
	entries := w.entries(before)
	if len(entries) != 2 || entries[1].Kind != verify.KindAccessFailed || entries[1].Of == nil || *entries[1].Of != before {
		t.Fatalf("entries: %+v", entries)
	}
	if _, err := w.read("shop", "order-fulfilment", subject, "email"); err != nil {
		t.Errorf("the next read: %v", err)
	}
}

func TestDeniedReadsAreRecordedAndSayWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	for _, tt := range []struct {
		name, caller, purpose string
		fields                []string
		reason                string
	}{
		{"unknown purpose", "shop", "curiosity", []string{"email"}, "unknown-purpose"},
		{"purpose of another caller", "shop", "partner-delivery", []string{"name"}, "purpose-not-yours"},
		{"field outside the purpose", "shop", "newsletter", []string{"phone"}, "field-not-in-purpose"},
		{"field outside the agreement", "courier", "partner-delivery", []string{"email"}, "field-not-in-purpose"},
		{"no consent", "shop", "newsletter", []string{"email"}, "consent-missing"},
		{"wrong role", "auditor", "order-fulfilment", []string{"email"}, "role-not-allowed"},
		{"security sees no data", "security", "order-fulfilment", []string{"email"}, "role-not-allowed"},
		{"ground law is not built", "privacy", "subject-access", []string{"email"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := w.size()
			_, err := w.read(tt.caller, tt.purpose, subject, tt.fields...)
			var denied *access.DeniedError
			if !errors.As(err, &denied) || !errors.Is(err, access.ErrDenied) {
				t.Fatalf("error is %v", err)
			}
			if tt.reason != "" && denied.Reason != tt.reason {
				t.Errorf("reason is %s", denied.Reason)
			}
			if len(denied.Missing) == 0 {
				t.Error("nothing is said to be missing")
			}
			entries := w.entries(before)
			if len(entries) != 1 || entries[0].Decision != verify.Deny || entries[0].Reason != denied.Reason || denied.Record != before {
				t.Errorf("entries: %+v", entries)
			}
			if entries[0].SubjectRef == "" {
				t.Error("the entry does not say about whom")
			}
		})
	}
}

func TestUnknownAndForbiddenSubjectsLookAlike(t *testing.T) {
	w := newWorld(t)
	known, unknown := w.mustCreate(someone), uuid.New()
	for _, tt := range []struct{ caller, purpose string }{
		{"auditor", "order-fulfilment"}, // no rights at all
		{"shop", "newsletter"},          // rights that rest on a consent
		{"shop", "partner-delivery"},    // somebody else's purpose
	} {
		_, a := w.read(tt.caller, tt.purpose, known, "email")
		_, b := w.read(tt.caller, tt.purpose, unknown, "email")
		var da, db *access.DeniedError
		if !errors.As(a, &da) || !errors.As(b, &db) {
			t.Fatalf("%s %s: %v, %v", tt.caller, tt.purpose, a, b)
		}
		da.Record, db.Record = 0, 0
		if !reflect.DeepEqual(da, db) {
			t.Errorf("%s %s: %+v and %+v", tt.caller, tt.purpose, da, db)
		}
	}
	if _, err := w.read("shop", "order-fulfilment", unknown, "email"); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("to a caller with rights an unknown subject is %v", err)
	}
}

func TestConsentOpensAndItsWithdrawalCloses(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	c := w.mustConsent(subject, "newsletter")
	got, err := w.read("shop", "newsletter", subject, "email")
	if err != nil {
		t.Fatal(err)
	}
	e := w.entries(got.Record)[0]
	if e.Ground != verify.GroundConsent || e.Evidence.ID != c.ID.String() || e.Evidence.Entry != c.Entry {
		t.Errorf("evidence: %+v", e.Evidence)
	}
	withdrawn, err := w.WithdrawConsent(t.Context(), w.as("shop"), c.ID)
	if err != nil || withdrawn.State != "ConsentWithdrawn" {
		t.Fatalf("withdrawing: %v, %+v", err, withdrawn)
	}
	size := w.size()
	if again, err := w.WithdrawConsent(t.Context(), w.as("shop"), c.ID); err != nil || again.WithdrawnEntry != withdrawn.WithdrawnEntry || w.size() != size {
		t.Errorf("withdrawing again: %v", err)
	}
	var denied *access.DeniedError
	if _, err := w.read("shop", "newsletter", subject, "email"); !errors.As(err, &denied) || denied.Reason != "consent-withdrawn" {
		t.Errorf("after the withdrawal: %v", err)
	}
	if _, err := w.read("shop", "special-offers", subject, "email"); !errors.As(err, &denied) {
		t.Errorf("another purpose: %v", err)
	}
}

// No access record may follow the withdrawal that forbids it: the read is decided, and before its record is
// committed the consent is withdrawn.
func TestAWithdrawalBetweenDecisionAndRecordStopsTheRead(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	c := w.mustConsent(subject, "newsletter")
	withdrawn := false
	w.sidecar.Ring.Before(func(op string) error {
		// Details are sealed after the decision and before the record.
		if op == "Prepare" && !withdrawn {
			withdrawn = true
			if _, err := w.WithdrawConsent(context.Background(), w.as("shop"), c.ID); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	_, err := w.Read(t.Context(), access.ReadRequest{
		Request: w.as("shop"), Subject: subject, Collection: "profile", Fields: []string{"email"},
		Purpose: "newsletter", Reference: "ticket 1",
	})
	if !withdrawn || !errors.Is(err, access.ErrDenied) {
		t.Fatalf("withdrawn %v, error %v", withdrawn, err)
	}
	var gone bool
	for _, e := range w.entries(0) {
		gone = gone || e.Kind == verify.KindConsentWithdrawn
		if gone && e.Kind == verify.KindAccess && e.Decision == verify.Allow {
			t.Error("an allowed access follows the withdrawal")
		}
	}
}

func TestRestrictionStopsReadsUntilItIsLifted(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	if _, err := w.SetRestriction(t.Context(), w.as("privacy"), subject, true, "accuracy contested"); err != nil {
		t.Fatal(err)
	}
	var denied *access.DeniedError
	if _, err := w.read("shop", "order-fulfilment", subject, "email"); !errors.As(err, &denied) || denied.Reason != "subject-restricted" {
		t.Errorf("restricted: %v", err)
	}
	if _, err := w.SetRestriction(t.Context(), w.as("privacy"), subject, false, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read("shop", "order-fulfilment", subject, "email"); err != nil {
		t.Errorf("lifted: %v", err)
	}
}

func TestNoPersonalDataInTheLedger(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	w.mustConsent(subject, "newsletter")
	_, err := w.Read(t.Context(), access.ReadRequest{
		Request: w.as("shop"), Subject: subject, Collection: "profile", Fields: []string{"email", "canary-field"},
		Purpose: "order-fulfilment canary-purpose", Reference: "canary-reference", Justification: "canary-justification",
	})
	if !errors.Is(err, access.ErrDenied) {
		t.Fatal(err)
	}
	if _, err := w.Lookup(t.Context(), access.LookupRequest{
		Request: w.as("shop"), Purpose: "order-fulfilment", Collection: "profile", Field: "email", Value: "someone@example.org",
		Reference: "canary-reference",
	}); err != nil {
		t.Fatal(err)
	}
	for i := range w.size() {
		raw, err := w.ledger.Entry(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		for _, canary := range []string{subject.String(), "someone", "Some", "canary", "2125550123"} {
			if strings.Contains(string(raw), canary) {
				t.Errorf("entry %d holds %q", i, canary)
			}
		}
	}
}

func TestLookupFindsMissesAndRecordsBoth(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	lookup := func(field, value string) (access.LookupResult, error) {
		return w.Lookup(t.Context(), access.LookupRequest{
			Request: w.as("shop"), Purpose: "order-fulfilment", Collection: "profile", Field: field, Value: value,
		})
	}
	for _, value := range []string{"someone@example.org", " SomeOne@Example.org"} {
		got, err := lookup("email", value)
		if err != nil || len(got.Subjects) != 1 || got.Subjects[0] != subject || len(got.Records) != 1 {
			t.Errorf("lookup: %v, %+v", err, got)
		}
	}
	before := w.size()
	got, err := lookup("email", "nobody@example.org")
	if err != nil || len(got.Subjects) != 0 || w.size() != before+1 {
		t.Errorf("miss: %v, %+v", err, got)
	}
	if _, err := lookup("displayName", "Some One"); !errors.Is(err, access.ErrDenied) {
		t.Errorf("a field that is not indexed: %v", err)
	}
}

func TestVerifyTellsOnlyWhetherTheValueIsThere(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	for value, match := range map[string]bool{`"someone@example.org"`: true, `"other@example.org"`: false, `"some\u006fne@example.org"`: true} {
		got, err := w.Verify(t.Context(), access.VerifyRequest{
			Request: w.as("shop"), Purpose: "account", Subject: subject, Collection: "profile", Field: "email", Value: []byte(value),
		})
		if err != nil || got.Match != match {
			t.Errorf("match %v, want %v, error %v", got.Match, match, err)
		}
	}
}

func TestMaskHidesTheValue(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	got, err := w.Read(t.Context(), access.ReadRequest{
		Request: w.as("shop"), Subject: subject, Collection: "profile", Purpose: "order-fulfilment", Mode: verify.ModeMask,
	})
	if err != nil {
		t.Fatal(err)
	}
	for field, value := range got.Fields {
		if strings.Contains(string(value), "someone@") || strings.Contains(string(value), "Some") {
			t.Errorf("%s is not masked", field)
		}
	}
	if len(got.Fields) == 0 {
		t.Error("no field was masked")
	}
}

func TestABatchKeepsEachItemApart(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	before := w.size()
	got, err := w.ReadBatch(t.Context(), access.BatchRequest{
		Request: w.as("shop"), Purpose: "order-fulfilment",
		Reads: []access.BatchItem{
			{Subject: subject, Collection: "profile", Fields: []string{"email"}},
			{Subject: uuid.New(), Collection: "profile", Fields: []string{"email"}},
			{Subject: subject, Collection: "profile", Fields: []string{"birthdate"}},
		},
	})
	if err != nil || len(got) != 3 {
		t.Fatal(err, got)
	}
	if got[0].Err != nil || !errors.Is(got[1].Err, access.ErrNotFound) || !errors.Is(got[2].Err, access.ErrDenied) {
		t.Errorf("results: %v, %v, %v", got[0].Err, got[1].Err, got[2].Err)
	}
	if w.size() != before+3 {
		t.Errorf("%d entries for 3 reads", w.size()-before)
	}
}

func TestACheckSaysWhatIsMissingAndIsNoAccess(t *testing.T) {
	w := newWorld(t)
	subject := w.mustCreate(someone)
	before := w.size()
	check := func(purpose string) access.CheckResult {
		got, err := w.Check(t.Context(), access.ReadRequest{
			Request: w.as("shop"), Subject: subject, Collection: "profile", Fields: []string{"email"}, Purpose: purpose,
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := check("order-fulfilment"); !got.Allow || got.Ground != verify.GroundService {
		t.Errorf("%+v", got)
	}
	if got := check("newsletter"); got.Allow || got.Reason != "consent-missing" || len(got.Missing) == 0 {
		t.Errorf("%+v", got)
	}
	if w.size() != before {
		t.Error("a dry run is in the ledger")
	}
}
