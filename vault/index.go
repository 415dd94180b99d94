package vault

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

const tokenSize = 16

// Indexed is a value of a field in the blind index: the normalised value, sealed under the subject's key, and
// its tokens, one under each index key in use. A token is a PRF under a key of the sidecar, so a row tells
// nothing to who does not hold it but that two values are equal.
//
// Each token is a row of the index.
//
// Stored, for a unique field, under 'u' ‖ collection ‖ 0 ‖ field ‖ 0 ‖ token, and for others under
// 'x' ‖ collection ‖ 0 ‖ field ‖ 0 ‖ token ‖ subject; the value is the subject in both.
type Indexed struct {
	Unique     bool
	Normaliser uint32
	Sealed     []byte
	Tokens     []KeyedToken // ascending by Key
}

// KeyedToken is a token and the version of the index key that it was made with.
type KeyedToken struct {
	Key   uint32
	Token [tokenSize]byte
}

// newIndexed truncates the tokens where the schema asks for coincidences.
func newIndexed(c *schema.Collection, field string, normaliser uint32, v IndexedValue) Indexed {
	f, _ := c.Field(field)
	x := Indexed{Unique: f.Index == schema.IndexUnique, Normaliser: normaliser, Sealed: v.Sealed}
	for _, t := range v.Tokens {
		x.Tokens = append(x.Tokens, newKeyedToken(f, t))
	}
	return x
}

func newKeyedToken(f schema.Field, t IndexToken) KeyedToken {
	k := KeyedToken{Key: t.Key}
	copy(k.Token[:], t.Token)
	truncate(&k.Token, f.IndexBits)
	return k
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

// keys are those of the value's rows.
func (x Indexed) keys(subject uuid.UUID, collection, field string) [][]byte {
	keys := make([][]byte, len(x.Tokens))
	for i, t := range x.Tokens {
		keys[i] = indexPrefix(x.Unique, collection, field, t.Token)
		if !x.Unique {
			keys[i] = append(keys[i], subject[:]...)
		}
	}
	return keys
}

type fieldIndex struct {
	Indexed
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
			for _, key := range x.keys(s.ID, collection, f.Name) {
				keys[string(key)] = fieldIndex{x, f.Name}
			}
		}
	}
	return keys
}

// Indexed reports whether the record of s in collection c lists the first of tokens for field.
func (s *Subject) Indexed(c *schema.Collection, field string, normaliser uint32, tokens []IndexToken) bool {
	row := s.Rows[c.Name()]
	if row == nil {
		return false
	}
	schemaField, _ := c.Field(field)
	want := newKeyedToken(schemaField, tokens[0])
	for _, f := range row.Fields {
		if f.Name != field {
			continue
		}
		for _, x := range f.Index {
			if x.Normaliser == normaliser && slices.Contains(x.Tokens, want) {
				return true
			}
		}
	}
	return false
}

// Find returns up to limit subjects whose field has a value with the first of tokens, ascending by id. For a
// field that is not unique the tokens of different values may coincide.
func Find(r kv.Reader, c *schema.Collection, field string, tokens []IndexToken, limit int) ([]uuid.UUID, error) {
	f, _ := c.Field(field)
	x := Indexed{Unique: f.Index == schema.IndexUnique}
	prefix := indexPrefix(x.Unique, c.Name(), field, newKeyedToken(f, tokens[0]).Token)
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
