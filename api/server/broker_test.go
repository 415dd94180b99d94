package server_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// world is the server over a real broker, with a real ledger and a real sidecar; only the jobs of the sidecar are
// stood in for.
type world struct {
	t      *testing.T
	ledger *ledger.Ledger
	server http.Handler
	jobs   *jobs
}

// jobs stands for the sidecar's part in rotations.
type jobs struct{ list []access.RotationJob }

func (*jobs) Inventory(context.Context) (access.KeyInventory, error) {
	return access.KeyInventory{KEK: "local", Counted: time.Now(), Versions: []access.KeyCount{{Kind: "kek", Version: 1, Newest: true}}}, nil
}

func (j *jobs) StartJob(_ context.Context, scope string, subject uuid.UUID, by string) (access.RotationJob, error) {
	if len(j.list) > 0 {
		return access.RotationJob{}, keys.ErrJobRunning
	}
	j.list = []access.RotationJob{{ID: uuid.NewString(), Scope: scope, Subject: subject, By: by, State: access.RotationRunning, Recorded: -1}}
	return j.list[0], nil
}

func (j *jobs) Jobs(context.Context) ([]access.RotationJob, error) { return slices.Clone(j.list), nil }

type prover struct{ *ledger.Ledger }

func (p prover) Checkpoint() ([]byte, int64) {
	cp := p.Ledger.Checkpoint()
	return cp.Note, cp.Size
}

func (p prover) Cosigned(int64, []byte) {}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, jobs: new(jobs)}
	store, sidecar := memkv.New(), sidecartest.New(t)
	t.Cleanup(func() { _ = store.Close() })
	sidecar.Serve()
	c, err := client.Dial(t.Context(), client.Config{Socket: sidecar.Socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	const origin = "test.pdvault/ledger"
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if w.ledger, err = ledger.Create(t.Context(), ledger.Config{Store: store, Origin: origin, Signer: signer, Verifier: verifier}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.ledger.Close() })
	c.SetProver(prover{w.ledger})
	if err := c.Bind(t.Context(), origin, vkey); err != nil {
		t.Fatal(err)
	}
	v, err := vault.New(c)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := policy.LoadDir(defaultpolicy.FS)
	if err != nil {
		t.Fatal(err)
	}
	b, err := access.Bootstrap(t.Context(), access.Config{
		Store: store, Ledger: w.ledger, Vault: v, Opener: c, Sidecar: sidecar.Ring.SidecarID(),
		FailureCode: func(error) string { return "injected" }, Stale: func(error) bool { return false }, Keys: w.jobs,
	}, raw)
	if err != nil {
		t.Fatal(err)
	}
	w.server = servertest.MustServer(t, b, server.Config{}).Handler()
	return w
}

func (w *world) do(c call) *httptest.ResponseRecorder {
	w.t.Helper()
	return do(w.t, w.server, c)
}

func (w *world) mustCreate() string {
	w.t.Helper()
	got := w.do(call{method: "POST", path: "/v1/subjects", body: `{"records":{"profile":{"email":"someone@example.org"}}}`})
	var created api.SubjectCreated
	if err := json.Unmarshal(got.Body.Bytes(), &created); err != nil || got.Code != 201 {
		w.t.Fatalf("creating: %d %s", got.Code, got.Body)
	}
	return created.ID
}

// newest returns the newest entry of the ledger and the size.
func (w *world) newest() (verify.Entry, int64) {
	w.t.Helper()
	size := w.ledger.Checkpoint().Size
	raw, err := w.ledger.Entry(w.t.Context(), size-1)
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := verify.ParseEntry(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	return e, size
}

// A caller that may not erase learns nothing from trying: a subject that is there and one that never was give the
// same answer but for what numbers it. Each attempt is on record, and nothing is changed.
func TestWhoMayNotEraseLearnsNothing(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate()
	for _, caller := range []string{"shop", "courier", "legal", "security", "auditor"} {
		var shapes []api.Problem
		for _, subject := range []string{id, uuid.NewString()} {
			_, before := w.newest()
			got := w.do(call{as: caller, method: "DELETE", path: "/v1/subjects/" + subject, route: "/v1/subjects/{id}", body: `{"reason":"unlawful"}`})
			p := problem(t, got)
			e, after := w.newest()
			if got.Code != 403 || got.Body.Len() != api.PadProblems || p.AccessRecord == nil || *p.AccessRecord != before || after != before+1 {
				t.Fatalf("%s: %d with %d bytes, %+v", caller, got.Code, got.Body.Len(), p)
			}
			if e.Decision != verify.Deny || e.Mode != policy.ActionErase || e.Caller.ID != caller {
				t.Errorf("%s: recorded %+v", caller, e)
			}
			p.AccessRecord, p.RequestID = nil, ""
			shapes = append(shapes, p)
		}
		if shapes[0].Type != shapes[1].Type || shapes[0].Reason != shapes[1].Reason || !slices.Equal(shapes[0].Missing, shapes[1].Missing) {
			t.Errorf("%s: %+v, %+v", caller, shapes[0], shapes[1])
		}
	}
	if got := w.do(call{as: "privacy", method: "GET", path: "/v1/subjects/" + id, route: "/v1/subjects/{id}"}); got.Code != 200 {
		t.Errorf("afterwards: %d", got.Code)
	}
	if got := w.do(call{as: "privacy", method: "DELETE", path: "/v1/subjects/" + uuid.NewString(), route: "/v1/subjects/{id}", body: `{"reason":"unlawful"}`}); got.Code != 404 {
		t.Errorf("absent, to who may know: %d", got.Code)
	}
	if got := w.do(call{as: "privacy", method: "GET", path: "/v1/erasures/" + uuid.NewString(), route: "/v1/erasures/{id}"}); got.Code != 404 {
		t.Errorf("no such certificate: %d", got.Code)
	}
	if got := w.do(call{as: "shop", method: "GET", path: "/v1/erasures/" + uuid.NewString(), route: "/v1/erasures/{id}"}); got.Code != 403 {
		t.Errorf("certificates are not for the shop: %d", got.Code)
	}
}

// What is malformed is refused before anybody decides: nothing is recorded and nothing begins.
func TestMalformedRequestsAboutKeysLeaveNoTrace(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate()
	_, before := w.newest()
	for _, body := range []string{
		`{}`, `{"scope":""}`, `{"scope":"all"}`, `{"scope":"subject"}`, `{"scope":"kek","subject":"` + id + `"}`, `{"scope":"subject","subject":"` + id + `x"}`,
	} {
		if got := w.do(call{as: "security", method: "POST", path: "/v1/keys/rotations", body: body}); got.Code != 400 || len(problem(t, got).Violations) != 1 {
			t.Errorf("%s: %d %s", body, got.Code, got.Body)
		}
	}
	for _, body := range []string{"", `{}`, `{"reason":""}`, `{"reason":"because"}`} {
		if got := w.do(call{as: "privacy", method: "DELETE", path: "/v1/subjects/" + id, route: "/v1/subjects/{id}", body: body}); got.Code != 400 || problem(t, got).Violations[0].Pointer != "/reason" {
			t.Errorf("%s: %d %s", body, got.Code, got.Body)
		}
	}
	if _, after := w.newest(); after != before || len(w.jobs.list) != 0 {
		t.Errorf("%d entries, %d rotations", after-before, len(w.jobs.list))
	}
}

func TestRotationsAreForTheSecurityTeam(t *testing.T) {
	w := newWorld(t)
	id := w.mustCreate()
	rotate := call{as: "privacy", method: "POST", path: "/v1/keys/rotations", body: `{"scope":"subject","subject":"` + id + `"}`}
	if got := w.do(rotate); got.Code != 403 || len(w.jobs.list) != 0 {
		t.Errorf("another role: %d %s", got.Code, got.Body)
	}
	if e, _ := w.newest(); e.Mode != policy.ActionKeysRotate || e.Decision != verify.Deny || e.SubjectRef == "" {
		t.Errorf("recorded %+v", e)
	}
	rotate.as = "security"
	started := w.do(rotate)
	var r api.Rotation
	if err := json.Unmarshal(started.Body.Bytes(), &r); err != nil || started.Code != 202 || r.Subject != id || r.By != "security" {
		t.Fatalf("%d %s", started.Code, started.Body)
	}
	if got := w.do(rotate); got.Code != 409 || problem(t, got).Rotation != r.ID {
		t.Errorf("a second one: %d %s", got.Code, got.Body)
	}
	if got := w.do(call{as: "security", method: "GET", path: started.Header().Get("Location"), route: "/v1/keys/rotations/{id}"}); got.Code != 200 || got.Body.String() != started.Body.String() {
		t.Errorf("followed: %d %s", got.Code, got.Body)
	}
	for _, path := range []string{"/v1/keys", "/v1/keys/rotations"} {
		if got := w.do(call{as: "security", method: "GET", path: path}); got.Code != 200 {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
		if got := w.do(call{as: "auditor", method: "GET", path: path}); got.Code != 403 {
			t.Errorf("%s for an auditor: %d", path, got.Code)
		}
	}
}
