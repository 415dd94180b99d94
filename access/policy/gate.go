package policy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// The gate puts generated requests to the rules when a bundle is loaded, and refuses the bundle if one is
// permitted that the privacy policy promises never to permit. It is the second line: Decide asks for the
// evidence in Go before it asks the rules. The gate keeps a careless bundle from removing the first.
//
// It cannot prove rules right. A rule that permits under a condition no probe meets passes; so permits are
// reviewed by people, and forbids may be added freely.

// probe is one generated request that must be denied.
type probe struct {
	promise string // what permitting it would break
	role    string // empty: any
	actions []string
	state   int
	ctx     cedar.RecordMap
}

// probeTime is when all probes happen.
var probeTime = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// Words of probes.
const (
	probeField   = "probe.a"
	probeField2  = "probe.b"
	probePurpose = "probe"
	probeOther   = "another"
)

// gate returns an error that names the first broken promise.
func (b *Bundle) gate() error {
	if err := b.gateBare(); err != nil {
		return err
	}
	for _, who := range b.probeCallers() {
		entities := [3]cedar.EntityMap{}
		for state := range entities {
			entities[state] = maps.Clone(b.unknown.entities[state])
			entities[state][who.uid] = cedar.Entity{UID: who.uid, Attributes: cedar.NewRecord(callerAttributes(who.Caller))}
		}
		for _, p := range probes(who.uid) {
			if p.role != "" && p.role != who.Role {
				continue
			}
			for _, action := range p.actions {
				req := cedar.Request{Principal: who.uid, Action: actionUID(action), Resource: b.unknown.record, Context: cedar.NewRecord(p.ctx)}
				if err := b.mustDeny(p.promise, entities[p.state], req); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (b *Bundle) mustDeny(promise string, entities cedar.EntityMap, req cedar.Request) error {
	allow, rules, err := b.engine.ask(entities, req)
	if err != nil {
		return &BundleError{Path: "cedar.policies", Reason: "no sound answer to a probe", Err: err}
	}
	if allow {
		return &BundleError{Path: "cedar.policies", Reason: fmt.Sprintf("%v break the promise %q", rules, promise)}
	}
	return nil
}

// probeCallers are the callers of the bundle and a stranger in each role, so that neither a rule for one
// caller nor one for a role goes unasked.
func (b *Bundle) probeCallers() []*caller {
	out := slices.Collect(maps.Values(b.callers))
	for _, role := range roles() {
		c := Caller{ID: "probe-" + role, Kind: "service", Role: role}
		if role == RolePartner {
			c.Partner = "probe"
		}
		out = append(out, &caller{Caller: c, uid: cedar.NewEntityUID(typeCaller, cedar.String(c.ID))})
	}
	return out
}

// gateBare asks for every purpose of the bundle, by every caller, without any evidence.
func (b *Bundle) gateBare() error {
	const promise = "no permit without evidence"
	for _, p := range b.purposes {
		ctx := probeContext(p.Ground)
		ctx["purpose"], ctx["purposeIri"] = cedar.String(p.ID), cedar.String(p.IRI)
		if len(p.qualified) > 0 {
			ctx["fields"] = p.fields
		}
		record := cedar.NewRecord(ctx)
		targets := []*collection{b.unknown}
		for name := range p.Fields {
			targets = append(targets, b.collections[name])
		}
		for _, c := range b.callers {
			for _, col := range targets {
				for _, action := range readActions() {
					req := cedar.Request{Principal: c.uid, Action: actionUID(action), Resource: col.record, Context: record}
					if err := b.mustDeny(promise, col.entities[stateNeutral], req); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// probeContext is a reading without evidence.
func probeContext(ground string) cedar.RecordMap {
	return cedar.RecordMap{
		"now": cedar.NewDatetime(probeTime), "authn": cedar.String("token"), "ground": cedar.String(ground),
		"purpose": cedar.String(probePurpose), "purposeIri": cedar.String("dpv:ServiceProvision"),
		"fields": cedar.NewSet(cedar.String(probeField), cedar.String(probeField2)),
		"mode":   cedar.String(verify.ModeReveal), "justified": cedar.True,
		"recipient": probeRecipient(RecipientController),
	}
}

func probeRecipient(role string) cedar.Record {
	return recipientRecord(verify.Recipient{ID: "probe", Role: role, Jurisdiction: "RU"})
}

// probeEvidence returns the member of the context for one kind of evidence, made out to a caller, with
// some members changed.
func probeEvidence(kind string, to cedar.EntityUID, change cedar.RecordMap) cedar.Record {
	both := cedar.NewSet(cedar.String(probeField), cedar.String(probeField2))
	only := cedar.NewSet(cedar.String(probePurpose))
	day := 24 * time.Hour
	m := map[string]cedar.RecordMap{
		"consent": {"status": cedar.String(ConsentGiven), "purposes": only, "recipients": cedar.NewSet(to),
			"separateDocument": cedar.True},
		"registration": {"purpose": cedar.String(probePurpose), "callers": cedar.NewSet(to)},
		"agreement": {"kind": cedar.String(AgreementProcessor), "active": cedar.True, "purposes": only,
			"recipients": cedar.NewSet(to)},
		"order": {"issuer": cedar.String("probe"), "lawRef": cedar.String("probe"), "recipient": to,
			"verified": cedar.True, "approvals": cedar.Long(2), "selfApproved": cedar.False},
		"rightsRequest": {"kind": cedar.String("access"), "status": cedar.String("RequestAccepted"),
			"identityVerified": cedar.True, "recipient": to},
	}[kind]
	m["fields"] = both
	if kind != "registration" {
		m["id"] = cedar.String("probe")
		m["window"] = window(probeTime.Add(-day), probeTime.Add(day))
	}
	maps.Copy(m, change)
	return cedar.NewRecord(m)
}

// groundOf says which ground each kind of evidence is for.
func groundOf() map[string]string {
	return map[string]string{
		"consent": verify.GroundConsent, "registration": verify.GroundService, "agreement": verify.GroundService,
		"order": verify.GroundLaw, "rightsRequest": verify.GroundLaw,
	}
}

// withEvidence is a reading on a ground with the given kinds of evidence, all sound.
func withEvidence(ground string, to cedar.EntityUID, kinds ...string) cedar.RecordMap {
	ctx := probeContext(ground)
	for _, k := range kinds {
		ctx[cedar.String(k)] = probeEvidence(k, to, nil)
	}
	return ctx
}

// probes generates the requests that must be denied whoever makes them.
func probes(who cedar.EntityUID) []probe {
	all := slices.Sorted(maps.Keys(groundOf()))
	var out []probe
	add := func(promise, role string, state int, ctx cedar.RecordMap) {
		out = append(out, probe{promise, role, readActions(), state, ctx})
	}
	change := func(ctx cedar.RecordMap, key cedar.String, v cedar.Value) cedar.RecordMap {
		ctx[key] = v
		return ctx
	}
	for _, ground := range []string{verify.GroundConsent, verify.GroundService, verify.GroundLaw, "legitimate-interest"} {
		full := func() cedar.RecordMap { return withEvidence(ground, who, all...) }
		for _, iri := range []string{"dpv:SellDataToThirdParties", "dpv:SellInsightsFromData"} {
			add("personal data is never sold", "", stateNeutral, change(full(), "purposeIri", cedar.String(iri)))
		}
		add("an empty list of fields is denied", "", stateNeutral, change(full(), "fields", cedar.NewSet()))
		add("an erased subject is not read", "", stateErased, full())
		add("security reads no data", RoleSecurity, stateNeutral, full())
		add("an auditor reads no data", RoleAuditor, stateNeutral, full())
		if ground != verify.GroundLaw {
			add("restriction blocks consent and service", "", stateRestricted, full())
			bare := withEvidence(ground, who, "consent", "registration")
			add("a partner needs an agreement", RolePartner, stateNeutral, bare)
		}
		if ground == verify.GroundService {
			add("nothing is transferred to a third party", "", stateNeutral, change(full(), "recipient", probeRecipient(RecipientThirdParty)))
		}
		if ground == "legitimate-interest" {
			add("there are three grounds", "", stateNeutral, full())
		}
		for kind, belongs := range groundOf() {
			if belongs != ground {
				add("evidence is for its ground only", "", stateNeutral, withEvidence(ground, who, kind))
			}
		}
	}
	for _, f := range flaws() {
		ctx := probeContext(groundOf()[f.kind])
		ctx[cedar.String(f.kind)] = probeEvidence(f.kind, who, f.change)
		add("evidence must hold: "+f.kind+" "+f.name, "", stateNeutral, ctx)
	}
	return out
}

// flaw is a way in which a piece of evidence does not hold.
type flaw struct {
	kind, name string
	change     cedar.RecordMap
}

func flaws() []flaw {
	stranger := cedar.NewEntityUID(typeCaller, "stranger")
	other := cedar.NewSet(cedar.String(probeOther))
	day := 24 * time.Hour
	var out []flaw
	add := func(kind, name string, key cedar.String, v cedar.Value) {
		out = append(out, flaw{kind, name, cedar.RecordMap{key: v}})
	}
	for _, state := range []string{"ConsentWithdrawn", "ConsentExpired", "ConsentRefused", "ConsentRequested",
		"ConsentRevoked", "ConsentInvalidated", "ConsentUnknown", ""} {
		add("consent", "not given", "status", cedar.String(state))
	}
	add("consent", "not separate", "separateDocument", cedar.False)
	add("consent", "to another", "recipients", cedar.NewSet(stranger))
	add("consent", "for another purpose", "purposes", other)
	add("registration", "of another purpose", "purpose", cedar.String(probeOther))
	add("registration", "for another", "callers", cedar.NewSet(stranger))
	add("agreement", "not active", "active", cedar.False)
	add("agreement", "with another", "recipients", cedar.NewSet(stranger))
	add("agreement", "for another purpose", "purposes", other)
	add("order", "not verified", "verified", cedar.False)
	add("order", "approved once", "approvals", cedar.Long(1))
	add("order", "approved by the requester", "selfApproved", cedar.True)
	add("order", "for another", "recipient", stranger)
	add("rightsRequest", "identity not checked", "identityVerified", cedar.False)
	add("rightsRequest", "rejected", "status", cedar.String("RequestRejected"))
	add("rightsRequest", "for another", "recipient", stranger)
	for kind := range groundOf() {
		add(kind, "one field short", "fields", cedar.NewSet(cedar.String(probeField)))
		if kind != "registration" {
			add(kind, "over", "window", window(probeTime.Add(-2*day), probeTime))
			add(kind, "not yet", "window", window(probeTime.Add(time.Millisecond), probeTime.Add(day)))
		}
	}
	return out
}
