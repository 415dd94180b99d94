package keyring

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
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
	aead tink.AEAD
	ref  [32]byte // subject_ref
}

const (
	bundleFormat    = 0x01
	refSecretSize   = 32
	maxBundleKeys   = 64
	cipherOverhead  = 5 + 12 + 16 // Tink prefix, nonce, tag
	maxWrappedBytes = 64 << 10
)

// newBundle makes a bundle, and its serialised form for the KEK, which the caller wipes.
func newBundle() (*bundle, Secret, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, nil, fmt.Errorf("making a keyset: %w", err)
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, nil, fmt.Errorf("making a primitive: %w", err)
	}
	buf := bytes.NewBuffer(make([]byte, 0, 256)) // large enough not to be copied when it grows
	buf.WriteByte(bundleFormat)
	var refSecret [refSecretSize]byte
	_, _ = rand.Read(refSecret[:]) // never fails
	buf.Write(refSecret[:])
	b := &bundle{aead: primitive, ref: subjectRef(refSecret[:])}
	clear(refSecret[:])
	if err := insecurecleartextkeyset.Write(handle, keyset.NewBinaryWriter(buf)); err != nil {
		clear(buf.Bytes())
		return nil, nil, fmt.Errorf("serialising a keyset: %w", err)
	}
	return b, buf.Bytes(), nil
}

// parseBundle is the inverse of newBundle. It keeps nothing of b.
func parseBundle(b []byte) (*bundle, error) {
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
		if !ok {
			return nil, fmt.Errorf("bundle with a foreign key: %w", keys.ErrTampered)
		}
		p, ok := key.Parameters().(*aesgcm.Parameters)
		if !ok || p.Variant() != aesgcm.VariantTink || p.KeySizeInBytes() != 32 ||
			p.IVSizeInBytes() != 12 || p.TagSizeInBytes() != 16 {
			return nil, fmt.Errorf("bundle with a foreign key: %w", keys.ErrTampered)
		}
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("bundle without a usable key: %w", keys.ErrTampered)
	}
	return &bundle{aead: primitive, ref: subjectRef(b[1 : 1+refSecretSize])}, nil
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
