package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/keyring"
)

// lister gives one list after the other, and the last one from then on.
type lister struct {
	lists [][]client.Job
	errs  []error
	n     int
}

func (l *lister) Jobs(context.Context) ([]client.Job, error) {
	i := min(l.n, len(l.lists)-1)
	l.n++
	if i < len(l.errs) && l.errs[i] != nil {
		return nil, l.errs[i]
	}
	return l.lists[i], nil
}

func TestFollowingShowsProgressUntilTheEnd(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	job := func(state, phase string, done int64) client.Job {
		return client.Job{ID: "1", Scope: keyring.ScopeIndex, State: state, Phase: phase, Done: done, Total: 100, Target: 2, Started: at, Finished: at.Add(time.Minute)}
	}
	before := client.Job{ID: "0", Scope: keyring.ScopeKEK, State: keyring.JobDone}
	running := func(phase string, done int64) []client.Job {
		return []client.Job{job(keyring.JobRunning, phase, done), before}
	}
	var out bytes.Buffer
	l := &lister{
		lists: [][]client.Job{running("backfill", 10), nil, running("backfill", 60), running("switch", 0), {job(keyring.JobDone, "", 100), before}},
		errs:  []error{nil, keys.ErrUnavailable}, // a restart of the sidecar
	}
	if err := followJob(t.Context(), l, &out, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	want := "index: running, backfill, 10 of 100, 10 %\nindex: running, switch, 0 of 100, 0 %\nindex: done, 100 on version 2, in 1m0s\n"
	if out.String() != want {
		t.Errorf("shown:\n%s\nwant:\n%s", out.String(), want)
	}

	failed := job(keyring.JobFailed, "", 10)
	failed.Failure = "forbidden"
	if err := followJob(t.Context(), &lister{lists: [][]client.Job{running("", 1), {failed}}}, &out, time.Millisecond); !errors.Is(err, errRotation) || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("a failed rotation: %v", err)
	}
	if err := followJob(t.Context(), &lister{lists: [][]client.Job{{before}}}, &out, time.Millisecond); err != nil {
		t.Errorf("no rotation: %v", err)
	}
	if err := followJob(t.Context(), &lister{lists: [][]client.Job{running("", 1), {before}}}, &out, time.Millisecond); err == nil {
		t.Error("a rotation that vanished")
	}
	if err := followJob(t.Context(), &lister{lists: [][]client.Job{nil}, errs: []error{keys.ErrUnavailable}}, &out, time.Millisecond); err == nil {
		t.Error("no sidecar")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := followJob(ctx, &lister{lists: [][]client.Job{running("", 1)}}, &out, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended by its context: %v", err)
	}
}

func TestTheRemainingTimeIsReckonedByThePace(t *testing.T) {
	now := time.Now()
	d := &display{begun: now.Add(-10 * time.Second), from: 100}
	j := client.Job{State: keyring.JobRunning, Done: 200, Total: 600}
	if got := d.left(j, now); got != 40*time.Second {
		t.Errorf("%v left, want 40 s", got)
	}
	for _, j := range []client.Job{{State: keyring.JobRunning, Done: 100, Total: 600}, {State: keyring.JobRunning, Done: 200}, {State: keyring.JobDone, Done: 200, Total: 600}} {
		if got := d.left(j, now); got != 0 {
			t.Errorf("%+v: %v left, want not known", j, got)
		}
	}
}

func TestWhatCanBeRotated(t *testing.T) {
	id := uuid.New()
	for _, tt := range []struct {
		scope, subject, want string
	}{
		{"subject", id.String(), ""},
		{"all-subjects", "", ""},
		{"witness", "", ""},
		{"kek", "", "pdkeys epoch"},
		{"everything", "", "want one of"},
		{"subject", "", "--subject"},
		{"subject", uuid.Nil.String(), "--subject"},
		{"index", id.String(), "--subject"},
	} {
		got, err := rotation(tt.scope, tt.subject)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || err == nil && tt.subject != "" && got != id {
			t.Errorf("rotate %s %s: %v, %v", tt.scope, tt.subject, got, err)
		}
	}
	_, config := instance(t, "")
	for _, args := range [][]string{
		{"rotate", "--config", config}, {"rotate", "kek", "--config", config}, {"rotate", "subject", "--config", config},
		{"rotate", "index", "token", "--config", config}, {"epoch"}, {"jobs", "x", "--config", config},
	} {
		var out bytes.Buffer
		if rc := run(t.Context(), args, &out, &out); rc != exitUsage {
			t.Errorf("%q: %d, %s", args, rc, out.String())
		}
	}
	if rc := exitCode(asking(fmt.Errorf("x: %w", keys.ErrJobRunning))); rc != exitBusy {
		t.Errorf("exit code while another rotation is under way: %d", rc)
	}
	if err := asking(keys.ErrTooManyKeys); exitCode(err) != exitFailed || !errors.Is(err, keys.ErrTooManyKeys) || strings.Contains(err.Error(), "running") {
		t.Errorf("too many keys: %v", err)
	}
	if rc := exitCode(asking(keys.ErrUnavailable)); rc != exitFailed {
		t.Errorf("exit code without a sidecar: %d", rc)
	}
}

// TestKeyCommandsReachTheSidecar that runs, over a socket for its own user.
func TestKeyCommandsReachTheSidecar(t *testing.T) {
	dir, config := instance(t, "")
	if rc, out := code(t, "init", "--config", config); rc != exitOK {
		t.Fatalf("init: %d, %s", rc, out)
	}
	if rc, out := code(t, "jobs", "--config", config); rc != exitFailed || !strings.Contains(out, "is it running") {
		t.Errorf("jobs without a sidecar: %d, %s", rc, out)
	}
	cmd, out, _ := start(t, dir, config)
	info, err := os.Lstat(filepath.Join(dir, "s.admin"))
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("admin socket: %v, %v", info, err)
	}
	rc, table := code(t, "status", "--config", config)
	for _, want := range []string{"witness key", "rotation under way", "key store generation"} {
		if rc != exitOK || !strings.Contains(table, want) {
			t.Errorf("status: %d, no %q in\n%s", rc, want, table)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve ended with %v\n%s", err, out)
	}
	if _, err := os.Lstat(filepath.Join(dir, "s.admin")); err == nil {
		t.Error("the admin socket was left behind")
	}
}

func TestStatusSaysWhatIsOverdue(t *testing.T) {
	now := time.Now()
	in := client.Inventory{NextEpoch: now.Add(-2 * time.Hour), EpochInterval: 24 * time.Hour, Versions: []client.KeyVersion{
		{Kind: "kek", Version: 2, Newest: true, Made: now.Add(-26 * time.Hour)}, {Kind: "kek", Version: 1, Made: now.Add(-99 * time.Hour)},
	}}
	if got := nextEpoch(in, now); !strings.Contains(got, "OVERDUE by 2h") {
		t.Errorf("next epoch %s", got)
	}
	if got := kekAge(in, now); got != "26h, OLDER than the 24h of the plan" {
		t.Errorf("age %s", got)
	}
	in.NextEpoch, in.EpochInterval = now.Add(72*time.Hour+time.Second), 7*24*time.Hour
	if got := nextEpoch(in, now); !strings.HasSuffix(got, ", in 3d") {
		t.Errorf("next epoch %s", got)
	}
	if got := kekAge(in, now); got != "26h of 7d" {
		t.Errorf("age %s", got)
	}
	if got := nextEpoch(client.Inventory{}, now); got != "none is planned" {
		t.Errorf("next epoch %s", got)
	}
	if got := kekAge(client.Inventory{}, now); got != "not known" {
		t.Errorf("age %s", got)
	}
}

func TestEpochsInTheConfiguration(t *testing.T) {
	const local = "instance: main\nsocket: {path: s}\nstore: {dir: d}\nkek: {type: local, local: {path: r}}\n"
	const hc = "instance: main\nsocket: {path: s}\nstore: {dir: d}\nkek: {type: hcvault, hcvault: {address: 'https://h', key: k, approle: {role_id_file: a, secret_id_file: b}EPOCH}}\n"
	with := strings.Replace(hc, "EPOCH", ", epoch: {role_id_file: c, secret_id_file: d, wrapped: true}", 1)
	without := strings.Replace(hc, "EPOCH", "", 1)
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name, text string
		interval   time.Duration
		want       string // part of the error
	}{
		{"absent", local, 7 * day, ""},
		{"days", local + "epoch: {interval: 3d}\n", 3 * day, ""},
		{"hours", local + "epoch: {interval: 168h}\n", 7 * day, ""},
		{"longest", local + "epoch: {interval: 30d}\n", 30 * day, ""},
		{"off", local + "epoch: {schedule: off}\n", 0, ""},
		{"too long", local + "epoch: {interval: 31d}\n", 0, "at most 30d"},
		{"too long in hours", local + "epoch: {interval: 721h}\n", 0, "at most 30d"},
		{"zero", local + "epoch: {interval: 0}\n", 0, "schedule: off"},
		{"zero days", local + "epoch: {interval: 0d}\n", 0, "at least 1s"},
		{"zero seconds", local + "epoch: {interval: 0s}\n", 0, "at least 1s"},
		{"negative", local + "epoch: {interval: -3d}\n", 0, "at least 1s"},
		{"a number", local + "epoch: {interval: 7}\n", 0, "such as"},
		{"words", local + "epoch: {interval: weekly}\n", 0, "such as"},
		{"parts of days", local + "epoch: {interval: 1.5d}\n", 0, "such as"},
		{"off and an interval", local + "epoch: {interval: 7d, schedule: off}\n", 0, "schedule is off"},
		{"another schedule", local + "epoch: {schedule: daily}\n", 0, "epoch.schedule"},
		{"hcvault with the role", with, 7 * day, ""},
		{"hcvault without the role", without, 0, ""},
		{"hcvault with an interval and no role", without + "epoch: {interval: 7d}\n", 0, "kek.hcvault.epoch is missing"},
		{"half a role", strings.Replace(with, ", secret_id_file: d", "", 1), 0, "kek.hcvault.epoch.secret_id_file"},
		{"overlap", local + "witness_overlap: 30d\n", 7 * day, ""},
		{"overlap too long", local + "witness_overlap: 400d\n", 0, "witness_overlap"},
		{"budget", local + "budget: {opens_per_second: 5, subjects_per_hour: 6}\n", 7 * day, ""},
		{"negative budget", local + "budget: {opens_per_second: -1}\n", 0, "budget.opens_per_second"},
		{"unknown member of the budget", local + "budget: {burst: 1}\n", 0, "burst"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := loadConfig(path)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("loadConfig = %v, want %q in it", err, tt.want)
				}
				return
			}
			if err != nil || c.epochInterval() != tt.interval {
				t.Errorf("loadConfig: %v, interval %v, want %v", err, c.epochInterval(), tt.interval)
			}
			if e := c.KEK.HCVault.Epoch; e.RoleIDFile != "" && !filepath.IsAbs(e.RoleIDFile) {
				t.Errorf("role id file %s is relative", e.RoleIDFile)
			}
		})
	}
}

// TestTheExampleOfTheConfigurationIsComplete: it loads, and each member is in it.
func TestTheExampleOfTheConfigurationIsComplete(t *testing.T) {
	source, err := os.ReadFile("config.go")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	in := false
	for line := range strings.Lines(string(source)) {
		switch {
		case strings.HasPrefix(line, "//\tinstance:"):
			in = true
		case !strings.HasPrefix(line, "//\t"):
			in = false
		}
		if in {
			text.WriteString(strings.TrimPrefix(line, "//\t"))
		}
	}
	example := text.String()
	// The two kinds of KEK exclude each other, and the group need not exist here.
	loaded := strings.Replace(strings.Replace(example, "group: pdvault", "group: '0'", 1), "  local:\n    path: /var/lib/pdkeys/root.key\n", "", 1)
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(loaded), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil || c.epochInterval() != 7*24*time.Hour {
		t.Errorf("loadConfig: %v\n%s", err, loaded)
	}
	for _, member := range []string{
		"instance", "socket", "group", "allow_uids", "store", "dir", "kek", "ca_file", "mount", "key", "approle", "epoch", "interval", "schedule",
		"witness_overlap", "budget", "opens_per_second", "subjects_per_hour", "cache", "size", "ttl", "metrics", "textfile", "log", "level",
	} {
		if !strings.Contains(example, member+":") {
			t.Errorf("no %s in the example", member)
		}
	}
}
