package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault/kv"
)

// identity is what an instance is: its name, which is for good, and its ledger key, wrapped by the sidecar. While a
// new ledger key overlaps with those before, they are among Older and sign too.
//
// Stored as JSON under "mi". Beside it, "mg" holds the newest generation of the sidecar's key store that
// was seen (8 bytes, big endian), so that an older copy of the key store is refused.
type identity struct {
	Instance  string `json:"instance"`
	Origin    string `json:"origin"`
	Verifier  string `json:"verifier"`  // note verifier key of the ledger
	Protected []byte `json:"protected"` // note signer key, wrapped by the sidecar

	Made  time.Time   `json:"made,omitzero"`   // of the key; zero: with the instance
	Job   string      `json:"job,omitzero"`    // the rotation that made the key
	Older []ledgerKey `json:"older,omitempty"` // the newest first

	raw []byte // the row
}

// ledgerKey is a ledger key that a newer one replaces.
type ledgerKey struct {
	Verifier  string    `json:"verifier"`
	Protected []byte    `json:"protected"`
	Retire    time.Time `json:"retire"` // when it signs no more
}

var (
	identityKey   = []byte("mi")
	generationKey = []byte("mg")
)

// errNotInitialised is returned when the store holds no identity.
var errNotInitialised = errors.New("the instance is not initialised: run pdvault init first")

// ledgerKeyLabel is the associated data under which the sidecar wraps the ledger key.
const ledgerKeyLabel = "ledger-key"

func loadIdentity(ctx context.Context, store kv.Store) (id identity, err error) {
	err = store.View(ctx, func(r kv.Reader) error {
		id, err = readIdentity(r)
		return err
	})
	return id, err
}

func readIdentity(r kv.Reader) (identity, error) {
	rows, err := r.Get(identityKey)
	if err != nil {
		return identity{}, fmt.Errorf("reading the identity: %w", err)
	}
	if rows[0] == nil {
		return identity{}, errNotInitialised
	}
	return parseIdentity(rows[0])
}

func parseIdentity(raw []byte) (id identity, err error) {
	if err := json.Unmarshal(raw, &id, json.RejectUnknownMembers(true)); err != nil {
		return identity{}, fmt.Errorf("%w: identity cannot be decoded", kv.ErrIntegrity)
	}
	if id.Instance == "" || id.Origin == "" || id.Verifier == "" || len(id.Protected) == 0 {
		return identity{}, fmt.Errorf("%w: identity is incomplete", kv.ErrIntegrity)
	}
	id.raw = raw
	return id, nil
}

// keys are all ledger keys that sign, unwrapped by the sidecar, the newest first.
func (id identity) keys(ctx context.Context, sidecar protector) ([]ledger.Key, error) {
	signer, verifier, err := id.ledgerKey(ctx, sidecar)
	if err != nil {
		return nil, err
	}
	older, err := id.olderKeys(ctx, sidecar)
	if err != nil {
		return nil, err
	}
	return append([]ledger.Key{{Signer: signer, Verifier: verifier}}, older...), nil
}

// createIdentity makes the ledger key, has it wrapped and stores the identity.
func createIdentity(ctx context.Context, store kv.Store, sidecar *client.Client, c Config) (identity, error) {
	origin := c.origin()
	vkey, protected, err := newLedgerKey(ctx, sidecar, origin)
	if err != nil {
		return identity{}, err
	}
	id := identity{Instance: c.Instance, Origin: origin, Verifier: vkey, Protected: protected}
	if id.raw, err = id.encode(); err != nil {
		return identity{}, err
	}
	return id, store.Update(ctx, func(w kv.Writer) error {
		w.Set(identityKey, id.raw)
		return nil
	})
}

// verifiers are the verifier keys of the ledger, the newest first.
func (id identity) verifiers() []string {
	keys := []string{id.Verifier}
	for _, k := range id.Older {
		keys = append(keys, k.Verifier)
	}
	return keys
}

func (id identity) encode() ([]byte, error) {
	raw, err := json.Marshal(&id)
	if err != nil {
		return nil, fmt.Errorf("encoding the identity: %w", err)
	}
	return raw, nil
}

// newLedgerKey makes a ledger key and has it wrapped.
func newLedgerKey(ctx context.Context, sidecar protector, origin string) (verifier string, protected []byte, err error) {
	skey, verifier, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", nil, fmt.Errorf("making the ledger key: %w", err)
	}
	secret := []byte(skey)
	defer clear(secret)
	if protected, err = sidecar.Protect(ctx, ledgerKeyLabel, secret); err != nil {
		return "", nil, fmt.Errorf("having the ledger key wrapped: %w", err)
	}
	return verifier, protected, nil
}

// protector wraps and unwraps secrets of ours.
type protector interface {
	Protect(ctx context.Context, label string, secret []byte) ([]byte, error)
	Unprotect(ctx context.Context, label string, protected []byte) ([]byte, error)
}

var _ protector = (*client.Client)(nil)

// ledgerKey has the newest ledger key unwrapped by the sidecar.
func (id identity) ledgerKey(ctx context.Context, sidecar protector) (note.Signer, note.Verifier, error) {
	return openLedgerKey(ctx, sidecar, id.Verifier, id.Protected)
}

// olderKeys has the older ledger keys, which still sign, unwrapped by the sidecar.
func (id identity) olderKeys(ctx context.Context, sidecar protector) ([]ledger.Key, error) {
	var keys []ledger.Key
	for _, k := range id.Older {
		signer, verifier, err := openLedgerKey(ctx, sidecar, k.Verifier, k.Protected)
		if err != nil {
			return nil, err
		}
		keys = append(keys, ledger.Key{Signer: signer, Verifier: verifier})
	}
	return keys, nil
}

func openLedgerKey(ctx context.Context, sidecar protector, vkey string, protected []byte) (note.Signer, note.Verifier, error) {
	secret, err := sidecar.Unprotect(ctx, ledgerKeyLabel, protected)
	if err != nil {
		return nil, nil, fmt.Errorf("having the ledger key unwrapped: %w", err)
	}
	defer clear(secret)
	signer, err := note.NewSigner(string(secret))
	if err != nil {
		return nil, nil, errors.New("the ledger key is not a signer key")
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, nil, fmt.Errorf("the ledger's verifier key: %w", err)
	}
	return signer, verifier, nil
}

func loadGeneration(ctx context.Context, store kv.Store) (generation uint64, err error) {
	err = store.View(ctx, func(r kv.Reader) error {
		rows, err := r.Get(generationKey)
		if err != nil || rows[0] == nil {
			return err // none was seen yet
		}
		generation, err = decodeGeneration(rows[0])
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading the key store's generation: %w", err)
	}
	return generation, nil
}

func decodeGeneration(row []byte) (uint64, error) {
	if len(row) != 8 {
		return 0, fmt.Errorf("%w: generation of the key store", kv.ErrIntegrity)
	}
	return binary.BigEndian.Uint64(row), nil
}

// saveGeneration keeps generation unless a newer one is kept already.
func saveGeneration(ctx context.Context, store kv.Store, generation uint64) error {
	err := store.Update(kv.UseReserve(ctx), func(w kv.Writer) error {
		rows, err := w.Get(generationKey)
		if err != nil {
			return err
		}
		if rows[0] != nil {
			if kept, err := decodeGeneration(rows[0]); err != nil || kept >= generation {
				return err
			}
		}
		w.Set(generationKey, binary.BigEndian.AppendUint64(nil, generation))
		return nil
	})
	if err != nil {
		return fmt.Errorf("keeping the key store's generation: %w", err)
	}
	return nil
}
