package keyring

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/prototypster/pdvault/keys"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// bundle is a subject's keys, ready for use: the newest, which seals, and while a rotation is under way the ones before.
//
// The KEK wraps the newest alone. Serialised, it is
//
//	offset  size  what
//	0       1     format, 0x01
//	1       32    ref secret
//	33      rest  Tink keyset of one AES256-GCM key with the TINK output prefix, binary proto, in clear
//
// Example: 01 | 32 random bytes | 08 <key id> 12 54 0a 48 0a 30 type.googleapis.com/google.crypto...
//
// The keys before it are beside it in the row, sealed under it with olderAD:
//
//	offset  size  what
//	0       2     length n of the keyset, big endian, never 0
//	2       n     Tink keyset of the key before, as above
//	2+n     rest  the keys before that one, sealed in the same way under it; empty: there are none
//
// So a rotation has the KEK wrap one key, once, and asks it for nothing when it drops the older ones; an epoch wraps
// one thing for each subject; and whoever cannot unwrap the newest key has none of the others either.
//
// The ref secret itself is not kept: the one thing that is made from it is the reference, and that is in
// the ledger for all to see.
type bundle struct {
	keys     []bundleKey // the newest first, never empty
	ref      [32]byte    // subject_ref
	rotation uint32      // of subjects' keys, that its row names
}

// bundleKey is one key of a subject.
type bundleKey struct {
	prefix [5]byte // what ciphertexts under it begin with: 0x01 and Tink's id of the key
	aead   tink.AEAD
}

const (
	bundleFormat    = 0x01
	refSecretSize   = 32
	maxBundleKeys   = 64
	cipherOverhead  = 5 + 12 + 16 // Tink prefix, nonce, tag
	maxWrappedBytes = 64 << 10
	olderHeader     = 2 // bytes before a keyset among the older keys
	maxOlderBytes   = 1<<16 - 1
)

// errKeyCount is returned when a bundle, or a keyset of the instance, has not as many keys as its row says.
var errKeyCount = fmt.Errorf("row with another number of keys than it names: %w", keys.ErrTampered)

// newBundle makes a bundle, and its serialised form for the KEK, which the caller wipes.
func newBundle() (*bundle, Secret, error) {
	var refSecret [refSecretSize]byte
	_, _ = rand.Read(refSecret[:]) // never fails
	defer clear(refSecret[:])
	return newBundleOf(refSecret[:])
}

// newBundleOf is newBundle for a subject that has its ref secret. It keeps nothing of that.
func newBundleOf(refSecret []byte) (*bundle, Secret, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, nil, fmt.Errorf("making a keyset: %w", err)
	}
	buf := bytes.NewBuffer(make([]byte, 0, 256)) // large enough not to be copied when it grows
	buf.WriteByte(bundleFormat)
	buf.Write(refSecret)
	err = insecurecleartextkeyset.Write(handle, keyset.NewBinaryWriter(buf))
	var newest bundleKey
	if err == nil {
		newest, err = readyKey(handle)
	}
	if err != nil {
		clear(buf.Bytes())
		return nil, nil, fmt.Errorf("serialising a keyset: %w", err)
	}
	return &bundle{keys: []bundleKey{newest}, ref: subjectRef(refSecret)}, buf.Bytes(), nil
}

// parseBundle puts a bundle together of what the KEK has unwrapped and of the sealed older keys, bound by ad, that are
// beside it; nil: there are none. It keeps nothing of either.
func parseBundle(b, older, ad []byte) (*bundle, error) {
	if len(b) <= 1+refSecretSize || b[0] != bundleFormat {
		return nil, fmt.Errorf("bundle of an unknown format: %w", keys.ErrTampered)
	}
	newest, err := parseKey(b[1+refSecretSize:])
	if err != nil {
		return nil, err
	}
	out := &bundle{keys: []bundleKey{newest}, ref: subjectRef(b[1 : 1+refSecretSize])}
	for len(older) > 0 {
		if len(out.keys) == maxBundleKeys {
			return nil, fmt.Errorf("bundle with too many keys: %w", keys.ErrTampered)
		}
		clear, err := out.keys[len(out.keys)-1].aead.Decrypt(older, ad)
		if err != nil {
			return nil, fmt.Errorf("older keys of a bundle: %w", keys.ErrTampered) // Tink's text says no more
		}
		var key bundleKey
		if key, older, err = parseOlder(clear); err != nil {
			return nil, err
		}
		out.keys = append(out.keys, key)
	}
	return out, nil
}

// parseOlder takes the first of the older keys out of b, which it wipes, and what is sealed under it.
func parseOlder(b Secret) (key bundleKey, older []byte, err error) {
	defer b.Wipe()
	n := 0
	if len(b) > olderHeader {
		n = int(binary.BigEndian.Uint16(b))
	}
	if n == 0 || n > len(b)-olderHeader {
		return bundleKey{}, nil, fmt.Errorf("older keys of an unknown format: %w", keys.ErrTampered)
	}
	if key, err = parseKey(b[olderHeader : olderHeader+n]); err != nil {
		return bundleKey{}, nil, err
	}
	return key, bytes.Clone(b[olderHeader+n:]), nil
}

// renewBundle gives a bundle a new key. It returns the bundle, ready for use, its newest key serialised for the KEK,
// which the caller wipes, and the older keys sealed under that. b is what the KEK had unwrapped and older what was
// beside it, both bound by ad; together they must be as many keys as the row says. It keeps nothing of them.
func renewBundle(b, older, ad []byte, keysOfRow uint8) (*bundle, Secret, []byte, error) {
	before, err := parseBundle(b, older, ad)
	if err != nil {
		return nil, nil, nil, err
	}
	if len(before.keys) != int(keysOfRow) {
		return nil, nil, nil, errKeyCount
	}
	out, serialised, err := newBundleOf(b[1 : 1+refSecretSize])
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", keys.ErrUnavailable, err)
	}
	tinkKeyset := b[1+refSecretSize:]
	plain := make(Secret, 0, olderHeader+len(tinkKeyset)+len(older))
	plain = binary.BigEndian.AppendUint16(plain, uint16(len(tinkKeyset)))
	plain = append(append(plain, tinkKeyset...), older...)
	defer plain.Wipe()
	sealed, err := out.keys[0].aead.Encrypt(plain, ad)
	if err != nil || len(sealed) > maxOlderBytes {
		serialised.Wipe()
		return nil, nil, nil, fmt.Errorf("sealing the older keys of a bundle: %w", keys.ErrUnavailable)
	}
	out.keys = append(out.keys, before.keys...)
	return out, serialised, sealed, nil
}

// newestOnly is b without its older keys, of which it keeps nothing in memory.
func (b *bundle) newestOnly() *bundle {
	return &bundle{keys: []bundleKey{b.keys[0]}, ref: b.ref, rotation: b.rotation}
}

// parseKey returns the key of a serialised keyset, if it is the only one and one that we make.
func parseKey(b []byte) (bundleKey, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(b)))
	if err != nil {
		return bundleKey{}, fmt.Errorf("bundle without a keyset: %w", keys.ErrTampered)
	}
	if handle.Len() != 1 {
		return bundleKey{}, fmt.Errorf("bundle with several keys in one keyset: %w", keys.ErrTampered)
	}
	entry, err := handle.Entry(0)
	if err != nil {
		return bundleKey{}, fmt.Errorf("bundle with a broken key: %w", keys.ErrTampered)
	}
	// A RAW key would be tried on every ciphertext; nothing but what newBundle makes is let in.
	key, ok := entry.Key().(*aesgcm.Key)
	if !ok || entry.KeyStatus() != keyset.Enabled {
		return bundleKey{}, fmt.Errorf("bundle with a foreign key: %w", keys.ErrTampered)
	}
	p, ok := key.Parameters().(*aesgcm.Parameters)
	if !ok || p.Variant() != aesgcm.VariantTink || p.KeySizeInBytes() != 32 ||
		p.IVSizeInBytes() != 12 || p.TagSizeInBytes() != 16 {
		return bundleKey{}, fmt.Errorf("bundle with a foreign key: %w", keys.ErrTampered)
	}
	return readyKey(handle)
}

// readyKey makes the primary key of handle ready for use.
func readyKey(handle *keyset.Handle) (bundleKey, error) {
	primary, err := handle.Primary()
	if err != nil {
		return bundleKey{}, fmt.Errorf("bundle without a newest key: %w", keys.ErrTampered)
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return bundleKey{}, fmt.Errorf("bundle without a usable key: %w", keys.ErrTampered)
	}
	k := bundleKey{aead: primitive}
	k.prefix[0] = 1
	binary.BigEndian.PutUint32(k.prefix[1:], primary.KeyID())
	return k, nil
}

// subjectRef is how the ledger names a subject: HMAC-SHA-256(ref secret, "ledger").
func subjectRef(secret []byte) (ref [32]byte) {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("ledger"))
	mac.Sum(ref[:0])
	return ref
}

// refBytes returns a copy of the reference.
func (b *bundle) refBytes() []byte { return append([]byte(nil), b.ref[:]...) }

// isNewest tells whether ciphertext claims to be under the newest key.
func (b *bundle) isNewest(ciphertext []byte) bool {
	return bytes.HasPrefix(ciphertext, b.keys[0].prefix[:])
}

// seal encrypts value, padded, under ad.
func (b *bundle) seal(value, ad []byte) ([]byte, error) {
	padded := pad(value)
	ciphertext, err := b.keys[0].aead.Encrypt(padded, ad)
	clear(padded)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", keys.ErrUnavailable)
	}
	return ciphertext, nil
}

// open is the inverse of seal. The result is the caller's to wipe; its capacity ends with its length.
func (b *bundle) open(ciphertext, ad []byte) (Secret, error) {
	padded, err := b.decrypt(ciphertext, ad)
	if err != nil {
		return nil, err
	}
	value, err := unpad(padded)
	if err != nil {
		clear(padded)
		return nil, err
	}
	return value, nil
}

// decrypt opens ciphertext with the key that it names. Ids are drawn at random, so two keys may have the same.
func (b *bundle) decrypt(ciphertext, ad []byte) ([]byte, error) {
	for i := range b.keys {
		if !bytes.HasPrefix(ciphertext, b.keys[i].prefix[:]) {
			continue
		}
		if padded, err := b.keys[i].aead.Decrypt(ciphertext, ad); err == nil {
			return padded, nil
		}
	}
	return nil, keys.ErrTampered // Tink's text tells which step failed and nothing more
}
