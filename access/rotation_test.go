package access_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
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
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// newRotationWorld is a broker over a real ledger and keys that are numbers.
func newRotationWorld(t *testing.T) (*world, *ringKeys) {
	t.Helper()
	ring := newRingKeys(t)
	w := &world{t: t, store: &faultyStore{Store: memkv.New()}, clock: new(atomic.Int64)}
	t.Cleanup(func() { _ = w.store.Close() })
	const origin = "test.pdvault/ledger"
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	must(t, err)
	signer, err := note.NewSigner(skey)
	must(t, err)
	verifier, err := note.NewVerifier(vkey)
	must(t, err)
	w.ledger, err = ledger.Create(t.Context(), ledger.Config{Store: w.store, Origin: origin, Signer: signer, Verifier: verifier})
	must(t, err)
	t.Cleanup(func() { _ = w.ledger.Close() })
	w.key = verifier
	v, err := vault.New(ring)
	must(t, err)
	w.config = access.Config{
		Store: w.store, Ledger: w.ledger, Vault: v, Opener: ring, Sidecar: "sidecar",
		FailureCode: func(err error) string {
			if errors.Is(err, vault.ErrStale) {
				return "changed-meanwhile"
			}
			return "injected"
		},
		Stale:     func(err error) bool { return errors.Is(err, keys.ErrTampered) },
		SealedFor: 150 * time.Millisecond,
	}
	w.Broker, err = access.Bootstrap(t.Context(), w.config, withoutLimits(t))
	must(t, err)
	return w, ring
}

// withoutLimits is the default policy without budgets.
func withoutLimits(t *testing.T) []byte {
	t.Helper()
	raw, err := policy.LoadDir(defaultpolicy.FS)
	must(t, err)
	b, err := policy.Parse(raw)
	must(t, err)
	doc := b.Document()
	doc.Limits.LookupsPerMinute, doc.Limits.ConflictsPerMinute = 1e6, 1e6
	out, err := json.Marshal(&doc)
	must(t, err)
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) rotator(ring *ringKeys) *access.Rotator {
	w.t.Helper()
	r, err := access.NewRotator(access.RotatorConfig{
		Broker: w.Broker, Keys: ring, Poll: time.Millisecond,
		Gone:    func(err error) bool { return errors.Is(err, keys.ErrDestroyed) },
		Damaged: func(err error) bool { return errors.Is(err, keys.ErrTampered) || errors.Is(err, keys.ErrNoKey) },
	})
	must(w.t, err)
	return r
}

// finish has a job carried out to its end.
func (w *world) finish(ring *ringKeys, job access.RotationJob) access.RotationJob {
	w.t.Helper()
	r := w.rotator(ring)
	for range 20 {
		if err := r.Step(w.t.Context()); err != nil {
			w.t.Logf("a step failed: %v", err)
		}
		if done := ring.job(job.ID); done.State != "running" && done.Recorded >= 0 || done.State == "failed" {
			return done
		}
	}
	w.t.Fatalf("the rotation does not end: %+v", ring.job(job.ID))
	return access.RotationJob{}
}

// table returns all rows below a prefix.
func (w *world) table(prefix string) map[string][]byte {
	w.t.Helper()
	rows := make(map[string][]byte)
	must(w.t, w.store.View(w.t.Context(), func(r kv.Reader) error {
		var after []byte
		for {
			pairs, err := r.Scan([]byte(prefix), after, 500)
			if err != nil || len(pairs) == 0 {
				return err
			}
			for _, p := range pairs {
				rows[string(p.Key)] = p.Value
			}
			after = pairs[len(pairs)-1].Key
		}
	}))
	return rows
}

// checkKeys demands that every key in the ring is the only one of its subject, of the rotation, and that everything
// sealed in the store is sealed under it.
func (w *world) checkKeys(ring *ringKeys, rotation uint32) {
	w.t.Helper()
	ring.mu.Lock()
	defer ring.mu.Unlock()
	byRef := make(map[string]*bundle)
	for id, b := range ring.bundles {
		byRef[string(b.ref)] = b
		if b.destroyed {
			continue
		}
		if len(b.keys) != 1 || b.rotation < rotation {
			w.t.Errorf("subject has keys %v of rotation %d", b.keys, b.rotation)
		}
		var s *vault.Subject
		err := w.store.View(w.t.Context(), func(r kv.Reader) (err error) {
			s, err = vault.LoadAll(r, id)
			return err
		})
		if errors.Is(err, vault.ErrNoSubject) {
			continue // it never came to be
		}
		must(w.t, err)
		for _, item := range s.Sealed() {
			binding := fieldBinding(item.Collection, item.Field, item.Version)
			if item.Index {
				binding = indexBinding(item.Collection, item.Field, item.Normaliser)
			}
			if _, _, err := b.open(binding, item.Ciphertext); err != nil {
				w.t.Errorf("%s does not open: %v", binding, err)
			}
		}
	}
	details := 0
	entries := w.entries(0)
	for key, sealed := range w.table("d") {
		entry := entries[binary.BigEndian.Uint64([]byte(key[1:]))]
		ref, err := verify.ParseRef(entry.SubjectRef)
		must(w.t, err)
		if b := byRef[string(ref)]; !b.destroyed {
			details++
			if _, _, err := b.open(detailBinding, sealed); err != nil {
				w.t.Errorf("a detail of %s (%s) does not open: %v", entry.Kind, entry.Decision, err)
			}
		}
	}
	for key, sealed := range w.table("k") {
		if len(key) != 17 {
			continue
		}
		var owner uuid.UUID
		copy(owner[:], w.table("w" + key[1:])["w"+key[1:]])
		if b := ring.bundles[owner]; !b.destroyed {
			if _, _, err := b.open(detailBinding, sealed); err != nil {
				w.t.Errorf("a capture does not open: %v", err)
			}
		}
	}
	w.t.Logf("%d bundles, %d details, %d served", len(ring.bundles), details, ring.opened)
}

// life is callers that use the vault until stop, and check what they get.
type life struct {
	w       *world
	ring    *ringKeys
	ctx     context.Context
	stopped context.CancelFunc
	group   sync.WaitGroup

	subjects []*person
	mu       sync.Mutex
	done     map[string]int // guarded by mu; by what was done
}

// person is a subject whose display name counts up.
type person struct {
	id        uuid.UUID
	written   sync.Mutex
	erased    atomic.Bool
	committed atomic.Int64
}

func (w *world) live(ring *ringKeys, people int) *life {
	l := &life{w: w, ring: ring, done: make(map[string]int)}
	l.ctx, l.stopped = context.WithCancel(w.t.Context())
	for i := range people {
		id := w.mustCreate(fmt.Sprintf(`{"email":"p%d@example.org","displayName":"n0","name":{"givenName":"G"}}`, i))
		l.subjects = append(l.subjects, &person{id: id})
	}
	l.each("read", l.read)
	l.each("read", l.read)
	l.each("patch", l.patch)
	l.each("put", l.put)
	l.each("deny", l.deny)
	l.each("consent", l.consent)
	l.each("create", l.create)
	l.each("verify", l.verify)
	return l
}

func (l *life) each(what string, f func(p *person) error) {
	l.group.Go(func() {
		for l.ctx.Err() == nil {
			p := l.subjects[mathrand.IntN(len(l.subjects))]
			err := f(p)
			l.mu.Lock()
			l.done[what]++
			l.mu.Unlock()
			if err != nil && l.ctx.Err() == nil && !p.erased.Load() {
				l.w.t.Errorf("%s: %v", what, err)
				return
			}
			time.Sleep(mathrand.N(2 * time.Millisecond))
		}
	})
}

func (l *life) stop() {
	l.stopped()
	l.group.Wait()
	l.w.t.Logf("done: %v", l.done)
}

func (l *life) request(caller string) access.Request {
	r := l.w.as(caller)
	r.Client = "192.0.2.7" // so that there is a detail to be sealed
	return r
}

func (l *life) read(p *person) error {
	least := p.committed.Load()
	got, err := l.w.Read(context.Background(), access.ReadRequest{
		Request: l.request("shop"), Subject: p.id, Collection: "profile", Fields: []string{"displayName"}, Purpose: "account",
	})
	if err != nil {
		return err
	}
	var n int64
	if _, err := fmt.Sscanf(string(got.Fields["displayName"]), `"n%d"`, &n); err != nil || n < least {
		return fmt.Errorf("read %s after n%d", got.Fields["displayName"], least)
	}
	return nil
}

func (l *life) patch(p *person) error {
	return l.write(p, func(version uint64, n int64) error {
		_, err := l.w.PatchRecord(context.Background(), access.WriteRequest{
			Request: l.request("shop"), Subject: p.id, Collection: "profile", IfMatch: &version,
			Body: fmt.Appendf(nil, `{"displayName":"n%d"}`, n),
		})
		return err
	})
}

func (l *life) put(p *person) error {
	return l.write(p, func(version uint64, n int64) error {
		_, err := l.w.PutRecord(context.Background(), access.WriteRequest{
			Request: l.request("shop"), Subject: p.id, Collection: "profile", IfMatch: &version,
			Body: fmt.Appendf(nil, `{"email":"p%s@example.org","displayName":"n%d","name":{"givenName":"G"}}`, p.id, n),
		})
		return err
	})
}

// write counts up. Nobody else writes meanwhile, so the version must be the one that was seen.
func (l *life) write(p *person, f func(version uint64, n int64) error) error {
	p.written.Lock()
	defer p.written.Unlock()
	info, err := l.w.Describe(context.Background(), l.w.as("privacy"), p.id)
	if err != nil {
		return err
	}
	n := p.committed.Load() + 1
	if err := f(info.Records["profile"].Version, n); err != nil {
		return err
	}
	p.committed.Store(n)
	return nil
}

func (l *life) deny(p *person) error {
	_, err := l.w.Read(context.Background(), access.ReadRequest{
		Request: l.request("shop"), Subject: p.id, Collection: "profile", Fields: []string{"email"}, Purpose: "newsletter",
		Justification: "because",
	})
	if p.erased.Load() || errors.Is(err, access.ErrDenied) {
		return nil
	}
	if err == nil {
		return nil // a consent was given meanwhile
	}
	return err
}

func (l *life) consent(p *person) error {
	_, err := l.w.GiveConsent(context.Background(), access.ConsentRequest{
		Request: l.request("shop"), Subject: p.id, Purpose: "special-offers", SeparateDocument: true, Capture: []byte(`{"form_uri":"/join"}`),
	})
	return err
}

func (l *life) create(*person) error {
	time.Sleep(20 * time.Millisecond)
	_, err := l.w.CreateSubject(context.Background(), access.CreateRequest{
		Request: l.request("shop"), Records: map[string][]byte{"profile": fmt.Appendf(nil, `{"email":"%s@example.org"}`, uuid.New())},
	})
	return err
}

func (l *life) verify(p *person) error {
	got, err := l.w.Verify(context.Background(), access.VerifyRequest{
		Request: l.request("shop"), Purpose: "account", Subject: p.id, Collection: "profile", Field: "name", Value: []byte(`{"givenName":"G"}`),
	})
	if err == nil && !got.Match {
		err = errors.New("no match")
	}
	return err
}

// erase erases p.
func (l *life) erase(p *person) {
	p.written.Lock()
	defer p.written.Unlock()
	p.erased.Store(true)
	_, err := l.w.Erase(context.Background(), access.EraseRequest{Request: l.request("privacy"), Subject: p.id, Reason: "subject-request"})
	if err != nil {
		l.w.t.Errorf("erasing: %v", err)
	}
}

func TestNobodyNoticesThatTheKeysOfAllSubjectsAreReplaced(t *testing.T) {
	w, ring := newRotationWorld(t)
	ring.delay = 2 * time.Millisecond
	l := w.live(ring, 40)
	l.group.Go(func() {
		for i := range 5 {
			time.Sleep(20 * time.Millisecond)
			l.erase(l.subjects[i])
		}
	})
	for range 2 {
		job := ring.start("all-subjects", uuid.Nil)
		done := w.finish(ring, job)
		if done.State != "done" || done.Total < 40 {
			t.Errorf("%+v", done)
		}
		e := w.entries(done.Recorded)[0]
		if e.Kind != verify.KindKeyRotated || e.Keys.Job != job.ID || e.Keys.Evidence != done.Evidence || e.Keys.Left != 0 {
			t.Errorf("%+v", e.Keys)
		}
	}
	l.stop()
	w.checkKeys(ring, 2)
}

// A rotation that is ended anywhere, or meets errors of calls that were carried out and of calls that were not,
// goes on where it was.
func TestARotationGoesOnAfterItWasKilledAnywhere(t *testing.T) {
	for _, scope := range []string{"all-subjects", "index"} {
		t.Run(scope, func(t *testing.T) {
			w, ring := newRotationWorld(t)
			ring.delay = time.Millisecond
			l := w.live(ring, 40)
			job := ring.start(scope, uuid.Nil)
			var calls atomic.Int64
			fault := func(call string) error {
				switch call {
				case "Reseal", "Retire", "Reindex", "AdvanceJob", "Jobs":
					if calls.Add(1)%4 == 0 {
						return keys.ErrUnavailable
					}
				}
				return nil
			}
			r := w.rotator(ring)
			longest := 250 * time.Millisecond
			if scope == "index" {
				longest = 15 * time.Millisecond
			}
			for i := 0; i < 40 && ring.job(job.ID).State == "running"; i++ {
				if i%2 == 1 {
					ring.hook(nil, fault)
				}
				ctx, cancel := context.WithTimeout(t.Context(), mathrand.N(longest))
				_ = r.Step(ctx)
				cancel()
			}
			ring.hook(nil, nil)
			done := w.finish(ring, job)
			l.stop()
			if done.State != "done" {
				t.Fatalf("%+v", done)
			}
			recorded := 0
			for _, e := range w.entries(0) {
				if e.Keys != nil && e.Keys.Evidence != "" {
					recorded++
				}
			}
			if recorded != 1 {
				t.Errorf("evidence was recorded %d times", recorded)
			}
			if scope == "index" {
				w.checkIndex(2)
			} else {
				w.checkKeys(ring, 1)
			}
		})
	}
}

func TestTheKeyOfOneSubjectIsReplacedAndNoOther(t *testing.T) {
	w, ring := newRotationWorld(t)
	one, other := w.mustCreate(someone), w.mustCreate(`{"email":"other@example.org"}`)
	before := w.table("s" + string(one[:]))["s"+string(one[:])]
	info, err := w.Describe(t.Context(), w.as("privacy"), one)
	must(t, err)
	done := w.finish(ring, ring.start("subject", one))
	if done.State != "done" {
		t.Fatalf("%+v", done)
	}
	if k := ring.bundles[one].keys; !slices.Equal(k, []int{2}) {
		t.Errorf("keys %v", k)
	}
	if k := ring.bundles[other].keys; !slices.Equal(k, []int{1}) {
		t.Errorf("keys of another %v", k)
	}
	now, err := w.Describe(t.Context(), w.as("privacy"), one)
	must(t, err)
	if now.Records["profile"] != info.Records["profile"] {
		t.Error("the version of a record has changed")
	}
	if bytes.Equal(before, w.table("s" + string(one[:]))["s"+string(one[:])]) {
		t.Error("the head is what it was")
	}
	got, err := w.read("shop", "account", one)
	if err != nil || string(got.Fields["email"]) != `"someone@example.org"` {
		t.Errorf("%v", err)
	}
}

// A subject without records has no ciphertext that could tell, but a write of the first one may be under way.
func TestAWriteThatWasSealedUnderTheKeyBeforeIsSealedAgain(t *testing.T) {
	w, ring := newRotationWorld(t)
	subject := w.mustCreate(someone)
	one := uint64(1)
	_, err := w.DeleteRecord(t.Context(), access.WriteRequest{Request: w.as("shop"), Subject: subject, Collection: "profile", IfMatch: &one})
	must(t, err)
	seals := 0
	ring.hook(nil, func(call string) error {
		if call != "Seal" {
			return nil
		}
		if seals++; seals == 1 {
			w.finish(ring, ring.start("subject", subject))
		}
		return nil
	})
	_, err = w.PutRecord(t.Context(), access.WriteRequest{Request: w.as("shop"), Subject: subject, Collection: "profile", Body: []byte(someone)})
	must(t, err)
	if seals != 2 {
		t.Errorf("it was sealed %d times", seals)
	}
	if _, err := w.read("shop", "account", subject); err != nil {
		t.Error(err)
	}
}

func TestAReadWhoseKeyWasDroppedIsServedUnderItsOwnRecord(t *testing.T) {
	w, ring := newRotationWorld(t)
	subject := w.mustCreate(someone)
	opens := 0
	ring.hook(func(call string) error {
		if call == "Open" {
			if opens++; opens == 1 {
				w.finish(ring, ring.start("subject", subject))
			}
		}
		return nil
	}, nil)
	size := w.size()
	got, err := w.read("shop", "account", subject, "email")
	if err != nil || string(got.Fields["email"]) != `"someone@example.org"` || opens != 2 || got.Record != size {
		t.Errorf("%v, %d opens, record %d of %d", err, opens, got.Record, size)
	}
	for _, e := range w.entries(size) {
		if e.Kind == verify.KindAccessFailed {
			t.Error("access.failed is recorded")
		}
	}
}

// What was changed meanwhile was not the subject of the decision: it is decided anew.
func TestAReadOfAnOlderVersionWhoseKeyWasDroppedIsDecidedAnew(t *testing.T) {
	w, ring := newRotationWorld(t)
	subject := w.mustCreate(someone)
	one := uint64(1)
	opens := 0
	ring.hook(func(call string) error {
		if call == "Open" {
			if opens++; opens == 1 {
				_, err := w.PutRecord(t.Context(), access.WriteRequest{Request: w.as("shop"), Subject: subject, Collection: "profile", IfMatch: &one, Body: []byte(`{"email":"new@example.org"}`)})
				must(t, err)
				w.finish(ring, ring.start("subject", subject))
			}
		}
		return nil
	}, nil)
	size := w.size()
	got, err := w.read("shop", "account", subject, "email")
	if err != nil || string(got.Fields["email"]) != `"new@example.org"` || got.Version != 2 || got.Record == size {
		t.Errorf("%v, %+v", err, got)
	}
	failed := 0
	for _, e := range w.entries(size) {
		if e.Kind == verify.KindAccessFailed && *e.Of == size {
			failed++
			if e.Reason != "changed-meanwhile" { // and not what the ciphertext looked like
				t.Errorf("because of %q", e.Reason)
			}
		}
	}
	if failed != 1 {
		t.Errorf("access.failed is recorded %d times", failed)
	}
}

// A denied access is recorded whatever becomes of the subject's head, so its detail may be on its way while the key it
// is sealed under is replaced. It is sealed again then, and so is a subject that is on its way to be created.
func TestWhatIsCommittedLateIsSealedAgain(t *testing.T) {
	for name, act := range map[string]func(w *world, subject uuid.UUID) error{
		"a denial with a detail": func(w *world, subject uuid.UUID) error {
			_, err := w.Read(w.t.Context(), access.ReadRequest{
				Request: w.as("shop"), Subject: subject, Collection: "profile", Fields: []string{"email"}, Purpose: "newsletter",
				Justification: "because",
			})
			if !errors.Is(err, access.ErrDenied) {
				return fmt.Errorf("not denied: %w", err)
			}
			return nil
		},
		"a create": func(w *world, _ uuid.UUID) error {
			_, err := w.CreateSubject(w.t.Context(), access.CreateRequest{
				Request: w.as("shop"), Records: map[string][]byte{"profile": []byte(`{"email":"late@example.org"}`)},
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, ring := newRotationWorld(t)
			subject := w.mustCreate(someone)
			calls := 0
			ring.hook(nil, func(call string) error {
				if call != "Prepare" && call != "Seal" {
					return nil
				}
				if calls++; calls == 1 {
					w.finish(ring, ring.start("all-subjects", uuid.Nil))
				}
				return nil
			})
			must(t, act(w, subject))
			if calls != 2 {
				t.Errorf("it was sealed %d times", calls)
			}
			w.checkKeys(ring, 1)
		})
	}
}

// The detail of a denied access that is committed after the subject's details were looked at is found before the key
// that it is sealed under is dropped.
func TestADetailThatIsCommittedDuringThePauseIsSealedAgain(t *testing.T) {
	w, ring := newRotationWorld(t)
	subject := w.mustCreate(someone)
	var once, prepared sync.Once
	resealed := make(chan struct{})
	ended := make(chan struct{})
	ring.hook(nil, func(call string) error {
		switch call {
		case "Reseal":
			once.Do(func() { close(resealed) })
		case "Prepare":
			prepared.Do(func() {
				job := ring.start("all-subjects", uuid.Nil)
				go func() {
					defer close(ended)
					w.finish(ring, job)
				}()
				<-resealed
				time.Sleep(50 * time.Millisecond)
			})
		}
		return nil
	})
	_, err := w.Read(t.Context(), access.ReadRequest{
		Request: w.as("shop"), Subject: subject, Collection: "profile", Fields: []string{"email"}, Purpose: "newsletter", Justification: "because",
	})
	if !errors.Is(err, access.ErrDenied) {
		t.Errorf("%v", err)
	}
	<-ended
	w.checkKeys(ring, 1)
}

// Whose older keys this run has dropped has nothing left under them, so the pass that verifies asks the sidecar for
// others alone: here for a subject that came when everybody had been sealed again.
func TestWhoseKeysWereDroppedIsNotSealedAgain(t *testing.T) {
	w, ring := newRotationWorld(t)
	for i := range 20 {
		w.mustCreate(fmt.Sprintf(`{"email":"p%d@example.org"}`, i))
	}
	var reseals, retires atomic.Int64
	ring.hook(nil, func(call string) error {
		switch call {
		case "Reseal":
			reseals.Add(1)
		case "Retire":
			if retires.Add(1) == 1 {
				if n := reseals.Swap(0); n == 0 {
					t.Error("keys were dropped before anything was sealed again")
				}
			}
		}
		return nil
	})
	done := w.finish(ring, ring.start("all-subjects", uuid.Nil))
	if done.State != "done" || done.Total != 20 {
		t.Errorf("%+v", done)
	}
	if n := reseals.Load(); n != 0 {
		t.Errorf("asked %d times more", n)
	}
	w.checkKeys(ring, 1)

	reseals.Store(0)
	retires.Store(0)
	var late sync.Once
	ring.hook(nil, func(call string) error {
		switch call {
		case "Reseal":
			reseals.Add(1)
		case "Retire":
			late.Do(func() { w.mustCreate(`{"email":"late@example.org"}`) })
			reseals.Store(0)
		}
		return nil
	})
	w.finish(ring, ring.start("all-subjects", uuid.Nil))
	if n := reseals.Load(); n != 1 {
		t.Errorf("asked %d times for the one who came late", n)
	}
	w.checkKeys(ring, 2)
}

func TestADamagedCiphertextFailsTheRotationAndKeepsItsKeys(t *testing.T) {
	w, ring := newRotationWorld(t)
	subject, other := w.mustCreate(someone), w.mustCreate(`{"email":"other@example.org"}`)
	ring.mu.Lock()
	ring.bundles[subject].keys = []int{7}
	ring.mu.Unlock()
	done := w.finish(ring, ring.start("all-subjects", uuid.Nil))
	if done.State != "failed" || done.Failure == "" || done.Recorded >= 0 {
		t.Errorf("%+v", done)
	}
	if k := ring.bundles[subject].keys; !slices.Equal(k, []int{7, 8}) {
		t.Errorf("keys %v", k)
	}
	if k := ring.bundles[other].keys; !slices.Equal(k, []int{2}) {
		t.Errorf("keys of the other %v", k)
	}
}

// checkIndex demands that the index has rows under key alone, and those that the records list.
func (w *world) checkIndex(key uint32) {
	w.t.Helper()
	rows := 0
	for row := range w.table("u") {
		rows++
		if got := binary.BigEndian.Uint32([]byte(row[len(row)-20:])); got != key {
			w.t.Errorf("a row is under key %d", got)
		}
	}
	if rows == 0 {
		w.t.Error("the index is empty")
	}
	if got := string(w.table("mx")["mx"]); got != fmt.Sprintf(`{"keys":[%d],"read":%d}`, key, key) {
		w.t.Errorf("state of the index: %s", got)
	}
}

func (w *world) lookup(email string) ([]uuid.UUID, error) {
	got, err := w.Lookup(context.Background(), access.LookupRequest{
		Request: w.as("shop"), Purpose: "order-fulfilment", Collection: "profile", Field: "email", Value: email,
	})
	return got.Subjects, err
}

func TestAUniqueValueHasOneOwnerAndIsFoundWhileTheIndexKeyIsReplaced(t *testing.T) {
	w, ring := newRotationWorld(t)
	ring.delay = 2 * time.Millisecond
	const values = 150
	email := func(i int) string { return fmt.Sprintf("v%d@example.org", i) }
	var owners [values]atomic.Pointer[uuid.UUID]
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	create := func(i int) {
		got, err := w.CreateSubject(context.Background(), access.CreateRequest{
			Request: w.as("shop"), Records: map[string][]byte{"profile": fmt.Appendf(nil, `{"email":%q}`, email(i))},
		})
		switch {
		case err == nil:
			if !owners[i].CompareAndSwap(nil, &got.Subject) {
				t.Errorf("%s has two owners", email(i))
			}
		case !errors.Is(err, access.ErrNotUnique):
			t.Errorf("creating: %v", err)
		}
	}
	for i := range values / 3 {
		create(i)
	}
	for range 3 {
		group.Go(func() {
			for ctx.Err() == nil {
				create(mathrand.IntN(values))
			}
		})
		group.Go(func() {
			for ctx.Err() == nil {
				i := mathrand.IntN(values)
				owner := owners[i].Load()
				found, err := w.lookup(email(i))
				if err != nil || owner != nil && !slices.Equal(found, []uuid.UUID{*owner}) {
					t.Errorf("%v, found %v of %v", err, found, owner)
				}
			}
		})
	}
	for key := range uint32(2) {
		done := w.finish(ring, ring.start("index", uuid.Nil))
		if done.State != "done" {
			t.Errorf("%+v", done)
		}
		var phases []string
		for _, e := range w.entries(0) {
			if e.Keys != nil && e.Keys.Job == done.ID {
				phases = append(phases, e.Keys.Phase)
			}
		}
		if !slices.Equal(phases, []string{"backfill", "switch", "drop", ""}) {
			t.Errorf("phases of key %d: %v", key+2, phases)
		}
	}
	stop()
	group.Wait()
	w.checkIndex(3)
	for i := range values {
		if owner := owners[i].Load(); owner != nil {
			if found, err := w.lookup(email(i)); err != nil || !slices.Equal(found, []uuid.UUID{*owner}) {
				t.Errorf("%v, found %v", err, found)
			}
		}
	}
}

func TestACreateDecidedBeforeTheBackfillIsMadeAgainWithBothTokens(t *testing.T) {
	w, ring := newRotationWorld(t)
	seals := 0
	ring.hook(nil, func(call string) error {
		if call != "Seal" {
			return nil
		}
		if seals++; seals == 1 {
			ring.start("index", uuid.Nil)
			must(t, w.store.Update(t.Context(), func(wr kv.Writer) error {
				wr.Set([]byte("mx"), []byte(`{"keys":[1,2],"read":1}`))
				return nil
			}))
		}
		return nil
	})
	w.mustCreate(someone)
	if seals != 2 {
		t.Errorf("it was sealed %d times", seals)
	}
	var under []uint32
	for row := range w.table("uprofile\x00email") {
		under = append(under, binary.BigEndian.Uint32([]byte(row[len(row)-20:])))
	}
	if slices.Sort(under); !slices.Equal(under, []uint32{1, 2}) {
		t.Errorf("tokens under keys %v", under)
	}
}

// A repeated request finds its outcome while the index key is replaced, and never has a second effect.
func TestARepeatedCreateAcrossIndexKeysNeverCreatesTwice(t *testing.T) {
	w, ring := newRotationWorld(t)
	post := func(key, body string) (access.Written, error) {
		return w.CreateSubject(t.Context(), access.CreateRequest{
			Request:     w.as("shop"),
			Idempotency: access.Idempotency{Key: key, Route: "/v1/subjects", Fingerprint: [32]byte([]byte(body + string(make([]byte, 32)))[:32])},
			Records:     map[string][]byte{"profile": []byte(`{"displayName":"Same"}`)},
		})
	}
	before, err := post("before", "a")
	must(t, err)
	job := ring.start("index", uuid.Nil)
	if again, err := post("before", "a"); err != nil || again != before {
		t.Errorf("%v, %+v", err, again)
	}
	during, err := post("during", "b")
	must(t, err)
	w.finish(ring, job)
	if again, err := post("during", "b"); err != nil || again != during {
		t.Errorf("%v, %+v", err, again)
	}
	if _, err := post("during", "c"); !errors.Is(err, access.ErrIdempotencyMismatch) {
		t.Errorf("another body: %v", err)
	}
	if _, err := post("before", "a"); !errors.Is(err, access.ErrIdempotencyMismatch) {
		t.Errorf("a key that cannot be compared any more: %v", err)
	}
	if n := len(w.table("s")); n != 2 {
		t.Errorf("%d subjects", n)
	}
}

func TestTheNewestEpochIsKept(t *testing.T) {
	w, ring := newRotationWorld(t)
	first := w.size()
	for _, version := range []uint64{3, 2} {
		job := ring.start("kek", uuid.Nil)
		ring.mu.Lock()
		ring.jobs[0].State, ring.jobs[0].Evidence, ring.jobs[0].Target, ring.jobs[0].Finished = "done", "x", version, time.Now()
		ring.mu.Unlock()
		done := w.finish(ring, job)
		if e := w.entries(done.Recorded)[0]; e.Kind != verify.KindKeyEpoch || e.Keys.Version != version {
			t.Errorf("%+v", e)
		}
	}
	if got := string(w.table("ke")["ke"]); got != fmt.Sprintf(`{"index":%d,"version":3}`, first) {
		t.Errorf("newest epoch: %s", got)
	}
}

// A store that was restored from a backup may need an index key that the sidecar has dropped since. Nothing that is
// indexed is looked up or written then, and no wrong answer is given; the next rotation of the index mends it.
func TestARotationOfTheIndexMendsOneWhoseKeyIsGone(t *testing.T) {
	for _, tt := range []struct {
		name, state string
		had, has    []uint32
	}{
		{"before the rotation", "", []uint32{1}, []uint32{2}},
		{"while writes made both", `{"keys":[1,2],"read":1}`, []uint32{1, 2}, []uint32{2}},
		{"while the newer one was read", `{"keys":[1,2],"read":2}`, []uint32{1, 2}, []uint32{2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, ring := newRotationWorld(t)
			if tt.state != "" {
				must(t, w.store.Update(t.Context(), func(wr kv.Writer) error { wr.Set([]byte("mx"), []byte(tt.state)); return nil }))
			}
			ring.index = tt.had
			subject := w.mustCreate(someone)
			ring.mu.Lock()
			ring.index = tt.has
			ring.mu.Unlock()

			create := func(email string) error {
				_, err := w.CreateSubject(t.Context(), access.CreateRequest{
					Request: w.as("shop"), Records: map[string][]byte{"profile": fmt.Appendf(nil, `{"email":%q}`, email)},
				})
				return err
			}
			if err := create("another@example.org"); !errors.Is(err, access.ErrBusy) {
				t.Errorf("a create: %v", err)
			}
			done := w.finish(ring, ring.start("index", uuid.Nil))
			if done.State != "done" {
				t.Fatalf("%+v", done)
			}
			must(t, create("another@example.org"))
			if err := create("someone@example.org"); !errors.Is(err, access.ErrNotUnique) {
				t.Errorf("a value that is taken: %v", err)
			}
			found, err := w.Lookup(t.Context(), access.LookupRequest{
				Request: w.as("shop"), Purpose: "order-fulfilment", Collection: "profile", Field: "email", Value: "someone@example.org",
			})
			if err != nil || len(found.Subjects) != 1 || found.Subjects[0] != subject {
				t.Errorf("lookup: %v, %v", found, err)
			}
		})
	}
}

// A subject with more details than one transaction deletes is erased while a rotation seals them again: nothing about
// the subject follows its erasure, and nothing of it comes back.
func TestNoDetailIsSealedAgainBehindAnErasure(t *testing.T) {
	w, ring := newRotationWorld(t)
	subject := w.mustCreate(someone)
	b := ring.bundles[subject]
	const details = 1500
	must(t, w.store.Update(t.Context(), func(wr kv.Writer) error {
		for i := range details {
			index := binary.BigEndian.AppendUint64(nil, uint64(1<<32+i))
			wr.Set(slices.Concat([]byte("l/s/"), b.ref, index), []byte{})
			wr.Set(slices.Concat([]byte("d"), index), b.seal(detailBinding, []byte("detail")))
		}
		return nil
	}))
	erase := func() error {
		_, err := w.Erase(t.Context(), access.EraseRequest{Request: w.as("privacy"), Subject: subject, Reason: "subject-request"})
		return err
	}
	calls := 0
	down := true
	ring.hook(func(call string) error {
		if call == "Destroy" && down {
			return keys.ErrUnavailable
		}
		return nil
	}, func(call string) error {
		if call != "Reseal" {
			return nil
		}
		if calls++; calls == 8 { // the page that the transaction of the erasure leaves for later was sealed again
			if err := erase(); !errors.Is(err, access.ErrErasurePending) {
				t.Errorf("erasing: %v", err)
			}
		}
		return nil
	})
	done := w.finish(ring, ring.start("all-subjects", uuid.Nil))
	if done.State != "done" || calls < 8 {
		t.Errorf("%d calls, %+v", calls, done)
	}
	down = false
	must(t, erase())
	if n := len(w.table("d")); n != 0 {
		t.Errorf("%d details are left", n)
	}
	if r := w.mustReplay(); r.Erasures != (verify.ErasureCounts{Erased: 1, Destroyed: 1}) {
		t.Errorf("%+v", r.Erasures)
	}
}

// An access that was recorded before an erasure and could not be served after it is recorded as failed, without
// naming the subject: nothing leads from its reference to entries any more.
func TestAFailureBehindAnErasureDoesNotNameTheSubject(t *testing.T) {
	w, ring := newRotationWorld(t)
	subject := w.mustCreate(someone)
	ref := ring.bundles[subject].ref
	var once sync.Once
	ring.hook(func(call string) error {
		if call == "Open" {
			once.Do(func() {
				_, err := w.Erase(t.Context(), access.EraseRequest{Request: w.as("privacy"), Subject: subject, Reason: "subject-request"})
				must(t, err)
			})
		}
		return nil
	}, nil)
	if _, err := w.read("shop", "account", subject, "email"); !errors.Is(err, keys.ErrDestroyed) {
		t.Errorf("%v", err)
	}
	if rows := w.table("l/s/" + string(ref)); len(rows) != 0 {
		t.Errorf("%d rows lead from the reference to entries", len(rows))
	}
	entries := w.entries(0)
	if last := entries[len(entries)-1]; last.Kind != verify.KindAccessFailed || last.SubjectRef != "" {
		t.Errorf("%+v", last)
	}
	w.mustReplay()
}
