package policy

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// maxMemo bounds the decisions that are remembered within one second.
const maxMemo = 1024

// memo remembers decisions of ground service. They depend on the bundle, the caller, what is asked for and
// the time, and on the person only by existence and state; so the same question of the same second has the
// same answer, and under load most questions are the same. Decisions of ground consent depend on the
// person's consents and are never remembered.
type memo struct {
	mu     sync.Mutex
	second int64                  // guarded by mu; of the decisions below
	known  map[question]*Decision // guarded by mu
}

// question is everything that a decision of ground service depends on.
type question struct {
	action, caller, authn, collection, fields, purpose, mode string
	justification                                            bool
	subject                                                  Subject
	policyVersion, policyEntry                               int64
}

// remembered answers r as decide does, which is asked when the answer is not known. The time of a decision
// counts whole seconds, as the windows of agreements do; see check.
func (m *memo) remembered(r Request, decide func(Request) Decision) Decision {
	r.Now = r.Now.Truncate(time.Second)
	q := question{
		action: r.Action, caller: r.Caller, authn: r.Authn, collection: r.Collection, fields: joined(r.Fields),
		purpose: r.Purpose, mode: r.Mode, justification: r.Justification, subject: r.Subject,
		policyVersion: r.PolicyVersion, policyEntry: r.PolicyEntry,
	}
	second := r.Now.Unix()
	m.mu.Lock()
	if m.known == nil || m.second != second || len(m.known) >= maxMemo {
		m.second, m.known = second, make(map[question]*Decision)
	}
	d := m.known[q]
	m.mu.Unlock()
	if d != nil {
		return d.clone()
	}
	made := decide(r)
	m.mu.Lock()
	if m.second == second {
		kept := made.clone()
		m.known[q] = &kept
	}
	m.mu.Unlock()
	return made
}

// joined encodes names injectively: each with its length.
func joined(names []string) string {
	var b strings.Builder
	for _, n := range names {
		b.WriteString(strconv.Itoa(len(n)))
		b.WriteByte(':')
		b.WriteString(n)
	}
	return b.String()
}

// clone returns a decision that shares nothing that its owner might write to but the slices, which nobody
// does.
func (d *Decision) clone() Decision {
	c := *d
	if d.Evidence != nil {
		e := *d.Evidence
		c.Evidence = &e
	}
	if d.Recipient != nil {
		r := *d.Recipient
		c.Recipient = &r
	}
	return c
}

// memorable reports whether the answer to r may be remembered. What nobody asks in earnest is not.
func (b *Bundle) memorable(r Request) bool {
	return b.Ground(r.Purpose) == verify.GroundService && len(r.Fields) <= 64
}
