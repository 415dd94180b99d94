package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// OpenField is one field to open. It is an alias of an unnamed struct so that the sidecar's client
// satisfies Opener by shape.
type OpenField = struct {
	Field      string
	Ciphertext []byte
	Expect     []byte // mode verify: the JSON value to compare with; nothing is revealed then
}

// OpenedField is one opened field.
type OpenedField = struct {
	Plaintext []byte
	Match     bool // mode verify
}

// OpenCall is one record to open, as Opener.Open has it.
type OpenCall = struct {
	Index      int64
	Entry      []byte
	Subject    uuid.UUID
	Collection string
	Version    uint64
	Fields     []OpenField
}

// OpenOutcome is what became of an OpenCall.
type OpenOutcome = struct {
	Fields []OpenedField
	Err    error
}

// Destroyed is what became of a subject's key.
type Destroyed = struct {
	Generation uint64    // of the key store
	KEKVersion uint64    // that wrapped the bundle
	DeadBy     time.Time // by which the epoch is due that kills older copies; zero: none is planned
	Already    bool      // it was destroyed before
}

// Opener is what the broker needs of the sidecar. Open shows the sidecar the proof that the entry at index
// is in the ledger; the sidecar opens nothing without it.
type Opener interface {
	// Prepare returns the reference of subject in the ledger and, when detail is not empty, detail sealed
	// under the subject's key.
	Prepare(ctx context.Context, subject uuid.UUID, detail []byte) (ref, sealedDetail []byte, err error)
	// IndexTokens returns the blind-index tokens of a normalised value, one under each index key in use.
	IndexTokens(ctx context.Context, collection, field string, normaliser uint32, value string) ([]vault.IndexToken, error)
	// Open opens fields of one record of subject on the strength of the access entry at index.
	Open(ctx context.Context, index int64, entry []byte, subject uuid.UUID, collection string, version uint64, fields []OpenField) ([]OpenedField, error)
	// OpenAll is Open for several records, and has one outcome for each.
	OpenAll(ctx context.Context, calls []OpenCall) []OpenOutcome
	// Destroy destroys the key of subject on the strength of the subject.erased entry at index. Doing so again is
	// no error.
	Destroy(ctx context.Context, index int64, entry []byte, subject uuid.UUID) (Destroyed, error)
}

// Observer is told what the broker did, for metrics. Nothing it gets names a person.
type Observer interface {
	Decided(action, ground, decision, reason string)
	Served(fields int)
	Failed(reason string)
}

// Config is what a Broker is made of.
type Config struct {
	Store   kv.Store       // required
	Ledger  *ledger.Ledger // required: there is no unaudited mode
	Vault   *vault.Vault   // required
	Opener  Opener         // required
	Sidecar string         // required: id of the sidecar that may serve this broker's reads
	// FailureCode names why an open failed, for the access.failed entry; vault.ErrStale says that the record was
	// changed meanwhile. Required.
	FailureCode func(error) string
	// Stale reports whether an error of Opener or Vault says that a ciphertext does not open: it may have been
	// sealed again under a newer key meanwhile. Required.
	Stale    func(error) bool
	Keys     Keys                     // nil: what concerns the keys themselves is ErrUnavailable
	KeyAges  map[string]time.Duration // by kind of key, the age at which it is to be rotated. Nil: DefaultKeyAges
	Observer Observer                 // nil: none
	Now      func() time.Time         // nil: time.Now
	Logger   *slog.Logger             // nil: none
	// RefCache is the number of subject references kept in memory; 0 means 65,536.
	RefCache int
	// SealedFor bounds the time between sealing and committing where a rotation of keys would not notice the commit
	// otherwise: what takes longer is sealed again. 0 means 2 s.
	SealedFor time.Duration
}

// Broker decides, records and opens. All its methods may be called from any goroutine.
type Broker struct {
	store       kv.Store
	ledger      *ledger.Ledger
	vault       *vault.Vault
	opener      Opener
	sidecar     string
	failureCode func(error) string
	stale       func(error) bool
	keys        Keys
	keyAges     map[string]time.Duration
	observer    Observer
	now         func() time.Time
	log         *slog.Logger

	refs      *lru.Cache[uuid.UUID, [32]byte]   // references of subjects; never stored beside their ids on disk
	earlier   *lru.Cache[int64, *policy.Bundle] // earlier versions of the policy that consents were given under
	sealedFor time.Duration
	current   atomic.Pointer[published] // the policy that decides; replaced by publish and reload
	budgets   budgets
	load      atomic.Int64  // requests that were begun, so that a rotation can make room for them
	rotate    chan struct{} // a rotation was begun, so that the rotator need not find out by looking
}

// New returns a broker over a store that has a published policy; see Bootstrap.
func New(ctx context.Context, c Config) (*Broker, error) {
	b, err := newBroker(c)
	if err != nil {
		return nil, err
	}
	if err := b.reload(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

func newBroker(c Config) (*Broker, error) {
	switch {
	case c.Store == nil, c.Ledger == nil, c.Vault == nil, c.Opener == nil:
		return nil, errors.New("access: store, ledger, vault and opener are required")
	case c.Sidecar == "":
		return nil, errors.New("access: the id of the sidecar is required")
	case c.FailureCode == nil, c.Stale == nil:
		return nil, errors.New("access: FailureCode and Stale are required")
	}
	if c.KeyAges == nil {
		c.KeyAges = DefaultKeyAges()
	}
	if c.Observer == nil {
		c.Observer = unobserved{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.RefCache == 0 {
		c.RefCache = 1 << 16
	}
	if c.SealedFor == 0 {
		c.SealedFor = 2 * time.Second
	}
	refs, err := lru.New[uuid.UUID, [32]byte](c.RefCache)
	if err != nil {
		return nil, fmt.Errorf("access: reference cache: %w", err)
	}
	earlier, err := lru.New[int64, *policy.Bundle](8)
	if err != nil {
		return nil, fmt.Errorf("access: policy cache: %w", err)
	}
	return &Broker{
		earlier: earlier, rotate: make(chan struct{}, 1),
		store: c.Store, ledger: c.Ledger, vault: c.Vault, opener: c.Opener, sidecar: c.Sidecar,
		failureCode: c.FailureCode, stale: c.Stale, sealedFor: c.SealedFor, keys: c.Keys, keyAges: c.KeyAges, observer: c.Observer, now: c.Now, log: c.Logger, refs: refs,
	}, nil
}

type unobserved struct{}

func (unobserved) Decided(_, _, _, _ string) {}
func (unobserved) Served(int)                {}
func (unobserved) Failed(string)             {}

// attempts bounds how often a request is decided again because the state changed before its commit.
const attempts = 5

// errAgain is returned inside the broker when a condition of an append no longer held.
var errAgain = errors.New("access: state changed meanwhile")

// again runs once until it does not end in errAgain.
func again[T any](once func() (T, error)) (T, error) {
	for range attempts {
		result, err := once()
		if !errors.Is(err, errAgain) {
			return result, err
		}
	}
	var zero T
	return zero, ErrBusy
}

// decide asks the current policy. The caller fills what depends on the request.
func (b *Broker) decide(p *published, r Request, q policy.Request) policy.Decision {
	q.Caller, q.Authn = r.Caller.ID, r.Caller.Authn
	q.PolicyVersion, q.PolicyEntry = p.Version, p.Entry
	if q.Now.IsZero() {
		q.Now = b.now()
	}
	d := p.bundle.Decide(q)
	decision := "deny"
	if d.Allow {
		decision = "allow"
	}
	b.observer.Decided(q.Action, d.Ground, decision, d.Reason)
	return d
}

// permit decides an action without a purpose; a denial is recorded and returned.
func (b *Broker) permit(ctx context.Context, p *published, r Request, action, collection string, subject uuid.UUID) error {
	d := b.decide(p, r, policy.Request{Action: action, Collection: collection})
	if d.Allow {
		return nil
	}
	return b.recordDenial(ctx, p, r, denial{decision: d, subject: subject, collection: collection, mode: action})
}

// permitOn decides again once the subject is known. What depends on the caller alone was decided before by
// permit, so a caller without rights has learned nothing about the subject.
func (b *Broker) permitOn(ctx context.Context, p *published, r Request, action, collection string, s *vault.Subject) error {
	d := b.decide(p, r, policy.Request{
		Action: action, Collection: collection,
		Subject: policy.Subject{Exists: s.Exists(), Restricted: s.Head.Restricted, Erased: s.Head.Erased},
	})
	if d.Allow {
		return nil
	}
	return b.recordDenial(ctx, p, r, denial{decision: d, subject: s.ID, collection: collection, mode: action})
}

// ref returns the reference of subject in the ledger, and seals detail when there is one.
func (b *Broker) ref(ctx context.Context, subject uuid.UUID, detail []byte) (ref [32]byte, sealed []byte, err error) {
	if len(detail) == 0 {
		if ref, ok := b.refs.Get(subject); ok {
			return ref, nil, nil
		}
	}
	raw, sealed, err := b.opener.Prepare(ctx, subject, detail)
	if err != nil {
		return ref, nil, fmt.Errorf("preparing the access record: %w", err)
	}
	return b.remember(subject, raw), sealed, nil
}

func (b *Broker) remember(subject uuid.UUID, raw []byte) (ref [32]byte) {
	copy(ref[:], raw)
	b.refs.Add(subject, ref)
	return ref
}

// wrapf wraps err with what was being done.
func wrapf(err error, doing string) error { return fmt.Errorf("%s: %w", doing, err) }
