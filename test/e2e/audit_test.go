package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Every ground on which the real programs serve a read is rechecked in full, offline, from the exported files
// and public keys alone; and whatever is done to those files afterwards is found and named.
func TestAnAuditorRechecksEveryGroundAndFindsEveryManipulation(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	a := newAuditor(i)
	record := i.useEveryGround()
	early := a.export("early")
	i.moreOfTheSame()
	log := a.export("log")

	report := a.accepts(log)
	for _, ground := range []string{"consent", "service"} {
		g := report.Access.Grounds[ground]
		if g.Rechecked == 0 || g.Rechecked != g.Allowed || g.Denied == 0 {
			t.Errorf("ground %s: %+v", ground, g)
		}
	}
	if report.Policies != 2 || len(report.Absent) > 0 || report.Entries < 2*verify.TileWidth {
		t.Errorf("%d policies, %v absent, %d entries", report.Policies, report.Absent, report.Entries)
	}
	for _, reason := range []string{"consent-missing", "consent-withdrawn", "field-not-in-purpose", "purpose-not-yours", "subject-restricted", "unknown-purpose"} {
		if report.Access.Denials[reason] == 0 {
			t.Errorf("no denial for %s: %v", reason, report.Access.Denials)
		}
	}
	if r := a.accepts(log, "--from", filepath.Join(early, verify.CheckpointPath)); r.Access.Rechecked != report.Access.Rechecked {
		t.Error("an earlier checkpoint changes the counts")
	}

	t.Run("proof", func(t *testing.T) { a.proves(t, record) })
	for name, tt := range manipulations(record) {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			if err := os.CopyFS(dir, os.DirFS(log)); err != nil {
				t.Fatal(err)
			}
			tt.do(t, dir)
			a.rejects(t, dir, tt.index, tt.code)
		})
	}
	t.Run("the log as it was before", func(t *testing.T) {
		// It is sound, and signed; only who kept a later checkpoint sees that something is gone.
		a.accepts(early)
		size := a.accepts(early).Entries
		a.rejects(t, early, size, "earlier", "--from", filepath.Join(log, verify.CheckpointPath))
	})
	t.Run("the policies are left out", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "log")
		if err := os.CopyFS(dir, os.DirFS(log)); err != nil {
			t.Fatal(err)
		}
		remove(t, filepath.Join(dir, filepath.FromSlash(verify.BundlePath(2))))
		r, code := a.verify(dir)
		if code != 0 || r.Access.Partly == 0 || r.Access.Rechecked == 0 || len(r.Absent) != 1 {
			t.Errorf("exit code %d: %+v", code, r.Access)
		}
		remove(t, filepath.Join(dir, "policy"))
		if r, code = a.verify(dir); code != 0 || r.Access.Partly != r.Access.Allowed {
			t.Errorf("exit code %d: %+v", code, r.Access)
		}
	})
}

// Two copies of both stores, put back together, know nothing of each other. An auditor who kept a checkpoint
// of one does not accept the other.
func TestAForkIsFoundByWhoKeptACheckpoint(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	a := newAuditor(i)
	subject := i.create(person(1))
	stores := []string{"data", "keys"}
	i.stopped(func() {
		for _, name := range stores {
			if err := os.CopyFS(i.Path("kept-"+name), os.DirFS(i.Path(name))); err != nil {
				t.Fatal(err)
			}
		}
	})
	i.create(person(2))
	first := a.export("first")
	i.stopped(func() {
		for _, name := range stores {
			remove(t, i.Path(name))
			if err := os.Rename(i.Path("kept-"+name), i.Path(name)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(i.Path(name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	})
	for range 5 {
		if got := i.read("shop", subject, "order-fulfilment", "email"); got.Status != http.StatusOK {
			t.Fatalf("reading: %d %s", got.Status, got.Body)
		}
	}
	second := a.export("second")
	a.accepts(first)
	a.accepts(second)
	a.rejects(t, second, 0, "earlier", "--from", filepath.Join(first, verify.CheckpointPath))
}

// stopped runs f while neither program runs.
func (i *instance) stopped(f func()) {
	i.t.Helper()
	if err := errors.Join(i.Vault.Stop(), i.Keys.Stop()); err != nil {
		i.t.Fatal(err)
	}
	f()
	if err := i.StartKeys(i.t.Context()); err != nil {
		i.t.Fatal(err)
	}
	if err := i.StartVault(i.t.Context()); err != nil {
		i.t.Fatal(err)
	}
}

// useEveryGround reads on every ground and in every mode, and is denied for many reasons. It returns the index
// of an allowed read.
func (i *instance) useEveryGround() (record int64) {
	i.t.Helper()
	ada, bob := i.create(person(1)), i.create(person(2))

	i.wantRead(http.StatusForbidden, "shop", ada, "newsletter", "email")
	consent := i.consent(ada, "newsletter")
	i.wantRead(http.StatusOK, "shop", ada, "newsletter", "email")
	i.wantRead(http.StatusForbidden, "shop", ada, "special-offers", "email") // agreed to something else
	i.want(http.StatusOK, "shop", "POST", "/v1/consents/"+consent+"/withdrawal", "{}")
	i.wantRead(http.StatusForbidden, "shop", ada, "newsletter", "email")
	i.consent(ada, "newsletter")
	i.wantRead(http.StatusOK, "shop", ada, "newsletter", "email")

	i.consent(bob, "special-offers")
	i.consent(bob, "special-offers") // renews it
	i.wantRead(http.StatusOK, "shop", bob, "special-offers", "name")

	i.wantRead(http.StatusOK, "courier", ada, "partner-delivery", "name") // by an agreement
	i.wantRead(http.StatusForbidden, "courier", ada, "partner-delivery", "email")
	i.wantRead(http.StatusForbidden, "courier", ada, "account", "email")
	i.wantRead(http.StatusForbidden, "shop", ada, "sale", "email")
	i.wantRead(http.StatusForbidden, "auditor", ada, "account", "email")

	m := i.wantRead(http.StatusOK, "shop", ada, "account", "displayName")
	record = int64(m["access"].(map[string]any)["record"].(float64))
	i.wantRead(http.StatusOK, "shop", ada, "order-fulfilment", "email&mode=mask")
	i.want(http.StatusOK, "shop", "POST", "/v1/verifications",
		`{"purpose":"account","subject":"`+ada+`","collection":"profile","field":"displayName","value":"somebody else"}`)
	i.lookups("order-fulfilment", "email")
	return record
}

func (i *instance) wantRead(status int, caller, subject, purpose, fields string) map[string]any {
	i.t.Helper()
	return i.want(status, caller, "GET", fmt.Sprintf(readPath, subject, purpose, fields), "")
}

// consent has the subject agree to a purpose and returns the consent's id.
func (i *instance) consent(subject, purpose string) string {
	i.t.Helper()
	m := i.want(http.StatusCreated, "shop", "POST", "/v1/subjects/"+subject+"/consents", fmt.Sprintf(
		`{"purpose":%q,"separate_document":true,"not_after":%q}`, purpose, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	return m["record_id"].(string)
}

// lookups finds a person and nobody.
func (i *instance) lookups(purpose, field string, header ...string) {
	i.t.Helper()
	for _, value := range []string{"person1@example.org", "nobody@example.org"} {
		i.want(http.StatusOK, "shop", "POST", "/v1/lookups",
			fmt.Sprintf(`{"purpose":%q,"collection":"profile","field":%q,"value":%q}`, purpose, field, value), header...)
	}
}

// moreOfTheSame goes on under a second version of the policy, whose rules ask for a justification, until the
// log has two full tiles.
func (i *instance) moreOfTheSame() {
	i.t.Helper()
	consented, other := i.create(person(3)), i.create(person(4))
	i.consent(consented, "newsletter")
	bundle := i.want(http.StatusOK, "auditor", "GET", "/v1/policy", "")
	cedar := bundle["cedar"].(map[string]any)
	cedar["policies"] = cedar["policies"].(string) + `
@id("support-says-why")
forbid (principal, action in [PD::Action::"read", PD::Action::"lookup"], resource is PD::Record)
when { context.purpose == "support" } unless { context.justified };
`
	raw, err := json.Marshal(bundle)
	if err != nil {
		i.t.Fatal(err)
	}
	i.want(http.StatusCreated, "privacy", "POST", "/v1/policy", string(raw))

	i.wantRead(http.StatusOK, "shop", consented, "newsletter", "email") // given under version 1
	i.wantRead(http.StatusOK, "courier", other, "partner-delivery", "name")
	i.wantRead(http.StatusForbidden, "shop", other, "support", "email")
	why := []string{"Access-Justification", "she called"}
	i.want(http.StatusOK, "shop", "GET", fmt.Sprintf(readPath, other, "support", "email"), "", why...)
	i.want(http.StatusOK, "shop", "GET", fmt.Sprintf(readPath, other, "account", "email"), "", "Access-Reference", "A-1")
	i.lookups("support", "email", why...)

	i.want(http.StatusOK, "privacy", "PUT", "/v1/subjects/"+other+"/restriction", `{"reason":"contested"}`)
	i.wantRead(http.StatusForbidden, "shop", other, "account", "email")
	i.want(http.StatusOK, "privacy", "DELETE", "/v1/subjects/"+other+"/restriction", "")
	i.wantRead(http.StatusOK, "shop", other, "account", "email")

	reads := strings.Repeat(`{"subject":"`+consented+`","collection":"profile","fields":["email"]},`, 250)
	for _, purpose := range []string{"newsletter", "order-fulfilment"} {
		m := i.want(http.StatusOK, "shop", "POST", "/v1/reads", `{"purpose":"`+purpose+`","reads":[`+strings.TrimSuffix(reads, ",")+`]}`)
		for _, r := range m["results"].([]any) {
			if r.(map[string]any)["read"] == nil {
				i.t.Fatalf("a read of a batch for %s was not served: %v", purpose, r)
			}
		}
	}
}

// auditor works on exported files and public keys.
type auditor struct {
	i               *instance
	ledger, witness string
	dir             string
}

func newAuditor(i *instance) *auditor {
	ledger, witness := i.publicKeys()
	return &auditor{i, ledger, witness, i.t.TempDir()}
}

// export downloads the log once the witness has seen all of it.
func (a *auditor) export(name string) (dir string) {
	a.i.t.Helper()
	entries := a.i.ledger(0)
	want := entries[len(entries)-1].Index + 1
	dir = filepath.Join(a.dir, name)
	eventually(a.i.t, "the export holds what was in the log", func() bool {
		out, err := a.i.pdvault("auditor", "records", "export", dir)
		if err != nil {
			a.i.t.Fatalf("exporting: %v", err)
		}
		var done struct{ Entries int64 }
		if err := json.Unmarshal(out, &done); err != nil {
			a.i.t.Fatalf("exporting: %v\n%s", err, out)
		}
		return done.Entries >= want
	})
	return dir
}

// auditReport is what pdaudit verify ledger --json prints.
type auditReport struct {
	OK       bool                `json:"ok"`
	Entries  int64               `json:"entries"`
	Access   verify.AccessCounts `json:"access"`
	Policies int64               `json:"policies"`
	Absent   []int64             `json:"policies_absent"`
	Problems []verify.Problem    `json:"problems"`
}

// pdaudit runs the program and returns what it printed and its exit code.
func (a *auditor) pdaudit(args ...string) (string, int) {
	a.i.t.Helper()
	out, err := a.i.Output(a.i.t.Context(), "pdaudit", args...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return string(out), 0
	case errors.As(err, &exit):
		return string(out), exit.ExitCode()
	}
	a.i.t.Fatal(err)
	return "", 0
}

func (a *auditor) verify(dir string, args ...string) (r auditReport, code int) {
	a.i.t.Helper()
	out, code := a.pdaudit(append([]string{"verify", "ledger", dir, "--ledger-key", a.ledger, "--witness-key", a.witness, "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		a.i.t.Fatalf("the report of pdaudit (exit code %d): %v\n%s", code, err, out)
	}
	return r, code
}

// accepts demands that all is well and every allowed read was rechecked in full.
func (a *auditor) accepts(dir string, args ...string) auditReport {
	a.i.t.Helper()
	r, code := a.verify(dir, args...)
	if c := r.Access; code != 0 || !r.OK || c.Allowed == 0 && r.Entries > 10 || c.Rechecked != c.Allowed || c.Partly != 0 || c.Refuted != 0 {
		a.i.t.Fatalf("exit code %d, problems %v, reads %+v", code, r.Problems, c)
	}
	return r
}

// rejects demands exit code 1 and this problem first.
func (a *auditor) rejects(t *testing.T, dir string, index int64, code string, args ...string) {
	t.Helper()
	r, exit := a.verify(dir, args...)
	if exit != 1 || r.OK || len(r.Problems) == 0 {
		t.Fatalf("exit code %d, problems %v", exit, r.Problems)
	}
	if p := r.Problems[0]; p.Index != index || p.Code != code {
		t.Errorf("the first problem is %+v, not %s at %d", p, code, index)
	}
}

// proves checks the proof of one access record, and that neither another key nor another entry will do.
func (a *auditor) proves(t *testing.T, record int64) {
	file := func(name string, args ...string) string {
		t.Helper()
		out, err := a.i.pdvault("auditor", args...)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(a.dir, name)
		if err := os.WriteFile(path, out, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	index := fmt.Sprint(record)
	proof, entry := file("one.tlog-proof", "records", "proof", index), file("one.json", "records", "show", index, "--entry")
	next := file("next.json", "records", "show", fmt.Sprint(record+1), "--entry")
	_, strange, err := note.GenerateKey(rand.Reader, strings.SplitN(a.ledger, "+", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := verify.GenerateCosignerKey(rand.Reader, strings.SplitN(a.witness, "+", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		entry, ledger, witness string
		code                   int
		out                    string
	}{
		{entry, a.ledger, a.witness, 0, `(?m)^OK: the entry is in the ledger, at index ` + index + `$`},
		{entry, strange, a.witness, 1, "^FAILED: "},
		{entry, a.ledger, stranger, 1, "^FAILED: .*witness"},
		{next, a.ledger, a.witness, 1, "^FAILED: .*not proven to be in the log"},
	} {
		out, code := a.pdaudit("verify", "proof", proof, "--entry", tt.entry, "--ledger-key", tt.ledger, "--witness-key", tt.witness)
		if code != tt.code || !regexp.MustCompile(tt.out).MatchString(out) {
			t.Errorf("exit code %d, want %d:\n%s", code, tt.code, out)
		}
	}
}

// manipulation is something done to an exported log, and what is found first.
type manipulation struct {
	do    func(t *testing.T, dir string)
	index int64
	code  string
}

// manipulations are of the entry at index and of what surrounds it.
func manipulations(index int64) map[string]manipulation {
	entries := func(change func([][]byte) [][]byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			rewriteBundle(t, dir, change)
		}
	}
	edit := func(name, old, new string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			path := filepath.Join(dir, filepath.FromSlash(name))
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(b, []byte(old)) {
				t.Fatalf("%s does not contain %s", name, old)
			}
			if err := os.WriteFile(path, bytes.Replace(b, []byte(old), []byte(new), 1), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return map[string]manipulation{
		"an entry is edited": {entries(func(e [][]byte) [][]byte {
			e[index] = bytes.Replace(e[index], []byte(`"purpose":"account"`), []byte(`"purpose":"support"`), 1)
			return e
		}), index, "tile"},
		"an entry is deleted": {entries(func(e [][]byte) [][]byte {
			return append(e[:index], e[index+1:]...)
		}), 0, "bad-file"}, // the bundle is one entry short
		"an entry is deleted and another put at the end": {entries(func(e [][]byte) [][]byte {
			return append(append(e[:index], e[index+1:]...), e[0])
		}), index, "tile"},
		"two entries are exchanged": {entries(func(e [][]byte) [][]byte {
			e[index], e[index+7] = e[index+7], e[index]
			return e
		}), index, "tile"},
		"the end is cut off": {func(t *testing.T, dir string) {
			partial, err := filepath.Glob(filepath.Join(dir, "tile", "*", "*.p"))
			if err != nil || len(partial) == 0 {
				t.Fatalf("no partial tiles: %v", err)
			}
			for _, p := range partial {
				remove(t, p)
			}
		}, 512, "missing-file"},
		"a full bundle is missing": {func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, "tile", "entries", "001"))
		}, 256, "missing-file"},
		"the checkpoint names fewer entries": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, verify.CheckpointPath)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitN(string(b), "\n", 3)
			if err := os.WriteFile(path, []byte(lines[0]+"\n"+fmt.Sprint(index)+"\n"+lines[2]), 0o600); err != nil {
				t.Fatal(err)
			}
		}, -1, "checkpoint"},
		"the first policy is edited":   {edit(verify.BundlePath(1), `"callers":["shop"]`, `"callers":["legal"]`), 0, "policy-bundle"},
		"the first policy is ruined":   {edit(verify.BundlePath(1), `{`, ``), 0, "policy-bundle"},
		"the privacy policy is edited": {edit(verify.BundlePath(1), "never be sold", "ever be sold"), 0, "policy-bundle"},
	}
}

// rewriteBundle changes the entries of the first, full bundle.
func rewriteBundle(t *testing.T, dir string, change func([][]byte) [][]byte) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(verify.Tile{Level: verify.EntriesLevel, Width: verify.TileWidth}.Path()))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := verify.DecodeBundle(data, verify.TileWidth)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, e := range change(entries) {
		if out, err = verify.AppendBundle(out, e); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(out, data) {
		t.Fatal("nothing was changed")
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
