package access

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// Read decides on a read, records it, and only then has the fields opened. Possible errors: *DeniedError,
// ErrNotFound, ErrInvalid, ErrLimited, ErrBusy, ErrIntegrity and the errors of ledger and sidecar; after
// any error no plaintext has left, and if the access was already recorded, access.failed follows it.
func (b *Broker) Read(ctx context.Context, q ReadRequest) (ReadResult, error) {
	if err := b.begin(b.current.Load(), &q); err != nil {
		return ReadResult{}, err
	}
	return again(func() (ReadResult, error) { return b.read(ctx, q) })
}

// begin counts a read, in the budget of its caller too.
func (b *Broker) begin(p *published, q *ReadRequest) error {
	if q.Mode == "" {
		q.Mode = verify.ModeReveal
	}
	b.load.Add(1)
	return b.budgets.read(p, q.Caller.ID, b.now())
}

// Check answers whether a read would be allowed, and if not what is missing. It discloses no plaintext and
// is not recorded as an access. A caller whose rights do not depend on the subject learns nothing about it.
func (b *Broker) Check(ctx context.Context, q ReadRequest) (CheckResult, error) {
	if q.Mode == "" {
		q.Mode = verify.ModeReveal
	}
	p := b.current.Load()
	state, q, err := b.look(ctx, p, q)
	if err != nil {
		return CheckResult{}, err
	}
	d := b.decideRead(p, q, state)
	if d.Allow && state.subject.Rows[q.Collection] == nil {
		return CheckResult{}, ErrNotFound
	}
	result := CheckResult{Allow: d.Allow, Ground: d.Ground, Reason: d.Reason, Missing: d.Missing}
	if d.Allow {
		result.Fields = q.Fields
	} else if d.Reason == policy.ReasonSubjectErased {
		return CheckResult{}, ErrNotFound
	}
	return result, nil
}

// look reads from one snapshot what the decision and the read need.
func (b *Broker) look(ctx context.Context, p *published, q ReadRequest) (seen, ReadRequest, error) {
	q.Fields = p.asked(q)
	var state seen
	err := b.store.View(ctx, func(r kv.Reader) error {
		var err error
		state, err = p.look(r, q)
		return err
	})
	if err != nil {
		return seen{}, q, wrapf(err, "reading the subject")
	}
	return state, q, nil
}

// asked are the fields that q asks for, sorted: those that it names, or all that its purpose covers.
func (p *published) asked(q ReadRequest) []string {
	if len(q.Fields) == 0 {
		return slices.Sorted(slices.Values(p.bundle.PurposeFields(q.Purpose, q.Collection)))
	}
	return slices.Compact(slices.Sorted(slices.Values(q.Fields)))
}

// look reads from the snapshot of r what a decision on q, and the read, need.
func (p *published) look(r kv.Reader, q ReadRequest) (seen, error) {
	state := seen{policy: p}
	var err error
	state.subject, err = vault.LoadToRead(r, q.Subject, q.Collection)
	if err != nil && !errors.Is(err, vault.ErrNoSubject) {
		return seen{}, err
	}
	if p.bundle.Ground(q.Purpose) == verify.GroundConsent {
		if state.consents, err = consent.Load(r, q.Subject); err != nil {
			return seen{}, err
		}
	}
	return state, nil
}

func (b *Broker) decideRead(p *published, q ReadRequest, s seen) policy.Decision {
	action := policy.ActionRead
	if q.Mode == verify.ModeVerify {
		action = policy.ActionVerify
	}
	request := policy.Request{
		Action: action, Collection: q.Collection, Fields: q.Fields, Purpose: q.Purpose, Mode: q.Mode,
		Justification: q.Justification != "",
		Subject:       policy.Subject{Exists: s.subject.Exists(), Restricted: s.subject.Head.Restricted, Erased: s.subject.Head.Erased},
		Now:           b.now(),
	}
	if s.consents != nil {
		request.Consents = facts(s.consents)
	}
	return b.decide(p, q.Request, request)
}

// facts is what the policy is told of consents.
func facts(l *consent.List) []policy.Consent {
	out := make([]policy.Consent, len(l.Consents))
	for i, c := range l.Consents {
		out[i] = policy.Consent{
			ID: c.ID.String(), Purpose: c.Purpose, Policy: c.Policy, State: c.State, Fields: c.Fields,
			Recipients: c.Recipients, NotAfter: c.NotAfter, SeparateDocument: c.SeparateDocument,
			Entry: max(c.Entry, c.WithdrawnEntry), // of its last event
		}
	}
	return out
}

// read is one attempt of Read.
func (b *Broker) read(ctx context.Context, q ReadRequest) (ReadResult, error) {
	granted, err := b.grant(ctx, &q)
	if err != nil {
		return ReadResult{}, err
	}
	return b.serve(ctx, q, granted, nil)
}

// serve has the fields of q opened under the record of granted; tried is what came of it already, or nil.
func (b *Broker) serve(ctx context.Context, q ReadRequest, granted *grant, tried *OpenOutcome) (ReadResult, error) {
	fields, opened, err := b.open(ctx, q, granted, func(row *vault.Row) []OpenField { return stored(row, q.Fields) }, tried)
	if err != nil {
		q.giveBack(granted.row)
		return ReadResult{}, err
	}
	result := ReadResult{
		Subject: q.Subject, Collection: q.Collection, Version: granted.row.Version,
		Fields: make(map[string][]byte, len(fields)), Record: granted.index, Ground: granted.ground,
	}
	for i, f := range fields {
		value := opened[i].Plaintext
		if q.Mode == verify.ModeMask {
			if value, err = granted.mask(q.Collection, f.Field, value); err != nil {
				b.recordFailure(ctx, q, granted, err)
				return ReadResult{}, wrapf(err, "masking")
			}
		}
		result.Fields[f.Field] = value
	}
	b.observer.Served(len(fields))
	return result, nil
}

// stored are those of the named fields that row has.
func stored(row *vault.Row, names []string) []OpenField {
	fields := make([]OpenField, 0, len(names))
	for _, name := range names {
		if ciphertext := row.Field(name); ciphertext != nil {
			fields = append(fields, OpenField{Field: name, Ciphertext: ciphertext})
		}
	}
	return fields
}

// grant is an allowed access whose record is durable.
type grant struct {
	index  int64
	entry  []byte
	ref    string
	ground string
	row    *vault.Row
	policy *published
}

func (g *grant) mask(collection, field string, value []byte) ([]byte, error) {
	c, ok := g.policy.bundle.Collection(collection)
	if !ok {
		return nil, wrapf(ErrIntegrity, "collection left the policy")
	}
	return c.Mask(field, value)
}

// grant decides on q and records the decision. It returns only when the access record is durable.
func (b *Broker) grant(ctx context.Context, q *ReadRequest) (*grant, error) {
	p := b.current.Load()
	state, resolved, err := b.look(ctx, p, *q)
	if err != nil {
		return nil, err
	}
	*q = resolved
	a, refused := b.allow(*q, state)
	if refused != nil {
		return nil, b.recordDenial(ctx, p, q.Request, *refused)
	}
	if err := b.draft(ctx, a); err != nil {
		return nil, err
	}
	receipt, err := b.append(ctx, a.entry, a.state, a.sealed)
	if err != nil {
		q.giveBack(a.row)
		return nil, err
	}
	return a.granted(receipt), nil
}

// allowed is a read that may be served once it is on record.
type allowed struct {
	q        ReadRequest
	state    seen
	row      *vault.Row
	decision policy.Decision
	detail   detail

	entry  verify.Entry // by draft
	sealed []byte       // by draft: the detail
}

// allow decides on q: it may be served once it is recorded, or its denial is to be recorded.
func (b *Broker) allow(q ReadRequest, state seen) (*allowed, *denial) {
	d := b.decideRead(state.policy, q, state)
	text := newDetail(q.Request, q.Reference, q.Justification)
	row := state.subject.Rows[q.Collection]
	if d.Allow && row != nil {
		state.until = d.Until
		return &allowed{q: q, state: state, row: row, decision: d, detail: text}, nil
	}
	refusal := denial{
		decision: d, subject: q.Subject, collection: q.Collection, fields: q.Fields, purpose: q.Purpose,
		mode: q.Mode, detail: text,
	}
	if d.Allow {
		// There is nothing to read: absent looks like erased.
		refusal.decision.Reason, refusal.result = reasonNotFound, ErrNotFound
	} else if d.Reason == policy.ReasonSubjectErased {
		refusal.result = ErrNotFound
	}
	return nil, &refusal
}

// draft writes the record of a.
func (b *Broker) draft(ctx context.Context, a *allowed) error {
	q, d, p := a.q, a.decision, a.state.policy
	if !q.admit(a.row) {
		return ErrBatchTooLarge
	}
	salted, commit := a.detail.encode()
	ref, sealed, err := b.ref(ctx, q.Subject, salted)
	if err != nil {
		q.giveBack(a.row)
		return err
	}
	entry := b.newEntry(verify.KindAccess, q.Request)
	entry.Recipient, entry.SubjectRef = d.Recipient, encodeRef(ref[:])
	entry.Collection, entry.Fields, entry.Mode = q.Collection, q.Fields, q.Mode
	entry.Purpose, entry.Ground, entry.Evidence = q.Purpose, d.Ground, d.Evidence
	entry.Policy, entry.Sidecar = p.Version, b.sidecar
	entry.Decision, entry.Rules, entry.DetailCommit = verify.Allow, d.Rules, commit
	a.entry, a.sealed = entry, sealed
	return nil
}

// admit takes what q asks of row from what its batch may disclose, and reports whether there is as much.
func (q *ReadRequest) admit(row *vault.Row) bool {
	if q.batch == nil {
		return true
	}
	if q.batch.Add(row.Size(q.Fields)) <= MaxBatchBytes {
		return true
	}
	q.giveBack(row)
	return false
}

// giveBack undoes admit, for a read that is not served.
func (q *ReadRequest) giveBack(row *vault.Row) {
	if q.batch != nil {
		q.batch.Add(-row.Size(q.Fields))
	}
}

// granted is a, whose record is durable now.
func (a *allowed) granted(r ledger.Receipt) *grant {
	return &grant{
		index: r.Index, entry: r.Entry, ref: a.entry.SubjectRef, ground: a.decision.Ground, row: a.row,
		policy: a.state.policy,
	}
}

// reasonNotFound is recorded when an allowed caller asked for what is not there.
const reasonNotFound = "not-found"

// open shows the sidecar the record of g and returns what it opens of the fields that pick takes from the row.
//
// A ciphertext that was loaded before a rotation and opened after it is of a key that is gone. The row is then loaded
// again: sealed again at the same version it is served under the same record; changed, the access is recorded as
// failed and decided anew.
// tried is the outcome of the first attempt if somebody else has made it.
func (b *Broker) open(ctx context.Context, q ReadRequest, g *grant, pick func(*vault.Row) []OpenField, tried *OpenOutcome) ([]OpenField, []OpenedField, error) {
	fields := pick(g.row)
	if len(fields) == 0 {
		return nil, nil, nil
	}
	var err error
	for range attempts {
		var opened []OpenedField
		if tried != nil {
			opened, err, tried = tried.Fields, tried.Err, nil
		} else {
			opened, err = b.opener.Open(ctx, g.index, g.entry, q.Subject, q.Collection, g.row.Version, fields)
		}
		if err == nil && len(opened) != len(fields) {
			err = wrapf(ErrIntegrity, "sidecar answered another number of fields")
		}
		if err == nil {
			return fields, opened, nil
		}
		if !b.stale(err) {
			break
		}
		row, loadErr := b.rowAgain(ctx, q, g.row.Version)
		if errors.Is(loadErr, errAgain) {
			// Nothing is damaged, though the sidecar cannot tell: who watches for damage must not be woken.
			b.recordFailure(ctx, q, g, vault.ErrStale)
			return nil, nil, errAgain
		}
		if loadErr != nil {
			break
		}
		renewed := pick(row)
		if slices.EqualFunc(fields, renewed, sameCiphertext) {
			break // it is what it was: damaged
		}
		fields = renewed
	}
	b.recordFailure(ctx, q, g, err)
	return nil, nil, wrapf(err, "opening")
}

func sameCiphertext(a, b OpenField) bool {
	return a.Field == b.Field && bytes.Equal(a.Ciphertext, b.Ciphertext)
}

// rowAgain loads a record again, or returns errAgain when it is no longer at version.
func (b *Broker) rowAgain(ctx context.Context, q ReadRequest, version uint64) (*vault.Row, error) {
	s, err := b.subjectState(ctx, q.Subject, q.Collection)
	if errors.Is(err, vault.ErrNoSubject) {
		return nil, errAgain
	}
	if err != nil {
		return nil, err
	}
	row := s.Rows[q.Collection]
	if row == nil || row.Version != version {
		return nil, errAgain
	}
	return row, nil
}

// subjectState is the state of a subject for a decision.
func (b *Broker) subjectState(ctx context.Context, id uuid.UUID, collections ...string) (*vault.Subject, error) {
	var s *vault.Subject
	err := b.store.View(ctx, func(r kv.Reader) error {
		var err error
		s, err = vault.Load(r, id, collections...)
		return err
	})
	return s, err
}
