package vault

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

const tokenSize = 16

// IndexEntry is one row of the blind index: the token of a normalised value. The token is a PRF under a
// key of the sidecar, so the row tells nothing to who does not hold it but that two values are equal.
//
// Stored, for a unique field, under 'u' ‖ collection ‖ 0 ‖ field ‖ 0 ‖ token, and for others under
// 'x' ‖ collection ‖ 0 ‖ field ‖ 0 ‖ token ‖ subject; the value is the subject in both.
type IndexEntry struct {
	Unique     bool
	Normaliser uint32
	Token      [tokenSize]byte
}

// newIndexEntry truncates the token where the schema asks for coincidences.
func newIndexEntry(c *schema.Collection, field string, normaliser uint32, token []byte) IndexEntry {
	f, _ := c.Field(field)
	x := IndexEntry{Unique: f.Index == schema.IndexUnique, Normaliser: normaliser}
	copy(x.Token[:], token)
	truncate(&x.Token, f.IndexBits)
	return x
}

// truncate clears all but the first n bits.
func truncate(t *[tokenSize]byte, n int) {
	for i := range t {
		switch keep := n - 8*i; {
		case keep <= 0:
			t[i] = 0
		case keep < 8:
			t[i] &= byte(0xff << (8 - keep))
		}
	}
}

func indexPrefix(unique bool, collection, field string, token [tokenSize]byte) []byte {
	key := make([]byte, 0, 3+len(collection)+len(field)+tokenSize+16)
	if unique {
		key = append(key, 'u')
	} else {
		key = append(key, 'x')
	}
	key = append(key, collection...)
	key = append(key, 0)
	key = append(key, field...)
	key = append(key, 0)
	return append(key, token[:]...)
}

func (x IndexEntry) key(subject uuid.UUID, collection, field string) []byte {
	key := indexPrefix(x.Unique, collection, field, x.Token)
	if !x.Unique {
		key = append(key, subject[:]...)
	}
	return key
}

type fieldIndex struct {
	IndexEntry
	field string
}

// indexKeys returns the index rows of a record by their keys.
func indexKeys(s *Subject, collection string, row *Row) map[string]fieldIndex {
	if row == nil {
		return nil
	}
	keys := make(map[string]fieldIndex)
	for _, f := range row.Fields {
		for _, x := range f.Index {
			keys[string(x.key(s.ID, collection, f.Name))] = fieldIndex{x, f.Name}
		}
	}
	return keys
}

// Indexed reports whether the record of s in collection c lists the token for field.
func (s *Subject) Indexed(c *schema.Collection, field string, normaliser uint32, token []byte) bool {
	row := s.Rows[c.Name()]
	if row == nil {
		return false
	}
	want := newIndexEntry(c, field, normaliser, token)
	for _, f := range row.Fields {
		if f.Name == field {
			return slices.Contains(f.Index, want)
		}
	}
	return false
}

// Find returns up to limit subjects whose field has a value with the given token, ascending by id. For a
// field that is not unique the tokens of different values may coincide.
func Find(r kv.Reader, c *schema.Collection, field string, normaliser uint32, token []byte, limit int) ([]uuid.UUID, error) {
	x := newIndexEntry(c, field, normaliser, token)
	prefix := indexPrefix(x.Unique, c.Name(), field, x.Token)
	var values [][]byte
	if x.Unique {
		v, err := r.Get(prefix)
		if err != nil {
			return nil, fmt.Errorf("reading index: %w", err)
		}
		if v[0] != nil {
			values = v
		}
	} else {
		pairs, err := r.Scan(prefix, nil, limit)
		if err != nil {
			return nil, fmt.Errorf("reading index: %w", err)
		}
		for _, p := range pairs {
			values = append(values, p.Value)
		}
	}
	subjects := make([]uuid.UUID, 0, len(values))
	for _, v := range values {
		id, err := uuid.FromBytes(v)
		if err != nil {
			return nil, fmt.Errorf("%w: index row", ErrIntegrity)
		}
		subjects = append(subjects, id)
	}
	return subjects, nil
}
