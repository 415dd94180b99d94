package keyring

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
)

// identity is who the sidecar is: its id, and the keys that it signs with as a witness. Serialised, as the KEK wraps
// it, it is
//
//	offset  size  what
//	0       1     format, 0x02
//	1       16    sidecar id
//	17      1     number n of keys, never 0
//	18      52·n  the keys, the newest first, each:
//	                4   version, big endian, never 0
//	                8   Unix time in seconds at which it was made, big endian
//	                8   Unix time in seconds from which it does not sign any more, big endian; 0 for the newest, and
//	                    for it alone
//	                32  Ed25519 seed
//
// Example, the first key: 02 | 16 bytes id | 01 | 00000001 000000006553f100 0000000000000000 | 32 bytes seed
//
// A key that was replaced goes on signing beside the newer ones for Config.WitnessOverlap, so that who checks
// cosignatures has that long to learn the new one. Then it is dropped.
type identity struct {
	sidecar uuid.UUID
	keys    []witnessKey
}

type witnessKey struct {
	version uint32
	made    int64 // Unix times in seconds
	retire  int64
	private ed25519.PrivateKey // guarded by Keyring.mu: it is overwritten when it is dropped
	public  ed25519.PublicKey  // a copy, which stays
}

const (
	identityFormat  = 0x02
	identityHeader  = 18
	witnessKeyBytes = 4 + 8 + 8 + ed25519.SeedSize
	maxWitnessKeys  = 16

	defaultWitnessOverlap = 14 * 24 * time.Hour
)

func newIdentity(now time.Time) *identity {
	return &identity{sidecar: uuid.New(), keys: []witnessKey{newWitnessKey(1, now)}}
}

func newWitnessKey(version uint32, now time.Time) witnessKey {
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // never fails
	defer clear(seed)
	return witnessKeyOf(version, now.Unix(), 0, seed)
}

// witnessKeyOf keeps nothing of seed.
func witnessKeyOf(version uint32, made, retire int64, seed []byte) witnessKey {
	private := ed25519.NewKeyFromSeed(seed)
	return witnessKey{version, made, retire, private, slices.Clone(private.Public().(ed25519.PublicKey))}
}

// encode returns the identity as the KEK wraps it. The caller wipes it.
func (id *identity) encode() Secret {
	b := make(Secret, 0, identityHeader+len(id.keys)*witnessKeyBytes)
	b = append(b, identityFormat)
	b = append(b, id.sidecar[:]...)
	b = append(b, byte(len(id.keys)))
	for _, w := range id.keys {
		b = binary.BigEndian.AppendUint32(b, w.version)
		b = binary.BigEndian.AppendUint64(b, uint64(w.made))
		b = binary.BigEndian.AppendUint64(b, uint64(w.retire))
		b = append(b, w.private[:ed25519.SeedSize]...)
	}
	return b
}

// parseIdentity is the inverse of encode. It keeps nothing of b.
func parseIdentity(b []byte) (*identity, error) {
	if len(b) < identityHeader || b[0] != identityFormat {
		return nil, fmt.Errorf("identity of an unknown format: %w", keys.ErrTampered)
	}
	n := int(b[identityHeader-1])
	if n == 0 || n > maxWitnessKeys || len(b) != identityHeader+n*witnessKeyBytes {
		return nil, fmt.Errorf("identity with a wrong number of keys: %w", keys.ErrTampered)
	}
	id := &identity{sidecar: uuid.UUID(b[1:17]), keys: make([]witnessKey, n)}
	b = b[identityHeader:]
	for i := range id.keys {
		version := binary.BigEndian.Uint32(b)
		made, retire := int64(binary.BigEndian.Uint64(b[4:])), int64(binary.BigEndian.Uint64(b[12:]))
		if version == 0 || i > 0 && version >= id.keys[i-1].version || (i == 0) != (retire == 0) {
			id.wipe()
			return nil, fmt.Errorf("identity with keys out of order: %w", keys.ErrTampered)
		}
		id.keys[i] = witnessKeyOf(version, made, retire, b[20:witnessKeyBytes])
		b = b[witnessKeyBytes:]
	}
	return id, nil
}

func (id *identity) wipe() {
	for _, w := range id.keys {
		clear(w.private)
	}
}

// signing returns the keys that sign at now, the newest first.
func (id *identity) signing(now time.Time) []witnessKey {
	out := make([]witnessKey, 0, len(id.keys))
	for _, w := range id.keys {
		if w.retire == 0 || now.Unix() < w.retire {
			out = append(out, w)
		}
	}
	return out
}

// rotateWitness makes a new witness key, durably, and returns its version. The one before goes on signing for
// Config.WitnessOverlap. It fails with keys.ErrTooManyKeys when too many do.
func (k *Keyring) rotateWitness(ctx context.Context) (version uint64, err error) {
	err = k.changeKeyset(ctx, "identity", func(b Secret) (Secret, error) {
		id, err := parseIdentity(b)
		if err != nil {
			return nil, err
		}
		now := k.cfg.Now()
		made := newWitnessKey(id.keys[0].version+1, now)
		all := &identity{id.sidecar, slices.Insert(slices.Clone(id.keys), 0, made)}
		defer all.wipe()
		all.keys[1].retire = now.Add(k.cfg.WitnessOverlap).Unix()
		next := &identity{id.sidecar, all.signing(now)}
		if len(next.keys) > maxWitnessKeys {
			return nil, fmt.Errorf("%d witness keys sign: %w", maxWitnessKeys, keys.ErrTooManyKeys)
		}
		version = uint64(made.version)
		return next.encode(), nil
	})
	if err != nil {
		return 0, fmt.Errorf("rotating the witness key: %w", err)
	}
	return version, nil
}

// dropWitness drops witness keys whose time is over, durably.
func (k *Keyring) dropWitness(ctx context.Context) error {
	in, err := k.current()
	if err != nil {
		return err
	}
	if len(in.identity.signing(k.cfg.Now())) == len(in.identity.keys) {
		return nil
	}
	err = k.changeKeyset(ctx, "identity", func(b Secret) (Secret, error) {
		id, err := parseIdentity(b)
		if err != nil {
			return nil, err
		}
		defer id.wipe()
		left := &identity{id.sidecar, id.signing(k.cfg.Now())}
		if len(left.keys) == len(id.keys) {
			return nil, nil
		}
		return left.encode(), nil
	})
	if err != nil {
		return fmt.Errorf("dropping a witness key: %w", err)
	}
	return nil
}

// SidecarID is the id that access entries name, empty after Close.
func (k *Keyring) SidecarID() string {
	in, err := k.current()
	if err != nil {
		return ""
	}
	return in.identity.sidecar.String()
}

// WitnessKeys are the public halves of the keys that cosign now, the newest first; nil after Close.
func (k *Keyring) WitnessKeys() []ed25519.PublicKey {
	in, err := k.current()
	if err != nil {
		return nil
	}
	var out []ed25519.PublicKey
	for _, w := range in.identity.signing(k.cfg.Now()) {
		out = append(out, w.public)
	}
	return out
}

// WitnessPublic is the public half of the sidecar's newest witness key, nil after Close.
func (k *Keyring) WitnessPublic() ed25519.PublicKey {
	in, err := k.current()
	if err != nil {
		return nil
	}
	return in.identity.keys[0].public
}

// WitnessSign signs message with the newest witness key.
func (k *Keyring) WitnessSign(message []byte) ([]byte, error) { return k.WitnessSignWith(0, message) }

// WitnessSignWith signs message with the key at i of WitnessKeys. It fails with keys.ErrInvalid when there is none.
// A rotation between the two calls moves the keys; who must know which key has signed verifies the signature.
func (k *Keyring) WitnessSignWith(i int, message []byte) ([]byte, error) {
	k.mu.RLock() // until the signature is made: the key is overwritten when it is dropped
	defer k.mu.RUnlock()
	if k.instance == nil {
		return nil, ErrClosed
	}
	signing := k.instance.identity.signing(k.cfg.Now())
	if i < 0 || i >= len(signing) {
		return nil, fmt.Errorf("no such witness key: %w", keys.ErrInvalid)
	}
	return ed25519.Sign(signing[i].private, message), nil
}
