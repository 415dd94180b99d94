package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// traffic reads, writes, seeks and creates without a pause, and knows every value that it must get. Each worker
// owns people of its own, so that it always knows their versions.
type traffic struct {
	i *instance
	// outages says that a program may be down: requests may then fail, with 503 or without an answer. A wrong
	// value is wrong all the same.
	outages bool
	workers []*worker
	next    *atomic.Int64 // number of the next person

	requests, refused atomic.Int64

	mu    sync.Mutex // guards wrong
	wrong []string
}

// worker is one client with its people.
type worker struct {
	t      *traffic
	rng    *rand.Rand
	people []*acquaintance
	sought time.Time // of the last lookup, which have a budget
}

// acquaintance is a person as their worker knows them.
type acquaintance struct {
	id      string
	n       int64
	version int
	name    string // displayName
	// pending is what an unanswered write may have left, with the version that it has then.
	pending string
}

// newTraffic makes people for width workers.
func newTraffic(i *instance, width, people int, outages bool) *traffic {
	i.t.Helper()
	t := &traffic{i: i, outages: outages, next: new(atomic.Int64)}
	for n := range width {
		t.workers = append(t.workers, &worker{t: t, rng: rand.New(rand.NewPCG(uint64(n), 7))})
	}
	for n := range people {
		t.workers[n%width].create()
	}
	t.check(i.t)
	return t
}

// run keeps the traffic up until the returned function is called, which returns how many requests there were.
func (t *traffic) run() (stop func() int64) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	before := t.requests.Load()
	for _, w := range t.workers {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					w.once()
				}
			}
		})
	}
	return func() int64 {
		close(done)
		wg.Wait()
		return t.requests.Load() - before
	}
}

// check fails the test when a request failed that must not, or a value was wrong.
func (t *traffic) check(tt *testing.T) {
	tt.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.wrong[:min(len(t.wrong), 10)] {
		tt.Error(w)
	}
	if len(t.wrong) > 0 {
		tt.Fatalf("%d of %d requests failed or gave a wrong value", len(t.wrong), t.requests.Load())
	}
}

// checkAll reads everybody once more, when nothing is down.
func (t *traffic) checkAll(tt *testing.T) {
	tt.Helper()
	t.outages = false
	for _, w := range t.workers {
		for _, a := range w.people {
			w.settle(a)
			w.read(a)
		}
		if len(w.people) > 0 {
			w.sought = time.Time{}
			w.seek(w.people[0])
		}
	}
	t.check(tt)
}

func (t *traffic) fail(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wrong = append(t.wrong, fmt.Sprintf(format, args...))
}

// do sends a request. ok is false when there is nothing to look at: it failed, as it may during an outage.
func (w *worker) do(what, caller, method, path, body string, header ...string) (status int, answer []byte, ok bool) {
	w.t.requests.Add(1)
	a, err := w.t.i.Do(w.t.i.t.Context(), caller, method, path, []byte(body), header...)
	switch {
	case w.t.i.t.Context().Err() != nil:
		return 0, nil, false
	case err != nil || a.Status == http.StatusServiceUnavailable || a.Status == http.StatusGatewayTimeout:
		w.t.refused.Add(1)
		if !w.t.outages {
			w.t.fail("%s: %d %v %s", what, a.Status, err, a.Body)
		} else {
			time.Sleep(10 * time.Millisecond)
		}
		return a.Status, nil, false
	}
	return a.Status, a.Body, true
}

func (w *worker) once() {
	if len(w.people) == 0 {
		w.create()
		return
	}
	a := w.people[w.rng.IntN(len(w.people))]
	if w.settle(a); a.pending != "" {
		return // nobody could tell
	}
	switch n := w.rng.IntN(100); {
	case n < 60:
		w.read(a)
	case n < 85:
		w.write(a)
	case n < 95:
		w.create()
	default:
		w.seek(a)
	}
}

func (w *worker) create() {
	n := w.t.next.Add(1)
	status, body, ok := w.do("create", "shop", "POST", "/v1/subjects", `{"records":{"profile":`+person(int(n))+`}}`)
	if !ok {
		return // whether it was made is not known, so it is nobody's
	}
	var created struct{ ID string }
	if status != http.StatusCreated || json.Unmarshal(body, &created) != nil {
		w.t.fail("create: %d %s", status, body)
		return
	}
	w.people = append(w.people, &acquaintance{id: created.ID, n: n, version: 1, name: fmt.Sprintf("Display %d", n)})
}

type readAnswer struct {
	Version int
	Fields  struct {
		Email, DisplayName string
		Name               struct{ GivenName string }
	}
}

func (w *worker) get(a *acquaintance) (readAnswer, bool) {
	status, body, ok := w.do("read", "shop", "GET", fmt.Sprintf(readPath, a.id, "account", "email,displayName,name"), "")
	if !ok {
		return readAnswer{}, false
	}
	var r readAnswer
	if status != http.StatusOK || json.Unmarshal(body, &r) != nil {
		w.t.fail("read: %d %s", status, body)
		return readAnswer{}, false
	}
	return r, true
}

func (w *worker) read(a *acquaintance) {
	r, ok := w.get(a)
	if ok && (r.Version != a.version || r.Fields.DisplayName != a.name || r.Fields.Email != fmt.Sprintf("person%d@example.org", a.n) ||
		r.Fields.Name.GivenName != fmt.Sprintf("Given%d", a.n)) {
		w.t.fail("read of person %d: version %d with %q, want %d with %q", a.n, r.Version, r.Fields.DisplayName, a.version, a.name)
	}
}

// settle finds out what became of a write that had no answer.
func (w *worker) settle(a *acquaintance) {
	if a.pending == "" {
		return
	}
	r, ok := w.get(a)
	if !ok {
		return
	}
	switch {
	case r.Version == a.version && r.Fields.DisplayName == a.name:
	case r.Version == a.version+1 && r.Fields.DisplayName == a.pending:
		a.version, a.name = r.Version, a.pending
	default:
		w.t.fail("person %d after a write without an answer: version %d with %q", a.n, r.Version, r.Fields.DisplayName)
	}
	a.pending = ""
}

func (w *worker) write(a *acquaintance) {
	name := fmt.Sprintf("Display %d, %d times", a.n, a.version)
	status, body, ok := w.do("patch", "shop", "PATCH", "/v1/subjects/"+a.id+"/records/profile", fmt.Sprintf(`{"displayName":%q}`, name),
		"If-Match", fmt.Sprintf(`"%d"`, a.version), "Content-Type", "application/merge-patch+json")
	switch {
	case !ok:
		a.pending = name
	case status != http.StatusOK && status != http.StatusNoContent:
		w.t.fail("patch: %d %s", status, body)
	default:
		a.version, a.name = a.version+1, name
	}
}

// seek looks the person up by e-mail, and tries to make a second one with it: who is there must be found, and the
// value must be taken, at every moment.
func (w *worker) seek(a *acquaintance) {
	if time.Since(w.sought) < time.Second {
		return // 600 a minute is the caller's budget
	}
	w.sought = time.Now()
	email := fmt.Sprintf("person%d@example.org", a.n)
	status, body, ok := w.do("lookup", "shop", "POST", "/v1/lookups", fmt.Sprintf(`{"purpose":"support","collection":"profile","field":"email","value":%q}`, email))
	if ok {
		var found struct{ Subjects []string }
		if status != http.StatusOK || json.Unmarshal(body, &found) != nil || !slices.Equal(found.Subjects, []string{a.id}) {
			w.t.fail("lookup of person %d: %d %s", a.n, status, body)
		}
	}
	status, body, ok = w.do("second create", "shop", "POST", "/v1/subjects", `{"records":{"profile":`+person(int(a.n))+`}}`)
	if ok && status != http.StatusConflict {
		w.t.fail("a second person with one e-mail: %d %s", status, body)
	}
}

// rotate starts a rotation and returns its id.
func (i *instance) rotate(scope string) string {
	i.t.Helper()
	return i.rotateBy(fmt.Appendf(nil, `{"scope":%q}`, scope))
}

// rotateBy is rotate with the body of the request.
func (i *instance) rotateBy(body []byte) string {
	i.t.Helper()
	job := i.want(http.StatusAccepted, "security", "POST", "/v1/keys/rotations", string(body))
	id, ok := job["id"].(string)
	if !ok {
		i.t.Fatalf("a rotation without an id: %v", job)
	}
	return id
}

// rotation is what these tests look at in a rotation.
type rotation struct {
	ID, Scope, State, Phase, Failure, Evidence string
	Done, Total, Target                        int64
	Record                                     *int64
}

// rotation asks for a rotation; ok is false while nobody answers.
func (i *instance) rotation(id string) (r rotation, ok bool) {
	a, err := i.Do(i.t.Context(), "security", "GET", "/v1/keys/rotations/"+id, nil)
	if err != nil || a.Status != http.StatusOK {
		return r, false
	}
	if err := json.Unmarshal(a.Body, &r); err != nil {
		i.t.Errorf("answer about a rotation: %v", err)
	}
	return r, true
}

// rotated waits until a rotation is done and its evidence is in the log.
func (i *instance) rotated(id string, most time.Duration) rotation {
	i.t.Helper()
	deadline := time.Now().Add(most)
	var last rotation
	for time.Now().Before(deadline) {
		if r, ok := i.rotation(id); ok {
			if last = r; r.State == "failed" {
				i.t.Fatalf("the rotation failed: %+v", r)
			}
			if r.State == "done" && r.Record != nil {
				return r
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	i.t.Fatalf("the rotation is not done after %v: %+v", most, last)
	return last
}

func TestTrafficKnowsWhatItMustGet(t *testing.T) {
	i := start(t, stackOptions())
	tr := newTraffic(i, 4, 20, false)
	before := tr.requests.Load()
	stop := tr.run()
	eventually(t, "there is traffic", func() bool { return tr.requests.Load() > before+100 })
	stop()
	tr.checkAll(t)
	// A wrong value is noticed: the traffic is told that a name is another one.
	a := tr.workers[0].people[0]
	a.name = "somebody else"
	tr.workers[0].read(a)
	if len(tr.wrong) != 1 {
		t.Error("a wrong value was not noticed")
	}
}
