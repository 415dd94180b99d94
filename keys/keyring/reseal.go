package keyring

import (
	"context"

	"github.com/google/uuid"
)

// Kinds of what is sealed under a subject's key.
const (
	ItemField  = iota // a field of a record: Collection, Field, Version
	ItemIndex         // an index value: Collection, Field, Normaliser
	ItemDetail        // a detail of an access record, or the capture of a consent
)

// ResealSubject is what to seal again for one subject.
type ResealSubject struct {
	Subject uuid.UUID
	Items   []ResealItem
}

// ResealItem is one ciphertext.
type ResealItem struct {
	Kind       int
	Collection string
	Field      string
	Version    uint64
	Normaliser uint32
	Ciphertext []byte
}

// ResealedSubject is the outcome for one subject: Ref and Ciphertexts, or Err.
type ResealedSubject struct {
	Err         error
	Ref         []byte
	Ciphertexts [][]byte // in the order of the items; nil where it was under the newest key already
	Rotation    uint32   // of the bundle now
}

// ReindexSubject is the sealed index values of one subject.
type ReindexSubject struct {
	Subject uuid.UUID
	Values  []IndexValue // with Sealed
}

// ReindexedSubject is the outcome for one subject: Ref and Tokens, or Err.
type ReindexedSubject struct {
	Err    error
	Ref    []byte
	Tokens [][]IndexToken // in the order of the values
}

// Reseal gives each subject whose bundle is older than rotation a new key, durably, and seals the items that
// are not under the newest key again under it.
func (k *Keyring) Reseal(ctx context.Context, rotation uint32, subjects []ResealSubject) ([]ResealedSubject, error) {
	return nil, errNotBuilt
}

// Retire drops all but the newest key of each subject whose bundle is of at least rotation. Nothing sealed under
// a dropped key opens any more. Outcomes are in the order of subjects.
func (k *Keyring) Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error) {
	return nil, errNotBuilt
}

// Reindex computes the tokens of sealed index values, under each index key in use.
func (k *Keyring) Reindex(ctx context.Context, subjects []ReindexSubject) ([]ReindexedSubject, error) {
	return nil, errNotBuilt
}

// Destroyed is what became of a bundle.
type Destroyed struct {
	Generation uint64 // of the key store, that the tombstone was written at
	KEKVersion uint64 // that wrapped the bundle
	Already    bool   // it was destroyed before
}

// DestroyRef destroys the bundle of subject like Destroy, if ref is the subject's reference; otherwise it fails
// with keys.ErrProofRefused. A bundle that was destroyed before is not compared.
func (k *Keyring) DestroyRef(ctx context.Context, subject uuid.UUID, ref []byte, reason string) (Destroyed, error) {
	return Destroyed{}, errNotBuilt
}
