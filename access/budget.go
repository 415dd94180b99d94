package access

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Fixed budgets, which protect the ledger and not people.
const (
	denialsPerMinute = 3000 // of one caller; each is a durable entry
	loginsPerMinute  = 60   // of everybody together
)

// budgets holds the rate limiters of callers. Reads and lookups have the limits of the policy; a new policy
// changes the limits and gives nobody a new start.
type budgets struct {
	mu       sync.Mutex // guards the maps, not the limiters in them
	limiters map[budget]*rate.Limiter
}

type budget struct{ kind, caller string }

// read takes one read of a caller's.
func (b *budgets) read(p *published, caller string, now time.Time) error {
	return b.take("read", caller, p.bundle.Limits().ReadsPerMinute, now)
}

// lookup takes one lookup of a caller's.
func (b *budgets) lookup(p *published, caller string, now time.Time) error {
	return b.take("lookup", caller, p.bundle.Limits().LookupsPerMinute, now)
}

// conflict takes one refusal of a write because a unique value is taken.
func (b *budgets) conflict(p *published, caller string, now time.Time) error {
	return b.take("conflict", caller, conflictsPerMinute(p), now)
}

// conflictLeft fails when a caller could not take one conflict more; it takes none. It is asked before anything
// is sealed, so that a caller over its budget neither learns whether a value is taken nor leaves a key behind.
func (b *budgets) conflictLeft(p *published, caller string, now time.Time) error {
	if l := b.limiter("conflict", caller, conflictsPerMinute(p), now); l != nil && l.TokensAt(now) < 1 {
		return ErrLimited
	}
	return nil
}

func conflictsPerMinute(p *published) int {
	limits := p.bundle.Limits()
	if limits.ConflictsPerMinute != 0 {
		return limits.ConflictsPerMinute
	}
	return limits.LookupsPerMinute
}

// denial takes one recorded denial of a caller's.
func (b *budgets) denial(caller string, now time.Time) error {
	return b.take("denial", caller, denialsPerMinute, now)
}

// login takes one recorded refusal to authenticate.
func (b *budgets) login(now time.Time) error { return b.take("login", "", loginsPerMinute, now) }

func (b *budgets) take(kind, caller string, perMinute int, now time.Time) error {
	if l := b.limiter(kind, caller, perMinute, now); l != nil && !l.AllowN(now, 1) {
		return ErrLimited
	}
	return nil
}

// limiter returns the limiter of a budget at its present limit; nil when there is no limit.
func (b *budgets) limiter(kind, caller string, perMinute int, now time.Time) *rate.Limiter {
	if perMinute == 0 {
		return nil
	}
	limit := rate.Limit(float64(perMinute) / 60)
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.limiters[budget{kind, caller}]
	switch {
	case l == nil:
		l = rate.NewLimiter(limit, perMinute)
		if b.limiters == nil {
			b.limiters = make(map[budget]*rate.Limiter)
		}
		b.limiters[budget{kind, caller}] = l
	case l.Limit() != limit:
		l.SetLimitAt(now, limit)
		l.SetBurstAt(now, perMinute)
	}
	return l
}
