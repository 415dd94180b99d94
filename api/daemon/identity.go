package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault/kv"
)

// identity is what an instance is for good: its name and its ledger key, wrapped by the sidecar.
//
// Stored as JSON under "mi". Beside it, "mg" holds the newest generation of the sidecar's key store that
// was seen (8 bytes, big endian), so that an older copy of the key store is refused.
type identity struct {
	Instance  string `json:"instance"`
	Origin    string `json:"origin"`
	Verifier  string `json:"verifier"`  // note verifier key of the ledger
	Protected []byte `json:"protected"` // note signer key, wrapped by the sidecar
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
	var raw []byte
	err = store.View(ctx, func(r kv.Reader) error {
		rows, err := r.Get(identityKey)
		if err == nil {
			raw = rows[0]
		}
		return err
	})
	if err != nil {
		return identity{}, fmt.Errorf("reading the identity: %w", err)
	}
	if raw == nil {
		return identity{}, errNotInitialised
	}
	if err := json.Unmarshal(raw, &id, json.RejectUnknownMembers(true)); err != nil {
		return identity{}, fmt.Errorf("%w: identity cannot be decoded", kv.ErrIntegrity)
	}
	return id, nil
}

// createIdentity makes the ledger key, has it wrapped and stores the identity.
func createIdentity(ctx context.Context, store kv.Store, sidecar *client.Client, c Config) (identity, error) {
	origin := c.origin()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return identity{}, fmt.Errorf("making the ledger key: %w", err)
	}
	secret := []byte(skey)
	defer clear(secret)
	protected, err := sidecar.Protect(ctx, ledgerKeyLabel, secret)
	if err != nil {
		return identity{}, fmt.Errorf("having the ledger key wrapped: %w", err)
	}
	id := identity{Instance: c.Instance, Origin: origin, Verifier: vkey, Protected: protected}
	raw, err := json.Marshal(&id)
	if err != nil {
		return identity{}, fmt.Errorf("encoding the identity: %w", err)
	}
	return id, store.Update(ctx, func(w kv.Writer) error {
		w.Set(identityKey, raw)
		return nil
	})
}

// ledgerKey has the ledger key unwrapped by the sidecar.
func (id identity) ledgerKey(ctx context.Context, sidecar *client.Client) (note.Signer, note.Verifier, error) {
	secret, err := sidecar.Unprotect(ctx, ledgerKeyLabel, id.Protected)
	if err != nil {
		return nil, nil, fmt.Errorf("having the ledger key unwrapped: %w", err)
	}
	defer clear(secret)
	signer, err := note.NewSigner(string(secret))
	if err != nil {
		return nil, nil, errors.New("the ledger key is not a signer key")
	}
	verifier, err := note.NewVerifier(id.Verifier)
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
