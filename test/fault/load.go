package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// Load is clients that create, read, change, ask for consents and erase, and remember what they were told. It lives
// outside of what is broken.
type Load struct {
	w       *World
	workers []*worker
	next    *atomic.Int64 // number of the next person

	requests, acknowledged atomic.Int64
	doubt                  atomic.Bool // whatever is answered now is taken for no answer
	sound                  atomic.Bool // nothing is damaged or fails: an integrity error or an internal one is wrong

	mu     sync.Mutex // guards the rest
	served []int64    // records of reads that were served, since the last check
	wrong  []string   // what must never be answered, whatever is broken
}

// worker is one client. Its people are its own, so that it always knows what they must be.
type worker struct {
	l      *Load
	rng    *rand.Rand
	people []*person
}

// person is somebody as their worker knows them. What an unanswered request may have done stands beside what is known.
type person struct {
	n       int64
	id      string // empty: whether they were made is not known
	version int
	name    string
	pending string // the name that an unanswered change gives, with the next version

	consent   consent
	consentID string

	erased, erasing bool // acknowledged; asked for without an answer
}

type consent int

const (
	noConsent consent = iota
	giving            // without an answer
	given
	withdrawing // without an answer
	withdrawn
)

// NewLoad makes a load of width clients.
func NewLoad(w *World, width int, seed uint64) *Load {
	l := &Load{w: w, next: new(atomic.Int64)}
	for n := range width {
		l.workers = append(l.workers, &worker{l: l, rng: rand.New(rand.NewPCG(seed, uint64(n)))})
	}
	return l
}

// Beside is what goes on beside the clients' requests.
type Beside struct{ Epochs, Backups bool }

// Run keeps the load up until the returned function is called.
func (l *Load) Run(ctx context.Context, beside Beside) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	again := func(pause time.Duration, f func()) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					f()
					time.Sleep(pause)
				}
			}
		})
	}
	for _, w := range l.workers {
		again(0, func() { w.once(ctx) })
	}
	if beside.Epochs {
		again(50*time.Millisecond, func() { l.ask(ctx, "security", "POST", "/v1/keys/rotations", `{"scope":"kek"}`) })
	}
	if beside.Backups {
		again(50*time.Millisecond, func() { l.ask(ctx, "security", "GET", "/v1/backup", "") })
	}
	return func() {
		close(done)
		wg.Wait()
	}
}

// Populate makes n people without faults, so that there is something to lose.
func (l *Load) Populate(ctx context.Context, n int) error {
	for k := range n {
		w := l.workers[k%len(l.workers)]
		w.create(ctx)
		if p := w.people[len(w.people)-1]; p.id == "" {
			return fmt.Errorf("a person was not made: %v", l.takeWrong())
		}
	}
	return nil
}

// Counts returns how many requests there were, and how many changes and reads were acknowledged.
func (l *Load) Counts() (requests, acknowledged int64) {
	return l.requests.Load(), l.acknowledged.Load()
}

func (l *Load) each(f func(*person)) {
	for _, w := range l.workers {
		for _, p := range w.people {
			f(p)
		}
	}
}

const mostWrong = 20 // of one fault; who looks for the cause needs no more

func (l *Load) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) < mostWrong {
		l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
	}
}

func (l *Load) takeWrong() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.wrong
	l.wrong = nil
	return w
}

func (l *Load) wasServed(records ...int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.served = append(l.served, records...)
}

// requestTime is longer than the server takes for any request.
const requestTime = 15 * time.Second

// ask sends a request; an answer that is not there has status 0.
func (l *Load) ask(ctx context.Context, caller, method, path, body string, header ...string) stack.Answer {
	l.requests.Add(1)
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	var raw []byte
	if body != "" {
		raw = []byte(body)
	}
	a, err := l.w.Do(ctx, caller, method, path, raw, header...)
	if err != nil || l.doubt.Load() {
		return stack.Answer{}
	}
	if a.Status < 300 {
		l.acknowledged.Add(1)
	}
	if l.sound.Load() && a.Status == http.StatusInternalServerError {
		l.fail("%s %s is %s, and nothing was damaged", method, path, problem(a.Body))
	}
	return a
}

// clientClosed is what a server answers that takes the connection for closed: it has failed on its side.
const clientClosed = 499

// unknown reports whether an answer leaves the outcome open, which every fault may do; then the client waits a little.
func unknown(a stack.Answer) bool {
	if a.Status == 0 || a.Status >= clientClosed || a.Status == http.StatusTooManyRequests {
		time.Sleep(10 * time.Millisecond)
		return true
	}
	return false
}

func (w *worker) once(ctx context.Context) {
	n := w.rng.IntN(100)
	if len(w.people) == 0 || n < 12 {
		w.create(ctx)
		return
	}
	p := w.people[w.rng.IntN(len(w.people))]
	switch {
	case p.unsettled() || n < 55:
		w.read(ctx, p)
	case p.erased:
	case n < 80:
		w.change(ctx, p)
	case n < 94:
		w.consent(ctx, p)
	default:
		w.erase(ctx, p)
	}
}

// unsettled reports whether something about the person has to be found out first.
func (p *person) unsettled() bool {
	return p.id == "" || p.pending != "" || p.erasing || p.consent == giving || p.consent == withdrawing
}

func (p *person) email() string { return fmt.Sprintf("person%d@example.org", p.n) }

func (p *person) create() string {
	return fmt.Sprintf(`{"records":{"profile":{"email":%q,"name":{"givenName":"Given%d"},"displayName":"Display %d"}}}`, p.email(), p.n, p.n)
}

func (p *person) key() string { return fmt.Sprintf(`"create-%d"`, p.n) }

func (w *worker) create(ctx context.Context) {
	p := &person{n: w.l.next.Add(1)}
	w.people = append(w.people, p)
	w.l.created(ctx, p)
}

// created makes the person, or finds out that they were made: the key says that it is the same request.
func (l *Load) created(ctx context.Context, p *person) stack.Answer {
	a := l.ask(ctx, "shop", "POST", "/v1/subjects", p.create(), "Idempotency-Key", p.key())
	if unknown(a) {
		return a
	}
	var made struct{ ID string }
	if a.Status != http.StatusCreated || json.Unmarshal(a.Body, &made) != nil || made.ID == "" {
		l.fail("creating person %d: %d %s", p.n, a.Status, a.Body)
		return a
	}
	p.id, p.version, p.name = made.ID, 1, fmt.Sprintf("Display %d", p.n)
	return a
}

// record is the answer to a read, alone or in a batch.
type record struct {
	Version int
	Fields  struct {
		Email, DisplayName string
		Name               struct{ GivenName string }
	}
	Access struct{ Record int64 }
}

func (w *worker) read(ctx context.Context, p *person) {
	if p.id == "" {
		return
	}
	a := w.l.ask(ctx, "shop", "GET", "/v1/subjects/"+p.id+"/records/profile?purpose=account&fields=email,displayName,name", "")
	if unknown(a) {
		return
	}
	var r record
	if a.Status == http.StatusOK && json.Unmarshal(a.Body, &r) == nil {
		w.l.wasServed(r.Access.Record)
		if why := p.wrong(r); why != "" {
			w.l.fail("read of person %d: %s", p.n, why)
		}
		return
	}
	if a.Status != http.StatusNotFound || !p.erased && !p.erasing {
		w.l.fail("read of person %d: %d %s", p.n, a.Status, a.Body)
	}
}

// wrong says what is wrong about what was read; empty: nothing.
func (p *person) wrong(r record) string {
	switch {
	case p.erased:
		return "erased, and opens"
	case r.Fields.Email != p.email() || r.Fields.Name.GivenName != fmt.Sprintf("Given%d", p.n):
		return "a wrong value"
	case r.Version == p.version && r.Fields.DisplayName == p.name:
	case p.pending != "" && r.Version == p.version+1 && r.Fields.DisplayName == p.pending:
	default:
		return fmt.Sprintf("version %d with %q, want %d with %q (or %q)", r.Version, r.Fields.DisplayName, p.version, p.name, p.pending)
	}
	return ""
}

func (w *worker) change(ctx context.Context, p *person) {
	p.pending = fmt.Sprintf("Display %d, %d times", p.n, p.version)
	a := w.l.ask(ctx, "shop", "PATCH", "/v1/subjects/"+p.id+"/records/profile", fmt.Sprintf(`{"displayName":%q}`, p.pending),
		"If-Match", fmt.Sprintf(`"%d"`, p.version), "Content-Type", "application/merge-patch+json")
	switch {
	case unknown(a):
		return
	case a.Status != http.StatusOK && a.Status != http.StatusNoContent:
		w.l.fail("change of person %d: %d %s", p.n, a.Status, a.Body)
	default:
		p.version, p.name = p.version+1, p.pending
	}
	p.pending = ""
}

// consent gives a consent, or withdraws the one that was given.
func (w *worker) consent(ctx context.Context, p *person) {
	switch {
	case p.consent == noConsent:
		p.consent = giving
		a := w.l.ask(ctx, "shop", "POST", "/v1/subjects/"+p.id+"/consents", `{"purpose":"newsletter","separate_document":true}`)
		if unknown(a) {
			return
		}
		var receipt struct{ Consent struct{ ID string } }
		if a.Status != http.StatusCreated || json.Unmarshal(a.Body, &receipt) != nil {
			w.l.fail("consent of person %d: %d %s", p.n, a.Status, a.Body)
			return
		}
		p.consent, p.consentID = given, receipt.Consent.ID
	case p.consent == given && p.consentID != "":
		p.consent = withdrawing
		a := w.l.ask(ctx, "shop", "POST", "/v1/consents/"+p.consentID+"/withdrawal", "")
		if unknown(a) {
			return
		}
		if a.Status != http.StatusOK {
			w.l.fail("withdrawal of person %d: %d %s", p.n, a.Status, a.Body)
			return
		}
		p.consent = withdrawn
	}
}

func (w *worker) erase(ctx context.Context, p *person) {
	p.erasing = true
	a := w.l.ask(ctx, "privacy", "DELETE", "/v1/subjects/"+p.id, `{"reason":"subject-request"}`)
	switch {
	case a.Status == http.StatusOK, problem(a.Body) == erasurePending: // the second is a promise too
		p.erased, p.erasing = true, false
	case unknown(a):
	default:
		w.l.fail("erasure of person %d: %d %s", p.n, a.Status, a.Body)
	}
}
