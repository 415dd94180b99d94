package vault

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Row is one record as it is stored: a ciphertext per field.
//
// Stored under 'r' ‖ subject (16 bytes) ‖ collection. Layout, all integers unsigned varints:
//
//	2 (format) ‖ version ‖ number of fields ‖ for each field, in ascending order of names:
//	    len ‖ name ‖ len ‖ ciphertext ‖ number of index values ‖ for each:
//	        flags (bit 0: unique) ‖ normaliser version ‖ len ‖ sealed value ‖ number of tokens ‖ for each,
//	        in ascending order of keys:
//	            index key version ‖ token (16 bytes)
//
// Example, profile version 1 with the field "name" and no index:
//
//	02 01 01 04 6e616d65 25 <37 bytes> 00
type Row struct {
	Version uint64
	Fields  []Field // ascending by Name
}

// Field is one sealed field with its rows in the blind index.
type Field struct {
	Name       string
	Ciphertext []byte
	Index      []Indexed
}

// Field returns the ciphertext of a field, nil when the record lacks it.
func (r *Row) Field(name string) []byte {
	for i := range r.Fields {
		if r.Fields[i].Name == name {
			return r.Fields[i].Ciphertext
		}
	}
	return nil
}

func sortFields(fields []Field) {
	slices.SortFunc(fields, func(a, b Field) int { return strings.Compare(a.Name, b.Name) })
}

// Size returns the size in bytes of the ciphertexts of the named fields.
func (r *Row) Size(fields []string) int64 {
	var n int64
	for _, name := range fields {
		n += int64(len(r.Field(name)))
	}
	return n
}

const rowFormat = 2

func recordKey(subject uuid.UUID, collection string) []byte {
	key := make([]byte, 0, 1+16+len(collection))
	key = append(key, 'r')
	key = append(key, subject[:]...)
	return append(key, collection...)
}

func encodeRow(r *Row) []byte {
	size := 16
	for _, f := range r.Fields {
		size += len(f.Name) + len(f.Ciphertext) + 8
		for _, x := range f.Index {
			size += len(x.Sealed) + 6 + len(x.Tokens)*(tokenSize+1)
		}
	}
	b := make([]byte, 0, size)
	b = binary.AppendUvarint(b, rowFormat)
	b = binary.AppendUvarint(b, r.Version)
	b = binary.AppendUvarint(b, uint64(len(r.Fields)))
	for _, f := range r.Fields {
		b = binary.AppendUvarint(b, uint64(len(f.Name)))
		b = append(b, f.Name...)
		b = binary.AppendUvarint(b, uint64(len(f.Ciphertext)))
		b = append(b, f.Ciphertext...)
		b = binary.AppendUvarint(b, uint64(len(f.Index)))
		for _, x := range f.Index {
			var flags uint64
			if x.Unique {
				flags = 1
			}
			b = binary.AppendUvarint(b, flags)
			b = binary.AppendUvarint(b, uint64(x.Normaliser))
			b = binary.AppendUvarint(b, uint64(len(x.Sealed)))
			b = append(b, x.Sealed...)
			b = binary.AppendUvarint(b, uint64(len(x.Tokens)))
			for _, t := range x.Tokens {
				b = binary.AppendUvarint(b, uint64(t.Key))
				b = append(b, t.Token[:]...)
			}
		}
	}
	return b
}

// parseRow decodes a row strictly: what it accepts encodes to the same bytes.
func parseRow(b []byte) (*Row, error) {
	d := rowDecoder{b: b}
	if d.uint() != rowFormat {
		d.bad = true
	}
	r := &Row{Version: d.uint()}
	n := d.count()
	for i := 0; i < n && !d.bad; i++ {
		f := Field{Name: string(d.bytes())}
		if i > 0 && f.Name <= r.Fields[i-1].Name {
			d.bad = true
		}
		f.Ciphertext = d.bytes()
		m := d.count()
		for j := 0; j < m && !d.bad; j++ {
			f.Index = append(f.Index, d.indexed())
		}
		r.Fields = append(r.Fields, f)
	}
	if d.bad || len(d.b) != 0 {
		return nil, fmt.Errorf("%w: record cannot be decoded", ErrIntegrity)
	}
	return r, nil
}

// rowDecoder keeps its first failure; the results after it are zero.
type rowDecoder struct {
	b   []byte
	bad bool
}

func (d *rowDecoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // the shortest encoding only
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads a number of elements, each of which takes at least one byte of what is left.
func (d *rowDecoder) count() int {
	v := d.uint()
	if v > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(v)
}

func (d *rowDecoder) bytes() []byte {
	n := d.count()
	if d.bad {
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *rowDecoder) uint32() uint32 {
	v := d.uint()
	if v > 1<<32-1 {
		d.bad = true
	}
	return uint32(v)
}

func (d *rowDecoder) indexed() Indexed {
	flags := d.uint()
	if flags > 1 {
		d.bad = true
	}
	x := Indexed{Unique: flags == 1, Normaliser: d.uint32(), Sealed: d.bytes()}
	n := d.count()
	for i := 0; i < n && !d.bad; i++ {
		t := KeyedToken{Key: d.uint32(), Token: d.token()}
		if i > 0 && t.Key <= x.Tokens[i-1].Key {
			d.bad = true
		}
		x.Tokens = append(x.Tokens, t)
	}
	return x
}

func (d *rowDecoder) token() (t [tokenSize]byte) {
	if len(d.b) < tokenSize {
		d.bad = true
		return t
	}
	copy(t[:], d.b)
	d.b = d.b[tokenSize:]
	return t
}

// clone returns a copy whose fields and index values can be replaced. The bytes are shared.
func (r *Row) clone() *Row {
	c := &Row{Version: r.Version, Fields: slices.Clone(r.Fields)}
	for i := range c.Fields {
		c.Fields[i].Index = slices.Clone(c.Fields[i].Index)
	}
	return c
}
