package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/report"
	"github.com/prototypster/pdvault/test/bench/traffic"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

const (
	// fillTimeout bounds the creation of a population.
	fillTimeout = 30 * time.Minute
	// noBudget keeps the sidecar's budget for one caller, who is everybody here, out of the way.
	noBudget = "budget: {opens_per_second: 1000000, subjects_per_hour: 10000000}\n"
	// mostLookups is what a policy may allow in a minute.
	mostLookups = 1_000_000
)

// instance is a running stack with its subjects.
type instance struct {
	*stack.Stack
	b        *bench
	people   *traffic.Target
	subjects int // that it was filled with; creates that are measured come on top
}

// start starts a stack with wide budgets; an empty kek is the embedded default.
func (b *bench) start(ctx context.Context, dir, kek string) (*instance, error) {
	s, err := stack.New(ctx, stack.Options{Bin: b.bin, Dir: dir, KEK: kek, KeysExtra: noBudget})
	if err != nil {
		return nil, err
	}
	in := &instance{Stack: s, b: b, people: &traffic.Target{Address: strings.TrimPrefix(s.URL, "http://"), Token: s.Token("shop")}}
	if err := in.allowLookups(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("allowing lookups: %w", err), s.Close())
	}
	return in, nil
}

// allowLookups publishes the policy with a wide budget for lookups.
func (in *instance) allowLookups(ctx context.Context) error {
	a, err := in.Do(ctx, "auditor", "GET", "/v1/policy", nil)
	if err != nil {
		return err
	}
	var bundle map[string]any
	if err := json.Unmarshal(a.Body, &bundle); err != nil {
		return err
	}
	limits, ok := bundle["limits"].(map[string]any)
	if !ok {
		return fmt.Errorf("the policy has no limits: %d", a.Status)
	}
	limits["lookups_per_minute"] = mostLookups
	body, err := json.Marshal(bundle)
	if err != nil {
		return err
	}
	if a, err = in.Do(ctx, "privacy", "POST", "/v1/policy", body); err != nil {
		return err
	}
	if a.Status != 201 {
		return fmt.Errorf("publishing: %d %s", a.Status, a.Body)
	}
	return nil
}

// names of kinds in tables.
var names = map[string]string{
	traffic.Warm: "warm read", traffic.Cold: "read of everybody in turn", traffic.Write: "create", traffic.Batch: fmt.Sprintf("batch of %d reads", traffic.BatchSize),
	traffic.Lookup: "lookup", traffic.Verify: "verification", traffic.Mixed: "90 % reads, 10 % creates",
	traffic.Service: "two fields, ground service", traffic.Consent: "two fields, ground consent",
}

// classes are those of kinds that have a like among the baselines.
var classes = map[string]report.Class{traffic.Warm: report.Read, traffic.Cold: report.Read, traffic.Batch: report.Read, traffic.Write: report.Write}

// measure runs a kind and keeps the row. Its name in tables is names[kind] with suffix; a rate of 0 is a closed run.
func (in *instance) measure(kind, suffix string, conns int, rate float64) (report.Row, error) {
	row := report.Row{What: names[kind] + suffix, Class: classes[kind], Connections: conns, Subjects: in.subjects}
	if row.Class == "" {
		row.Class = report.Other
	}
	c, err := in.people.Load(kind)
	if err != nil {
		return row, err
	}
	c.Connections, c.Duration, c.Rate = conns, in.b.duration, rate
	return in.measureLoad(row, c, traffic.Records(kind)), nil
}

// measureLoad runs c, whose requests are about so many records each, and keeps the row.
func (in *instance) measureLoad(row report.Row, c load.Config, records int) report.Row {
	vault, keys, before := in.Vault.CPU(), in.Keys.CPU(), in.stages()
	r, err := load.Run(c)
	if err != nil {
		in.b.note("failed", "%s, %d connections: %s", row.What, c.Connections, first(err))
	}
	row.Offered = c.Rate
	row = row.Measured(r, records)
	if n := float64(r.Requests * int64(records)); n > 0 {
		row.VaultCPU = float64((in.Vault.CPU() - vault).Microseconds()) / n
		row.KeysCPU = float64((in.Keys.CPU() - keys).Microseconds()) / n
	}
	spent := in.stages().minus(before)
	row.Commits, row.Calls = spent.commit(), spent.call()
	in.b.add(row)
	return row
}

// first is the first line of an error that many connections have had.
func first(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// fill creates subjects until there are n.
func (in *instance) fill(n int) error {
	in.subjects = n
	fmt.Fprintf(os.Stderr, "creating %d subjects\n", n)
	return in.people.Fill(n, fillTimeout)
}

// once reads everybody once, or the first of them.
func (in *instance) once(people int) (load.Result, error) {
	c, err := in.people.Load(traffic.Cold)
	if err != nil {
		return load.Result{}, err
	}
	c.Connections, c.Duration, c.Count = 32, 5*time.Minute, int64(people)
	return load.Run(c)
}

// stop stops both programs in an orderly way.
func (in *instance) stop() error {
	if err := in.Vault.Stop(); err != nil {
		return err
	}
	return in.Keys.Stop()
}

// startAgain starts both programs and returns how long it took until ready.
func (in *instance) startAgain(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	if err := in.StartKeys(ctx); err != nil {
		return 0, err
	}
	if err := in.StartVault(ctx); err != nil {
		return 0, err
	}
	err := in.ready(ctx)
	return time.Since(begin), err
}

// restartKeys empties the sidecar's cache.
func (in *instance) restartKeys(ctx context.Context) error {
	if err := in.Keys.Stop(); err != nil {
		return err
	}
	if err := in.StartKeys(ctx); err != nil {
		return err
	}
	return in.ready(ctx)
}

func (in *instance) ready(ctx context.Context) error {
	for range 1500 {
		a, err := in.Do(ctx, "", "GET", "/readyz", nil)
		if err == nil && a.Status == 200 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("not ready: %s", in.Vault.Log())
}

// memory notes what the programs use.
func (in *instance) memory(of string) {
	vault, vaultPeak := in.Vault.Memory()
	keys, keysPeak := in.Keys.Memory()
	in.b.note("memory", "%s, %d subjects: pdvault %d MB (peak with mapped files %d), pdkeys %d MB (%d)",
		of, len(in.people.People()), vault>>20, vaultPeak>>20, keys>>20, keysPeak>>20)
}
