package policy_test

import (
	"slices"
	"testing"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
)

// now is the time of all requests unless a case says otherwise.
var now = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

const policyEntry = 7

// read is a request to reveal fields of the profile of a person who exists.
func read(caller, purpose string, fields ...string) policy.Request {
	return policy.Request{
		Action: policy.ActionRead, Caller: caller, Authn: "token", Collection: "profile", Fields: fields,
		Purpose: purpose, Mode: verify.ModeReveal, Subject: policy.Subject{Exists: true},
		PolicyVersion: 3, PolicyEntry: policyEntry, Now: now,
	}
}

// with applies changes to a request.
func with(r policy.Request, changes ...func(*policy.Request)) policy.Request {
	r.Fields, r.Consents = slices.Clone(r.Fields), slices.Clone(r.Consents)
	for _, f := range changes {
		f(&r)
	}
	return r
}

// aConsent is a live consent to the request's purpose for its caller, covering e-mail and name.
func aConsent(r policy.Request) policy.Consent {
	return policy.Consent{
		ID: "c-1", Purpose: r.Purpose, Policy: 3, State: policy.ConsentGiven,
		Fields: []string{"profile.email", "profile.name"}, Recipients: []string{r.Caller},
		NotAfter: now.Add(time.Hour), SeparateDocument: true, Entry: 20,
	}
}

// consented adds aConsent, changed, to a request.
func consented(r policy.Request, changes ...func(*policy.Consent)) policy.Request {
	c := aConsent(r)
	for _, f := range changes {
		f(&c)
	}
	return with(r, func(r *policy.Request) { r.Consents = append(r.Consents, c) })
}

// entryOf records an allowed request as the broker does.
func entryOf(t testing.TB, b *policy.Bundle, r policy.Request) verify.Entry {
	t.Helper()
	d := b.Decide(r)
	if !d.Allow {
		t.Fatalf("denied: %s", d.Reason)
	}
	c, _ := b.Caller(r.Caller)
	return verify.Entry{
		Kind: verify.KindAccess, Time: verify.FormatTime(r.Now), Decision: verify.Allow,
		Caller: &verify.Caller{ID: c.ID, Kind: c.Kind, Role: c.Role, Authn: r.Authn}, Recipient: d.Recipient,
		Collection: r.Collection, Fields: r.Fields, Mode: r.Mode, Purpose: r.Purpose, Ground: d.Ground,
		Evidence: d.Evidence, Policy: r.PolicyVersion, Rules: d.Rules,
	}
}
