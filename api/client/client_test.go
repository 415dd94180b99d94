package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/client"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/schema"
)

// start returns a client of a real server over b, authenticated as caller.
func start(t *testing.T, b *servertest.Broker, caller string, retries int) *client.Client {
	t.Helper()
	s := httptest.NewServer(servertest.MustServer(t, b, server.Config{}).Handler())
	t.Cleanup(s.Close)
	return mustClient(t, client.Config{Server: s.URL, Token: servertest.Token(caller), Retries: retries})
}

func mustClient(t *testing.T, config client.Config) *client.Client {
	t.Helper()
	c, err := client.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestCalls makes every call once.
func TestCalls(t *testing.T) {
	b := servertest.NewBroker(t)
	c := start(t, b, "shop", -1)
	ctx := t.Context()
	record := jsontext.Value(`{"email":"ada@example.org","name":"Ada Example"}`)

	created := must[api.SubjectCreated](t)(c.CreateSubject(ctx, `a "key" \`, map[string]jsontext.Value{"profile": record}))
	if again := must[api.SubjectCreated](t)(c.CreateSubject(ctx, `a "key" \`, map[string]jsontext.Value{"profile": record})); again != created {
		t.Errorf("repeated: %+v, then %+v", created, again)
	}
	id := uuid.MustParse(created.ID)

	read := must[api.Record](t)(c.Read(ctx, client.Read{
		Subject: id, Collection: "profile", Purpose: "support", Fields: []string{"name"}, Mode: "reveal",
		Reason: client.Reason{Reference: "T-1", Justification: "called, in Україна"},
	}))
	if string(read.Fields["name"]) != `"Ada Example"` || len(read.Fields) != 1 || read.Access.Ground != "service" {
		t.Errorf("read: %+v", read)
	}
	batch := must[[]api.ReadResult](t)(c.ReadBatch(ctx, api.Reads{Purpose: "support", Reads: []api.Read{
		{Subject: created.ID, Collection: "profile"}, {Subject: uuid.NewString(), Collection: "profile"},
	}}, client.Reason{}))
	if batch[0].Read == nil || batch[1].Problem == nil || !errors.Is(client.ProblemError(batch[1].Problem), access.ErrNotFound) {
		t.Errorf("batch: %+v", batch)
	}
	if found := must[api.LookupResult](t)(c.Lookup(ctx, api.Lookup{Purpose: "support", Collection: "profile", Field: "email", Value: "ada@example.org"}, client.Reason{})); len(found.Subjects) != 1 || found.Subjects[0] != created.ID {
		t.Errorf("lookup: %+v", found)
	}
	if v := must[api.VerificationResult](t)(c.Verify(ctx, api.Verification{Purpose: "support", Subject: created.ID, Collection: "profile", Field: "name", Value: jsontext.Value(`"x"`)}, client.Reason{})); v.Match {
		t.Errorf("verify: %+v", v)
	}
	if a := must[api.AccessCheckResult](t)(c.Check(ctx, api.AccessCheck{Purpose: "newsletter", Subject: created.ID, Collection: "profile"}, client.Reason{})); a.Allow || a.Missing[0].Kind != "consent" {
		t.Errorf("check: %+v", a)
	}
	if w := must[api.RecordWritten](t)(c.PutRecord(ctx, id, "profile", record, client.Condition{Version: 1})); w.Version != 2 || w.Created {
		t.Errorf("put: %+v", w)
	}
	if w := must[api.RecordWritten](t)(c.PutRecord(ctx, id, "passport", []byte(`{"number":"x"}`), client.Condition{Absent: true})); !w.Created {
		t.Errorf("put new: %+v", w)
	}
	if w := must[api.RecordWritten](t)(c.PatchRecord(ctx, id, "profile", []byte(`{"name":null}`), client.Condition{Version: 2})); w.Version != 3 {
		t.Errorf("patch: %+v", w)
	}
	if err := c.DeleteRecord(ctx, id, "profile", client.Condition{Version: 3}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if r := must[api.RestrictionChanged](t)(c.Restrict(ctx, id, "contested")); !r.Restricted {
		t.Errorf("restrict: %+v", r)
	}
	if s := must[api.Subject](t)(c.Subject(ctx, id)); !s.Restricted || len(s.Records) != 1 {
		t.Errorf("subject: %+v", s)
	}
	if r := must[api.RestrictionChanged](t)(c.Unrestrict(ctx, id, "settled")); r.Restricted {
		t.Errorf("unrestrict: %+v", r)
	}
	receipt := must[api.Receipt](t)(c.GiveConsent(ctx, "k", id, api.GiveConsent{Purpose: "newsletter", Capture: jsontext.Value(`{"ui":"box"}`)}))
	if receipt.SchemaVersion != api.ReceiptSchema || receipt.Consent.Purpose != "newsletter" {
		t.Errorf("receipt: %+v", receipt)
	}
	if list := must[[]api.Consent](t)(c.Consents(ctx, id)); len(list) != 1 {
		t.Errorf("consents: %+v", list)
	}
	if w := must[api.Consent](t)(c.WithdrawConsent(ctx, uuid.MustParse(receipt.RecordID))); w.State != "ConsentWithdrawn" || w.WithdrawnEntry == nil {
		t.Errorf("withdraw: %+v", w)
	}
	page := must[api.AccessRecords](t)(c.AccessRecords(ctx, client.Filter{Limit: 2, Subject: id, From: servertest.Start, Ground: "service"}))
	if len(page.Records) != 2 || page.Next == "" {
		t.Errorf("page: %+v", page)
	}
	if next := must[api.AccessRecords](t)(c.AccessRecords(ctx, client.Filter{Limit: 1000, Cursor: page.Next})); next.Records[0].Index != 2 || next.Next != "" {
		t.Errorf("next page: %+v", next)
	}
	entry := must[api.AccessRecord](t)(c.AccessRecord(ctx, 1))
	if entry.Index != 1 || !strings.HasPrefix(string(entry.Entry), `{"t":"pdvault/entry/v1"`) {
		t.Errorf("entry: %s", entry.Entry)
	}
	if proof := must[[]byte](t)(c.Proof(ctx, 1)); !strings.Contains(string(proof), "index 1") {
		t.Errorf("proof: %s", proof)
	}
	if cp := must[[]byte](t)(c.Checkpoint(ctx)); !strings.HasPrefix(string(cp), "localhost/ledger\n") {
		t.Errorf("checkpoint: %s", cp)
	}
	if tile := must[[]byte](t)(c.Tile(ctx, "tile/entries/000.p/3")); string(tile) != "tile/entries/000.p/3" {
		t.Errorf("tile: %s", tile)
	}
	if v := must[api.PolicyVersion](t)(c.PublishPolicy(ctx, []byte("{ }\n"))); v.Version != 2 {
		t.Errorf("publish: %+v", v)
	}
	version, bundle, err := c.Policy(ctx)
	if err != nil || version != 2 || string(bundle) != "{ }\n" {
		t.Errorf("policy: %d %q %v", version, bundle, err)
	}
	if _, err := c.PolicyVersion(ctx, 1); err != nil {
		t.Error(err)
	}
	if list := must[[]api.PolicyVersion](t)(c.PolicyVersions(ctx)); len(list) != 2 {
		t.Errorf("versions: %+v", list)
	}
}

// TestErasureCalls erases, and asks for the certificate and the act again.
func TestErasureCalls(t *testing.T) {
	b := servertest.NewBroker(t)
	c := start(t, b, "privacy", -1)
	id := b.MustCreate("profile", `{"name":"x"}`)
	first := must[erasure.Certificate](t)(c.Erase(t.Context(), id, api.ReasonSubjectRequest))
	if first.Subject != id.String() || first.Salt == "" || first.Reason != api.ReasonSubjectRequest {
		t.Errorf("erase: %s", first.Encode())
	}
	again := must[erasure.Certificate](t)(c.Erasure(t.Context(), uuid.MustParse(first.ID)))
	if again.Subject != "" || again.Salt != "" || again.ID != first.ID {
		t.Errorf("certificate: %s", again.Encode())
	}
	again.Subject, again.Salt = first.Subject, first.Salt
	if string(again.Encode()) != string(first.Encode()) {
		t.Errorf("certificate: %s, then %s", first.Encode(), again.Encode())
	}

	other := b.MustCreate("profile", `{"name":"x"}`)
	b.LeaveErasures(true)
	_, err := c.Erase(t.Context(), other, api.ReasonUnlawful)
	var pending *access.PendingErasureError
	if !errors.As(err, &pending) || pending.Salt == "" {
		t.Fatalf("pending: %v", err)
	}
	if _, err := c.Erasure(t.Context(), pending.ID); !errors.Is(err, access.ErrErasurePending) {
		t.Errorf("pending: %v", err)
	}
	b.LeaveErasures(false)
	_, _ = c.Erasure(t.Context(), pending.ID) // asked for once more
	later := must[erasure.Certificate](t)(c.Erasure(t.Context(), pending.ID))
	later.Subject, later.Salt = other.String(), pending.Salt
	if _, err := erasure.Parse(later.Encode()); err != nil {
		t.Errorf("with the salt of the pending one: %v", err)
	}
	if _, err := c.Erase(t.Context(), uuid.New(), api.ReasonUnlawful); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	var field *access.FieldError
	if _, err := c.Erase(t.Context(), id, "because"); !errors.As(err, &field) || field.Field != "/reason" || !strings.Contains(field.Why, api.ReasonUnlawful) {
		t.Errorf("reason: %v", err)
	}
}

// TestKeyCalls starts a rotation and follows it to its end.
func TestKeyCalls(t *testing.T) {
	b := servertest.NewBroker(t)
	c := start(t, b, "security", -1)
	ctx := t.Context()
	if k := must[api.Keys](t)(c.Keys(ctx)); len(k.Versions) != 3 || k.Generation != 1<<56+7 || k.Running != nil || k.EpochIntervalSeconds != 7*24*3600 || !k.Versions[0].Overdue {
		t.Errorf("keys: %+v", k)
	}
	if list := must[[]api.Rotation](t)(c.Rotations(ctx)); len(list) != 0 {
		t.Errorf("rotations: %+v", list)
	}
	started := must[api.Rotation](t)(c.StartRotation(ctx, api.ScopeAllSubjects, uuid.Nil))
	if started.State != api.RotationRunning || started.By != "security" || started.Percent != 0 || started.ETASeconds != nil || started.Record != nil {
		t.Errorf("started: %+v", started)
	}
	if k := must[api.Keys](t)(c.Keys(ctx)); k.Running == nil || k.Running.ID != started.ID {
		t.Errorf("keys: %+v", k)
	}
	var running *access.RotationError
	if _, err := c.StartRotation(ctx, api.ScopeKEK, uuid.Nil); !errors.Is(err, keys.ErrJobRunning) || !errors.As(err, &running) || running.Running.String() != started.ID {
		t.Errorf("a second one: %v", err)
	}
	id := uuid.MustParse(started.ID)
	if r := must[api.Rotation](t)(c.Rotation(ctx, id)); r.Done != 1 || r.Percent != 10 || r.ETASeconds == nil || *r.ETASeconds != 9*60 {
		t.Errorf("after a tenth: %+v", r)
	}
	for range 9 {
		must[[]api.Rotation](t)(c.Rotations(ctx))
	}
	if r := must[api.Rotation](t)(c.Rotation(ctx, id)); r.State != api.RotationDone || r.Percent != 100 || r.ETASeconds != nil || r.Record == nil || r.Evidence == "" || r.Finished.IsZero() {
		t.Errorf("at the end: %+v", r)
	}
	if _, err := c.Rotation(ctx, uuid.New()); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
}

// TestTable sends each row of the server's error table over the wire: the client must get the sentinel of
// its problem type back.
func TestTable(t *testing.T) {
	want := map[string]error{
		api.ProblemAccessDenied:         access.ErrDenied,
		api.ProblemBusy:                 access.ErrBusy,
		api.ProblemIdempotencyMismatch:  access.ErrIdempotencyMismatch,
		api.ProblemIntegrity:            access.ErrIntegrity,
		api.ProblemInvalidRequest:       access.ErrInvalid,
		api.ProblemKeyService:           access.ErrUnavailable,
		api.ProblemClock:                access.ErrUnavailable,
		api.ProblemLimitReached:         client.ErrLimitReached,
		api.ProblemLog:                  access.ErrUnavailable,
		api.ProblemMethodNotAllowed:     client.ErrProtocol,
		api.ProblemNotFound:             access.ErrNotFound,
		api.ProblemNotUnique:            access.ErrNotUnique,
		api.ProblemRateLimited:          access.ErrLimited,
		api.ProblemSchemaViolation:      access.ErrInvalid,
		api.ProblemStorageFull:          client.ErrStorageFull,
		api.ProblemTimeout:              client.ErrTimeout,
		api.ProblemTooLarge:             client.ErrTooLarge,
		api.ProblemBatchTooLarge:        access.ErrBatchTooLarge,
		api.ProblemUnauthenticated:      client.ErrUnauthenticated,
		api.ProblemUnsupportedMediaType: client.ErrProtocol,
		api.ProblemRotationRunning:      keys.ErrJobRunning,
		api.ProblemDecryptBudget:        access.ErrLimited,
		api.ProblemErasurePending:       access.ErrErasurePending,
		api.ProblemVersionMismatch:      access.ErrVersion,
		api.ProblemVersionRequired:      access.ErrVersionRequired,
	}
	b := servertest.NewBroker(t)
	c := start(t, b, "shop", -1)
	for _, row := range server.Mappings() {
		if row.Type == api.ProblemClientClosed {
			continue // nobody receives it
		}
		t.Run(row.Err.Error(), func(t *testing.T) {
			b.Fail(fmt.Errorf("doing: %w", row.Err))
			_, err := c.Subject(t.Context(), uuid.New())
			var problem *client.Error
			if !errors.As(err, &problem) || problem.Status != row.Status || problem.Problem.Type != row.Type {
				t.Fatalf("%v", err)
			}
			sentinel := want[row.Type]
			if sentinel == nil {
				t.Fatalf("no sentinel is expected for %s", row.Type)
			}
			if !errors.Is(err, sentinel) {
				t.Errorf("%v is not %v", err, sentinel)
			}
			if strings.HasPrefix(row.Err.Error(), "access: ") && !errors.Is(err, row.Err) {
				t.Errorf("%v did not survive", row.Err)
			}
			if got := int(problem.RetryAfter / time.Second); got != row.RetryAfter {
				t.Errorf("Retry-After %d", got)
			}
		})
	}
	b.Fail(errors.New("anything"))
	if _, err := c.Subject(t.Context(), uuid.New()); !errors.Is(err, client.ErrInternal) {
		t.Errorf("internal: %v", err)
	}
}

// TestTypedErrors checks what typed errors carry over the wire.
func TestTypedErrors(t *testing.T) {
	b := servertest.NewBroker(t)
	c := start(t, b, "shop", -1)
	get := func(err error) error {
		b.Fail(err)
		_, err = c.Subject(t.Context(), uuid.New())
		return err
	}
	var denied *access.DeniedError
	err := get(&access.DeniedError{Reason: policy.ReasonConsentMissing, Record: 41, Missing: []policy.Missing{{Kind: "consent", Name: "newsletter"}}})
	if !errors.As(err, &denied) || denied.Record != 41 || denied.Reason != policy.ReasonConsentMissing || denied.Missing[0].Name != "newsletter" {
		t.Errorf("%v", err)
	}
	if err := get(&access.DeniedError{Reason: policy.ReasonRoleNotAllowed, Record: -1}); !errors.As(err, &denied) || denied.Record != -1 {
		t.Errorf("%v", err)
	}
	var field *access.FieldError
	if err := get(&access.FieldError{Field: "/purpose", Why: "is unknown"}); !errors.As(err, &field) || *field != (access.FieldError{Field: "/purpose", Why: "is unknown"}) {
		t.Errorf("%v", err)
	}
	if err := get(&schema.ValidationError{Violations: []schema.Violation{{Pointer: "/email", Rule: "format"}}}); !errors.As(err, &field) || field.Field != "/email" || !errors.Is(err, access.ErrInvalid) {
		t.Errorf("%v", err)
	}
	var pending *access.PendingErasureError
	certificate := uuid.New()
	salt, _ := erasure.Commit("x")
	if err := get(&access.PendingErasureError{ID: certificate, Entry: 61, Salt: salt, Cause: keys.ErrSealed}); !errors.As(err, &pending) ||
		*pending != (access.PendingErasureError{ID: certificate, Entry: 61, Salt: salt}) || errors.Is(err, keys.ErrSealed) {
		t.Errorf("%v", err)
	}
	var unique *access.NotUniqueError
	if err := get(&access.NotUniqueError{Collection: "profile", Field: "email"}); !errors.As(err, &unique) || unique.Collection != "profile" || unique.Field != "email" {
		t.Errorf("%v", err)
	}
}

// TestRetries checks that only calls that may be repeated are, and not for ever.
func TestRetries(t *testing.T) {
	var calls atomic.Int64
	var answer atomic.Pointer[string]
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) > 2 && *answer.Load() != "never" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write([]byte(`{"id":"x"}`))
			return
		}
		w.Header().Set("Content-Type", api.ProblemMediaType)
		if *answer.Load() != "no retry-after" {
			w.Header().Set("Retry-After", "1")
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"type":"` + api.ProblemBusy + `","title":"busy","status":503}`))
	}))
	defer s.Close()
	c := mustClient(t, client.Config{Server: s.URL, Retries: 3})
	var slept time.Duration
	c.SetSleep(func(_ context.Context, d time.Duration) error { slept += d; return nil })
	for name, test := range map[string]struct {
		answer string
		call   func() error
		calls  int64
		fails  bool
	}{
		"read":           {"soon", func() error { _, err := c.Subject(t.Context(), uuid.New()); return err }, 3, false},
		"with key":       {"soon", func() error { _, err := c.CreateSubject(t.Context(), "k", nil); return err }, 3, false},
		"without key":    {"soon", func() error { _, err := c.CreateSubject(t.Context(), "", nil); return err }, 1, true},
		"write":          {"soon", func() error { return c.DeleteRecord(t.Context(), uuid.New(), "p", client.Condition{}) }, 1, true},
		"erasure":        {"soon", func() error { _, err := c.Erase(t.Context(), uuid.New(), api.ReasonUnlawful); return err }, 1, true},
		"rotation":       {"soon", func() error { _, err := c.StartRotation(t.Context(), api.ScopeKEK, uuid.Nil); return err }, 1, true},
		"never":          {"never", func() error { _, err := c.Subject(t.Context(), uuid.New()); return err }, 4, true},
		"no retry-after": {"no retry-after", func() error { _, err := c.Subject(t.Context(), uuid.New()); return err }, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			calls.Store(0)
			answer.Store(&test.answer)
			err := test.call()
			if (err != nil) != test.fails || calls.Load() != test.calls || err != nil && !errors.Is(err, access.ErrBusy) {
				t.Errorf("%d calls, %v", calls.Load(), err)
			}
		})
	}
	if slept < 3*time.Second {
		t.Errorf("slept %v: Retry-After was not kept to", slept)
	}
}

// TestErrorsSayNothing checks that neither token nor subject is in an error.
func TestErrorsSayNothing(t *testing.T) {
	id := uuid.New()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	c := mustClient(t, client.Config{Server: closed.URL, Token: "canary"})
	_, err := c.Read(t.Context(), client.Read{Subject: id, Collection: "profile", Purpose: "p"})
	if err == nil || strings.Contains(err.Error(), id.String()) || strings.Contains(err.Error(), "canary") {
		t.Errorf("%v", err)
	}
	html := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte("<html>canary"))
	}))
	defer html.Close()
	c = mustClient(t, client.Config{Server: html.URL})
	if _, err := c.Subject(t.Context(), id); !errors.Is(err, client.ErrProtocol) || strings.Contains(err.Error(), "canary") {
		t.Errorf("%v", err)
	}
}

// TestRedirect checks that the token does not follow a redirect.
func TestRedirect(t *testing.T) {
	var reached atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer other.Close()
	s := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer s.Close()
	c := mustClient(t, client.Config{Server: s.URL, Token: "t"})
	if _, err := c.Subject(t.Context(), uuid.New()); err == nil || reached.Load() {
		t.Errorf("followed: %v, %v", reached.Load(), err)
	}
}

func TestConfig(t *testing.T) {
	for _, bad := range []client.Config{
		{}, {Server: "127.0.0.1:8080"}, {Server: "ftp://x"}, {Server: "http://user:pw@127.0.0.1"}, {Server: "http://127.0.0.1/path"},
		{Server: "http://vault.example.org"}, {Server: "http://127.0.0.1", Token: "a b"}, {Server: "http://127.0.0.1", Token: "a\r\nb"},
	} {
		if _, err := client.New(bad); err == nil || bad.Token != "" && strings.Contains(err.Error(), bad.Token) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, good := range []client.Config{
		{Server: "http://127.0.0.1:8080/"}, {Server: "http://[::1]:8080"}, {Server: "http://localhost"}, {Server: "https://vault.example.org"},
		{Server: "http://vault.example.org", PlainHTTP: true}, {Server: "unix:/run/pdvault/api.sock"},
	} {
		if _, err := client.New(good); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}
