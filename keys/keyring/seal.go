package keyring

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// tokenSize is the length of a blind-index token.
const tokenSize = 16

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
		made, err := k.create(ctx, subjects, create, 0)
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

func checkIndex(v *IndexValue) error {
	if err := checkField(v.Collection, v.Field); err != nil {
		return err
	}
	if v.Value == "" || len(v.Value) > MaxIndexValue {
		return fmt.Errorf("index value is empty or too long: %w", keys.ErrInvalid)
	}
	return nil
}

// checkSealedIndex accepts a sealed index value.
func checkSealedIndex(v *IndexValue) error {
	if err := checkField(v.Collection, v.Field); err != nil {
		return err
	}
	if v.Value != "" || len(v.Sealed) == 0 || len(v.Sealed) > paddedLen(MaxIndexValue)+cipherOverhead {
		return fmt.Errorf("index value is not a sealed one, or too long: %w", keys.ErrInvalid)
	}
	return nil
}

// indexField makes tokens of a field's index values, and seals the values under the bundle's newest key.
func (k *Keyring) indexField(in *instance, subject uuid.UUID, values []IndexValue, b *bundle) ([]IndexedValue, error) {
	out := make([]IndexedValue, len(values))
	for i := range values {
		v := values[i]
		ad := indexValueAD(k.cfg.Instance, subject, &v)
		var err error
		if len(v.Sealed) > 0 {
			var opened Secret
			if opened, err = b.open(v.Sealed, ad); err != nil {
				return nil, err
			}
			v.Value = string(opened)
			opened.Wipe()
		}
		if out[i].Sealed, err = b.seal([]byte(v.Value), ad); err != nil {
			return nil, err
		}
		if out[i].Tokens, err = in.indexTokens(&v); err != nil {
			return nil, err
		}
	}
	return out, nil
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
// with whoever else creates at the time. A bundle that an epoch overtook on its way is made anew, in the next round.
func (k *Keyring) create(ctx context.Context, subjects []SealSubject, which []int, round int) ([]unlocked, error) {
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
	var jobs []*job
	first := make(map[uuid.UUID]bool, len(ids))
	for n := range which {
		if !isOf(found[n].err, keys.ErrNoKey) || first[ids[n]] {
			out[n].err = keys.ErrKeyExists
			continue
		}
		first[ids[n]] = true
		b, clear, err := newBundle()
		if err != nil {
			out[n].err = fmt.Errorf("%w: %w", keys.ErrUnavailable, err)
			continue
		}
		out[n].bundle = b
		fresh = append(fresh, n)
		jobs = append(jobs, &job{item: KEKItem{bundleContext(k.cfg.Instance, ids[n]), clear}})
	}
	if len(jobs) == 0 {
		return out, nil
	}
	if _, err = k.wraps.submit(jobs); err != nil {
		for _, j := range jobs {
			j.item.Data.Wipe()
		}
		return nil, err
	}
	if err := k.wraps.wait(ctx, jobs); err != nil {
		return nil, err
	}
	var news []newRow
	size := 0
	for m, n := range fresh {
		switch wrapped := jobs[m].result; {
		case wrapped.Err != nil:
			out[n] = unlocked{err: wrapped.Err}
		case len(wrapped.Data) > maxWrappedBytes:
			out[n] = unlocked{err: fmt.Errorf("KEK gave too much: %w", keys.ErrUnavailable)}
		default:
			news = append(news, newRow{n, ids[n], wrapped.Data})
			size = max(size, len(wrapped.Data))
		}
	}
	// In parts that a transaction takes. Each part is durable or not as one.
	part := max(1, min(maxCommitChanges, maxCommitBytes/max(size, 1)))
	var low []int // indices into which
	for part := range slices.Chunk(news, part) {
		low = append(low, k.commitNew(ctx, part, out)...)
	}
	if len(low) == 0 {
		return out, nil
	}
	again := make([]int, len(low))
	for m, n := range low {
		out[n] = unlocked{err: errOvertaken}
		again[m] = which[n]
	}
	if round == maxRounds {
		return out, nil
	}
	made, err := k.create(ctx, subjects, again, round+1)
	if err != nil {
		return nil, err
	}
	for m, n := range low {
		out[n] = made[m]
	}
	return out, nil
}

// newRow is a bundle on its way into the key store.
type newRow struct {
	index   int // in the outcomes of create
	subject uuid.UUID
	wrapped []byte
}

// commitNew writes rows for the bundles in out that news names. It returns the indices in out of those that are
// wrapped below the floor, which are not written.
func (k *Keyring) commitNew(ctx context.Context, news []newRow, out []unlocked) (low []int) {
	written := make([][]byte, len(news)) // nil: refused
	under := make([]bool, len(news))     // below the floor
	asked := make([][]byte, 0, 2*len(news))
	size := 0
	for _, r := range news {
		asked = append(asked, keyBundle(r.subject), keyTombstone(r.subject))
		size += len(r.wrapped)
	}
	err := k.writes.do(ctx, &change{items: len(news), bytes: size,
		apply: func(w kv.Writer, generation uint64) (bool, error) {
			floor, err := floorOf(w)
			if err != nil {
				return false, err
			}
			values, err := w.Get(asked...)
			if err != nil {
				return false, err
			}
			raised := false
			for m, r := range news {
				under[m] = k.below(r.wrapped, floor)
				if written[m] = nil; values[2*m] != nil || values[2*m+1] != nil || under[m] {
					continue
				}
				written[m] = row{generation: generation, keys: 1, kek: k.cfg.KEK.Name(), wrapped: r.wrapped}.encode()
				w.Set(asked[2*m], written[m])
				w.Set(keyNewest, r.subject[:])
				raised = true
			}
			return raised, nil
		}})
	for m, r := range news {
		switch {
		case err != nil: // and written may still be in use, when ctx has ended
			out[r.index] = unlocked{err: err}
		case under[m]:
			low = append(low, r.index)
		case written[m] == nil:
			out[r.index] = unlocked{err: keys.ErrKeyExists}
		default:
			k.cache.put(r.subject, written[m], out[r.index].bundle)
		}
	}
	return low
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

// Index computes blind-index tokens, under each index key in use, in the order of values. It asks neither KEK
// nor key store. One value over a limit fails the call.
func (k *Keyring) Index(_ context.Context, values []IndexValue) ([][]IndexToken, error) {
	in, err := k.current()
	if err != nil {
		return nil, err
	}
	if err := checkItems(len(values)); err != nil {
		return nil, err
	}
	tokens := make([][]IndexToken, len(values))
	for i := range values {
		if err := checkIndex(&values[i]); err != nil {
			return nil, err
		}
		if tokens[i], err = in.indexTokens(&values[i]); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

// indexTokens computes the tokens of a value, one under each index key in use.
func (in *instance) indexTokens(v *IndexValue) ([]IndexToken, error) {
	input := indexInput(v)
	defer clear(input)
	token, err := in.index.ComputePrimaryPRF(input, tokenSize)
	if err != nil {
		return nil, fmt.Errorf("computing an index token: %w", keys.ErrUnavailable)
	}
	return []IndexToken{{Key: 1, Token: token}}, nil
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
