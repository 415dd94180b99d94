package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// stages is where the time of requests went, as pdvault's own metrics tell.
type stages struct {
	commits, committed, commitTime float64 // transactions of the ledger, entries in them, seconds
	calls, items, callTime         float64 // calls to the sidecar, items in them, seconds
}

func (s stages) minus(t stages) stages {
	return stages{s.commits - t.commits, s.committed - t.committed, s.commitTime - t.commitTime,
		s.calls - t.calls, s.items - t.items, s.callTime - t.callTime}
}

// commit and call tell how many were done together, and how long that took.
func (s stages) commit() string { return together(s.committed, s.commits, s.commitTime) }
func (s stages) call() string   { return together(s.items, s.calls, s.callTime) }

func together(items, times, seconds float64) string {
	if times == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f in %.2f ms", items/times, 1000*seconds/times)
}

// stages reads pdvault's metrics.
func (in *instance) stages() stages {
	var s stages
	a, err := in.Do(context.Background(), "security", "GET", "/metrics", nil)
	if err != nil {
		return s
	}
	for line := range strings.Lines(string(a.Body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch kind := strings.Contains(name, `"witness"`); {
		case name == "pdvault_ledger_commit_seconds_count":
			s.commits += v
		case name == "pdvault_ledger_commit_seconds_sum":
			s.commitTime += v
		case name == `pdvault_ledger_entries_total{outcome="committed"}`:
			s.committed += v
		case strings.HasPrefix(name, "pdvault_sidecar_items_total{") && !kind:
			s.items += v
		case strings.HasPrefix(name, "pdvault_sidecar_call_seconds_count{") && !kind:
			s.calls += v
		case strings.HasPrefix(name, "pdvault_sidecar_call_seconds_sum{") && !kind:
			s.callTime += v
		}
	}
	return s
}
