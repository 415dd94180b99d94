package arch

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// load asks the go tool for everything that the product links.
func load(t *testing.T) Graph {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	g := Graph{}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return g
		} else if err != nil {
			t.Fatal(err)
		}
		g[p.ImportPath] = p.Imports
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A permission that nobody uses is one that nobody has thought about: a rule is no wider than the tree needs.
func TestNoRuleIsWiderThanItIsUsed(t *testing.T) {
	g := load(t)
	for name, allowed := range layers {
		var used []string
		for pkg, imports := range g {
			p, ours := relative(pkg)
			if !ours || p != name && (!strings.HasSuffix(name, "/...") || !matches(name, p)) {
				continue
			}
			for _, imported := range imports {
				if to, ours := relative(imported); ours {
					used = append(used, to)
				}
			}
		}
		for _, a := range allowed {
			if !slices.ContainsFunc(used, func(to string) bool { return matches(a, to) }) {
				t.Errorf("%s may import %s and does not", name, a)
			}
		}
	}
}

func TestImportsFollowTheLayers(t *testing.T) {
	g := load(t)
	for _, program := range []string{"api/cmd/pdvault", "keys/cmd/pdkeys", "access/cmd/pdaudit"} {
		if len(g[module+"/"+program]) == 0 {
			t.Errorf("%s was not listed: the rules about it check nothing", program)
		}
	}
	for _, broken := range Check(g) {
		t.Error(broken)
	}
}

func TestEachRuleFailsWhenBroken(t *testing.T) {
	for _, tt := range []struct {
		name string
		g    Graph
	}{
		{"vault imports keys", Graph{module + "/vault": {module + "/keys"}}},
		{"keys imports vault", Graph{module + "/keys/keyring": {module + "/vault"}}},
		{"access imports the sidecar's client", Graph{module + "/access": {module + "/keys/client"}}},
		{"verify imports storage", Graph{module + "/access/ledger/verify": {module + "/vault/kv"}}},
		{"unknown package", Graph{module + "/utils": {"fmt"}}},
		{"second importer of gin", Graph{module + "/access": {"github.com/gin-gonic/gin"}}},
		{"second importer of the HashiCorp client", Graph{module + "/keys/sidecar": {"github.com/hashicorp/vault/api"}}},
		{"cleartext keysets outside the keyring", Graph{module + "/keys/sidecar": {"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"}}},
		{"secret data access", Graph{module + "/keys/keyring": {"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"}}},
		{"pdvault links Tink indirectly", Graph{
			module + "/api/cmd/pdvault": {module + "/api/daemon"},
			module + "/api/daemon":      {module + "/vault"},
			module + "/vault":           {"example.org/x"},
			"example.org/x":             {"github.com/tink-crypto/tink-go/v2/aead"},
		}},
		{"pdkeys links package vault", Graph{module + "/keys/cmd/pdkeys": {module + "/vault"}}},
		{"the product imports a test kit", Graph{module + "/keys/sidecar": {module + "/keys/sidecar/sidecartest"}}},
		{"pdaudit links storage", Graph{
			module + "/access/cmd/pdaudit": {"example.org/x"},
			"example.org/x":                {"github.com/dgraph-io/badger/v4"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if len(Check(tt.g)) == 0 {
				t.Error("no rule objects")
			}
		})
	}
}

func TestTopHoldsOnlyTheAreas(t *testing.T) {
	allowed := []string{
		"vault", "keys", "access", "api", "test", "deploy",
		"go.mod", "go.sum", "Makefile", "README.md", "LICENSE", "CHANGELOG.md",
	}
	built := []string{"bin", "data"} // made by make build and make run, ignored by git
	entries, err := os.ReadDir(root(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) && !slices.Contains(built, e.Name()) {
			t.Errorf("%s does not belong at the top", e.Name())
		}
	}
	for _, area := range []string{"vault", "keys", "access", "api", "test", "deploy"} {
		if _, err := os.Stat(filepath.Join(root(t), area, "DESIGN.md")); err != nil {
			t.Errorf("%s has no DESIGN.md", area)
		}
	}
}

func TestEveryPackageSaysWhatItMustNeverDo(t *testing.T) {
	comments := map[string]string{}
	walkGo(t, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Error(err)
			return
		}
		comments[filepath.Dir(path)] += f.Doc.Text()
	})
	for dir, comment := range comments {
		if strings.HasSuffix(dir, "keyspb") {
			continue // generated; keys.proto carries the comment
		}
		comment = strings.Join(strings.Fields(comment), " ")
		if !strings.Contains(comment, "never") && !strings.Contains(comment, "must not") {
			t.Errorf("%s: the package comment does not say what the package must never do", dir)
		}
	}
}

func TestTheHashiCorpClientIsImportedAsHcapi(t *testing.T) {
	walkGo(t, func(path string) {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, spec := range f.Imports {
			if spec.Path.Value == `"github.com/hashicorp/vault/api"` && (spec.Name == nil || spec.Name.Name != "hcapi") {
				t.Errorf("%s imports it under another name", path)
			}
		}
	})
}

func TestNoPackageIsNamedAfterNothing(t *testing.T) {
	walkGo(t, func(path string) {
		switch filepath.Base(filepath.Dir(path)) {
		case "utils", "util", "common", "helpers", "helper", "manager", "misc", "shared":
			t.Errorf("%s: the name of its folder says nothing", path)
		}
	})
}

func walkGo(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 1 || d.Name() == "testdata"):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go"):
			f(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
