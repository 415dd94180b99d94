package schema

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Validate checks one record: strict JSON (ErrRecord), then the schema and the normalisers of its fields
// (*ValidationError).
func (c *Collection) Validate(raw []byte) error {
	v, err := decode(raw, MaxRecordSize, MaxRecordDepth)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if _, ok := v.(map[string]any); !ok {
		return fmt.Errorf("%w: not an object", ErrRecord)
	}
	vs := c.violations(c.root, "", v)
	for name, value := range v.(map[string]any) {
		if f, ok := c.fields[name]; ok {
			vs = append(vs, c.unnormalised(f, value)...)
		}
	}
	if len(vs) > 0 {
		return newValidationError(vs)
	}
	return nil
}

// ValidateFields checks values one by one, each against the schema of its field. It is for a patch, whose
// other fields cannot be read, and so says nothing about required ones.
func (c *Collection) ValidateFields(values map[string][]byte) error {
	var vs []Violation
	for name, raw := range values {
		f, ok := c.fields[name]
		if !ok {
			vs = append(vs, Violation{"", "additionalProperties"})
			continue
		}
		v, err := decode(raw, MaxRecordSize, MaxRecordDepth)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRecord, err)
		}
		vs = append(vs, c.violations(f.sch, "/"+name, v)...)
		vs = append(vs, c.unnormalised(f, v)...)
	}
	if len(vs) > 0 {
		return newValidationError(vs)
	}
	return nil
}

// violations runs the schema and keeps of its findings only what may be told.
func (c *Collection) violations(sch *jsonschema.Schema, at string, v any) []Violation {
	err := sch.Validate(v)
	if err == nil {
		return nil
	}
	var vs []Violation
	var walk func(*jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		for _, cause := range e.Causes {
			walk(cause)
		}
		if len(e.Causes) > 0 {
			return
		}
		rule := "schema"
		if p := e.ErrorKind.KeywordPath(); len(p) > 0 {
			rule = p[0]
		}
		vs = append(vs, Violation{at + c.pointer(e.InstanceLocation), rule})
	}
	if ve, ok := err.(*jsonschema.ValidationError); ok {
		walk(ve)
	}
	if len(vs) == 0 { // an error of the engine is a violation too, never a pass
		vs = append(vs, Violation{at, "schema"})
	}
	return vs
}

// pointer writes a location as a JSON pointer and stops at the first word that is not from the schema:
// a member name that a client made up may itself be personal data.
func (c *Collection) pointer(loc []string) string {
	var b strings.Builder
	for _, tok := range loc {
		if _, err := strconv.Atoi(tok); err != nil && !c.names[tok] {
			break
		}
		b.WriteByte('/')
		b.WriteString(tok) // names match namePattern: nothing to escape
	}
	return b.String()
}

// unnormalised lists the strings of a field that its normaliser refuses.
func (c *Collection) unnormalised(f *field, v any) []Violation {
	if f.Normalise == NormaliseNone {
		return nil
	}
	var vs []Violation
	for at, s := range stringsOf(f.strand, v) {
		if _, err := c.normalise(f, s); err != nil {
			vs = append(vs, Violation{"/" + f.Name + at, "x-pd-normalise"})
		}
	}
	return vs
}

// Split returns the JSON of each field of a record in its canonical form (RFC 8785), so that equal values are
// equal bytes and can be compared where they are sealed. It checks that the record is strict JSON
// and that its members are fields, and nothing else: see Validate.
func (c *Collection) Split(raw []byte) (map[string][]byte, error) {
	if _, err := decode(raw, MaxRecordSize, MaxRecordDepth); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	if dec.PeekKind() != '{' {
		return nil, fmt.Errorf("%w: not an object", ErrRecord)
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, fmt.Errorf("%w: not strict JSON", ErrRecord)
	}
	out := make(map[string][]byte, len(c.fields))
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, fmt.Errorf("%w: not strict JSON", ErrRecord)
		}
		key := name.String() // before the next read, which ends the token's life
		value, err := dec.ReadValue()
		if err != nil {
			return nil, fmt.Errorf("%w: not strict JSON", ErrRecord)
		}
		if _, ok := c.fields[key]; !ok {
			return nil, fmt.Errorf("%w: a member is not declared", ErrField)
		}
		value = value.Clone()
		if err := value.Canonicalize(); err != nil {
			return nil, fmt.Errorf("%w: not strict JSON", ErrRecord)
		}
		out[key] = value
	}
	return out, nil
}

// MergePatch reads a merge patch at the level of fields: which fields it sets, to what, and which it removes.
// Both results are empty when the patch is {}; remove is sorted.
//
// It follows RFC 7386 for top-level members: null removes the field, any other value sets it. It departs from
// the RFC below that level. The RFC would merge an object into the old one, member by member; the process
// that takes the patch holds ciphertext only and cannot read the old one. So the value given replaces the
// whole field, also when it is an object, and a null inside it, which can only be meant as a removal from
// the old value, is refused with ErrPatch. Removing a required field is ErrPatch as well.
//
// The values set are validated as by ValidateFields.
func (c *Collection) MergePatch(patch []byte) (set map[string][]byte, remove []string, err error) {
	fields, err := c.Split(patch)
	if err != nil {
		return nil, nil, err
	}
	set = make(map[string][]byte, len(fields))
	for name, value := range fields {
		if string(value) == "null" {
			if c.fields[name].Required {
				return nil, nil, fmt.Errorf("%w: %s is required and cannot be removed", ErrPatch, name)
			}
			remove = append(remove, name)
			continue
		}
		if holdsNull(value) {
			return nil, nil, fmt.Errorf("%w: null inside %s: a patch replaces whole fields", ErrPatch, name)
		}
		set[name] = value
	}
	if err := c.ValidateFields(set); err != nil {
		return nil, nil, err
	}
	slices.Sort(remove)
	return set, remove, nil
}

// holdsNull reports whether a null stands anywhere in valid JSON.
func holdsNull(value []byte) bool {
	dec := jsontext.NewDecoder(bytes.NewReader(value))
	for {
		tok, err := dec.ReadToken()
		if err != nil {
			return false
		}
		if tok.Kind() == 'n' {
			return true
		}
	}
}

// IndexValues returns the normalised values under which a field is found, sorted and each once, and the
// version of the normaliser. value is the field's JSON: a string, an array of strings, or an array of
// objects with a member "value".
func (c *Collection) IndexValues(name string, value []byte) ([]string, uint32, error) {
	f, ok := c.fields[name]
	if !ok {
		return nil, 0, ErrField
	}
	if f.Index == IndexNone {
		return nil, 0, fmt.Errorf("%w: %s", ErrNotIndexed, name)
	}
	v, err := decode(value, MaxRecordSize, MaxRecordDepth)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %s: %w", ErrValue, name, err)
	}
	var out []string
	for _, s := range stringsOf(f.strand, v) {
		n, err := c.normalise(f, s)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %s", err, name)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out), c.version(f), nil
}

// Normalise brings a supplied value into the form that IndexValues gives, for a lookup or a comparison.
func (c *Collection) Normalise(name, supplied string) (string, uint32, error) {
	f, ok := c.fields[name]
	if !ok {
		return "", 0, ErrField
	}
	n, err := c.normalise(f, supplied)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %s", err, name)
	}
	return n, c.version(f), nil
}

// stringsOf yields the strings of a decoded field with their place in it. What has another shape than the
// schema demands is left out; the schema reports it.
func stringsOf(s strand, v any) func(yield func(string, string) bool) {
	return func(yield func(string, string) bool) {
		switch s {
		case strandSelf:
			if str, ok := v.(string); ok {
				yield("", str)
			}
		case strandItems, strandValues:
			items, _ := v.([]any)
			for i, item := range items {
				at := "/" + strconv.Itoa(i)
				if m, ok := item.(map[string]any); ok && s == strandValues {
					item, at = m["value"], at+"/value"
				}
				if str, ok := item.(string); ok && !yield(at, str) {
					return
				}
			}
		}
	}
}
