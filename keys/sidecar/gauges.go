package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Gauges is the state of a sidecar at one moment, for metrics.
type Gauges struct {
	Now        time.Time
	KEKState   keyspb.Code
	TokenValid time.Duration      // of the token at the KEK; negative: there is none
	Jobs       []keyring.Job      // the newest first; nil: not known
	Inventory  *keyring.Inventory // nil: not known
	Budget     BudgetUse
}

// Gauges looks at the sidecar. What cannot be found out is left out, and so are its metrics.
func (s *Server) Gauges(ctx context.Context) *Gauges {
	ctx, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	g := &Gauges{Now: s.cfg.Now(), KEKState: s.kekState(ctx), TokenValid: -1, Budget: s.budget.use()}
	if s.cfg.TokenValid != nil {
		g.TokenValid = max(s.cfg.TokenValid(), 0)
	}
	if in, err := s.inventory(ctx, metricsAge); err == nil {
		g.Inventory = &in
	}
	if jobs, err := s.ring.Jobs(ctx); err == nil {
		g.Jobs = jobs
	}
	return g
}

func (g *Gauges) write(b *bytes.Buffer) {
	gauge(b, "pdkeys_kek_state", "1 for the state that the KEK is in: ok, or why it cannot be used.")
	for _, state := range kekStates {
		fmt.Fprintf(b, "pdkeys_kek_state{state=%q} %d\n", stateName(state), truth(state == kekState(g.KEKState)))
	}
	if g.TokenValid >= 0 {
		gauge(b, "pdkeys_token_valid_seconds", "How long the token at HashiCorp Vault is valid yet.")
		fmt.Fprintf(b, "pdkeys_token_valid_seconds %.0f\n", g.TokenValid.Seconds())
	}
	g.writeJobs(b)
	g.writeInventory(b)
	gauge(b, "pdkeys_budget_use_ratio", "Part of the budget of distinct subjects per hour that is used up.")
	fmt.Fprintf(b, "pdkeys_budget_use_ratio{limit=%q} %.4f\n", limitSubjects, g.Budget.Subjects)
	fmt.Fprintf(b, "pdkeys_budget_use_ratio{limit=%q} %.4f\n", limitSubjectsTotal, g.Budget.SubjectsTotal)
	gauge(b, "pdkeys_budget_callers", "Callers that have an account in the budget.")
	fmt.Fprintf(b, "pdkeys_budget_callers %d\n", g.Budget.Callers)
}

// kekStates are the states that a KEK is said to be in.
var kekStates = []keyspb.Code{
	keyspb.Code_OK, keyspb.Code_UNAVAILABLE, keyspb.Code_DAMAGED, keyspb.Code_SEALED, keyspb.Code_FORBIDDEN, keyspb.Code_KEK_MISSING, keyspb.Code_KEK_RETIRED,
}

func kekState(code keyspb.Code) keyspb.Code {
	if slices.Contains(kekStates, code) {
		return code
	}
	return keyspb.Code_UNAVAILABLE
}

func stateName(code keyspb.Code) string {
	if code == keyspb.Code_OK {
		return "ok"
	}
	return whyOfCode(code)
}

// writeJobs tells of the job that runs, if any, and when each scope was last brought to its end.
func (g *Gauges) writeJobs(b *bytes.Buffer) {
	if g.Jobs == nil {
		return
	}
	running := make(map[string]keyring.Job)
	ended := make(map[string]time.Time)
	failed := make(map[string]bool)
	for _, j := range slices.Backward(g.Jobs) { // the newest is seen last
		switch j.State {
		case keyring.JobRunning:
			running[j.Scope] = j
		case keyring.JobDone:
			ended[j.Scope], failed[j.Scope] = j.Finished, false
		default:
			failed[j.Scope] = true
		}
	}
	gauge(b, "pdkeys_job_running", "Whether a rotation of the scope is under way.")
	for _, scope := range keyring.Scopes {
		_, ok := running[scope]
		fmt.Fprintf(b, "pdkeys_job_running{scope=%q} %d\n", scope, truth(ok))
	}
	gauge(b, "pdkeys_job_failed", "Whether the last rotation of the scope failed.")
	for _, scope := range keyring.Scopes {
		fmt.Fprintf(b, "pdkeys_job_failed{scope=%q} %d\n", scope, truth(failed[scope]))
	}
	for _, m := range []struct {
		name, help string
		value      func(keyring.Job) int64
	}{
		{"pdkeys_job_done", "Things that the rotation under way has been through.", func(j keyring.Job) int64 { return j.Done }},
		{"pdkeys_job_total", "Things that the rotation under way has to go through; 0: not known yet.", func(j keyring.Job) int64 { return j.Total }},
		{"pdkeys_job_updated_seconds", "When the rotation under way moved last, Unix time.", func(j keyring.Job) int64 { return j.Updated.Unix() }},
	} {
		gauge(b, m.name, m.help)
		for _, scope := range keyring.Scopes {
			if j, ok := running[scope]; ok {
				fmt.Fprintf(b, "%s{scope=%q} %d\n", m.name, scope, m.value(j))
			}
		}
	}
	gauge(b, "pdkeys_job_finished_seconds", "When a rotation of the scope was last done, Unix time.")
	for _, scope := range keyring.Scopes {
		if at, ok := ended[scope]; ok {
			fmt.Fprintf(b, "pdkeys_job_finished_seconds{scope=%q} %d\n", scope, at.Unix())
		}
	}
}

func (g *Gauges) writeInventory(b *bytes.Buffer) {
	in := g.Inventory
	if in == nil {
		return
	}
	if !in.NextEpoch.IsZero() {
		gauge(b, "pdkeys_epoch_due_seconds", "Time until the next epoch is due; negative when it is overdue.")
		fmt.Fprintf(b, "pdkeys_epoch_due_seconds %.0f\n", in.NextEpoch.Sub(g.Now).Seconds())
	}
	gauge(b, "pdkeys_key_version", "Things on each version of each kind of key.")
	for _, v := range in.Versions {
		fmt.Fprintf(b, "pdkeys_key_version{kind=%q,version=\"%d\"} %d\n", v.Kind, v.Version, v.Count)
	}
	gauge(b, "pdkeys_key_age_seconds", "Age of the newest version of each kind of key.")
	for _, v := range in.Versions {
		if v.Newest && !v.Made.IsZero() {
			fmt.Fprintf(b, "pdkeys_key_age_seconds{kind=%q} %.0f\n", v.Kind, g.Now.Sub(v.Made).Seconds())
		}
	}
	gauge(b, "pdkeys_subjects", "Subjects that have a key.")
	fmt.Fprintf(b, "pdkeys_subjects %d\n", in.Subjects)
	gauge(b, "pdkeys_destroyed", "Subjects whose key was destroyed.")
	fmt.Fprintf(b, "pdkeys_destroyed %d\n", in.Destroyed)
}

func gauge(b *bytes.Buffer, name, help string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name)
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// maxLabelled is how many callers have a label of their own in the metrics of refusals.
const maxLabelled = 64

// budgetRefusals counts refused opens by caller and limit.
type budgetRefusals struct {
	counts  map[[2]string]int64
	callers map[string]bool
}

func (r *budgetRefusals) add(caller, limit string) {
	if r.counts == nil {
		r.counts, r.callers = make(map[[2]string]int64), make(map[string]bool)
	}
	if !r.callers[caller] && len(r.callers) >= maxLabelled {
		caller = callerOther
	}
	r.callers[caller] = true
	r.counts[[2]string{caller, limit}]++
}

func (r *budgetRefusals) write(b *bytes.Buffer) {
	const name = "pdkeys_budget_refused_total"
	fmt.Fprintf(b, "# HELP %s Opens that a budget did not allow, by caller and limit.\n# TYPE %s counter\n", name, name)
	ordered := slices.SortedFunc(maps.Keys(r.counts), func(x, y [2]string) int { return slices.Compare(x[:], y[:]) })
	for _, k := range ordered {
		fmt.Fprintf(b, "%s{caller=%q,limit=%q} %d\n", name, k[0], k[1], r.counts[k])
	}
}
