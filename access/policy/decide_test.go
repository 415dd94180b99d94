package policy_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
)

// decision is a case: a request and the answer to it.
type decision struct {
	name string
	req  policy.Request
	want policy.Decision
}

// allow expects a read to be allowed by one rule on evidence, for the operator itself.
func allow(name string, req policy.Request, ground, rule string, e verify.Evidence) decision {
	return decision{name, req, policy.Decision{Allow: true, Rules: []string{rule}, Ground: ground, Evidence: &e, Recipient: operator()}}
}

// permit expects an action without purpose to be allowed by one rule.
func permit(name string, req policy.Request, rule string) decision {
	return decision{name, req, policy.Decision{Allow: true, Rules: []string{rule}}}
}

// deny expects a reason, and what is missing as pairs of kind and name.
func deny(name string, req policy.Request, reason string, missing ...string) decision {
	d := policy.Decision{Reason: reason}
	for i := 0; i < len(missing); i += 2 {
		d.Missing = append(d.Missing, policy.Missing{Kind: missing[i], Name: missing[i+1]})
	}
	return decision{name, req, d}
}

// on adds the ground, which a denial names once purpose and caller belong together.
func (d decision) on(ground string) decision { d.want.Ground = ground; return d }

// to adds the recipient, which a denial names once only the subject is left to look at.
func (d decision) to(r *verify.Recipient) decision { d.want.Recipient = r; return d }

// by adds the rules.
func (d decision) by(rules ...string) decision { d.want.Rules = rules; return d }

func operator() *verify.Recipient {
	return &verify.Recipient{ID: "prototypster", Role: policy.RecipientController, Jurisdiction: "RU"}
}

func courier() *verify.Recipient {
	return &verify.Recipient{ID: "courier-company", Role: policy.RecipientProcessor, Jurisdiction: "RU"}
}

// Changes to requests and consents.
func at(t time.Time) func(*policy.Request)      { return func(r *policy.Request) { r.Now = t } }
func mode(m string) func(*policy.Request)       { return func(r *policy.Request) { r.Mode = m } }
func action(a string) func(*policy.Request)     { return func(r *policy.Request) { r.Action = a } }
func collection(c string) func(*policy.Request) { return func(r *policy.Request) { r.Collection = c } }
func subject(s policy.Subject) func(*policy.Request) {
	return func(r *policy.Request) { r.Subject = s }
}
func state(s string) func(*policy.Consent) { return func(c *policy.Consent) { c.State = s } }

func act(caller, action string) policy.Request {
	return policy.Request{Action: action, Caller: caller, Authn: "token", Collection: "profile", Subject: policy.Subject{Exists: true}, Now: now}
}

var (
	restricted = policy.Subject{Exists: true, Restricted: true}
	erased     = policy.Subject{Exists: true, Erased: true}
)

func TestDecide(t *testing.T) {
	b := mustDefault(t)
	account := read("shop", "account", "email", "name")
	delivery := read("courier", "partner-delivery", "name", "phone", "address")
	news := read("shop", "newsletter", "email", "name")
	service, consent := verify.GroundService, verify.GroundConsent
	purposeEvidence := func(id string) verify.Evidence {
		return verify.Evidence{Type: verify.EvidencePurpose, ID: id, Entry: policyEntry}
	}
	consentEvidence := verify.Evidence{Type: verify.EvidenceConsent, ID: "c-1", Entry: 20}
	toCourier := func(d decision) decision { d.want.Recipient = courier(); return d }
	noConsent := func(name string, r policy.Request, reason string, missing ...string) decision {
		return deny(name, r, reason, missing...).on(consent).to(operator())
	}

	for _, tc := range []decision{
		// ground service
		allow("own purpose", account, service, "ground-2-service", purposeEvidence("account")),
		allow("mask", with(account, mode(verify.ModeMask)), service, "ground-2-service", purposeEvidence("account")),
		allow("verify", with(read("shop", "account", "phone"), action(policy.ActionVerify), mode("")), service, "ground-2-service", purposeEvidence("account")),
		allow("lookup", with(read("shop", "support", "email"), action(policy.ActionLookup), mode(verify.ModeLookup), subject(policy.Subject{})), service, "ground-2-service", purposeEvidence("support")),
		allow("a field twice", read("shop", "account", "email", "email"), service, "ground-2-service", purposeEvidence("account")),
		allow("payment", with(read("shop", "order-fulfilment", "cardNumber"), collection("payment")), service, "ground-2-service", purposeEvidence("order-fulfilment")),
		toCourier(allow("partner by agreement", delivery, service, "ground-2-service-agreement",
			verify.Evidence{Type: verify.EvidenceAgreement, ID: "courier-delivery", Entry: policyEntry})),
		deny("restricted", with(account, subject(restricted)), policy.ReasonSubjectRestricted).on(service).to(operator()).by("restricted"),
		deny("erased", with(account, subject(erased)), policy.ReasonSubjectErased).on(service).to(operator()).by("erased"),
		deny("erased, partner", with(delivery, subject(erased)), policy.ReasonSubjectErased).on(service).to(courier()).by("erased"),

		// what depends on caller, purpose and fields only
		deny("unknown caller", read("nobody", "account", "email"), policy.ReasonRoleNotAllowed, "role", "read"),
		deny("security", read("security", "account", "email"), policy.ReasonRoleNotAllowed, "role", "read"),
		deny("auditor", with(read("auditor", "account", "email"), action(policy.ActionLookup)), policy.ReasonRoleNotAllowed, "role", "lookup"),
		deny("unknown purpose", read("shop", "curiosity", "email"), policy.ReasonUnknownPurpose, "purpose", ""),
		deny("another's purpose", read("courier", "account", "email"), policy.ReasonPurposeNotYours, "purpose", "account"),
		deny("partner's purpose", read("shop", "partner-delivery", "name"), policy.ReasonPurposeNotYours, "purpose", "partner-delivery"),
		deny("aggregates only", read("shop", "statistics", "email"), policy.ReasonPurposeNotYours, "purpose", "statistics"),
		deny("rights request", read("privacy", "subject-access", "email"), policy.ReasonLawNotAvailable, "ground", "law").on(verify.GroundLaw),
		deny("order", read("legal", "authority-request", "email"), policy.ReasonLawNotAvailable, "ground", "law").on(verify.GroundLaw),
		deny("mode not in purpose", with(account, action(policy.ActionLookup), mode("")), policy.ReasonModeNotAllowed, "mode", "lookup").on(service),
		deny("mode not of action", with(account, action(policy.ActionVerify)), policy.ReasonModeNotAllowed, "mode", "verify").on(service),
		deny("mode not known", with(account, mode("glance")), policy.ReasonModeNotAllowed, "mode", "").on(service),
		deny("no mode", with(account, mode("")), policy.ReasonModeNotAllowed, "mode", "").on(service),
		deny("unknown collection", with(account, collection("diary")), policy.ReasonCollectionUnknown).on(service),
		deny("no fields", read("shop", "account"), policy.ReasonEmptyFields, "field", "").on(service),
		deny("unknown field", read("shop", "account", "email", "secret"), policy.ReasonFieldUnknown, "field", "fields[1]").on(service),
		deny("field not in purpose", read("shop", "order-fulfilment", "email", "birthdate"), policy.ReasonFieldNotInPurpose, "field", "birthdate").on(service),
		deny("collection not in purpose", with(read("shop", "account", "number"), collection("passport")), policy.ReasonFieldNotInPurpose, "field", "number").on(service),
		deny("agreement over", with(delivery, at(time.Date(2035, 1, 1, 0, 0, 0, 0, time.UTC))), policy.ReasonAgreementExpired, "agreement", "courier-delivery").on(service),
		deny("agreement not begun", with(delivery, at(time.Date(2024, 12, 31, 23, 59, 59, 0, time.UTC))), policy.ReasonAgreementNotYet, "agreement", "courier-delivery").on(service),

		// ground consent
		allow("consent", consented(news), consent, "ground-1-consent", consentEvidence),
		allow("consent renewed", consented(news, state(policy.RenewedConsentGiven)), consent, "ground-1-consent", consentEvidence),
		allow("consent without end", consented(news, func(c *policy.Consent) { c.NotAfter = time.Time{} }), consent, "ground-1-consent", consentEvidence),
		allow("one field of two", consented(read("shop", "newsletter", "email")), consent, "ground-1-consent", consentEvidence),
		allow("the newer of two", consented(consented(news, func(c *policy.Consent) { c.ID, c.Entry = "c-0", 10 })), consent, "ground-1-consent", consentEvidence),
		allow("given again after withdrawal", consented(consented(news, state("ConsentWithdrawn"), func(c *policy.Consent) { c.ID, c.Entry = "c-0", 10 })), consent, "ground-1-consent", consentEvidence),
		allow("withdrawn for another recipient", consented(consented(news), state("ConsentWithdrawn"), func(c *policy.Consent) { c.Recipients, c.Entry = []string{"courier"}, 30 }), consent, "ground-1-consent", consentEvidence),
		allow("renewal requested", consented(consented(news), state("ConsentRequested"), func(c *policy.Consent) { c.Entry = 30 }), consent, "ground-1-consent", consentEvidence),
		noConsent("no consent", news, policy.ReasonConsentMissing, "consent", "newsletter"),
		noConsent("no subject", with(consented(news), subject(policy.Subject{})), policy.ReasonConsentMissing, "consent", "newsletter"),
		noConsent("erased subject", with(consented(news), subject(erased)), policy.ReasonConsentMissing, "consent", "newsletter"),
		noConsent("restricted without consent", with(news, subject(restricted)), policy.ReasonConsentMissing, "consent", "newsletter"),
		noConsent("restricted with consent", with(consented(news), subject(restricted)), policy.ReasonSubjectRestricted).by("restricted"),
		noConsent("withdrawn", consented(news, state("ConsentWithdrawn")), policy.ReasonConsentWithdrawn, "consent", "newsletter"),
		noConsent("revoked", consented(news, state("ConsentRevoked")), policy.ReasonConsentWithdrawn, "consent", "newsletter"),
		noConsent("in a state unknown to us", consented(news, state("ConsentForgotten")), policy.ReasonConsentWithdrawn, "consent", "newsletter"),
		noConsent("one of two withdrawn", consented(consented(news), state("ConsentWithdrawn"), func(c *policy.Consent) { c.ID, c.Entry = "c-2", 30 }), policy.ReasonConsentWithdrawn, "consent", "newsletter"),
		noConsent("expired by state", consented(news, state("ConsentExpired")), policy.ReasonConsentExpired, "consent", "newsletter"),
		noConsent("expired by time", consented(news, func(c *policy.Consent) { c.NotAfter = now }), policy.ReasonConsentExpired, "consent", "newsletter"),
		noConsent("for another purpose", consented(news, func(c *policy.Consent) { c.Purpose = "special-offers" }), policy.ReasonPurposeNotConsented, "consent", "newsletter"),
		noConsent("for another recipient", consented(news, func(c *policy.Consent) { c.Recipients = []string{"courier"} }), policy.ReasonConsentMissing, "consent", "newsletter"),
		noConsent("for nobody", consented(news, func(c *policy.Consent) { c.Recipients = nil }), policy.ReasonConsentMissing, "consent", "newsletter"),
		noConsent("not a separate document", consented(news, func(c *policy.Consent) { c.SeparateDocument = false }), policy.ReasonConsentMissing, "consent", "newsletter"),
		noConsent("fields not covered", consented(news, func(c *policy.Consent) { c.Fields = c.Fields[:1] }), policy.ReasonFieldNotCovered, "field", "name"),
		noConsent("fields of another collection", consented(read("shop", "newsletter", "email"), func(c *policy.Consent) { c.Fields = []string{"passport.email", "email"} }), policy.ReasonFieldNotCovered, "field", "email"),

		// by role
		permit("shop writes", with(act("shop", policy.ActionWrite), func(r *policy.Request) { r.Fields = []string{"email"} }), "role-records"),
		permit("shop creates", with(act("shop", policy.ActionWrite), subject(policy.Subject{})), "role-records"),
		permit("shop deletes a record", act("shop", policy.ActionDelete), "role-records"),
		permit("privacy corrects while restricted", with(act("privacy", policy.ActionWrite), subject(restricted)), "role-records"),
		deny("shop writes while restricted", with(act("shop", policy.ActionWrite), subject(restricted)), policy.ReasonSubjectRestricted).by("restricted-write"),
		deny("shop writes to the erased", with(act("shop", policy.ActionWrite), subject(erased)), policy.ReasonSubjectErased).by("erased"),
		deny("write of an unknown field", with(act("shop", policy.ActionWrite), func(r *policy.Request) { r.Fields = []string{"email", "x"} }), policy.ReasonFieldUnknown, "field", "fields[1]"),
		deny("write to an unknown collection", with(act("shop", policy.ActionWrite), collection("diary")), policy.ReasonCollectionUnknown),
		deny("courier writes", act("courier", policy.ActionWrite), policy.ReasonRoleNotAllowed, "role", "write"),
		deny("courier writes to an unknown collection", with(act("courier", policy.ActionWrite), collection("diary")), policy.ReasonRoleNotAllowed, "role", "write"),
		deny("security writes", act("security", policy.ActionWrite), policy.ReasonForbiddenByRule).by("no-data-for-security-and-auditors"),
		permit("shop describes", act("shop", policy.ActionDescribe), "role-subjects"),
		permit("shop takes a consent", act("shop", policy.ActionConsentGive), "role-subjects"),
		permit("privacy erases", act("privacy", policy.ActionErase), "role-rights"),
		permit("privacy erases again", with(act("privacy", policy.ActionErase), subject(erased)), "role-rights"),
		permit("privacy restricts", act("privacy", policy.ActionRestrict), "role-rights"),
		deny("consent of the erased", with(act("shop", policy.ActionConsentGive), subject(erased)), policy.ReasonSubjectErased).by("erased-subject"),
		deny("shop erases", act("shop", policy.ActionErase), policy.ReasonRoleNotAllowed, "role", "erase"),
		permit("auditor reads records", act("auditor", policy.ActionAccessRecords), "role-audit"),
		permit("auditor reads the ledger", act("auditor", policy.ActionLedgerRead), "role-audit"),
		deny("shop reads records", act("shop", policy.ActionAccessRecords), policy.ReasonRoleNotAllowed, "role", "access-records"),
		permit("security rotates keys", act("security", policy.ActionKeysRotate), "role-keys"),
		deny("auditor rotates keys", act("auditor", policy.ActionKeysRotate), policy.ReasonRoleNotAllowed, "role", "keys-rotate"),
		permit("everyone reads the policy", act("courier", policy.ActionPolicyRead), "role-policy-read"),
		permit("legal publishes a policy", act("legal", policy.ActionPolicyPublish), "role-policy-publish"),
		deny("shop publishes a policy", act("shop", policy.ActionPolicyPublish), policy.ReasonRoleNotAllowed, "role", "policy-publish"),
		deny("no such action", act("shop", "dance"), policy.ReasonPolicyError),
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := b.Decide(tc.req)
			got.Until = time.Time{} // see TestAnAllowSaysWhenItsEvidenceEnds
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// changed parses the default bundle after a change to its document.
func changed(t testing.TB, change func(*policy.Document)) (*policy.Bundle, error) {
	t.Helper()
	var doc policy.Document
	if err := json.Unmarshal(mustLoad(t), &doc); err != nil {
		t.Fatal(err)
	}
	change(&doc)
	raw, err := json.Marshal(&doc)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Parse(raw)
}

func mustChange(t testing.TB, change func(*policy.Document)) *policy.Bundle {
	t.Helper()
	b, err := changed(t, change)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDecideAgreements: what the default bundle has no case for.
func TestDecideAgreements(t *testing.T) {
	delivery := read("courier", "partner-delivery", "name")
	reason := func(want string, r policy.Request, change func(*policy.Document)) {
		t.Helper()
		if got := mustChange(t, change).Decide(r); got.Allow != (want == "") || got.Reason != want {
			t.Errorf("%s, want %q", got.Reason, want)
		}
	}
	status := func(s string) func(*policy.Document) {
		return func(d *policy.Document) { d.Agreements[0].Status = s }
	}
	reason(policy.ReasonAgreementNotYet, delivery, status("draft"))
	reason(policy.ReasonAgreementExpired, delivery, status("suspended"))
	reason(policy.ReasonAgreementExpired, delivery, status("terminated"))
	reason(policy.ReasonAgreementMissing, delivery, func(d *policy.Document) { d.Agreements = nil })
	reason(policy.ReasonFieldNotCovered, read("courier", "partner-delivery", "name", "address"), func(d *policy.Document) {
		d.Agreements[0].Fields = map[string][]string{"profile": {"name", "phone"}}
	})
	reason("", delivery, func(d *policy.Document) { // one over, one in force
		a := d.Agreements[0]
		a.ID, a.EffectiveTo = "courier-before", "2026-01-01T00:00:00Z"
		d.Agreements = append([]policy.Agreement{a}, d.Agreements...)
	})

	thirdParty := func(d *policy.Document) {
		a := d.Agreements[0]
		a.ID, a.Kind, a.Instruction = "courier-offers", policy.AgreementThirdParty, nil
		a.Purposes, a.Fields = []string{"special-offers"}, map[string][]string{"profile": {"email"}}
		d.Agreements = append(d.Agreements, a)
	}
	offers := read("courier", "special-offers", "email")
	reason(policy.ReasonConsentMissing, offers, thirdParty)
	reason("", consented(offers), thirdParty)
	if d := mustChange(t, thirdParty).Decide(consented(offers)); d.Recipient.Role != policy.RecipientThirdParty || d.Evidence.Type != verify.EvidenceConsent {
		t.Errorf("%+v %+v", d.Recipient, d.Evidence)
	}
	terms, ok := mustChange(t, thirdParty).ConsentTerms("special-offers")
	if !ok || !slices.Equal(terms.Recipients, []string{"courier", "shop"}) || !slices.Equal(terms.Fields, []string{"profile.email", "profile.name"}) {
		t.Errorf("terms: %+v", terms)
	}

	ownTerms := func(d *policy.Document) {
		a := d.Agreements[0]
		a.ID, a.Kind, a.CounterpartyID, a.Instruction = "shop-terms", policy.AgreementOwnService, "shop", nil
		a.Purposes = []string{"partner-delivery"}
		d.Agreements = append(d.Agreements, a)
	}
	d := mustChange(t, ownTerms).Decide(read("shop", "partner-delivery", "name"))
	if !d.Allow || d.Evidence.ID != "shop-terms" || d.Recipient.Role != policy.RecipientController {
		t.Errorf("own terms: %+v", d)
	}
	reason(policy.ReasonConsentExpired, consented(read("shop", "newsletter", "email")), func(d *policy.Document) {
		for i := range d.Purposes {
			if d.Purposes[i].ID == "newsletter" {
				d.Purposes[i].ConsentSince = 4
			}
		}
	})
}

// TestNoOracle: a caller without rights cannot tell subjects apart.
func TestNoOracle(t *testing.T) {
	b := mustDefault(t)
	names := []string{"email", "name", "phone", "birthdate", "secret"}
	subjects := []policy.Subject{{}, {Exists: true}, restricted, erased, {Exists: true, Restricted: true, Erased: true}}
	rapid.Check(t, func(rt *rapid.T) {
		r := policy.Request{
			Action:     rapid.SampledFrom(append(actions(), "dance")).Draw(rt, "action"),
			Caller:     rapid.SampledFrom([]string{"shop", "courier", "privacy", "legal", "security", "auditor", "nobody"}).Draw(rt, "caller"),
			Purpose:    rapid.SampledFrom([]string{"account", "order-fulfilment", "partner-delivery", "newsletter", "subject-access", "statistics", "x"}).Draw(rt, "purpose"),
			Collection: rapid.SampledFrom([]string{"profile", "passport", "payment", "diary"}).Draw(rt, "collection"),
			Fields:     rapid.SliceOfN(rapid.SampledFrom(names), 0, 3).Draw(rt, "fields"),
			Mode:       rapid.SampledFrom([]string{"", verify.ModeReveal, verify.ModeMask, verify.ModeVerify, verify.ModeLookup}).Draw(rt, "mode"),
			Now:        now, PolicyEntry: policyEntry,
		}
		var first policy.Decision
		for i, s := range subjects {
			r.Subject, r.Consents = s, nil
			d := b.Decide(r)
			if d.Allow && (d.Reason != "" || len(d.Rules) == 0 || len(d.Missing) > 0) {
				rt.Fatalf("an allow without rules or with a reason: %+v", d)
			}
			if !d.Allow && (d.Reason == "" || d.Evidence != nil) {
				rt.Fatalf("a denial without a reason or with evidence: %+v", d)
			}
			if i == 0 {
				first = d
			} else if !first.Allow {
				if diff := cmp.Diff(first, d); diff != "" {
					rt.Fatalf("denied for the unknown, and otherwise for %+v (-unknown +this):\n%s", s, diff)
				}
			}
		}
	})
}

func actions() []string {
	return []string{policy.ActionRead, policy.ActionVerify, policy.ActionLookup, policy.ActionWrite, policy.ActionDelete,
		policy.ActionDescribe, policy.ActionErase, policy.ActionConsentGive, policy.ActionConsentWithdraw,
		policy.ActionConsentList, policy.ActionRestrict, policy.ActionAccessRecords, policy.ActionLedgerRead,
		policy.ActionPolicyRead, policy.ActionPolicyPublish, policy.ActionKeysRead, policy.ActionKeysRotate}
}

// TestConsentProperties: an allow on ground consent always names a consent that is live, for this purpose and
// recipient, and covers every field; and with any ending newer than it there is none.
func TestConsentProperties(t *testing.T) {
	b := mustDefault(t)
	states := []string{policy.ConsentGiven, policy.RenewedConsentGiven, "ConsentWithdrawn", "ConsentExpired", "ConsentRequested"}
	rapid.Check(t, func(rt *rapid.T) {
		r := read("shop", "newsletter", rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"email", "name"}), 1, 2, rapid.ID).Draw(rt, "fields")...)
		for i := range rapid.IntRange(0, 4).Draw(rt, "consents") {
			r.Consents = append(r.Consents, policy.Consent{
				ID: string(rune('a' + i)), Purpose: rapid.SampledFrom([]string{"newsletter", "special-offers"}).Draw(rt, "purpose"),
				State:      rapid.SampledFrom(states).Draw(rt, "state"),
				Fields:     rapid.SliceOfDistinct(rapid.SampledFrom([]string{"profile.email", "profile.name", "email"}), rapid.ID).Draw(rt, "covers"),
				Recipients: rapid.SliceOfDistinct(rapid.SampledFrom([]string{"shop", "courier"}), rapid.ID).Draw(rt, "recipients"),
				NotAfter:   rapid.SampledFrom([]time.Time{{}, now, now.Add(1)}).Draw(rt, "not after"), Entry: int64(rapid.IntRange(0, 5).Draw(rt, "entry")),
				SeparateDocument: rapid.Bool().Draw(rt, "separate"),
			})
		}
		d := b.Decide(r)
		if !d.Allow {
			return
		}
		at := slices.IndexFunc(r.Consents, func(c policy.Consent) bool { return c.ID == d.Evidence.ID })
		if at < 0 {
			rt.Fatal("evidence is no consent of the subject")
		}
		c := r.Consents[at]
		if c.Purpose != "newsletter" || !c.SeparateDocument || !slices.Contains(c.Recipients, "shop") || c.Entry != d.Evidence.Entry ||
			(c.State != policy.ConsentGiven && c.State != policy.RenewedConsentGiven) || (!c.NotAfter.IsZero() && !now.Before(c.NotAfter)) {
			rt.Fatalf("evidence does not hold: %+v", c)
		}
		for _, f := range r.Fields {
			if !slices.Contains(c.Fields, policy.Qualify("profile", f)) {
				rt.Fatalf("%s is not covered by %+v", f, c)
			}
		}
		for _, other := range r.Consents {
			ended := other.State == "ConsentWithdrawn" || other.State == "ConsentExpired"
			if ended && other.Purpose == "newsletter" && slices.Contains(other.Recipients, "shop") && other.Entry >= c.Entry {
				rt.Fatalf("allowed after %+v", other)
			}
		}
	})
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	b := mustDefault(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				d := b.Decide(consented(read("shop", "newsletter", "email")))
				if !d.Allow {
					t.Error(d.Reason)
				}
				d.Recipient.ID = "changed" // a decision belongs to its caller
				b.Decide(read("courier", "partner-delivery", "name"))
				p, _ := b.Purpose("account")
				p.Fields["profile"][0] = "changed"
				b.Document().Purposes[0].Fields["profile"][0] = "changed"
			}
		})
	}
	wg.Wait()
	if d := b.Decide(read("shop", "account", "userName")); !d.Allow || d.Recipient.ID != "prototypster" {
		t.Errorf("the bundle was changed: %+v", d)
	}
}
