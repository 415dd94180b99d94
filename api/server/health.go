package server

import (
	"context"
	"crypto/fips140"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prototypster/pdvault/api"
)

const (
	checkTimeout  = 2 * time.Second // of one check
	checkInterval = time.Second     // an answer is given again for this long, so that nobody can make work
)

// readiness runs the checks and remembers the outcome for checkInterval.
type readiness struct {
	checks []Check
	now    func() time.Time

	mu   sync.Mutex // guards all below; held while the checks run
	at   time.Time
	last api.Health
}

func (r *readiness) check(ctx context.Context) api.Health {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); !r.at.IsZero() && now.Sub(r.at) < checkInterval {
		return r.last
	}
	// The outcome is for everybody who asks, so it does not depend on this client's patience.
	ctx = context.WithoutCancel(ctx)
	var passed, failing []string
	for _, c := range r.checks {
		one, cancel := context.WithTimeout(ctx, checkTimeout)
		if err := c.Run(one); err != nil {
			failing = append(failing, c.Name)
		} else {
			passed = append(passed, c.Name)
		}
		cancel()
	}
	r.last, r.at = health(passed, failing), r.now()
	return r.last
}

func health(passed, failing []string) api.Health {
	h := api.Health{Status: "ok", OK: passed, Failing: failing, FIPS140: "off"}
	if len(failing) > 0 {
		h.Status = "failing"
	}
	if fips140.Enabled() {
		h.FIPS140 = fips140.Version()
	}
	return h
}

func healthStatus(h api.Health) int {
	if h.Status != "ok" {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

func live(*call) (reply, error) { return ok(http.StatusOK, health(nil, nil)) }

func readyz(q *call) (reply, error) {
	h := q.server.ready.check(q.ctx)
	return ok(healthStatus(h), h)
}

func writeHealth(w http.ResponseWriter, h api.Health) {
	r, err := ok(healthStatus(h), h)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", mediaJSON)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(r.body)))
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body)
}
