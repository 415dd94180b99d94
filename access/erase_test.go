package access_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// destroyer is an Opener whose Destroy is the keyring's own, and can be made to fail before it.
type destroyer struct {
	access.Opener
	w      *world
	before atomic.Pointer[func() error]
	after  atomic.Pointer[func()]
	calls  atomic.Int64
}

// kekVersion is what wraps every bundle in these tests.
const kekVersion = 3

func (d *destroyer) Destroy(ctx context.Context, index int64, entry []byte, subject uuid.UUID) (access.Destroyed, error) {
	d.calls.Add(1)
	if f := d.before.Load(); f != nil {
		if err := (*f)(); err != nil {
			return access.Destroyed{}, err
		}
	}
	e, err := verify.ParseEntry(entry)
	if err != nil || e.Kind != verify.KindSubjectErased || index >= d.w.size() {
		return access.Destroyed{}, fmt.Errorf("not an erasure: %w", keys.ErrProofRefused)
	}
	// A key that was destroyed answers no more, so only the first time can the reference be compared.
	if ref, _, err := d.Prepare(ctx, subject, nil); err == nil && verify.FormatRef(ref) != e.SubjectRef {
		return access.Destroyed{}, keys.ErrProofRefused
	}
	if err := d.w.sidecar.Ring.Destroy(ctx, subject, e.Reason); err != nil {
		return access.Destroyed{}, err
	}
	if f := d.after.Load(); f != nil {
		(*f)()
	}
	return access.Destroyed{
		Generation: d.w.sidecar.Ring.Generation(), KEKVersion: kekVersion, DeadBy: time.Now().Add(7 * 24 * time.Hour),
	}, nil
}

// failing makes Destroy fail with err until it is called with nil.
func (d *destroyer) failing(err error) {
	f := func() error { return err }
	d.before.Store(&f)
}

// newErasingWorld is a world whose broker can erase.
func newErasingWorld(t *testing.T) (*world, *destroyer) {
	t.Helper()
	w := newWorld(t)
	d := &destroyer{Opener: w.config.Opener, w: w}
	w.config.Opener = d
	w.restart()
	return w, d
}

// restart makes a new broker on the same store, as a restart of the process would.
func (w *world) restart() {
	w.t.Helper()
	b, err := access.New(w.t.Context(), w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Broker = b
}

func (w *world) erase(subject uuid.UUID) (erasure.Certificate, error) {
	return w.Erase(w.t.Context(), access.EraseRequest{Request: w.as("privacy"), Subject: subject, Reason: "subject-request"})
}

func (w *world) mustErase(subject uuid.UUID) erasure.Certificate {
	w.t.Helper()
	c, err := w.erase(subject)
	if err != nil {
		w.t.Fatalf("erasing: %v", err)
	}
	return c
}

// full fills a subject with everything that there can be of one, and returns it with its reference.
func (w *world) full(email string) (subject uuid.UUID, ref []byte) {
	w.t.Helper()
	created, err := w.CreateSubject(w.t.Context(), access.CreateRequest{
		Request: w.as("shop"), Idempotency: access.Idempotency{Key: "create-" + email, Route: "POST /v1/subjects", Fingerprint: [32]byte{1}},
		Records: map[string][]byte{
			"profile": fmt.Appendf(nil, `{"email":%q,"phone":"+12125550%d","displayName":"Some One"}`, email, email[0]+100),
			"payment": []byte(`{"cardHolder":"SOME ONE"}`),
		},
	})
	if err != nil {
		w.t.Fatalf("creating: %v", err)
	}
	subject = created.Subject
	for i, purpose := range []string{"newsletter", "newsletter"} {
		_, err := w.GiveConsent(w.t.Context(), access.ConsentRequest{
			Request: w.as("shop"), Subject: subject, Purpose: purpose, SeparateDocument: true, Capture: []byte(`{"form_uri":"/join"}`),
			Idempotency: access.Idempotency{Key: fmt.Sprint(email, i), Route: "POST /v1/consents", Fingerprint: [32]byte{2}},
		})
		if err != nil {
			w.t.Fatalf("giving consent: %v", err)
		}
	}
	for i := range 3 {
		_, err := w.Read(w.t.Context(), access.ReadRequest{
			Request: w.as("shop"), Subject: subject, Collection: "profile", Fields: []string{"email"}, Purpose: "order-fulfilment",
			Reference: fmt.Sprintf("order %d", i),
		})
		if err != nil {
			w.t.Fatalf("reading: %v", err)
		}
	}
	one := uint64(1)
	if _, err := w.DeleteRecord(w.t.Context(), access.WriteRequest{Request: w.as("shop"), Subject: subject, Collection: "payment", IfMatch: &one}); err != nil {
		w.t.Fatalf("deleting a record: %v", err)
	}
	ref, _, err = w.config.Opener.Prepare(w.t.Context(), subject, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return subject, ref
}

// rows returns everything in the store whose key begins with prefix.
func (w *world) rows(prefix string) []kv.Pair {
	w.t.Helper()
	var all []kv.Pair
	err := w.store.View(w.t.Context(), func(r kv.Reader) error {
		var err error
		all, err = r.Scan([]byte(prefix), nil, 1<<20)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// mustBeGone demands that nothing leads to an erased subject but its tombstone, and nothing from its reference
// to entries.
func (w *world) mustBeGone(subject uuid.UUID, ref []byte) {
	w.t.Helper()
	tombstone := append([]byte("s"), subject[:]...)
	for _, p := range w.rows("") {
		switch {
		case bytes.Equal(p.Key, tombstone):
			var head map[string]any
			if err := json.Unmarshal(p.Value, &head); err != nil || len(head) != 3 || head["erased"] != true || head["f"] != 1.0 {
				w.t.Errorf("tombstone %s", p.Value)
			}
			continue
		case bytes.HasPrefix(p.Key, []byte("l/e/")): // entries are never changed; they have the reference, not the id
		case bytes.Contains(p.Key, ref), bytes.Contains(p.Value, ref), bytes.Contains(p.Value, []byte(verify.FormatRef(ref))):
			w.t.Errorf("row %q has the reference of an erased subject", p.Key)
		}
		whole := slices.Concat(p.Key, []byte{0}, p.Value)
		if bytes.Contains(whole, subject[:]) || bytes.Contains(whole, []byte(subject.String())) {
			w.t.Errorf("row %q has the id of an erased subject", p.Key)
		}
	}
	if _, _, err := w.config.Opener.Prepare(w.t.Context(), subject, nil); !errors.Is(err, keys.ErrDestroyed) {
		w.t.Errorf("the key of an erased subject: %v", err)
	}
}

// mustReplay exports the ledger and has it verified, and returns what was found.
func (w *world) mustReplay() *verify.Report {
	w.t.Helper()
	cp := w.ledger.Checkpoint()
	dir := fstest.MapFS{verify.CheckpointPath: {Data: cp.Note}}
	for tile := range verify.TilesOf(cp.Size) {
		read := func() ([]byte, error) { return w.ledger.Tile(w.t.Context(), tile.Level, tile.N, tile.Width) }
		if tile.Level == verify.EntriesLevel {
			read = func() ([]byte, error) { return w.ledger.EntryBundle(w.t.Context(), tile.N, tile.Width) }
		}
		data, err := read()
		if err != nil {
			w.t.Fatal(err)
		}
		dir[tile.Path()] = &fstest.MapFile{Data: data}
	}
	r, err := verify.VerifyLog(w.t.Context(), dir, verify.LogCheck{Ledger: w.key})
	if err != nil || !r.OK() {
		w.t.Fatalf("the ledger does not hold: %v %+v", err, r.Problems)
	}
	return r
}

func (w *world) mustVerify(c erasure.Certificate) erasure.Report {
	w.t.Helper()
	r, err := erasure.Verify(c.Encode(), erasure.Keys{Ledger: []note.Verifier{w.key}})
	if err != nil {
		w.t.Fatalf("certificate: %v\n%s", err, c.Encode())
	}
	return r
}

func TestNothingIsLeftOfAnErasedSubject(t *testing.T) {
	w, _ := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	other, _ := w.full("bob@example.org")
	var ciphertexts [][]byte
	for _, prefix := range []string{"r", "k", "d"} {
		for _, p := range w.rows(prefix) {
			if prefix != "r" || bytes.Contains(p.Key, subject[:]) {
				ciphertexts = append(ciphertexts, p.Value)
			}
		}
	}
	count := func() (n []int) {
		for _, prefix := range []string{"r", "u", "x", "c", "w", "k", "d", "y"} {
			n = append(n, len(w.rows(prefix)))
		}
		return n
	}
	both := count()

	c := w.mustErase(subject)
	w.mustBeGone(subject, ref)
	left := count()
	for i := range both {
		if left[i]*2 != both[i] { // the two were alike
			t.Errorf("rows before %v, after %v", both, left)
			break
		}
	}
	all := w.rows("")
	gone := 0
	for _, ciphertext := range ciphertexts {
		if !slices.ContainsFunc(all, func(p kv.Pair) bool { return bytes.Contains(p.Value, ciphertext) }) {
			gone++
		}
	}
	if want := 1 + 2 + 3; gone != want { // a record, two captures, three details
		t.Errorf("%d of %d ciphertexts are gone, want %d", gone, len(ciphertexts), want)
	}
	if len(w.rows("z")) != 0 || len(w.rows("e")) != 1 {
		t.Error("the erasure is not finished")
	}
	if want := []string{"profile.displayName", "profile.email", "profile.phone"}; !slices.Equal(c.Fields, want) || c.Consents != 2 || c.Details != 3 {
		t.Errorf("%v, %d consents, %d details", c.Fields, c.Consents, c.Details)
	}
	if !slices.Contains(c.Categories, "pd:EmailAddress") || c.Operator != w.Operator().Name || c.Operator == "" {
		t.Errorf("%v by %q", c.Categories, c.Operator)
	}
	// The other person is as before.
	if _, err := w.read("shop", "account", other, "email"); err != nil {
		t.Errorf("another subject: %v", err)
	}
	if l, err := w.Consents(t.Context(), w.as("privacy"), other); err != nil || len(l) != 2 {
		t.Errorf("consents of another subject: %v, %d", err, len(l))
	}
	if r := w.mustReplay(); r.Erasures != (verify.ErasureCounts{Erased: 1, Destroyed: 1}) {
		t.Errorf("%+v", r.Erasures)
	}
}

func TestDetailsWithoutEndAreErased(t *testing.T) {
	w, d := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	before := len(w.rows("d"))
	const more = 2500 // than one transaction deletes
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.store.Update(t.Context(), func(wr kv.Writer) error {
		for i := range more {
			index := []byte{0, 0, 0, 1, 0, 0, byte(i >> 8), byte(i)}
			wr.Set(slices.Concat([]byte("l/s/"), ref, index), []byte{})
			wr.Set(slices.Concat([]byte("d"), index), []byte("sealed"))
		}
		return nil
	}))
	d.failing(keys.ErrUnavailable)
	if _, err := w.erase(subject); !errors.Is(err, access.ErrErasurePending) {
		t.Fatal(err)
	}
	if n := len(w.rows("d")); n == 0 || n >= more {
		t.Errorf("one transaction left %d of %d details", n, before+more)
	}
	d.failing(nil)
	c := w.mustErase(subject)
	w.mustBeGone(subject, ref)
	if n := len(w.rows("d")); n != 0 || c.Details != before+more {
		t.Errorf("%d details are left, the certificate says %d", n, c.Details)
	}
}

// TestAnErasedSubjectIsAsOneThatNeverWas compares every answer to every caller.
func TestAnErasedSubjectIsAsOneThatNeverWas(t *testing.T) {
	w, d := newErasingWorld(t)
	finished, _ := w.full("ada@example.org")
	pending, _ := w.full("bob@example.org")
	w.mustErase(finished)
	d.failing(keys.ErrUnavailable)
	if _, err := w.erase(pending); !errors.Is(err, access.ErrErasurePending) {
		t.Fatal(err)
	}
	one := uint64(1)
	answers := func(caller string, subject uuid.UUID) (out []string) {
		r := w.as(caller)
		write := access.WriteRequest{Request: r, Subject: subject, Collection: "profile", IfMatch: &one}
		say := func(what string, err error) { out = append(out, fmt.Sprintf("%s %s: %v", caller, what, err)) }
		for _, purpose := range []string{"account", "order-fulfilment", "newsletter", "partner-delivery"} {
			_, err := w.read(caller, purpose, subject, "email")
			say("reads for "+purpose, err)
			check, err := w.Check(t.Context(), access.ReadRequest{Request: r, Subject: subject, Collection: "profile", Purpose: purpose})
			say(fmt.Sprintf("checks %s: %+v", purpose, check), err)
		}
		_, err := w.Verify(t.Context(), access.VerifyRequest{Request: r, Purpose: "account", Subject: subject, Collection: "profile", Field: "email", Value: []byte(`"a"`)})
		say("verifies", err)
		write.Body = []byte(someone)
		_, err = w.PutRecord(t.Context(), write)
		say("puts", err)
		write.Body = []byte(`{"displayName":"x"}`)
		_, err = w.PatchRecord(t.Context(), write)
		say("patches", err)
		write.Body = nil
		_, err = w.DeleteRecord(t.Context(), write)
		say("deletes", err)
		_, err = w.GiveConsent(t.Context(), access.ConsentRequest{Request: r, Subject: subject, Purpose: "newsletter", SeparateDocument: true})
		say("gives consent", err)
		_, err = w.Consents(t.Context(), r, subject)
		say("lists consents", err)
		_, err = w.Describe(t.Context(), r, subject)
		say("describes", err)
		_, err = w.SetRestriction(t.Context(), r, subject, true, "disputed")
		say("restricts", err)
		page, err := w.Entries(t.Context(), r, access.EntryFilter{Subject: subject})
		say(fmt.Sprintf("finds %d entries", len(page.Entries)), err)
		if subject != pending || caller != "privacy" { // who may erase is told that it is not finished
			_, err = w.Erase(t.Context(), access.EraseRequest{Request: r, Subject: subject, Reason: "unlawful"})
			say("erases", err)
		}
		return out
	}
	for _, caller := range []string{"shop", "courier", "privacy", "legal", "security", "auditor"} {
		want := answers(caller, uuid.New())
		for _, subject := range []uuid.UUID{finished, pending} {
			got := answers(caller, subject)
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("%s, of a subject that never was: %s", got[i], want[i])
				}
			}
		}
	}
	for _, email := range []string{"ada@example.org", "bob@example.org"} {
		found, err := w.Lookup(t.Context(), access.LookupRequest{Request: w.as("shop"), Purpose: "support", Collection: "profile", Field: "email", Value: email})
		if err != nil || len(found.Subjects) != 0 {
			t.Errorf("looking up: %v, %d found", err, len(found.Subjects))
		}
	}
	w.mustReplay()
}

func TestADenialAboutAnErasedSubjectDoesNotNameIt(t *testing.T) {
	w, d := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	d.failing(keys.ErrUnavailable)
	if _, err := w.erase(subject); !errors.Is(err, access.ErrErasurePending) {
		t.Fatal(err)
	}
	before := w.size()
	_, err := w.Read(t.Context(), access.ReadRequest{
		Request: w.as("auditor"), Subject: subject, Collection: "profile", Purpose: "account", Justification: "curious", Fields: []string{"email"},
	})
	if !errors.Is(err, access.ErrDenied) {
		t.Fatal(err)
	}
	e := w.entries(before)
	if len(e) != 1 || e[0].SubjectRef != "" || e[0].DetailCommit != "" || len(w.rows("d")) != 0 {
		t.Errorf("%+v", e)
	}
	d.failing(nil)
	if n, err := w.FinishErasures(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	w.mustBeGone(subject, ref)
}

func TestOnlyWhoMayErasesAndOnlyForAReason(t *testing.T) {
	w, d := newErasingWorld(t)
	subject, _ := w.full("ada@example.org")
	for _, caller := range []string{"shop", "courier", "legal", "security", "auditor"} {
		before := w.size()
		_, err := w.Erase(t.Context(), access.EraseRequest{Request: w.as(caller), Subject: subject, Reason: "subject-request"})
		if e := w.entries(before); !errors.Is(err, access.ErrDenied) || len(e) != 1 || e[0].Decision != verify.Deny {
			t.Errorf("%s: %v, %d entries", caller, err, len(e))
		}
		if _, err := w.Erasure(t.Context(), w.as(caller), uuid.New()); !errors.Is(err, access.ErrDenied) && caller != "auditor" {
			t.Errorf("%s fetches a certificate: %v", caller, err)
		}
	}
	for _, reason := range []string{"", "because", "Subject-Request"} {
		var invalid *access.FieldError
		_, err := w.Erase(t.Context(), access.EraseRequest{Request: w.as("privacy"), Subject: subject, Reason: reason})
		if !errors.As(err, &invalid) {
			t.Errorf("reason %q: %v", reason, err)
		}
	}
	if d.calls.Load() != 0 {
		t.Error("a key was asked to be destroyed")
	}
	if _, err := w.read("shop", "account", subject, "email"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if _, err := w.erase(uuid.New()); !errors.Is(err, access.ErrNotFound) {
			t.Errorf("nobody: %v", err)
		}
	}
}

func TestARestrictedSubjectCanBeErased(t *testing.T) {
	w, _ := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	if _, err := w.SetRestriction(t.Context(), w.as("privacy"), subject, true, "disputed"); err != nil {
		t.Fatal(err)
	}
	w.mustErase(subject)
	w.mustBeGone(subject, ref)
}

func TestUniqueValuesAreFreeAfterAnErasure(t *testing.T) {
	w, _ := newErasingWorld(t)
	subject := w.mustCreate(someone)
	w.mustErase(subject)
	if again := w.mustCreate(someone); again == subject {
		t.Error("the id was used again")
	}
	if _, err := w.erase(subject); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("erasing twice: %v", err)
	}
}

// A client that repeats a request whose answer it lost must not bring the person back.
func TestARepeatedCreateDoesNotUndoAnErasure(t *testing.T) {
	w, _ := newErasingWorld(t)
	subject, _ := w.full("ada@example.org")
	w.mustErase(subject)
	q := access.CreateRequest{
		Request: w.as("shop"), Idempotency: access.Idempotency{Key: "create-ada@example.org", Route: "POST /v1/subjects", Fingerprint: [32]byte{1}},
		Records: map[string][]byte{"profile": []byte(`{"email":"ada@example.org"}`)},
	}
	if _, err := w.CreateSubject(t.Context(), q); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("%v", err)
	}
	w.clock.Store(25 * 3600)
	if n, err := w.Sweep(t.Context()); n != 3 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if len(w.rows("i")) != 0 || len(w.rows("y")) != 0 {
		t.Error("outcomes are left")
	}
}

func TestSweepForgetsWhichSubjectAnOutcomeWasOf(t *testing.T) {
	w, _ := newErasingWorld(t)
	w.full("ada@example.org")
	w.clock.Store(25 * 3600)
	if n, err := w.Sweep(t.Context()); n != 3 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if len(w.rows("i")) != 0 || len(w.rows("y")) != 0 {
		t.Error("outcomes are left")
	}
}

func TestACertificateIsVerifiedOfflineAndBecomesFinal(t *testing.T) {
	w, _ := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	before := w.size() - 1
	old, err := w.Entry(t.Context(), w.as("auditor"), before)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := w.Proof(t.Context(), w.as("auditor"), before)
	if err != nil {
		t.Fatal(err)
	}
	epoch := func(version uint64) int64 {
		t.Helper()
		e := verify.Entry{ID: uuid.NewString(), Kind: verify.KindKeyEpoch, Keys: &verify.KeyChange{Scope: "kek", Job: uuid.NewString(), Version: version}}
		r, err := w.ledger.Append(t.Context(), e, func(at ledger.Position) (c kv.Change) {
			row := access.KeyEpochRow(at.Index, version)
			c.Set(row.Key, row.Value)
			return c
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.Index
	}
	epoch(kekVersion)

	first := w.mustErase(subject)
	report := w.mustVerify(first)
	if first.Status != erasure.Provisional || first.Subject != subject.String() || report.Erased.Entry.SubjectRef != verify.FormatRef(ref) ||
		report.Erased.Entry.Caller.ID != "privacy" || first.BackupsDeadBy == "" || first.KEKVersion != kekVersion {
		t.Errorf("%+v", first)
	}
	id := uuid.MustParse(first.ID)
	for _, caller := range []string{"privacy", "auditor"} {
		later, err := w.Erasure(t.Context(), w.as(caller), id)
		if err != nil {
			t.Fatalf("%s: %v", caller, err)
		}
		w.mustVerify(later)
		if later.Subject != "" || later.Salt != "" || later.Status != erasure.Provisional || later.Time != first.Time {
			t.Errorf("%s: %+v", caller, later)
		}
	}
	at := epoch(kekVersion + 1)
	for range 2 {
		final, err := w.Erasure(t.Context(), w.as("privacy"), id)
		if err != nil {
			t.Fatal(err)
		}
		w.mustVerify(final)
		if final.Status != erasure.Final || final.Epoch.Index != at {
			t.Errorf("%+v", final)
		}
		w.restart()
	}
	if _, err := w.Erasure(t.Context(), w.as("privacy"), uuid.New()); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("no such certificate: %v", err)
	}
	// What was proven before stays proven.
	p, err := verify.ParseProof(proof)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Verify(old.Bytes, w.key, 0); err != nil {
		t.Errorf("an older proof: %v", err)
	}
	w.mustReplay()
}

func TestAnErasureThatCannotBeRecordedErasesNothing(t *testing.T) {
	w, d := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	w.store.setFail(errors.New("injected"))
	if _, err := w.erase(subject); err == nil || errors.Is(err, access.ErrErasurePending) {
		t.Errorf("%v", err)
	}
	w.store.setFail(nil)
	if d.calls.Load() != 0 {
		t.Error("the key was destroyed all the same")
	}
	if _, err := w.read("shop", "account", subject, "email"); err != nil {
		t.Error(err)
	}
	if n, err := w.FinishErasures(t.Context()); n != 0 || err != nil {
		t.Error(n, err)
	}
	w.mustErase(subject)
	w.mustBeGone(subject, ref)
}

// TestAnErasureIsFinishedAfterACrash stops it behind each step, several times, and has it finished by a new
// broker on the same store.
func TestAnErasureIsFinishedAfterACrash(t *testing.T) {
	for name, stop := range map[string]func(*world, *destroyer){
		"before the key is destroyed": func(_ *world, d *destroyer) { d.failing(keys.ErrUnavailable) },
		"after the key is destroyed, before that is known": func(w *world, d *destroyer) {
			d.failing(nil)
			f := func() { w.store.setFail(errors.New("injected")) }
			d.after.Store(&f)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, d := newErasingWorld(t)
			subject, ref := w.full("ada@example.org")
			stop(w, d)
			_, err := w.erase(subject)
			var pending *access.PendingErasureError
			if !errors.As(err, &pending) || pending.Salt == "" || pending.Cause == nil || strings.Contains(err.Error(), subject.String()) {
				t.Fatalf("%v", err)
			}
			for range 3 {
				w.restart()
				if n, err := w.FinishErasures(t.Context()); n != 0 || err == nil {
					t.Fatalf("finished %d, %v", n, err)
				}
				w.store.setFail(nil)
				// The data is gone already, and nobody is told of a certificate that is not there yet.
				for _, prefix := range []string{"r", "u", "x", "c", "w", "k", "d", "y"} {
					if rows := w.rows(prefix); len(rows) != 0 {
						t.Errorf("%d rows %s are left", len(rows), prefix)
					}
				}
				if _, err := w.read("shop", "account", subject, "email"); !errors.Is(err, access.ErrNotFound) {
					t.Errorf("reading: %v", err)
				}
				var unfinished *access.PendingErasureError
				if _, err := w.Erasure(t.Context(), w.as("auditor"), pending.ID); !errors.As(err, &unfinished) || unfinished.Salt != "" || unfinished.Entry != pending.Entry {
					t.Errorf("certificate: %v", err)
				}
			}
			if r := w.mustReplay(); r.Erasures != (verify.ErasureCounts{Erased: 1, Pending: 1}) {
				t.Errorf("%+v", r.Erasures)
			}
			d.failing(nil)
			d.after.Store(nil)
			w.restart()
			var finishers sync.WaitGroup
			for range 5 {
				finishers.Go(func() {
					if _, err := w.FinishErasures(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			finishers.Wait()
			if n, err := w.FinishErasures(t.Context()); n != 0 || err != nil {
				t.Errorf("finished again: %d, %v", n, err)
			}
			w.mustBeGone(subject, ref)
			if r := w.mustReplay(); r.Erasures != (verify.ErasureCounts{Erased: 1, Destroyed: 1}) {
				t.Errorf("%+v", r.Erasures)
			}
			c, err := w.Erasure(t.Context(), w.as("privacy"), pending.ID)
			if err != nil {
				t.Fatal(err)
			}
			// Who erased was told the salt, and can name the subject all the same.
			c.Subject, c.Salt = subject.String(), pending.Salt
			w.mustVerify(c)
		})
	}
}

func TestErasingAgainGoesOnWithWhatIsPending(t *testing.T) {
	w, d := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	d.failing(keys.ErrUnavailable)
	var first, second *access.PendingErasureError
	if _, err := w.erase(subject); !errors.As(err, &first) || !errors.Is(err, keys.ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := w.erase(subject); !errors.As(err, &second) || first.ID != second.ID || first.Salt != second.Salt {
		t.Fatal(err)
	}
	d.failing(nil)
	c := w.mustErase(subject)
	if w.mustVerify(c); c.ID != first.ID.String() || c.Subject != subject.String() {
		t.Errorf("%+v", c)
	}
	w.mustBeGone(subject, ref)
}

func TestOneErasureThatCannotBeFinishedDoesNotHoldUpTheOthers(t *testing.T) {
	w, d := newErasingWorld(t)
	d.failing(keys.ErrUnavailable)
	for _, email := range []string{"a@example.org", "b@example.org", "c@example.org"} {
		subject, _ := w.full(email)
		if _, err := w.erase(subject); !errors.Is(err, access.ErrErasurePending) {
			t.Fatal(err)
		}
	}
	n := 0
	once := func() error {
		if n++; n == 2 {
			return keys.ErrUnavailable
		}
		return nil
	}
	d.before.Store(&once)
	if n, err := w.FinishErasures(t.Context()); n != 2 || !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("finished %d, %v", n, err)
	}
	if n, err := w.FinishErasures(t.Context()); n != 1 || err != nil {
		t.Errorf("finished %d, %v", n, err)
	}
}

// TestNothingIsAllowedBehindAnErasure races it with everything else that there is about a subject.
func TestNothingIsAllowedBehindAnErasure(t *testing.T) {
	for range 5 {
		w, _ := newErasingWorld(t)
		subject, ref := w.full("ada@example.org")
		ctx := t.Context()
		mayBe := func(what string, err error, ok ...error) {
			for _, o := range append(ok, access.ErrNotFound, access.ErrDenied, access.ErrBusy, keys.ErrDestroyed, access.ErrVersion) {
				if err == nil || errors.Is(err, o) {
					return
				}
			}
			t.Errorf("%s: %v", what, err)
		}
		version := uint64(1)
		act := []func(){
			func() {
				_, err := w.read("shop", "account", subject, "email")
				mayBe("reading", err)
			},
			func() {
				_, err := w.Read(ctx, access.ReadRequest{
					Request: w.as("shop"), Subject: subject, Collection: "profile", Purpose: "newsletter", Reference: "letter", Fields: []string{"email"},
				})
				mayBe("reading by consent", err)
			},
			func() {
				_, err := w.Read(ctx, access.ReadRequest{
					Request: w.as("auditor"), Subject: subject, Collection: "profile", Purpose: "account", Reference: "none", Fields: []string{"email"},
				})
				mayBe("reading without rights", err)
			},
			func() {
				_, err := w.PatchRecord(ctx, access.WriteRequest{
					Request: w.as("shop"), Subject: subject, Collection: "profile", Body: []byte(`{"displayName":"x"}`), IfMatch: &version,
				})
				mayBe("writing", err)
			},
			func() {
				c, err := w.GiveConsent(ctx, access.ConsentRequest{
					Request: w.as("shop"), Subject: subject, Purpose: "newsletter", SeparateDocument: true, Capture: []byte(`{"form_uri":"/x"}`),
				})
				mayBe("giving consent", err)
				if err == nil {
					_, err = w.WithdrawConsent(ctx, w.as("shop"), c.ID)
					mayBe("withdrawing", err)
				}
			},
			func() {
				_, err := w.Lookup(ctx, access.LookupRequest{Request: w.as("shop"), Purpose: "support", Collection: "profile", Field: "email", Value: "ada@example.org", Reference: "ticket"})
				mayBe("looking up", err)
			},
			func() {
				_, err := w.SetRestriction(ctx, w.as("privacy"), subject, false, "settled")
				mayBe("restricting", err)
			},
		}
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for _, f := range act {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						f()
					}
				}
			})
		}
		time.Sleep(10 * time.Millisecond)
		var certificates atomic.Int64
		var erasers sync.WaitGroup
		for range 3 {
			erasers.Go(func() {
				for {
					_, err := w.erase(subject)
					switch {
					case errors.Is(err, access.ErrBusy):
						continue
					case err == nil:
						certificates.Add(1)
					case !errors.Is(err, access.ErrNotFound):
						t.Errorf("erasing: %v", err)
					}
					return
				}
			})
		}
		erasers.Wait()
		time.Sleep(10 * time.Millisecond)
		close(stop)
		wg.Wait()
		if certificates.Load() == 0 {
			t.Error("no certificate was given")
		}
		w.mustBeGone(subject, ref)
		if n := len(w.rows("d")); n != 0 {
			t.Errorf("%d details are left", n)
		}
		// Replay demands that nothing allowed about the subject follows its erasure.
		if r := w.mustReplay(); r.Erasures != (verify.ErasureCounts{Erased: 1, Destroyed: 1}) {
			t.Errorf("%+v", r.Erasures)
		}
	}
}

// interrupted is an Opener before whose first Prepare something else happens.
type interrupted struct {
	access.Opener
	done   atomic.Bool
	before func()
}

func (o *interrupted) Prepare(ctx context.Context, subject uuid.UUID, detail []byte) (ref, sealed []byte, err error) {
	if !o.done.Swap(true) {
		o.before()
	}
	return o.Opener.Prepare(ctx, subject, detail)
}

// A key that has expired is used again, for another subject, while the first one is erased: the erasure forgets the
// outcome of the first, and not that of the other.
func TestAnErasureForgetsNoOtherSubjectsOutcome(t *testing.T) {
	w, _ := newErasingWorld(t)
	create := func(email string) access.Written {
		t.Helper()
		got, err := w.CreateSubject(t.Context(), access.CreateRequest{
			Request: w.as("shop"), Records: map[string][]byte{"profile": fmt.Appendf(nil, `{"email":%q}`, email)},
			Idempotency: access.Idempotency{Key: "k", Route: "POST /v1/subjects", Fingerprint: [32]byte{email[0]}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := create("ada@example.org")
	w.clock.Store(25 * 3600)
	var second access.Written
	w.config.Opener = &interrupted{Opener: w.config.Opener, before: func() { second = create("bob@example.org") }}
	w.restart()
	w.mustErase(first.Subject)
	w.clock.Store(0) // outcomes are dated by the ledger, whose clock is not ahead
	if again := create("bob@example.org"); again.Subject != second.Subject || again.Record != second.Record {
		t.Errorf("a repeated create made another subject: %+v, %+v", again, second)
	}
}

// Of two who erase at once, the slower one finds nobody, also when the key is gone before it has asked for it.
func TestAnErasureThatAnotherOvertookFindsNobody(t *testing.T) {
	w, _ := newErasingWorld(t)
	subject, ref := w.full("ada@example.org")
	w.config.Opener = &interrupted{Opener: w.config.Opener, before: func() { w.mustErase(subject) }}
	w.restart()
	if _, err := w.erase(subject); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("%v", err)
	}
	w.mustBeGone(subject, ref)
}
