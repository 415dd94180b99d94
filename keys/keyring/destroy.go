package keyring

import (
	"context"
	"crypto/subtle"
	"fmt"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// Destroyed is what became of a bundle.
type Destroyed struct {
	Generation uint64 // of the key store, that the tombstone was written at
	KEKVersion uint64 // that wrapped the bundle; 0: its row was damaged
	Already    bool   // it was destroyed before
}

// Destroy destroys the bundle of subject and leaves a tombstone, in one durable transaction: once it has
// returned nil, no node that uses this key store opens anything of the subject. It fails with
// keys.ErrNoKey when there never was a bundle; destroying twice is not an error. reason is a code, kept in
// clear, and holds nothing about the person.
func (k *Keyring) Destroy(ctx context.Context, subject uuid.UUID, reason string) error {
	_, err := k.destroy(ctx, subject, reason)
	return err
}

// DestroyRef destroys the bundle of subject like Destroy, if ref is the subject's reference; otherwise it fails
// with keys.ErrProofRefused, and nothing is destroyed. A bundle that was destroyed before is not compared: then the
// outcome is that of the first time. To compare, the bundle is unwrapped, so it fails also as Open does.
func (k *Keyring) DestroyRef(ctx context.Context, subject uuid.UUID, ref []byte, reason string) (Destroyed, error) {
	if _, err := k.current(); err != nil {
		return Destroyed{}, err
	}
	found, err := k.bundles(ctx, []uuid.UUID{subject})
	if err != nil {
		return Destroyed{}, err
	}
	switch err := found[0].err; {
	case isOf(err, keys.ErrDestroyed):
	case err != nil:
		return Destroyed{}, err
	case subtle.ConstantTimeCompare(ref, found[0].bundle.ref[:]) != 1:
		return Destroyed{}, fmt.Errorf("reference is another subject's: %w", keys.ErrProofRefused)
	}
	// The row may be another by now; the reference never is, as long as the subject has one.
	return k.destroy(ctx, subject, reason)
}

func (k *Keyring) destroy(ctx context.Context, subject uuid.UUID, reason string) (Destroyed, error) {
	if _, err := k.current(); err != nil {
		return Destroyed{}, err
	}
	if len(reason) > MaxReason {
		return Destroyed{}, fmt.Errorf("reason is too long: %w", keys.ErrInvalid)
	}
	k.cache.drop(subject)
	at := k.cfg.Now().Unix()
	var outcome Destroyed
	var refused error
	err := k.writes.do(ctx, &change{items: 1, bytes: 512, reserve: true,
		apply: func(w kv.Writer, generation uint64) (bool, error) {
			outcome, refused = Destroyed{}, nil
			values, err := w.Get(keyBundle(subject), keyTombstone(subject))
			if err != nil {
				return false, err
			}
			bundle, tomb := values[0], values[1]
			if tomb == nil && bundle == nil {
				refused = keys.ErrNoKey
				return false, nil
			}
			w.Delete(keyBundle(subject)) // also beside a tombstone, should an engine ever have lost the deletion
			if tomb != nil {
				t, err := decodeTombstone(tomb)
				if err != nil {
					refused = storeError("reading", fmt.Errorf("%w: %w", kv.ErrIntegrity, err))
				}
				outcome = Destroyed{Generation: t.generation, KEKVersion: t.kekVersion, Already: true}
				return false, nil
			}
			t := tombstone{generation: generation, at: at, kekVersion: k.versionOf(bundle), reason: reason}
			w.Set(keyTombstone(subject), t.encode())
			outcome = Destroyed{Generation: generation, KEKVersion: t.kekVersion}
			return true, nil
		}})
	k.cache.drop(subject)
	if err != nil { // the transaction may still be under way, when ctx has ended, and with it outcome
		return Destroyed{}, err
	}
	if refused != nil {
		return Destroyed{}, refused
	}
	return outcome, nil
}

// versionOf is the version of the KEK that a row is wrapped under, 0 when it does not tell: a damaged row must not
// stand in the way of an erasure.
func (k *Keyring) versionOf(b []byte) uint64 {
	r, err := decodeRow(b)
	if err != nil {
		return 0
	}
	version, err := k.cfg.KEK.Version(r.wrapped)
	if err != nil {
		return 0
	}
	return version
}
