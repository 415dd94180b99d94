package policy_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
)

// A decision that is remembered is the one that a bundle which was never asked before makes.
func TestARememberedDecisionIsTheDecision(t *testing.T) {
	asked := mustDefault(t)
	rapid.Check(t, func(t *rapid.T) {
		r := policy.Request{
			Action:     rapid.SampledFrom([]string{policy.ActionRead, policy.ActionVerify, policy.ActionLookup}).Draw(t, "action"),
			Caller:     rapid.SampledFrom([]string{"shop", "courier", "auditor", "nobody"}).Draw(t, "caller"),
			Authn:      "token",
			Collection: rapid.SampledFrom([]string{"profile", "payment", "nothing"}).Draw(t, "collection"),
			Fields:     rapid.SliceOfN(rapid.SampledFrom([]string{"email", "name", "phone", "address", "birthdate", "x"}), 0, 3).Draw(t, "fields"),
			Purpose:    rapid.SampledFrom([]string{"account", "order-fulfilment", "partner-delivery", "newsletter", "x"}).Draw(t, "purpose"),
			Mode:       rapid.SampledFrom([]string{"", verify.ModeReveal, verify.ModeMask, verify.ModeVerify, verify.ModeLookup}).Draw(t, "mode"),
			Subject: policy.Subject{
				Exists: rapid.Bool().Draw(t, "exists"), Restricted: rapid.Bool().Draw(t, "restricted"), Erased: rapid.Bool().Draw(t, "erased"),
			},
			Now: now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond),
		}
		first, second := asked.Decide(r), asked.Decide(r)
		if diff := cmp.Diff(first, second); diff != "" {
			t.Fatalf("asked again: %s", diff)
		}
		if first.Evidence != nil {
			first.Evidence.ID = "changed by its owner"
			if asked.Decide(r).Evidence.ID == first.Evidence.ID {
				t.Fatal("owners of decisions share them")
			}
		}
	})
}

// An agreement ends at its second, however often it was relied on just before.
func TestARememberedDecisionEndsWithItsAgreement(t *testing.T) {
	end := now.Truncate(time.Second).Add(time.Hour)
	b := mustChange(t, func(d *policy.Document) { d.Agreements[0].EffectiveTo = end.Format(time.RFC3339) })
	ask := func(at time.Time) bool {
		return b.Decide(policy.Request{
			Action: policy.ActionRead, Caller: "courier", Authn: "token", Collection: "profile", Fields: []string{"phone"},
			Purpose: "partner-delivery", Mode: verify.ModeReveal, Subject: policy.Subject{Exists: true}, Now: at,
		}).Allow
	}
	for _, early := range []time.Duration{time.Hour, time.Second, time.Millisecond, time.Nanosecond} {
		if !ask(end.Add(-early)) {
			t.Errorf("denied %v before the end", early)
		}
	}
	for _, late := range []time.Duration{0, time.Nanosecond, time.Second} {
		if ask(end.Add(late)) {
			t.Errorf("allowed %v after the end", late)
		}
	}
}

func TestAnAllowSaysWhenItsEvidenceEnds(t *testing.T) {
	end := now.Truncate(time.Second).Add(time.Hour)
	b := mustChange(t, func(d *policy.Document) { d.Agreements[0].EffectiveTo = end.Format(time.RFC3339) })
	terms, _ := b.ConsentTerms("newsletter")
	r := policy.Request{
		Action: policy.ActionRead, Authn: "token", Collection: "profile", Fields: []string{"name"},
		Mode: verify.ModeReveal, Subject: policy.Subject{Exists: true}, Now: now,
		Consents: []policy.Consent{{
			ID: "c", Purpose: "newsletter", Policy: 1, State: policy.ConsentGiven, Fields: terms.Fields, Recipients: terms.Recipients,
			NotAfter: end, SeparateDocument: true,
		}},
	}
	for _, tt := range []struct {
		caller, purpose string
		until           time.Time
	}{{"courier", "partner-delivery", end}, {"shop", "newsletter", end}, {"shop", "account", time.Time{}}, {"auditor", "account", time.Time{}}} {
		r.Caller, r.Purpose = tt.caller, tt.purpose
		if d := b.Decide(r); !d.Until.Equal(tt.until) {
			t.Errorf("%s, %s: until %v, allow %v", tt.caller, tt.purpose, d.Until, d.Allow)
		}
	}
}
