package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/test/people"
)

// population is how many people are imported, and seed which.
const (
	population = 10_000
	seed       = 20_26
)

// People of many scripts and shapes come back exactly as they were imported; the log that accounts for it
// verifies; and none of what they told us is anywhere in the clear.
func TestTenThousandPeopleAreImportedAndReadBackExactly(t *testing.T) {
	i := start(t, stackOptions())
	dir := t.TempDir()
	input, output := filepath.Join(dir, "people.ndjson"), filepath.Join(dir, "ids.ndjson")
	f, err := os.Create(input)
	if err != nil {
		t.Fatal(err)
	}
	if err := people.Write(f, seed, population); err != nil {
		t.Fatal(err)
	}
	// Lines that cannot be imported are reported by number and reason, without their content.
	const bad = "canary-in-a-rejected-line"
	fmt.Fprintf(f, "{\"records\":{\"profile\":{\"email\":\"%s\"}}}\n%s\n", bad, bad)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	rejects := filepath.Join(dir, "rejects.ndjson")
	_, err = i.pdvault("shop", "import", input, "--out", output, "--rejects", rejects)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatalf("import with two bad lines ends with %v, want exit status 3", err)
	}
	report, err := os.ReadFile(rejects)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(report, []byte(bad)) || bytes.Count(report, []byte("\n")) != 2 {
		t.Errorf("rejects: %s", report)
	}

	ids := make([]string, population)
	got, err := os.Open(output)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	lines := bufio.NewScanner(got)
	for lines.Scan() {
		var l struct {
			Line    int
			Subject string
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		ids[l.Line-1] = l.Subject
	}
	i.compare(ids)

	// Importing the same file again changes nothing.
	before := i.ledgerSize()
	_, _ = i.pdvault("shop", "import", input, "--out", filepath.Join(dir, "again.ndjson"), "--state", filepath.Join(dir, "again.state"))
	for _, e := range i.ledger(before) {
		if e.Kind == "subject.created" {
			t.Fatal("importing again creates again")
		}
	}
	i.verifyLedger()
	i.nothingInTheClear(ids, bad)
}

// compare reads every person in batches and compares with what the generator makes.
func (i *instance) compare(ids []string) {
	t := i.t
	t.Helper()
	generator := people.New(seed)
	const size = 200
	parallel(len(ids)/size, 4, func(k int) {
		type read struct {
			Subject    string `json:"subject"`
			Collection string `json:"collection"`
		}
		reads := make([]read, size)
		for j := range reads {
			reads[j] = read{ids[k*size+j], "profile"}
		}
		body, _ := json.Marshal(map[string]any{"purpose": "account", "reads": reads}) // strings only
		a, err := i.Do(t.Context(), "shop", "POST", "/v1/reads", body)
		if err != nil || a.Status != http.StatusOK {
			t.Errorf("batch %d: %v, %d", k, err, a.Status)
			return
		}
		var answer struct {
			Results []struct {
				Read struct{ Fields json.RawMessage }
			}
		}
		if err := json.Unmarshal(a.Body, &answer); err != nil {
			t.Error(err)
			return
		}
		for j, r := range answer.Results {
			n := k*size + j
			if r.Read.Fields == nil || !sameJSON(t, r.Read.Fields, generator.Person(n)) {
				t.Errorf("person %d is not as imported", n)
			}
		}
	})
}

// nothingInTheClear looks for what the people told us in everything that was written.
func (i *instance) nothingInTheClear(ids []string, more ...string) {
	t := i.t
	t.Helper()
	canaries := more
	generator := people.New(seed)
	for n := 0; n < len(ids); n += len(ids) / 100 {
		var p map[string]any
		if err := json.Unmarshal(generator.Person(n), &p); err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{"email", "phone"} {
			if v, ok := p[field].(string); ok && len(v) > 8 {
				canaries = append(canaries, v)
			}
		}
	}
	for _, caller := range stackCallers() {
		canaries = append(canaries, i.Token(caller))
	}
	metrics := i.call("security", "GET", "/metrics", "")
	search := func(where string, text []byte) {
		for _, c := range canaries {
			if bytes.Contains(text, []byte(c)) {
				t.Errorf("%s holds a value in the clear", where)
				return
			}
		}
	}
	search("metrics", metrics.Body)
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(i.Dir, func(path string, d fs.DirEntry, err error) error {
		name := d.Name()
		if err != nil || d.IsDir() || d.Type()&fs.ModeSocket != 0 || name == "tokens.clear" || strings.HasPrefix(name, "token.") || name == "BALLAST" {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			search(name, b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
