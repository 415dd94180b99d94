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

// bundle is a subject's keys, ready for use. Serialised, as the KEK wraps it, it is
//
//	offset  size  what
//	0       1     format, 0x01
//	1       32    ref secret
//	33      rest  Tink keyset of AES256-GCM keys with the TINK output prefix, binary proto, in clear
//
// Example: 01 | 32 random bytes | 08 <primary key id> 12 54 0a 48 0a 30 type.googleapis.com/google.crypto...
//
// The ref secret itself is not kept: the one thing that is made from it is the reference, and that is in
// the ledger for all to see.
type bundle struct {
	aead     tink.AEAD
	ref      [32]byte // subject_ref
	newest   [5]byte  // what ciphertexts under the newest key begin with: 0x01 and Tink's id of the key
	keys     int
	rotation uint32 // of subjects' keys, that its row names
}

const (
	bundleFormat    = 0x01
	refSecretSize   = 32
	maxBundleKeys   = 64
	cipherOverhead  = 5 + 12 + 16 // Tink prefix, nonce, tag
	maxWrappedBytes = 64 << 10
)

// errKeyCount is returned when a bundle, or a keyset of the instance, has not as many keys as its row says.
var errKeyCount = fmt.Errorf("row with another number of keys than it names: %w", keys.ErrTampered)

// newBundle makes a bundle, and its serialised form for the KEK, which the caller wipes.
func newBundle() (*bundle, Secret, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, nil, fmt.Errorf("making a keyset: %w", err)
	}
	var refSecret [refSecretSize]byte
	_, _ = rand.Read(refSecret[:]) // never fails
	defer clear(refSecret[:])
	return serialiseBundle(refSecret[:], handle)
}

// serialiseBundle puts a bundle together, ready for use and as the KEK wraps it. It keeps nothing of refSecret.
func serialiseBundle(refSecret []byte, handle *keyset.Handle) (*bundle, Secret, error) {
	buf := bytes.NewBuffer(make([]byte, 0, 128*(2+handle.Len()))) // large enough not to be copied when it grows
	buf.WriteByte(bundleFormat)
	buf.Write(refSecret)
	err := insecurecleartextkeyset.Write(handle, keyset.NewBinaryWriter(buf))
	var b *bundle
	if err == nil {
		b, err = readyBundle(refSecret, handle)
	}
	if err != nil {
		clear(buf.Bytes())
		return nil, nil, fmt.Errorf("serialising a keyset: %w", err)
	}
	return b, buf.Bytes(), nil
}

// parseBundle is the inverse of serialiseBundle. It keeps nothing of b.
func parseBundle(b []byte) (*bundle, error) {
	handle, err := bundleKeyset(b)
	if err != nil {
		return nil, err
	}
	return readyBundle(b[1:1+refSecretSize], handle)
}

// editBundle returns the bundle that b becomes when edit changes its keys, ready for use and serialised for the
// KEK, which the caller wipes. b must have as many keys as its row says. It keeps nothing of b.
func editBundle(b []byte, keysOfRow uint8, edit func(*keyset.Handle) (*keyset.Handle, error)) (*bundle, Secret, error) {
	handle, err := bundleKeyset(b)
	if err != nil {
		return nil, nil, err
	}
	if handle.Len() != int(keysOfRow) {
		return nil, nil, errKeyCount
	}
	if handle, err = edit(handle); err != nil {
		return nil, nil, fmt.Errorf("changing a keyset: %w: %w", keys.ErrUnavailable, err)
	}
	return serialiseBundle(b[1:1+refSecretSize], handle)
}

// addKey gives a bundle a further key, which seals from now on.
func addKey(handle *keyset.Handle) (*keyset.Handle, error) {
	m := keyset.NewManagerFromHandle(handle)
	id, err := m.Add(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, err
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	return m.Handle()
}

// keepNewest leaves a bundle the key that seals.
func keepNewest(handle *keyset.Handle) (*keyset.Handle, error) {
	primary, err := handle.Primary()
	if err != nil {
		return nil, err
	}
	m := keyset.NewManagerFromHandle(handle)
	for i := range handle.Len() {
		entry, err := handle.Entry(i)
		if err != nil {
			return nil, err
		}
		if entry.KeyID() == primary.KeyID() {
			continue
		}
		if err := m.Delete(entry.KeyID()); err != nil {
			return nil, err
		}
	}
	return m.Handle()
}

// bundleKeyset returns the keyset of a serialised bundle, if each of its keys is one that we make.
func bundleKeyset(b []byte) (*keyset.Handle, error) {
	if len(b) <= 1+refSecretSize || b[0] != bundleFormat {
		return nil, fmt.Errorf("bundle of an unknown format: %w", keys.ErrTampered)
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(b[1+refSecretSize:])))
	if err != nil {
		return nil, fmt.Errorf("bundle without a keyset: %w", keys.ErrTampered)
	}
	if handle.Len() > maxBundleKeys {
		return nil, fmt.Errorf("bundle with too many keys: %w", keys.ErrTampered)
	}
	for i := range handle.Len() {
		entry, err := handle.Entry(i)
		if err != nil {
			return nil, fmt.Errorf("bundle with a broken key: %w", keys.ErrTampered)
		}
		// A RAW key would be tried on every ciphertext; nothing but what newBundle makes is let in.
		key, ok := entry.Key().(*aesgcm.Key)
		if !ok || entry.KeyStatus() != keyset.Enabled {
			return nil, fmt.Errorf("bundle with a foreign key: %w", keys.ErrTampered)
		}
		p, ok := key.Parameters().(*aesgcm.Parameters)
		if !ok || p.Variant() != aesgcm.VariantTink || p.KeySizeInBytes() != 32 ||
			p.IVSizeInBytes() != 12 || p.TagSizeInBytes() != 16 {
			return nil, fmt.Errorf("bundle with a foreign key: %w", keys.ErrTampered)
		}
	}
	return handle, nil
}

// readyBundle makes the keys of a bundle ready for use.
func readyBundle(refSecret []byte, handle *keyset.Handle) (*bundle, error) {
	primary, err := handle.Primary()
	if err != nil {
		return nil, fmt.Errorf("bundle without a newest key: %w", keys.ErrTampered)
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("bundle without a usable key: %w", keys.ErrTampered)
	}
	b := &bundle{aead: primitive, ref: subjectRef(refSecret), keys: handle.Len()}
	b.newest[0] = 1
	binary.BigEndian.PutUint32(b.newest[1:], primary.KeyID())
	return b, nil
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
func (b *bundle) isNewest(ciphertext []byte) bool { return bytes.HasPrefix(ciphertext, b.newest[:]) }

// seal encrypts value, padded, under ad.
func (b *bundle) seal(value, ad []byte) ([]byte, error) {
	padded := pad(value)
	ciphertext, err := b.aead.Encrypt(padded, ad)
	clear(padded)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", keys.ErrUnavailable)
	}
	return ciphertext, nil
}

// open is the inverse of seal. The result is the caller's to wipe; its capacity ends with its length.
func (b *bundle) open(ciphertext, ad []byte) (Secret, error) {
	padded, err := b.aead.Decrypt(ciphertext, ad)
	if err != nil {
		return nil, keys.ErrTampered // Tink's text tells which step failed and nothing more
	}
	value, err := unpad(padded)
	if err != nil {
		clear(padded)
		return nil, err
	}
	return value, nil
}
