package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// everyScope are the rotations that have to move or make something for everybody or for every reader.
var everyScope = []string{"kek", "all-subjects", "index", "token", "witness", "ledger"}

// Each level of keys is rotated while people are read, changed, sought and created: no request fails and no value
// is wrong, and the log holds signed evidence that nothing is left on an older version.
func TestKeysOfEachLevelRotateUnderTrafficWithoutAFailedRequest(t *testing.T) {
	i, _ := startHashiCorp(t)
	tr := newTraffic(i, 6, 300, false)
	for _, scope := range everyScope {
		t.Run(scope, func(t *testing.T) {
			stop := tr.run()
			r := i.rotated(i.rotate(scope), 2*time.Minute)
			requests := stop()
			tr.check()
			t.Logf("%d requests meanwhile, %d of %d moved", requests, r.Done, r.Total)
			i.evidence(t, scope, r)
		})
	}
	tr.checkAll()
	i.verifyLedger()
}

// evidence finds the entry of a finished rotation and checks that it says that nothing is left.
func (i *instance) evidence(t *testing.T, scope string, r rotation) {
	t.Helper()
	a := i.want(http.StatusOK, "auditor", "GET", fmt.Sprintf("/v1/access-records/%d", *r.Record), "")
	raw, err := json.Marshal(a["entry"])
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Kind string
		Keys struct {
			Scope          string
			Version, Total int64
			Left           *int64
			Evidence       string
		}
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	want := "key.rotated"
	if scope == "kek" {
		want = "key.epoch"
	}
	if e.Kind != want || e.Keys.Scope != scope || e.Keys.Version != r.Target || e.Keys.Left == nil || *e.Keys.Left != 0 ||
		!strings.Contains(e.Keys.Evidence, "left 0\n") {
		t.Errorf("evidence of %s: %+v", scope, e)
	}
}

// killsPerScope is how often a program is killed in the middle of each rotation. With -race on two cores a
// round takes seconds; the fault harness goes on from here.
const killsPerScope = 20

// Killed at random points of a rotation, pdvault, pdkeys or HashiCorp Vault, it is taken up and completed, and
// nobody ever gets a wrong value.
func TestARotationThatIsKilledAnywhereGoesOn(t *testing.T) {
	i, hc := startHashiCorp(t)
	rng := rand.New(rand.NewPCG(3, 4))
	tr := newTraffic(i, 4, 400, true)
	for _, scope := range []string{"kek", "all-subjects", "index"} {
		t.Run(scope, func(t *testing.T) {
			kills, rounds := 0, 0
			for kills < killsPerScope {
				rounds++
				stop := tr.run()
				var id string
				eventually(t, "a rotation can be started", func() bool {
					a, err := i.Do(t.Context(), "security", "POST", "/v1/keys/rotations", fmt.Appendf(nil, `{"scope":%q}`, scope))
					if err != nil || a.Status != http.StatusAccepted {
						return false
					}
					var job struct{ ID string }
					return json.Unmarshal(a.Body, &job) == nil && setTo(&id, job.ID)
				})
				for kills < killsPerScope {
					if r, ok := i.rotation(id); ok && r.State != "running" {
						break
					}
					time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
					i.killOne(t, rng.IntN(3), hc)
					kills++
				}
				r := i.rotated(id, 2*time.Minute)
				stop()
				tr.check()
				i.evidence(t, scope, r)
			}
			t.Logf("%d kills in %d rotations", kills, rounds)
		})
	}
	tr.checkAll()
	i.verifyLedger()
}

func setTo(p *string, v string) bool {
	*p = v
	return true
}

// killOne kills one of the three programs and starts it again.
func (i *instance) killOne(t *testing.T, which int, hc *hcserver.Server) {
	t.Helper()
	var err error
	switch which {
	case 0:
		i.Vault.Kill()
		err = i.StartVault(t.Context())
	case 1:
		i.Keys.Kill()
		err = i.StartKeys(t.Context())
	default:
		err = errors.Join(hc.Kill(), hc.Restart(t.Context()), hc.Unseal(t.Context()))
	}
	if err != nil {
		t.Fatalf("starting it again: %v", err)
	}
}

// The embedded default rotates its root key in the same way.
func TestTheRootKeyRotatesUnderTraffic(t *testing.T) {
	i := start(t, stackOptions())
	tr := newTraffic(i, 4, 100, false)
	stop := tr.run()
	r := i.rotated(i.rotate("kek"), time.Minute)
	stop()
	tr.checkAll()
	i.evidence(t, "kek", r)
	if out, err := i.Output(t.Context(), "pdkeys", "status", "--config", i.Path("pdkeys.yaml")); err != nil || len(out) == 0 {
		t.Errorf("status after an epoch: %v", err)
	}
}

// One rotation at a time: a second one is refused and names the first.
func TestASecondRotationIsRefusedWhileOneRuns(t *testing.T) {
	i := start(t, stackOptions())
	for n := range 500 {
		i.create(person(n))
	}
	id := i.rotate("all-subjects")
	a := i.call("security", "POST", "/v1/keys/rotations", `{"scope":"index"}`)
	if r, ok := i.rotation(id); ok && r.State == "running" && (a.Status != http.StatusConflict || !strings.Contains(string(a.Body), id)) {
		t.Errorf("a second rotation: %d %s", a.Status, a.Body)
	}
	i.rotated(id, time.Minute)
	for caller, want := range map[string]int{"shop": http.StatusForbidden, "auditor": http.StatusForbidden, "privacy": http.StatusForbidden} {
		if a := i.call(caller, "POST", "/v1/keys/rotations", `{"scope":"kek"}`); a.Status != want {
			t.Errorf("%s starts a rotation: %d", caller, a.Status)
		}
	}
}
