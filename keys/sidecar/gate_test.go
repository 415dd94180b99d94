package sidecar_test

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(connectTo); path != "" {
		connectAndTell(path)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// open sends req and returns its one item. A stale answer gives nil.
func open(t *testing.T, w *sidecartest.World, req *keyspb.OpenRequest) (*keyspb.OpenResponse, *keyspb.OpenedItem) {
	t.Helper()
	resp, err := w.Server.Open(t.Context(), req)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if resp.Stale {
		if len(resp.Items) != 0 || len(resp.Cosignature) != 0 {
			t.Errorf("a stale answer carries items or a cosignature")
		}
		return resp, nil
	}
	if len(resp.Items) != 1 {
		t.Fatalf("got %d items, want 1", len(resp.Items))
	}
	if item := resp.Items[0]; item.Code != keyspb.Code_OK && len(item.Fields) > 0 {
		t.Errorf("a refused item carries fields")
	}
	return resp, resp.Items[0]
}

func wantRefusal(t *testing.T, item *keyspb.OpenedItem, code keyspb.Code, why string) {
	t.Helper()
	if item == nil {
		t.Fatal("got a stale answer, want a refusal")
	}
	if item.Code != code || item.Why != why {
		t.Errorf("got %v %q, want %v %q", item.Code, item.Why, code, why)
	}
}

func wantOpened(t *testing.T, item *keyspb.OpenedItem, fields ...string) {
	t.Helper()
	if item == nil {
		t.Fatal("got a stale answer")
	}
	if item.Code != keyspb.Code_OK || len(item.Fields) != len(fields) {
		t.Fatalf("got %v %q with %d fields, want OK with %d", item.Code, item.Why, len(item.Fields), len(fields))
	}
	for i, f := range fields {
		if !bytes.Equal(item.Fields[i].Plaintext, sidecartest.Value(f)) {
			t.Errorf("field %s has another value", f)
		}
	}
}

// TestAClientThatSkipsTheRecordGetsNoPlaintext is the gate: each row changes one thing of a request that
// would be served, and the sidecar must refuse for that reason. Then the honest request is served.
func TestAClientThatSkipsTheRecordGetsNoPlaintext(t *testing.T) {
	const refused, malformed = keyspb.Code_PROOF_REFUSED, keyspb.Code_INVALID
	other := sidecartest.NewLog(t, sidecartest.Origin)
	elsewhere := sidecartest.NewLog(t, "other.example.org/ledger")

	type attack struct {
		name  string
		code  keyspb.Code
		why   string
		entry func(*verify.Entry)       // changes the record, which is then in the log
		raw   func([]byte) []byte       // changes the record's bytes
		ask   func(*keyspb.OpenRequest) // changes the request
		clock time.Duration             // passes between record and request
		log   *sidecartest.Log          // shown instead of the bound one
	}
	for _, a := range []attack{
		{name: "no checkpoint", code: refused, why: "checkpoint", ask: func(r *keyspb.OpenRequest) { r.Checkpoint = nil }},
		{name: "no proof", code: refused, why: "not-included", ask: func(r *keyspb.OpenRequest) { r.Items[0].Inclusion = nil }},
		{name: "no record", code: malformed, why: "bad-message", ask: func(r *keyspb.OpenRequest) { r.Items[0].Entry = nil }},
		{name: "record that is not in the log", code: refused, why: "not-included", ask: func(r *keyspb.OpenRequest) {
			r.Items[0].Entry = bytes.Replace(r.Items[0].Entry, []byte(`"shop"`), []byte(`"spam"`), 1)
		}},
		{name: "another index", code: refused, why: "not-included", ask: func(r *keyspb.OpenRequest) { r.Items[0].Index-- }},
		{name: "index beyond the log", code: refused, why: "not-included", ask: func(r *keyspb.OpenRequest) { r.Items[0].Index = 1 << 40 }},
		{name: "negative index", code: malformed, why: "bad-message", ask: func(r *keyspb.OpenRequest) { r.Items[0].Index = -1 }},
		{name: "hash of another length", code: malformed, why: "bad-message", ask: func(r *keyspb.OpenRequest) { r.Items[0].Inclusion[0] = []byte("short") }},
		{name: "foreign ledger key", code: refused, why: "checkpoint", log: other},
		{name: "foreign origin", code: refused, why: "checkpoint", log: elsewhere},
		{name: "changed checkpoint", code: refused, why: "checkpoint", ask: func(r *keyspb.OpenRequest) {
			r.Checkpoint = bytes.Replace(r.Checkpoint, []byte("\n4\n"), []byte("\n5\n"), 1)
		}},
		{name: "old record", code: keyspb.Code_CLOCK, why: "too-old", clock: verify.MaxAccessAge + time.Second},
		{name: "record from the future", code: keyspb.Code_CLOCK, why: "from-future", clock: -3 * time.Second},
		{name: "record from the far future", code: keyspb.Code_CLOCK, why: "from-future", clock: -time.Hour},
		{name: "denied", code: refused, why: "not-allowed", entry: func(e *verify.Entry) { e.Decision, e.Reason = verify.Deny, "consent-missing" }},
		{name: "no decision", code: refused, why: "not-allowed", entry: func(e *verify.Entry) { e.Decision = "" }},
		{name: "access.failed", code: refused, why: "not-access", entry: func(e *verify.Entry) { e.Kind, e.Of = verify.KindAccessFailed, new(int64) }},
		{name: "a write", code: refused, why: "not-access", entry: func(e *verify.Entry) { e.Kind = verify.KindRecordWritten }},
		{name: "no ground", code: refused, why: "no-ground", entry: func(e *verify.Entry) { e.Ground = "" }},
		{name: "a ground that does not exist", code: refused, why: "no-ground", entry: func(e *verify.Entry) { e.Ground = "sale" }},
		{name: "no evidence", code: refused, why: "no-ground", entry: func(e *verify.Entry) { e.Evidence = nil }},
		{name: "another sidecar", code: refused, why: "other-sidecar", entry: func(e *verify.Entry) { e.Sidecar = uuid.NewString() }},
		{name: "no sidecar", code: refused, why: "other-sidecar", entry: func(e *verify.Entry) { e.Sidecar = "" }},
		{name: "another subject in the record", code: refused, why: "other-subject", entry: func(e *verify.Entry) { e.SubjectRef = verify.FormatRef(make([]byte, 32)) }},
		{name: "no subject in the record", code: refused, why: "other-subject", entry: func(e *verify.Entry) { e.SubjectRef = "" }},
		{name: "another collection in the record", code: refused, why: "other-collection", entry: func(e *verify.Entry) { e.Collection = "passport" }},
		{name: "another collection in the request", code: refused, why: "other-collection", ask: func(r *keyspb.OpenRequest) { r.Items[0].Collection = "passport" }},
		{name: "a field more than recorded", code: refused, why: "field-not-listed", ask: func(r *keyspb.OpenRequest) {
			r.Items[0].Fields = append(r.Items[0].Fields, &keyspb.OpenField{Field: "phone", Ciphertext: []byte("x")})
		}},
		{name: "other fields", code: refused, why: "field-not-listed", entry: func(e *verify.Entry) { e.Fields = []string{"phone"} }},
		{name: "no fields in the record", code: refused, why: "field-not-listed", entry: func(e *verify.Entry) { e.Fields = nil }},
		{name: "no fields in the request", code: malformed, why: "bad-message", ask: func(r *keyspb.OpenRequest) { r.Items[0].Fields = nil }},
		{name: "mode verify asking for plaintext", code: refused, why: "compare-only", entry: func(e *verify.Entry) { e.Mode = verify.ModeVerify }},
		{name: "mode lookup", code: refused, why: "not-openable", entry: func(e *verify.Entry) { e.Mode = verify.ModeLookup }},
		{name: "no mode", code: refused, why: "not-openable", entry: func(e *verify.Entry) { e.Mode = "" }},
		{name: "unknown subject", code: keyspb.Code_NO_KEY, why: "no-key", ask: func(r *keyspb.OpenRequest) { id := uuid.New(); r.Items[0].Subject = id[:] }},
		{name: "nil subject", code: malformed, why: "bad-message", ask: func(r *keyspb.OpenRequest) { r.Items[0].Subject = make([]byte, 16) }},
		{name: "another version of the record", code: keyspb.Code_TAMPERED, why: "tampered", ask: func(r *keyspb.OpenRequest) { r.Items[0].Version++ }},
		{name: "a space in the record", code: refused, why: "bad-entry", raw: func(b []byte) []byte { return bytes.Replace(b, []byte(`,"id"`), []byte(`, "id"`), 1) }},
		{name: "a member twice", code: refused, why: "bad-entry", raw: func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"decision":"allow"`), []byte(`"decision":"deny","decision":"allow"`), 1)
		}},
		{name: "another format", code: refused, why: "bad-entry", raw: func(b []byte) []byte { return bytes.Replace(b, []byte("entry/v1"), []byte("entry/v2"), 1) }},
		{name: "no entry at all", code: refused, why: "bad-entry", raw: func([]byte) []byte { return []byte("{}") }},
		{name: "huge checkpoint", code: malformed, why: "bad-message", ask: func(r *keyspb.OpenRequest) { r.Checkpoint = make([]byte, sidecar.MaxCheckpoint+1) }},
		{name: "negative from", code: malformed, why: "bad-message", ask: func(r *keyspb.OpenRequest) { r.From = -1 }},
	} {
		t.Run(a.name, func(t *testing.T) {
			w := sidecartest.Bound(t)
			log := w.Log
			if a.log != nil {
				log = a.log.Fork(0)
			}
			id, ref, ciphertexts := w.Subject("email")
			log.Grow(3)
			entry := w.Entry(ref, []string{"email"}, a.entry)
			if a.raw != nil {
				entry = a.raw(entry)
			}
			index := log.Append(entry)
			item := sidecartest.Item(index, entry, id, ciphertexts, "email")
			req := w.Request(log, item)
			if a.ask != nil {
				a.ask(req)
			}
			w.Clock.Advance(a.clock)
			resp, got := open(t, w, req)
			wantRefusal(t, got, a.code, a.why)
			w.Clock.Advance(-a.clock)
			if a.code == refused && (a.why == "checkpoint") != (len(resp.Cosignature) == 0) {
				t.Errorf("cosignature of %d bytes beside %q", len(resp.Cosignature), a.why)
			}
			if text := string(w.Stats.Text(nil)); !strings.Contains(text, `pdkeys_refused_total{why="`+a.why+`"} 1`) ||
				!strings.Contains(text, "pdkeys_opens_total 0") {
				t.Errorf("the refusal was not counted:\n%s", text)
			}

			// The refusal has used nothing up: with an honest record the same is served.
			if log != w.Log {
				w.Log.Grow(3)
			}
			entry = w.Entry(ref, []string{"email"}, nil)
			index = w.Log.Append(entry)
			_, got = open(t, w, w.Request(w.Log, sidecartest.Item(index, entry, id, ciphertexts, "email")))
			wantOpened(t, got, "email")
		})
	}
}

func TestAnotherSubjectsRecordOpensNothing(t *testing.T) {
	w := sidecartest.Bound(t)
	_, ref, _ := w.Subject("email")
	victim, _, ciphertexts := w.Subject("email")
	entry := w.Entry(ref, []string{"email"}, nil)
	index := w.Log.Append(entry)
	_, got := open(t, w, w.Request(w.Log, sidecartest.Item(index, entry, victim, ciphertexts, "email")))
	wantRefusal(t, got, keyspb.Code_PROOF_REFUSED, "other-subject")
}

func TestModes(t *testing.T) {
	for _, mode := range []string{verify.ModeReveal, verify.ModeMask, verify.ModeVerify} {
		t.Run(mode, func(t *testing.T) {
			w := sidecartest.Bound(t)
			id, ref, ciphertexts := w.Subject("email", "phone")
			ask := func(expect ...[]byte) *keyspb.OpenedItem {
				entry := w.Entry(ref, []string{"email", "phone"}, func(e *verify.Entry) { e.Mode = mode })
				item := sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email", "phone")
				for i, b := range expect {
					item.Fields[i].Expect = b
				}
				_, got := open(t, w, w.Request(w.Log, item))
				return got
			}
			got := ask(sidecartest.Value("email"), []byte(`"wrong"`))
			if got.Code != keyspb.Code_OK || !got.Fields[0].Match || got.Fields[1].Match {
				t.Errorf("comparing gave %v, want a match and a mismatch", got)
			}
			for _, f := range got.Fields {
				if len(f.Plaintext) > 0 {
					t.Error("comparing gave plaintext")
				}
			}
			if mode != verify.ModeVerify {
				wantOpened(t, ask(), "email", "phone")
				return
			}
			wantRefusal(t, ask(), keyspb.Code_PROOF_REFUSED, "compare-only")
			wantRefusal(t, ask(sidecartest.Value("email")), keyspb.Code_PROOF_REFUSED, "compare-only")
		})
	}
}

func TestARecordIsServedOnce(t *testing.T) {
	w := sidecartest.Bound(t)
	id, ref, ciphertexts := w.Subject("email")
	entry := w.Entry(ref, []string{"email"}, nil)
	index := w.Log.Append(entry)
	item := func() *keyspb.OpenItem { return sidecartest.Item(index, entry, id, ciphertexts, "email") }

	// Twice in one request, and again in the next.
	resp, err := w.Server.Open(t.Context(), w.Request(w.Log, item(), item()))
	if err != nil {
		t.Fatal(err)
	}
	wantOpened(t, resp.Items[0], "email")
	wantRefusal(t, resp.Items[1], keyspb.Code_REPLAYED, "served-before")
	_, got := open(t, w, w.Request(w.Log, item()))
	wantRefusal(t, got, keyspb.Code_REPLAYED, "served-before")

	// Its time runs out before its mark is dropped, also when the clock is set back after that.
	for _, step := range []time.Duration{30 * time.Second, 32 * time.Second, 10 * time.Second} {
		w.Clock.Advance(step)
		w.Log.Grow(1)
		_, got = open(t, w, w.Request(w.Log, item()))
		if got.Code == keyspb.Code_OK {
			t.Fatal("served again")
		}
	}
	fresh := w.Entry(ref, []string{"email"}, nil)
	_, got = open(t, w, w.Request(w.Log, sidecartest.Item(w.Log.Append(fresh), fresh, id, ciphertexts, "email")))
	wantOpened(t, got, "email")
	w.Clock.Advance(-72 * time.Second)
	_, got = open(t, w, w.Request(w.Log, item()))
	wantRefusal(t, got, keyspb.Code_REPLAYED, "served-before")
}

func TestConcurrentUsesOfOneRecordServeOne(t *testing.T) {
	w := sidecartest.Bound(t)
	id, ref, ciphertexts := w.Subject("email")
	for range 20 {
		entry := w.Entry(ref, []string{"email"}, nil)
		index := w.Log.Append(entry)
		var mu sync.Mutex
		codes := make(map[keyspb.Code]int)
		var wg sync.WaitGroup
		for range 8 {
			req := w.Request(w.Log, sidecartest.Item(index, entry, id, ciphertexts, "email"))
			wg.Go(func() {
				resp, err := w.Server.Open(t.Context(), req)
				if err != nil || resp.Stale {
					t.Errorf("Open = %v, %v", resp, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				codes[resp.Items[0].Code]++
			})
		}
		wg.Wait()
		if codes[keyspb.Code_OK] != 1 || codes[keyspb.Code_REPLAYED] != 7 {
			t.Fatalf("outcomes %v, want one OK and seven REPLAYED", codes)
		}
	}
}

func TestNothingWitnessedBeforeARestartIsServedAfterIt(t *testing.T) {
	w := sidecartest.Bound(t)
	id, ref, ciphertexts := w.Subject("email")
	served, unserved := w.Entry(ref, []string{"email"}, nil), w.Entry(ref, []string{"email"}, nil)
	first, second := w.Log.Append(served), w.Log.Append(unserved)
	_, got := open(t, w, w.Request(w.Log, sidecartest.Item(first, served, id, ciphertexts, "email")))
	wantOpened(t, got, "email")

	w.Restart()
	for index, entry := range map[int64][]byte{first: served, second: unserved} {
		_, got = open(t, w, w.Request(w.Log, sidecartest.Item(index, entry, id, ciphertexts, "email")))
		wantRefusal(t, got, keyspb.Code_UNAVAILABLE, "before-restart")
	}
	after := w.Entry(ref, []string{"email"}, nil)
	_, got = open(t, w, w.Request(w.Log, sidecartest.Item(w.Log.Append(after), after, id, ciphertexts, "email")))
	wantOpened(t, got, "email")
}

func TestARecordIsNotUsedUpByAFailure(t *testing.T) {
	for _, failure := range []error{keys.ErrUnavailable, keys.ErrSealed, keys.ErrForbidden, keys.ErrKEKMissing, sidecartest.ErrInjected} {
		t.Run(failure.Error(), func(t *testing.T) {
			w := sidecartest.Bound(t)
			id, ref, ciphertexts := w.Subject("email")
			entry := w.Entry(ref, []string{"email"}, nil)
			index := w.Log.Append(entry)
			w.Ring.FailOnce("Open", failure)
			_, got := open(t, w, w.Request(w.Log, sidecartest.Item(index, entry, id, ciphertexts, "email")))
			if got.Code != keys.CodeOf(failure) {
				t.Errorf("got %v, want %v", got.Code, keys.CodeOf(failure))
			}
			_, got = open(t, w, w.Request(w.Log, sidecartest.Item(index, entry, id, ciphertexts, "email")))
			wantOpened(t, got, "email")
		})
	}
}

func TestTheCheckpointIsKeptBeforeAnythingOpens(t *testing.T) {
	w := sidecartest.Bound(t)
	id, ref, ciphertexts := w.Subject("email")
	w.Log.Grow(2)
	entry := w.Entry(ref, []string{"email"}, nil)
	index := w.Log.Append(entry)
	item := func() *keyspb.OpenItem { return sidecartest.Item(index, entry, id, ciphertexts, "email") }

	// When it cannot be kept, nothing opens and nothing is cosigned.
	w.Ring.FailOnce("SaveState", sidecartest.ErrInjected)
	resp, got := open(t, w, w.Request(w.Log, item()))
	wantRefusal(t, got, keyspb.Code_UNAVAILABLE, "not-saved")
	if len(resp.Cosignature) > 0 {
		t.Error("a checkpoint was cosigned that is not kept")
	}
	if slices.Contains(w.Ring.Calls(), "Open") {
		t.Error("the keyring was asked to open before the checkpoint was kept")
	}

	_, got = open(t, w, w.Request(w.Log, item()))
	wantOpened(t, got, "email")
	calls := w.Ring.Calls()
	kept := slices.IndexFunc(calls, func(c string) bool {
		return strings.HasPrefix(c, "SaveState sidecar/witnessed pdvault/witnessed/v1\n"+sidecartest.Origin+"\n3\n")
	})
	if opened := slices.Index(calls, "Open"); kept < 0 || opened < kept {
		t.Errorf("calls in another order: %q", calls)
	}
}

func TestAnUnboundSidecarOpensNothing(t *testing.T) {
	w := sidecartest.New(t)
	id, ref, ciphertexts := w.Subject("email")
	entry := w.Entry(ref, []string{"email"}, nil)
	index := w.Log.Append(entry)
	_, got := open(t, w, w.Request(w.Log, sidecartest.Item(index, entry, id, ciphertexts, "email")))
	wantRefusal(t, got, keyspb.Code_PROOF_REFUSED, "not-bound")
}

func TestManyItemsEachForItself(t *testing.T) {
	w := sidecartest.Bound(t)
	var items []*keyspb.OpenItem
	for i := range 60 {
		id, ref, ciphertexts := w.Subject("email")
		entry := w.Entry(ref, []string{"email"}, func(e *verify.Entry) {
			if i%3 == 0 {
				e.Decision = verify.Deny
			}
		})
		items = append(items, sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email"))
	}
	resp, err := w.Server.Open(t.Context(), w.Request(w.Log, items...))
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range resp.Items {
		if i%3 == 0 {
			wantRefusal(t, got, keyspb.Code_PROOF_REFUSED, "not-allowed")
			continue
		}
		wantOpened(t, got, "email")
	}
	if text := string(w.Stats.Text(nil)); !strings.Contains(text, "pdkeys_opens_total 40\n") || !strings.Contains(text, `{why="not-allowed"} 20`) {
		t.Errorf("counters:\n%s", text)
	}
}

func TestTooManyItemsAreRefusedAsAWhole(t *testing.T) {
	w := sidecartest.Bound(t)
	for name, call := range map[string]func(context.Context) error{
		"Open": func(ctx context.Context) error {
			_, err := w.Server.Open(ctx, &keyspb.OpenRequest{Items: make([]*keyspb.OpenItem, sidecar.MaxItems+1)})
			return err
		},
		"Open nothing": func(ctx context.Context) error {
			_, err := w.Server.Open(ctx, &keyspb.OpenRequest{})
			return err
		},
		"Seal": func(ctx context.Context) error {
			_, err := w.Server.Seal(ctx, &keyspb.SealRequest{Subjects: make([]*keyspb.SealSubject, sidecar.MaxItems+1)})
			return err
		},
		"Prepare": func(ctx context.Context) error {
			_, err := w.Server.Prepare(ctx, &keyspb.PrepareRequest{Items: make([]*keyspb.PrepareItem, sidecar.MaxItems+1)})
			return err
		},
		"Index": func(ctx context.Context) error {
			_, err := w.Server.Index(ctx, &keyspb.IndexRequest{Values: make([]*keyspb.IndexValue, sidecar.MaxItems+1)})
			return err
		},
		"Protect": func(ctx context.Context) error {
			_, err := w.Server.Protect(ctx, &keyspb.ProtectRequest{Label: "x", Data: make([]byte, sidecar.MaxProtected+1)})
			return err
		},
	} {
		if err := call(t.Context()); codeOf(t, err) != keyspb.Code_INVALID {
			t.Errorf("%s = %v, want INVALID", name, err)
		}
	}
	if n := len(w.Ring.Calls()); n != 1 { // the binding
		t.Errorf("the keyring was called: %q", w.Ring.Calls())
	}
}

func TestSealReportsEachSubjectForItself(t *testing.T) {
	w := sidecartest.Bound(t)
	good, bad := uuid.New(), uuid.New()
	field := &keyspb.SealField{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte(`"x"`)}
	resp, err := w.Server.Seal(t.Context(), &keyspb.SealRequest{Subjects: []*keyspb.SealSubject{
		{Subject: good[:], Create: true, Fields: []*keyspb.SealField{field}},
		{Subject: bad[:], Fields: []*keyspb.SealField{{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte(`"x"`)}}},
		{Subject: []byte("short")},
		nil,
		{Subject: bad[:], Fields: []*keyspb.SealField{nil}},
		{Subject: bad[:], Fields: []*keyspb.SealField{{Collection: "profile", Field: strings.Repeat("x", sidecar.MaxName+1), Plaintext: []byte("1")}}},
		{Subject: bad[:], Fields: []*keyspb.SealField{{Collection: "profile", Field: "both", Plaintext: []byte("1"), Carry: []byte("1")}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []keyspb.Code{keyspb.Code_OK, keyspb.Code_NO_KEY, keyspb.Code_INVALID, keyspb.Code_INVALID, keyspb.Code_INVALID, keyspb.Code_INVALID, keyspb.Code_INVALID}
	for i, s := range resp.Subjects {
		if s.Code != want[i] {
			t.Errorf("subject %d: %v, want %v", i, s.Code, want[i])
		}
	}
	if !bytes.Equal(field.Plaintext, make([]byte, 3)) {
		t.Error("the plaintext of the request was not wiped")
	}
}

// codeOf returns the code that a failed call carries.
func codeOf(t *testing.T, err error) keyspb.Code {
	t.Helper()
	for _, d := range detailsOf(err) {
		if item, ok := d.(*keyspb.OpenedItem); ok {
			return item.Code
		}
	}
	if err == nil {
		return keyspb.Code_OK
	}
	t.Errorf("error without a code: %v", err)
	return -1
}
