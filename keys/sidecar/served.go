package sidecar

import (
	"sync"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

const (
	// maxFuture is how far ahead of our clock the time of a record may be: both processes use the clock of
	// one machine, so this covers steps of that clock only.
	maxFuture = 2 * time.Second
	// remember is how long the served indexes are kept one by one: until no record among them is fresh.
	remember = verify.MaxAccessAge + maxFuture + time.Second

	pageBits = 4096
	maxPages = 16384 // 8 MiB; beyond it the oldest page goes early
)

// served knows which access records were served: exactly, for those which may still be fresh, and by one
// floor below which all are taken for served.
//
// The floor rises when records are forgotten, so that a clock set back cannot make them fresh again.
// Times never decrease along the ledger, so what lies below the floor is too old to be served anyway.
// After a restart the floor is the size witnessed before: whatever was served lay below it.
type served struct {
	now func() time.Time

	mu     sync.Mutex // guards all below
	floor  int64
	start  int64 // floor at the start
	pages  map[int64]*page
	pruned time.Time
}

// page has a bit for each of pageBits consecutive indexes.
type page struct {
	bits [pageBits / 64]uint64
	last time.Time // of the last claim
	max  int64     // highest index ever claimed
}

func newServed(floor int64, now func() time.Time) *served {
	return &served{now: now, floor: floor, start: floor, pages: make(map[int64]*page), pruned: now()}
}

// claim takes index for the caller, who serves it or gives it back with release. It returns "" or why not.
func (s *served) claim(index int64) (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now.Sub(s.pruned) > time.Second {
		s.pruneLocked(now)
	}
	switch {
	case index < s.start:
		return whyBeforeRestart
	case index < s.floor:
		return whyServed
	}
	p := s.pages[index/pageBits]
	if p == nil {
		if len(s.pages) >= maxPages {
			s.dropOldestLocked()
		}
		p = new(page)
		s.pages[index/pageBits] = p
	}
	word, bit := index%pageBits/64, uint64(1)<<(index%64)
	if p.bits[word]&bit != 0 {
		return whyServed
	}
	p.bits[word] |= bit
	p.last, p.max = now, max(p.max, index)
	return ""
}

// release gives index back: nothing was handed out under it.
func (s *served) release(index int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pages[index/pageBits]; p != nil {
		p.bits[index%pageBits/64] &^= uint64(1) << (index % 64)
	}
}

// pruneLocked forgets what is no longer fresh, and raises the floor above it.
func (s *served) pruneLocked(now time.Time) {
	s.pruned = now
	for n, p := range s.pages {
		if now.Sub(p.last) > remember {
			s.floor = max(s.floor, p.max+1)
			delete(s.pages, n)
		}
	}
}

func (s *served) dropOldestLocked() {
	oldest := int64(-1)
	for n := range s.pages {
		if oldest < 0 || n < oldest {
			oldest = n
		}
	}
	s.floor = max(s.floor, s.pages[oldest].max+1)
	delete(s.pages, oldest)
}
