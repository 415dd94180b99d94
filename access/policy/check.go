package policy

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/schema"
)

// Limits of a bundle.
const (
	maxPurposes    = 256
	maxCollections = 64
	maxCallers     = 1024
	maxAgreements  = 1024
	maxCedarSize   = 64 << 10
	maxTextSize    = 1 << 20
	maxWords       = 4096 // bytes of a title, a description, a name
)

var (
	idPattern      = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	countryPattern = regexp.MustCompile(`^[A-Z]{2}$`)
	iriPattern     = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:[A-Za-z0-9/._#~:-]{1,200}$`)
	sha256Pattern  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// check finds every reference that does not resolve and every member out of range. It stops at the first.
func (b *Bundle) check() error {
	for _, f := range []func() error{b.checkHead, b.checkCallers, b.checkPurposes, b.checkAgreements, b.checkLimits} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bundle) checkHead() error {
	o, t, c := b.doc.Operator, b.doc.Text, b.doc.Cedar
	switch {
	case !idPattern.MatchString(o.ID):
		return bad("not an id", "operator.id")
	case !words(o.Name):
		return bad("missing or too long", "operator.name")
	case !words(o.Contact):
		return bad("missing or too long", "operator.contact")
	case !countryPattern.MatchString(o.Jurisdiction):
		return bad("not a country code", "operator.jurisdiction")
	case o.Residency != "" && !countryPattern.MatchString(o.Residency):
		return bad("not a country code", "operator.residency")
	case !words(t.Language):
		return bad("missing or too long", "text.language")
	case !words(t.Title):
		return bad("missing or too long", "text.title")
	case !iriPattern.MatchString(t.URI):
		return bad("not a URI", "text.uri")
	case t.Body == "" || len(t.Body) > maxTextSize:
		return bad("missing or too long", "text.body")
	case c.Schema == "" || len(c.Schema) > maxCedarSize:
		return bad("missing or too long", "cedar.schema")
	case c.Policies == "" || len(c.Policies) > maxCedarSize:
		return bad("missing or too long", "cedar.policies")
	}
	return nil
}

func words(s string) bool { return strings.TrimSpace(s) != "" && len(s) <= maxWords }

func (b *Bundle) checkCallers() error {
	if len(b.doc.Callers) > maxCallers {
		return bad("too many", "callers")
	}
	seen := map[string]bool{}
	for i, c := range b.doc.Callers {
		switch {
		case !idPattern.MatchString(c.ID):
			return bad("not an id", "callers[%d].id", i)
		case seen[c.ID]:
			return bad("repeated", "callers[%d].id", i)
		case c.Kind != "service" && c.Kind != "person":
			return bad("not service or person", "callers[%d].kind", i)
		case !slices.Contains(roles(), c.Role):
			return bad("unknown role", "callers[%d].role", i)
		case (c.Role == RolePartner) != (c.Partner != ""):
			return bad("a partner, and nobody else, names its counterparty", "callers[%d].partner", i)
		case c.Partner != "" && !idPattern.MatchString(c.Partner):
			return bad("not an id", "callers[%d].partner", i)
		}
		seen[c.ID] = true
	}
	return nil
}

func roles() []string {
	return []string{RoleService, RolePartner, RolePrivacyOfficer, RoleLegal, RoleSecurity, RoleAuditor}
}

func (b *Bundle) checkPurposes() error {
	if len(b.doc.Purposes) > maxPurposes {
		return bad("too many", "purposes")
	}
	seen := map[string]bool{}
	for i, p := range b.doc.Purposes {
		switch {
		case !idPattern.MatchString(p.ID):
			return bad("not an id", "purposes[%d].id", i)
		case seen[p.ID]:
			return bad("repeated", "purposes[%d].id", i)
		case !iriPattern.MatchString(p.IRI):
			return bad("not an IRI", "purposes[%d].iri", i)
		case sale(p.IRI):
			return bad("personal data is never sold", "purposes[%d].iri", i)
		case !words(p.Title):
			return bad("missing or too long", "purposes[%d].title", i)
		case !words(p.Description):
			return bad("missing or too long", "purposes[%d].description", i)
		case !slices.Contains([]string{verify.GroundConsent, verify.GroundService, verify.GroundLaw}, p.Ground):
			return bad("unknown ground", "purposes[%d].ground", i)
		case p.ConsentSince < 0 || (p.ConsentSince > 0 && p.Ground != verify.GroundConsent):
			return bad("only for ground consent", "purposes[%d].consent_since", i)
		case p.Retention == "unlimited" && len(p.Fields) > 0:
			return bad("only aggregates are kept without limit", "purposes[%d].retention", i)
		case p.Retention != "unlimited" && !schema.ValidDuration(p.Retention):
			return bad("not an ISO 8601 duration", "purposes[%d].retention", i)
		case (len(p.Fields) == 0) != (len(p.Modes) == 0):
			return bad("fields and modes come together", "purposes[%d].modes", i)
		}
		seen[p.ID] = true
		if err := b.checkModes(i, p); err != nil {
			return err
		}
		if err := b.checkPurposeCallers(i, p); err != nil {
			return err
		}
		if err := b.checkFields(p.Fields, "purposes[%d].fields", i); err != nil {
			return err
		}
	}
	return nil
}

// sale reports whether an IRI is one of the two purposes of sale in DPV, however it is abbreviated.
func sale(iri string) bool {
	local := iri[strings.LastIndexAny(iri, ":/#")+1:]
	return strings.EqualFold(local, "SellDataToThirdParties") || strings.EqualFold(local, "SellInsightsFromData")
}

func (b *Bundle) checkModes(i int, p Purpose) error {
	for j, m := range p.Modes {
		switch {
		case !slices.Contains([]string{verify.ModeReveal, verify.ModeMask, verify.ModeVerify, verify.ModeLookup}, m):
			return bad("unknown mode", "purposes[%d].modes[%d]", i, j)
		case slices.Contains(p.Modes[:j], m):
			return bad("repeated", "purposes[%d].modes[%d]", i, j)
		case m == verify.ModeLookup && p.Ground == verify.GroundConsent:
			// Before the person is found there is no consent to look at.
			return bad("a purpose of ground consent cannot look people up", "purposes[%d].modes[%d]", i, j)
		}
	}
	return nil
}

func (b *Bundle) checkPurposeCallers(i int, p Purpose) error {
	for j, id := range p.Callers {
		at := slices.IndexFunc(b.doc.Callers, func(c Caller) bool { return c.ID == id })
		if at < 0 {
			return bad("no such caller", "purposes[%d].callers[%d]", i, j)
		}
		switch {
		case slices.Contains(p.Callers[:j], id):
			return bad("repeated", "purposes[%d].callers[%d]", i, j)
		case b.doc.Callers[at].Role == RolePartner:
			return bad("a partner comes in through an agreement", "purposes[%d].callers[%d]", i, j)
		case !readsData(b.doc.Callers[at].Role):
			return bad("this role reads no data", "purposes[%d].callers[%d]", i, j)
		}
	}
	return nil
}

// readsData reports whether a role may read data of people at all, ground permitting.
func readsData(role string) bool { return role != RoleSecurity && role != RoleAuditor }

func (b *Bundle) checkFields(fields map[string][]string, path string, args ...any) error {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		at := append(slices.Clone(args), name)
		c, ok := b.collections[name]
		if !ok {
			return bad("no such collection", path+".%s", at...)
		}
		if len(fields[name]) == 0 {
			return bad("no fields", path+".%s", at...)
		}
		for i, f := range fields[name] {
			if _, ok := c.schema.Field(f); !ok {
				return bad("no such field", path+".%s[%d]", append(at, i)...)
			}
			if slices.Contains(fields[name][:i], f) {
				return bad("repeated", path+".%s[%d]", append(at, i)...)
			}
		}
	}
	return nil
}

func (b *Bundle) checkAgreements() error {
	if len(b.doc.Agreements) > maxAgreements {
		return bad("too many", "agreements")
	}
	seen := map[string]bool{}
	for i, a := range b.doc.Agreements {
		from, errFrom := time.Parse(time.RFC3339, a.EffectiveFrom)
		to, errTo := time.Parse(time.RFC3339, a.EffectiveTo)
		switch {
		case from.Nanosecond() != 0 || to.Nanosecond() != 0:
			return bad("times of an agreement are whole seconds", "agreements[%d]", i) // see memo.go
		case !idPattern.MatchString(a.ID):
			return bad("not an id", "agreements[%d].id", i)
		case seen[a.ID]:
			return bad("repeated", "agreements[%d].id", i)
		case !slices.Contains([]string{AgreementOwnService, AgreementProcessor, AgreementJointController, AgreementThirdParty}, a.Kind):
			return bad("unknown kind", "agreements[%d].kind", i)
		case !slices.Contains([]string{"draft", "active", "suspended", "terminated"}, a.Status):
			return bad("unknown status", "agreements[%d].status", i)
		case !words(a.CounterpartyName):
			return bad("missing or too long", "agreements[%d].counterparty_name", i)
		case !countryPattern.MatchString(a.Jurisdiction):
			return bad("not a country code", "agreements[%d].jurisdiction", i)
		case !words(a.ContractRef):
			return bad("missing or too long", "agreements[%d].contract_ref", i)
		case !sha256Pattern.MatchString(a.ContractSHA256):
			return bad("not a hex SHA-256", "agreements[%d].contract_sha256", i)
		case errFrom != nil:
			return bad("not an RFC 3339 time", "agreements[%d].effective_from", i)
		case errTo != nil || !from.Before(to):
			return bad("not an RFC 3339 time after effective_from", "agreements[%d].effective_to", i)
		case (a.TransferCountry != "") && !countryPattern.MatchString(a.TransferCountry):
			return bad("not a country code", "agreements[%d].transfer_country", i)
		case (a.TransferCountry != "") != (a.Safeguards != ""):
			return bad("a transfer and its safeguards come together", "agreements[%d].safeguards", i)
		}
		seen[a.ID] = true
		for _, f := range []func(int, Agreement) error{b.checkCounterparty, checkInstruction, b.checkAgreementPurposes} {
			if err := f(i, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkCounterparty: an agreement is with a caller that exists. One that has ended may outlive it.
func (b *Bundle) checkCounterparty(i int, a Agreement) error {
	known := slices.ContainsFunc(b.doc.Callers, func(c Caller) bool { return counterparty(c) == a.CounterpartyID })
	own := slices.ContainsFunc(b.doc.Callers, func(c Caller) bool { return c.ID == a.CounterpartyID && c.Partner == "" })
	switch {
	case !idPattern.MatchString(a.CounterpartyID):
		return bad("not an id", "agreements[%d].counterparty_id", i)
	case a.Status != "terminated" && !known:
		return bad("no caller is this counterparty", "agreements[%d].counterparty_id", i)
	case known && own != (a.Kind == AgreementOwnService):
		return bad("own_service, and no other kind, is with a caller of our own", "agreements[%d].kind", i)
	}
	return nil
}

// counterparty is the id by which agreements name a caller.
func counterparty(c Caller) string {
	if c.Partner != "" {
		return c.Partner
	}
	return c.ID
}

func checkInstruction(i int, a Agreement) error {
	in := a.Instruction
	if in == nil {
		if a.Kind == AgreementProcessor {
			return bad("a processor needs one", "agreements[%d].instruction", i)
		}
		return nil
	}
	switch {
	case !words(in.Confidentiality):
		return bad("missing or too long", "agreements[%d].instruction.confidentiality", i)
	case !words(in.Security):
		return bad("missing or too long", "agreements[%d].instruction.security", i)
	case in.ReturnOrDestroy != "return" && in.ReturnOrDestroy != "destroy":
		return bad("not return or destroy", "agreements[%d].instruction.return_or_destroy", i)
	case in.IncidentHours < 1 || in.IncidentHours > 72:
		return bad("not 1 to 72", "agreements[%d].instruction.incident_hours", i)
	}
	return nil
}

func (b *Bundle) checkAgreementPurposes(i int, a Agreement) error {
	if len(a.Purposes) == 0 {
		return bad("no purposes", "agreements[%d].purposes", i)
	}
	granted := map[string]bool{}
	for j, id := range a.Purposes {
		at := slices.IndexFunc(b.doc.Purposes, func(p Purpose) bool { return p.ID == id })
		switch {
		case at < 0:
			return bad("no such purpose", "agreements[%d].purposes[%d]", i, j)
		case slices.Contains(a.Purposes[:j], id):
			return bad("repeated", "agreements[%d].purposes[%d]", i, j)
		case b.doc.Purposes[at].Ground == verify.GroundLaw:
			return bad("no agreement gives ground law", "agreements[%d].purposes[%d]", i, j)
		case a.Kind == AgreementThirdParty && b.doc.Purposes[at].Ground != verify.GroundConsent:
			return bad("a third party gets data by consent only", "agreements[%d].purposes[%d]", i, j)
		}
		for name, fields := range b.doc.Purposes[at].Fields {
			for _, f := range fields {
				granted[Qualify(name, f)] = true
			}
		}
	}
	if len(a.Fields) == 0 {
		return bad("no fields", "agreements[%d].fields", i)
	}
	if err := b.checkFields(a.Fields, "agreements[%d].fields", i); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(a.Fields)) {
		for j, f := range a.Fields[name] {
			if !granted[Qualify(name, f)] {
				return bad("no purpose of the agreement has this field", "agreements[%d].fields.%s[%d]", i, name, j)
			}
		}
	}
	return nil
}

func (b *Bundle) checkLimits() error {
	l := b.doc.Limits
	switch {
	case l.ConflictsPerMinute < 0 || l.ConflictsPerMinute > 1_000_000:
		return bad("not between 0 and 1,000,000", "limits.conflicts_per_minute")
	case l.LookupsPerMinute < 1 || l.LookupsPerMinute > 1_000_000:
		return bad("out of range", "limits.lookups_per_minute")
	case l.ReadsPerMinute < 1 || l.ReadsPerMinute > 100_000_000:
		return bad("out of range", "limits.reads_per_minute")
	case l.BatchItems < 1 || l.BatchItems > 1000:
		return bad("not 1 to 1000", "limits.batch_items")
	}
	return nil
}
