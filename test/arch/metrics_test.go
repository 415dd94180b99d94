package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// metric finds names of metrics of ours.
var metric = regexp.MustCompile(`\bpd(?:vault|keys)_[a-z_]+\b`)

// rules is a file of alerts of Prometheus.
type rules struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []struct {
			Alert       string            `yaml:"alert"`
			Expr        string            `yaml:"expr"`
			For         string            `yaml:"for"`
			Labels      map[string]string `yaml:"labels"`
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"rules"`
	} `yaml:"groups"`
}

func alerts(t *testing.T) rules {
	t.Helper()
	f, err := os.Open(filepath.Join(root(t), "deploy", "prometheus", "pdvault.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	var r rules
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// dashboard returns the expressions of a dashboard, each with the title of its panel.
func dashboard(t *testing.T) map[string][]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root(t), "deploy", "grafana", "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			Type    string
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if p.Title == "" || ids[p.ID] || out[p.Title] != nil {
			t.Errorf("panel %d %q: no title, or one that is taken", p.ID, p.Title)
		}
		ids[p.ID] = true
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if q.Expr == "" || refs[q.RefID] {
				t.Errorf("panel %q: query %s", p.Title, q.RefID)
			}
			refs[q.RefID] = true
			out[p.Title] = append(out[p.Title], q.Expr)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
	}
	return out
}

// exported returns the names of metrics that strings of the product's source have.
func exported(t *testing.T) []string {
	t.Helper()
	var names []string
	walkGo(t, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil {
					names = append(names, metric.FindAllString(text, -1)...)
				}
			}
			return true
		})
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// unknown returns the metrics that expr names and the product does not have.
func unknown(expr string, known []string) []string {
	var out []string
	for _, name := range metric.FindAllString(expr, -1) {
		base := name
		for _, part := range []string{"_bucket", "_sum", "_count"} { // of a histogram
			base = strings.TrimSuffix(base, part)
		}
		if !slices.Contains(known, name) && !slices.Contains(known, base) {
			out = append(out, name)
		}
	}
	return out
}

func TestAlertsAndDashboardNameMetricsThatExist(t *testing.T) {
	known := exported(t)
	if len(known) < 15 {
		t.Fatalf("only %d metrics were found: %q", len(known), known)
	}
	used := 0
	for _, g := range alerts(t).Groups {
		for _, r := range g.Rules {
			used += len(metric.FindAllString(r.Expr, -1))
			for _, name := range append(unknown(r.Expr, known), unknown(r.Annotations["description"], known)...) {
				t.Errorf("alert %s: there is no metric %s", r.Alert, name)
			}
		}
	}
	for title, exprs := range dashboard(t) {
		for _, expr := range exprs {
			used += len(metric.FindAllString(expr, -1))
			for _, name := range unknown(expr, known) {
				t.Errorf("panel %q: there is no metric %s", title, name)
			}
		}
	}
	if used < 40 {
		t.Errorf("only %d uses of metrics were found", used)
	}
	if got := unknown(`rate(pdvault_ledger_commit_seconds_bucket[5m]) > pdvault_no_such_metric`, known); !slices.Equal(got, []string{"pdvault_no_such_metric"}) {
		t.Errorf("what does not exist is not found: %q", got)
	}
}

// Whoever is woken must learn what has happened and what to do.
func TestEveryAlertSaysWhatToDo(t *testing.T) {
	seen := map[string]bool{}
	pause := regexp.MustCompile(`^([1-9][0-9]*[smh])?$`)
	for _, g := range alerts(t).Groups {
		if g.Name == "" || seen[g.Name] || len(g.Rules) == 0 {
			t.Errorf("group %q", g.Name)
		}
		seen[g.Name] = true
		for _, r := range g.Rules {
			if r.Alert == "" || seen[r.Alert] || !strings.HasPrefix(r.Alert, "Pdvault") {
				t.Errorf("alert %q: no name of its own", r.Alert)
			}
			seen[r.Alert] = true
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if !pause.MatchString(r.For) {
				t.Errorf("%s: for %q", r.Alert, r.For)
			}
			for _, text := range []string{r.Annotations["summary"], r.Annotations["description"]} {
				if len(text) < 20 {
					t.Errorf("%s: says too little: %q", r.Alert, text)
				}
			}
			if strings.Count(r.Expr, "(") != strings.Count(r.Expr, ")") || strings.Count(r.Expr, `"`)%2 != 0 || metric.FindString(r.Expr) == "" {
				t.Errorf("%s: %s", r.Alert, r.Expr)
			}
		}
	}
}
