package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// An outage of the key service stops reads of people whose keys are not in the sidecar's cache: with 503 and
// Retry-After, within 3 s, without loss; and when the cause goes away service resumes without a restart.
func TestOutagesOfHashiCorpVaultAreRefusalsAndPass(t *testing.T) {
	i, hc := startHashiCorp(t)
	for n, tt := range []struct {
		name     string
		down, up func(context.Context) error
	}{
		{"sealed", hc.Seal, hc.Unseal},
		{"hanging", func(context.Context) error { return hc.Stop() }, func(context.Context) error { return hc.Cont() }},
		{"killed", func(context.Context) error { return hc.Kill() }, func(ctx context.Context) error {
			return errors.Join(hc.Restart(ctx), hc.Unseal(ctx)) // it comes back sealed
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			subject := i.create(person(2 * n))
			i.restartKeys() // empties the cache
			if err := tt.down(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := i.ledgerSize()
			a := i.refused("GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "")
			if a == nil {
				t.Fatal("a read was served without a key")
			}
			i.refused("POST", "/v1/subjects", `{"records":{"profile":`+person(2*n+1)+`}}`)
			eventually(t, "readiness tells", func() bool {
				return i.call("", "GET", "/readyz", "").Status == http.StatusServiceUnavailable
			})
			i.want(http.StatusOK, "", "GET", "/livez", "")
			if err := tt.up(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "reads are served again", func() bool {
				return i.read("shop", subject, "order-fulfilment", "email").Status == http.StatusOK
			})
			eventually(t, "the instance is ready again", func() bool {
				return i.call("", "GET", "/readyz", "").Status == http.StatusOK
			})
			i.everyAllowedReadIsServedOrFailed(before)
		})
	}
	i.verifyLedger()
}

func TestASidecarThatIsDownIsARefusalAndPasses(t *testing.T) {
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
