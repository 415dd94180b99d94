// Package vault keeps the records of subjects: ciphertexts per field, the head that says which record has
// which version, and the rows of the blind index.
//
// Each field is sealed by the sidecar under the subject's own key and bound to instance, subject,
// collection, field and record version. The package sees plaintext of a write on its way to the sidecar and
// never a key; of a read it sees ciphertext only. HashiCorp Vault is not needed here.
//
// The package never commits anything itself: it says what a state change is (a kv.Change with its
// conditions), and the ledger commits it together with the entry that accounts for it. It must never
// decide whether somebody may read or write.
package vault

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

var (
	// ErrNoSubject is returned when no such subject exists or it was erased.
	ErrNoSubject = errors.New("vault: no such subject")
	// ErrNoRecord is returned when the subject has no record in the collection.
	ErrNoRecord = errors.New("vault: no such record")
	// ErrStale is returned when the subject, or which keys of the blind index are in use, changed between decision
	// and commit: through a condition, or already while a write is prepared. Load again and start over.
	ErrStale = errors.New("vault: subject changed meanwhile")
	// ErrIntegrity is returned when a row contradicts its head or cannot be decoded.
	ErrIntegrity = errors.New("vault: stored rows contradict each other")
	// ErrNotUnique is returned, through a condition, as a *NotUniqueError.
	ErrNotUnique = errors.New("vault: value of a unique field is taken")
)

// NotUniqueError names the field whose value another subject has. It wraps ErrNotUnique.
type NotUniqueError struct{ Collection, Field string }

func (e *NotUniqueError) Error() string {
	return fmt.Sprintf("vault: value of %s/%s is taken", e.Collection, e.Field)
}

// Unwrap returns ErrNotUnique.
func (e *NotUniqueError) Unwrap() error { return ErrNotUnique }

// SealField is one field on its way to the sidecar. It is an alias of an unnamed struct so that the
// sidecar's client, which may not import this package, satisfies Sealer by shape.
type SealField = struct {
	Collection, Field string
	Version           uint64       // record version that the ciphertext will be bound to
	Plaintext         []byte       // JSON value; or, when nil,
	Carry             []byte       // a ciphertext of the same field, resealed without leaving the sidecar
	CarryVersion      uint64       // version that Carry is bound to
	Index             []IndexValue // values to make tokens of
}

// IndexValue is a value to make tokens of.
type IndexValue = struct {
	Normaliser uint32 // version of the normaliser
	Value      string // normalised; or
	Sealed     []byte // the value as an IndexedValue holds it
}

// SealedField is what the sidecar made of a SealField.
type SealedField = struct {
	Ciphertext []byte
	Index      []IndexedValue // in the order of SealField.Index
}

// IndexedValue is an index value sealed under the subject's key, from which the sidecar can make tokens under a
// later index key, and its tokens, ascending by key.
type IndexedValue = struct {
	Sealed []byte
	Tokens []IndexToken
}

// IndexToken is a token of the blind index, 16 bytes, and the version of the index key that it was made with.
type IndexToken = struct {
	Key   uint32
	Token []byte
}

// Sealer seals fields under the key of a subject. Its errors say whether the key service is unavailable or
// the subject's key is gone; in each case nothing was sealed.
type Sealer interface {
	// Seal seals fields of one subject. With create the subject's key is made first, and it is an error
	// if there is or was one. ref names the subject in the ledger.
	Seal(ctx context.Context, subject uuid.UUID, create bool, fields []SealField) (ref []byte, sealed []SealedField, err error)
}

// Plain is the new content of one record: field name to JSON value.
type Plain map[string][]byte

// Vault makes state changes of subjects.
type Vault struct{ sealer Sealer }

// New returns a Vault that seals with sealer.
func New(sealer Sealer) (*Vault, error) {
	if sealer == nil {
		return nil, errors.New("vault: a Sealer is required")
	}
	return &Vault{sealer}, nil
}

// Load reads the head of subject and the record of each of collections from one snapshot. A collection
// that the subject has no record in is absent from the result's Rows. ErrNoSubject is returned for an
// absent and for an erased subject, together with a Subject whose Checks still hold the state that was seen.
func Load(r kv.Reader, subject uuid.UUID, collections ...string) (*Subject, error) {
	index, err := LoadIndexState(r)
	if err != nil {
		return nil, err
	}
	s, err := LoadToRead(r, subject, collections...)
	if s != nil {
		s.index = index
	}
	return s, err
}

// LoadToRead is Load for who will not write: the state of the index is left out, and a write on what it returns is
// refused. Reads are many, and that state concerns none of them.
func LoadToRead(r kv.Reader, subject uuid.UUID, collections ...string) (*Subject, error) {
	keys := make([][]byte, 1, 1+len(collections))
	keys[0] = headKey(subject)
	for _, c := range collections {
		keys = append(keys, recordKey(subject, c))
	}
	values, err := r.Get(keys...)
	if err != nil {
		return nil, fmt.Errorf("reading subject: %w", err)
	}
	s := &Subject{ID: subject, raw: values[0]}
	if s.raw == nil {
		return s, ErrNoSubject
	}
	if s.Head, err = parseHead(s.raw); err != nil {
		return nil, err
	}
	if s.Head.Erased {
		return s, ErrNoSubject
	}
	if err := s.take(collections, values[1:]); err != nil {
		return nil, err
	}
	return s, nil
}

// take adds the records of collections, whose values were read from the snapshot of the head.
func (s *Subject) take(collections []string, values [][]byte) error {
	s.Rows = make(map[string]*Row, len(collections))
	for i, c := range collections {
		info, listed := s.Head.Records[c]
		listed = listed && !info.Deleted
		value := values[i]
		if listed != (value != nil) {
			return fmt.Errorf("%w: head and record disagree on existence", ErrIntegrity)
		}
		if !listed {
			continue
		}
		row, err := parseRow(value)
		if err != nil {
			return err
		}
		if row.Version != info.Version || digest(value) != info.Digest {
			return fmt.Errorf("%w: record is not the one that the head names", ErrIntegrity)
		}
		s.Rows[c] = row
	}
	return nil
}

// Subject is the state of one subject as one snapshot showed it.
type Subject struct {
	ID   uuid.UUID
	Head Head
	Rows map[string]*Row // of the collections that were loaded

	raw   []byte     // the stored head, nil when absent
	index IndexState // what writes must make tokens for
}

// Exists reports whether the subject is there and not erased.
func (s *Subject) Exists() bool { return s.raw != nil && !s.Head.Erased }

// Expect adds to change the condition that the head is still the one that was loaded.
func (s *Subject) Expect(change *kv.Change) { change.Expect(headKey(s.ID), s.raw, ErrStale) }

// Prepared is a sealed write that waits to be committed.
type Prepared struct {
	Ref     []byte         // subject_ref, 32 bytes
	Records []PreparedItem // one per record written or deleted, sorted by collection

	subject *Subject
	changes kv.Change // rows and index; the head is made at commit
}

// PreparedItem is what the ledger entry says of one record.
type PreparedItem struct {
	Collection string
	Version    uint64 // new version
	Fields     []string
	Digest     string // base64url SHA-256 of the row; empty when deleted
	Deleted    bool
}

// Subject returns the subject that is written.
func (p *Prepared) Subject() uuid.UUID { return p.subject.ID }

// Change returns the state change for a commit at index of the ledger at time t.
func (p *Prepared) Change(index int64, t time.Time) kv.Change {
	var change kv.Change
	p.subject.Expect(&change)
	p.subject.index.Expect(&change)
	change.Merge(p.changes)
	head := p.subject.Head
	head.Version++
	if p.subject.raw == nil {
		head = Head{Format: headFormat, Version: 1, Created: t.UTC().Truncate(time.Millisecond)}
	}
	head.Records = maps.Clone(head.Records)
	if head.Records == nil {
		head.Records = make(map[string]RecordHead, len(p.Records))
	}
	for _, r := range p.Records {
		head.Records[r.Collection] = RecordHead{Version: r.Version, Entry: index, Digest: r.Digest, Deleted: r.Deleted}
	}
	change.Set(headKey(p.subject.ID), encodeHead(head))
	return change
}

// Create seals the first records of a new subject, for the keys of the index that were in use when index was loaded.
func (v *Vault) Create(ctx context.Context, subject uuid.UUID, index IndexState, records map[*schema.Collection]Plain) (*Prepared, error) {
	return v.seal(ctx, &Subject{ID: subject, index: index}, true, records, nil)
}

// Put seals a whole record, replacing the one that s was loaded with, if any.
func (v *Vault) Put(ctx context.Context, s *Subject, c *schema.Collection, plain Plain) (*Prepared, error) {
	return v.seal(ctx, s, false, map[*schema.Collection]Plain{c: plain}, nil)
}

// Patch seals the fields of set, drops those of remove, and reseals the others under the new version inside
// the sidecar. s must have been loaded with the collection.
func (v *Vault) Patch(ctx context.Context, s *Subject, c *schema.Collection, set Plain, remove []string) (*Prepared, error) {
	row := s.Rows[c.Name()]
	if row == nil {
		return nil, ErrNoRecord
	}
	var carry []Field
	for _, f := range row.Fields {
		if _, replaced := set[f.Name]; !replaced && !slices.Contains(remove, f.Name) {
			carry = append(carry, f)
		}
	}
	return v.seal(ctx, s, false, map[*schema.Collection]Plain{c: set}, carry)
}

// Delete prepares the removal of a record. s must have been loaded with the collection.
func (v *Vault) Delete(s *Subject, collection string) (*Prepared, error) {
	row := s.Rows[collection]
	if row == nil {
		return nil, ErrNoRecord
	}
	p := &Prepared{subject: s, Records: []PreparedItem{{Collection: collection, Version: row.Version + 1, Deleted: true}}}
	p.changes.Delete(recordKey(s.ID, collection))
	for _, f := range row.Fields {
		for _, x := range f.Index {
			for _, key := range x.keys(s.ID, collection, f.Name) {
				p.changes.Delete(key)
			}
		}
	}
	return p, nil
}

// SetRestriction prepares the setting or lifting of the restriction of processing.
func (v *Vault) SetRestriction(s *Subject, on bool) kv.Change {
	var change kv.Change
	s.Expect(&change)
	head := s.Head
	head.Version++
	head.Restricted = on
	change.Set(headKey(s.ID), encodeHead(head))
	return change
}

// seal makes rows of records, and of carry for the only one of them, and the index changes they bring.
func (v *Vault) seal(ctx context.Context, s *Subject, create bool, records map[*schema.Collection]Plain, carry []Field) (*Prepared, error) {
	if len(s.index.Keys) == 0 {
		return nil, errors.New("vault: a subject that was loaded to be read is not written")
	}
	p := &Prepared{subject: s}
	collections := slices.SortedFunc(maps.Keys(records), func(a, b *schema.Collection) int {
		return strings.Compare(a.Name(), b.Name())
	})

	var fields []SealField
	var owners []owner
	for _, c := range collections {
		version := s.Head.Records[c.Name()].Version + 1
		for _, name := range slices.Sorted(maps.Keys(records[c])) {
			value := records[c][name]
			fields = append(fields, SealField{Collection: c.Name(), Field: name, Version: version, Plaintext: value})
			owners = append(owners, owner{c: c, field: name})
			if f, _ := c.Field(name); f.Index == schema.IndexNone {
				continue
			}
			values, normaliser, err := c.IndexValues(name, value)
			if err != nil {
				return nil, err
			}
			for _, x := range values {
				f := &fields[len(fields)-1]
				f.Index = append(f.Index, IndexValue{Normaliser: normaliser, Value: x})
			}
		}
		for _, f := range carry {
			carried := SealField{Collection: c.Name(), Field: f.Name, Version: version, Carry: f.Ciphertext, CarryVersion: s.Rows[c.Name()].Version}
			for _, x := range f.Index {
				carried.Index = append(carried.Index, IndexValue{Normaliser: x.Normaliser, Sealed: x.Sealed})
			}
			fields = append(fields, carried)
			owners = append(owners, owner{c: c, field: f.Name})
		}
	}

	ref, sealed, err := v.sealer.Seal(ctx, s.ID, create, fields)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if len(sealed) != len(fields) {
		return nil, fmt.Errorf("%w: sidecar answered %d fields for %d", ErrIntegrity, len(sealed), len(fields))
	}
	p.Ref = ref
	for _, c := range collections {
		row := &Row{Version: s.Head.Records[c.Name()].Version + 1}
		for i, o := range owners {
			if o.c != c {
				continue
			}
			f := Field{Name: o.field, Ciphertext: sealed[i].Ciphertext}
			if len(sealed[i].Index) != len(fields[i].Index) {
				return nil, fmt.Errorf("%w: sidecar answered %d index values for %d", ErrIntegrity, len(sealed[i].Index), len(fields[i].Index))
			}
			for n, x := range sealed[i].Index {
				indexed, err := newIndexed(c, o.field, fields[i].Index[n].Normaliser, x, s.index)
				if err != nil {
					return nil, err
				}
				f.Index = append(f.Index, indexed)
			}
			row.Fields = append(row.Fields, f)
		}
		sortFields(row.Fields)
		p.add(s, c.Name(), row)
	}
	return p, nil
}

// owner says which collection and field a sealed item belongs to.
type owner struct {
	c     *schema.Collection
	field string
}

// add adds the row of one collection, with its index changes against the loaded one.
func (p *Prepared) add(s *Subject, collection string, row *Row) {
	value := encodeRow(row)
	item := PreparedItem{Collection: collection, Version: row.Version, Digest: digest(value)}
	for _, f := range row.Fields {
		item.Fields = append(item.Fields, f.Name)
	}
	p.Records = append(p.Records, item)
	p.changes.Set(recordKey(s.ID, collection), value)
	reindex(&p.changes, s, collection, row)
}

// reindex adds to change what the index of a record becomes when row replaces the one that s was loaded with.
func reindex(change *kv.Change, s *Subject, collection string, row *Row) {
	before := indexKeys(s, collection, s.Rows[collection])
	after := indexKeys(s, collection, row)
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if _, kept := after[key]; !kept {
			change.Delete([]byte(key))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(after)) {
		x := after[key]
		if _, had := before[key]; had {
			continue
		}
		if x.Unique {
			change.Expect([]byte(key), nil, &NotUniqueError{collection, x.field})
		}
		change.Set([]byte(key), s.ID[:])
	}
}

func digest(row []byte) string {
	sum := sha256.Sum256(row)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
