package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

func stackOptions() stack.Options { return stack.Options{} }

// kills is how many times each program is killed; the fault harness goes on from here.
const kills = 4

// Whichever program is killed under load: every acknowledged write is there afterwards, every served read is
// on record, and the log verifies.
func TestKillingEitherProgramLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	rng := rand.New(rand.NewPCG(1, 2))
	load := newLoad(i)
	for round := range 2 * kills {
		stop := load.run()
		time.Sleep(time.Duration(200+rng.IntN(600)) * time.Millisecond)
		victim, restart := i.Vault, i.StartVault
		if round%2 == 1 {
			victim, restart = i.Keys, i.StartKeys
		}
		victim.Kill()
		if err := restart(t.Context()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		stop()
		eventually(t, "reads are served again", func() bool {
			a, err := i.Do(t.Context(), "", "GET", "/readyz", nil)
			return err == nil && a.Status == http.StatusOK
		})
	}
	load.check()
	i.verifyLedger()
}

// load writes and reads, and remembers what was acknowledged and served, outside the system under test.
type load struct {
	i    *instance
	next atomic.Int64

	mu       sync.Mutex // guards the rest
	subjects []acknowledged
	served   []servedRead
}

type acknowledged struct {
	id string
	n  int64
}

type servedRead struct {
	record int64
	id     string
}

func newLoad(i *instance) *load { return &load{i: i} }

// run loads the instance until the returned function is called.
func (l *load) run() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					l.once()
				}
			}
		})
	}
	return func() {
		close(done)
		wg.Wait()
	}
}

func (l *load) once() {
	n := l.next.Add(1)
	a, err := l.i.Do(l.i.t.Context(), "shop", "POST", "/v1/subjects", fmt.Appendf(nil, `{"records":{"profile":%s}}`, person(int(n))))
	if err != nil || a.Status != http.StatusCreated {
		time.Sleep(20 * time.Millisecond) // not acknowledged: nothing is promised
		return
	}
	var created struct{ ID string }
	if err := json.Unmarshal(a.Body, &created); err != nil {
		l.i.t.Errorf("answer to a create: %v", err)
		return
	}
	l.mu.Lock()
	l.subjects = append(l.subjects, acknowledged{created.ID, n})
	l.mu.Unlock()
	a, err = l.i.Do(l.i.t.Context(), "shop", "GET", fmt.Sprintf(readPath, created.ID, "order-fulfilment", "email"), nil)
	if err != nil || a.Status != http.StatusOK {
		return
	}
	var read struct{ Access struct{ Record int64 } }
	if err := json.Unmarshal(a.Body, &read); err != nil {
		l.i.t.Errorf("answer to a read: %v", err)
		return
	}
	l.mu.Lock()
	l.served = append(l.served, servedRead{read.Access.Record, created.ID})
	l.mu.Unlock()
}

// check reads every acknowledged subject and finds every served read in the ledger.
func (l *load) check() {
	t := l.i.t
	t.Helper()
	if len(l.subjects) < 10 || len(l.served) < 10 {
		t.Fatalf("the load did not load: %d creates, %d reads", len(l.subjects), len(l.served))
	}
	t.Logf("%d acknowledged creates, %d served reads", len(l.subjects), len(l.served))
	parallel(len(l.subjects), 16, func(k int) {
		s := l.subjects[k]
		a, err := l.i.Do(t.Context(), "shop", "GET", fmt.Sprintf(readPath, s.id, "order-fulfilment", "email"), nil)
		for range 100 { // "not now" is no loss: the sidecar has just been killed
			if err != nil || a.Status != http.StatusServiceUnavailable {
				break
			}
			time.Sleep(100 * time.Millisecond)
			a, err = l.i.Do(t.Context(), "shop", "GET", fmt.Sprintf(readPath, s.id, "order-fulfilment", "email"), nil)
		}
		var read struct{ Fields struct{ Email string } }
		if err != nil || a.Status != http.StatusOK || json.Unmarshal(a.Body, &read) != nil || read.Fields.Email != fmt.Sprintf("person%d@example.org", s.n) {
			t.Errorf("acknowledged subject is lost: %v, %d", err, a.Status)
		}
	})
	recorded := map[int64]bool{}
	for _, e := range l.i.ledger(0) {
		recorded[e.Index] = e.Kind == "access" && e.Decision == "allow"
	}
	for _, r := range l.served {
		if !recorded[r.record] {
			t.Errorf("served read %d is not on record", r.record)
		}
	}
}

// The sidecar remembers the newest checkpoint. A data store that was put back from an older copy is refused.
func TestAnOlderCopyOfTheDataStoreIsRefused(t *testing.T) {
	i := start(t, stackOptions())
	i.create(person(1))
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(i.Path("older"), os.DirFS(i.Path("data"))); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.create(person(2))
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(i.Path("data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(i.Path("older"), i.Path("data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(i.Path("data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err == nil {
		t.Fatal("pdvault serves from an older copy")
	}
	if code := i.Vault.ExitCode(); code == 0 {
		t.Error("the refusal looks like a success")
	}
}

// Likewise for the key store: pdvault remembers its newest generation.
func TestAnOlderCopyOfTheKeyStoreIsRefused(t *testing.T) {
	i := start(t, stackOptions())
	i.create(person(1))
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(i.Path("older"), os.DirFS(i.Path("keys"))); err != nil {
		t.Fatal(err)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	var second string
	eventually(t, "writes are served again", func() bool {
		a, err := i.Do(t.Context(), "shop", "POST", "/v1/subjects", []byte(`{"records":{"profile":`+person(2)+`}}`))
		second = string(a.Body)
		return err == nil && a.Status == http.StatusCreated
	})
	if second == "" {
		t.Fatal("no second subject")
	}
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(i.Path("keys")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(i.Path("older"), i.Path("keys")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(i.Path("keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err == nil {
		t.Error("pdvault serves with an older key store")
	}
}
