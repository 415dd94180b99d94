package access

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault/kv"
)

// errPolicyChanged is returned, through a condition, when another policy was published meanwhile.
var errPolicyChanged = errors.New("access: policy changed meanwhile")

// published is a policy in force.
//
// Rows: 'p' 'h' holds the newest PolicyVersion as JSON; 'p' 'i' ‖ version (big endian) each PolicyVersion,
// and 'p' 'b' ‖ version the bytes of its bundle, which are never changed.
type published struct {
	PolicyVersion
	bundle *policy.Bundle
	raw    []byte // the row 'p' 'h'
}

var policyHeadKey = []byte("ph")

func policyInfoKey(version int64) []byte {
	return binary.BigEndian.AppendUint64([]byte("pi"), uint64(version))
}

func policyBundleKey(version int64) []byte {
	return binary.BigEndian.AppendUint64([]byte("pb"), uint64(version))
}

// expect makes change fail when another policy was published.
func (p *published) expect(change *kv.Change) { change.Expect(policyHeadKey, p.raw, errPolicyChanged) }

// reload makes the newest published policy the one that decides.
func (b *Broker) reload(ctx context.Context) error {
	p, err := b.loadPolicy(ctx, b.current.Load())
	if err != nil {
		return err
	}
	b.adopt(p)
	return nil
}

// adopt makes p the policy that decides, unless a newer one does already.
func (b *Broker) adopt(p *published) {
	for {
		now := b.current.Load()
		if now != nil && now.Version >= p.Version || b.current.CompareAndSwap(now, p) {
			return
		}
	}
}

// loadPolicy reads the newest published policy; known is returned when it is that. The rows are believed only
// as far as the ledger bears them out: whoever can write into the store must not be able to decide.
func (b *Broker) loadPolicy(ctx context.Context, known *published) (*published, error) {
	p := new(published)
	var raw []byte
	err := b.store.View(ctx, func(r kv.Reader) error {
		head, err := r.Get(policyHeadKey)
		if err != nil {
			return err
		}
		if head[0] == nil {
			return wrapf(ErrIntegrity, "no policy was published")
		}
		if p.PolicyVersion, err = parsePolicyVersion(head[0]); err != nil {
			return err
		}
		p.raw = head[0]
		if known != nil && bytes.Equal(known.raw, p.raw) {
			return nil
		}
		bundle, err := r.Get(policyBundleKey(p.Version))
		if err != nil {
			return err
		}
		raw = bundle[0]
		return nil
	})
	switch {
	case err != nil:
		return nil, wrapf(err, "loading the policy")
	case raw == nil:
		return known, nil
	}
	if p.bundle, err = policy.Parse(raw); err != nil {
		return nil, fmt.Errorf("%w: published policy cannot be read: %w", ErrIntegrity, err)
	}
	return p, b.attested(ctx, p)
}

// attested checks that the ledger holds the publication of p, and that its latest entries rest on no newer one.
func (b *Broker) attested(ctx context.Context, p *published) error {
	if err := b.attestedPublication(ctx, p); err != nil {
		return err
	}
	size := b.ledger.Checkpoint().Size
	for i := max(p.Entry+1, size-recentEntries); i < size; i++ {
		raw, err := b.ledger.Entry(ctx, i)
		if err != nil {
			return wrapf(err, "reading the latest entries")
		}
		if e, err := verify.ParseEntry(raw); err != nil || e.Policy > p.Version {
			return wrapf(ErrIntegrity, "the ledger rests on a newer policy than the store holds")
		}
	}
	return nil
}

// attestedPublication checks that the ledger holds the publication of p.
func (b *Broker) attestedPublication(ctx context.Context, p *published) error {
	cp := b.ledger.Checkpoint()
	entry, err := b.ledger.Entry(ctx, p.Entry)
	if err != nil {
		return wrapf(err, "reading the publication of the policy")
	}
	proof, err := b.ledger.ProveInclusion(ctx, p.Entry, cp.Size)
	if err != nil {
		return wrapf(err, "proving the publication of the policy")
	}
	if err := verify.CheckInclusion(entry, p.Entry, proof, cp.Checkpoint); err != nil {
		return fmt.Errorf("%w: publication of the policy: %w", ErrIntegrity, err)
	}
	e, err := verify.ParseEntry(entry)
	if err != nil || e.Kind != verify.KindPolicyPublished || e.Bundle == nil || e.Bundle.Version != p.Version ||
		e.Bundle.SHA256 != p.bundle.SHA256() || p.SHA256 != e.Bundle.SHA256 {
		return wrapf(ErrIntegrity, "the policy is not the one that was published")
	}
	return nil
}

// recentEntries is how many of the latest entries are searched for a newer policy.
const recentEntries = 256

func parsePolicyVersion(b []byte) (PolicyVersion, error) {
	var v PolicyVersion
	if err := json.Unmarshal(b, &v, json.RejectUnknownMembers(true)); err != nil {
		return PolicyVersion{}, wrapf(ErrIntegrity, "row of a policy version")
	}
	return v, nil
}

// systemRequest is by nobody but ourselves.
var systemRequest = Request{Caller: verify.Caller{ID: "system", Kind: "system", Role: "system", Authn: "local"}}

// Bootstrap publishes the first policy of a new instance and returns the broker that it governs. It fails
// with ErrInvalid when a policy was already published.
func Bootstrap(ctx context.Context, c Config, raw []byte) (*Broker, error) {
	b, err := newBroker(c)
	if err != nil {
		return nil, err
	}
	p, err := b.publish(ctx, systemRequest, nil, raw)
	if err != nil {
		return nil, wrapf(err, "publishing the first policy")
	}
	b.adopt(p)
	return b, nil
}

// PublishPolicy makes raw the policy in force, as a new version. Publishing the bytes that are in force
// already returns their version. policy.ErrBundle tells what is wrong with a bundle.
func (b *Broker) PublishPolicy(ctx context.Context, r Request, raw []byte) (PolicyVersion, error) {
	return again(func() (PolicyVersion, error) {
		if err := b.reload(ctx); err != nil { // another process may have published
			return PolicyVersion{}, err
		}
		before := b.current.Load()
		if err := b.permit(ctx, before, r, policy.ActionPolicyPublish, "", noSubject); err != nil {
			return PolicyVersion{}, err
		}
		p, err := b.publish(ctx, r, before, raw)
		if err != nil {
			return PolicyVersion{}, err
		}
		b.adopt(p)
		return p.PolicyVersion, nil
	})
}

// publish appends policy.published with the rows of the new version. before is nil for the first one.
func (b *Broker) publish(ctx context.Context, r Request, before *published, raw []byte) (*published, error) {
	bundle, err := policy.Parse(raw)
	if err != nil {
		return nil, err
	}
	p := &published{bundle: bundle}
	p.Version, p.SHA256, p.TextSHA256 = 1, bundle.SHA256(), bundle.TextSHA256()
	if before != nil {
		if before.SHA256 == p.SHA256 {
			return before, nil
		}
		p.Version = before.Version + 1
	}
	entry := b.newEntry(verify.KindPolicyPublished, r)
	entry.Bundle = &verify.BundleChange{Version: p.Version, SHA256: p.SHA256, TextSHA256: p.TextSHA256}
	_, err = b.ledger.Append(ctx, entry, func(at ledger.Position) kv.Change {
		p.Entry, p.Published = at.Index, at.Time
		row, err := json.Marshal(&p.PolicyVersion)
		if err != nil {
			panic("access: policy version cannot be encoded: " + err.Error()) // plain struct
		}
		p.raw = row
		var change kv.Change
		if before == nil {
			change.Expect(policyHeadKey, nil, wrapf(ErrInvalid, "a policy was already published"))
		} else {
			before.expect(&change)
		}
		change.Set(policyHeadKey, row)
		change.Set(policyInfoKey(p.Version), row)
		change.Set(policyBundleKey(p.Version), bytes.Clone(raw))
		return change
	})
	if err := b.mapAppend(ctx, err); err != nil {
		return nil, err
	}
	return p, nil
}

// Policy returns the policy in force and the bytes of its bundle.
func (b *Broker) Policy(ctx context.Context, r Request) (PolicyVersion, []byte, error) {
	p := b.current.Load()
	if err := b.permit(ctx, p, r, policy.ActionPolicyRead, "", noSubject); err != nil {
		return PolicyVersion{}, nil, err
	}
	return b.policyVersion(ctx, p.Version)
}

// PolicyVersion returns one published policy and the bytes of its bundle.
func (b *Broker) PolicyVersion(ctx context.Context, r Request, version int64) (PolicyVersion, []byte, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionPolicyRead, "", noSubject); err != nil {
		return PolicyVersion{}, nil, err
	}
	return b.policyVersion(ctx, version)
}

func (b *Broker) policyVersion(ctx context.Context, version int64) (v PolicyVersion, raw []byte, err error) {
	err = b.store.View(ctx, func(r kv.Reader) error {
		rows, err := r.Get(policyInfoKey(version), policyBundleKey(version))
		if err != nil {
			return err
		}
		if rows[0] == nil || rows[1] == nil {
			return ErrNotFound
		}
		raw = rows[1]
		v, err = parsePolicyVersion(rows[0])
		return err
	})
	return v, raw, err
}

// PolicyVersions returns all published policies, oldest first.
func (b *Broker) PolicyVersions(ctx context.Context, r Request) ([]PolicyVersion, error) {
	if err := b.permit(ctx, b.current.Load(), r, policy.ActionPolicyRead, "", noSubject); err != nil {
		return nil, err
	}
	var versions []PolicyVersion
	err := b.store.View(ctx, func(r kv.Reader) error {
		versions = nil
		var after []byte
		for {
			pairs, err := r.Scan([]byte("pi"), after, 100)
			if err != nil {
				return err
			}
			for _, pair := range pairs {
				v, err := parsePolicyVersion(pair.Value)
				if err != nil {
					return err
				}
				versions = append(versions, v)
				after = pair.Key
			}
			if len(pairs) < 100 {
				return nil
			}
		}
	})
	return versions, err
}

// CallerOf returns kind and role of a caller that the policy in force knows, for authentication.
func (b *Broker) CallerOf(id string) (verify.Caller, bool) {
	c, ok := b.current.Load().bundle.Caller(id)
	return verify.Caller{ID: c.ID, Kind: c.Kind, Role: c.Role}, ok
}

// Operator returns the controller that the policy in force names.
func (b *Broker) Operator() policy.Operator { return b.current.Load().bundle.Operator() }
