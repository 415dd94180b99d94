package policy_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
)

// TestDefaultBundle holds the default bundle to design.md section 10.
func TestDefaultBundle(t *testing.T) {
	b := mustDefault(t)
	grounds := map[string]string{}
	for _, p := range b.Purposes() {
		grounds[p.ID] = p.Ground
	}
	want := map[string]string{"account": "service", "order-fulfilment": "service", "support": "service", "partner-delivery": "service",
		"newsletter": "consent", "special-offers": "consent", "subject-access": "law", "authority-request": "law", "statistics": "service"}
	if diff := cmp.Diff(want, grounds); diff != "" {
		t.Errorf("purposes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"passport", "payment", "profile"}, b.Collections()); diff != "" {
		t.Errorf("collections (-want +got):\n%s", diff)
	}
	rolesOf := map[string]string{}
	for _, c := range b.Callers() {
		rolesOf[c.ID] = c.Role
	}
	if diff := cmp.Diff(map[string]string{"shop": "service", "courier": "partner", "privacy": "privacy-officer", "legal": "legal",
		"security": "security", "auditor": "auditor"}, rolesOf); diff != "" {
		t.Errorf("callers (-want +got):\n%s", diff)
	}
	profile, _ := b.Collection("profile")
	for _, name := range []string{"email", "phone"} {
		if f, ok := profile.Field(name); !ok || f.Index != "unique" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	raw := mustLoad(t)
	sum, text := sha256.Sum256(raw), sha256.Sum256([]byte(b.Text().Body))
	if b.SHA256() != hex.EncodeToString(sum[:]) || b.TextSHA256() != hex.EncodeToString(text[:]) || !bytes.Equal(b.Raw(), raw) {
		t.Error("hashes or bytes are not those of the bundle")
	}
	if b.Limits().BatchItems != 1000 || b.Operator().ID != "prototypster" {
		t.Errorf("%+v %+v", b.Limits(), b.Operator())
	}
	terms, ok := b.ConsentTerms("newsletter")
	if diff := cmp.Diff(policy.ConsentTerms{Purpose: "newsletter", IRI: "dpv:DirectMarketing",
		Fields: []string{"profile.email", "profile.name"}, Recipients: []string{"shop"}}, terms); !ok || diff != "" {
		t.Errorf("terms (-want +got):\n%s", diff)
	}
	if _, ok := b.ConsentTerms("account"); ok {
		t.Error("terms of a consent to a purpose that needs none")
	}
	if b.Ground("newsletter") != verify.GroundConsent || b.Ground("x") != "" {
		t.Error("grounds")
	}
	if got := b.PurposeFields("newsletter", "profile"); !slices.Equal(got, []string{"email", "name"}) || b.PurposeFields("x", "profile") != nil {
		t.Errorf("fields: %v", got)
	}
	for _, ok := range []bool{has(b.Caller("x")), has(b.Purpose("x")), has(b.Collection("x")), has(b.Collection(""))} {
		if ok {
			t.Error("something that is not there")
		}
	}
}

func has[T any](_ T, ok bool) bool { return ok }

// TestLoadDirIsCanonical: the same files give the same bytes, and spacing does not matter.
func TestLoadDirIsCanonical(t *testing.T) {
	raw := mustLoad(t)
	v := jsontext.Value(bytes.Clone(raw))
	if err := v.Canonicalize(); err != nil || !bytes.Equal(v, raw) {
		t.Errorf("not canonical: %v", err)
	}
	dir := copyFS(t)
	dir["bundle.json"].Data = append([]byte(" \n"), dir["bundle.json"].Data...)
	again, err := policy.LoadDir(dir)
	if err != nil || !bytes.Equal(again, raw) {
		t.Errorf("spacing changes the bundle: %v", err)
	}
}

func copyFS(t testing.TB) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	err := fs.WalkDir(defaultpolicy.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(defaultpolicy.FS, p)
		out[p] = &fstest.MapFile{Data: b}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLoadDirRefuses(t *testing.T) {
	for name, change := range map[string]func(fstest.MapFS){
		"no bundle.json":    func(d fstest.MapFS) { delete(d, "bundle.json") },
		"no text":           func(d fstest.MapFS) { delete(d, "policy.md") },
		"no rules":          func(d fstest.MapFS) { delete(d, "broker.cedar") },
		"no schema":         func(d fstest.MapFS) { delete(d, "broker.cedarschema") },
		"unknown member":    func(d fstest.MapFS) { d["bundle.json"].Data = []byte(`{"colour":"red"}`) },
		"text in both":      func(d fstest.MapFS) { d["bundle.json"].Data = []byte(`{"text":{"body":"x"}}`) },
		"schema not strict": func(d fstest.MapFS) { d["collections/profile.json"].Data = []byte(`{"a":1,"a":2}`) },
		"text not UTF-8":    func(d fstest.MapFS) { d["policy.md"].Data = []byte("\xff") },
	} {
		dir := copyFS(t)
		change(dir)
		if raw, err := policy.LoadDir(dir); !errors.Is(err, policy.ErrBundle) || raw != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	purpose := func(d *policy.Document, id string) *policy.Purpose {
		return &d.Purposes[slices.IndexFunc(d.Purposes, func(p policy.Purpose) bool { return p.ID == id })]
	}
	for name, tc := range map[string]struct {
		path   string
		change func(*policy.Document)
	}{
		"operator id":              {"operator.id", func(d *policy.Document) { d.Operator.ID = "A B" }},
		"operator name":            {"operator.name", func(d *policy.Document) { d.Operator.Name = " " }},
		"operator contact":         {"operator.contact", func(d *policy.Document) { d.Operator.Contact = "" }},
		"jurisdiction":             {"operator.jurisdiction", func(d *policy.Document) { d.Operator.Jurisdiction = "Russia" }},
		"residency":                {"operator.residency", func(d *policy.Document) { d.Operator.Residency = "x" }},
		"phone region":             {"collections", func(d *policy.Document) { d.Operator.PhoneRegion = "XX" }},
		"text":                     {"text.body", func(d *policy.Document) { d.Text.Body = "" }},
		"text uri":                 {"text.uri", func(d *policy.Document) { d.Text.URI = "nowhere" }},
		"text language":            {"text.language", func(d *policy.Document) { d.Text.Language = "" }},
		"text title":               {"text.title", func(d *policy.Document) { d.Text.Title = "" }},
		"caller id":                {"callers[0].id", func(d *policy.Document) { d.Callers[0].ID = "" }},
		"caller repeated":          {"callers[1].id", func(d *policy.Document) { d.Callers[1].ID = d.Callers[0].ID }},
		"caller kind":              {"callers[0].kind", func(d *policy.Document) { d.Callers[0].Kind = "robot" }},
		"caller role":              {"callers[0].role", func(d *policy.Document) { d.Callers[0].Role = "king" }},
		"partner without company":  {"callers[1].partner", func(d *policy.Document) { d.Callers[1].Partner = "" }},
		"company without partner":  {"callers[0].partner", func(d *policy.Document) { d.Callers[0].Partner = "x" }},
		"purpose id":               {"purposes[0].id", func(d *policy.Document) { d.Purposes[0].ID = "x.y" }},
		"purpose repeated":         {"purposes[1].id", func(d *policy.Document) { d.Purposes[1].ID = d.Purposes[0].ID }},
		"purpose iri":              {"purposes[0].iri", func(d *policy.Document) { d.Purposes[0].IRI = "account" }},
		"sale":                     {"purposes[0].iri", func(d *policy.Document) { d.Purposes[0].IRI = "dpv:SellDataToThirdParties" }},
		"sale in full":             {"purposes[0].iri", func(d *policy.Document) { d.Purposes[0].IRI = "https://w3id.org/dpv#SellInsightsFromData" }},
		"sale in another case":     {"purposes[0].iri", func(d *policy.Document) { d.Purposes[0].IRI = "https://w3id.org/dpv/2.3/sellinsightsfromdata" }},
		"purpose title":            {"purposes[0].title", func(d *policy.Document) { d.Purposes[0].Title = "" }},
		"purpose description":      {"purposes[0].description", func(d *policy.Document) { d.Purposes[0].Description = "" }},
		"ground":                   {"purposes[0].ground", func(d *policy.Document) { d.Purposes[0].Ground = "legitimate-interest" }},
		"consent_since":            {"purposes[0].consent_since", func(d *policy.Document) { d.Purposes[0].ConsentSince = 1 }},
		"retention":                {"purposes[0].retention", func(d *policy.Document) { d.Purposes[0].Retention = "3 years" }},
		"kept for ever":            {"purposes[0].retention", func(d *policy.Document) { d.Purposes[0].Retention = "unlimited" }},
		"no modes":                 {"purposes[0].modes", func(d *policy.Document) { d.Purposes[0].Modes = nil }},
		"unknown mode":             {"purposes[0].modes[0]", func(d *policy.Document) { d.Purposes[0].Modes[0] = "copy" }},
		"repeated mode":            {"purposes[0].modes[1]", func(d *policy.Document) { d.Purposes[0].Modes[1] = d.Purposes[0].Modes[0] }},
		"lookup by consent":        {"purposes[4].modes[2]", func(d *policy.Document) { p := purpose(d, "newsletter"); p.Modes = append(p.Modes, "lookup") }},
		"unknown caller":           {"purposes[0].callers[0]", func(d *policy.Document) { d.Purposes[0].Callers[0] = "x" }},
		"repeated caller":          {"purposes[0].callers[1]", func(d *policy.Document) { d.Purposes[0].Callers = []string{"shop", "shop"} }},
		"partner as caller":        {"purposes[0].callers[0]", func(d *policy.Document) { d.Purposes[0].Callers[0] = "courier" }},
		"auditor as caller":        {"purposes[0].callers[0]", func(d *policy.Document) { d.Purposes[0].Callers[0] = "auditor" }},
		"unknown collection":       {"purposes[0].fields.x", func(d *policy.Document) { d.Purposes[0].Fields["x"] = []string{"y"} }},
		"empty collection":         {"purposes[0].fields.payment", func(d *policy.Document) { d.Purposes[0].Fields["payment"] = []string{} }},
		"unknown field":            {"purposes[0].fields.profile[0]", func(d *policy.Document) { d.Purposes[0].Fields["profile"][0] = "x" }},
		"repeated field":           {"purposes[0].fields.profile[1]", func(d *policy.Document) { d.Purposes[0].Fields["profile"][1] = "userName" }},
		"agreement id":             {"agreements[0].id", func(d *policy.Document) { d.Agreements[0].ID = "" }},
		"agreement repeated":       {"agreements[1].id", func(d *policy.Document) { d.Agreements = append(d.Agreements, d.Agreements[0]) }},
		"agreement kind":           {"agreements[0].kind", func(d *policy.Document) { d.Agreements[0].Kind = "friendship" }},
		"own service with partner": {"agreements[0].kind", func(d *policy.Document) { d.Agreements[0].Kind = policy.AgreementOwnService }},
		"agreement status":         {"agreements[0].status", func(d *policy.Document) { d.Agreements[0].Status = "on" }},
		"counterparty":             {"agreements[0].counterparty_id", func(d *policy.Document) { d.Agreements[0].CounterpartyID = "x" }},
		"counterparty name":        {"agreements[0].counterparty_name", func(d *policy.Document) { d.Agreements[0].CounterpartyName = "" }},
		"agreement jurisdiction":   {"agreements[0].jurisdiction", func(d *policy.Document) { d.Agreements[0].Jurisdiction = "" }},
		"contract":                 {"agreements[0].contract_ref", func(d *policy.Document) { d.Agreements[0].ContractRef = "" }},
		"contract hash":            {"agreements[0].contract_sha256", func(d *policy.Document) { d.Agreements[0].ContractSHA256 = "00" }},
		"from":                     {"agreements[0].effective_from", func(d *policy.Document) { d.Agreements[0].EffectiveFrom = "2025" }},
		"to before from":           {"agreements[0].effective_to", func(d *policy.Document) { d.Agreements[0].EffectiveTo = d.Agreements[0].EffectiveFrom }},
		"transfer, no safeguards":  {"agreements[0].safeguards", func(d *policy.Document) { d.Agreements[0].TransferCountry = "US" }},
		"no instruction":           {"agreements[0].instruction", func(d *policy.Document) { d.Agreements[0].Instruction = nil }},
		"instruction, security":    {"agreements[0].instruction.security", func(d *policy.Document) { d.Agreements[0].Instruction.Security = "" }},
		"instruction, hours":       {"agreements[0].instruction.incident_hours", func(d *policy.Document) { d.Agreements[0].Instruction.IncidentHours = 0 }},
		"instruction, end":         {"agreements[0].instruction.return_or_destroy", func(d *policy.Document) { d.Agreements[0].Instruction.ReturnOrDestroy = "keep" }},
		"instruction, secrecy":     {"agreements[0].instruction.confidentiality", func(d *policy.Document) { d.Agreements[0].Instruction.Confidentiality = "" }},
		"agreement, no purposes":   {"agreements[0].purposes", func(d *policy.Document) { d.Agreements[0].Purposes = nil }},
		"agreement purpose":        {"agreements[0].purposes[0]", func(d *policy.Document) { d.Agreements[0].Purposes[0] = "x" }},
		"agreement on law":         {"agreements[0].purposes[0]", func(d *policy.Document) { d.Agreements[0].Purposes[0] = "authority-request" }},
		"third party by service":   {"agreements[0].purposes[0]", func(d *policy.Document) { d.Agreements[0].Kind = policy.AgreementThirdParty }},
		"agreement, no fields":     {"agreements[0].fields", func(d *policy.Document) { d.Agreements[0].Fields = nil }},
		"agreement, unknown field": {"agreements[0].fields.profile[0]", func(d *policy.Document) { d.Agreements[0].Fields["profile"][0] = "x" }},
		"agreement, field too many": {"agreements[0].fields.profile[3]", func(d *policy.Document) {
			d.Agreements[0].Fields["profile"] = append(d.Agreements[0].Fields["profile"], "email")
		}},
		"lookups":        {"limits.lookups_per_minute", func(d *policy.Document) { d.Limits.LookupsPerMinute = 0 }},
		"reads":          {"limits.reads_per_minute", func(d *policy.Document) { d.Limits.ReadsPerMinute = -1 }},
		"batch":          {"limits.batch_items", func(d *policy.Document) { d.Limits.BatchItems = 1001 }},
		"no collections": {"collections", func(d *policy.Document) { d.Collections = nil }},
		"bad collection": {"collections", func(d *policy.Document) { d.Collections["profile"] = jsontext.Value(`{}`) }},
		"cedar schema":   {"cedar.schema", func(d *policy.Document) { d.Cedar.Schema = "namespace" }},
		"cedar schema, no action": {"cedar.schema", func(d *policy.Document) {
			d.Cedar.Schema = strings.Replace(d.Cedar.Schema, `, "keys-rotate"`, "", 1)
			d.Cedar.Policies = strings.Replace(d.Cedar.Policies, `, PD::Action::"keys-rotate"`, "", 1)
		}},
		"cedar schema, groups": {"cedar.schema", func(d *policy.Document) {
			d.Cedar.Schema = strings.Replace(d.Cedar.Schema, "action write, delete appliesTo", "action all; action write, delete in [all] appliesTo", 1)
		}},
		"cedar schema, entity": {"cedar.schema", func(d *policy.Document) {
			d.Cedar.Schema = strings.Replace(d.Cedar.Schema, "partner: Bool }", "partner: Bool, rank: Long }", 1)
		}},
		"cedar rules":           {"cedar.policies", func(d *policy.Document) { d.Cedar.Policies = "permit" }},
		"cedar rules, none":     {"cedar.policies", func(d *policy.Document) { d.Cedar.Policies = "" }},
		"cedar rule without id": {"cedar.policies[21]", func(d *policy.Document) { d.Cedar.Policies += "\nforbid (principal, action, resource);" }},
		"cedar rule repeated": {"cedar.policies[21]", func(d *policy.Document) {
			d.Cedar.Policies += "\n@id(\"erased\") forbid (principal, action, resource);"
		}},
		"cedar rule, wrong types": {"cedar.policies[21]", func(d *policy.Document) {
			d.Cedar.Policies += "\n@id(\"x\") forbid (principal, action, resource) when { context.now == 1 };"
		}},
	} {
		b, err := changed(t, tc.change)
		var be *policy.BundleError
		if !errors.Is(err, policy.ErrBundle) || !errors.As(err, &be) || b != nil {
			t.Errorf("%s: taken, or %v", name, err)
		} else if be.Path != tc.path {
			t.Errorf("%s: at %q, want %q: %v", name, be.Path, tc.path, err)
		}
	}
}

func TestParseIsStrict(t *testing.T) {
	raw := string(mustLoad(t))
	for name, bad := range map[string]string{
		"empty": "", "not an object": "[]", "null": "null", "cut": raw[:len(raw)/2], "two values": raw + raw,
		"unknown member":  strings.Replace(raw, `"operator":{`, `"operator":{"colour":"red",`, 1),
		"repeated member": strings.Replace(raw, `"operator":{`, `"operator":{"id":"x",`, 1),
		"invalid UTF-8":   strings.Replace(raw, "Prototypster", "Proto\xff", 1),
		"too large":       strings.Repeat(" ", policy.MaxBundleSize) + raw,
	} {
		if b, err := policy.Parse([]byte(bad)); !errors.Is(err, policy.ErrBundle) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCovers(t *testing.T) {
	b := mustDefault(t)
	given := func(evidence string) verify.Given {
		g := verify.Given{Published: policyEntry}
		if evidence == "consent" {
			g.Consent = consentChange()
		}
		return g
	}
	account := entryOf(t, b, read("shop", "account", "email", "name"))
	delivery := entryOf(t, b, read("courier", "partner-delivery", "name"))
	news := entryOf(t, b, consented(read("shop", "newsletter", "email")))
	lookup := entryOf(t, b, with(read("shop", "support", "email"), action(policy.ActionLookup), mode(verify.ModeLookup)))
	for name, e := range map[string]verify.Entry{"purpose": account, "agreement": delivery, "consent": news, "lookup": lookup} {
		if err := b.Covers(e, given(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*verify.Entry){
		"not an access":     func(e *verify.Entry) { e.Kind = verify.KindRecordWritten },
		"denied":            func(e *verify.Entry) { e.Decision = verify.Deny },
		"no caller":         func(e *verify.Entry) { e.Caller = nil },
		"no evidence":       func(e *verify.Entry) { e.Evidence = nil },
		"no recipient":      func(e *verify.Entry) { e.Recipient = nil },
		"no time":           func(e *verify.Entry) { e.Time = "today" },
		"unknown caller":    func(e *verify.Entry) { e.Caller.ID = "x" },
		"another role":      func(e *verify.Entry) { e.Caller.Role = policy.RoleLegal },
		"another kind":      func(e *verify.Entry) { e.Caller.Kind = "person" },
		"another purpose":   func(e *verify.Entry) { e.Purpose = "account" },
		"unknown purpose":   func(e *verify.Entry) { e.Purpose = "x" },
		"another field":     func(e *verify.Entry) { e.Fields = []string{"email"} },
		"no fields":         func(e *verify.Entry) { e.Fields = nil },
		"another mode":      func(e *verify.Entry) { e.Mode = verify.ModeVerify },
		"no mode":           func(e *verify.Entry) { e.Mode = "" },
		"another ground":    func(e *verify.Entry) { e.Ground = verify.GroundConsent },
		"another recipient": func(e *verify.Entry) { e.Recipient.Role = policy.RecipientController },
		"evidence, type":    func(e *verify.Entry) { e.Evidence.Type = verify.EvidencePurpose },
		"evidence, id":      func(e *verify.Entry) { e.Evidence.ID = "x" },
		"evidence, entry":   func(e *verify.Entry) { e.Evidence.Entry++ },
		"other rules":       func(e *verify.Entry) { e.Rules = []string{"ground-2-service"} },
		"agreement over":    func(e *verify.Entry) { e.Time = verify.FormatTime(time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC)) },
		"agreement not yet": func(e *verify.Entry) { e.Time = verify.FormatTime(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)) },
	} {
		e := entryOf(t, b, read("courier", "partner-delivery", "name"))
		change(&e)
		if err := b.Covers(e, given("agreement")); !errors.Is(err, policy.ErrNotCovered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Covers(delivery, verify.Given{Published: policyEntry + 1}); !errors.Is(err, policy.ErrNotCovered) {
		t.Errorf("another bundle's entry: %v", err)
	}
}

// consentChange is aConsent as the ledger has it.
func consentChange() *verify.ConsentChange {
	c := aConsent(read("shop", "newsletter"))
	return &verify.ConsentChange{ID: c.ID, Purpose: c.Purpose, Policy: c.Policy, State: c.State, Fields: c.Fields,
		Recipients: c.Recipients, NotAfter: verify.FormatTime(c.NotAfter), SeparateDocument: true}
}

func TestCoversAsksWithTheConsentThatWasGiven(t *testing.T) {
	since := mustChange(t, func(d *policy.Document) {
		for i := range d.Purposes {
			if d.Purposes[i].ID == "newsletter" {
				d.Purposes[i].ConsentSince = 3
			}
		}
	})
	e := entryOf(t, since, consented(read("shop", "newsletter", "email")))
	for name, tt := range map[string]struct {
		change func(*verify.ConsentChange)
		ok     bool
	}{
		"as given":          {func(*verify.ConsentChange) {}, true},
		"renewed":           {func(c *verify.ConsentChange) { c.State = policy.RenewedConsentGiven }, true},
		"without an end":    {func(c *verify.ConsentChange) { c.NotAfter = "" }, true},
		"over":              {func(c *verify.ConsentChange) { c.NotAfter = e.Time }, false},
		"unreadable end":    {func(c *verify.ConsentChange) { c.NotAfter = "x" }, false},
		"under an old text": {func(c *verify.ConsentChange) { c.Policy = 2 }, false},
		"withdrawn":         {func(c *verify.ConsentChange) { c.State = "ConsentWithdrawn" }, false},
		"other purpose":     {func(c *verify.ConsentChange) { c.Purpose = "special-offers" }, false},
		"other field":       {func(c *verify.ConsentChange) { c.Fields = []string{"profile.name"} }, false},
		"plain field":       {func(c *verify.ConsentChange) { c.Fields = []string{"email"} }, false},
		"other recipient":   {func(c *verify.ConsentChange) { c.Recipients = []string{"courier"} }, false},
		"with other papers": {func(c *verify.ConsentChange) { c.SeparateDocument = false }, false},
		"other consent":     {func(c *verify.ConsentChange) { c.ID = "c-2" }, false},
	} {
		c := consentChange()
		tt.change(c)
		if err := since.Covers(e, verify.Given{Published: policyEntry, Consent: c}); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := since.Covers(e, verify.Given{Published: policyEntry}); !errors.Is(err, policy.ErrNotCovered) {
		t.Errorf("no consent: %v", err)
	}
}

// A rule may ask for a justification, of which an entry shows no more than that it may be in the detail, and
// a lookup that found nobody not even that.
func TestCoversWhenARuleAsksForAJustification(t *testing.T) {
	b := mustChange(t, func(d *policy.Document) {
		d.Cedar.Policies += `@id("justify") forbid (principal, action in [PD::Action::"read", PD::Action::"lookup"], resource is PD::Record) when { context.purpose == "support" } unless { context.justified };
			@id("unjustified") permit (principal is PD::Caller, action == PD::Action::"read", resource is PD::Record) when { !context.justified && context.ground == "service" && context has registration && !principal.partner &&
			context.registration.purpose == context.purpose && context.registration.callers.contains(principal) && context.registration.fields.containsAll(context.fields) };`
	})
	justified := func(r *policy.Request) { r.Justification = true }
	found := with(read("shop", "support", "email"), action(policy.ActionLookup), mode(verify.ModeLookup), justified)
	for name, tt := range map[string]struct {
		request policy.Request
		commit  string
		subject string
		ok      bool
	}{
		"a read, justified":                  {with(read("shop", "support", "email"), justified), "c", "s", true},
		"a read without detail":              {with(read("shop", "support", "email"), justified), "", "s", false},
		"a read with another detail":         {read("shop", "account", "email"), "c", "s", true},
		"another read without detail":        {read("shop", "account", "email"), "", "s", true},
		"a lookup, justified":                {found, "c", "s", true},
		"a lookup that found nobody":         {found, "", "", true},
		"a lookup of somebody, undocumented": {found, "", "s", false},
	} {
		e := entryOf(t, b, tt.request)
		e.DetailCommit, e.SubjectRef = tt.commit, tt.subject
		if err := b.Covers(e, verify.Given{Published: policyEntry}); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParse: nothing panics; on error the bundle is nil; what parses is of the bytes given and decides.
func FuzzParse(f *testing.F) {
	f.Add(mustLoad(f))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"operator":{"id":"x"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := policy.Parse(raw)
		if err != nil {
			if b != nil || !errors.Is(err, policy.ErrBundle) {
				t.Fatalf("%v, %v", b, err)
			}
			return
		}
		if !bytes.Equal(b.Raw(), raw) {
			t.Fatal("other bytes")
		}
		b.Decide(read("shop", "account", "email"))
	})
}

// FuzzRules: rules in any text are taken or refused, and what is taken never lets an auditor read.
func FuzzRules(f *testing.F) {
	doc := mustDefault(f).Document()
	f.Add(doc.Cedar.Policies)
	f.Add(`@id("x") permit (principal, action, resource);`)
	f.Add(`@id("x") permit (principal is PD::Caller, action == PD::Action::"read", resource) when { 9223372036854775807 + 1 > 0 };`)
	f.Add(strings.Repeat("(", 2000))
	f.Fuzz(func(t *testing.T, rules string) {
		if !utf8.ValidString(rules) {
			t.Skip("no JSON holds it")
		}
		b, err := changed(t, func(d *policy.Document) { d.Cedar.Policies = rules })
		if err != nil {
			return
		}
		if d := b.Decide(read("auditor", "account", "email")); d.Allow {
			t.Fatal("an auditor reads")
		}
	})
}
