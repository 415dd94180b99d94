// Package e2e runs the real programs, with the real HashiCorp Vault, and checks from outside what users,
// security teams and auditors are promised. It must never reach into a program.
package e2e

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// bin is the directory of the programs under test.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("e2e: skipped with -short: it builds and runs the programs")
		return
	}
	os.Exit(stack.Programs("../..", func(dir string) int {
		bin = dir
		return m.Run()
	}))
}

// shortDir returns a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pdv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// instance is a running stack with assertions.
type instance struct {
	*stack.Stack
	t *testing.T
}

// start runs a new instance with a local root key, or with the KEK of options.
func start(t *testing.T, o stack.Options) *instance {
	t.Helper()
	o.Bin = bin
	if o.Dir == "" {
		o.Dir = shortDir(t)
	}
	s, err := stack.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{s, t}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
		if t.Failed() {
			t.Logf("pdvault:\n%s\npdkeys:\n%s", tail(s.Vault.Log()), tail(s.Keys.Log()))
		}
		if _, report, found := strings.Cut(s.Vault.Log()+s.Keys.Log(), "WARNING: DATA RACE"); stack.Race && found {
			t.Errorf("data race in a program:%.8000s", report)
		}
	})
	return i
}

func tail(s string) string {
	const most = 8000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}

// startHashiCorp runs a HashiCorp Vault and an instance whose sidecar logs in to it by AppRole.
func startHashiCorp(t *testing.T) (*instance, *hcserver.Server) {
	t.Helper()
	return startHashiCorpWith(t, stack.Options{})
}

// startHashiCorpWith is startHashiCorp with what o adds to the configuration.
func startHashiCorpWith(t *testing.T, o stack.Options) (*instance, *hcserver.Server) {
	t.Helper()
	if _, err := hcserver.Binary(); err != nil {
		t.Skipf("no HashiCorp Vault to test with: %v", err)
	}
	dir := shortDir(t)
	hc, err := hcserver.Start(t.Context(), filepath.Join(dir, "hc"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hc.Close() })
	if o.KEK, err = stack.HashiCorpKEK(t.Context(), hc, dir); err != nil {
		t.Fatal(err)
	}
	o.Dir = filepath.Join(dir, "pdv")
	return start(t, o), hc
}

// call sends a request, checks the answer against the API's contract and returns it.
func (i *instance) call(caller, method, path, body string, header ...string) stack.Answer {
	i.t.Helper()
	var raw []byte
	if body != "" {
		raw = []byte(body)
	}
	a, err := i.Do(i.t.Context(), caller, method, path, raw, header...)
	if err != nil {
		i.t.Fatalf("%s %s: %v", method, template(path), err)
	}
	checkContract(i.t, method, path, a)
	return a
}

// want is call with the status that is expected; it decodes the answer into a map.
func (i *instance) want(status int, caller, method, path, body string, header ...string) map[string]any {
	i.t.Helper()
	a := i.call(caller, method, path, body, header...)
	if a.Status != status {
		i.t.Fatalf("%s %s: %d, want %d: %s", method, template(path), a.Status, status, a.Body)
	}
	if len(a.Body) == 0 {
		return nil
	}
	var m map[string]any
	if err := json.Unmarshal(a.Body, &m); err != nil {
		i.t.Fatalf("%s %s: answer is no JSON object: %v", method, template(path), err)
	}
	return m
}

// create makes a subject with a profile and returns its id.
func (i *instance) create(profile string) string {
	i.t.Helper()
	m := i.want(http.StatusCreated, "shop", "POST", "/v1/subjects", `{"records":{"profile":`+profile+`}}`)
	return m["id"].(string)
}

func person(n int) string {
	return fmt.Sprintf(`{"email":"person%d@example.org","name":{"givenName":"Given%d","familyName":"Family%d"},"displayName":"Display %d"}`, n, n, n, n)
}

const readPath = "/v1/subjects/%s/records/profile?purpose=%s&fields=%s"

// read reads fields of a profile and returns the answer.
func (i *instance) read(caller, subject, purpose, fields string) stack.Answer {
	i.t.Helper()
	return i.call(caller, "GET", fmt.Sprintf(readPath, subject, purpose, fields), "")
}

// verifyLedger exports the log and has pdaudit verify it, with the evidence of every rotation. Without keys of the
// witness, those that it has now are taken. It returns pdaudit's report.
func (i *instance) verifyLedger(witnesses ...string) string {
	i.t.Helper()
	dir := filepath.Join(i.t.TempDir(), "log")
	if _, err := i.pdvault("auditor", "records", "export", dir); err != nil {
		i.t.Fatalf("exporting the log: %v", err)
	}
	ledgerKey, _ := i.publicKeys()
	args := []string{"verify", "ledger", dir, "--ledger-key", ledgerKey}
	if len(witnesses) == 0 {
		witnesses = i.witnessKeys()
	}
	slices.Sort(witnesses)
	for _, key := range slices.Compact(witnesses) {
		args = append(args, "--witness-key", key)
	}
	out, err := i.Output(i.t.Context(), "pdaudit", args...)
	if err != nil {
		i.t.Fatalf("pdaudit: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "but for the evidence") {
		i.t.Errorf("the evidence of a rotation was not verified:\n%s", out)
	}
	return string(out)
}

// publicKeys asks the sidecar for the keys that an auditor needs.
func (i *instance) publicKeys() (ledger, witness string) {
	i.t.Helper()
	status, err := i.Output(i.t.Context(), "pdkeys", "status", "--config", i.Path("pdkeys.yaml"))
	if err != nil {
		i.t.Fatalf("asking for the public keys: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "ledger key"):
			ledger = f[len(f)-1]
		case strings.HasPrefix(line, "witness key"):
			witness = f[len(f)-1]
		}
	}
	if ledger == "" || witness == "" {
		i.t.Fatalf("no public keys in the status:\n%s", status)
	}
	return ledger, witness
}

// pdvault runs a client command as caller.
func (i *instance) pdvault(caller string, args ...string) ([]byte, error) {
	token := filepath.Join(i.Dir, "token."+caller)
	if err := os.WriteFile(token, []byte(i.Token(caller)+"\n"), 0o600); err != nil {
		return nil, err
	}
	return i.Output(i.t.Context(), "pdvault", append(args, "--server", i.URL, "--token-file", token)...)
}

// eventually calls ok until it holds or 15 s have passed.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// parallel runs f with 0 … n−1, at most width at a time.
func parallel(n, width int, f func(int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range width {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// sameJSON reports whether two JSON texts mean the same.
func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal(a, &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	ra, _ := json.Marshal(x) // what was just decoded can be encoded
	rb, _ := json.Marshal(y)
	return bytes.Equal(ra, rb)
}

// template is a path without what names a person, for messages.
func template(path string) string {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	for n, p := range parts {
		if _, err := uuid.Parse(p); err == nil {
			parts[n] = "{id}"
		}
	}
	return strings.Join(parts, "/")
}

func stackCallers() []string { return stack.Callers }
