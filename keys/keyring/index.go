package keyring

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
	"github.com/tink-crypto/tink-go/v2/prf"
)

// tokenSize is the length of a blind-index token.
const tokenSize = 16

// indexKey is one key of the blind index.
type indexKey struct {
	version uint32
	prf     prf.PRF
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

func checkIndex(v *IndexValue) error {
	if err := checkField(v.Collection, v.Field); err != nil {
		return err
	}
	if v.Value == "" || len(v.Value) > MaxIndexValue || len(v.Sealed) > 0 {
		return fmt.Errorf("index value is empty, too long, or sealed as well: %w", keys.ErrInvalid)
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
		if tokens[i], err = in.indexTokens(&values[i], []byte(values[i].Value)); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

// Reindex computes the tokens of sealed index values, under each index key in use. Outcomes are in the order of
// subjects, each for itself: the tokens of all its values or none. A subject fails as in Seal, with
// keys.ErrTampered when a value was sealed for another subject, field or normaliser. No value leaves.
func (k *Keyring) Reindex(ctx context.Context, subjects []ReindexSubject) ([]ReindexedSubject, error) {
	in, err := k.current()
	if err != nil {
		return nil, err
	}
	if err := checkItems(len(subjects)); err != nil {
		return nil, err
	}
	ids := make([]uuid.UUID, len(subjects))
	for i := range subjects {
		ids[i] = subjects[i].Subject
	}
	found, err := k.bundlesInPassing(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]ReindexedSubject, len(subjects))
	for i := range subjects {
		if out[i].Err = found[i].err; out[i].Err != nil {
			continue
		}
		tokens, err := k.reindex(in, &subjects[i], found[i].bundle)
		if err != nil {
			out[i].Err = err
			continue
		}
		out[i].Ref, out[i].Tokens = found[i].bundle.refBytes(), tokens
	}
	return out, nil
}

func (k *Keyring) reindex(in *instance, s *ReindexSubject, b *bundle) ([][]IndexToken, error) {
	if len(s.Values) > MaxFields*MaxIndexValues {
		return nil, fmt.Errorf("too many index values: %w", keys.ErrInvalid)
	}
	tokens := make([][]IndexToken, len(s.Values))
	for i := range s.Values {
		v := &s.Values[i]
		if err := checkSealedIndex(v); err != nil {
			return nil, err
		}
		value, err := b.open(v.Sealed, indexValueAD(k.cfg.Instance, s.Subject, v))
		if err == nil {
			tokens[i], err = in.indexTokens(v, value)
			value.Wipe()
		}
		if err != nil {
			return nil, fmt.Errorf("index value %d: %w", i, err)
		}
	}
	return tokens, nil
}

// indexField makes tokens of a field's index values, and seals the values under the bundle's newest key.
func (k *Keyring) indexField(in *instance, subject uuid.UUID, values []IndexValue, b *bundle) ([]IndexedValue, error) {
	out := make([]IndexedValue, len(values))
	for i := range values {
		var err error
		if out[i], err = k.indexValue(in, subject, &values[i], b); err != nil {
			return nil, fmt.Errorf("index value %d: %w", i, err)
		}
	}
	return out, nil
}

func (k *Keyring) indexValue(in *instance, subject uuid.UUID, v *IndexValue, b *bundle) (out IndexedValue, err error) {
	ad := indexValueAD(k.cfg.Instance, subject, v)
	value := Secret(v.Value)
	if len(v.Sealed) > 0 {
		if value, err = b.open(v.Sealed, ad); err != nil {
			return out, err
		}
	}
	defer value.Wipe()
	if out.Sealed, err = b.seal(value, ad); err != nil {
		return out, err
	}
	out.Tokens, err = in.indexTokens(v, value)
	return out, err
}

// indexTokens computes the tokens of value, one under each index key in use; of v it takes what else belongs to
// them.
func (in *instance) indexTokens(v *IndexValue, value []byte) ([]IndexToken, error) {
	input := indexInput(v, value)
	defer clear(input)
	tokens := make([]IndexToken, len(in.index))
	for i, key := range in.index {
		token, err := key.prf.ComputePRF(input, tokenSize)
		if err != nil {
			return nil, fmt.Errorf("computing an index token: %w", keys.ErrUnavailable)
		}
		tokens[i] = IndexToken{Key: key.version, Token: token}
	}
	return tokens, nil
}

// beginIndex adds a key to the index keyset, durably, and returns its version. From then on tokens are computed
// under both. When there are two already, it returns the newer and changes nothing.
func (k *Keyring) beginIndex(ctx context.Context) (version uint32, err error) {
	err = k.changeKeyset(ctx, "index", func(b Secret) (Secret, error) {
		s, err := parseKeyset("index", b)
		if err != nil {
			return nil, err
		}
		if version = s.newest(); len(s.versions) > 1 {
			return nil, nil
		}
		if err := s.add("index", k.cfg.Now()); err != nil {
			return nil, err
		}
		version = s.newest()
		return s.serialise()
	})
	if err != nil {
		return 0, fmt.Errorf("adding an index key: %w", err)
	}
	return version, nil
}

// endIndex drops the index keys before version, durably. It fails with keys.ErrInvalid when there is no such
// version, and may be called again.
func (k *Keyring) endIndex(ctx context.Context, version uint32) error {
	err := k.changeKeyset(ctx, "index", func(b Secret) (Secret, error) {
		s, err := parseKeyset("index", b)
		if err != nil {
			return nil, err
		}
		dropped, err := s.dropBefore(version)
		if err != nil || !dropped {
			return nil, err
		}
		return s.serialise()
	})
	if err != nil {
		return fmt.Errorf("dropping index keys: %w", err)
	}
	return nil
}
