package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Covers reports whether the bundle would have permitted an access that the ledger records as allowed, with
// nil, or an error that wraps ErrNotCovered and says what does not hold. g is what the ledger said before: the
// index of the policy.published entry of this bundle, and the consent that is named as evidence.
//
// It decides again from the recorded caller, purpose, fields, mode and time, and demands the same ground,
// recipient, evidence and rules. What a bundle cannot know is left to the verifier of the whole log: that the
// consent is the subject's and was not withdrawn or given anew, and that the subject was neither restricted
// nor erased.
func (b *Bundle) Covers(e verify.Entry, g verify.Given) error {
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
	r, err := replay(e, g)
	if err != nil {
		return err
	}
	r.Now = at
	var first error
	for _, justified := range justifications(e) {
		r.Justification = justified
		if err = differs(b.Decide(r), e); err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// differs says how a decision is another than the one that an entry records.
func differs(d Decision, e verify.Entry) error {
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

// justifications returns whether the rules may have been told that a justification was given, the likelier
// first. An entry commits to a detail as a whole, of which the justification is one part. It commits to none
// when a lookup found nobody: then there is no key to seal one under.
func justifications(e verify.Entry) []bool {
	switch {
	case e.DetailCommit != "":
		return []bool{true, false}
	case e.Mode == verify.ModeLookup && e.SubjectRef == "":
		return []bool{false, true}
	}
	return []bool{false}
}

// replay is the request that an entry records, but for its time and justification.
func replay(e verify.Entry, g verify.Given) (Request, error) {
	r := Request{
		Action: actionOf(e.Mode), Caller: e.Caller.ID, Authn: e.Caller.Authn,
		Collection: e.Collection, Fields: e.Fields, Purpose: e.Purpose, Mode: e.Mode,
		Subject: Subject{Exists: true}, PolicyVersion: e.Policy, PolicyEntry: g.Published,
	}
	if c := g.Consent; c != nil {
		given := Consent{
			ID: c.ID, Purpose: c.Purpose, Policy: c.Policy, State: c.State, Fields: c.Fields, Recipients: c.Recipients,
			SeparateDocument: c.SeparateDocument, Entry: e.Evidence.Entry,
		}
		if c.NotAfter != "" {
			var err error
			if given.NotAfter, err = time.Parse(verify.TimeLayout, c.NotAfter); err != nil {
				return Request{}, fmt.Errorf("%w: end of the consent is not in the entry layout", ErrNotCovered)
			}
		}
		r.Consents = []Consent{given}
	}
	return r, nil
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
