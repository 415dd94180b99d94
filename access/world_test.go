package access_test

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// world is a broker over a real ledger, and a real sidecar behind a real socket. Only the store is in memory,
// with a switch to make its commits fail.
type world struct {
	*access.Broker
	t       *testing.T
	store   *faultyStore
	ledger  *ledger.Ledger
	key     note.Verifier // of the ledger
	sidecar *sidecartest.World
	config  access.Config
	clock   *atomic.Int64 // seconds that the broker's clock is ahead
}

// faultyStore is a memkv whose Update can be made to fail.
type faultyStore struct {
	kv.Store
	mu   sync.Mutex
	fail error
}

func (s *faultyStore) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *faultyStore) Update(ctx context.Context, fn func(kv.Writer) error) error {
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		return fail
	}
	return s.Store.Update(ctx, fn)
}

type prover struct{ *ledger.Ledger }

func (p prover) Checkpoint() ([]byte, int64) {
	cp := p.Ledger.Checkpoint()
	return cp.Note, cp.Size
}

func (p prover) Cosigned(int64, []byte) {}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: &faultyStore{Store: memkv.New()}, sidecar: sidecartest.New(t), clock: new(atomic.Int64)}
	t.Cleanup(func() { _ = w.store.Close() })
	w.sidecar.Serve()
	c, err := client.Dial(t.Context(), client.Config{Socket: w.sidecar.Socket})
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
	w.key = verifier
	w.ledger, err = ledger.Create(t.Context(), ledger.Config{Store: w.store, Origin: origin, Signer: signer, Verifier: verifier})
	if err != nil {
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
	w.config = access.Config{
		Store: w.store, Ledger: w.ledger, Vault: v, Opener: c, Sidecar: w.sidecar.Ring.SidecarID(),
		FailureCode: func(error) string { return "injected" },
		Now:         func() time.Time { return time.Now().Add(time.Duration(w.clock.Load()) * time.Second) },
	}
	if w.Broker, err = access.Bootstrap(t.Context(), w.config, raw); err != nil {
		t.Fatal(err)
	}
	return w
}

// as is a request by a caller of the default policy.
func (w *world) as(caller string) access.Request {
	c, ok := w.CallerOf(caller)
	if !ok {
		w.t.Fatalf("the default policy has no caller %s", caller)
	}
	c.Authn = "token"
	return access.Request{Caller: c}
}

const someone = `{"email":"someone@example.org","phone":"+12125550123","name":{"givenName":"Some","familyName":"One"},"displayName":"Some One"}`

func (w *world) mustCreate(profile string) uuid.UUID {
	w.t.Helper()
	got, err := w.CreateSubject(w.t.Context(), access.CreateRequest{
		Request: w.as("shop"), Records: map[string][]byte{"profile": []byte(profile)},
	})
	if err != nil {
		w.t.Fatalf("creating a subject: %v", err)
	}
	return got.Subject
}

func (w *world) read(caller, purpose string, subject uuid.UUID, fields ...string) (access.ReadResult, error) {
	return w.Read(w.t.Context(), access.ReadRequest{
		Request: w.as(caller), Subject: subject, Collection: "profile", Fields: fields, Purpose: purpose,
	})
}

func (w *world) mustConsent(subject uuid.UUID, purpose string) access.Consent {
	w.t.Helper()
	c, err := w.GiveConsent(w.t.Context(), access.ConsentRequest{
		Request: w.as("shop"), Subject: subject, Purpose: purpose, SeparateDocument: true, Capture: []byte(`{"form_uri":"/join"}`),
	})
	if err != nil {
		w.t.Fatalf("giving consent: %v", err)
	}
	return c
}

// entries returns the ledger from index on.
func (w *world) entries(from int64) []verify.Entry {
	w.t.Helper()
	var out []verify.Entry
	for i := from; i < w.ledger.Checkpoint().Size; i++ {
		raw, err := w.ledger.Entry(w.t.Context(), i)
		if err != nil {
			w.t.Fatal(err)
		}
		e, err := verify.ParseEntry(raw)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func (w *world) size() int64 { return w.ledger.Checkpoint().Size }

// withoutField returns a bundle in which a purpose no longer names a field of profile.
func withoutField(t *testing.T, raw []byte, b *policy.Bundle, purpose, field string) []byte {
	t.Helper()
	doc := b.Document()
	for i, p := range doc.Purposes {
		if p.ID == purpose {
			doc.Purposes[i].Fields["profile"] = slices.DeleteFunc(p.Fields["profile"], func(f string) bool { return f == field })
		}
	}
	out, err := json.Marshal(&doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
