package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
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
			tr.check(t)
			t.Logf("%d requests meanwhile, %d of %d moved", requests, r.Done, r.Total)
			i.evidence(t, scope, r)
		})
	}
	tr.checkAll(t)
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

// killPoints is at how many moments of the rotations of one scope programs are killed. The fault harness goes on from
// here.
const killPoints = 20

// Killed at random moments of a rotation, one, two or all three of pdvault, pdkeys and HashiCorp Vault, it is taken up
// and completed, and nobody ever gets a wrong value.
func TestARotationThatIsKilledAnywhereGoesOn(t *testing.T) {
	for n, scopes := range [][]string{{"kek", "index", "subject", "token"}, {"all-subjects", "ledger", "witness"}} {
		t.Run(strings.Join(scopes, ","), func(t *testing.T) {
			t.Parallel() // programs that start are waited for most of the time
			// So short that a ledger key which was replaced is dropped at the next start, and that the witness never has so
			// many keys that it refuses another one.
			i, hc := startHashiCorpWith(t, stack.Options{
				VaultExtra: "ledger: {key_overlap: 1s}\n", KeysExtra: "witness_overlap: 4s\n",
			})
			rng := rand.New(rand.NewPCG(3, uint64(n)))
			tr := newTraffic(i, 3, 200, true)
			witnesses := i.witnessKeys()
			for _, scope := range scopes {
				t.Run(scope, func(t *testing.T) {
					i := &instance{i.Stack, t}
					witnesses = append(witnesses, i.rotatesThoughKilled(t, scope, hc, tr, rng)...)
				})
			}
			tr.checkAll(t)
			i.verifyLedger(witnesses...)
		})
	}
}

// rotatesThoughKilled returns the keys that the witness had meanwhile, as an auditor would note them.
func (i *instance) rotatesThoughKilled(t *testing.T, scope string, hc *hcserver.Server, tr *traffic, rng *rand.Rand) (witnesses []string) {
	body := fmt.Appendf(nil, `{"scope":%q}`, scope)
	if scope == "subject" {
		body = fmt.Appendf(nil, `{"scope":"subject","subject":%q}`, tr.workers[0].people[0].id)
	}
	before := i.rotations()
	stop := tr.run()
	var killed [3]int
	for range killPoints {
		// One is begun at each moment, if none is under way: its beginning is one of the steps.
		var begin sync.WaitGroup
		begin.Go(func() { _, _ = i.Do(t.Context(), "security", "POST", "/v1/keys/rotations", body) })
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		which := 1 + rng.IntN(7)
		i.kill(which, hc)
		for n := range killed {
			killed[n] += which >> n & 1
		}
		begin.Wait()
		if scope == "witness" {
			witnesses = append(witnesses, i.witnessKeys()...)
		}
	}
	// What is under way then goes on, at first under traffic.
	i.ready()
	time.Sleep(time.Second)
	stop()
	done := 0
	for _, r := range i.ended() {
		if slices.ContainsFunc(before, func(b rotation) bool { return b.ID == r.ID }) {
			continue
		}
		switch {
		case r.Scope != scope:
			t.Errorf("a rotation of %s", r.Scope)
		case r.State == "done":
			done++
			i.evidence(t, scope, r)
		case r.Phase != "begin": // in which there is no new key yet
			t.Errorf("a rotation failed: %+v", r)
		}
	}
	tr.check(t)
	r := i.rotated(i.rotateBy(body), time.Minute) // and the next one is as good as any
	i.evidence(t, scope, r)
	t.Logf("pdvault was killed %d times, pdkeys %d, HashiCorp Vault %d; %d rotations were taken to their end", killed[0], killed[1], killed[2], done)
	return append(witnesses, i.witnessKeys()...)
}

// kill kills programs, all at the same moment, and starts them again: pdvault if bit 0 is set, pdkeys if bit 1 is,
// HashiCorp Vault if bit 2 is.
func (i *instance) kill(which int, hc *hcserver.Server) {
	i.t.Helper()
	ctx := i.t.Context()
	if which&1 != 0 {
		i.Vault.Kill()
	}
	if which&2 != 0 {
		i.Keys.Kill()
	}
	var err error
	if which&4 != 0 {
		err = errors.Join(hc.Kill(), hc.Restart(ctx), hc.Unseal(ctx))
	}
	if which&2 != 0 {
		err = errors.Join(err, i.StartKeys(ctx))
	}
	if which&1 != 0 {
		err = errors.Join(err, i.StartVault(ctx))
	}
	if err != nil {
		i.t.Fatalf("starting it again: %v", err)
	}
}

// ready waits until the instance says that it is.
func (i *instance) ready() {
	i.t.Helper()
	eventually(i.t, "the instance is ready", func() bool {
		a, err := i.Do(i.t.Context(), "", "GET", "/readyz", nil)
		return err == nil && a.Status == http.StatusOK
	})
}

// rotations lists the rotations.
func (i *instance) rotations() []rotation {
	i.t.Helper()
	var list struct{ Rotations []rotation }
	if a := i.call("security", "GET", "/v1/keys/rotations", ""); a.Status != http.StatusOK || json.Unmarshal(a.Body, &list) != nil {
		i.t.Fatalf("listing rotations: %d %s", a.Status, a.Body)
	}
	return list.Rotations
}

// ended waits until no rotation is under way and the evidence of each is in the log, and lists them.
func (i *instance) ended() []rotation {
	i.t.Helper()
	var list []rotation
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		list = i.rotations()
		if !slices.ContainsFunc(list, func(r rotation) bool { return r.State == "running" || r.State == "done" && r.Record == nil }) {
			return list
		}
	}
	i.t.Fatalf("rotations do not end: %+v", list)
	return nil
}

// The embedded default rotates its root key in the same way.
func TestTheRootKeyRotatesUnderTraffic(t *testing.T) {
	i := start(t, stackOptions())
	tr := newTraffic(i, 4, 100, false)
	stop := tr.run()
	r := i.rotated(i.rotate("kek"), time.Minute)
	stop()
	tr.checkAll(t)
	i.evidence(t, "kek", r)
	if out, err := i.Output(t.Context(), "pdkeys", "status", "--config", i.Path("pdkeys.yaml")); err != nil || len(out) == 0 {
		t.Errorf("status after an epoch: %v", err)
	}
}

// One rotation at a time: a second one is refused and names the first.
func TestASecondRotationIsRefusedWhileOneRuns(t *testing.T) {
	t.Parallel()
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
