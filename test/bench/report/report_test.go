package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
)

// sample has a row of each kind, one that did nothing, and a baseline that was left out.
func sample() *Results {
	r := &Results{
		Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Took: 90, Command: "go run ./test/bench/cmd/bench -docs DIR",
		Machine: "some machine", Load: "0.12, 0.34, 0.56", Caveat: "others were at work",
		Sizes: []Size{{Subjects: 10_000, FillRate: 5000, VaultMB: 100, KeysMB: 50, VaultDisk: 2500, KeysDisk: 700, ReadDisk: 450, Reads: 20_000, CleanReady: 0.5, KillReady: 0.9}},
		Notes: []Note{{"PostgreSQL", "skipped: not on this machine: no initdb | postgres"}},
	}
	for i, conns := range []int{1, 32, 256} {
		f := float64(i + 1)
		r.Rows = append(r.Rows,
			Row{What: "bare gin handler", Class: Read, Baseline: Gin, Connections: conns, PerSecond: 20_000 * f, P99: 0.1 * f},
			Row{What: "raw Badger, grouped writes", Class: Write, Baseline: Badger, Connections: conns, PerSecond: 4000 * f, P99: f},
			Row{What: "HashiCorp KV v2, get", Class: Read, Baseline: KV, Connections: conns, PerSecond: 2500 * f, P99: f},
			Row{What: "create", Class: Write, Subjects: 1_234_567, Connections: conns, PerSecond: 1000 * f, P50: 1, P99: 2 * f, Failed: 17},
			Row{What: "warm read", Class: Read, Subjects: 10_000, Connections: conns, PerSecond: 5000 * f, P99: 3 * f},
			Row{What: "lookup", Class: Other, Subjects: 10_000, Connections: conns},
		)
	}
	r.Rows = append(r.Rows,
		Row{What: "warm read", Class: Read, Subjects: 100_000, Connections: 32, PerSecond: 9000, P99: 5},
		Row{What: "warm read", Class: Read, Subjects: 10_000, Connections: 32, Offered: 5000, PerSecond: 5000, P99: 4, Unsent: 23},
		Row{What: "warm read", Class: Read, Subjects: 10_000, Connections: 32, Offered: 9000, PerSecond: 8000, P99: 400, Unsent: 4711},
	)
	return r
}

func TestRatiosAreOfTheSameRunAndNumberOfConnections(t *testing.T) {
	r := sample()
	for _, tt := range []struct {
		what, baseline string
		connections    int
		want           float64
	}{
		{"warm read", Gin, 1, 0.25}, {"warm read", KV, 256, 2}, {"create", Badger, 32, 0.25}, {"create", Gin, 32, 0.05},
		{"create", KV, 32, 0},       // only gets were measured
		{"warm read", Badger, 1, 0}, // only writes were measured
		{"warm read", Postgres, 1, 0},
	} {
		for _, row := range r.Rows {
			if row.What != tt.what || row.Connections != tt.connections || row.Offered > 0 || row.Subjects == 100_000 {
				continue
			}
			got, ok := r.against(row, tt.baseline)
			if got != tt.want || ok != (tt.want != 0) {
				t.Errorf("%s beside %s at %d connections: %v, %v, want %v", tt.what, tt.baseline, tt.connections, got, ok, tt.want)
			}
		}
	}
	odd := Row{What: "create", Class: Write, Connections: 7, PerSecond: 1}
	if _, ok := r.against(odd, Gin); ok {
		t.Error("figures of different numbers of connections are compared")
	}
}

func TestTablesLeaveNothingOut(t *testing.T) {
	r := sample()
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{"some machine", "0.12, 0.34, 0.56", "others were at work", "1,234,567", " 17 ", "4711", "skipped: not on this machine", "0.25", "2500", "0.90"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text lacks %q", want)
		}
	}
	rows := 0
	for _, table := range r.tables() {
		for _, line := range table.lines {
			if len(line) != len(table.head) {
				t.Errorf("%s: %d cells under %d heads: %q", table.title, len(line), len(table.head), line)
			}
		}
		if table.title != r.ratios().title {
			rows += len(table.lines)
		}
	}
	if want := len(r.Rows) + len(r.Sizes) + len(r.Notes); rows != want {
		t.Errorf("%d lines for %d results", rows, want)
	}
	if got := new(Results).tables(); len(got) != 0 {
		t.Errorf("%d tables of nothing", len(got))
	}
}

func TestMeasuredKeepsWhatARunHasShown(t *testing.T) {
	got := Row{What: "x", Connections: 2}.Measured(load.Result{Requests: 50, Failed: 2, Unsent: 3, Took: 2 * time.Second,
		P50: time.Millisecond, P99: 1500 * time.Microsecond, P999: 2 * time.Millisecond, Max: time.Second}, 100)
	want := Row{What: "x", Connections: 2, Requests: 50, Failed: 2, Unsent: 3, PerSecond: 2500, P50: 1, P99: 1.5, P999: 2, Max: 1000}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestThePageHoldsAllThatIsNeededToRepeatIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "docs")
	r := sample()
	if err := r.WriteDocs(dir); err != nil {
		t.Fatal(err)
	}
	page := read(t, filepath.Join(dir, "README.md"))
	for _, want := range []string{"`go run ./test/bench/cmd/bench -docs DIR`", "2026-01-02 03:04 UTC", "some machine", "0.12, 0.34, 0.56", "others were at work", `initdb \| postgres`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	parsed, err := Parse([]byte(read(t, filepath.Join(dir, "results.json"))))
	if err != nil || !reflect.DeepEqual(parsed, r) {
		t.Errorf("results.json holds something else, error %v", err)
	}
	for file, names := range map[string][]string{
		"read-rate.svg":     {"Reads per second", "warm read", "bare gin handler", "HashiCorp KV v2, get"},
		"read-p99.svg":      {"warm read"},
		"write-rate.svg":    {"create", "raw Badger, grouped writes"},
		"write-p99.svg":     {"create"},
		"open-p99.svg":      {"warm read", "5,000"},
		"subjects-rate.svg": {"warm read, 32 connections", "10,000", "100,000"},
		"baselines.svg":     {"create", "bare gin handler", "40,000", "9,000"}, // warm reads of the larger instance
	} {
		svg := read(t, filepath.Join(dir, file))
		wellFormed(t, file, svg)
		for _, name := range names {
			if !strings.Contains(svg, name) {
				t.Errorf("%s lacks %q", file, name)
			}
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s holds what is no number", file)
		}
		if !strings.Contains(page, "]("+file+")") {
			t.Errorf("the page does not show %s", file)
		}
	}
}

func TestFewResultsMakeAPageToo(t *testing.T) {
	for name, r := range map[string]*Results{
		"none":            {},
		"one":             {Rows: []Row{{What: "create", Class: Write, Connections: 32, PerSecond: 10, P99: 1}}},
		"nothing is done": {Rows: []Row{{What: "create", Class: Write, Connections: 1}, {What: "create", Class: Write, Connections: 32}}},
		"all the same":    {Rows: []Row{{What: "create", Class: Write, Connections: 1, PerSecond: 10, P99: 10}, {What: "create", Class: Write, Connections: 2, PerSecond: 10, P99: 10}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := r.WriteDocs(dir); err != nil {
				t.Fatal(err)
			}
			plots, err := filepath.Glob(filepath.Join(dir, "*.svg"))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range plots {
				wellFormed(t, p, read(t, p))
			}
		})
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wellFormed(t *testing.T, name, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Errorf("%s is not well-formed: %v", name, err)
			return
		}
	}
}
