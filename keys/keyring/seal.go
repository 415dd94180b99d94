package keyring

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
)

func checkItems(n int) error {
	if n > MaxItems {
		return fmt.Errorf("too many items in a call: %w", keys.ErrInvalid)
	}
	return nil
}

// Seal makes bundles where asked, seals fields, and computes index tokens. Outcomes are in the order of
// subjects, each for itself: a subject has all of its fields sealed or none. New bundles are durable
// before anything is sealed with them; when Seal fails later, a bundle without data stays behind, which
// harms nobody. The error is for the call as a whole.
//
// A subject fails with keys.ErrNoKey, ErrDestroyed, ErrKeyExists, ErrTampered (a carried ciphertext or the
// wrapped bundle), ErrInvalid, or one that tells why the KEK does not help.
func (k *Keyring) Seal(ctx context.Context, subjects []SealSubject) ([]SealedSubject, error) {
	in, err := k.current()
	if err != nil {
		return nil, err
	}
	if err := checkItems(len(subjects)); err != nil {
		return nil, err
	}
	out := make([]SealedSubject, len(subjects))
	ready := make([]*bundle, len(subjects))
	var create, use []int
	for i := range subjects {
		switch err := checkSeal(&subjects[i]); {
		case err != nil:
			out[i].Err = err
		case subjects[i].Create:
			create = append(create, i)
		default:
			use = append(use, i)
		}
	}
	if len(create) > 0 {
		made, err := k.create(ctx, subjects, create)
		if err != nil {
			return nil, err
		}
		for n, i := range create {
			ready[i], out[i].Err = made[n].bundle, made[n].err
		}
	}
	if len(use) > 0 {
		ids := make([]uuid.UUID, len(use))
		for n, i := range use {
			ids[n] = subjects[i].Subject
		}
		found, err := k.bundles(ctx, ids)
		if err != nil {
			return nil, err
		}
		for n, i := range use {
			ready[i], out[i].Err = found[n].bundle, found[n].err
		}
	}
	for i := range subjects {
		if out[i].Err != nil {
			continue
		}
		fields, err := k.sealFields(in, &subjects[i], ready[i])
		if err != nil {
			out[i].Err = err
			continue
		}
		out[i].Ref, out[i].Fields = ready[i].refBytes(), fields
	}
	return out, nil
}

func checkSeal(s *SealSubject) error {
	if s.Subject == uuid.Nil || len(s.Fields) > MaxFields {
		return fmt.Errorf("subject without id or with too many fields: %w", keys.ErrInvalid)
	}
	for i := range s.Fields {
		f := &s.Fields[i]
		if err := checkField(f.Collection, f.Field); err != nil {
			return err
		}
		switch {
		case (len(f.Plaintext) > 0) == (len(f.Carry) > 0):
			return fmt.Errorf("field %d has not exactly one of plaintext and carry: %w", i, keys.ErrInvalid)
		case len(f.Plaintext) > MaxValue:
			return fmt.Errorf("field %d is too large: %w", i, keys.ErrInvalid)
		case len(f.Carry) > 0 && s.Create:
			return fmt.Errorf("field %d is carried into a new subject: %w", i, keys.ErrInvalid)
		case len(f.Carry) > paddedLen(MaxValue)+cipherOverhead:
			return fmt.Errorf("field %d is too large: %w", i, keys.ErrInvalid)
		}
		if len(f.Index) > MaxIndexValues {
			return fmt.Errorf("field %d has too many index values: %w", i, keys.ErrInvalid)
		}
		for n := range f.Index {
			if v := &f.Index[n]; len(v.Sealed) > 0 {
				if err := checkSealedIndex(v); err != nil {
					return err
				}
			} else if err := checkIndex(v); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkField(collection, field string) error {
	if err := checkName("collection", collection); err != nil {
		return err
	}
	return checkName("field", field)
}

func (k *Keyring) sealFields(in *instance, s *SealSubject, b *bundle) ([]SealedField, error) {
	fields := make([]SealedField, len(s.Fields))
	for i := range s.Fields {
		f := &s.Fields[i]
		value := f.Plaintext
		if len(f.Carry) > 0 {
			var err error
			value, err = b.open(f.Carry, fieldAD(k.cfg.Instance, s.Subject, f.Collection, f.Field, f.CarryVersion))
			if err != nil {
				return nil, fmt.Errorf("field %d: %w", i, err)
			}
		}
		ciphertext, err := b.seal(value, fieldAD(k.cfg.Instance, s.Subject, f.Collection, f.Field, f.Version))
		if len(f.Carry) > 0 {
			value.Wipe()
		}
		if err != nil {
			return nil, fmt.Errorf("field %d: %w", i, err)
		}
		fields[i].Ciphertext = ciphertext
		if fields[i].Index, err = k.indexField(in, s.Subject, f.Index, b); err != nil {
			return nil, fmt.Errorf("field %d: %w", i, err)
		}
	}
	return fields, nil
}

// create makes the bundles of subjects[which...]: one batch to the KEK, one durable transaction, shared
// with whoever else creates at the time.
func (k *Keyring) create(ctx context.Context, subjects []SealSubject, which []int) ([]unlocked, error) {
	out := make([]unlocked, len(which))
	ids := make([]uuid.UUID, len(which))
	for n, i := range which {
		ids[n] = subjects[i].Subject
	}
	// Asked first, so that nobody makes the KEK work for a subject that exists. The transaction asks again.
	found, err := k.lookup(ctx, ids)
	if err != nil {
		return nil, err
	}
	var fresh []int // indices into which
	first := make(map[uuid.UUID]bool, len(ids))
	for n := range which {
		if !isOf(found[n].err, keys.ErrNoKey) || first[ids[n]] {
			out[n].err = keys.ErrKeyExists
			continue
		}
		first[ids[n]] = true
		fresh = append(fresh, n)
	}
	for range maxRounds {
		if len(fresh) == 0 {
			return out, nil
		}
		if fresh, err = k.createRound(ctx, ids, fresh, out); err != nil {
			return nil, err
		}
	}
	for _, n := range fresh {
		out[n] = unlocked{err: fmt.Errorf("KEK wraps under a retired version: %w", keys.ErrUnavailable)}
	}
	return out, nil
}

// createRound makes the bundles of ids[fresh...] and returns those of fresh that an epoch overtook.
func (k *Keyring) createRound(ctx context.Context, ids []uuid.UUID, fresh []int, out []unlocked) (again []int, err error) {
	rotation := k.currentRotation()
	made := make([]int, 0, len(fresh))
	subjects := make([]uuid.UUID, 0, len(fresh))
	serialised := make([]Secret, 0, len(fresh))
	for _, n := range fresh {
		b, clear, err := newBundle()
		if err != nil {
			out[n].err = fmt.Errorf("%w: %w", keys.ErrUnavailable, err)
			continue
		}
		b.rotation = rotation
		out[n].bundle = b
		made, subjects, serialised = append(made, n), append(subjects, ids[n]), append(serialised, clear)
	}
	wrapped, err := k.wrapBundles(ctx, subjects, serialised)
	if err != nil {
		return nil, err
	}
	var changes []rowChange
	var changed []int
	for m, n := range made {
		if err := wrapped[m].Err; err != nil {
			out[n] = unlocked{err: err}
			continue
		}
		changed = append(changed, n)
		changes = append(changes, rowChange{subject: ids[n], wrapped: wrapped[m].Data, rotation: rotation, keys: 1})
	}
	for m, o := range k.commitRows(ctx, changes) {
		switch n := changed[m]; {
		case isOf(o.err, errBelowFloor):
			again = append(again, n)
		case o.err != nil:
			out[n] = unlocked{err: o.err}
		default:
			k.cache.put(ids[n], o.row, out[n].bundle)
		}
	}
	return again, nil
}

// Prepare gives the references of subjects and seals details of access records. Outcomes are in the order
// of items, each for itself.
func (k *Keyring) Prepare(ctx context.Context, items []PrepareItem) ([]PreparedItem, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	if err := checkItems(len(items)); err != nil {
		return nil, err
	}
	ids := make([]uuid.UUID, len(items))
	for i := range items {
		ids[i] = items[i].Subject
	}
	found, err := k.bundles(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]PreparedItem, len(items))
	for i := range items {
		if out[i].Err = found[i].err; out[i].Err != nil {
			continue
		}
		if len(items[i].Detail) > MaxValue {
			out[i].Err = fmt.Errorf("detail is too large: %w", keys.ErrInvalid)
			continue
		}
		var sealed []byte
		if len(items[i].Detail) > 0 {
			sealed, err = found[i].bundle.seal(items[i].Detail, detailAD(k.cfg.Instance, ids[i]))
			if err != nil {
				out[i].Err = err
				continue
			}
		}
		out[i].Ref, out[i].SealedDetail = found[i].bundle.refBytes(), sealed
	}
	return out, nil
}

// OpenDetail opens a detail that Prepare sealed. It checks no proof.
func (k *Keyring) OpenDetail(ctx context.Context, subject uuid.UUID, sealed []byte) (Secret, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	found, err := k.bundles(ctx, []uuid.UUID{subject})
	if err != nil {
		return nil, err
	}
	if found[0].err != nil {
		return nil, found[0].err
	}
	return found[0].bundle.open(sealed, detailAD(k.cfg.Instance, subject))
}

// Ref gives the references of subjects, in their order.
func (k *Keyring) Ref(ctx context.Context, subjects []uuid.UUID) ([]RefResult, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	if err := checkItems(len(subjects)); err != nil {
		return nil, err
	}
	found, err := k.bundles(ctx, subjects)
	if err != nil {
		return nil, err
	}
	out := make([]RefResult, len(subjects))
	for i := range found {
		if out[i].Err = found[i].err; out[i].Err == nil {
			out[i].Ref = found[i].bundle.refBytes()
		}
	}
	return out, nil
}

// Open decrypts fields. It checks no proof: the caller has done so. Outcomes are in the order of subjects,
// each for itself: all of its fields or none. A subject fails as in Seal, and with keys.ErrProofRefused
// when Ref is set and is not the subject's. The caller wipes the plaintext.
func (k *Keyring) Open(ctx context.Context, subjects []OpenSubject) ([]OpenedSubject, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	if err := checkItems(len(subjects)); err != nil {
		return nil, err
	}
	ids := make([]uuid.UUID, len(subjects))
	for i := range subjects {
		ids[i] = subjects[i].Subject
	}
	found, err := k.bundles(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]OpenedSubject, len(subjects))
	for i := range subjects {
		if out[i].Err = found[i].err; out[i].Err == nil {
			out[i].Fields, out[i].Err = k.openFields(&subjects[i], found[i].bundle)
		}
	}
	return out, nil
}

func (k *Keyring) openFields(s *OpenSubject, b *bundle) (_ []OpenedField, err error) {
	if s.Ref != nil && subtle.ConstantTimeCompare(s.Ref, b.ref[:]) != 1 {
		return nil, fmt.Errorf("reference is another subject's: %w", keys.ErrProofRefused)
	}
	if len(s.Fields) > MaxFields {
		return nil, fmt.Errorf("too many fields: %w", keys.ErrInvalid)
	}
	fields := make([]OpenedField, len(s.Fields))
	defer func() {
		if err != nil {
			for i := range fields {
				fields[i].Plaintext.Wipe()
			}
		}
	}()
	for i := range s.Fields {
		f := &s.Fields[i]
		if err := checkField(s.Collection, f.Field); err != nil {
			return nil, err
		}
		if f.Expect != nil && (len(f.Expect) == 0 || len(f.Expect) > MaxValue) {
			return nil, fmt.Errorf("field %d: expected value is empty or too large: %w", i, keys.ErrInvalid)
		}
		value, err := b.open(f.Ciphertext, fieldAD(k.cfg.Instance, s.Subject, s.Collection, f.Field, s.Version))
		if err != nil {
			return nil, fmt.Errorf("field %d: %w", i, err)
		}
		if f.Expect == nil {
			fields[i].Plaintext = value
			continue
		}
		// Hashes, so that neither length nor content shows in the time that the comparison takes.
		want, got := sha256.Sum256(f.Expect), sha256.Sum256(value)
		value.Wipe()
		fields[i].Match = subtle.ConstantTimeCompare(want[:], got[:]) == 1
	}
	return fields, nil
}

// Protect seals a small secret of pdvault under the service keyset, bound to label.
func (k *Keyring) Protect(_ context.Context, label string, data []byte) ([]byte, error) {
	in, err := k.current()
	if err != nil {
		return nil, err
	}
	if err := checkName("label", label); err != nil {
		return nil, err
	}
	if len(data) == 0 || len(data) > MaxValue {
		return nil, fmt.Errorf("data to protect is empty or too large: %w", keys.ErrInvalid)
	}
	sealed, err := in.service.Encrypt(data, protectAD(k.cfg.Instance, label))
	if err != nil {
		return nil, fmt.Errorf("protecting: %w", keys.ErrUnavailable)
	}
	return sealed, nil
}

// Unprotect opens what Protect sealed under the same label. The caller wipes the result.
func (k *Keyring) Unprotect(_ context.Context, label string, data []byte) ([]byte, error) {
	in, err := k.current()
	if err != nil {
		return nil, err
	}
	if err := checkName("label", label); err != nil {
		return nil, err
	}
	opened, err := in.service.Decrypt(data, protectAD(k.cfg.Instance, label))
	if err != nil || len(opened) == 0 {
		return nil, keys.ErrTampered
	}
	return opened, nil
}

// Token computes the tag of an unsubscribe or confirmation link over label and data.
func (k *Keyring) Token(_ context.Context, label string, data []byte) ([]byte, error) {
	in, err := k.current()
	if err != nil {
		return nil, err
	}
	if err := checkName("label", label); err != nil {
		return nil, err
	}
	tag, err := in.token.ComputeMAC(tokenInput(k.cfg.Instance, label, data))
	if err != nil {
		return nil, fmt.Errorf("computing a token: %w", keys.ErrUnavailable)
	}
	return tag, nil
}

// VerifyToken returns keys.ErrTampered unless tag is what Token gives for label and data.
func (k *Keyring) VerifyToken(_ context.Context, label string, data, tag []byte) error {
	in, err := k.current()
	if err != nil {
		return err
	}
	if err := checkName("label", label); err != nil {
		return err
	}
	if in.token.VerifyMAC(tag, tokenInput(k.cfg.Instance, label, data)) != nil {
		return keys.ErrTampered
	}
	return nil
}
