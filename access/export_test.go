package access

import "time"

// Pace is pace, for tests.
type Pace struct{ p pace }

// Burst notes how many requests were begun during a burst of work, and returns how long to rest.
func (p *Pace) Burst(requests int64, took time.Duration) time.Duration {
	p.p.beside.add(requests, took)
	return p.p.rest(took)
}

// Rested notes how many were begun during the rest.
func (p *Pace) Rested(requests int64, took time.Duration) { p.p.without.add(requests, took) }
