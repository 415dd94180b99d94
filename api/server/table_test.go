package server

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

// areas are the packages whose errors can come out of a call of the broker.
var areas = []string{
	"access", "access/consent", "access/ledger", "access/policy", "vault", "vault/schema", "vault/kv", "keys",
}

// neverReachesHTTP are the errors that no call of the broker ends with, and why.
var neverReachesHTTP = map[string]string{
	"access.ErrUnreadable":   "of Restore, which no call of the API reaches",
	"keys.ErrKeyExists":      "a new subject has a random id; if it happens it is internal",
	"keys.ErrInvalid":        "the broker made a malformed message: internal",
	"ledger.ErrInvalidEntry": "the broker made a malformed entry: internal",
	"ledger.ErrExists":       "of Create, when a daemon starts",
	"ledger.ErrNoLedger":     "of Open, when a daemon starts",
	"ledger.ErrCosignature":  "of AddCosignature, which no call of the API reaches",
	"policy.ErrNotCovered":   "of Covers, which pdaudit calls",
}

// exportedErrors returns the exported error variables of the package in dir, as "package.ErrName".
func exportedErrors(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no files: %v", dir, err)
	}
	var out []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				for _, id := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(id.Name, "Err") {
						out = append(out, path.Base(dir)+"."+id.Name)
					}
				}
			}
		}
	}
	return out
}

// tableNames returns the errors that the source of the table names.
func tableNames(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), "errors.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != "table" {
			return true
		}
		for _, row := range spec.Values[0].(*ast.CompositeLit).Elts {
			if s, ok := row.(*ast.CompositeLit).Elts[0].(*ast.SelectorExpr); ok {
				out = append(out, s.X.(*ast.Ident).Name+"."+s.Sel.Name)
			}
		}
		return false
	})
	return out
}

// TestTableComplete fails when a package gains an exported error that the table does not know.
func TestTableComplete(t *testing.T) {
	known := tableNames(t)
	if len(known) < 30 {
		t.Fatalf("only %d rows were found", len(known))
	}
	var all []string
	for _, dir := range areas {
		all = append(all, exportedErrors(t, dir)...)
	}
	for _, name := range all {
		_, never := neverReachesHTTP[name]
		switch mapped := slices.Contains(known, name); {
		case !mapped && !never:
			t.Errorf("%s is neither in the error table nor listed as never reaching HTTP", name)
		case mapped && never:
			t.Errorf("%s is in the error table and listed as never reaching HTTP", name)
		}
	}
	for name := range neverReachesHTTP {
		if !slices.Contains(all, name) {
			t.Errorf("%s is listed as never reaching HTTP and does not exist", name)
		}
	}
}

// TestTable checks that every row is reached, wrapped or not, and is a row that can be sent.
func TestTable(t *testing.T) {
	for _, row := range table {
		for _, err := range []error{row.Err, fmt.Errorf("doing: %w", row.Err)} {
			if got := mappingOf(t.Context(), err); got.Type != row.Type || got.Status != row.Status {
				t.Errorf("%v: %d %s, want %d %s", err, got.Status, got.Type, row.Status, row.Type)
			}
		}
		if row.Title == "" || !strings.HasPrefix(row.Type, api.ProblemPrefix) {
			t.Errorf("%v: type %q, title %q", row.Err, row.Type, row.Title)
		}
		if again := row.Status == http.StatusServiceUnavailable || row.Status == http.StatusTooManyRequests; again != (row.RetryAfter > 0) {
			t.Errorf("%v: status %d with Retry-After %d", row.Err, row.Status, row.RetryAfter)
		}
	}
}

// TestPrecedence checks the errors that wrap more than one: what must not be mistaken comes first.
func TestPrecedence(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want string
	}{
		{t.Context(), errors.Join(access.ErrNotFound, access.ErrIntegrity), api.ProblemIntegrity},
		{t.Context(), errors.Join(access.ErrUnavailable, keys.ErrTampered), api.ProblemIntegrity},
		{t.Context(), errors.Join(access.ErrUnavailable, keys.ErrDamaged), api.ProblemIntegrity},
		{t.Context(), errors.Join(access.ErrUnavailable, keys.ErrClock), api.ProblemClock},
		{t.Context(), fmt.Errorf("%w: %w", access.ErrUnavailable, keys.ErrSealed), api.ProblemKeyService},
		{t.Context(), fmt.Errorf("%w: %w", access.ErrUnavailable, kv.ErrStorageFull), api.ProblemStorageFull},
		{t.Context(), errors.Join(keys.ErrUnavailable, context.DeadlineExceeded), api.ProblemTimeout},
		{t.Context(), errors.New("anything"), api.ProblemInternal},
		{t.Context(), errPanic, api.ProblemInternal},
		{t.Context(), keys.ErrInvalid, api.ProblemInternal},
		{t.Context(), &schema.ValidationError{Violations: []schema.Violation{{Pointer: "/email", Rule: "format"}}}, api.ProblemSchemaViolation},
		{t.Context(), &access.DeniedError{Reason: policy.ReasonSubjectErased}, api.ProblemAccessDenied},
		{cancelled, access.ErrIntegrity, api.ProblemClientClosed},
		{cancelled, context.Canceled, api.ProblemClientClosed},
	} {
		if p, _ := problemOf(c.ctx, c.err); p.Type != c.want {
			t.Errorf("%v: %s, want %s", c.err, p.Type, c.want)
		}
	}
}

// TestAPendingErasureIsSaidWhateverItsCause checks that who erased is told that it is on record, unless the cause must
// not be mistaken, and in each case which erasure it is.
func TestAPendingErasureIsSaidWhateverItsCause(t *testing.T) {
	for _, row := range Mappings() {
		p, _ := problemOf(t.Context(), &access.PendingErasureError{Entry: 7, Salt: "salt", Cause: row.Err})
		want := api.ProblemErasurePending
		// What is wrong with a key ends with the key; what is wrong with our own rows does not.
		if row.Type == api.ProblemIntegrity && !strings.HasPrefix(row.Err.Error(), "keys: ") {
			want = api.ProblemIntegrity
		}
		if p.Type != want || p.Erasure == "" || p.ErasureSalt != "salt" || p.AccessRecord == nil || *p.AccessRecord != 7 {
			t.Errorf("because of %v: %+v", row.Err, p)
		}
	}
}

// TestDenialsKnown checks that every reason of the policy has a problem that is a denial.
func TestDenialsKnown(t *testing.T) {
	for reason := range denials {
		p, m := problemOf(t.Context(), &access.DeniedError{Reason: reason, Record: -1})
		if m.Status != http.StatusForbidden || p.Reason != reason || p.Type == "" || p.Title == "" {
			t.Errorf("%s: %+v", reason, p)
		}
	}
}

// TestInternalSaysNothing checks that the text of an error never reaches a caller.
func TestInternalSaysNothing(t *testing.T) {
	for _, row := range append(Mappings(), internalError) {
		err := errors.New("canary")
		if row.Err != nil {
			err = fmt.Errorf("canary: %w", row.Err)
		}
		p, _ := problemOf(t.Context(), err)
		if body := string(encodeProblem(&p)); strings.Contains(body, "canary") {
			t.Errorf("%v: %s", row.Err, body)
		}
	}
}
