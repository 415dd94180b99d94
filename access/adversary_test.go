package access_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault/kv"
)

// row reads, and set replaces, a row of the store behind the broker's back, as who holds the disk could.
func (w *world) row(key []byte) (value []byte) {
	w.t.Helper()
	err := w.store.View(w.t.Context(), func(r kv.Reader) error {
		v, err := r.Get(key)
		if err == nil {
			value = v[0]
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return value
}

func (w *world) set(key, value []byte) {
	w.t.Helper()
	if err := w.store.Update(w.t.Context(), func(wr kv.Writer) error { wr.Set(key, value); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

// publish changes the policy in force.
func (w *world) publish(change func(*policy.Document)) []byte {
	w.t.Helper()
	_, raw, err := w.Policy(w.t.Context(), w.as("privacy"))
	if err != nil {
		w.t.Fatal(err)
	}
	next := changed(w.t, raw, change)
	if _, err := w.PublishPolicy(w.t.Context(), w.as("privacy"), next); err != nil {
		w.t.Fatal(err)
	}
	return next
}

func changed(t *testing.T, raw []byte, change func(*policy.Document)) []byte {
	t.Helper()
	b, err := policy.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	doc := b.Document()
	change(&doc)
	out, err := json.Marshal(&doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestARestrictedPersonsRecordsStayAsTheyAre(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	if _, err := w.SetRestriction(t.Context(), w.as("privacy"), id, true, "disputed"); err != nil {
		t.Fatal(err)
	}
	one := uint64(1)
	q := access.WriteRequest{Request: w.as("shop"), Subject: id, Collection: "profile", IfMatch: &one}
	for name, write := range map[string]func() error{
		"put": func() error { q.Body = []byte(someone); _, err := w.PutRecord(t.Context(), q); return err },
		"patch": func() error {
			q.Body = []byte(`{"displayName":"x"}`)
			_, err := w.PatchRecord(t.Context(), q)
			return err
		},
		"delete": func() error { q.Body = nil; _, err := w.DeleteRecord(t.Context(), q); return err },
	} {
		var denied *access.DeniedError
		before := w.size()
		if err := write(); !errors.As(err, &denied) || denied.Reason != "subject-restricted" {
			t.Errorf("%s: %v", name, err)
		}
		if e := w.entries(before); len(e) != 1 || e[0].Decision != verify.Deny {
			t.Errorf("%s: the denial is not on record", name)
		}
	}
}

// Whether a unique value is taken tells as much as a lookup does.
func TestAConflictIsOnRecordAndHasABudget(t *testing.T) {
	w := newWorld(t)
	w.mustCreate(someone)
	w.publish(func(d *policy.Document) { d.Limits.ConflictsPerMinute = 3 })
	before := w.size()
	var taken, limited int
	for i := range 6 {
		_, err := w.CreateSubject(t.Context(), access.CreateRequest{
			Request: w.as("shop"), Records: map[string][]byte{"profile": fmt.Appendf(nil, `{"email":"someone@example.org","displayName":"%d"}`, i)},
		})
		switch {
		case errors.Is(err, access.ErrNotUnique):
			taken++
		case errors.Is(err, access.ErrLimited):
			limited++
		default:
			t.Errorf("%v", err)
		}
	}
	if taken != 3 || limited != 3 {
		t.Errorf("%d times told that the value is taken, %d times limited", taken, limited)
	}
	e := w.entries(before)
	if len(e) != taken || e[0].Mode != verify.ModeLookup || e[0].Reason != "not-unique" || len(e[0].Fields) != 1 {
		t.Errorf("%d entries: %+v", len(e), e)
	}
}

func TestPublishingAPolicyGivesNobodyANewBudget(t *testing.T) {
	w := newWorld(t)
	lookups := 0
	for i := range 4 {
		w.publish(func(d *policy.Document) {
			d.Limits.LookupsPerMinute = 2
			d.Text.Title = "Privacy policy " + strings.Repeat("i", i+1)
		})
		for {
			_, err := w.Lookup(t.Context(), access.LookupRequest{
				Request: w.as("shop"), Purpose: "support", Collection: "profile", Field: "email", Value: "a@example.org",
			})
			if err != nil {
				break
			}
			lookups++
		}
	}
	if lookups != 2 {
		t.Errorf("%d lookups at 2 a minute", lookups)
	}
}

func TestACallerThatIsDeniedAllTheTimeIsToldToWait(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	before := w.size()
	limited := false
	for range 4000 {
		if _, err := w.Describe(t.Context(), w.as("courier"), id); errors.Is(err, access.ErrLimited) {
			limited = true
			break
		}
	}
	if !limited {
		t.Errorf("%d denials were recorded", w.size()-before)
	}
}

// Who can write into the store must not be able to decide.
func TestAPolicyThatTheLedgerDoesNotHoldIsRefused(t *testing.T) {
	w := newWorld(t)
	head, info, bundle := w.row([]byte("ph")), w.row([]byte("pi\x00\x00\x00\x00\x00\x00\x00\x01")), w.row([]byte("pb\x00\x00\x00\x00\x00\x00\x00\x01"))
	other := changed(t, bundle, func(d *policy.Document) { d.Text.Title = "Another" })
	b, err := policy.Parse(other)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Replace(head, []byte(parsedSHA(t, head)), []byte(b.SHA256()), 1)
	w.set([]byte("ph"), forged)
	w.set([]byte("pb\x00\x00\x00\x00\x00\x00\x00\x01"), other)
	if _, err := access.New(t.Context(), w.config); !errors.Is(err, access.ErrIntegrity) {
		t.Errorf("a forged policy: %v", err)
	}
	w.set([]byte("ph"), head)
	w.set([]byte("pi\x00\x00\x00\x00\x00\x00\x00\x01"), info)
	w.set([]byte("pb\x00\x00\x00\x00\x00\x00\x00\x01"), bundle)

	w.publish(func(d *policy.Document) { d.Text.Title = "Newer" })
	w.mustCreate(someone) // an entry that rests on version 2
	w.set([]byte("ph"), head)
	if _, err := access.New(t.Context(), w.config); !errors.Is(err, access.ErrIntegrity) {
		t.Errorf("an older policy: %v", err)
	}
}

func parsedSHA(t *testing.T, row []byte) string {
	t.Helper()
	var v access.PolicyVersion
	if err := json.Unmarshal(row, &v); err != nil {
		t.Fatal(err)
	}
	return v.SHA256
}

// An index row that was pointed at another person must not name that person.
func TestAnIndexRowIsBelievedOnlyWhenTheRecordSaysTheSame(t *testing.T) {
	w := newWorld(t)
	w.mustCreate(someone)
	victim := w.mustCreate(`{"email":"victim@example.org"}`)
	var key []byte
	err := w.store.View(t.Context(), func(r kv.Reader) error {
		pairs, err := r.Scan([]byte("uprofile\x00email\x00"), nil, 10)
		for _, p := range pairs {
			if !bytes.Equal(p.Value, victim[:]) {
				key = p.Key
			}
		}
		return err
	})
	if err != nil || key == nil {
		t.Fatal(err)
	}
	w.set(key, victim[:])
	got, err := w.Lookup(t.Context(), access.LookupRequest{
		Request: w.as("shop"), Purpose: "support", Collection: "profile", Field: "email", Value: "someone@example.org",
	})
	if !errors.Is(err, access.ErrIntegrity) || len(got.Subjects) != 0 {
		t.Errorf("%v, %d subjects", err, len(got.Subjects))
	}
}

func TestAConsentCoversWhatThePersonWasShown(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	w.publish(func(d *policy.Document) {
		for i := range d.Purposes {
			if d.Purposes[i].ID == "newsletter" {
				d.Purposes[i].Fields["profile"] = append(d.Purposes[i].Fields["profile"], "phone")
			}
		}
	})
	give := func(version int64) error {
		_, err := w.GiveConsent(t.Context(), access.ConsentRequest{
			Request: w.as("shop"), Subject: id, Purpose: "newsletter", Policy: version, SeparateDocument: true,
		})
		return err
	}
	if err := give(1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read("shop", "newsletter", id, "email"); err != nil {
		t.Errorf("a field that was agreed to: %v", err)
	}
	if _, err := w.read("shop", "newsletter", id, "phone"); !errors.Is(err, access.ErrDenied) {
		t.Errorf("a field that a later version added: %v", err)
	}
	if err := give(2); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read("shop", "newsletter", id, "phone"); err != nil {
		t.Errorf("agreed to again: %v", err)
	}
	for _, version := range []int64{-1, 3} {
		if err := give(version); !errors.Is(err, access.ErrInvalid) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

func TestWithdrawingAnyConsentForAPurposeEndsThemAll(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	first := w.mustConsent(id, "newsletter")
	second := w.mustConsent(id, "newsletter")
	if second.State != "RenewedConsentGiven" {
		t.Errorf("the second is %s", second.State)
	}
	if _, err := w.WithdrawConsent(t.Context(), w.as("shop"), first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read("shop", "newsletter", id, "email"); !errors.Is(err, access.ErrDenied) {
		t.Errorf("after the first was withdrawn: %v", err)
	}
}

// However many consents a person has given, the last one can be withdrawn.
func TestConsentsNeverFillUpSoThatOneCannotBeWithdrawn(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	var last access.Consent
	for {
		c, err := w.GiveConsent(t.Context(), access.ConsentRequest{
			Request: w.as("shop"), Subject: id, Purpose: "newsletter", SeparateDocument: true, Language: "en", NoticeSHA256: strings.Repeat("a", 64),
		})
		if err != nil {
			break
		}
		last = c
	}
	if got, err := w.WithdrawConsent(t.Context(), w.as("shop"), last.ID); err != nil || got.State != "ConsentWithdrawn" {
		t.Errorf("%v", err)
	}
}

// A digest of a body is as good as its personal data to who can guess that.
func TestNoDigestOfABodyIsStored(t *testing.T) {
	w := newWorld(t)
	fingerprint := [32]byte{0xca, 0xfe, 0xba, 0xbe, 0xca, 0xfe, 0xba, 0xbe}
	_, err := w.CreateSubject(t.Context(), access.CreateRequest{
		Request: w.as("shop"), Records: map[string][]byte{"profile": []byte(someone)},
		Idempotency: access.Idempotency{Key: "k", Route: "r", Fingerprint: fingerprint},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = w.store.View(t.Context(), func(r kv.Reader) error {
		pairs, err := r.Scan(nil, nil, 10000)
		for _, p := range pairs {
			for _, b := range [][]byte{p.Key, p.Value} {
				if bytes.Contains(b, fingerprint[:8]) || bytes.Contains(b, []byte("cafebabecafebabe")) {
					t.Errorf("row %q holds the digest", p.Key[:1])
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A write of two collections is decided by one policy, whatever is published meanwhile.
func TestAWriteIsDecidedByOnePolicy(t *testing.T) {
	w := newWorld(t)
	published := false
	config := w.config
	config.Observer = observer{decided: func(action string) {
		if action != policy.ActionWrite || published {
			return
		}
		published = true
		w.publish(func(d *policy.Document) {
			d.Cedar.Policies += "\n@id(\"no-payment\")\nforbid (principal, action == PD::Action::\"write\", resource == PD::Record::\"payment\");\n"
		})
	}}
	b, err := access.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	before := w.size()
	_, err = b.CreateSubject(t.Context(), access.CreateRequest{Request: w.as("shop"), Records: map[string][]byte{
		"payment": []byte(`{"cardHolder":"A"}`), "profile": []byte(`{"displayName":"A"}`),
	}})
	if !published || !errors.Is(err, access.ErrDenied) {
		t.Errorf("published %v: %v", published, err)
	}
	for _, e := range w.entries(before) {
		if e.Kind == verify.KindSubjectCreated {
			t.Error("the newer policy forbids what was written")
		}
	}
}

type observer struct{ decided func(action string) }

func (o observer) Decided(action, _, _, _ string) { o.decided(action) }
func (observer) Served(int)                       {}
func (observer) Failed(string)                    {}

// A request that goes away while its fields are opened was recorded, so it is followed by access.failed.
func TestACancelledReadIsFollowedByAccessFailed(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	before := w.size()
	ctx, cancel := context.WithCancel(t.Context())
	w.sidecar.Ring.Before(func(op string) error {
		if op == "Open" {
			cancel()
			<-ctx.Done()
		}
		return nil
	})
	_, err := w.Read(ctx, access.ReadRequest{Request: w.as("shop"), Subject: id, Collection: "profile", Fields: []string{"email"}, Purpose: "account"})
	if err == nil {
		t.Skip("the answer was faster than the cancellation")
	}
	e := w.entries(before)
	if len(e) != 2 || e[1].Kind != verify.KindAccessFailed {
		t.Errorf("entries: %+v", e)
	}
}

func TestAnAuditorsTypoIsAnEmptyPage(t *testing.T) {
	w := newWorld(t)
	w.mustCreate(someone)
	page, err := w.Entries(t.Context(), w.as("auditor"), access.EntryFilter{Subject: uuid.New()})
	if err != nil || len(page.Entries) != 0 || page.Next != -1 {
		t.Errorf("%v, %d entries", err, len(page.Entries))
	}
}

func TestALookupOfARestrictedPersonLooksLikeAMiss(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	if _, err := w.SetRestriction(t.Context(), w.as("privacy"), id, true, ""); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"someone@example.org", "nobody@example.org"} {
		before := w.size()
		got, err := w.Lookup(t.Context(), access.LookupRequest{
			Request: w.as("shop"), Purpose: "support", Collection: "profile", Field: "email", Value: value,
		})
		if err != nil || len(got.Subjects) != 0 || len(got.Records) != 1 || got.Records[0] != before || w.size() != before+1 {
			t.Errorf("%v, %+v, %d entries", err, got, w.size()-before)
		}
	}
}

// The items of a batch that no longer fit into its answer are told so, and are not on record as read.
func TestABatchHasABoundedAnswer(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("ж", 4000)
	id := w.mustCreate(fmt.Sprintf(`{"displayName":%q,"userName":%q,"name":{"givenName":%q,"familyName":%q}}`, long, long, long, long))
	q := access.BatchRequest{Request: w.as("shop"), Purpose: "account"}
	for range 700 {
		q.Reads = append(q.Reads, access.BatchItem{Subject: id, Collection: "profile"})
	}
	before := w.size()
	got, err := w.ReadBatch(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	var served, bytes int
	for _, r := range got {
		switch {
		case r.Err == nil:
			served++
			for _, v := range r.Read.Fields {
				bytes += len(v)
			}
		case !errors.Is(r.Err, access.ErrBatchTooLarge):
			t.Errorf("%v", r.Err)
		}
	}
	if bytes > access.MaxBatchBytes || served == 0 || served == len(q.Reads) || w.size() != before+int64(served) {
		t.Errorf("%d served with %d bytes, %d entries", served, bytes, w.size()-before)
	}
}

// A policy that is published between the decision on a read and its record decides.
func TestAPolicyPublishedBetweenDecisionAndRecordDecides(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate(someone)
	published := false
	w.sidecar.Ring.Before(func(op string) error {
		// Details are sealed after the decision and before the record.
		if op == "Prepare" && !published {
			published = true
			w.publish(func(d *policy.Document) {
				for i, p := range d.Purposes {
					if p.ID == "order-fulfilment" {
						d.Purposes[i].Fields["profile"] = []string{"name"}
					}
				}
			})
		}
		return nil
	})
	_, err := w.Read(t.Context(), access.ReadRequest{
		Request: w.as("shop"), Subject: id, Collection: "profile", Fields: []string{"email"}, Purpose: "order-fulfilment", Reference: "ticket 1",
	})
	if !published || !errors.Is(err, access.ErrDenied) {
		t.Errorf("published %v: %v", published, err)
	}
}
