package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// checkRecords finds the record of every read that was served since the last check.
func (l *Load) checkRecords(ctx context.Context, v *Verdict) {
	l.mu.Lock()
	served := slices.Sorted(slices.Values(l.served))
	l.served = nil
	l.mu.Unlock()
	recorded := map[int64]bool{}
	for n := 0; n < len(served); {
		if recorded[served[n]] {
			n++
			continue
		}
		a := l.ask(ctx, "auditor", "GET", fmt.Sprintf("/v1/access-records?limit=1000&cursor=%d", served[n]), "")
		var page struct {
			Records []struct {
				Index int64
				Entry struct{ Kind, Decision string }
			}
		}
		if problem(a.Body) == integrityProblem {
			v.Integrity++
			return
		}
		if a.Status != http.StatusOK || json.Unmarshal(a.Body, &page) != nil {
			v.broken("the records cannot be listed: %d %s", a.Status, a.Body)
			return
		}
		for _, r := range page.Records {
			recorded[r.Index] = r.Entry.Kind == "access" && r.Entry.Decision == "allow"
		}
		if !recorded[served[n]] {
			v.broken("the read with record %d was served and is not on record", served[n])
			n++
		}
	}
}

// checkRotations waits for rotations that are under way: they go on, and none fails once it has a new key.
func (l *Load) checkRotations(ctx context.Context, v *Verdict) {
	var last []byte
	for end := time.Now().Add(readyWithin); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		a := l.ask(ctx, "security", "GET", "/v1/keys/rotations", "")
		var list struct {
			Rotations []struct {
				State, Phase string
				Record       *int64
			}
		}
		if last = a.Body; a.Status != http.StatusOK || json.Unmarshal(a.Body, &list) != nil {
			continue
		}
		running := false
		for _, r := range list.Rotations {
			running = running || r.State == "running" || r.State == "done" && r.Record == nil
			if r.State == "failed" && r.Phase != "begin" {
				v.broken("a rotation failed in phase %s", r.Phase)
			}
		}
		if !running {
			return
		}
	}
	v.broken("rotations do not end: %s", tail(string(last)))
}

// statusTries is how often a sidecar is asked for its keys: on a machine that does other things as well, the answer may
// come too late.
const statusTries = 3

// verifyLedger exports the log and has pdaudit verify it with the keys that the sidecar names.
func (l *Load) verifyLedger(ctx context.Context) error {
	w := l.w
	dir, token := w.Path("log"), w.Path("token.auditor")
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(token, []byte(w.Token("auditor")+"\n"), 0o600)); err != nil {
		return err
	}
	var status []byte
	var err error
	for range statusTries {
		if status, err = w.Output(ctx, "pdkeys", "status", "--config", w.Path("pdkeys.yaml")); err == nil {
			break
		}
		time.Sleep(time.Second)
	}
	if err != nil {
		return fmt.Errorf("asking for the public keys: %w", err)
	}
	args := []string{"verify", "ledger", dir}
	flags := map[string]string{"ledger key": "--ledger-key", "witness key": "--witness-key"}
	for line := range strings.Lines(string(status)) {
		for _, name := range slices.Sorted(maps.Keys(flags)) {
			if keys, ok := strings.CutPrefix(line, name+" "); ok {
				for _, key := range strings.Fields(keys) {
					args = append(args, flags[name], key)
				}
			}
		}
	}
	if _, err := w.Output(ctx, "pdvault", "records", "export", dir, "--server", w.URL, "--token-file", token); err != nil {
		return fmt.Errorf("exporting the log: %w", err)
	}
	if out, err := w.Output(ctx, "pdaudit", args...); err != nil {
		return fmt.Errorf("%w: %s", err, tail(string(out)))
	}
	return os.RemoveAll(filepath.Clean(dir))
}
