package vault

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

// SealedItem is one ciphertext in the records of a subject: that of a field, or of a value in the index.
type SealedItem struct {
	Collection, Field string
	Index             bool
	Version           uint64 // of the record: what a field is bound to
	Normaliser        uint32 // what an index value is bound to
	Ciphertext        []byte
}

// StaleError names the subject whose state changed meanwhile. It wraps ErrStale.
type StaleError struct{ Subject uuid.UUID }

func (e *StaleError) Error() string { return ErrStale.Error() }

// Unwrap returns ErrStale.
func (e *StaleError) Unwrap() error { return ErrStale }

// Renewed is the records of one subject, sealed again or indexed again, waiting to be committed. No content and no
// version of a record changes by it.
type Renewed struct {
	Records []PreparedItem // those that changed, sorted by collection

	subject *Subject
	changes kv.Change
}

// Subjects returns up to limit subjects after the given one (zero: from the first), ascending by id, with those that
// were erased. It reads heads only.
func Subjects(r kv.Reader, after uuid.UUID, limit int) ([]uuid.UUID, error) {
	var from []byte
	if after != uuid.Nil {
		from = headKey(after)
	}
	pairs, err := r.Scan([]byte{'s'}, from, limit)
	if err != nil {
		return nil, fmt.Errorf("listing subjects: %w", err)
	}
	ids := make([]uuid.UUID, len(pairs))
	for i, p := range pairs {
		if ids[i], err = uuid.FromBytes(p.Key[1:]); err != nil {
			return nil, fmt.Errorf("%w: key of a head", ErrIntegrity)
		}
	}
	return ids, nil
}

// LoadAll is Load with every record that the head lists.
func LoadAll(r kv.Reader, subject uuid.UUID) (*Subject, error) {
	s, err := Load(r, subject)
	if err != nil {
		return s, err
	}
	names := s.collections()
	if len(names) == 0 {
		return s, nil
	}
	keys := make([][]byte, len(names))
	for i, c := range names {
		keys[i] = recordKey(subject, c)
	}
	values, err := r.Get(keys...)
	if err != nil {
		return nil, fmt.Errorf("reading subject: %w", err)
	}
	if err := s.take(names, values); err != nil {
		return nil, err
	}
	return s, nil
}

// collections returns the names of those in which the subject has a record, sorted.
func (s *Subject) collections() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.Head.Records)) {
		if !s.Head.Records[name].Deleted {
			names = append(names, name)
		}
	}
	return names
}

// Sealed lists every ciphertext in the loaded records, in the order that Reseal takes their replacements in.
func (s *Subject) Sealed() []SealedItem {
	var items []SealedItem
	for _, name := range slices.Sorted(maps.Keys(s.Rows)) {
		row := s.Rows[name]
		for _, f := range row.Fields {
			items = append(items, SealedItem{Collection: name, Field: f.Name, Version: row.Version, Ciphertext: f.Ciphertext})
			for _, x := range f.Index {
				items = append(items, SealedItem{Collection: name, Field: f.Name, Index: true, Normaliser: x.Normaliser, Ciphertext: x.Sealed})
			}
		}
	}
	return items
}

// Reseal puts ciphertexts, in the order of Sealed, in the place of those that were loaded; nil leaves one as it is.
// The change it makes renews the head in each case, so that a write which sealed under the key before meets its
// condition failing.
func (s *Subject) Reseal(ciphertexts [][]byte) (*Renewed, error) {
	if len(ciphertexts) != len(s.Sealed()) {
		return nil, fmt.Errorf("%w: %d ciphertexts for %d", ErrIntegrity, len(ciphertexts), len(s.Sealed()))
	}
	take := func(old []byte) (new []byte, changed bool) {
		c := ciphertexts[0]
		ciphertexts = ciphertexts[1:]
		if c == nil {
			return old, false
		}
		return c, true
	}
	r := &Renewed{subject: s}
	for _, name := range slices.Sorted(maps.Keys(s.Rows)) {
		row := s.Rows[name].clone()
		changed := false
		for i := range row.Fields {
			f := &row.Fields[i]
			var new bool
			f.Ciphertext, new = take(f.Ciphertext)
			changed = changed || new
			for j := range f.Index {
				f.Index[j].Sealed, new = take(f.Index[j].Sealed)
				changed = changed || new
			}
		}
		if changed {
			r.add(name, row)
		}
	}
	return r, nil
}

// Unindexed lists the sealed index values of the loaded records whose tokens are not exactly those of the keys in
// use, in the order that Reindex takes their tokens in.
func (s *Subject) Unindexed() []SealedItem {
	var items []SealedItem
	s.eachUnindexed(func(collection string, f *Field, x *Indexed) {
		items = append(items, SealedItem{Collection: collection, Field: f.Name, Index: true, Normaliser: x.Normaliser, Ciphertext: x.Sealed})
	})
	return items
}

func (s *Subject) eachUnindexed(visit func(collection string, f *Field, x *Indexed)) {
	for _, name := range slices.Sorted(maps.Keys(s.Rows)) {
		row := s.Rows[name]
		for i := range row.Fields {
			for j := range row.Fields[i].Index {
				x := &row.Fields[i].Index[j]
				if !slices.EqualFunc(x.Tokens, s.index.Keys, func(t KeyedToken, key uint32) bool { return t.Key == key }) {
					visit(name, &row.Fields[i], x)
				}
			}
		}
	}
}

// Reindex gives each of Unindexed exactly the tokens under the keys in use: those that it has are kept, the others
// taken from tokens, which may be nil where none is missing. collection finds the schema of a collection, which says
// how many bits of a token are kept. ErrStale is returned when a token is missing.
func (s *Subject) Reindex(tokens [][]IndexToken, collection func(name string) (*schema.Collection, bool)) (*Renewed, error) {
	if n := len(s.Unindexed()); len(tokens) != n {
		return nil, fmt.Errorf("%w: tokens of %d values for %d", ErrIntegrity, len(tokens), n)
	}
	rows := make(map[string]*Row, len(s.Rows))
	for name, row := range s.Rows {
		rows[name] = row.clone()
	}
	changed := make(map[string]bool)
	after := &Subject{ID: s.ID, Rows: rows, index: s.index}
	next := 0
	var failed error
	after.eachUnindexed(func(name string, f *Field, x *Indexed) {
		made := tokens[next]
		next++
		changed[name] = true
		kept := make([]KeyedToken, 0, len(s.index.Keys))
		for _, key := range s.index.Keys {
			if i := slices.IndexFunc(x.Tokens, func(t KeyedToken) bool { return t.Key == key }); i >= 0 {
				kept = append(kept, x.Tokens[i])
				continue
			}
			t, ok := tokenUnder(key, made)
			if !ok {
				failed = errors.Join(failed, fmt.Errorf("%w: no token under index key %d", ErrStale, key))
				return
			}
			c, ok := collection(name)
			if !ok {
				failed = errors.Join(failed, fmt.Errorf("%w: record of an unknown collection", ErrIntegrity))
				return
			}
			schemaField, _ := c.Field(f.Name)
			kept = append(kept, newKeyedToken(schemaField, t))
		}
		x.Tokens = kept
	})
	if failed != nil {
		return nil, failed
	}
	r := &Renewed{subject: s}
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		r.add(name, rows[name])
	}
	return r, nil
}

// Missing reports whether some value lacks a token under a key in use, which only the sidecar can make.
func (s *Subject) Missing() bool {
	missing := false
	s.eachUnindexed(func(_ string, _ *Field, x *Indexed) {
		for _, key := range s.index.Keys {
			if !slices.ContainsFunc(x.Tokens, func(t KeyedToken) bool { return t.Key == key }) {
				missing = true
			}
		}
	})
	return missing
}

func (r *Renewed) add(collection string, row *Row) {
	value := encodeRow(row)
	r.Records = append(r.Records, PreparedItem{Collection: collection, Version: row.Version, Digest: digest(value)})
	r.changes.Set(recordKey(r.subject.ID, collection), value)
	reindex(&r.changes, r.subject, collection, row)
}

// Subject returns the subject that was renewed.
func (r *Renewed) Subject() uuid.UUID { return r.subject.ID }

// Size returns the bytes that the change writes.
func (r *Renewed) Size() int {
	n := 0
	for _, p := range r.changes.Sets {
		n += len(p.Key) + len(p.Value)
	}
	return n
}

// Change returns the state change. When the subject changed since it was loaded, it fails with a *StaleError.
func (r *Renewed) Change() kv.Change {
	s := r.subject
	stale := &StaleError{s.ID}
	var change kv.Change
	change.Expect(headKey(s.ID), s.raw, stale)
	change.Expect(indexStateKey, s.index.raw, stale)
	change.Merge(r.changes)
	head := s.Head
	head.Version++
	head.Records = maps.Clone(head.Records)
	for _, item := range r.Records {
		record := head.Records[item.Collection]
		record.Digest = item.Digest
		head.Records[item.Collection] = record
	}
	change.Set(headKey(s.ID), encodeHead(head))
	return change
}

// StrayTokens returns up to limit keys of index rows, after the given one (nil: from the first), that are under none
// of the keys in use, and the key to go on after (nil: the end was reached). While the index is consistent there are
// none.
func StrayTokens(r kv.Reader, state IndexState, after []byte, limit int) (stray [][]byte, next []byte, err error) {
	for _, kind := range []byte{'u', 'x'} {
		if len(after) > 0 && after[0] > kind {
			continue
		}
		from := after
		if len(after) > 0 && after[0] < kind {
			from = nil
		}
		pairs, err := r.Scan([]byte{kind}, from, limit)
		if err != nil {
			return nil, nil, fmt.Errorf("reading index: %w", err)
		}
		for _, p := range pairs {
			key, err := keyOfIndexRow(p.Key)
			if err != nil {
				return nil, nil, err
			}
			if !slices.Contains(state.Keys, key) {
				stray = append(stray, p.Key)
			}
		}
		if len(pairs) == limit {
			return stray, pairs[len(pairs)-1].Key, nil
		}
	}
	return stray, nil, nil
}

// WithoutTokens returns the subject as if no value in its records had a token yet, for who has removed all rows of the
// index: all that it lists as Unindexed is made anew.
func (s *Subject) WithoutTokens() *Subject {
	bare := *s
	bare.Rows = make(map[string]*Row, len(s.Rows))
	for name, row := range s.Rows {
		row = row.clone()
		for i := range row.Fields {
			for j := range row.Fields[i].Index {
				row.Fields[i].Index[j].Tokens = nil
			}
		}
		bare.Rows[name] = row
	}
	return &bare
}

// IndexRowKeys returns the keys of up to limit rows of the index.
func IndexRowKeys(r kv.Reader, limit int) (keys [][]byte, err error) {
	for _, kind := range []byte{'u', 'x'} {
		pairs, err := r.Scan([]byte{kind}, nil, limit-len(keys))
		if err != nil {
			return nil, fmt.Errorf("reading index: %w", err)
		}
		for _, p := range pairs {
			keys = append(keys, p.Key)
		}
		if len(keys) == limit {
			break
		}
	}
	return keys, nil
}
