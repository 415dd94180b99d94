package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// Whatever is wrong with HashiCorp Vault: reads and writes of people whose keys the sidecar does not hold are refused
// with 503 and Retry-After, within 3 s and without loss; readiness and metrics tell; an erasure is finished later; an
// epoch that runs goes on. When the cause goes away, service resumes without a restart.
func TestOutagesOfHashiCorpVaultAreRefusalsAndPass(t *testing.T) {
	t.Parallel()
	i, hc := startHashiCorpWith(t, coldKeys)
	keys, vault := i.Keys, i.Vault
	for n, f := range keyFaults(t, hc) {
		t.Run(f.name, func(t *testing.T) {
			i := &instance{i.Stack, t}
			erased, subject, other := i.create(person(10*n)), i.create(person(10*n+1)), i.create(person(10*n+2))
			i.servedRight(other, 10*n+2) // whose key is the one in the cache
			free := i.holdEpochs(hc)
			epoch := i.rotate("kek")
			i.servedRight(other, 10*n+2)

			before, failures := i.ledgerSize(), i.metric("pdkeys_kek_failures_total")
			refusals := i.metric(`pdvault_http_requests_total{method="GET",role="service",route="/v1/subjects/:id/records/:collection",status="503"}`)
			if err := f.down(t.Context()); err != nil {
				t.Fatal(err)
			}
			isUp := false
			defer func() {
				if !isUp { // it failed: the others are not to meet this fault as well
					_ = f.up(context.Background())
					free()
				}
			}()
			eventually(t, "the fault shows", func() bool { return i.notServed(subject, 10*n+1) })
			if body := i.refused("GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), ""); problemType(body) != keyServiceUnavailable {
				t.Errorf("a read: %s", body)
			}
			if body := i.refused("POST", "/v1/subjects", `{"records":{"profile":`+person(10*n+3)+`}}`); problemType(body) != keyServiceUnavailable {
				t.Errorf("a create: %s", body)
			}
			a := i.call("privacy", "DELETE", "/v1/subjects/"+erased, `{"reason":"subject-request"}`)
			if p := problemType(a.Body); a.Status != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" ||
				p != keyServiceUnavailable && p != erasurePending {
				t.Errorf("an erasure: %d, Retry-After %q: %s", a.Status, a.Header.Get("Retry-After"), a.Body)
			}
			eventually(t, "readiness tells", func() bool {
				a := i.call("", "GET", "/readyz", "")
				return a.Status == http.StatusServiceUnavailable && bytes.Contains(a.Body, []byte(`"kek"`))
			})
			i.want(http.StatusOK, "", "GET", "/livez", "")
			eventually(t, "the metrics of pdkeys tell", func() bool {
				return i.metric(`pdkeys_kek_state{state="`+f.state+`"}`) == 1 && i.metric("pdkeys_kek_failures_total") > failures
			})
			if now := i.metric(`pdvault_http_requests_total{method="GET",role="service",route="/v1/subjects/:id/records/:collection",status="503"}`); now <= refusals {
				t.Errorf("the metrics of pdvault: %v refused reads after %v", now, refusals)
			}
			if r, ok := i.rotation(epoch); !ok || r.State != "running" {
				t.Errorf("the epoch meanwhile: %+v", r)
			}

			if err := f.up(t.Context()); err != nil {
				t.Fatal(err)
			}
			isUp = true
			up := time.Now()
			eventually(t, "reads are served again", func() bool { return !i.notServed(subject, 10*n+1) })
			t.Logf("reads are served again after %v", time.Since(up).Round(time.Millisecond))
			i.ready()
			eventually(t, "the metrics tell that it is over", func() bool { return i.metric(`pdkeys_kek_state{state="ok"}`) == 1 })
			i.create(person(10*n + 3))
			i.erasedInTheEnd(erased)
			free()
			i.evidence(t, "kek", i.rotated(epoch, time.Minute))
			i.servedRight(subject, 10*n+1)
			i.servedRight(other, 10*n+2)
			i.everyAllowedReadIsServedOrFailed(before)
		})
	}
	if i.Keys != keys || i.Vault != vault {
		t.Error("a program was started again")
	}
	i.verifyLedger()
}

func TestASidecarThatIsDownIsARefusalAndPasses(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	subject := i.create(person(1))
	i.Keys.Kill()
	i.refused("GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "")
	i.refused("POST", "/v1/subjects", `{"records":{"profile":`+person(2)+`}}`)
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "reads are served again", func() bool {
		return i.read("shop", subject, "order-fulfilment", "email").Status == http.StatusOK
	})
	i.Keys.Freeze()
	i.refused("GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "")
	i.Keys.Thaw()
	eventually(t, "reads are served again", func() bool {
		return i.read("shop", subject, "order-fulfilment", "email").Status == http.StatusOK
	})
	i.everyAllowedReadIsServedOrFailed(0)
	i.verifyLedger()
}

// refused sends a request that must be answered with 503 and Retry-After before 3 s are over (and a little
// for a loaded machine).
func (i *instance) refused(method, path, body string) []byte {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), 5*time.Second)
	defer cancel()
	var raw []byte
	if body != "" {
		raw = []byte(body)
	}
	a, err := i.Do(ctx, "shop", method, path, raw)
	if err != nil {
		i.t.Fatalf("%s %s: no answer in time: %v", method, template(path), err)
	}
	checkContract(i.t, method, path, a)
	if a.Status != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
		i.t.Fatalf("%s %s: %d, Retry-After %q: %s", method, template(path), a.Status, a.Header.Get("Retry-After"), a.Body)
	}
	return a.Body
}

func (i *instance) restartKeys() {
	i.t.Helper()
	if err := i.Keys.Stop(); err != nil {
		i.t.Fatal(err)
	}
	if err := i.StartKeys(i.t.Context()); err != nil {
		i.t.Fatal(err)
	}
}

// entry is what these tests look at in a ledger entry.
type entry struct {
	Index    int64
	Kind     string
	Decision string
	Of       *int64
	Mode     string
}

// ledger returns all entries from index on, as the auditor's call gives them.
func (i *instance) ledger(from int64) []entry {
	i.t.Helper()
	var out []entry
	cursor := fmt.Sprint(from)
	for {
		m := i.call("auditor", "GET", "/v1/access-records?limit=1000&cursor="+cursor, "")
		var page struct {
			Records []struct {
				Index int64           `json:"index"`
				Entry json.RawMessage `json:"entry"`
			} `json:"records"`
			Next string `json:"next"`
		}
		if err := json.Unmarshal(m.Body, &page); err != nil || m.Status != http.StatusOK {
			i.t.Fatalf("reading the ledger: %d %v", m.Status, err)
		}
		for _, r := range page.Records {
			e := entry{Index: r.Index}
			if err := json.Unmarshal(r.Entry, &e); err != nil {
				i.t.Fatal(err)
			}
			out = append(out, e)
		}
		if page.Next == "" {
			return out
		}
		cursor = page.Next
	}
}

func (i *instance) ledgerSize() int64 {
	i.t.Helper()
	time.Sleep(200 * time.Millisecond) // the checkpoint served is the one that the witness has cosigned
	a := i.call("auditor", "GET", "/log/checkpoint", "")
	var origin string
	var size int64
	if _, err := fmt.Sscanf(string(a.Body), "%s\n%d\n", &origin, &size); err != nil {
		i.t.Fatalf("checkpoint: %v", err)
	}
	return size
}

// everyAllowedReadIsServedOrFailed checks that no access.failed stands alone. What was served is checked by
// those who read.
func (i *instance) everyAllowedReadIsServedOrFailed(from int64) {
	i.t.Helper()
	allowed := map[int64]bool{}
	for _, e := range i.ledger(from) {
		if e.Kind == "access" && e.Decision == "allow" {
			allowed[e.Index] = true
		}
		if e.Kind == "access.failed" && (e.Of == nil || !allowed[*e.Of]) {
			i.t.Errorf("entry %d: access.failed without its access", e.Index)
		}
	}
}
