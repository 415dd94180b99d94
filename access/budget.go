package access

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// budgets holds the rate limiters of callers, by the limits of the policy in force.
type budgets struct {
	mu      sync.Mutex // guards all below
	version int64      // of the policy that the limiters were made for
	reads   map[string]*rate.Limiter
	lookups map[string]*rate.Limiter
	logins  *rate.Limiter
}

// login reports whether one more login.denied may be recorded: one a second, at most 60 at once.
func (b *budgets) login(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.logins == nil {
		b.logins = rate.NewLimiter(1, 60)
	}
	return b.logins.AllowN(now, 1)
}

func (b *budgets) read(p *published, caller string, now time.Time) error {
	return b.take(p, &b.reads, p.bundle.Limits().ReadsPerMinute, caller, now)
}

func (b *budgets) lookup(p *published, caller string, now time.Time) error {
	return b.take(p, &b.lookups, p.bundle.Limits().LookupsPerMinute, caller, now)
}

// take takes one of perMinute; 0 means that there is no limit.
func (b *budgets) take(p *published, limiters *map[string]*rate.Limiter, perMinute int, caller string, now time.Time) error {
	if perMinute == 0 {
		return nil
	}
	b.mu.Lock()
	if b.version != p.Version {
		b.version, b.reads, b.lookups = p.Version, nil, nil
	}
	if *limiters == nil {
		*limiters = make(map[string]*rate.Limiter)
	}
	l := (*limiters)[caller]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)
		(*limiters)[caller] = l
	}
	b.mu.Unlock()
	if !l.AllowN(now, 1) {
		return ErrLimited
	}
	return nil
}
