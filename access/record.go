package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// newEntry returns an entry of kind by the caller of r.
func (b *Broker) newEntry(kind string, r Request) verify.Entry {
	caller := r.Caller
	return verify.Entry{ID: uuid.Must(uuid.NewV7()).String(), Kind: kind, Caller: &caller, Trace: r.Trace}
}

func encodeRef(ref []byte) string { return base64.RawURLEncoding.EncodeToString(ref) }

// detail is the free text of an access record. It is sealed under the subject's key and kept outside the
// tree; the entry holds a commitment to it.
type detail struct {
	Reference     string `json:"reference,omitzero"`
	Justification string `json:"justification,omitzero"`
	Client        string `json:"client,omitzero"`
}

// newDetail returns the detail of a request. The address of a client on this very host says nothing about
// who asked and is left out, which saves sealing it.
func newDetail(r Request, reference, justification string) detail {
	d := detail{Reference: reference, Justification: justification, Client: r.Client}
	if address, err := netip.ParseAddr(r.Client); err == nil && address.IsLoopback() {
		d.Client = ""
	}
	return d
}

// encode returns salt32 ‖ JSON and the commitment to it, or nothing when there is no detail.
func (d detail) encode() (salted []byte, commit string) {
	if d == (detail{}) {
		return nil, ""
	}
	text, err := json.Marshal(&d)
	if err != nil {
		panic("access: detail cannot be encoded: " + err.Error()) // three strings: a bug here, not input
	}
	return salt(text)
}

// salt returns salt32 ‖ text and the commitment to it, or nothing when text is empty.
func salt(text []byte) (salted []byte, commit string) {
	if len(text) == 0 {
		return nil, ""
	}
	salted = make([]byte, 32, 32+len(text))
	rand.Read(salted)
	salted = append(salted, text...)
	sum := sha256.Sum256(salted)
	return salted, base64.RawURLEncoding.EncodeToString(sum[:])
}

// detailKey is the row of the sealed detail of the entry at index: 'd' ‖ index (big endian).
func detailKey(index int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{'d'}, uint64(index))
}

// seen is the state that a request was decided on.
type seen struct {
	policy   *published
	until    time.Time      // when what was decided ends; zero: it has no end
	sealed   time.Time      // when sealing the detail was begun; zero: the subject's head is a condition, or there is none
	subject  *vault.Subject // nil when the decision did not look at it
	consents *consent.List  // nil when the decision did not look at them
}

// expect makes change fail at time t when what was seen has changed or ended.
func (s seen) expect(change *kv.Change, t time.Time) {
	s.policy.expect(change)
	if !s.until.IsZero() && !t.Before(s.until) {
		change.Expect(policyHeadKey, nil, errAgain) // there is always a policy, so this never holds
	}
	if s.subject != nil {
		s.subject.Expect(change)
	}
	if s.consents != nil {
		s.consents.Expect(change)
	}
}

// expectFresh makes change fail when what it commits was begun to be sealed too long ago. It is for what is
// committed without the condition that the head of its subject did not change. A rotation drops a key only when what
// was sealed under it before has either been committed, and so was sealed again, or can no longer be.
func (b *Broker) expectFresh(change *kv.Change, begun time.Time) {
	if time.Since(begun) > b.sealedFor {
		change.Expect(policyHeadKey, nil, errAgain) // there is always a policy, so this never holds
	}
}

// append puts an access entry into the ledger on the condition that what was seen still holds.
func (b *Broker) append(ctx context.Context, entry verify.Entry, s seen, sealedDetail []byte) (ledger.Receipt, error) {
	receipt, err := b.ledger.Append(ctx, entry, b.effects(s, sealedDetail))
	return receipt, b.mapAppend(ctx, err)
}

// effects are those of an access entry: nothing but its detail, on the condition that what was seen still holds.
func (b *Broker) effects(s seen, sealedDetail []byte) func(ledger.Position) kv.Change {
	return func(at ledger.Position) kv.Change {
		var change kv.Change
		s.expect(&change, at.Time)
		if sealedDetail != nil {
			if !s.sealed.IsZero() {
				b.expectFresh(&change, s.sealed)
			}
			change.Set(detailKey(at.Index), sealedDetail)
		}
		return change
	}
}

// mapAppend gives an error of Append its meaning for a caller. When another policy was published it loads it,
// so that the next attempt decides on it.
func (b *Broker) mapAppend(ctx context.Context, err error) error {
	var unique *vault.NotUniqueError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unique):
		return &NotUniqueError{unique.Collection, unique.Field}
	case errors.Is(err, errPolicyChanged):
		if err := b.reload(ctx); err != nil {
			return err
		}
		return errAgain
	case errors.Is(err, vault.ErrStale), errors.Is(err, consent.ErrStale), errors.Is(err, errAgain):
		return errAgain
	}
	return wrapf(err, "recording")
}

// denial is a denied request on its way into the ledger.
type denial struct {
	decision   policy.Decision
	subject    uuid.UUID // zero: the request named none
	collection string
	fields     []string
	purpose    string
	mode       string
	detail     detail
	result     error // returned after recording; nil: a *DeniedError of the decision
}

// recordDenial appends the denied access and returns what the caller is told. The sidecar is asked for the
// reference whether or not the subject exists, and never our memory, so that the time taken does not tell;
// when there is none, or the sidecar cannot answer, the entry goes without it. A caller that is denied all the
// time is told to wait, since each denial is kept for good.
func (b *Broker) recordDenial(ctx context.Context, p *published, r Request, d denial) error {
	if err := b.budgets.denial(r.Caller.ID, b.now()); err != nil {
		return err
	}
	entry := b.newEntry(verify.KindAccess, r)
	entry.Collection, entry.Fields, entry.Purpose = p.known(d)
	entry.Mode = d.mode
	entry.Ground, entry.Recipient, entry.Rules = d.decision.Ground, d.decision.Recipient, d.decision.Rules
	entry.Policy = p.Version
	entry.Decision, entry.Reason = verify.Deny, d.decision.Reason

	receipt, err := b.appendDenial(ctx, p, entry, d)
	if err != nil {
		return err
	}
	if d.result != nil {
		return d.result
	}
	return &DeniedError{Reason: d.decision.Reason, Missing: d.decision.Missing, Record: receipt.Index}
}

// appendDenial appends the entry of a denial, with the subject's reference and the sealed detail where there are
// any. It does so on the condition that the subject has not changed: nothing new must be kept of a person who was
// erased meanwhile. A subject that keeps changing is not named.
func (b *Broker) appendDenial(ctx context.Context, p *published, entry verify.Entry, d denial) (ledger.Receipt, error) {
	salted, commit := d.detail.encode()
	for range attempts {
		if d.subject == uuid.Nil {
			break
		}
		about, err := b.subjectState(ctx, d.subject)
		if err != nil && !errors.Is(err, vault.ErrNoSubject) {
			break // it is for a read to say so; the denial is on record in any case
		}
		begun := time.Now()
		ref, sealed, err := b.opener.Prepare(ctx, d.subject, salted)
		if err != nil || about.Head.Erased {
			break
		}
		named := entry
		named.SubjectRef = encodeRef(ref)
		if sealed != nil {
			named.DetailCommit = commit
		}
		receipt, err := b.append(ctx, named, seen{policy: p, subject: about, sealed: begun}, sealed)
		if !errors.Is(err, errAgain) || b.current.Load() != p {
			return receipt, err
		}
	}
	return b.append(ctx, entry, seen{policy: p}, nil)
}

// recordFailure appends that the allowed access of g was not served. It outlives the request. As in a denial, a
// subject that was erased meanwhile, or that keeps changing, is not named.
func (b *Broker) recordFailure(ctx context.Context, q ReadRequest, g *grant, cause error) {
	code := b.failureCode(cause)
	b.observer.Failed(code)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	entry := b.newEntry(verify.KindAccessFailed, q.Request)
	entry.Of, entry.Reason = &g.index, code
	err := errAgain
	for try := 0; try < attempts && errors.Is(err, errAgain); try++ {
		var s *vault.Subject
		if s, err = b.subjectState(ctx, q.Subject); err != nil {
			err = errAgain
			break
		}
		named := entry
		named.SubjectRef = g.ref
		_, err = b.ledger.Append(ctx, named, func(ledger.Position) (change kv.Change) {
			s.Expect(&change)
			return change
		})
		err = b.mapAppend(ctx, err)
	}
	if errors.Is(err, errAgain) {
		_, err = b.ledger.Append(ctx, entry, nil)
	}
	if err != nil {
		b.log.Error("access.failed could not be recorded", "of", g.index, "reason", code)
	}
}

// known keeps the names that the policy knows. Any other text in a denied request comes from the caller and
// could be anything; the ledger must hold no personal data.
func (p *published) known(d denial) (collection string, fields []string, purpose string) {
	if p.bundle.Ground(d.purpose) != "" {
		purpose = d.purpose
	}
	c, ok := p.bundle.Collection(d.collection)
	if !ok {
		return "", nil, purpose
	}
	for _, name := range d.fields {
		if _, ok := c.Field(name); ok {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	return d.collection, slices.Compact(fields), purpose
}
