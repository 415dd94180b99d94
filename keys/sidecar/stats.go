package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prototypster/pdvault/keys/keyring"
)

// Stats counts what a sidecar does. It is an Observer, and Keyring gives the hooks that a keyring wants.
// Its methods may be called from any goroutine.
type Stats struct {
	mu      sync.Mutex // guards all below
	opens   int64
	fields  int64
	peers   int64
	refused map[string]int64
	hits    int64
	misses  int64
	wraps   int64
	unwraps int64
	kekFail int64
	held    int64
	commits int64
	budget  budgetRefusals
}

var _ Observer = (*Stats)(nil)

// NewStats returns counters at zero.
func NewStats() *Stats { return &Stats{refused: make(map[string]int64)} }

// Opened counts access records served, and their fields.
func (s *Stats) Opened(records, fields int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens += int64(records)
	s.fields += int64(fields)
}

// Refused counts refusals by reason.
func (s *Stats) Refused(why string, items int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[why] += int64(items)
}

// PeerRefused counts connections of users who may not connect.
func (s *Stats) PeerRefused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers++
}

// BudgetRefused counts opens that a budget did not allow.
func (s *Stats) BudgetRefused(caller, limit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget.add(caller, limit)
}

// Keyring returns hooks that count what a keyring does.
func (s *Stats) Keyring() keyring.Observer {
	return keyring.Observer{
		Cache: func(hits, misses int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.hits += int64(hits)
			s.misses += int64(misses)
		},
		KEK: func(op string, items int, _ time.Duration, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			switch {
			case err != nil:
				s.kekFail++
			case op == "unwrap":
				s.unwraps += int64(items)
			default:
				s.wraps += int64(items)
			}
		},
		Commit: func(int, time.Duration, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.commits++
		},
		Epoch: func(_ string, _, _ int64, err error) {
			if err == nil {
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.held++
		},
	}
}

// Text returns the counters, and what gauges shows unless it is nil, in the text format of Prometheus.
func (s *Stats) Text(gauges *Gauges) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b bytes.Buffer
	for _, c := range []struct {
		name, help string
		value      int64
	}{
		{"pdkeys_opens_total", "Access records served.", s.opens},
		{"pdkeys_opened_fields_total", "Fields opened or compared.", s.fields},
		{"pdkeys_peers_refused_total", "Connections of users who may not connect.", s.peers},
		{"pdkeys_cache_hits_total", "Bundles served from the cache.", s.hits},
		{"pdkeys_cache_misses_total", "Bundles not found in the cache.", s.misses},
		{"pdkeys_wraps_total", "Items wrapped by the KEK.", s.wraps},
		{"pdkeys_unwraps_total", "Items unwrapped by the KEK.", s.unwraps},
		{"pdkeys_kek_failures_total", "Calls to the KEK that failed.", s.kekFail},
		{"pdkeys_epoch_held_up_total", "Times that an epoch could not go on, and was to be tried again.", s.held},
		{"pdkeys_commits_total", "Transactions on the key store.", s.commits},
	} {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s counter\n%s %d\n", c.name, c.help, c.name, c.name, c.value)
	}
	b.WriteString("# HELP pdkeys_refused_total Refusals by reason.\n# TYPE pdkeys_refused_total counter\n")
	for _, why := range slices.Sorted(maps.Keys(s.refused)) {
		fmt.Fprintf(&b, "pdkeys_refused_total{why=%q} %d\n", why, s.refused[why])
	}
	s.budget.write(&b)
	if gauges != nil {
		gauges.write(&b)
	}
	return b.Bytes()
}

// Run logs the counters at debug level, and writes them to path unless it is empty, every interval and once
// more when ctx ends, which ends Run. Gauges, unless it is nil, is asked for what is beside the counters in the
// file. The file is replaced as a whole, as the textfile collector of node_exporter wants it; a failure to
// write it is logged and otherwise ignored.
func (s *Stats) Run(ctx context.Context, log *slog.Logger, path string, interval time.Duration, gauges func(context.Context) *Gauges) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.flush(ctx, log, path, gauges)
		case <-ctx.Done():
			s.flush(ctx, log, path, nil)
			return
		}
	}
}

func (s *Stats) flush(ctx context.Context, log *slog.Logger, path string, gauges func(context.Context) *Gauges) {
	s.mu.Lock()
	log.Debug("counters", "opens", s.opens, "hits", s.hits, "misses", s.misses, "unwraps", s.unwraps, "kek_failures", s.kekFail)
	s.mu.Unlock()
	if path == "" {
		return
	}
	var g *Gauges
	if gauges != nil {
		g = gauges(ctx)
	}
	if err := replaceFile(path, s.Text(g)); err != nil {
		log.Warn("metrics file not written", "error", err.Error())
	}
}

func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".pdkeys-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no longer there after the rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
