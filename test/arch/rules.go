// Package arch holds the rules of the tree: which package may import which, what each program must never
// link, who alone may import a dangerous or heavy dependency. Its test checks them on the real tree, and
// each rule on a graph that breaks it.
//
// It must never be imported by the product.
package arch

import (
	"fmt"
	"slices"
	"strings"
)

const module = "github.com/prototypster/pdvault"

// Graph is what each package imports directly, without its tests.
type Graph map[string][]string

// layer says what a package of ours may import of ours. Names are relative to the module. A name that ends
// in /... stands for the package and everything below it.
var layers = map[string][]string{
	"api":                   {},
	"api/server":            {"api", "access", "access/consent", "access/erasure", "access/ledger", "access/ledger/verify", "access/policy", "vault", "vault/kv", "vault/schema", "keys"},
	"api/client":            {"api", "access", "access/erasure", "access/policy", "keys"},
	"api/contract":          {"api"},
	"api/daemon":            {"api", "api/server", "access/...", "vault", "vault/kv/...", "keys", "keys/client", "deploy/policy"},
	"api/cmd/pdvault":       {"api", "api/client", "api/daemon", "api/server", "access/erasure", "access/ledger/verify", "access", "vault/kv/archive"},
	"access":                {"access/consent", "access/erasure", "access/ledger", "access/ledger/verify", "access/policy", "vault", "vault/kv", "vault/schema"},
	"access/consent":        {"vault/kv"},
	"access/erasure":        {"access/ledger/verify"},
	"access/ledger":         {"access/ledger/verify", "vault/kv"},
	"access/ledger/verify":  {},
	"access/policy":         {"access/ledger/verify", "vault/schema"},
	"access/cmd/pdaudit":    {"access/erasure", "access/ledger/verify", "access/policy"},
	"vault":                 {"vault/kv", "vault/schema"},
	"vault/schema":          {},
	"vault/kv":              {},
	"vault/kv/internal/...": {"vault/kv"},
	"vault/kv/archive":      {"vault/kv"},
	"vault/kv/badgerkv":     {"vault/kv", "vault/kv/internal/..."},
	"vault/kv/memkv":        {"vault/kv", "vault/kv/internal/..."},
	"keys":                  {"keys/keyspb"},
	"keys/keyspb":           {},
	"keys/internal/...":     {},
	"keys/keyring":          {"keys", "vault/kv", "vault/kv/archive"},
	"keys/hcvault":          {"keys", "keys/keyring", "vault/kv"},
	"keys/localkek":         {"keys", "keys/keyring"},
	"keys/sidecar":          {"keys", "keys/keyspb", "keys/keyring", "access/ledger/verify"},
	"keys/client":           {"keys", "keys/keyspb", "keys/internal/..."},
	"keys/cmd/pdkeys":       {"keys", "keys/sidecar", "keys/client", "keys/keyring", "keys/hcvault", "keys/localkek", "access/ledger/verify", "vault/kv", "vault/kv/archive", "vault/kv/badgerkv"},
	"deploy/policy":         {},
}

// never is what a program must not link, directly or not: prefixes of import paths.
var never = map[string][]string{
	"api/cmd/pdvault": {
		"github.com/tink-crypto/", "github.com/hashicorp/vault/", module + "/keys/keyring", module + "/keys/hcvault",
		module + "/keys/localkek", module + "/keys/sidecar", module + "/vault/kv/memkv",
	},
	"keys/cmd/pdkeys": {
		"github.com/gin-gonic/", "=" + module + "/vault", module + "/api", "=" + module + "/access",
		"=" + module + "/access/ledger", module + "/access/policy", module + "/vault/kv/memkv",
	},
	"access/cmd/pdaudit": {
		"github.com/tink-crypto/", "github.com/hashicorp/vault/", "github.com/gin-gonic/", "github.com/dgraph-io/",
		"google.golang.org/grpc", module + "/keys", module + "/vault/kv", "=" + module + "/vault", module + "/api",
	},
}

// only says who alone may import what: a prefix of import paths to the packages of ours that may.
var only = map[string][]string{
	"github.com/hashicorp/vault/api":                             {"keys/hcvault"},
	"github.com/gin-gonic/gin":                                   {"api/server"},
	"github.com/dgraph-io/badger":                                {"vault/kv/badgerkv"},
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset":  {"keys/keyring"},
	"github.com/tink-crypto/tink-go/v2/testkeyset":               {},
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess": {},
	"github.com/tink-crypto/":                                    {"keys/keyring"},
	"github.com/cedar-policy/":                                   {"access/policy"},
}

// Check returns every way in which g breaks a rule, sorted.
func Check(g Graph) []string {
	var broken []string
	for pkg, imports := range g {
		name, ours := relative(pkg)
		if !ours || strings.HasPrefix(name, "test/") || isKit(name) {
			continue
		}
		allowed, known := lookup(name)
		if !known {
			broken = append(broken, fmt.Sprintf("%s: no rule says what it may import", name))
		}
		for _, imported := range imports {
			to, ours := relative(imported)
			if ours && (isKit(to) || strings.HasPrefix(to, "test/")) {
				broken = append(broken, fmt.Sprintf("%s must not import the test kit %s", name, to))
			} else if ours && !slices.ContainsFunc(allowed, func(a string) bool { return matches(a, to) }) {
				broken = append(broken, fmt.Sprintf("%s must not import %s", name, to))
			}
			for path, who := range only {
				if strings.HasPrefix(imported, path) && !slices.Contains(who, name) && !narrower(path, imported) {
					broken = append(broken, fmt.Sprintf("%s must not import %s", name, imported))
				}
			}
		}
	}
	for program, prefixes := range never {
		for dep, chain := range closure(g, module+"/"+program) {
			for _, prefix := range prefixes {
				exact, isExact := strings.CutPrefix(prefix, "=")
				if isExact && dep == exact || !isExact && strings.HasPrefix(dep, prefix) {
					broken = append(broken, fmt.Sprintf("%s must never link %s (%s)", program, dep, chain))
				}
			}
		}
	}
	slices.Sort(broken)
	return slices.Compact(broken)
}

// isKit reports whether a package holds fakes and helpers for the tests of others, such as sidecartest.
func isKit(name string) bool { return strings.HasSuffix(name, "test") }

// narrower reports whether a rule with a longer path than rule speaks of imported.
func narrower(rule, imported string) bool {
	for path := range only {
		if len(path) > len(rule) && strings.HasPrefix(imported, path) {
			return true
		}
	}
	return false
}

func relative(pkg string) (string, bool) {
	if pkg == module {
		return "", true
	}
	return strings.CutPrefix(pkg, module+"/")
}

func lookup(name string) ([]string, bool) {
	if allowed, ok := layers[name]; ok {
		return allowed, true
	}
	for pattern, allowed := range layers {
		if strings.HasSuffix(pattern, "/...") && matches(pattern, name) {
			return allowed, true
		}
	}
	return nil, false
}

func matches(pattern, name string) bool {
	base, below := strings.CutSuffix(pattern, "/...")
	return name == base || below && strings.HasPrefix(name, base+"/")
}

// closure returns everything that pkg links, each with one chain of imports that leads to it.
func closure(g Graph, pkg string) map[string]string {
	chains := map[string]string{}
	queue := []string{pkg}
	chains[pkg] = pkg
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		for _, imported := range g[p] {
			if _, seen := chains[imported]; !seen {
				chains[imported] = chains[p] + " → " + imported
				queue = append(queue, imported)
			}
		}
	}
	return chains
}
