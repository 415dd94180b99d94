package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// Verdict is what a check after a fault has found. Broken is what must never be.
type Verdict struct {
	Refused   bool // to start, with words that say how to go on
	Integrity int  // answers that say that stored data contradicts itself
	Broken    []string
	Said      string   // of a refusal
	Crashes   []string // that were allowed
}

func (v *Verdict) broken(format string, args ...any) {
	if len(v.Broken) < mostWrong {
		v.Broken = append(v.Broken, fmt.Sprintf(format, args...))
	}
}

// Allow says what a fault may lead to besides being as if it had not been.
type Allow struct {
	// Damage: what is stored was damaged. A start may be refused and a request answered with an integrity error, if it
	// is said how to go on; nothing may be lost in silence.
	Damage bool
	// Crash: a program may have ended in a panic or by a signal: its runtime or its memory was hit.
	Crash bool
}

const (
	integrityProblem = "urn:pdvault:problem:integrity"
	erasurePending   = "urn:pdvault:problem:erasure-pending"
	consentMissing   = "urn:pdvault:problem:consent-missing"
	consentWithdrawn = "urn:pdvault:problem:consent-withdrawn"
)

// problem is the type of a problem document.
func problem(body []byte) string {
	var p struct{ Type string }
	_ = json.Unmarshal(body, &p) // what is none has no type
	return p.Type
}

// readyWithin is how long a recovery may take on a machine that does other things as well.
const readyWithin = 60 * time.Second

// givenUpAfter is how long an instance is waited for that has told why it cannot become ready.
const givenUpAfter = 5 * time.Second

// Check starts what does not run and checks every invariant against what the load remembers, which must have been
// stopped. What was left open by requests without an answer is found out and known from then on.
func (l *Load) Check(ctx context.Context, allow Allow) (v Verdict) {
	defer func() {
		for _, c := range l.w.Crashes() {
			if allow.Crash {
				v.Crashes = append(v.Crashes, c)
			} else {
				v.broken("a program crashed: %s", c)
			}
		}
	}()
	v.Broken = append(v.Broken, l.takeWrong()...)
	if err := l.w.Start(ctx); err != nil {
		var r *Refusal
		v.Refused = errors.As(err, &r) && allow.Damage
		if v.Refused {
			v.Said = r.Said
		}
		if !v.Refused || !r.Explains() {
			v.broken("%v", err)
		}
		return v
	}
	if err := l.w.Ready(ctx, readyWithin, func() bool { return allow.Damage && l.w.toldDamage() }); err != nil {
		if !errors.Is(err, errGivenUp) {
			v.broken("%v", err)
			return v
		}
		// It says that it is damaged, and must still answer nothing that is wrong.
		v.Integrity++
		for _, w := range l.workers {
			for _, p := range w.people {
				w.read(ctx, p)
			}
		}
		v.Broken = append(v.Broken, l.takeWrong()...)
		return v
	}
	l.settle(ctx, &v)
	l.checkPeople(ctx, &v)
	l.checkConsents(ctx, &v)
	l.checkLookups(ctx, &v)
	l.checkRecords(ctx, &v)
	if !allow.Damage {
		l.checkRotations(ctx, &v)
	}
	if err := l.verifyLedger(ctx); err != nil {
		if v.Integrity++; !allow.Damage {
			v.broken("the exported log does not verify: %v", err)
		}
	}
	if v.Integrity > 0 && !allow.Damage {
		v.broken("%d integrity errors, and nothing was damaged", v.Integrity)
	}
	v.Broken = append(v.Broken, l.takeWrong()...)
	return v
}

// settle asks again for people of whom it is not known whether they were made. Half of a person, such as an e-mail
// that is taken, would refuse it.
func (l *Load) settle(ctx context.Context, v *Verdict) {
	l.each(func(p *person) {
		if p.id != "" {
			return
		}
		var a stack.Answer
		for end := time.Now().Add(readyWithin); p.id == "" && time.Now().Before(end); {
			if a = l.created(ctx, p); !unknown(a) || problem(a.Body) == integrityProblem {
				break
			}
		}
		if problem(a.Body) == integrityProblem {
			v.Integrity++
		} else if p.id == "" {
			v.broken("person %d can be neither found nor made: %d %s", p.n, a.Status, a.Body)
		}
	})
}

// result is one read of a batch.
type result struct {
	Read    *record
	Problem *struct {
		Type   string
		Status int
	}
}

const batch = 500

// notNow are refusals that pass.
var notNow = map[int]bool{http.StatusServiceUnavailable: true, http.StatusGatewayTimeout: true, http.StatusTooManyRequests: true}

// readAll reads people for a purpose. A result of "not now" is asked for again.
func (l *Load) readAll(ctx context.Context, v *Verdict, purpose string, fields string, people []*person, look func(*person, result)) {
	for part := range slices.Chunk(people, batch) {
		for end := time.Now().Add(readyWithin); len(part) > 0; time.Sleep(20 * time.Millisecond) {
			var body strings.Builder
			fmt.Fprintf(&body, `{"purpose":%q,"reads":[`, purpose)
			for n, p := range part {
				if n > 0 {
					body.WriteByte(',')
				}
				fmt.Fprintf(&body, `{"subject":%q,"collection":"profile","fields":[%s]}`, p.id, fields)
			}
			body.WriteString("]}")
			a := l.ask(ctx, "shop", "POST", "/v1/reads", body.String())
			var answer struct{ Results []result }
			over := time.Now().After(end) || ctx.Err() != nil
			if a.Status != http.StatusOK || json.Unmarshal(a.Body, &answer) != nil || len(answer.Results) != len(part) {
				if problem(a.Body) == integrityProblem {
					v.Integrity++
					return
				}
				if over {
					v.broken("reads are not served: %d %s", a.Status, a.Body)
					return
				}
				continue
			}
			var again []*person
			for n, r := range answer.Results {
				switch {
				case r.Read == nil && r.Problem == nil:
					v.broken("a read has neither a result nor a problem")
				case r.Problem != nil && !over && notNow[r.Problem.Status]:
					again = append(again, part[n])
				case r.Problem != nil && r.Problem.Type == integrityProblem:
					v.Integrity++
				default:
					if r.Read != nil {
						l.wasServed(r.Read.Access.Record)
					}
					look(part[n], r)
				}
			}
			part = again
		}
	}
}

// checkPeople reads everybody: the right value, or gone when they were erased.
func (l *Load) checkPeople(ctx context.Context, v *Verdict) {
	var people []*person
	l.each(func(p *person) {
		if p.id != "" {
			people = append(people, p)
		}
	})
	l.readAll(ctx, v, "account", `"email","displayName","name"`, people, func(p *person, r result) {
		switch {
		case r.Problem != nil && r.Problem.Status == http.StatusNotFound && (p.erased || p.erasing):
			p.erased, p.erasing, p.pending = true, false, ""
		case r.Problem != nil:
			v.broken("person %d, acknowledged at version %d, is answered with %d %s", p.n, p.version, r.Problem.Status, r.Problem.Type)
		default:
			if why := p.wrong(*r.Read); why != "" {
				v.broken("person %d: %s", p.n, why)
				return
			}
			p.version, p.name, p.pending, p.erasing = r.Read.Version, r.Read.Fields.DisplayName, "", false
		}
	})
}

// checkConsents reads for a purpose that rests on consent: one that was given opens, one that was withdrawn does not.
func (l *Load) checkConsents(ctx context.Context, v *Verdict) {
	var people []*person
	l.each(func(p *person) {
		if p.id != "" && !p.erased && p.consent != noConsent {
			people = append(people, p)
		}
	})
	l.readAll(ctx, v, "newsletter", `"email"`, people, func(p *person, r result) {
		is := given
		if r.Problem != nil {
			switch r.Problem.Type {
			case consentMissing:
				is = noConsent
			case consentWithdrawn:
				is = withdrawn
			default:
				v.broken("consent of person %d: %d %s", p.n, r.Problem.Status, r.Problem.Type)
				return
			}
		} else if r.Read.Fields.Email != p.email() {
			v.broken("person %d: a wrong value", p.n)
		}
		may := map[consent][]consent{
			giving: {noConsent, given}, given: {given}, withdrawing: {given, withdrawn}, withdrawn: {withdrawn},
		}[p.consent]
		if !slices.Contains(may, is) {
			v.broken("consent of person %d is %d, want one of %v", p.n, is, may)
			return
		}
		p.consent = is
	})
}

// lookups is how many people are sought by e-mail in each check; they have a budget.
const lookups = 5

// checkLookups seeks some by e-mail: whoever is there is found, and nobody else.
func (l *Load) checkLookups(ctx context.Context, v *Verdict) {
	var people []*person
	l.each(func(p *person) {
		if p.id != "" {
			people = append(people, p)
		}
	})
	for n := range min(lookups, len(people)) {
		p := people[(n*len(people)/lookups+int(l.requests.Load()))%len(people)]
		a := l.ask(ctx, "shop", "POST", "/v1/lookups", fmt.Sprintf(`{"purpose":"support","collection":"profile","field":"email","value":%q}`, p.email()))
		var found struct{ Subjects []string }
		var want []string
		if !p.erased {
			want = []string{p.id}
		}
		switch {
		case problem(a.Body) == integrityProblem:
			v.Integrity++
		case a.Status == http.StatusTooManyRequests:
		case a.Status != http.StatusOK || json.Unmarshal(a.Body, &found) != nil || !slices.Equal(found.Subjects, want):
			v.broken("lookup of person %d: %d %s", p.n, a.Status, a.Body)
		}
	}
}
