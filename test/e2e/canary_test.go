package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// canaries is how many people carry a marked value.
const canaries = 1000

// After writes, reads, refusals, rotations, an erasure, backups of both stores and an attempt at a core dump, none
// of what 1,000 people told us, no key and no token is anywhere that was written: neither in the clear nor in
// base64 or hexadecimal.
func TestStringsFindsNoCanaryAndNoKey(t *testing.T) {
	dir := shortDir(t)
	i := start(t, stack.Options{Dir: filepath.Join(dir, "pdv"), Env: []string{"GOTRACEBACK=crash"}})
	raw := make([]byte, 12)
	rand.Read(raw)
	mark := "canary" + hex.EncodeToString(raw) // every marked value holds it
	ids := make([]string, canaries)
	parallel(canaries, 8, func(n int) {
		a, err := i.Do(t.Context(), "shop", "POST", "/v1/subjects", fmt.Appendf(nil,
			`{"records":{"profile":{"email":"%s-%d@example.org","displayName":"%s %d","name":{"givenName":"%s"}}}}`, mark, n, mark, n, mark))
		var created struct{ ID string }
		if err != nil || a.Status != http.StatusCreated || json.Unmarshal(a.Body, &created) != nil {
			t.Errorf("create: %v %d", err, a.Status)
		}
		ids[n] = created.ID
	})
	if t.Failed() {
		t.FailNow()
	}
	for n := 0; n < canaries; n += 50 {
		i.call("shop", "GET", fmt.Sprintf(readPath, ids[n], "order-fulfilment", "email"), "", "Access-Reference", mark, "Access-Justification", mark)
		i.read("courier", ids[n], "newsletter", "email")
		i.call("shop", "POST", "/v1/lookups", fmt.Sprintf(`{"purpose":"support","collection":"profile","field":"email","value":"%s-%d@example.org"}`, mark, n))
		i.call("shop", "POST", "/v1/subjects", fmt.Sprintf(`{"records":{"profile":{"email":"%s-%d@example.org","unknown":"%s"}}}`, mark, n, mark))
		i.call("shop", "POST", "/v1/subjects/"+ids[n]+"/consents", fmt.Sprintf(`{"purpose":"newsletter","separate_document":true,"capture":{"form_uri":"/%s"}}`, mark))
	}
	for _, scope := range []string{"kek", "all-subjects", "index"} {
		i.rotated(i.rotate(scope), 2*time.Minute)
	}
	i.erase(ids[0])
	backups := filepath.Join(dir, "backups")
	if err := os.Mkdir(backups, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := i.pdvault("security", "backup", "--out", filepath.Join(backups, "data")); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Output(t.Context(), "pdkeys", "backup", "--config", i.Path("pdkeys.yaml"), "--out", filepath.Join(backups, "keys")); err != nil {
		t.Fatal(err)
	}
	if _, err := i.pdvault("auditor", "records", "export", filepath.Join(backups, "log")); err != nil {
		t.Fatal(err)
	}
	metrics := i.call("security", "GET", "/metrics", "")

	// Both programs are told to dump core, with a limit that would allow it and in a directory of their own.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*stack.Process{i.Vault, i.Keys} {
		if err := syscall.Kill(p.PID(), syscall.SIGABRT); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
	}

	secrets := map[string][]byte{"a marked value": []byte(mark), "a keyset in the clear": []byte("type.googleapis.com/google.crypto.tink")}
	for _, caller := range stackCallers() {
		secrets["the token of "+caller] = []byte(i.Token(caller))
	}
	var roots struct {
		Keys []struct {
			Key []byte `json:"key"`
		} `json:"keys"`
	}
	text, err := os.ReadFile(i.Path("root.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &roots); err != nil || len(roots.Keys) == 0 {
		t.Fatalf("root key: %v", err)
	}
	for _, k := range roots.Keys {
		secrets["the root key"] = k.Key
	}
	wanted := forms(secrets)
	look := func(where string, b []byte) {
		for what, forms := range wanted {
			for _, f := range forms {
				if bytes.Contains(b, f) {
					t.Errorf("%s holds %s", where, what)
				}
			}
		}
	}
	look("metrics", metrics.Body)
	files := 0
	for _, top := range []string{dir, "/proc/self/cwd"} {
		err := filepath.WalkDir(top+"/", func(path string, d fs.DirEntry, err error) error {
			name := d.Name()
			if top != dir && (d.IsDir() && path != top+"/" || !strings.HasPrefix(name, "core")) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return err
			}
			if err != nil || d.IsDir() || d.Type()&fs.ModeSocket != 0 || name == "tokens.clear" || name == "root.key" ||
				strings.HasPrefix(name, "token.") || name == "BALLAST" {
				return err
			}
			if strings.HasPrefix(name, "core") {
				t.Errorf("%s is a core dump", name)
			}
			b, err := os.ReadFile(path)
			if err == nil {
				look(name, b)
				files++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 20 {
		t.Errorf("%d files were searched", files)
	}
	// The search finds what is there.
	if !bytes.Contains([]byte(base64.StdEncoding.EncodeToString([]byte("x"+mark))), wanted["a marked value"][3]) {
		t.Error("the search would not find a value in base64")
	}
}

// forms returns each secret as it is, in hexadecimal, and in base64 at each of three offsets.
func forms(secrets map[string][]byte) map[string][][]byte {
	out := map[string][][]byte{}
	for what, s := range secrets {
		out[what] = [][]byte{s, []byte(hex.EncodeToString(s))}
		for offset := range 3 {
			// The first and last characters depend on what stands beside the secret.
			encoded := base64.RawStdEncoding.EncodeToString(append(make([]byte, offset), s...))
			out[what] = append(out[what], []byte(encoded[(offset*8+5)/6:len(encoded)-1]))
		}
	}
	return out
}
