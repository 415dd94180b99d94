package keyring

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
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

// Reseal gives each subject whose bundle is older than rotation a new key, durably, and seals the items that
// are not under the newest key again under it. Outcomes are in the order of subjects, each for itself: all items of
// a subject or none. No plaintext leaves, and an item is bound afterwards to what it was bound to before.
//
// It may be called again for the same subjects: nothing that is under the newest key is touched. What was sealed
// before goes on opening until Retire. A subject fails as in Seal; with keys.ErrTampered when an item is not what it
// is said to be, or under a key that was retired; with keys.ErrInvalid when it has so many keys that Retire must
// come first.
func (k *Keyring) Reseal(ctx context.Context, rotation uint32, subjects []ResealSubject) ([]ResealedSubject, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	if err := checkItems(len(subjects)); err != nil {
		return nil, err
	}
	out := make([]ResealedSubject, len(subjects))
	places := make(map[uuid.UUID]int, len(subjects)) // of a subject in ids, which it is named in once
	var ids []uuid.UUID
	for i := range subjects {
		s := &subjects[i]
		if out[i].Err = checkReseal(s); out[i].Err != nil {
			continue
		}
		if _, ok := places[s.Subject]; !ok {
			places[s.Subject] = len(ids)
			ids = append(ids, s.Subject)
		}
	}
	renewed, err := k.renew(ctx, ids, func(r row) (plan, error) {
		if r.rotation >= rotation {
			return plan{}, nil
		}
		if r.keys >= maxBundleKeys {
			return plan{}, fmt.Errorf("bundle has too many keys, retire the older ones first: %w", keys.ErrInvalid)
		}
		return plan{needed: true, rotation: rotation}, nil
	})
	if err != nil {
		return nil, err
	}
	if err := k.fill(ctx, ids, renewed); err != nil {
		return nil, err
	}
	for i := range subjects {
		if out[i].Err != nil {
			continue
		}
		u := renewed[places[subjects[i].Subject]]
		if out[i].Err = u.err; out[i].Err != nil {
			continue
		}
		ciphertexts, err := k.resealItems(&subjects[i], u.bundle)
		if err != nil {
			out[i].Err = err
			continue
		}
		out[i].Ref, out[i].Ciphertexts, out[i].Rotation = u.bundle.refBytes(), ciphertexts, u.bundle.rotation
	}
	return out, nil
}

// fill gets the bundles of those ids that have neither one in found nor an error.
func (k *Keyring) fill(ctx context.Context, ids []uuid.UUID, found []unlocked) error {
	var missing []int
	var asked []uuid.UUID
	for i := range found {
		if found[i].bundle == nil && found[i].err == nil {
			missing, asked = append(missing, i), append(asked, ids[i])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	got, err := k.bundlesInPassing(ctx, asked)
	if err != nil {
		return err
	}
	for n, i := range missing {
		found[i] = got[n]
	}
	return nil
}

func checkReseal(s *ResealSubject) error {
	if len(s.Items) > MaxReseal {
		return fmt.Errorf("too many items of one subject: %w", keys.ErrInvalid)
	}
	for i := range s.Items {
		it := &s.Items[i]
		most := MaxValue
		switch it.Kind {
		case ItemField, ItemIndex:
			if err := checkField(it.Collection, it.Field); err != nil {
				return err
			}
			if it.Kind == ItemIndex {
				most = MaxIndexValue
			}
		case ItemDetail:
		default:
			return fmt.Errorf("item %d is of an unknown kind: %w", i, keys.ErrInvalid)
		}
		if len(it.Ciphertext) == 0 || len(it.Ciphertext) > paddedLen(most)+cipherOverhead {
			return fmt.Errorf("item %d is empty or too large: %w", i, keys.ErrInvalid)
		}
	}
	return nil
}

// resealItems seals what is not under the newest key of b again under it.
func (k *Keyring) resealItems(s *ResealSubject, b *bundle) ([][]byte, error) {
	out := make([][]byte, len(s.Items))
	for i := range s.Items {
		it := &s.Items[i]
		if b.isNewest(it.Ciphertext) {
			continue
		}
		var ad []byte
		switch it.Kind {
		case ItemField:
			ad = fieldAD(k.cfg.Instance, s.Subject, it.Collection, it.Field, it.Version)
		case ItemIndex:
			ad = indexValueAD(k.cfg.Instance, s.Subject, &IndexValue{Collection: it.Collection, Field: it.Field, Normaliser: it.Normaliser})
		case ItemDetail:
			ad = detailAD(k.cfg.Instance, s.Subject)
		}
		value, err := b.open(it.Ciphertext, ad)
		if err == nil {
			out[i], err = b.seal(value, ad)
			value.Wipe()
		}
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
	}
	return out, nil
}

// Retire drops all but the newest key of each subject whose bundle is of at least rotation, durably. It does not ask
// the KEK. Nothing sealed under a dropped key opens any more, so everything must have been sealed again first. Outcomes
// are in the order of subjects, each for itself: nil also when there was nothing to drop, keys.ErrInvalid for a bundle of
// an older rotation, keys.ErrNoKey, keys.ErrDestroyed, or why it could not be done now.
func (k *Keyring) Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	if err := checkItems(len(subjects)); err != nil {
		return nil, err
	}
	places := make(map[uuid.UUID]int, len(subjects))
	var ids []uuid.UUID
	for _, s := range subjects {
		if _, ok := places[s]; !ok {
			places[s] = len(ids)
			ids = append(ids, s)
		}
	}
	shed, err := k.shed(ctx, ids, func(r row) (bool, error) {
		if r.rotation < rotation {
			return false, fmt.Errorf("bundle is of an older rotation: %w", keys.ErrInvalid)
		}
		return r.keys > 1, nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]error, len(subjects))
	for i, s := range subjects {
		out[i] = shed[places[s]]
	}
	return out, nil
}

// maxSpareKeys is how many keys a bundle may gather that no driver of a rotation knows. One that has been through so
// many rotations has nothing sealed under its older keys.
const maxSpareKeys = 8

// spare gives every bundle that is older than rotation a new key, when the driver of the rotation has done all
// subjects that it knows: these are left over from subjects that never came to be. Their older keys are left in
// them, marked as spare. Should a driver have missed somebody, because its store hid a row, nothing is lost, unless it
// does so maxSpareKeys times.
func (k *Keyring) spare(ctx context.Context, rotation uint32) error {
	var ids []uuid.UUID
	spared := 0
	flush := func() error {
		older := func(r row) (plan, error) {
			return plan{needed: r.rotation < rotation, rotation: rotation, spare: true}, nil
		}
		full := func(r row) (bool, error) { return r.rotation < rotation && r.keys >= maxSpareKeys, nil }
		if _, err := k.shed(ctx, ids, full); err != nil {
			return err
		}
		done, err := k.renew(ctx, ids, older)
		if err != nil {
			return err
		}
		for _, u := range done {
			if u.err != nil && !isOf(u.err, keys.ErrDestroyed) {
				return u.err
			}
			if u.bundle != nil {
				spared++
			}
		}
		ids = ids[:0]
		return nil
	}
	err := k.scan(ctx, prefixBundle, nil, func(p kv.Pair) error {
		r, err := decodeRow(p.Value)
		if err != nil || r.rotation >= rotation {
			return err
		}
		id, err := uuid.FromBytes(p.Key[len(prefixBundle):])
		if err != nil {
			return fmt.Errorf("key of a bundle: %w", keys.ErrTampered)
		}
		if ids = append(ids, id); len(ids) < maxBatch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if spared > 0 {
		k.cfg.Logger.Warn("bundles of subjects that the driver of the rotation does not know have new keys, and keep their older ones", "count", spared)
	}
	return err
}
