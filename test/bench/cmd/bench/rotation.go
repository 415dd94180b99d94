package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/traffic"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// rotationTimeout bounds one rotation.
const rotationTimeout = 15 * time.Minute

// rotations measures how fast keys are rotated through the real HashiCorp Vault, alone and beside reads, what that
// costs the reads, and how long it takes until everybody's key was unwrapped again after a restart.
func (b *bench) rotations(ctx context.Context) error {
	if _, err := hcserver.Binary(); err != nil {
		b.note("rotations", "skipped: %v", err)
		return nil
	}
	in, hc, end, err := b.startHashiCorp(ctx, "r")
	if err != nil {
		return err
	}
	defer end()
	if err := in.fill(b.rotated); err != nil {
		return err
	}
	for _, scope := range strings.Split(b.scopes, ",") {
		if err := in.rotate(ctx, hc, scope); err != nil {
			return err
		}
	}
	for _, scope := range strings.Split(b.scopes, ",") {
		if err := in.rotateBesideReads(ctx, scope); err != nil {
			return err
		}
	}
	if err := in.recover(ctx); err != nil {
		return err
	}
	in.memory("after rotations")
	return nil
}

// job is what is looked at in a rotation.
type job struct {
	ID, State, Failure string
	Total              int64
	Started, Finished  time.Time
}

func (in *instance) startRotation(ctx context.Context, scope string) (j job, err error) {
	a, err := in.Do(ctx, "security", "POST", "/v1/keys/rotations", fmt.Appendf(nil, `{"scope":%q}`, scope))
	if err != nil {
		return j, err
	}
	if a.Status != http.StatusAccepted {
		return j, fmt.Errorf("starting a rotation of %s: %d %s", scope, a.Status, a.Body)
	}
	return j, json.Unmarshal(a.Body, &j)
}

// finish waits until the rotation is done.
func (in *instance) finish(ctx context.Context, id string) (job, error) {
	deadline := time.Now().Add(rotationTimeout)
	for time.Now().Before(deadline) {
		a, err := in.Do(ctx, "security", "GET", "/v1/keys/rotations/"+id, nil)
		if err != nil {
			return job{}, err
		}
		var j job
		if err := json.Unmarshal(a.Body, &j); err != nil {
			return job{}, err
		}
		switch j.State {
		case "done":
			return j, nil
		case "failed":
			return job{}, fmt.Errorf("the rotation failed: %s", j.Failure)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return job{}, fmt.Errorf("the rotation is not done after %v", rotationTimeout)
}

// units are what a rotation moves.
var units = map[string]string{"kek": "bundles", "all-subjects": "subjects resealed", "index": "subjects indexed again"}

// used is what the programs have used of the processor, and the most memory of their own that they were seen with.
type used struct {
	vault, keys, hc    time.Duration
	vaultPeak, keyPeak int64
}

// watch gathers what is used until end is called.
func (in *instance) watch(hc *hcserver.Server) (end func() used) {
	u := used{vault: in.Vault.CPU(), keys: in.Keys.CPU(), hc: stack.CPU(hc.PID())}
	memory := in.WatchMemory()
	return func() used {
		u.vaultPeak, u.keyPeak = memory()
		u.vault, u.keys, u.hc = in.Vault.CPU()-u.vault, in.Keys.CPU()-u.keys, stack.CPU(hc.PID())-u.hc
		return u
	}
}

// each is u for one of n, and the memory.
func (u used) each(n int64) string {
	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(max(n, 1)) }
	return fmt.Sprintf("µs of CPU for each: pdvault %.0f, pdkeys %.0f, HashiCorp Vault %.0f; own memory at most: pdvault %d MB, pdkeys %d MB",
		per(u.vault), per(u.keys), per(u.hc), u.vaultPeak>>20, u.keyPeak>>20)
}

// rotate measures a rotation of an idle instance.
func (in *instance) rotate(ctx context.Context, hc *hcserver.Server, scope string) error {
	end := in.watch(hc)
	j, err := in.startRotation(ctx, scope)
	if err == nil {
		j, err = in.finish(ctx, j.ID)
	}
	u := end()
	if err != nil {
		return err
	}
	took := j.Finished.Sub(j.Started)
	in.b.note("rotation of "+scope, "%d %s in %.1f s: %.0f/s; %s", j.Total, units[scope], took.Seconds(), float64(j.Total)/took.Seconds(), u.each(j.Total))
	return nil
}

// rotateBesideReads measures reads of a part of the people, whose keys fit the sidecar's cache, beside a rotation for as
// long as it takes, and without one before and after it, some rounds of it: a machine that others use is not equally
// fast all the time, so each rotation is compared with what was next to it.
func (in *instance) rotateBesideReads(ctx context.Context, scope string) error {
	read, err := in.people.Load(traffic.Warm)
	if err != nil {
		return err
	}
	read.Connections, read.Duration = 32, in.b.duration
	if _, err := load.Run(read); err != nil { // into the cache
		return err
	}
	before, err := load.Run(read)
	if err != nil {
		return err
	}
	var left []float64 // of the throughput, in each round
	for range in.b.rounds {
		during, j, err := in.readUntilRotated(ctx, scope, read)
		if err != nil {
			return err
		}
		after, err := load.Run(read)
		if err != nil {
			return err
		}
		left = append(left, 100*2*during.Rate()/(before.Rate()+after.Rate()))
		took := j.Finished.Sub(j.Started)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		in.b.note("reads beside rotation of "+scope, "%.0f and %.0f/s without, %.0f/s with (%.0f %%), p50 %.1f and %.1f ms, p99 %.1f and %.1f ms, %d failed; rotation took %.1f s: %.0f %s/s",
			before.Rate(), after.Rate(), during.Rate(), left[len(left)-1], ms(before.P50), ms(during.P50), ms(before.P99), ms(during.P99),
			during.Failed, took.Seconds(), float64(j.Total)/took.Seconds(), units[scope])
		before = after
	}
	if slices.Sort(left); len(left) > 1 {
		in.b.note("reads beside rotation of "+scope, "median of %d rounds: %.0f %% of the throughput is left", len(left), left[len(left)/2])
	}
	return nil
}

// readUntilRotated reads from the begin of a rotation to its end.
func (in *instance) readUntilRotated(ctx context.Context, scope string, read load.Config) (load.Result, job, error) {
	j, err := in.startRotation(ctx, scope)
	if err != nil {
		return load.Result{}, j, err
	}
	stop := make(chan struct{})
	finished := make(chan error, 1)
	go func() {
		defer close(stop)
		var err error
		j, err = in.finish(ctx, j.ID)
		finished <- err
	}()
	read.Duration, read.Stop = rotationTimeout, stop
	during, err := load.Run(read)
	return during, j, errors.Join(err, <-finished)
}

// recover measures how long it takes after a restart of the sidecar until everybody was read once.
func (in *instance) recover(ctx context.Context) error {
	if err := in.Keys.Stop(); err != nil {
		return err
	}
	people := in.people.People()
	begin := time.Now()
	if err := in.StartKeys(ctx); err != nil {
		return err
	}
	if err := in.ready(ctx); err != nil {
		return err
	}
	ready := time.Since(begin)
	r, err := load.Run(load.Config{
		Address: in.people.Address, Connections: 256, Duration: 5 * time.Minute, Count: int64(len(people)),
		Request: func(n int64, buf []byte) []byte { return in.people.Read(buf, people[n].ID, "purpose=account") },
	})
	if err != nil {
		return err
	}
	in.b.note("recovery with an empty cache", "ready after %.1f s, every one of %d subjects read once after %.1f s: %.0f cold reads/s, p99 %.1f ms, %d failed",
		ready.Seconds(), len(people), time.Since(begin).Seconds(), r.Rate(), float64(r.P99.Microseconds())/1000, r.Failed)
	return nil
}
