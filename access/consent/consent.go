// Package consent keeps the consents of subjects: what was agreed to, under which version of the policy,
// and what became of it. It makes the state changes; the ledger commits them with their entries.
//
// Rows hold no personal data beyond the subject's random id. How a consent was captured (form, address,
// user agent) is sealed by the sidecar under the subject's key and only its ciphertext is kept here.
// The package must never decide whether a consent covers a read; that is the policy's part.
package consent

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
)

// States of a consent: DPV 2.3 names.
const (
	Given       = "ConsentGiven"
	Renewed     = "RenewedConsentGiven" // given while an earlier consent for the same purpose was in force
	Withdrawn   = "ConsentWithdrawn"
	Expired     = "ConsentExpired"     // derived from NotAfter, never stored
	Invalidated = "ConsentInvalidated" // replaced by a renewed one
)

var (
	// ErrNotFound is returned when no consent has the id.
	ErrNotFound = errors.New("consent: no such consent")
	// ErrStale is returned, through a condition, when the consents changed between decision and commit.
	ErrStale = errors.New("consent: consents changed meanwhile")
	// ErrIntegrity is returned when a row cannot be decoded or contradicts another.
	ErrIntegrity = errors.New("consent: stored rows contradict each other")
	// ErrTooMany is returned when a subject has MaxPerSubject consents.
	ErrTooMany = errors.New("consent: too many consents of one subject")
)

// MaxPerSubject bounds the consents kept for one subject, withdrawn ones included.
const MaxPerSubject = 200

// maxRow leaves room in a row for withdrawing every consent in it.
const maxRow = kv.MaxValueSize / 2

// Consent is one consent of a subject with its present state.
type Consent struct {
	ID               uuid.UUID `json:"id"`
	Subject          uuid.UUID `json:"subject"`
	Purpose          string    `json:"purpose"`
	Policy           int64     `json:"policy"` // version of the policy under which it was given
	State            string    `json:"state"`
	Fields           []string  `json:"fields"`
	Recipients       []string  `json:"recipients"` // caller ids that may rely on it
	GivenAt          time.Time `json:"given_at"`
	NotAfter         time.Time `json:"not_after,omitzero"`    // zero: no end
	WithdrawnAt      time.Time `json:"withdrawn_at,omitzero"` // zero: not withdrawn
	SeparateDocument bool      `json:"separate_document,omitzero"`
	Language         string    `json:"language,omitzero"`
	NoticeSHA256     string    `json:"notice_sha256,omitzero"`
	Entry            int64     `json:"entry"`                    // index of consent.given
	WithdrawnEntry   int64     `json:"withdrawn_entry,omitzero"` // index of consent.withdrawn
}

// InForce reports whether the consent is given, not withdrawn and not expired at t.
func (c *Consent) InForce(t time.Time) bool { return c.StateAt(t) == Given || c.StateAt(t) == Renewed }

// StateAt returns the state at t: the stored one, or Expired when a consent in force has run out.
func (c *Consent) StateAt(t time.Time) string {
	if (c.State == Given || c.State == Renewed) && !c.NotAfter.IsZero() && !t.Before(c.NotAfter) {
		return Expired
	}
	return c.State
}

// List is the consents of one subject as one snapshot showed them.
//
// Stored as a JSON array under 'c' ‖ subject. Beside it, 'w' ‖ consent id holds the subject, and 'k' ‖
// consent id the sealed capture, when there is one.
type List struct {
	Subject  uuid.UUID
	Consents []Consent // in the order in which they were given

	raw []byte
}

func listKey(subject uuid.UUID) []byte    { return append([]byte{'c'}, subject[:]...) }
func ownerKey(consent uuid.UUID) []byte   { return append([]byte{'w'}, consent[:]...) }
func captureKey(consent uuid.UUID) []byte { return append([]byte{'k'}, consent[:]...) }

// Load reads the consents of subject; none is an empty list.
func Load(r kv.Reader, subject uuid.UUID) (*List, error) {
	values, err := r.Get(listKey(subject))
	if err != nil {
		return nil, fmt.Errorf("reading consents: %w", err)
	}
	l := &List{Subject: subject, raw: values[0]}
	if l.raw == nil {
		return l, nil
	}
	if err := json.Unmarshal(l.raw, &l.Consents, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w: list cannot be decoded", ErrIntegrity)
	}
	// A row is only kept while there is a consent, so an empty one has lost some; and consents are nobody else's.
	if len(l.Consents) == 0 || slices.ContainsFunc(l.Consents, func(c Consent) bool { return c.Subject != subject || c.ID == uuid.Nil }) {
		return nil, fmt.Errorf("%w: list is not that of the subject", ErrIntegrity)
	}
	return l, nil
}

// Owner returns the subject of a consent, or ErrNotFound.
func Owner(r kv.Reader, id uuid.UUID) (uuid.UUID, error) {
	values, err := r.Get(ownerKey(id))
	if err != nil {
		return uuid.Nil, fmt.Errorf("reading consent: %w", err)
	}
	if values[0] == nil {
		return uuid.Nil, ErrNotFound
	}
	subject, err := uuid.FromBytes(values[0])
	if err != nil {
		return uuid.Nil, fmt.Errorf("%w: owner of a consent", ErrIntegrity)
	}
	return subject, nil
}

// Expect adds to change the condition that the consents are still those that were loaded.
func (l *List) Expect(change *kv.Change) { change.Expect(listKey(l.Subject), l.raw, ErrStale) }

// Find returns the consent with id, or nil.
func (l *List) Find(id uuid.UUID) *Consent {
	for i := range l.Consents {
		if l.Consents[i].ID == id {
			return &l.Consents[i]
		}
	}
	return nil
}

// StateFor returns the state that a consent for purpose given at t has: Given, or Renewed when one is in
// force already.
func (l *List) StateFor(purpose string, t time.Time) string {
	for i := range l.Consents {
		if l.Consents[i].Purpose == purpose && l.Consents[i].InForce(t) {
			return Renewed
		}
	}
	return Given
}

// Give returns the change that adds c, whose Entry and GivenAt are set, and ends any earlier consent for
// the same purpose. sealedCapture may be nil.
func (l *List) Give(c Consent, sealedCapture []byte) (kv.Change, error) {
	if len(l.Consents) >= MaxPerSubject {
		return kv.Change{}, ErrTooMany
	}
	consents := slices.Clone(l.Consents)
	for i := range consents {
		if consents[i].Purpose == c.Purpose && (consents[i].State == Given || consents[i].State == Renewed) {
			consents[i].State = Invalidated
		}
	}
	row := encode(append(consents, c))
	if len(row) > maxRow {
		return kv.Change{}, ErrTooMany
	}
	var change kv.Change
	l.Expect(&change)
	change.Set(listKey(l.Subject), row)
	change.Expect(ownerKey(c.ID), nil, ErrStale)
	change.Set(ownerKey(c.ID), l.Subject[:])
	if sealedCapture != nil {
		change.Set(captureKey(c.ID), sealedCapture)
	}
	return change, nil
}

// Withdraw returns the change that withdraws the consent with id at t by the entry at index, and the
// consent as it is then.
func (l *List) Withdraw(id uuid.UUID, t time.Time, index int64) (kv.Change, Consent) {
	consents := slices.Clone(l.Consents)
	var withdrawn Consent
	for i := range consents {
		if consents[i].ID == id {
			consents[i].State = Withdrawn
			consents[i].WithdrawnAt = t
			consents[i].WithdrawnEntry = index
			withdrawn = consents[i]
		}
	}
	var change kv.Change
	l.Expect(&change)
	change.Set(listKey(l.Subject), encode(consents))
	return change, withdrawn
}

// Erase returns the change that deletes the consents, their owners' rows and what is sealed of how they were
// given.
func (l *List) Erase() kv.Change {
	var change kv.Change
	l.Expect(&change)
	if l.raw == nil {
		return change
	}
	change.Delete(listKey(l.Subject))
	for i := range l.Consents {
		change.Delete(ownerKey(l.Consents[i].ID))
		change.Delete(captureKey(l.Consents[i].ID))
	}
	return change
}

func encode(consents []Consent) []byte {
	b, err := json.Marshal(consents)
	if err != nil {
		panic("consent: list cannot be encoded: " + err.Error()) // plain structs: a bug here, not input
	}
	return b
}
