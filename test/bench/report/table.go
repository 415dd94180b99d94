package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

// table is a head and lines of as many cells; the first column is text.
type table struct {
	title string
	head  []string
	lines [][]string
}

func (t *table) add(cells ...string) { t.lines = append(t.lines, cells) }

// tables are what r shows, without those that have no line.
func (r *Results) tables() []table {
	all := []table{r.figures(), r.open(), r.ratios(), r.sizes(), r.notes()}
	kept := all[:0]
	for _, t := range all {
		if len(t.lines) > 0 {
			kept = append(kept, t)
		}
	}
	return kept
}

func (r *Results) figures() table {
	t := table{title: "The most that it does: each connection has one request under way",
		head: []string{"what", "subjects", "connections", "per second", "p50 ms", "p99 ms", "p99.9 ms", "failed", "µs pdvault", "µs pdkeys", "ledger commits", "sidecar calls"}}
	for _, row := range r.Rows {
		if row.Offered == 0 {
			t.add(row.What, count(int64(row.Subjects)), strconv.Itoa(row.Connections), count(int64(row.PerSecond)), fixed(row.P50, 2), fixed(row.P99, 2), fixed(row.P999, 2),
				strconv.FormatInt(row.Failed, 10), fixed(row.VaultCPU, 0), fixed(row.KeysCPU, 0), dash(row.Commits), dash(row.Calls))
		}
	}
	return t
}

func (r *Results) open() table {
	t := table{title: "At a given rate: latency counts from when a request was due",
		head: []string{"what", "subjects", "connections", "due per second", "answered per second", "p50 ms", "p99 ms", "p99.9 ms", "longest ms", "failed", "unsent"}}
	for _, row := range r.Rows {
		if row.Offered > 0 {
			t.add(row.What, count(int64(row.Subjects)), strconv.Itoa(row.Connections), count(int64(row.Offered)), count(int64(row.PerSecond)), fixed(row.P50, 2), fixed(row.P99, 2), fixed(row.P999, 2), fixed(row.Max, 2),
				strconv.FormatInt(row.Failed, 10), strconv.FormatInt(row.Unsent, 10))
		}
	}
	return t
}

func (r *Results) ratios() table {
	t := table{title: "Beside the baselines: how many times as much as each, in this run with as many connections",
		head: append([]string{"what", "subjects", "connections"}, baselines...)}
	for _, row := range r.Rows {
		if row.Baseline != "" || row.Offered > 0 {
			continue
		}
		cells, some := []string{row.What, count(int64(row.Subjects)), strconv.Itoa(row.Connections)}, false
		for _, b := range baselines {
			ratio, ok := r.against(row, b)
			if !ok {
				cells = append(cells, "-")
				continue
			}
			some = true
			cells = append(cells, strconv.FormatFloat(ratio, 'g', 2, 64))
		}
		if some {
			t.add(cells...)
		}
	}
	return t
}

func (r *Results) sizes() table {
	t := table{title: "By number of subjects",
		head: []string{"subjects", "creates per second", "MB pdvault", "MB pdkeys", "bytes on disk per subject, pdvault", "pdkeys", "bytes on disk per read", "s until ready after a stop", "after kill -9"}}
	for _, s := range r.Sizes {
		t.add(count(int64(s.Subjects)), count(int64(s.FillRate)), fixed(s.VaultMB, 0), fixed(s.KeysMB, 0), fixed(s.VaultDisk, 0), fixed(s.KeysDisk, 0), fixed(s.ReadDisk, 0),
			fixed(s.CleanReady, 2), fixed(s.KillReady, 2))
	}
	return t
}

func (r *Results) notes() table {
	t := table{title: "Other", head: []string{"what", "note"}}
	for _, n := range r.Notes {
		t.add(n.What, n.Text)
	}
	return t
}

// Text writes r for a terminal.
func (r *Results) Text(w io.Writer) error {
	fmt.Fprintf(w, "%s; load average at the start %s\n", r.Machine, r.Load)
	if r.Caveat != "" {
		fmt.Fprintf(w, "%s\n", r.Caveat)
	}
	for _, t := range r.tables() {
		fmt.Fprintf(w, "\n%s\n\n", t.title)
		out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(out, strings.Join(t.head, "\t"))
		for _, line := range t.lines {
			fmt.Fprintln(out, strings.Join(line, "\t"))
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// markdown is t as a table of Markdown.
func (t table) markdown(w io.Writer) {
	fmt.Fprintf(w, "\n## %s\n\n|", t.title)
	for _, h := range t.head {
		fmt.Fprintf(w, " %s |", h)
	}
	fmt.Fprint(w, "\n|---|")
	for _, h := range t.head[1:] {
		if h == "note" {
			fmt.Fprint(w, "---|")
		} else {
			fmt.Fprint(w, "--:|")
		}
	}
	fmt.Fprintln(w)
	for _, line := range t.lines {
		fmt.Fprint(w, "|")
		for _, cell := range line {
			fmt.Fprintf(w, " %s |", strings.NewReplacer("|", `\|`, "\n", " ").Replace(cell))
		}
		fmt.Fprintln(w)
	}
}

// count is n with its thousands apart, or nothing.
func count(n int64) string {
	if n == 0 {
		return "-"
	}
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func fixed(f float64, digits int) string {
	if f == 0 {
		return "-"
	}
	return strconv.FormatFloat(f, 'f', digits, 64)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
