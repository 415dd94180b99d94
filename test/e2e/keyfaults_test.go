package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

const (
	keyServiceUnavailable = "urn:pdvault:problem:key-service-unavailable"
	erasurePending        = "urn:pdvault:problem:erasure-pending"
	integrity             = "urn:pdvault:problem:integrity"
	decryptBudget         = "urn:pdvault:problem:decrypt-budget"
)

// keyFault is something that happens to HashiCorp Vault, and what puts it right.
type keyFault struct {
	name     string
	down, up func(context.Context) error
	// state is that of the KEK in the metrics of pdkeys meanwhile.
	state string
}

// keyFaults are the faults that are outages: while they last nothing is known, and when they are over nothing is lost.
func keyFaults(t *testing.T, hc *hcserver.Server) []keyFault {
	t.Helper()
	var snapshot []byte
	audit := newAuditFile(t, hc)
	return []keyFault{
		{"sealed", hc.Seal, hc.Unseal, "sealed"},
		{"hanging", func(context.Context) error { return hc.Stop() }, func(context.Context) error { return hc.Cont() }, "unavailable"},
		{"killed", func(context.Context) error { return hc.Kill() }, func(ctx context.Context) error {
			return errors.Join(hc.Restart(ctx), hc.Unseal(ctx)) // it comes back sealed
		}, "unavailable"},
		{"policy denies", func(ctx context.Context) error {
			return setPolicy(ctx, hc, `path "auth/token/renew-self" { capabilities = ["update"] }`)
		}, func(ctx context.Context) error {
			text, err := hcserver.Policy("pdvault")
			return errors.Join(err, setPolicy(ctx, hc, text))
		}, "forbidden"},
		{"key deleted", func(ctx context.Context) (err error) {
			if snapshot, err = hc.Snapshot(ctx); err != nil {
				return err
			}
			return errors.Join(
				hc.Request(ctx, "POST", "transit/keys/pdvault/config", map[string]any{"deletion_allowed": true}, nil),
				hc.Request(ctx, "DELETE", "transit/keys/pdvault", nil, nil))
		}, func(ctx context.Context) error { return hc.Restore(ctx, snapshot) }, "kek-missing"},
		{"audit device full", audit.fill, audit.empty, "unavailable"},
	}
}

func setPolicy(ctx context.Context, hc *hcserver.Server, text string) error {
	return hc.Request(ctx, "POST", "sys/policies/acl/pdvault-sidecar", map[string]any{"policy": text}, nil)
}

// auditFile is where an audit device of HashiCorp Vault writes: it refuses every request that it cannot write down.
type auditFile struct {
	hc   *hcserver.Server
	path string
}

func newAuditFile(t *testing.T, hc *hcserver.Server) *auditFile {
	t.Helper()
	a := &auditFile{hc, filepath.Join(shortDir(t), "audit")}
	if err := errors.Join(os.WriteFile(a.path+".log", nil, 0o600), os.Symlink(a.path+".log", a.path)); err != nil {
		t.Fatal(err)
	}
	// Mode 0000 means that the mode is left as it is.
	err := hc.Request(t.Context(), "PUT", "sys/audit/file", map[string]any{"type": "file", "options": map[string]any{"file_path": a.path, "mode": "0000"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *auditFile) fill(context.Context) error  { return a.write("/dev/full") }
func (a *auditFile) empty(context.Context) error { return a.write(a.path + ".log") }

// write makes the device write to another file.
func (a *auditFile) write(to string) error {
	return errors.Join(os.Symlink(to, a.path+".next"), os.Rename(a.path+".next", a.path), a.hc.Hangup())
}

// coldKeys is a configuration with which each read of somebody else than before asks HashiCorp Vault, and metrics are
// written all the time.
var coldKeys = stack.Options{KeysExtra: "cache: {size: 1}\nmetrics: {textfile: metrics, interval: 1s}\n"}

// Rotations that pdvault carries out outlast every outage: each of them comes once while one is under way.
func TestRotationsOutlastOutagesOfHashiCorpVault(t *testing.T) {
	t.Parallel()
	i, hc := startHashiCorpWith(t, coldKeys)
	faults := keyFaults(t, hc)
	for n := range 30 {
		i.create(person(n))
	}
	for _, scope := range []string{"all-subjects", "index"} {
		t.Run(scope, func(t *testing.T) {
			i := &instance{i.Stack, t}
			var met []string
			for len(met) < len(faults) {
				id := i.rotate(scope)
				for len(met) < len(faults) {
					f := faults[len(met)]
					if r, ok := i.rotation(id); ok && r.State != "running" {
						break // it was faster, so the rest comes with the next
					}
					if err := f.down(t.Context()); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
					if r, ok := i.rotation(id); ok && r.State == "failed" {
						t.Errorf("%s: %+v", f.name, r)
					}
					if err := f.up(t.Context()); err != nil {
						t.Fatal(err)
					}
					met = append(met, f.name)
				}
				i.evidence(t, scope, i.rotated(id, time.Minute))
			}
		})
	}
	for n := range 30 {
		i.want(http.StatusOK, "shop", "POST", "/v1/lookups", fmt.Sprintf(`{"purpose":"support","collection":"profile","field":"email","value":"person%d@example.org"}`, n))
	}
	i.verifyLedger()
}

// A token that was revoked, or has expired while HashiCorp Vault hung, costs a new login and no request.
func TestATokenThatDiesCostsNoRequest(t *testing.T) {
	t.Parallel()
	i, hc := startHashiCorpWith(t, coldKeys)
	subject, other := i.create(person(1)), i.create(person(2))
	served := func() {
		t.Helper()
		i.servedRight(subject, 1)
		i.servedRight(other, 2)
	}
	served()
	for range 2 {
		revoke(t, hc, "pdvault-sidecar")
		served()
		time.Sleep(time.Second) // no more than a login a second
	}
	// From now on tokens live for 2 s, and for 4 s if they are renewed.
	if err := hc.Request(t.Context(), "POST", "auth/approle/role/pdvault-sidecar", map[string]any{"token_ttl": "2s", "token_max_ttl": "4s"}, nil); err != nil {
		t.Fatal(err)
	}
	revoke(t, hc, "pdvault-sidecar")
	for end := time.Now().Add(9 * time.Second); time.Now().Before(end); {
		served()
		time.Sleep(100 * time.Millisecond)
	}
	if err := hc.Stop(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if err := hc.Cont(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "reads are served again", func() bool { return !i.notServed(subject, 1) && !i.notServed(other, 2) })
	i.verifyLedger()
}

// revoke revokes every token that has the policy.
func revoke(t *testing.T, hc *hcserver.Server, policy string) {
	t.Helper()
	var list struct {
		Keys []string `json:"keys"`
	}
	if err := hc.Request(t.Context(), "LIST", "auth/token/accessors", nil, &list); err != nil {
		t.Fatal(err)
	}
	revoked := 0
	for _, accessor := range list.Keys {
		var token struct {
			Policies []string `json:"policies"`
		}
		about := map[string]any{"accessor": accessor}
		if err := hc.Request(t.Context(), "POST", "auth/token/lookup-accessor", about, &token); err != nil || len(token.Policies) != 1 || token.Policies[0] != policy {
			continue
		}
		if err := hc.Request(t.Context(), "POST", "auth/token/revoke-accessor", about, nil); err != nil {
			t.Fatal(err)
		}
		revoked++
	}
	if revoked == 0 {
		t.Fatalf("nobody has a token of %s", policy)
	}
}

// A key whose older versions were destroyed behind our back is no absence of people: reads end in an integrity problem,
// and with the snapshot from before everything is there again.
func TestAKeyThatWasTrimmedBehindOurBackIsTold(t *testing.T) {
	t.Parallel()
	i, hc := startHashiCorpWith(t, coldKeys)
	erased, subject, other := i.create(person(3)), i.create(person(1)), i.create(person(2))
	i.servedRight(other, 2)
	snapshot, err := hc.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		path string
		body map[string]any
	}{
		{"rotate", nil},
		{"config", map[string]any{"min_decryption_version": 2, "min_encryption_version": 2}},
		{"trim", map[string]any{"min_available_version": 2}},
	} {
		if err := hc.Request(t.Context(), "POST", "transit/keys/pdvault/"+step.path, step.body, nil); err != nil {
			t.Fatal(err)
		}
	}
	before := i.ledgerSize()
	if a := i.read("shop", subject, "order-fulfilment", "email"); a.Status != http.StatusInternalServerError || problemType(a.Body) != integrity {
		t.Errorf("a read: %d %s", a.Status, a.Body)
	}
	if a := i.call("privacy", "DELETE", "/v1/subjects/"+erased, `{"reason":"subject-request"}`); a.Status != http.StatusServiceUnavailable || problemType(a.Body) != erasurePending {
		t.Errorf("an erasure: %d %s", a.Status, a.Body)
	}
	if a := i.call("security", "POST", "/v1/keys/rotations", `{"scope":"kek"}`); a.Status != http.StatusInternalServerError {
		t.Errorf("an epoch on such a key: %d %s", a.Status, a.Body)
	}
	i.keyTrouble("kek-retired")
	if err := hc.Restore(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	eventually(t, "reads are served again", func() bool { return !i.notServed(subject, 1) })
	i.ready()
	i.erasedInTheEnd(erased)
	i.everyAllowedReadIsServedOrFailed(before)
	i.evidence(t, "kek", i.rotated(i.rotate("kek"), time.Minute))
	i.servedRight(subject, 1)
	i.verifyLedger()
}

// HashiCorp Vault that was put back to before an epoch does not have the version that people's keys are wrapped under.
// Nothing is served, made or erased on it, and no epoch may make that version once more, as another key.
func TestHashiCorpVaultFromBeforeAnEpochIsRefused(t *testing.T) {
	t.Parallel()
	i, hc := startHashiCorpWith(t, coldKeys)
	subject, other := i.create(person(1)), i.create(person(2))
	older, err := hc.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i.evidence(t, "kek", i.rotated(i.rotate("kek"), time.Minute))
	i.servedRight(subject, 1)
	i.servedRight(other, 2)
	newer, err := hc.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := hc.Restore(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	before := i.ledgerSize()
	eventually(t, "the fault shows", func() bool { return i.notServed(subject, 1) })
	i.keyTrouble("kek-missing")
	for what, body := range map[string][]byte{
		"a read":   i.refused("GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), ""),
		"a create": i.refused("POST", "/v1/subjects", `{"records":{"profile":`+person(3)+`}}`),
	} {
		if problemType(body) != keyServiceUnavailable {
			t.Errorf("%s: %s", what, body)
		}
	}
	if a := i.call("privacy", "DELETE", "/v1/subjects/"+subject, `{"reason":"subject-request"}`); a.Status != http.StatusServiceUnavailable {
		t.Errorf("an erasure: %d %s", a.Status, a.Body)
	}
	if a := i.call("security", "POST", "/v1/keys/rotations", `{"scope":"kek"}`); a.Status != http.StatusServiceUnavailable {
		t.Errorf("an epoch on such a key: %d %s", a.Status, a.Body)
	}
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := i.StartKeys(t.Context()); err == nil {
		t.Error("pdkeys starts with a KEK that is older than its key store")
	} else if !strings.Contains(i.Keys.Log(), "restored from an older snapshot") {
		t.Errorf("what pdkeys says: %s", tail(i.Keys.Log()))
	}
	if err := hc.Restore(t.Context(), newer); err != nil {
		t.Fatal(err)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "reads are served again", func() bool { return !i.notServed(other, 2) })
	i.ready()
	i.erasedInTheEnd(subject)
	i.create(person(3))
	i.everyAllowedReadIsServedOrFailed(before)
	i.evidence(t, "kek", i.rotated(i.rotate("kek"), time.Minute))
	i.servedRight(other, 2)
	i.verifyLedger()
}

// keyTrouble waits until readiness and metrics tell the state of the KEK.
func (i *instance) keyTrouble(state string) {
	i.t.Helper()
	eventually(i.t, "readiness tells", func() bool {
		a := i.call("", "GET", "/readyz", "")
		return a.Status == http.StatusServiceUnavailable && bytes.Contains(a.Body, []byte(`"kek"`))
	})
	eventually(i.t, "the metrics tell "+state, func() bool { return i.metric(`pdkeys_kek_state{state="`+state+`"}`) == 1 })
}

// servedRight reads the e-mail address of person n.
func (i *instance) servedRight(subject string, n int) {
	i.t.Helper()
	if i.notServed(subject, n) {
		i.t.Error("a read was refused")
	}
}

// notServed reports whether a read of person n is refused. What is served must be right.
func (i *instance) notServed(subject string, n int) bool {
	i.t.Helper()
	a, err := i.Do(i.t.Context(), "shop", "GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), nil)
	if err != nil || a.Status != http.StatusOK {
		return true
	}
	var read struct{ Fields struct{ Email string } }
	if json.Unmarshal(a.Body, &read) != nil || read.Fields.Email != fmt.Sprintf("person%d@example.org", n) {
		i.t.Errorf("a wrong value was served: %s", a.Body)
	}
	return false
}

// erasedInTheEnd waits until an erasure that met an outage is done, asked for again or not.
func (i *instance) erasedInTheEnd(subject string) {
	i.t.Helper()
	eventually(i.t, "the erasure is done", func() bool {
		a := i.call("privacy", "DELETE", "/v1/subjects/"+subject, `{"reason":"subject-request"}`)
		return a.Status == http.StatusOK || a.Status == http.StatusNotFound
	})
	eventually(i.t, "every erasure has destroyed a key", func() bool {
		erased, destroyed := 0, 0
		for _, e := range i.ledger(0) {
			switch e.Kind {
			case "subject.erased":
				erased++
			case "key.destroyed":
				destroyed++
			}
		}
		return erased > 0 && erased == destroyed
	})
	if a := i.read("shop", subject, "order-fulfilment", "email"); a.Status != http.StatusNotFound && a.Status != http.StatusForbidden {
		i.t.Errorf("reading an erased person: %d", a.Status)
	}
}

// holdEpochs takes from the role of epochs what it may do, so that one that is begun stays under way until the returned
// function is called.
func (i *instance) holdEpochs(hc *hcserver.Server) (free func()) {
	i.t.Helper()
	set := func(text string) {
		i.t.Helper()
		if err := hc.Request(i.t.Context(), "POST", "sys/policies/acl/pdvault-epoch", map[string]any{"policy": text}, nil); err != nil {
			i.t.Fatal(err)
		}
	}
	set(`path "auth/token/renew-self" { capabilities = ["update"] }`)
	return func() {
		i.t.Helper()
		text, err := hcserver.PolicyFile("epoch.hcl", "pdvault")
		if err != nil {
			i.t.Fatal(err)
		}
		set(text)
	}
}

// metric is the value of a metric, by its name with its labels, of pdvault or, when it is one of pdkeys, from its
// file; 0 when there is none.
func (i *instance) metric(name string) float64 {
	i.t.Helper()
	var text []byte
	if strings.HasPrefix(name, "pdkeys_") {
		text, _ = os.ReadFile(i.Path("metrics")) // there is none before the first interval is over
	} else {
		text = i.call("security", "GET", "/metrics", "").Body
	}
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		return 0
	}
	v, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		i.t.Errorf("metric %s: %v", name, err)
	}
	return v
}

func problemType(body []byte) string {
	var p struct{ Type string }
	_ = json.Unmarshal(body, &p) // what is no problem has no type
	return p.Type
}
