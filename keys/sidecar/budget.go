package sidecar

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Budget bounds what may be opened. It holds for each caller that access records name, and, since a client that
// is not honest may name callers that do not exist, for all of them together.
type Budget struct {
	OpensPerSecond  int // access records of one caller; 0: 20,000
	Burst           int // access records of one caller at once; 0: OpensPerSecond
	SubjectsPerHour int // distinct subjects of one caller; 0: 200,000

	TotalOpensPerSecond  int // of all callers; 0: three times OpensPerSecond
	TotalBurst           int // of all callers; 0: three times Burst
	TotalSubjectsPerHour int // of all callers; 0: three times SubjectsPerHour
}

func (b Budget) verified() (Budget, error) {
	b.OpensPerSecond = cmp.Or(b.OpensPerSecond, 20_000)
	b.Burst = cmp.Or(b.Burst, b.OpensPerSecond)
	b.SubjectsPerHour = cmp.Or(b.SubjectsPerHour, 200_000)
	b.TotalOpensPerSecond = cmp.Or(b.TotalOpensPerSecond, 3*b.OpensPerSecond)
	b.TotalBurst = cmp.Or(b.TotalBurst, 3*b.Burst)
	b.TotalSubjectsPerHour = cmp.Or(b.TotalSubjectsPerHour, 3*b.SubjectsPerHour)
	for _, n := range [...]int{b.OpensPerSecond, b.Burst, b.SubjectsPerHour, b.TotalOpensPerSecond, b.TotalBurst, b.TotalSubjectsPerHour} {
		if n < 1 || n > maxBudget {
			return b, fmt.Errorf("sidecar: Config.Budget: each number must be within 1 and %d", maxBudget)
		}
	}
	return b, nil
}

const (
	maxBudget = 100_000_000

	maxCallers = 1024 // that have an account of their own; the others share one

	slotTime = 10 * time.Minute
	slots    = 7 // an hour, and the slot that is under way: no hour has more than the limit

	callerOther = "other" // the account that is shared, and the label of callers whose id is no proper label
)

// Which limit a refusal is for.
const (
	limitOpens         = "opens"
	limitSubjects      = "subjects"
	limitOpensTotal    = "opens-total"
	limitSubjectsTotal = "subjects-total"
)

// budget counts what is opened.
//
// Opens are metered as a bucket that leaks: each account has the time at which it will be empty again. Distinct
// subjects are counted in slots of ten minutes, each where it was seen last. All accounts share one table from
// a hash of account and subject to that slot, so that memory is bounded by the limits and not by the number of
// callers: at most TotalSubjectsPerHour subjects in all, and twice as many pairs of caller and subject.
//
// After a restart all accounts are fresh.
type budget struct {
	limit Budget
	now   func() time.Time
	seed  maphash.Seed

	mu      sync.Mutex // guards all below
	begun   time.Time
	latest  time.Duration // since begun; never decreases
	slot    int64
	seen    map[uint64]uint64 // slot by hash of account and subject
	pairs   int               // of a caller and a subject, in seen
	total   account
	callers map[string]*account
	next    uint64 // id of the next account
}

// account is what one caller, or all together, have opened.
type account struct {
	id    uint64
	label string
	empty time.Duration // since begun; opens before it have leaked out
	live  int           // distinct subjects, the sum of slots
	slots [slots]int    // by slot modulo slots
}

func newBudget(limit Budget, now func() time.Time) *budget {
	b := &budget{
		limit: limit, now: now, begun: now(), seed: maphash.MakeSeed(),
		seen: make(map[uint64]uint64), callers: make(map[string]*account),
	}
	b.total.id = b.newID()
	return b
}

func (b *budget) newID() uint64 {
	b.next++
	return b.next
}

// take counts one open of the subject with this reference, by caller, or returns which limit forbids it, and
// whose account that is. What is refused is not counted anywhere.
func (b *budget) take(caller string, ref []byte) (account, limit string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	elapsed := b.elapsedLocked()
	name, a := b.accountLocked(caller)
	// Every check comes before anything is counted.
	emptyAll, ok := leak(b.total.empty, elapsed, b.limit.TotalOpensPerSecond, b.limit.TotalBurst)
	if !ok {
		return name, limitOpensTotal
	}
	empty, ok := leak(a.empty, elapsed, b.limit.OpensPerSecond, b.limit.Burst)
	if !ok {
		return name, limitOpens
	}
	keyAll, key := b.key(&b.total, ref), b.key(a, ref)
	wasAll, knownAll := b.seen[keyAll]
	was, known := b.seen[key]
	switch {
	case !knownAll && b.total.live >= b.limit.TotalSubjectsPerHour, !known && b.pairs >= 2*b.limit.TotalSubjectsPerHour:
		return name, limitSubjectsTotal
	case !known && a.live >= b.limit.SubjectsPerHour:
		return name, limitSubjects
	}
	b.total.empty, a.empty = emptyAll, empty
	b.countLocked(&b.total, keyAll, wasAll, knownAll)
	b.countLocked(a, key, was, known)
	if !known {
		b.pairs++
	}
	return name, ""
}

// elapsedLocked is the time since the budget began, in whose slot it puts the table. A clock that was set back goes
// on from where it was.
func (b *budget) elapsedLocked() time.Duration {
	now := b.now()
	elapsed := now.Sub(b.begun)
	if elapsed < b.latest {
		b.begun = now.Add(-b.latest)
		elapsed = b.latest
	}
	b.latest = elapsed
	if slot := int64(elapsed / slotTime); slot > b.slot {
		b.turnLocked(slot, elapsed)
	}
	return elapsed
}

// leak adds one open to a bucket that is empty at the given time, if it has room.
func leak(empty, now time.Duration, perSecond, burst int) (time.Duration, bool) {
	each := time.Second / time.Duration(perSecond)
	empty = max(empty, now) + each
	return empty, empty-now <= each*time.Duration(burst)
}

// accountLocked returns the account of caller, and the label that it may be shown under.
func (b *budget) accountLocked(caller string) (string, *account) {
	if !isName(caller) {
		caller = callerOther
	}
	a := b.callers[caller]
	if a == nil && len(b.callers) >= maxCallers {
		caller = callerOther
		a = b.callers[caller]
	}
	if a == nil {
		a = &account{id: b.newID(), label: callerOther}
		if isLabel(caller) {
			a.label = caller
		}
		b.callers[caller] = a
	}
	return a.label, a
}

// isLabel reports whether an id of a caller may stand in a log line and in the label of a metric: it comes
// from the client, which may be dishonest.
func isLabel(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func (b *budget) key(a *account, ref []byte) uint64 {
	var in [8 + verify.RefSize]byte
	binary.BigEndian.PutUint64(in[:], a.id)
	copy(in[8:], ref)
	return maphash.Bytes(b.seed, in[:])
}

// countLocked counts a subject in the slot that is under way, once.
func (b *budget) countLocked(a *account, key, was uint64, known bool) {
	now := uint64(b.slot)
	if known && was == now {
		return
	}
	if known {
		a.slots[was%slots]--
	} else {
		a.live++
	}
	a.slots[now%slots]++
	b.seen[key] = now
}

// turnLocked begins slot, and forgets what was seen before the hour.
func (b *budget) turnLocked(slot int64, elapsed time.Duration) {
	accounts := []*account{&b.total}
	for _, a := range b.callers {
		accounts = append(accounts, a)
	}
	for s := b.slot + 1; s <= min(slot, b.slot+slots); s++ {
		for _, a := range accounts {
			a.live -= a.slots[s%slots]
			a.slots[s%slots] = 0
		}
	}
	b.slot = slot
	if b.total.live == 0 {
		b.seen = make(map[uint64]uint64) // a map that is emptied keeps its size
	}
	for key, s := range b.seen {
		if int64(s) <= slot-slots {
			delete(b.seen, key)
		}
	}
	b.pairs = len(b.seen) - b.total.live
	for name, a := range b.callers {
		if a.live == 0 && a.empty <= elapsed {
			delete(b.callers, name)
		}
	}
}

// BudgetUse is how much of the budget is used up: 0 none, 1 all.
type BudgetUse struct {
	Subjects      float64 // of the caller that uses most
	SubjectsTotal float64
	Callers       int // that have an account
}

func (b *budget) use() BudgetUse {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.elapsedLocked()
	most := 0
	for _, a := range b.callers {
		most = max(most, a.live)
	}
	return BudgetUse{
		Subjects:      float64(most) / float64(b.limit.SubjectsPerHour),
		SubjectsTotal: float64(b.total.live) / float64(b.limit.TotalSubjectsPerHour),
		Callers:       len(b.callers),
	}
}

// alarm lets one through in a minute, and counts the others.
type alarm struct {
	mu     sync.Mutex // guards all below
	last   time.Time
	silent int
}

// ring reports whether it is time to be loud, and how many there were since the last time.
func (a *alarm) ring(now time.Time) (count int, loud bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent++
	if !a.last.IsZero() && now.Sub(a.last) < time.Minute {
		return 0, false
	}
	count, a.silent, a.last = a.silent, 0, now
	return count, true
}
