package schema

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// keywords are the words of JSON Schema that are taken at any level; see the package comment.
var keywords = map[string]bool{
	"$ref": true, "$comment": true, "title": true, "description": true,
	"type": true, "properties": true, "required": true, "additionalProperties": true,
	"items": true, "minItems": true, "maxItems": true, "uniqueItems": true,
	"minLength": true, "maxLength": true, "pattern": true, "format": true, "enum": true, "const": true,
	"minimum": true, "maximum": true, "exclusiveMinimum": true, "exclusiveMaximum": true, "multipleOf": true,
}

var rootKeywords = map[string]bool{
	"$schema": true, "$defs": true, "$comment": true, "title": true, "description": true,
	"type": true, "properties": true, "required": true, "additionalProperties": true,
}

// formats are those that the engine asserts. There is no email: the normaliser decides that.
var formats = map[string]bool{"date": true, "date-time": true, "uri": true, "uuid": true}

var types = map[string]bool{
	"string": true, "integer": true, "number": true, "boolean": true, "object": true, "array": true,
}

const (
	dialect  = "https://json-schema.org/draft/2020-12/schema"
	location = "urn:pdv:collection"
)

// node is one object of the schema as decoded.
type node = map[string]any

func (c *Collection) compile(raw []byte) error {
	v, err := decode(raw, MaxSchemaSize, MaxSchemaDepth)
	if err != nil {
		return err
	}
	root, ok := v.(node)
	if !ok {
		return errors.New("not an object")
	}
	if s, ok := root["$schema"]; ok && s != dialect {
		return errors.New("$schema is not 2020-12")
	}
	w := walker{names: c.names}
	if w.defs, ok = optionalNode(root, "$defs"); !ok {
		return errors.New("$defs is not an object")
	}
	if err := w.root(root); err != nil {
		return err
	}
	if c.root, err = engine(root); err != nil {
		return err
	}
	props := root["properties"].(node)
	if len(props) == 0 || len(props) > MaxFields {
		return fmt.Errorf("a collection has 1 to %d fields", MaxFields)
	}
	for _, name := range slices.Sorted(maps.Keys(props)) {
		f, err := w.annotations(name, props[name].(node))
		if err != nil {
			return fmt.Errorf("/properties/%s: %w", name, err)
		}
		f.Required = slices.Contains(c.root.Required, name)
		f.sch = c.root.Properties[name]
		c.fields[name] = f
	}
	return nil
}

// engine compiles the schema. No loader is given, so nothing outside can be fetched or read.
func engine(root node) (*jsonschema.Schema, error) {
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.UseLoader(noLoader{})
	compiler.AssertFormat()
	if err := compiler.AddResource(location, root); err != nil {
		return nil, fmt.Errorf("not a JSON Schema: %w", err)
	}
	sch, err := compiler.Compile(location)
	if err != nil {
		return nil, fmt.Errorf("not a JSON Schema: %w", err)
	}
	return sch, nil
}

// noLoader refuses to load anything.
type noLoader struct{}

func (noLoader) Load(string) (any, error) { return nil, errors.New("remote schemas are not loaded") }

// walker checks a schema against the dialect and gathers its property names.
type walker struct {
	defs   node
	names  map[string]bool
	inDefs bool
}

func (w *walker) root(root node) error {
	for k := range root {
		if !rootKeywords[k] {
			return fmt.Errorf("%q is not taken at the root", k)
		}
	}
	if root["type"] != "object" {
		return errors.New("type is not object")
	}
	w.inDefs = true // a $ref inside $defs could make a cycle
	for name, d := range w.defs {
		if !namePattern.MatchString(name) {
			return errors.New("/$defs: name of a definition")
		}
		if err := w.schema("/$defs/"+name, d, false); err != nil {
			return err
		}
	}
	w.inDefs = false
	return w.object("", root, true)
}

// schema checks one subschema. A field is one of the record's top-level properties.
func (w *walker) schema(at string, v any, isField bool) error {
	n, ok := v.(node)
	if !ok {
		return fmt.Errorf("%s: not an object", at)
	}
	for k := range n {
		if annotation := strings.HasPrefix(k, "x-pd-"); annotation && !isField {
			return fmt.Errorf("%s: annotations belong to fields only", at)
		} else if !annotation && !keywords[k] {
			return fmt.Errorf("%s: %q is not taken", at, k)
		}
	}
	if ref, ok := n["$ref"]; ok {
		return w.ref(at, n, ref)
	}
	t, ok := n["type"].(string)
	if !ok || !types[t] {
		return fmt.Errorf("%s: type is not one of string, integer, number, boolean, object, array", at)
	}
	switch t {
	case "object":
		return w.object(at, n, false)
	case "array":
		return w.array(at, n)
	}
	return checkScalar(at, n)
}

// ref takes a reference to a definition and nothing beside it but words and annotations.
func (w *walker) ref(at string, n node, ref any) error {
	if w.inDefs {
		return fmt.Errorf("%s: a definition refers to no other", at)
	}
	if w.resolve(ref) == nil {
		return fmt.Errorf("%s: $ref is not to one of $defs", at)
	}
	for k := range n {
		switch k {
		case "$ref", "$comment", "title", "description":
		default:
			if !strings.HasPrefix(k, "x-pd-") {
				return fmt.Errorf("%s: %q beside $ref", at, k)
			}
		}
	}
	return nil
}

func (w *walker) resolve(ref any) node {
	s, _ := ref.(string)
	name, ok := strings.CutPrefix(s, "#/$defs/")
	if !ok {
		return nil
	}
	n, _ := w.defs[name].(node)
	return n
}

func (w *walker) object(at string, n node, isRoot bool) error {
	if n["additionalProperties"] != false {
		return fmt.Errorf("%s: additionalProperties is not false", at)
	}
	props, ok := n["properties"].(node)
	if !ok {
		return fmt.Errorf("%s: no properties", at)
	}
	for name, p := range props {
		if !namePattern.MatchString(name) {
			return fmt.Errorf("%s/properties: name of a property", at)
		}
		w.names[name] = true
		if err := w.schema(at+"/properties/"+name, p, isRoot); err != nil {
			return err
		}
	}
	required, _ := n["required"].([]any)
	for _, r := range required {
		if name, ok := r.(string); !ok || props[name] == nil {
			return fmt.Errorf("%s/required: not a property", at)
		}
	}
	return nil
}

func (w *walker) array(at string, n node) error {
	items, ok := n["items"]
	if !ok {
		return fmt.Errorf("%s: no items", at)
	}
	if n["uniqueItems"] == true {
		if limit, ok := integer(n["maxItems"]); !ok || limit > 256 {
			return fmt.Errorf("%s: uniqueItems needs maxItems of at most 256", at)
		}
	}
	return w.schema(at+"/items", items, false)
}

func checkScalar(at string, n node) error {
	if f, ok := n["format"]; ok {
		if s, _ := f.(string); !formats[s] {
			return fmt.Errorf("%s: format is not taken", at)
		}
	}
	if p, ok := n["pattern"]; ok {
		s, _ := p.(string)
		if err := checkPattern(s); err != nil {
			return fmt.Errorf("%s/pattern: %w", at, err)
		}
	}
	return nil
}

// checkPattern bounds what one match may cost. Go's engine never backtracks, but its time grows with the
// size of the program, and counted repetitions make big programs of short texts.
func checkPattern(p string) error {
	if p == "" || len(p) > MaxPatternLength {
		return fmt.Errorf("1 to %d bytes", MaxPatternLength)
	}
	re, err := syntax.Parse(p, syntax.Perl)
	if err != nil {
		return errors.New("not a regular expression")
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil || len(prog.Inst) > MaxPatternCost {
		return errors.New("too costly")
	}
	return nil
}

// annotations reads the x-pd- members of a field.
func (w *walker) annotations(name string, n node) (*field, error) {
	body := n
	if ref, ok := n["$ref"]; ok {
		body = w.resolve(ref)
	}
	f := &field{Field: Field{Name: name, Normalise: NormaliseNone, Mask: MaskRedact, Sensitivity: SensitivityNormal}}
	f.Type, _ = body["type"].(string)
	f.strand = w.strandOf(body)
	for k, v := range n {
		if !strings.HasPrefix(k, "x-pd-") {
			continue
		}
		s, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("%s is not a string", k)
		}
		if err := f.annotate(k, s); err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
	}
	if f.Category == "" {
		return nil, errors.New("x-pd-category is missing")
	}
	if f.Normalise != NormaliseNone && f.strand == strandNone {
		return nil, errors.New("x-pd-normalise: the field holds no strings")
	}
	if f.Index != IndexNone {
		return f, w.indexable(f, body)
	}
	return f, nil
}

// strandOf finds where the strings of a field are.
func (w *walker) strandOf(n node) strand {
	if ref, ok := n["$ref"]; ok {
		n = w.resolve(ref)
	}
	switch n["type"] {
	case "string":
		return strandSelf
	case "array":
		items, _ := n["items"].(node)
		if w.strandOf(items) == strandSelf {
			return strandItems
		}
		props, _ := items["properties"].(node)
		if value, ok := props["value"].(node); ok && w.strandOf(value) == strandSelf {
			return strandValues
		}
	}
	return strandNone
}

// indexable refuses domains so small that their tokens could be told apart by counting.
func (w *walker) indexable(f *field, n node) error {
	var leaf node
	switch f.strand {
	case strandSelf:
		leaf = n
	case strandItems:
		leaf, _ = n["items"].(node)
	case strandValues:
		items, _ := n["items"].(node)
		props, _ := items["properties"].(node)
		leaf, _ = props["value"].(node)
	default:
		return errors.New("x-pd-index: only strings, arrays of strings and arrays of {value} are indexed")
	}
	if ref, ok := leaf["$ref"]; ok {
		leaf = w.resolve(ref)
	}
	if _, ok := leaf["enum"]; ok {
		return errors.New("x-pd-index: an enumeration is too small a domain")
	}
	if _, ok := leaf["const"]; ok {
		return errors.New("x-pd-index: a constant is too small a domain")
	}
	if limit, ok := integer(leaf["maxLength"]); ok && limit < 4 {
		return errors.New("x-pd-index: strings this short are too small a domain")
	}
	return nil
}

func (f *field) annotate(key, v string) error {
	switch key {
	case "x-pd-category":
		if !categoryKnown(v) {
			return errors.New("not a known term of DPV pd")
		}
		f.Category = v
	case "x-pd-index":
		return f.annotateIndex(v)
	case "x-pd-normalise":
		f.Normalise = Normaliser(v)
		return oneOf(f.Normalise, NormaliseEmail, NormalisePhone, NormaliseText, NormaliseNone)
	case "x-pd-mask":
		f.Mask = MaskKind(v)
		return oneOf(f.Mask, MaskEmail, MaskPhone, MaskName, MaskLast4, MaskYear, MaskRedact)
	case "x-pd-retention":
		if !ValidDuration(v) {
			return errors.New("not an ISO 8601 duration")
		}
		f.Retention = v
	case "x-pd-sensitivity":
		f.Sensitivity = v
		return oneOf(v, SensitivityNormal, SensitivitySensitive, SensitivitySpecial)
	default:
		return errors.New("unknown annotation")
	}
	return nil
}

func (f *field) annotateIndex(v string) error {
	f.IndexBits = 128
	switch {
	case v == string(IndexUnique), v == string(IndexExact):
		f.Index = IndexKind(v)
		return nil
	case strings.HasPrefix(v, "trunc:"):
		bits, err := strconv.Atoi(v[len("trunc:"):])
		if err != nil || bits < 8 || bits > 128 || v != "trunc:"+strconv.Itoa(bits) {
			return errors.New("trunc:N has 8 to 128 bits")
		}
		f.Index, f.IndexBits = IndexTruncated, bits
		return nil
	}
	return errors.New("not unique, exact or trunc:N")
}

func oneOf[T comparable](v T, known ...T) error {
	if !slices.Contains(known, v) {
		return errors.New("unknown value")
	}
	return nil
}

var durationPattern = regexp.MustCompile(`^P(\d{1,4}Y)?(\d{1,4}M)?(\d{1,4}W)?(\d{1,5}D)?(T(\d{1,5}H)?(\d{1,5}M)?(\d{1,5}S)?)?$`)

// ValidDuration reports whether s is an ISO 8601 duration with at least one part, such as "P3Y" or "PT72H".
func ValidDuration(s string) bool {
	return durationPattern.MatchString(s) && s != "P" && !strings.HasSuffix(s, "T")
}

func integer(v any) (int, bool) {
	s, ok := v.(interface{ String() string })
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s.String())
	return n, err == nil
}

func optionalNode(n node, key string) (node, bool) {
	v, ok := n[key]
	if !ok {
		return nil, true
	}
	m, ok := v.(node)
	return m, ok
}
