package policy

import (
	"maps"
	"slices"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/schema"
)

// States of a subject, the index of collection.entities.
const (
	stateNeutral    = 0
	stateRestricted = 1
	stateErased     = 2
)

func stateOf(s Subject) int {
	state := stateNeutral
	if s.Restricted {
		state |= stateRestricted
	}
	if s.Erased {
		state |= stateErased
	}
	return state
}

// The one subject and the one instance in a request. Cedar never learns who the person is.
var (
	uidSubject  = cedar.NewEntityUID(typeSubject, "subject")
	uidInstance = cedar.NewEntityUID(typeInstance, "pdvault")
)

// noCollection is the record of a collection that the bundle does not know: rights are asked before names.
const noCollection = ""

func (b *Bundle) compileCollections() error {
	if n := len(b.doc.Collections); n == 0 || n > maxCollections {
		return bad("none or too many", "collections")
	}
	b.collections = make(map[string]*collection, len(b.doc.Collections))
	var opts []schema.Option
	if r := b.doc.Operator.PhoneRegion; r != "" {
		opts = append(opts, schema.WithPhoneRegion(r))
	}
	for _, name := range slices.Sorted(maps.Keys(b.doc.Collections)) {
		s, err := schema.Compile(name, b.doc.Collections[name], opts...)
		if err != nil {
			return &BundleError{Path: "collections", Reason: "a schema is not taken", Err: err}
		}
		c := &collection{schema: s, qualified: map[string]cedar.String{}}
		for _, f := range s.Fields() {
			c.qualified[f.Name] = cedar.String(Qualify(name, f.Name))
		}
		b.collections[name] = c
	}
	return nil
}

// compile prepares what every decision needs, so that the warm path only assembles.
func (b *Bundle) compile() error {
	b.callers = make(map[string]*caller, len(b.doc.Callers))
	for _, c := range b.doc.Callers {
		b.callers[c.ID] = &caller{Caller: c, uid: cedar.NewEntityUID(typeCaller, cedar.String(c.ID)), grants: map[string]*grant{}}
	}
	b.purposes = make(map[string]*purpose, len(b.doc.Purposes))
	for _, p := range b.doc.Purposes {
		b.purposes[p.ID] = b.compilePurpose(p)
	}
	for _, p := range b.purposes {
		for _, id := range p.Callers {
			g := &grant{purpose: p, own: true, recipient: verify.Recipient{
				ID: b.doc.Operator.ID, Role: RecipientController, Jurisdiction: b.doc.Operator.Jurisdiction}}
			g.recipientRecord = recipientRecord(g.recipient)
			b.callers[id].grants[p.ID] = g
		}
	}
	for _, a := range b.doc.Agreements {
		b.compileAgreement(a)
	}
	b.compileTerms()
	return b.compileEntities()
}

func (b *Bundle) compilePurpose(p Purpose) *purpose {
	cp := &purpose{Purpose: p, qualified: qualify(p.Fields), id: cedar.String(p.ID), iri: cedar.String(p.IRI),
		ground: cedar.String(p.Ground), idSet: cedar.NewSet(cedar.String(p.ID))}
	cp.fields = stringSet(maps.Keys(cp.qualified))
	cp.registered = cedar.NewRecord(cedar.RecordMap{
		"purpose": cp.id, "callers": b.callerSet(p.Callers), "fields": cp.fields})
	return cp
}

// compileTerms gathers for each purpose whom and what a consent on the registered terms covers.
func (b *Bundle) compileTerms() {
	for _, p := range b.purposes {
		p.terms = ConsentTerms{Purpose: p.ID, IRI: p.IRI, Fields: slices.Sorted(maps.Keys(p.qualified))}
		for _, id := range slices.Sorted(maps.Keys(b.callers)) {
			if _, ok := b.callers[id].grants[p.ID]; ok {
				p.terms.Recipients = append(p.terms.Recipients, id)
			}
		}
		p.recipients = b.callerSet(p.terms.Recipients)
	}
}

// callerSet makes a Cedar set of the callers of this bundle that are named.
func (b *Bundle) callerSet(ids []string) cedar.Set {
	uids := make([]cedar.Value, 0, len(ids))
	for _, id := range ids {
		if c, ok := b.callers[id]; ok {
			uids = append(uids, c.uid)
		}
	}
	return cedar.NewSet(uids...)
}

// compileAgreement adds the agreement to the grants of every caller that is its counterparty.
func (b *Bundle) compileAgreement(doc Agreement) {
	// Both were parsed by check.
	from, _ := time.Parse(time.RFC3339, doc.EffectiveFrom)
	to, _ := time.Parse(time.RFC3339, doc.EffectiveTo)
	a := &agreement{Agreement: doc, from: from, to: to, qualified: qualify(doc.Fields)}
	a.recipient = verify.Recipient{ID: doc.CounterpartyID, Role: recipientRole(doc.Kind), Jurisdiction: doc.Jurisdiction}
	a.recipientRecord = recipientRecord(a.recipient)
	var ids []string
	for id, c := range b.callers {
		if counterparty(c.Caller) == doc.CounterpartyID {
			ids = append(ids, id)
		}
	}
	a.record = cedar.NewRecord(cedar.RecordMap{
		"id": cedar.String(doc.ID), "kind": cedar.String(doc.Kind), "active": cedar.Boolean(doc.Status == "active"),
		"purposes": stringSet(slices.Values(doc.Purposes)), "fields": stringSet(maps.Keys(a.qualified)),
		"recipients": b.callerSet(ids), "window": window(from, to),
	})
	for _, c := range b.callers {
		if counterparty(c.Caller) != doc.CounterpartyID {
			continue
		}
		for _, id := range doc.Purposes {
			g := c.grants[id]
			if g == nil {
				g = &grant{purpose: b.purposes[id]}
				c.grants[id] = g
			}
			if !g.own { // a registration of our own needs no agreement
				g.agreements = append(g.agreements, a)
			}
		}
	}
}

// recipientRole says what the counterparty of an agreement is to the data.
func recipientRole(kind string) string {
	switch kind {
	case AgreementProcessor:
		return RecipientProcessor
	case AgreementThirdParty:
		return RecipientThirdParty
	}
	return RecipientController
}

// compileEntities makes and validates the entities of every collection in every state of a subject.
func (b *Bundle) compileEntities() error {
	b.unknown = &collection{}
	all := maps.Clone(b.collections)
	all[noCollection] = b.unknown
	for name, c := range all {
		c.record = cedar.NewEntityUID(typeRecord, cedar.String(name))
		for state := range c.entities {
			c.entities[state] = b.entities(c, state)
			if err := b.engine.validator.Entities(c.entities[state]); err != nil {
				return &BundleError{Path: "cedar.schema", Reason: "does not describe the entities of the broker", Err: err}
			}
		}
	}
	return nil
}

func (b *Bundle) entities(c *collection, state int) cedar.EntityMap {
	m := cedar.EntityMap{}
	add := func(uid cedar.EntityUID, attrs cedar.RecordMap) {
		m[uid] = cedar.Entity{UID: uid, Attributes: cedar.NewRecord(attrs)}
	}
	for _, k := range b.callers {
		add(k.uid, callerAttributes(k.Caller))
	}
	add(uidSubject, cedar.RecordMap{
		"restricted": cedar.Boolean(state&stateRestricted != 0), "erased": cedar.Boolean(state&stateErased != 0)})
	categories := map[string]bool{}
	if c.schema != nil {
		for _, f := range c.schema.Fields() {
			categories[f.Category] = true
		}
	}
	add(c.record, cedar.RecordMap{"subject": uidSubject, "collection": c.record.ID, "categories": stringSet(maps.Keys(categories))})
	add(uidInstance, nil)
	return m
}

func callerAttributes(c Caller) cedar.RecordMap {
	return cedar.RecordMap{
		"kind": cedar.String(c.Kind), "roles": cedar.NewSet(cedar.String(c.Role)), "partner": cedar.Boolean(c.Partner != "")}
}

func recipientRecord(r verify.Recipient) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{
		"id": cedar.String(r.ID), "role": cedar.String(r.Role), "jurisdiction": cedar.String(r.Jurisdiction)})
}

func window(from, to time.Time) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{"notBefore": cedar.NewDatetime(from), "notAfter": cedar.NewDatetime(to)})
}
