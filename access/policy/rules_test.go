package policy

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
	"github.com/google/go-cmp/cmp"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// mustDefaultText reads the default bundle's directory; internal tests cannot import the external kit.
func mustDefaultText(t testing.TB) Document {
	t.Helper()
	raw, err := LoadDir(os.DirFS("../../deploy/policy"))
	if err != nil {
		t.Fatal(err)
	}
	var doc Document
	if err := decodeDocument(raw, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func mustBundle(t testing.TB, doc Document) *Bundle {
	t.Helper()
	b, err := parseDocument(doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parseDocument(doc Document) (*Bundle, error) {
	raw, err := encodeDocument(doc)
	if err != nil {
		return nil, err
	}
	return Parse(raw)
}

// askRole puts a reading to the default rules as a caller in a role.
func askRole(t testing.TB, b *Bundle, role, action string, state int, ctx cedar.RecordMap) (bool, []string) {
	t.Helper()
	who := stranger(role)
	entities := maps.Clone(b.unknown.entities[state])
	entities[who.uid] = cedar.Entity{UID: who.uid, Attributes: cedar.NewRecord(callerAttributes(who.Caller))}
	allow, rules, err := b.engine.ask(entities, cedar.Request{
		Principal: who.uid, Action: actionUID(action), Resource: b.unknown.record, Context: cedar.NewRecord(ctx)})
	if err != nil {
		t.Fatal(err)
	}
	return allow, rules
}

func stranger(role string) *caller {
	c := Caller{ID: "probe", Kind: "service", Role: role}
	if role == RolePartner {
		c.Partner = "probe"
	}
	return &caller{Caller: c, uid: cedar.NewEntityUID(typeCaller, "probe")}
}

// TestVerifiedCases repeats the cases of standards.md section 8.3 and their kin for the rules added since.
func TestVerifiedCases(t *testing.T) {
	b := mustBundle(t, mustDefaultText(t))
	probe := stranger(RoleService).uid
	evidence := func(ground, kind string, change cedar.RecordMap) cedar.RecordMap {
		ctx := probeContext(ground)
		ctx[cedar.String(kind)] = probeEvidence(kind, probe, change)
		return ctx
	}
	set := func(ctx cedar.RecordMap, key cedar.String, v cedar.Value) cedar.RecordMap {
		ctx[key] = v
		return ctx
	}
	consent := func(change cedar.RecordMap) cedar.RecordMap { return evidence(verify.GroundConsent, "consent", change) }
	order := func(change cedar.RecordMap) cedar.RecordMap { return evidence(verify.GroundLaw, "order", change) }

	for _, tc := range []struct {
		name  string
		role  string
		state int
		ctx   cedar.RecordMap
		allow bool
		rules []string
	}{
		{"consent given", RoleService, 0, consent(nil), true, []string{"ground-1-consent"}},
		{"consent withdrawn", RoleService, 0, consent(cedar.RecordMap{"status": cedar.String("ConsentWithdrawn")}), false, nil},
		{"purpose not consented", RoleService, 0, consent(cedar.RecordMap{"purposes": cedar.NewSet(cedar.String("another"))}), false, nil},
		{"sale, even with consent", RoleService, 0, set(consent(nil), "purposeIri", cedar.String("dpv:SellDataToThirdParties")), false, []string{"never-sell"}},
		{"order with two approvals", RoleLegal, 0, order(nil), true, []string{"ground-3-law"}},
		{"order with one approval", RoleLegal, 0, order(cedar.RecordMap{"approvals": cedar.Long(1)}), false, nil},
		{"ground without evidence", RoleService, 0, probeContext(verify.GroundConsent), false, nil},

		{"consent renewed", RoleService, 0, consent(cedar.RecordMap{"status": cedar.String(RenewedConsentGiven)}), true, []string{"ground-1-consent"}},
		{"sale named by id", RoleService, 0, set(consent(nil), "purpose", cedar.String("dpv:SellInsightsFromData")), false, []string{"never-sell"}},
		{"registered purpose", RoleService, 0, evidence(verify.GroundService, "registration", nil), true, []string{"ground-2-service"}},
		{"agreement", RolePartner, 0, evidence(verify.GroundService, "agreement", nil), true, []string{"ground-2-service-agreement"}},
		{"partner by registration", RolePartner, 0, evidence(verify.GroundService, "registration", nil), false, []string{"partner-without-agreement"}},
		{"partner by consent alone", RolePartner, 0, consent(nil), false, []string{"partner-without-agreement"}},
		{"third party by agreement", RolePartner, 0, set(evidence(verify.GroundService, "agreement", nil), "recipient", probeRecipient(RecipientThirdParty)), false, []string{"never-transfer"}},
		{"third party by consent", RolePartner, 0, set(withEvidence(verify.GroundConsent, probe, "consent", "agreement"), "recipient", probeRecipient(RecipientThirdParty)), true, []string{"ground-1-consent"}},
		{"order without justification", RoleLegal, 0, set(order(nil), "justified", cedar.False), false, nil},
		{"order in another role", RoleService, 0, order(nil), false, nil},
		{"rights request", RolePrivacyOfficer, 0, evidence(verify.GroundLaw, "rightsRequest", nil), true, []string{"ground-3-law-rights-request"}},
		{"rights request to erase", RolePrivacyOfficer, 0, evidence(verify.GroundLaw, "rightsRequest", cedar.RecordMap{"kind": cedar.String("erase")}), false, nil},
		{"restricted, consent", RoleService, stateRestricted, consent(nil), false, []string{"restricted"}},
		{"restricted, law", RoleLegal, stateRestricted, order(nil), true, []string{"ground-3-law"}},
		{"erased, law", RoleLegal, stateErased, order(nil), false, []string{"erased"}},
		{"no fields", RoleService, 0, set(consent(nil), "fields", cedar.NewSet()), false, []string{"empty-field-list"}},
		{"security", RoleSecurity, 0, consent(nil), false, []string{"no-data-for-security-and-auditors"}},
	} {
		allow, rules := askRole(t, b, tc.role, ActionRead, tc.state, tc.ctx)
		if len(rules) == 0 {
			rules = nil
		}
		if allow != tc.allow || !slices.Equal(rules, tc.rules) {
			t.Errorf("%s: %v %v, want %v %v", tc.name, allow, rules, tc.allow, tc.rules)
		}
	}
}

// TestProbesAreNotVacuous: each piece of evidence the gate spoils is permitted while it is sound.
func TestProbesAreNotVacuous(t *testing.T) {
	b := mustBundle(t, mustDefaultText(t))
	role := map[string]string{"consent": RoleService, "registration": RoleService, "agreement": RolePartner,
		"order": RoleLegal, "rightsRequest": RolePrivacyOfficer}
	for kind, ground := range groundOf() {
		ctx := withEvidence(ground, stranger(role[kind]).uid, kind)
		if allow, rules := askRole(t, b, role[kind], ActionRead, stateNeutral, ctx); !allow {
			t.Errorf("%s: denied by %v", kind, rules)
		}
	}
	seen := map[string]bool{}
	for _, p := range probes(stranger(RoleService).uid) {
		seen[p.promise] = true
	}
	if len(seen) < 30 {
		t.Errorf("only %d kinds of probes", len(seen))
	}
}

// TestGate: a bundle whose rules break a promise is refused, and the error names the promise.
func TestGate(t *testing.T) {
	drop := func(id string) func(string) string {
		return func(s string) string {
			from := strings.Index(s, `@id("`+id+`")`)
			to := from + strings.Index(s[from:], "};") + 2
			return s[:from] + s[to:]
		}
	}
	replace := func(old, by string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				t.Fatalf("no %q in the default rules", old)
			}
			return strings.ReplaceAll(s, old, by)
		}
	}
	add := func(rule string) func(string) string { return func(s string) string { return s + "\n" + rule } }
	for name, tc := range map[string]struct {
		edit    func(string) string
		promise string
	}{
		"sale allowed":           {drop("never-sell"), "never sold"},
		"one sale allowed":       {replace(`context.purposeIri == "dpv:SellInsightsFromData" ||`, ""), "never sold"},
		"transfer allowed":       {drop("never-transfer"), "third party"},
		"partners let in":        {drop("partner-without-agreement"), "agreement"},
		"restriction ignored":    {drop("restricted"), "restriction"},
		"restriction for some":   {replace(`resource.subject.restricted && context.ground != "law"`, `resource.subject.restricted && context.ground == "consent"`), "restriction"},
		"erasure ignored":        {drop("erased"), "erased"},
		"empty lists":            {drop("empty-field-list"), "empty list"},
		"auditors read":          {replace(`when { principal.roles.contains("security") || principal.roles.contains("auditor") };`, `when { principal.roles.contains("security") };`), "auditor"},
		"withdrawn counts":       {replace(`context.consent.status == "RenewedConsentGiven"`, `context.consent.status == "ConsentWithdrawn"`), "consent not given"},
		"window ignored":         {replace(`context.consent.window.notBefore <= context.now && context.now < context.consent.window.notAfter`, "true"), "consent"},
		"fields ignored":         {replace("context.consent.fields.containsAll(context.fields) &&", ""), "one field short"},
		"one approval":           {replace("context.order.approvals >= 2", "context.order.approvals >= 1"), "approved once"},
		"self-approved":          {replace("&& !context.order.selfApproved", ""), "approved by the requester"},
		"back door for a caller": {add(`@id("x") permit (principal == PD::Caller::"shop", action == PD::Action::"lookup", resource);`), "no permit without evidence"},
		"back door for a role":   {add(`@id("x") permit (principal is PD::Caller, action == PD::Action::"read", resource) when { principal.roles.contains("legal") };`), "no permit without evidence"},
		"exception to sale":      {replace(`context.purposeIri == "dpv:SellDataToThirdParties" ||`, `(context.purposeIri == "dpv:SellDataToThirdParties" && principal != PD::Caller::"shop") ||`), "never sold"},
		"a fourth ground":        {add(`@id("x") permit (principal is PD::Caller, action == PD::Action::"read", resource) when { context.ground == "legitimate-interest" && context has registration };`), ""},
	} {
		doc := mustDefaultText(t)
		doc.Cedar.Policies = tc.edit(doc.Cedar.Policies)
		b, err := parseDocument(doc)
		if !errors.Is(err, ErrBundle) || b != nil {
			t.Errorf("%s: taken", name)
		} else if !strings.Contains(err.Error(), tc.promise) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestForbidsMayBeAdded: an operator may add forbids freely, and they hold.
func TestForbidsMayBeAdded(t *testing.T) {
	doc := mustDefaultText(t)
	doc.Cedar.Policies += "\n" + `@id("no-weak-authn") forbid (principal, action in [PD::Action::"read"], resource) when { context.authn == "token" };`
	b := mustBundle(t, doc)
	r := Request{Action: ActionRead, Caller: "shop", Authn: "token", Collection: "profile", Fields: []string{"email"}, Purpose: "account",
		Mode: verify.ModeReveal, Subject: Subject{Exists: true}, Now: probeTime}
	want := Decision{Ground: verify.GroundService, Recipient: &verify.Recipient{ID: "prototypster", Role: RecipientController, Jurisdiction: "RU"},
		Reason: ReasonForbiddenByRule, Rules: []string{"no-weak-authn"}}
	if diff := cmp.Diff(want, b.Decide(r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.Authn = "mtls"
	if d := b.Decide(r); !d.Allow {
		t.Errorf("denied: %+v", d)
	}
	// The forbid speaks before consents do, so they cannot be probed through it.
	r.Authn, r.Purpose = "token", "newsletter"
	without := b.Decide(r)
	r.Consents = []Consent{{ID: "c", Purpose: "newsletter", State: ConsentGiven, Fields: []string{"profile.email"},
		Recipients: []string{"shop"}, SeparateDocument: true}}
	if diff := cmp.Diff(without, b.Decide(r)); diff != "" || without.Reason != ReasonForbiddenByRule {
		t.Errorf("with a consent (-without +with):\n%s", diff)
	}
}

// TestEngineErrorsDeny: a forbid that cannot be evaluated is skipped by Cedar; here it denies.
func TestEngineErrorsDeny(t *testing.T) {
	doc := mustDefaultText(t)
	b := mustBundle(t, doc)
	list, err := cedar.NewPolicyListFromBytes("", []byte(`forbid (principal, action, resource) when { context.nothing };`))
	if err != nil {
		t.Fatal(err)
	}
	for action, rules := range b.engine.byAction {
		b.engine.byAction[action] = append(rules, rule{"broken", list[0]})
	}
	for _, r := range []Request{
		{Action: ActionRead, Caller: "shop", Collection: "profile", Fields: []string{"email"}, Purpose: "account", Mode: verify.ModeReveal, Now: probeTime},
		{Action: ActionRead, Caller: "shop", Collection: "profile", Fields: []string{"email"}, Purpose: "newsletter", Mode: verify.ModeReveal, Now: probeTime},
		{Action: ActionWrite, Caller: "shop", Collection: "profile", Now: probeTime},
		{Action: ActionKeysRead, Caller: "security", Now: probeTime},
	} {
		if diff := cmp.Diff(Decision{Reason: ReasonPolicyError}, b.Decide(r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", r.Action, diff)
		}
	}
	// A request that does not fit the schema is not put to the rules at all.
	if _, _, err := b.engine.ask(nil, cedar.Request{Action: actionUID(ActionRead)}); !errors.Is(err, errEngine) {
		t.Errorf("invalid request: %v", err)
	}
}

// TestScopedRulesAgree: taking the action scope off the rules of an action changes no answer.
func TestScopedRulesAgree(t *testing.T) {
	b := mustBundle(t, mustDefaultText(t))
	for _, role := range roles() {
		who := stranger(role)
		for state := range 3 {
			entities := maps.Clone(b.unknown.entities[state])
			entities[who.uid] = cedar.Entity{UID: who.uid, Attributes: cedar.NewRecord(callerAttributes(who.Caller))}
			var contexts []cedar.RecordMap
			for kind, ground := range groundOf() {
				contexts = append(contexts, withEvidence(ground, who.uid, kind))
			}
			for _, p := range probes(who.uid) {
				contexts = append(contexts, p.ctx)
			}
			for _, ctx := range contexts {
				for _, action := range readActions() {
					req := cedar.Request{Principal: who.uid, Action: actionUID(action), Resource: b.unknown.record, Context: cedar.NewRecord(ctx)}
					got, rules, err := b.engine.ask(entities, req)
					want, diag := cedar.Authorize(b.engine.rules, entities, req)
					var ids []string
					for _, r := range diag.Reasons {
						ids = append(ids, string(r.PolicyID))
					}
					slices.Sort(ids)
					if err != nil || got != bool(want) || !slices.Equal(rules, ids) {
						t.Fatalf("%s %s: %v %v, want %v %v, %v", role, action, got, rules, want, ids, err)
					}
				}
			}
		}
	}
}
