package vault

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
)

// The rows of the blind index are left out of backups: they are keyed hashes of personal data that no subject's key
// protects. Records list what they were made of, so a restore makes them again.

// IsIndexRow reports whether a row is one of the blind index, from the first byte of its key.
func IsIndexRow(key []byte) bool { return len(key) > 0 && (key[0] == 'u' || key[0] == 'x') }

// IndexRows returns the rows of the blind index that a record's row asks for; none for a row that is no record.
func IndexRows(key, value []byte) ([]kv.Pair, error) {
	if len(key) == 0 || key[0] != 'r' {
		return nil, nil
	}
	if len(key) < 1+16+1 {
		return nil, fmt.Errorf("%w: key of a record", ErrIntegrity)
	}
	subject, collection := uuid.UUID(key[1:17]), string(key[17:])
	row, err := parseRow(value)
	if err != nil {
		return nil, err
	}
	var pairs []kv.Pair
	for _, f := range row.Fields {
		for _, x := range f.Index {
			for _, k := range x.keys(subject, collection, f.Name) {
				pairs = append(pairs, kv.Pair{Key: k, Value: subject[:]})
			}
		}
	}
	return pairs, nil
}

// Heads returns up to limit subjects after the given one (the zero UUID: from the first), ascending by id, erased
// ones included. None is the end.
func Heads(r kv.Reader, after uuid.UUID, limit int) ([]*Subject, error) {
	var from []byte
	if after != uuid.Nil {
		from = headKey(after)
	}
	pairs, err := r.Scan([]byte{'s'}, from, limit)
	if err != nil {
		return nil, fmt.Errorf("reading subjects: %w", err)
	}
	subjects := make([]*Subject, len(pairs))
	for i, p := range pairs {
		if len(p.Key) != 1+16 {
			return nil, fmt.Errorf("%w: key of a head", ErrIntegrity)
		}
		s := &Subject{ID: uuid.UUID(p.Key[1:]), raw: p.Value}
		if s.Head, err = parseHead(p.Value); err != nil {
			return nil, err
		}
		subjects[i] = s
	}
	return subjects, nil
}
