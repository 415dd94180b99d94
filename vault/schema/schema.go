package schema

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Limits.
const (
	MaxSchemaSize    = 64 << 10  // bytes of one schema
	MaxSchemaDepth   = 16        // nesting of one schema
	MaxFields        = 256       // fields of one collection
	MaxPatternLength = 256       // bytes of one pattern
	MaxPatternCost   = 2000      // instructions of one compiled pattern
	MaxRecordSize    = 256 << 10 // bytes of one record or patch
	MaxRecordDepth   = 16        // nesting of one record
)

var (
	// ErrSchema is returned by Compile for a schema that is not taken. The text says where and why.
	ErrSchema = errors.New("schema: invalid schema")
	// ErrRecord is returned for bytes that are not one strict JSON object within the limits.
	ErrRecord = errors.New("schema: malformed record")
	// ErrPatch is returned for a merge patch that cannot be carried out without reading the old record.
	ErrPatch = errors.New("schema: patch not possible")
	// ErrField is returned for a name that is no field of the collection.
	ErrField = errors.New("schema: no such field")
	// ErrNotIndexed is returned when a field that has no index is to be indexed or looked up.
	ErrNotIndexed = errors.New("schema: field is not indexed")
	// ErrValue is returned for a value that the field's normaliser does not accept. It never holds the value.
	ErrValue = errors.New("schema: value not acceptable")
)

// IndexKind says how a field may be looked up.
type IndexKind string

// Kinds of index.
const (
	IndexNone      IndexKind = ""
	IndexUnique    IndexKind = "unique" // at most one subject has the value
	IndexExact     IndexKind = "exact"
	IndexTruncated IndexKind = "trunc" // tokens cut to Bits, so that several values share one
)

// Normaliser says how a value is brought into the form that is indexed and compared.
type Normaliser string

// Normalisers.
const (
	NormaliseNone  Normaliser = "none"
	NormaliseEmail Normaliser = "email" // NFC, trimmed, lower case
	NormalisePhone Normaliser = "phone" // E.164
	NormaliseText  Normaliser = "text"  // NFC, case-folded, trimmed
)

// MaskKind says what of a value may be shown in mode mask.
type MaskKind string

// Kinds of mask.
const (
	MaskRedact MaskKind = "redact" // nothing
	MaskEmail  MaskKind = "email"  // first character and top-level domain
	MaskPhone  MaskKind = "phone"  // last two digits
	MaskName   MaskKind = "name"   // first character of each part
	MaskLast4  MaskKind = "last4"  // last four characters
	MaskYear   MaskKind = "year"   // year of a date
)

// Sensitivities of fields.
const (
	SensitivityNormal    = "normal"
	SensitivitySensitive = "sensitive"
	SensitivitySpecial   = "special" // GDPR Art. 9, 152-FZ Art. 10
)

// Field is one top-level member of a record.
type Field struct {
	Name        string
	Type        string // JSON Schema type: string, integer, number, boolean, object, array
	Required    bool
	Category    string // pd: CURIE
	Index       IndexKind
	IndexBits   int // of a token; 128 unless Index is IndexTruncated; 0 without index
	Normalise   Normaliser
	Mask        MaskKind
	Retention   string // ISO 8601 duration; empty: that of the purposes
	Sensitivity string
}

// Collection is a compiled schema. It is immutable and may be used from any goroutine.
type Collection struct {
	name        string
	root        *jsonschema.Schema
	fields      map[string]*field
	sorted      []Field
	names       map[string]bool // every property name in the schema: the only words a pointer may hold
	phoneRegion string
}

// field is what Collection keeps of a Field.
type field struct {
	Field
	sch    *jsonschema.Schema
	strand strand
}

// strand is where the strings of a field are.
type strand int

const (
	strandNone   strand = iota
	strandSelf          // "…"
	strandItems         // ["…"]
	strandValues        // [{"value":"…"}], as SCIM's emails
)

// Option changes how a collection is compiled.
type Option func(*Collection)

// WithPhoneRegion sets the region (ISO 3166-1 alpha-2) in which a phone number without a country code is
// read. Without it such numbers are invalid.
func WithPhoneRegion(region string) Option {
	return func(c *Collection) { c.phoneRegion = region }
}

// Compile reads a collection's schema and checks it against the dialect of this package.
func Compile(name string, raw []byte, opts ...Option) (*Collection, error) {
	c := &Collection{name: name, fields: map[string]*field{}, names: map[string]bool{}}
	for _, o := range opts {
		o(c)
	}
	if !namePattern.MatchString(name) {
		return nil, fmt.Errorf("%w: name of the collection", ErrSchema)
	}
	if c.phoneRegion != "" && !regionKnown(c.phoneRegion) {
		return nil, fmt.Errorf("%w: unknown phone region", ErrSchema)
	}
	if err := c.compile(raw); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrSchema, name, err)
	}
	for _, k := range slices.Sorted(maps.Keys(c.fields)) {
		c.sorted = append(c.sorted, c.fields[k].Field)
	}
	return c, nil
}

// namePattern is what names of collections and fields look like. No dot: qualified names need it.
var namePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,63}$`)

// Name returns the collection's name.
func (c *Collection) Name() string { return c.name }

// Fields returns the fields, sorted by name. The slice belongs to the caller.
func (c *Collection) Fields() []Field { return slices.Clone(c.sorted) }

// Field returns the field of that name.
func (c *Collection) Field(name string) (Field, bool) {
	f, ok := c.fields[name]
	if !ok {
		return Field{}, false
	}
	return f.Field, true
}

// Violation is one broken rule: where, as a JSON pointer of names from the schema and array indices, and
// which keyword. It never holds a value, nor a member name that the schema does not know.
type Violation struct {
	Pointer string `json:"pointer"`
	Rule    string `json:"rule"`
}

// ValidationError is returned for a record that is well-formed and breaks the schema.
type ValidationError struct {
	Violations []Violation // sorted, at least one
}

func (e *ValidationError) Error() string {
	v := e.Violations[0]
	if n := len(e.Violations) - 1; n > 0 {
		return fmt.Sprintf("schema: record breaks %s at %q and %d more", v.Rule, v.Pointer, n)
	}
	return fmt.Sprintf("schema: record breaks %s at %q", v.Rule, v.Pointer)
}

func newValidationError(vs []Violation) *ValidationError {
	slices.SortFunc(vs, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Pointer, b.Pointer), cmp.Compare(a.Rule, b.Rule))
	})
	return &ValidationError{Violations: slices.Compact(vs)}
}
