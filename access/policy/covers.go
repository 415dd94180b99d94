package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Covers reports whether the bundle would have permitted an access that the ledger records as allowed, with
// nil, or an error that wraps ErrNotCovered and says what does not hold. policyEntry is the index of the
// policy.published entry of this bundle.
//
// It decides again from the recorded caller, purpose, fields, mode and time, and demands the same ground,
// recipient, evidence and rules. What a bundle cannot know is left to the verifier of the whole log: that the
// consent named as evidence was live and covered the request, and that the subject was neither restricted
// nor erased. For ground consent it is therefore assumed that the named consent covers everything asked.
func (b *Bundle) Covers(e verify.Entry, policyEntry int64) error {
	if e.Kind != verify.KindAccess || e.Decision != verify.Allow {
		return fmt.Errorf("%w: not an allowed access", ErrNotCovered)
	}
	if e.Caller == nil || e.Evidence == nil || e.Recipient == nil {
		return fmt.Errorf("%w: caller, recipient or evidence is missing", ErrNotCovered)
	}
	at, err := time.Parse(verify.TimeLayout, e.Time)
	if err != nil {
		return fmt.Errorf("%w: time is not in the entry layout", ErrNotCovered)
	}
	c, ok := b.Caller(e.Caller.ID)
	if !ok || c.Role != e.Caller.Role || c.Kind != e.Caller.Kind {
		return fmt.Errorf("%w: caller is not registered so", ErrNotCovered)
	}
	d := b.Decide(b.replay(e, at, policyEntry))
	switch {
	case !d.Allow:
		return fmt.Errorf("%w: %s", ErrNotCovered, d.Reason)
	case d.Ground != e.Ground:
		return fmt.Errorf("%w: another ground", ErrNotCovered)
	case *d.Recipient != *e.Recipient:
		return fmt.Errorf("%w: another recipient", ErrNotCovered)
	case *d.Evidence != *e.Evidence:
		return fmt.Errorf("%w: another evidence", ErrNotCovered)
	case !slices.Equal(d.Rules, e.Rules):
		return fmt.Errorf("%w: other rules", ErrNotCovered)
	}
	return nil
}

// replay is the request that an entry records.
func (b *Bundle) replay(e verify.Entry, at time.Time, policyEntry int64) Request {
	r := Request{
		Action: actionOf(e.Mode), Caller: e.Caller.ID, Authn: e.Caller.Authn,
		Collection: e.Collection, Fields: e.Fields, Purpose: e.Purpose, Mode: e.Mode,
		Justification: e.DetailCommit != "",
		Subject:       Subject{Exists: true}, PolicyVersion: e.Policy, PolicyEntry: policyEntry, Now: at,
	}
	if e.Evidence.Type == verify.EvidenceConsent {
		c := Consent{ID: e.Evidence.ID, Entry: e.Evidence.Entry, Purpose: e.Purpose, Policy: e.Policy,
			State: ConsentGiven, Recipients: []string{e.Caller.ID}, SeparateDocument: true}
		for _, f := range e.Fields {
			c.Fields = append(c.Fields, Qualify(e.Collection, f))
		}
		r.Consents = []Consent{c}
	}
	return r
}

// actionOf returns the action that a mode belongs to.
func actionOf(mode string) string {
	switch mode {
	case verify.ModeVerify:
		return ActionVerify
	case verify.ModeLookup:
		return ActionLookup
	}
	return ActionRead
}
