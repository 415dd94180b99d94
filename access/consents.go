package access

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// GiveConsent records that a person agreed to a purpose: the fields and recipients are those that the
// purpose has in the policy now, so that a later policy cannot widen what was agreed to.
func (b *Broker) GiveConsent(ctx context.Context, q ConsentRequest) (Consent, error) {
	return again(func() (Consent, error) {
		p := b.current.Load()
		if err := b.permit(ctx, p, q.Request, policy.ActionConsentGive, "", q.Subject); err != nil {
			return Consent{}, err
		}
		before, done, err := b.replay(ctx, q.Request, q.Idempotency)
		if err != nil {
			return Consent{}, err
		}
		s, l, err := b.consentsOf(ctx, q.Subject)
		if err != nil {
			return Consent{}, err
		}
		if done {
			if c := l.Find(before.Consent); c != nil {
				return *c, nil
			}
			return Consent{}, wrapf(ErrIntegrity, "consent of an idempotency key is not there")
		}
		if err := b.permitOn(ctx, p, q.Request, policy.ActionConsentGive, "", s); err != nil {
			return Consent{}, err
		}
		given, err := b.newConsent(ctx, p, q)
		if err != nil {
			return Consent{}, err
		}
		salted, commit := salt(q.Capture)
		ref, sealedCapture, err := b.ref(ctx, q.Subject, salted)
		if err != nil {
			return Consent{}, err
		}
		given.State = l.StateFor(q.Purpose, b.now())
		if _, err := l.Give(given, nil); err != nil {
			return Consent{}, err
		}

		entry := b.newEntry(verify.KindConsentGiven, q.Request)
		entry.SubjectRef, entry.Policy = encodeRef(ref[:]), p.Version
		entry.Consent, entry.DetailCommit = consentChange(given), commit
		_, err = b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
			given.Entry, given.GivenAt = at.Index, at.Time
			var change kv.Change
			before.keep(&change, outcome{Subject: q.Subject, Consent: given.ID, Entry: at.Index, At: at.Time})
			giving, _ := l.Give(given, sealedCapture) // the bound was checked above on the same list
			change.Merge(giving)
			s.Expect(&change)
			p.expect(&change)
			return change
		})
		return given, b.mapAppend(ctx, err)
	})
}

// newConsent fills a consent from the request and the version of the policy that the person was shown: what
// a later version adds was not agreed to.
func (b *Broker) newConsent(ctx context.Context, p *published, q ConsentRequest) (Consent, error) {
	bundle := p.bundle
	if q.Policy != 0 && q.Policy != p.Version {
		var err error
		if bundle, err = b.bundleOf(ctx, p, q.Policy); err != nil {
			return Consent{}, err
		}
	}
	terms, ok := bundle.ConsentTerms(q.Purpose)
	switch {
	case !ok:
		return Consent{}, &FieldError{"/purpose", "is not a purpose of the policy that rests on consent"}
	case !q.NotAfter.IsZero() && !q.NotAfter.After(b.now()):
		return Consent{}, &FieldError{"/not_after", "must be in the future"}
	}
	c := Consent{
		ID: uuid.New(), Subject: q.Subject, Purpose: q.Purpose, Policy: q.Policy,
		Fields: terms.Fields, Recipients: terms.Recipients, NotAfter: q.NotAfter.UTC().Truncate(time.Millisecond),
		SeparateDocument: q.SeparateDocument, Language: q.Language, NoticeSHA256: q.NoticeSHA256,
	}
	if q.NotAfter.IsZero() {
		c.NotAfter = time.Time{}
	}
	if c.Policy == 0 {
		c.Policy = p.Version
	}
	return c, nil
}

// bundleOf returns the bundle of an earlier version.
func (b *Broker) bundleOf(ctx context.Context, p *published, version int64) (*policy.Bundle, error) {
	if version < 1 || version > p.Version {
		return nil, &FieldError{"/policy", "is not a published version"}
	}
	if bundle, ok := b.earlier.Get(version); ok {
		return bundle, nil
	}
	info, raw, err := b.policyVersion(ctx, version)
	if err != nil {
		return nil, err
	}
	old := &published{PolicyVersion: info}
	if old.bundle, err = policy.Parse(raw); err != nil {
		return nil, fmt.Errorf("%w: published policy cannot be read: %w", ErrIntegrity, err)
	}
	if err := b.attestedPublication(ctx, old); err != nil {
		return nil, err
	}
	b.earlier.Add(version, old.bundle)
	return old.bundle, nil
}

// WithdrawConsent ends a consent. Reads that rest on it are denied from the moment that this commits;
// withdrawing again changes nothing.
func (b *Broker) WithdrawConsent(ctx context.Context, r Request, id uuid.UUID) (Consent, error) {
	return again(func() (Consent, error) {
		p := b.current.Load()
		if err := b.permit(ctx, p, r, policy.ActionConsentWithdraw, "", noSubject); err != nil {
			return Consent{}, err
		}
		var l *consent.List
		var subject uuid.UUID
		err := b.store.View(ctx, func(reader kv.Reader) error {
			var err error
			if subject, err = consent.Owner(reader, id); err != nil {
				return err
			}
			l, err = consent.Load(reader, subject)
			return err
		})
		if errors.Is(err, consent.ErrNotFound) {
			return Consent{}, ErrNotFound
		}
		if err != nil {
			return Consent{}, err
		}
		c := l.Find(id)
		if c == nil {
			return Consent{}, wrapf(ErrIntegrity, "consent is not in its subject's list")
		}
		if c.State == consent.Withdrawn {
			return *c, nil
		}
		ref, _, err := b.ref(ctx, subject, nil)
		if err != nil {
			return Consent{}, err
		}
		entry := b.newEntry(verify.KindConsentWithdrawn, r)
		entry.SubjectRef, entry.Policy = encodeRef(ref[:]), p.Version
		entry.Consent = consentChange(*c)
		entry.Consent.State = consent.Withdrawn
		var withdrawn Consent
		_, err = b.ledger.Append(ctx, entry, func(at ledger.Position) (change kv.Change) {
			change, withdrawn = l.Withdraw(id, at.Time, at.Index)
			p.expect(&change)
			return change
		})
		return withdrawn, b.mapAppend(ctx, err)
	})
}

// Consents returns the consents of a subject, oldest first, with their states now.
func (b *Broker) Consents(ctx context.Context, r Request, subject uuid.UUID) ([]Consent, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionConsentList, "", subject); err != nil {
		return nil, err
	}
	_, l, err := b.consentsOf(ctx, subject)
	if err != nil {
		return nil, err
	}
	return b.present(l), nil
}

func (b *Broker) consentsOf(ctx context.Context, subject uuid.UUID) (s *vault.Subject, l *consent.List, err error) {
	err = b.store.View(ctx, func(r kv.Reader) error {
		if s, err = vault.Load(r, subject); err != nil {
			return err
		}
		l, err = consent.Load(r, subject)
		return err
	})
	return s, l, absent(err)
}

// consentChange is what the ledger says of a consent.
func consentChange(c Consent) *verify.ConsentChange {
	change := &verify.ConsentChange{
		ID: c.ID.String(), Purpose: c.Purpose, Policy: c.Policy, State: c.State, Fields: c.Fields,
		Recipients: c.Recipients, SeparateDocument: c.SeparateDocument, NoticeSHA256: c.NoticeSHA256,
	}
	if !c.NotAfter.IsZero() {
		change.NotAfter = verify.FormatTime(c.NotAfter)
	}
	return change
}
