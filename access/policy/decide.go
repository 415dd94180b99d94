package policy

import (
	"slices"
	"strconv"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// readActions need a purpose and a ground.
func readActions() []string { return []string{ActionRead, ActionVerify, ActionLookup} }

// roleActions follow from the caller's role.
func roleActions() []string {
	return []string{ActionWrite, ActionDelete, ActionDescribe, ActionErase, ActionConsentGive, ActionConsentWithdraw,
		ActionConsentList, ActionRestrict, ActionAccessRecords, ActionLedgerRead, ActionPolicyRead,
		ActionPolicyPublish, ActionKeysRead, ActionKeysRotate}
}

// Decide answers a request. It never errs: what cannot be decided is denied.
//
// The order of its questions is part of the contract. Role, purpose, mode, collection, fields and agreement
// come first and do not look at the subject. Then the rules are asked about a neutral subject, then about
// this one. So a caller without rights gets the same Decision for any subject, and for a purpose of ground
// consent an unknown or erased subject is answered as one that exists and never consented.
//
// An allow says that the caller may; whether there is anything to read is for whoever holds the data.
func (b *Bundle) Decide(r Request) Decision {
	c, ok := b.callers[r.Caller]
	if !ok {
		return deny(ReasonRoleNotAllowed, MissingRole, r.Action)
	}
	switch {
	case slices.Contains(readActions(), r.Action) && b.memorable(r):
		return b.memo.remembered(r, func(r Request) Decision { return b.decideRead(c, r) })
	case slices.Contains(readActions(), r.Action):
		return b.decideRead(c, r)
	case slices.Contains(roleActions(), r.Action):
		return b.decideRole(c, r)
	}
	return deny(ReasonPolicyError, "", "")
}

func deny(reason, kind, name string) Decision {
	d := Decision{Reason: reason}
	if kind != "" {
		d.Missing = []Missing{{kind, name}}
	}
	return d
}

// decideRole decides an action that needs no purpose.
func (b *Bundle) decideRole(c *caller, r Request) Decision {
	col, known := b.collections[r.Collection]
	if !known {
		col = b.unknown
	}
	req := cedar.Request{Principal: c.uid, Action: actionUID(r.Action), Context: cedar.NewRecord(cedar.RecordMap{
		"now": cedar.NewDatetime(r.Now), "authn": cedar.String(r.Authn)})}
	ofRecord := r.Action == ActionWrite || r.Action == ActionDelete
	switch r.Action {
	case ActionWrite, ActionDelete:
		req.Resource = col.record
	case ActionDescribe, ActionErase, ActionConsentGive, ActionConsentWithdraw, ActionConsentList, ActionRestrict:
		req.Resource = uidSubject
	default:
		req.Resource = uidInstance
	}
	allow, rules, err := b.engine.ask(col.entities[stateNeutral], req)
	switch {
	case err != nil:
		return deny(ReasonPolicyError, "", "")
	case !allow && len(rules) > 0:
		return Decision{Reason: ReasonForbiddenByRule, Rules: rules}
	case !allow:
		return deny(ReasonRoleNotAllowed, MissingRole, r.Action)
	case ofRecord && !known:
		return deny(ReasonCollectionUnknown, "", "")
	}
	if ofRecord {
		if d, ok := fieldsKnown(col, r.Fields); !ok {
			return d
		}
	}
	if state := stateOf(r.Subject); state != stateNeutral && req.Resource != uidInstance {
		if allow, rules, err = b.engine.ask(col.entities[state], req); err != nil {
			return deny(ReasonPolicyError, "", "")
		} else if !allow {
			return Decision{Reason: stateReason(r.Subject), Rules: rules}
		}
	}
	return Decision{Allow: true, Rules: rules}
}

func actionUID(action string) cedar.EntityUID {
	return cedar.NewEntityUID(typeAction, cedar.String(action))
}

// stateReason names the state that turned an allow for a neutral subject into a denial.
func stateReason(s Subject) string {
	if s.Erased {
		return ReasonSubjectErased
	}
	return ReasonSubjectRestricted
}

// fieldsKnown refuses names that are no fields. They are named by position: a caller's words are not repeated.
func fieldsKnown(col *collection, fields []string) (Decision, bool) {
	var missing []Missing
	for i, f := range fields {
		if _, ok := col.qualified[f]; !ok {
			missing = append(missing, Missing{MissingField, position(i)})
		}
	}
	return Decision{Reason: ReasonFieldUnknown, Missing: missing}, len(missing) == 0
}

// decideRead decides a read, a verification or a lookup.
func (b *Bundle) decideRead(c *caller, r Request) Decision {
	if !readsData(c.Role) {
		return deny(ReasonRoleNotAllowed, MissingRole, r.Action)
	}
	p, ok := b.purposes[r.Purpose]
	if !ok {
		return deny(ReasonUnknownPurpose, MissingPurpose, "")
	}
	g, ok := c.grants[p.ID]
	if !ok {
		return notGranted(c, p)
	}
	if p.Ground == verify.GroundLaw {
		d := deny(ReasonLawNotAvailable, MissingGround, verify.GroundLaw)
		d.Ground = p.Ground
		return d
	}
	mode, ok := modeOf(r)
	if !ok || !slices.Contains(p.Modes, mode) {
		return withGround(deny(ReasonModeNotAllowed, MissingMode, mode), p)
	}
	col, d, ok := b.checkReadFields(p, r)
	if !ok {
		return withGround(d, p)
	}
	a, d, ok := g.standing(r, col)
	if !ok {
		return withGround(d, p)
	}
	return b.askRead(c, g, a, col, mode, r)
}

func withGround(d Decision, p *purpose) Decision {
	d.Ground = p.Ground
	return d
}

// notGranted explains why a purpose is not this caller's.
func notGranted(c *caller, p *purpose) Decision {
	if c.Role == RolePartner && len(c.grants) == 0 {
		return deny(ReasonAgreementMissing, MissingAgreement, p.ID)
	}
	return deny(ReasonPurposeNotYours, MissingPurpose, p.ID)
}

// modeOf returns the mode of a request. For verify and lookup it is the action's own. The name of a mode
// we do not know is not given back.
func modeOf(r Request) (string, bool) {
	switch {
	case r.Action == ActionVerify:
		return verify.ModeVerify, r.Mode == "" || r.Mode == verify.ModeVerify
	case r.Action == ActionLookup:
		return verify.ModeLookup, r.Mode == "" || r.Mode == verify.ModeLookup
	case r.Mode == verify.ModeReveal, r.Mode == verify.ModeMask:
		return r.Mode, true
	}
	return "", false
}

// checkReadFields finds the collection and checks the fields against it and the purpose.
func (b *Bundle) checkReadFields(p *purpose, r Request) (*collection, Decision, bool) {
	col, ok := b.collections[r.Collection]
	if !ok {
		return nil, deny(ReasonCollectionUnknown, "", ""), false
	}
	if len(r.Fields) == 0 {
		return nil, deny(ReasonEmptyFields, MissingField, ""), false
	}
	if d, ok := fieldsKnown(col, r.Fields); !ok {
		return nil, d, false
	}
	if missing := notIn(p.qualified, col, r.Fields); len(missing) > 0 {
		return nil, Decision{Reason: ReasonFieldNotInPurpose, Missing: missing}, false
	}
	return col, Decision{}, true
}

// notIn lists the known fields that a set of qualified names lacks.
func notIn(set map[string]bool, col *collection, fields []string) (missing []Missing) {
	for _, f := range fields {
		if !set[string(col.qualified[f])] {
			missing = append(missing, Missing{MissingField, f})
		}
	}
	return missing
}

// standing finds the agreement under which a partner asks; nil for a caller of our own.
func (g *grant) standing(r Request, col *collection) (*agreement, Decision, bool) {
	if g.own {
		return nil, Decision{}, true
	}
	// The least grave obstacle among the agreements is the one to report.
	best, bestRank := Decision{}, -1
	for _, a := range g.agreements {
		d, rank := a.obstacle(r, col)
		if rank == noObstacle {
			return a, Decision{}, true
		}
		if rank > bestRank {
			best, bestRank = d, rank
		}
	}
	return nil, best, false
}

const noObstacle = 4

// obstacle says what keeps an agreement from covering a request; higher ranks are closer to covering it.
func (a *agreement) obstacle(r Request, col *collection) (Decision, int) {
	switch {
	case a.Status == "draft":
		return deny(ReasonAgreementNotYet, MissingAgreement, a.ID), 0
	case a.Status != "active":
		return deny(ReasonAgreementExpired, MissingAgreement, a.ID), 0
	case r.Now.Before(a.from):
		return deny(ReasonAgreementNotYet, MissingAgreement, a.ID), 1
	case !r.Now.Before(a.to):
		return deny(ReasonAgreementExpired, MissingAgreement, a.ID), 2
	}
	if missing := notIn(a.qualified, col, r.Fields); len(missing) > 0 {
		return Decision{Reason: ReasonFieldNotCovered, Missing: missing}, 3
	}
	return Decision{}, noObstacle
}

// askRead puts a request that Go code found nothing against to the rules.
func (b *Bundle) askRead(c *caller, g *grant, a *agreement, col *collection, mode string, r Request) Decision {
	d := Decision{Ground: g.purpose.Ground, Recipient: &g.recipient}
	if a != nil {
		d.Recipient = &a.recipient
	}
	// A copy, so that no caller can write into the bundle.
	to := *d.Recipient
	d.Recipient = &to

	ctx := g.context(a, col, mode, r)
	req := cedar.Request{Principal: c.uid, Action: actionUID(r.Action), Resource: col.record}
	switch {
	case d.Ground == verify.GroundService && a != nil:
		d.Evidence = &verify.Evidence{Type: verify.EvidenceAgreement, ID: a.ID, Entry: r.PolicyEntry}
		d.Until = a.to
	case d.Ground == verify.GroundService:
		d.Evidence = &verify.Evidence{Type: verify.EvidencePurpose, ID: g.purpose.ID, Entry: r.PolicyEntry}
	default:
		found, why := findConsent(g.purpose.Purpose, r)
		if found == nil {
			return b.denyConsent(d, why, col, req, ctx)
		}
		d.Evidence = &verify.Evidence{Type: verify.EvidenceConsent, ID: found.ID, Entry: found.Entry}
		d.Until = found.NotAfter
		ctx["consent"] = b.consentRecord(g.purpose, found)
	}
	req.Context = cedar.NewRecord(ctx)

	allow, rules, err := b.engine.ask(col.entities[stateNeutral], req)
	switch {
	case err != nil:
		return deny(ReasonPolicyError, "", "")
	case !allow:
		if _, ok := ctx["consent"]; ok { // a rule that does not need the consent speaks first
			delete(ctx, "consent")
			return b.denyConsent(d, Decision{Reason: ReasonForbiddenByRule, Rules: rules}, col, req, ctx)
		}
		d.Evidence, d.Until, d.Reason, d.Rules = nil, time.Time{}, ReasonForbiddenByRule, rules
		return d
	}
	if state := stateOf(r.Subject); state != stateNeutral {
		if allow, rules, err = b.engine.ask(col.entities[state], req); err != nil {
			return deny(ReasonPolicyError, "", "")
		} else if !allow {
			d.Evidence, d.Until, d.Reason, d.Rules = nil, time.Time{}, stateReason(r.Subject), rules
			return d
		}
	}
	d.Allow, d.Rules = true, rules
	return d
}

// denyConsent denies for want of a consent, unless a rule forbids the request whatever the consents are:
// then that is the answer, so that it cannot be told from the denial whether the person consented.
func (b *Bundle) denyConsent(d, why Decision, col *collection, req cedar.Request, ctx cedar.RecordMap) Decision {
	d.Evidence, d.Until, d.Reason, d.Rules, d.Missing = nil, time.Time{}, why.Reason, why.Rules, why.Missing
	req.Context = cedar.NewRecord(ctx)
	_, rules, err := b.engine.ask(col.entities[stateNeutral], req)
	if err != nil {
		return deny(ReasonPolicyError, "", "")
	}
	if len(rules) > 0 {
		d.Reason, d.Rules, d.Missing = ReasonForbiddenByRule, rules, nil
	}
	return d
}

// context assembles the members that Cedar sees, but for a consent.
func (g *grant) context(a *agreement, col *collection, mode string, r Request) cedar.RecordMap {
	fields := make([]cedar.Value, len(r.Fields))
	for i, f := range r.Fields {
		fields[i] = col.qualified[f]
	}
	ctx := make(cedar.RecordMap, 12)
	ctx["ground"], ctx["purpose"], ctx["purposeIri"] = g.purpose.ground, g.purpose.id, g.purpose.iri
	if a != nil {
		ctx["agreement"], ctx["recipient"] = a.record, a.recipientRecord
	} else {
		ctx["registration"], ctx["recipient"] = g.purpose.registered, g.recipientRecord
	}
	ctx["now"] = cedar.NewDatetime(r.Now)
	ctx["authn"] = cedar.String(r.Authn)
	ctx["mode"] = cedar.String(mode)
	ctx["justified"] = cedar.Boolean(r.Justification)
	ctx["fields"] = cedar.NewSet(fields...)
	return ctx
}

// A consent that ends by withdrawal only has a window without end; its beginning is the entry that made it.
var (
	consentFrom   = time.Unix(0, 0)
	openEndWindow = window(consentFrom, time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC))
)

// consentRecord writes a consent for Cedar. Recipients that are no callers of this bundle are left out.
// A consent given on the registered terms, as most are, takes the sets made for them.
func (b *Bundle) consentRecord(p *purpose, c *Consent) cedar.Record {
	fields, recipients := p.fields, p.recipients
	if !slices.Equal(c.Fields, p.terms.Fields) {
		fields = stringSet(slices.Values(c.Fields))
	}
	if !slices.Equal(c.Recipients, p.terms.Recipients) {
		recipients = b.callerSet(c.Recipients)
	}
	valid := openEndWindow
	if !c.NotAfter.IsZero() {
		valid = window(consentFrom, c.NotAfter)
	}
	return cedar.NewRecord(cedar.RecordMap{
		"id": cedar.String(c.ID), "status": cedar.String(c.State), "purposes": p.idSet, "fields": fields,
		"recipients": recipients, "window": valid, "separateDocument": cedar.Boolean(c.SeparateDocument),
	})
}

// findConsent returns the consent that makes a request true, or why there is none.
//
// Only consents to this purpose that name this recipient are weighed. Any of them that has ended ends the
// older ones with it: who withdraws means the purpose, and not one of two rows that a double click made.
func findConsent(p Purpose, r Request) (*Consent, Decision) {
	missing := deny(ReasonConsentMissing, MissingConsent, p.ID)
	if !r.Subject.Exists || r.Subject.Erased {
		return nil, missing
	}
	var best *Consent
	why, whyRank, end, elsewhere := missing, 0, int64(-1), false
	report := func(rank int, d Decision) {
		if rank > whyRank {
			why, whyRank = d, rank
		}
	}
	for i := range r.Consents {
		if c := &r.Consents[i]; c.Purpose == p.ID && slices.Contains(c.Recipients, r.Caller) && ended(c.State) {
			end = max(end, c.Entry)
			report(1, endReason(c.State, p.ID))
		}
	}
	for i := range r.Consents {
		c := &r.Consents[i]
		live := c.State == ConsentGiven || c.State == RenewedConsentGiven
		switch {
		case !live:
		case c.Purpose != p.ID:
			elsewhere = true
		case !slices.Contains(c.Recipients, r.Caller) || !c.SeparateDocument:
		case c.Entry <= end:
		case c.Policy < p.ConsentSince || (!c.NotAfter.IsZero() && !r.Now.Before(c.NotAfter)):
			report(2, deny(ReasonConsentExpired, MissingConsent, p.ID))
		default:
			if uncovered := consentLacks(c, r); len(uncovered) > 0 {
				report(3, Decision{Reason: ReasonFieldNotCovered, Missing: uncovered})
			} else if best == nil || c.Entry > best.Entry {
				best = c
			}
		}
	}
	if best == nil && whyRank == 0 && elsewhere && !slices.ContainsFunc(r.Consents, func(c Consent) bool { return c.Purpose == p.ID }) {
		why = deny(ReasonPurposeNotConsented, MissingConsent, p.ID)
	}
	return best, why
}

// ended reports whether a state is an end: any that is neither live nor a request that awaits its answer.
func ended(state string) bool {
	switch state {
	case ConsentGiven, RenewedConsentGiven, "ConsentRequested", "ConsentRequestDeferred":
		return false
	}
	return true
}

func endReason(state, purpose string) Decision {
	if state == "ConsentExpired" {
		return deny(ReasonConsentExpired, MissingConsent, purpose)
	}
	return deny(ReasonConsentWithdrawn, MissingConsent, purpose)
}

// consentLacks lists the fields of a request that a consent does not cover.
func consentLacks(c *Consent, r Request) (missing []Missing) {
	for _, f := range r.Fields {
		if !slices.Contains(c.Fields, Qualify(r.Collection, f)) {
			missing = append(missing, Missing{MissingField, f})
		}
	}
	return missing
}

// position names the i-th field of a request.
func position(i int) string { return "fields[" + strconv.Itoa(i) + "]" }
