package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
)

// ledgerStory is a ledger as the broker would have written it, entry by entry: what is allowed is what the
// bundle in force decides, with its evidence, recipient and rules.
type ledgerStory struct {
	t         *testing.T
	entries   []verify.Entry
	exported  map[int64][]byte
	bundle    *policy.Bundle // in force
	version   int64
	published int64 // index
	now       time.Time
}

func (s *ledgerStory) add(e verify.Entry) int64 {
	s.now = s.now.Add(time.Second)
	e.ID, e.Time = fmt.Sprintf("id-%d", len(s.entries)), verify.FormatTime(s.now)
	s.entries = append(s.entries, e)
	return int64(len(s.entries)) - 1
}

// publish puts the default policy in force, changed.
func (s *ledgerStory) publish(change func(*policy.Document)) int64 {
	s.t.Helper()
	raw, err := policy.LoadDir(defaultpolicy.FS)
	if err != nil {
		s.t.Fatal(err)
	}
	var doc policy.Document
	if err := json.Unmarshal(raw, &doc); err != nil {
		s.t.Fatal(err)
	}
	change(&doc)
	if raw, err = json.Marshal(&doc); err != nil {
		s.t.Fatal(err)
	}
	if s.bundle, err = policy.Parse(raw); err != nil {
		s.t.Fatal(err)
	}
	s.version++
	s.exported[s.version] = raw
	s.published = s.add(verify.Entry{Kind: verify.KindPolicyPublished, Bundle: &verify.BundleChange{
		Version: s.version, SHA256: s.bundle.SHA256(), TextSHA256: s.bundle.TextSHA256()}})
	return s.published
}

// given is a consent and the entry that made it so.
type given struct {
	subject string
	change  verify.ConsentChange
	entry   int64
}

// consent gives one on the terms of the policy in force.
func (s *ledgerStory) consent(subject, purpose, id, state string) given {
	s.t.Helper()
	terms, ok := s.bundle.ConsentTerms(purpose)
	if !ok {
		s.t.Fatalf("%s does not rest on consent", purpose)
	}
	g := given{subject: subject, change: verify.ConsentChange{ID: id, Purpose: purpose, Policy: s.version, State: state,
		Fields: terms.Fields, Recipients: terms.Recipients, SeparateDocument: true}}
	g.entry = s.add(verify.Entry{Kind: verify.KindConsentGiven, SubjectRef: ref(subject), Consent: &g.change})
	return g
}

func (s *ledgerStory) withdraw(g given) {
	g.change.State = "ConsentWithdrawn"
	s.add(verify.Entry{Kind: verify.KindConsentWithdrawn, SubjectRef: ref(g.subject), Consent: &g.change})
}

// ask is a read in the making.
type ask struct {
	policy.Request
	subject string
}

func reading(caller, subject, purpose string, fields ...string) ask {
	return ask{policy.Request{
		Action: policy.ActionRead, Caller: caller, Authn: "token", Collection: "profile", Fields: fields,
		Purpose: purpose, Mode: verify.ModeReveal, Subject: policy.Subject{Exists: true},
	}, subject}
}

func (a ask) as(action, mode string) ask {
	a.Action, a.Mode = action, mode
	return a
}

// on rests a on a consent, as it was given.
func (a ask) on(g given) ask {
	a.Consents = []policy.Consent{{
		ID: g.change.ID, Purpose: g.change.Purpose, Policy: g.change.Policy, State: g.change.State,
		Fields: g.change.Fields, Recipients: g.change.Recipients, SeparateDocument: true, Entry: g.entry,
	}}
	return a
}

// entry is the record of a as the bundle in force decides it.
func (s *ledgerStory) entry(a ask) verify.Entry {
	s.t.Helper()
	a.PolicyVersion, a.PolicyEntry, a.Now = s.version, s.published, s.now.Add(time.Second)
	d := s.bundle.Decide(a.Request)
	if !d.Allow {
		s.t.Fatalf("%s for %s: denied: %s", a.Caller, a.Purpose, d.Reason)
	}
	c, _ := s.bundle.Caller(a.Caller)
	e := verify.Entry{
		Kind: verify.KindAccess, Decision: verify.Allow, Sidecar: "s1",
		Caller:    &verify.Caller{ID: c.ID, Kind: c.Kind, Role: c.Role, Authn: a.Authn},
		Recipient: d.Recipient, Collection: a.Collection, Fields: a.Fields, Mode: a.Mode, Purpose: a.Purpose,
		Ground: d.Ground, Evidence: d.Evidence, Policy: s.version, Rules: d.Rules,
	}
	if a.subject != "" {
		e.SubjectRef = ref(a.subject)
	}
	return e
}

func (s *ledgerStory) read(a ask) int64 { return s.add(s.entry(a)) }

// lie records a, changed, as if it had been allowed.
func (s *ledgerStory) lie(a ask, change func(*verify.Entry)) {
	e := s.entry(a)
	change(&e)
	s.add(e)
}

func unchanged(*policy.Document) {}

// TestEveryGroundIsRecheckedAgainstThePolicy exports ledgers and has the program verify them.
func TestEveryGroundIsRecheckedAgainstThePolicy(t *testing.T) {
	order := func(fields ...string) ask { return reading("shop", "ada", "order-fulfilment", fields...) }
	delivery := reading("courier", "ada", "partner-delivery", "name", "phone")
	newsletter := reading("shop", "ada", "newsletter", "email")
	for name, tt := range map[string]struct {
		tell func(*ledgerStory) // from entry 0, where version 1 is published
		want []string
	}{
		"all is well": {func(s *ledgerStory) {
			s.read(order("address", "email"))
			s.read(order("phone").as(policy.ActionRead, verify.ModeMask))
			s.read(reading("shop", "ada", "account", "birthdate").as(policy.ActionVerify, verify.ModeVerify))
			s.read(order("email").as(policy.ActionLookup, verify.ModeLookup))
			s.read(reading("shop", "", "support", "phone").as(policy.ActionLookup, verify.ModeLookup))
			s.read(delivery)
			first := s.consent("ada", "newsletter", "c1", policy.ConsentGiven)
			of := s.read(newsletter.on(first))
			s.add(verify.Entry{Kind: verify.KindAccessFailed, Of: &of, SubjectRef: ref("ada"), Reason: "unavailable"})
			second := s.consent("ada", "newsletter", "c2", policy.RenewedConsentGiven)
			s.read(newsletter.on(second))
			s.publish(func(d *policy.Document) { d.Text.Body += "\nChanged." })
			s.read(newsletter.on(second))
			s.read(delivery)
			s.read(order("email"))
			s.withdraw(second)
			s.add(verify.Entry{Kind: verify.KindAccess, Decision: verify.Deny, Ground: verify.GroundConsent, Reason: "consent-withdrawn"})
		}, nil},
		"a purpose that is not the caller's": {func(s *ledgerStory) {
			s.read(order("email"))
			s.lie(delivery, func(e *verify.Entry) { e.Purpose, e.Evidence.ID = "support", "support" })
			s.lie(order("email"), func(e *verify.Entry) { e.Caller.ID, e.Caller.Role = "courier", "partner" })
		}, []string{"2:policy-not-covered", "3:policy-not-covered"}},
		"a purpose that does not exist": {func(s *ledgerStory) {
			s.lie(order("email"), func(e *verify.Entry) { e.Purpose, e.Evidence.ID = "sale", "sale" })
		}, []string{"1:policy-not-covered"}},
		"a field outside the purpose": {func(s *ledgerStory) {
			s.lie(order("email"), func(e *verify.Entry) { e.Fields = []string{"birthdate", "email"} })
			s.lie(order("email"), func(e *verify.Entry) { e.Collection, e.Fields = "passport", []string{"number"} })
		}, []string{"1:policy-not-covered", "2:policy-not-covered"}},
		"a field outside the consent": {func(s *ledgerStory) {
			g := s.consent("ada", "newsletter", "c1", policy.ConsentGiven)
			s.lie(newsletter.on(g), func(e *verify.Entry) { e.Fields = []string{"phone"} })
		}, []string{"2:consent"}},
		"a field inside a consent that is wider than the purpose": {func(s *ledgerStory) {
			g := s.consent("ada", "newsletter", "c1", policy.ConsentGiven)
			g.change.Fields = append(g.change.Fields, "profile.phone")
			s.entries[g.entry].Consent.Fields = g.change.Fields
			s.lie(newsletter.on(g), func(e *verify.Entry) { e.Fields = []string{"phone"} })
		}, []string{"2:policy-not-covered"}},
		"a mode outside the purpose": {func(s *ledgerStory) {
			s.lie(order("email"), func(e *verify.Entry) { e.Mode = verify.ModeVerify })
		}, []string{"1:policy-not-covered"}},
		"after the withdrawal": {func(s *ledgerStory) {
			g := s.consent("ada", "newsletter", "c1", policy.ConsentGiven)
			s.read(newsletter.on(g))
			s.withdraw(g)
			s.read(newsletter.on(g))
		}, []string{"4:consent-withdrawn"}},
		"on a consent that another has replaced": {func(s *ledgerStory) {
			g := s.consent("ada", "newsletter", "c1", policy.ConsentGiven)
			s.consent("ada", "newsletter", "c2", policy.RenewedConsentGiven)
			s.read(newsletter.on(g))
		}, []string{"3:consent-invalidated"}},
		"on a consent to an older text than still counts": {func(s *ledgerStory) {
			g := s.consent("ada", "newsletter", "c1", policy.ConsentGiven)
			s.publish(func(d *policy.Document) {
				for i := range d.Purposes {
					if d.Purposes[i].ID == "newsletter" {
						d.Purposes[i].ConsentSince = 2
					}
				}
			})
			e := newsletter.on(g)
			e.Consents[0].Policy = 2
			s.read(e)
		}, []string{"3:policy-not-covered"}},
		"the agreement is over": {func(s *ledgerStory) {
			end := s.now.Add(5 * time.Second)
			s.publish(func(d *policy.Document) { d.Agreements[0].EffectiveTo = end.Format(time.RFC3339) })
			s.read(delivery)
			late := s.entry(delivery)
			s.now = end.Add(-2 * time.Second)
			s.read(delivery)
			s.add(late) // at the very end, which is exclusive
		}, []string{"4:policy-not-covered"}},
		"the agreement has not begun": {func(s *ledgerStory) {
			from := s.now.Add(10 * time.Second)
			s.publish(func(d *policy.Document) { d.Agreements[0].EffectiveFrom = from.Format(time.RFC3339) })
			before := s.now
			s.now = from
			early := s.entry(delivery)
			s.now = before
			s.add(early)
		}, []string{"2:policy-not-covered"}},
		"by a version that is not the latest": {func(s *ledgerStory) {
			old := s.entry(order("email"))
			s.publish(unchanged)
			s.add(old)
			old.Policy = 2
			s.add(old)
		}, []string{"2:policy-version", "3:evidence"}},
		"by a version that was never published": {func(s *ledgerStory) {
			s.lie(order("email"), func(e *verify.Entry) { e.Policy = 7 })
		}, []string{"1:policy-version", "1:evidence"}},
		"by another rule": {func(s *ledgerStory) {
			s.lie(order("email"), func(e *verify.Entry) { e.Rules = []string{"ground-1-consent"} })
		}, []string{"1:policy-not-covered"}},
		"to another recipient": {func(s *ledgerStory) {
			s.lie(delivery, func(e *verify.Entry) { e.Recipient.Role = "third_party" })
		}, []string{"1:policy-not-covered"}},
		"by law, which this policy cannot establish": {func(s *ledgerStory) {
			at := s.add(verify.Entry{Kind: "order.approved"})
			s.lie(order("email"), func(e *verify.Entry) {
				e.Ground, e.Purpose, e.Evidence = verify.GroundLaw, "authority-request", &verify.Evidence{Type: "order", ID: "o", Entry: at}
			})
		}, []string{"2:policy-not-covered"}},
		"of nobody": {func(s *ledgerStory) {
			s.read(reading("shop", "", "order-fulfilment", "email"))
		}, []string{"1:entry-members-absent"}},
		"a bundle that was edited": {func(s *ledgerStory) {
			s.publish(unchanged)
			s.read(order("email"))
			s.read(delivery)
			// Now it would cover neither; and it is not asked.
			s.exported[2] = bytes.Replace(s.exported[2], []byte(`"callers":["shop"]`), []byte(`"callers":[]`), 1)
		}, []string{"1:policy-bundle"}},
		"a bundle that was broken": {func(s *ledgerStory) {
			s.publish(unchanged)
			s.read(order("email"))
			s.exported[2] = s.exported[2][:100]
		}, []string{"1:policy-bundle"}},
		"a bundle that was exchanged for another": {func(s *ledgerStory) {
			s.publish(func(d *policy.Document) { d.Text.Body += "\nChanged." })
			s.read(order("email"))
			s.exported[2] = s.exported[1]
		}, []string{"1:policy-bundle"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &ledgerStory{t: t, exported: map[int64][]byte{}, now: epoch}
			s.publish(unchanged)
			tt.tell(s)
			verifyStory(t, s, tt.want)
		})
	}
}

// verifyStory exports s and demands the problems from the program, each as index:code.
func verifyStory(t *testing.T, s *ledgerStory, want []string) {
	t.Helper()
	dir := t.TempDir()
	f := newFixtures(t, dir)
	if err := f.export("log", newLog(s.entries), s.exported); err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", "ledger", filepath.Join(dir, "log"), "--ledger-key", f.ledgerKey}
	wantCode := exitOK
	if len(want) > 0 {
		wantCode = exitFailed
	}
	var out bytes.Buffer
	if code := run(t.Context(), append(args, "--json"), &out, io.Discard); code != wantCode {
		t.Errorf("exit code %d, want %d", code, wantCode)
	}
	var r struct {
		OK       bool
		Access   verify.AccessCounts
		Problems []verify.Problem
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	var got []string
	for _, p := range r.Problems {
		got = append(got, fmt.Sprintf("%d:%s", p.Index, p.Code))
	}
	if !slices.Equal(got, want) || r.OK != (len(want) == 0) {
		t.Errorf("problems %q, want %q\n%+v", got, want, r.Problems)
	}
	if r.OK && (r.Access.Allowed == 0 || r.Access.Rechecked != r.Access.Allowed) {
		t.Errorf("not everything was rechecked: %+v", r.Access)
	}
	if a := r.Access; a.Allowed != a.Rechecked+a.Partly+a.Refuted {
		t.Errorf("the counts do not add up: %+v", a)
	}
	// People are told the same.
	out.Reset()
	if code := run(t.Context(), args, &out, io.Discard); code != wantCode {
		t.Errorf("exit code %d without --json", code)
	}
	for _, p := range r.Problems {
		if line := fmt.Sprintf("PROBLEM     entry %d: %s: ", p.Index, p.Code); !bytes.Contains(out.Bytes(), []byte(line)) {
			t.Errorf("not printed: %s\n%s", line, out.Bytes())
		}
	}
}

func newFixtures(t *testing.T, dir string) fixtures {
	t.Helper()
	f, err := makeKeys(&testscript.Env{WorkDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return f
}
