package vault

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

const tokenSize = 16

// Indexed is a value of a field in the blind index: the normalised value, sealed under the subject's key, and
// its tokens, one under each index key in use. A token is a PRF under a key of the sidecar, so a row tells
// nothing to who does not hold it but that two values are equal.
//
// Each token is a row of the index. The version of the key stands before the token, so that tokens which were
// truncated cannot coincide across keys.
//
// Stored, for a unique field, under 'u' ‖ collection ‖ 0 ‖ field ‖ 0 ‖ key (4 bytes, big endian) ‖ token, and for
// others under 'x' ‖ collection ‖ 0 ‖ field ‖ 0 ‖ key ‖ token ‖ subject; the value is the subject in both.
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

// IndexState says which keys of the blind index are in use. Every write makes a token under each of Keys and has
// the state as a condition; lookups read the tokens under Read alone. So while an index key is replaced, each
// value has all the tokens that any lookup or any other write may look for.
//
// Stored as JSON under "mx"; absent means the first key alone. For example:
//
//	{"keys":[1,2],"read":1}
type IndexState struct {
	Keys []uint32 `json:"keys"` // ascending
	Read uint32   `json:"read"` // one of Keys

	raw []byte // the stored row, nil when absent
}

var indexStateKey = []byte("mx")

// LoadIndexState reads which keys of the blind index are in use.
func LoadIndexState(r kv.Reader) (IndexState, error) {
	rows, err := r.Get(indexStateKey)
	if err != nil {
		return IndexState{}, fmt.Errorf("reading the state of the index: %w", err)
	}
	return parseIndexState(rows[0])
}

func parseIndexState(raw []byte) (IndexState, error) {
	if raw == nil {
		return IndexState{Keys: []uint32{1}, Read: 1}, nil
	}
	x := IndexState{}
	if err := json.Unmarshal(raw, &x, json.RejectUnknownMembers(true)); err != nil {
		return IndexState{}, fmt.Errorf("%w: state of the index cannot be decoded", ErrIntegrity)
	}
	if !x.valid() || !bytes.Equal(encodeIndexState(x), raw) {
		return IndexState{}, fmt.Errorf("%w: state of the index", ErrIntegrity)
	}
	x.raw = raw
	return x, nil
}

func (x IndexState) valid() bool {
	for i, key := range x.Keys {
		if key == 0 || i > 0 && key <= x.Keys[i-1] {
			return false
		}
	}
	return slices.Contains(x.Keys, x.Read)
}

func encodeIndexState(x IndexState) []byte {
	b, err := json.Marshal(&x)
	if err != nil {
		panic("vault: state of the index cannot be encoded: " + err.Error()) // plain struct: a bug here, not input
	}
	return b
}

// Expect adds to change the condition that the state is still the one that was loaded.
func (x IndexState) Expect(change *kv.Change) { change.Expect(indexStateKey, x.raw, ErrStale) }

// Become returns the change from x to next. From its commit on, every write is made for next: those prepared for x
// fail their condition.
func (x IndexState) Become(next IndexState) (kv.Change, error) {
	if !next.valid() {
		return kv.Change{}, fmt.Errorf("%w: state of the index must read one of its keys", ErrIntegrity)
	}
	var change kv.Change
	x.Expect(&change)
	change.Set(indexStateKey, encodeIndexState(next))
	return change, nil
}

// only returns, of the tokens that the sidecar made, those under the keys in use. ErrStale is returned when one is
// missing: the sidecar does not know the key yet, or what was loaded is older than what the sidecar knows.
func (x IndexState) only(f schema.Field, tokens []IndexToken) ([]KeyedToken, error) {
	out := make([]KeyedToken, 0, len(x.Keys))
	for _, key := range x.Keys {
		t, ok := tokenUnder(key, tokens)
		if !ok {
			return nil, fmt.Errorf("%w: no token under index key %d", ErrStale, key)
		}
		out = append(out, newKeyedToken(f, t))
	}
	return out, nil
}

func tokenUnder(key uint32, tokens []IndexToken) (IndexToken, bool) {
	for _, t := range tokens {
		if t.Key == key {
			return t, true
		}
	}
	return IndexToken{}, false
}

// newIndexed truncates the tokens where the schema asks for coincidences.
func newIndexed(c *schema.Collection, field string, normaliser uint32, v IndexedValue, state IndexState) (Indexed, error) {
	f, _ := c.Field(field)
	tokens, err := state.only(f, v.Tokens)
	return Indexed{Unique: f.Index == schema.IndexUnique, Normaliser: normaliser, Sealed: v.Sealed, Tokens: tokens}, err
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

func indexPrefix(unique bool, collection, field string, token KeyedToken) []byte {
	key := make([]byte, 0, 3+len(collection)+len(field)+4+tokenSize+16)
	if unique {
		key = append(key, 'u')
	} else {
		key = append(key, 'x')
	}
	key = append(key, collection...)
	key = append(key, 0)
	key = append(key, field...)
	key = append(key, 0)
	key = binary.BigEndian.AppendUint32(key, token.Key)
	return append(key, token.Token[:]...)
}

// keys are those of the value's rows.
func (x Indexed) keys(subject uuid.UUID, collection, field string) [][]byte {
	keys := make([][]byte, len(x.Tokens))
	for i, t := range x.Tokens {
		keys[i] = indexPrefix(x.Unique, collection, field, t)
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

// Indexed reports whether the record of s in collection c lists, for field, the one of tokens that lookups read.
func (s *Subject) Indexed(c *schema.Collection, field string, normaliser uint32, tokens []IndexToken) bool {
	row := s.Rows[c.Name()]
	token, ok := tokenUnder(s.index.Read, tokens)
	if row == nil || !ok {
		return false
	}
	schemaField, _ := c.Field(field)
	want := newKeyedToken(schemaField, token)
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

// Find returns up to limit subjects whose field has a value with the one of tokens that lookups read, ascending by
// id. For a field that is not unique the tokens of different values may coincide. ErrStale is returned when that
// token is not among tokens: they were made before the index key was replaced, and are to be asked for again.
func Find(r kv.Reader, c *schema.Collection, field string, tokens []IndexToken, limit int) ([]uuid.UUID, error) {
	state, err := LoadIndexState(r)
	if err != nil {
		return nil, err
	}
	token, ok := tokenUnder(state.Read, tokens)
	if !ok {
		return nil, fmt.Errorf("%w: no token under index key %d", ErrStale, state.Read)
	}
	f, _ := c.Field(field)
	x := Indexed{Unique: f.Index == schema.IndexUnique}
	prefix := indexPrefix(x.Unique, c.Name(), field, newKeyedToken(f, token))
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

// keyOfIndexRow returns the version of the index key in the key of an index row.
func keyOfIndexRow(row []byte) (uint32, error) {
	tail := tokenSize
	if row[0] == 'x' {
		tail += len(uuid.UUID{})
	}
	at := len(row) - tail - 4
	if at < 5 { // kind, a name, 0, a name, 0
		return 0, fmt.Errorf("%w: key of an index row", ErrIntegrity)
	}
	return binary.BigEndian.Uint32(row[at:]), nil
}
