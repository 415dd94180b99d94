package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// writeJSON prints v as indented JSON.
func writeJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// checkpointJSON is a checkpoint in the machine-readable output.
type checkpointJSON struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`
}

func newCheckpointJSON(cp verify.Checkpoint) checkpointJSON {
	return checkpointJSON{cp.Origin, cp.Size, cp.Root.String()}
}

func printCheckpoint(w io.Writer, cp verify.Checkpoint, cosigs []verify.Cosignature) {
	fmt.Fprintf(w, "ledger      %s\nsize        %d\nroot        %s\n", cp.Origin, cp.Size, cp.Root)
	for _, c := range cosigs {
		fmt.Fprintf(w, "witnessed   %s at %s\n", c.Name, c.Time.Format(time.RFC3339))
	}
}

// entryLine says in one line what an entry is about.
func entryLine(index int64, e verify.Entry) string {
	parts := []string{fmt.Sprintf("%d", index), e.Time, e.Kind}
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+quoteIfOdd(value))
		}
	}
	add("decision", e.Decision)
	add("reason", e.Reason)
	if e.Caller != nil {
		add("caller", e.Caller.ID)
	}
	if e.Recipient != nil {
		add("recipient", e.Recipient.ID)
	}
	add("collection", e.Collection)
	add("fields", strings.Join(e.Fields, ","))
	add("mode", e.Mode)
	add("purpose", e.Purpose)
	add("ground", e.Ground)
	if e.Evidence != nil {
		add("evidence", fmt.Sprintf("%s:%s@%d", e.Evidence.Type, e.Evidence.ID, e.Evidence.Entry))
	}
	if e.Of != nil {
		add("of", fmt.Sprint(*e.Of))
	}
	for _, r := range e.Records {
		add("record", fmt.Sprintf("%s@%d", r.Collection, r.Version))
	}
	if e.Consent != nil {
		add("consent", e.Consent.ID)
	}
	if e.Bundle != nil {
		add("policy", fmt.Sprint(e.Bundle.Version))
	}
	if e.Erasure != nil {
		add("erasure", e.Erasure.ID)
	}
	if k := e.Keys; k != nil {
		add("scope", k.Scope)
		add("phase", k.Phase)
		add("version", fmt.Sprint(k.Version))
		add("left", fmt.Sprintf("%d/%d", k.Left, k.Total))
	}
	if len(e.Resealed) > 0 {
		add("resealed", fmt.Sprint(len(e.Resealed)))
	}
	if e.Restored != nil {
		add("backup", e.Restored.Backup)
		add("lost", fmt.Sprintf("%d-%d", e.Restored.Size, e.Restored.Lost))
	}
	return strings.Join(parts, " ")
}

// quoteIfOdd keeps what an entry says from looking like something that this program says: an entry comes
// from whom the auditor does not trust.
func quoteIfOdd(s string) string {
	if q := fmt.Sprintf("%q", s); q[1:len(q)-1] != s || strings.ContainsAny(s, " =") {
		return q
	}
	return s
}

// extends reports whether the log was found to extend the earlier checkpoint.
func extends(r *verify.Report) bool {
	return !slices.ContainsFunc(r.Problems, func(p verify.Problem) bool {
		return p.Code == verify.CodeEarlier || p.Code == verify.CodeRestored
	})
}

func printReport(w io.Writer, r *verify.Report) {
	printCheckpoint(w, r.Checkpoint, r.Cosignatures)
	if r.Earlier != nil && extends(r) {
		fmt.Fprintf(w, "extends     the earlier checkpoint of size %d\n", r.Earlier.Size)
	}
	fmt.Fprintf(w, "entries     %d", r.Entries)
	if r.Entries > 0 {
		fmt.Fprintf(w, ", %s to %s", r.First, r.Last)
	}
	fmt.Fprintln(w)
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		fmt.Fprintf(w, "  %-20s %d\n", quoteIfOdd(kind), r.Kinds[kind])
	}
	a := r.Access
	fmt.Fprintf(w, "reads       %d allowed, %d denied, %d failed after they were recorded\n", a.Allowed, a.Denied, a.Failed)
	for _, ground := range slices.Sorted(maps.Keys(a.Grounds)) {
		g := a.Grounds[ground]
		if ground = quoteIfOdd(ground); ground == "" {
			ground = "no ground"
		}
		fmt.Fprintf(w, "  %-20s %d allowed: %d rechecked in full, %d in part, %d do not hold; %d denied\n",
			ground, g.Allowed, g.Rechecked, g.Partly, g.Refuted, g.Denied)
	}
	printReasons(w, "denied", a.Denials)
	printReasons(w, "failed", a.Failures)
	fmt.Fprintf(w, "grounds     %d rechecked in full, %d but for the policy's own rules, %d do not hold\n", a.Rechecked, a.Partly, a.Refuted)
	if x := r.Erasures; x != (verify.ErasureCounts{}) {
		fmt.Fprintf(w, "erasures    %d subjects erased, %d keys destroyed, %d pending\n", x.Erased, x.Destroyed, x.Pending)
	}
	if k := r.Keys; k != (verify.KeyCounts{}) {
		fmt.Fprintf(w, "rotations   %d epochs, %d others, %d with evidence that was verified; %d subjects sealed or indexed again\n",
			k.Epochs, k.Rotations, k.Proven, k.Resealed)
	}
	for _, x := range r.Restores {
		fmt.Fprintf(w, "restored    by entry %d from backup %s: %d entries that the log held from %d on are lost\n",
			x.Index, quoteIfOdd(x.Backup), x.Lost-x.Size, x.Size)
	}
	fmt.Fprintf(w, "policies    %d bundles have the published hash", r.Policies)
	if len(r.Absent) > 0 {
		fmt.Fprintf(w, "; not in the export: version %s", strings.Trim(strings.Join(strings.Fields(fmt.Sprint(r.Absent)), ", "), "[]"))
	}
	fmt.Fprintln(w)
}

// printReasons says how often each reason was recorded.
func printReasons(w io.Writer, what string, reasons map[string]int64) {
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		fmt.Fprintf(w, "  %-20s %d %s\n", what, reasons[reason], quoteIfOdd(reason))
	}
}

// reservation says what an outcome that is good leaves open.
func reservation(r *verify.Report) string {
	var open []string
	if r.Access.Partly > 0 {
		open = append(open, fmt.Sprintf("the policy's own rules in %d reads: their bundles are not in the export", r.Access.Partly))
	}
	if n := r.Keys.Epochs + r.Keys.Rotations - r.Keys.Proven; n > 0 {
		open = append(open, fmt.Sprintf("the evidence of %d rotations: the witness keys that made it were not given", n))
	}
	if len(open) == 0 {
		return ""
	}
	return ", but for " + strings.Join(open, "; and for ")
}

func printProblems(w io.Writer, r *verify.Report) {
	for _, p := range r.Problems {
		where := "ledger"
		if p.Index >= 0 {
			where = fmt.Sprintf("entry %d", p.Index)
		}
		fmt.Fprintf(w, "PROBLEM     %s: %s: %s\n", where, p.Code, p.Detail)
	}
	if more := r.Found - int64(len(r.Problems)); more > 0 {
		fmt.Fprintf(w, "PROBLEM     and %d more\n", more)
	}
}

// indented returns an entry's JSON with line breaks, for people.
func indented(entry []byte) string {
	var b bytes.Buffer
	if err := json.Indent(&b, entry, "", "  "); err != nil {
		return string(entry)
	}
	return b.String()
}
