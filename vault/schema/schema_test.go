package schema_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/prototypster/pdvault/vault/schema"
)

// person is a schema with every kind of field.
const person = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object", "additionalProperties": false, "required": ["email"],
  "properties": {
    "email":  {"type":"string","maxLength":320,"x-pd-category":"pd:EmailAddress","x-pd-index":"unique","x-pd-normalise":"email","x-pd-mask":"email"},
    "phone":  {"type":"string","x-pd-category":"pd:TelephoneNumber","x-pd-index":"unique","x-pd-normalise":"phone","x-pd-mask":"phone"},
    "phones": {"type":"array","maxItems":4,"items":{"type":"object","additionalProperties":false,"properties":{"value":{"$ref":"#/$defs/line"},"type":{"type":"string"}}},"x-pd-category":"pd:TelephoneNumber","x-pd-index":"exact","x-pd-normalise":"phone","x-pd-mask":"phone"},
    "nick":   {"type":"array","items":{"type":"string","minLength":1},"x-pd-category":"pd:Username","x-pd-index":"trunc:16","x-pd-normalise":"text","x-pd-mask":"name","x-pd-retention":"P3Y","x-pd-sensitivity":"sensitive"},
    "name":   {"type":"object","additionalProperties":false,"properties":{"given":{"type":"string","maxLength":4096},"family":{"type":"string"}},"x-pd-category":"pd:Name","x-pd-mask":"name"},
    "number": {"type":"string","x-pd-category":"pd:Passport","x-pd-mask":"last4"},
    "born":   {"type":"string","format":"date","x-pd-category":"pd:BirthDate","x-pd-mask":"year"},
    "age":    {"type":"integer","minimum":0,"maximum":200,"x-pd-category":"pd:AgeExact"}
  },
  "$defs": {"line": {"type":"string","maxLength":32}}
}`

func mustCompile(t testing.TB, raw string, opts ...schema.Option) *schema.Collection {
	t.Helper()
	c, err := schema.Compile("person", []byte(raw), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// one is a schema of one field f with the given members.
func one(members string) string {
	return `{"type":"object","additionalProperties":false,"properties":{"f":{"x-pd-category":"pd:Name",` + members + `}}}`
}

func TestFields(t *testing.T) {
	c := mustCompile(t, person)
	var names []string
	for _, f := range c.Fields() {
		names = append(names, f.Name)
	}
	if diff := cmp.Diff([]string{"age", "born", "email", "name", "nick", "number", "phone", "phones"}, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	got, _ := c.Field("nick")
	want := schema.Field{Name: "nick", Type: "array", Category: "pd:Username", Index: schema.IndexTruncated, IndexBits: 16,
		Normalise: schema.NormaliseText, Mask: schema.MaskName, Retention: "P3Y", Sensitivity: schema.SensitivitySensitive}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nick (-want +got):\n%s", diff)
	}
	got, _ = c.Field("email")
	if !got.Required || got.IndexBits != 128 || got.Type != "string" {
		t.Errorf("email: %+v", got)
	}
	if _, ok := c.Field("none"); ok || c.Name() != "person" {
		t.Error("a field that is not there, or another name")
	}
}

func TestCompileRefuses(t *testing.T) {
	deep := strings.Repeat(`{"type":"array","items":`, 20) + `{"type":"string"}` + strings.Repeat("}", 20)
	many := make([]string, schema.MaxFields+1)
	for i := range many {
		many[i] = fmt.Sprintf(`"f%d":{"type":"string","x-pd-category":"pd:Name"}`, i)
	}
	for name, raw := range map[string]string{
		"not JSON":               `{`,
		"not an object":          `[]`,
		"repeated member":        `{"type":"object","type":"object"}`,
		"another draft":          `{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","additionalProperties":false,"properties":{}}`,
		"another type":           `{"type":"string"}`,
		"open":                   `{"type":"object","properties":{"f":{"type":"string","x-pd-category":"pd:Name"}}}`,
		"open to schema":         `{"type":"object","additionalProperties":{"type":"string"},"properties":{"f":{"type":"string","x-pd-category":"pd:Name"}}}`,
		"no fields":              `{"type":"object","additionalProperties":false,"properties":{}}`,
		"too many fields":        `{"type":"object","additionalProperties":false,"properties":{` + strings.Join(many, ",") + `}}`,
		"too large":              one(`"type":"string","title":"` + strings.Repeat("x", schema.MaxSchemaSize) + `"`),
		"too deep":               `{"type":"object","additionalProperties":false,"properties":{"f":` + deep + `}}`,
		"field name":             `{"type":"object","additionalProperties":false,"properties":{"a.b":{"type":"string","x-pd-category":"pd:Name"}}}`,
		"required unknown":       `{"type":"object","additionalProperties":false,"required":["x"],"properties":{"f":{"type":"string","x-pd-category":"pd:Name"}}}`,
		"id":                     `{"$id":"https://example.org/x","type":"object","additionalProperties":false,"properties":{"f":{"type":"string","x-pd-category":"pd:Name"}}}`,
		"no category":            `{"type":"object","additionalProperties":false,"properties":{"f":{"type":"string"}}}`,
		"unknown category":       one(`"type":"string","x-pd-category":"pd:Nothing"`),
		"no type":                one(`"minLength":1`),
		"two types":              one(`"type":["string","null"]`),
		"null":                   one(`"type":"null"`),
		"unknown keyword":        one(`"type":"string","anyOf":[]`),
		"default":                one(`"type":"string","default":"x"`),
		"unknown annotation":     one(`"type":"string","x-pd-colour":"red"`),
		"annotation no string":   one(`"type":"string","x-pd-index":true`),
		"annotation below":       one(`"type":"array","items":{"type":"string","x-pd-mask":"name"}`),
		"unknown index":          one(`"type":"string","x-pd-index":"fuzzy"`),
		"trunc too short":        one(`"type":"string","x-pd-index":"trunc:7"`),
		"trunc too long":         one(`"type":"string","x-pd-index":"trunc:129"`),
		"trunc not a number":     one(`"type":"string","x-pd-index":"trunc:+16"`),
		"index on boolean":       one(`"type":"boolean","x-pd-index":"exact"`),
		"index on integer":       one(`"type":"integer","x-pd-index":"exact"`),
		"index on enum":          one(`"type":"string","enum":["a","b"],"x-pd-index":"exact"`),
		"index on enum items":    one(`"type":"array","items":{"type":"string","enum":["a","b"]},"x-pd-index":"exact"`),
		"index on tiny strings":  one(`"type":"string","maxLength":2,"x-pd-index":"exact"`),
		"index on object":        one(`"type":"object","additionalProperties":false,"properties":{},"x-pd-index":"exact"`),
		"normalise on integer":   one(`"type":"integer","x-pd-normalise":"text"`),
		"unknown normaliser":     one(`"type":"string","x-pd-normalise":"soundex"`),
		"unknown mask":           one(`"type":"string","x-pd-mask":"half"`),
		"retention":              one(`"type":"string","x-pd-retention":"3 years"`),
		"sensitivity":            one(`"type":"string","x-pd-sensitivity":"secret"`),
		"remote ref":             one(`"$ref":"https://example.org/s.json"`),
		"file ref":               one(`"$ref":"file:///etc/passwd"`),
		"ref to root":            one(`"$ref":"#"`),
		"ref to nothing":         one(`"$ref":"#/$defs/none"`),
		"ref inside defs":        `{"type":"object","additionalProperties":false,"properties":{"f":{"$ref":"#/$defs/a","x-pd-category":"pd:Name"}},"$defs":{"a":{"$ref":"#/$defs/a"}}}`,
		"keyword beside ref":     `{"type":"object","additionalProperties":false,"properties":{"f":{"$ref":"#/$defs/a","minLength":1,"x-pd-category":"pd:Name"}},"$defs":{"a":{"type":"string"}}}`,
		"format":                 one(`"type":"string","format":"email"`),
		"pattern":                one(`"type":"string","pattern":"("`),
		"pattern too long":       one(`"type":"string","pattern":"` + strings.Repeat("a", 257) + `"`),
		"pattern too costly":     one(`"type":"string","pattern":"((a{30}){30}){3}"`),
		"nested object open":     one(`"type":"object","properties":{"a":{"type":"string"}}`),
		"array without items":    one(`"type":"array"`),
		"uniqueItems, unbounded": one(`"type":"array","uniqueItems":true,"items":{"type":"string"}`),
		"bad minLength":          one(`"type":"string","minLength":-1`),
	} {
		if _, err := schema.Compile("person", []byte(raw)); !errors.Is(err, schema.ErrSchema) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := schema.Compile("a b", []byte(person)); !errors.Is(err, schema.ErrSchema) {
		t.Errorf("name of the collection: %v", err)
	}
	if _, err := schema.Compile("person", []byte(person), schema.WithPhoneRegion("XX")); !errors.Is(err, schema.ErrSchema) {
		t.Errorf("phone region: %v", err)
	}
}

// canary is a value that must never be seen in an error.
const canary = "kanarienvogel"

func TestValidate(t *testing.T) {
	c := mustCompile(t, person)
	for name, tc := range map[string]struct {
		raw  string
		want []schema.Violation // nil: valid
	}{
		"least":                {`{"email":"a@b"}`, nil},
		"all":                  {`{"email":"a@b","phone":"+7 916 123-45-67","phones":[{"value":"+12125550100","type":"home"}],"nick":["x"],"name":{"given":"Ё"},"born":"1990-05-17","age":7}`, nil},
		"missing":              {`{}`, []schema.Violation{{"", "required"}}},
		"unknown member":       {`{"email":"a@b","` + canary + `":1}`, []schema.Violation{{"", "additionalProperties"}}},
		"unknown member below": {`{"email":"a@b","name":{"` + canary + `":1}}`, []schema.Violation{{"/name", "additionalProperties"}}},
		"null":                 {`{"email":null}`, []schema.Violation{{"/email", "type"}}},
		"type":                 {`{"email":"a@b","name":"` + canary + `"}`, []schema.Violation{{"/name", "type"}}},
		"format":               {`{"email":"a@b","born":"` + canary + `"}`, []schema.Violation{{"/born", "format"}}},
		"range":                {`{"email":"a@b","age":201}`, []schema.Violation{{"/age", "maximum"}}},
		"no address":           {`{"email":"` + canary + `"}`, []schema.Violation{{"/email", "x-pd-normalise"}}},
		"no number":            {`{"email":"a@b","phone":"` + canary + `"}`, []schema.Violation{{"/phone", "x-pd-normalise"}}},
		"national number":      {`{"email":"a@b","phone":"8 916 123-45-67"}`, []schema.Violation{{"/phone", "x-pd-normalise"}}},
		"below an array":       {`{"email":"a@b","phones":[{"value":"+12125550100"},{"value":"` + canary + `"}]}`, []schema.Violation{{"/phones/1/value", "x-pd-normalise"}}},
		"several": {`{"email":"a","nick":[""],"age":-1}`, []schema.Violation{{"/age", "minimum"}, {"/email", "x-pd-normalise"},
			{"/nick/0", "minLength"}, {"/nick/0", "x-pd-normalise"}}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Validate([]byte(tc.raw))
			var ve *schema.ValidationError
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.As(err, &ve) {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff(tc.want, ve.Violations); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), canary) {
				t.Error("the error holds a value")
			}
		})
	}
}

func TestMalformedRecords(t *testing.T) {
	c := mustCompile(t, person)
	for name, raw := range map[string]string{
		"empty": ``, "not an object": `["` + canary + `"]`, "two values": `{} {}`, "cut": `{"email":"` + canary,
		"repeated member":    `{"email":"a@b","email":"` + canary + `"}`,
		"invalid UTF-8":      "{\"email\":\"" + canary + "\xff@b\"}",
		"lone surrogate":     `{"email":"` + canary + `\ud800@b"}`,
		"too deep":           `{"email":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`,
		"too large":          `{"email":"` + strings.Repeat("a", schema.MaxRecordSize) + `"}`,
		"number too large":   `{"age":1e999999999}`,
		"number too small":   `{"age":1e-999999999}`,
		"number, zero, long": `{"age":0e-999999999}`,
	} {
		err := c.Validate([]byte(raw))
		if !errors.Is(err, schema.ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the error holds a value", name)
		}
		if m, err := c.Split([]byte(raw)); err == nil || m != nil {
			t.Errorf("%s: split", name)
		}
	}
}

func TestNamesOfAnyScript(t *testing.T) {
	c := mustCompile(t, person)
	for name, s := range map[string]string{
		"one character": "Ё", "300 characters": strings.Repeat("字", 300), "right to left": "שָׂרָה בת־אברהם",
		"mixed directions": "\u202bمحمد\u202c (Muhammad)", "emoji": strings.Repeat("👨‍👩‍👧‍👦", 300),
		"combining": "Nguye\u0302\u0303n", "astral": "𠮷田",
	} {
		if err := c.Validate([]byte(`{"email":"a@b","name":{"given":"` + s + `"}}`)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSplit(t *testing.T) {
	c := mustCompile(t, person)
	got, err := c.Split([]byte(" { \"email\" : \"a\\u0040b\" , \"name\" : { \"given\" : \"Ё\" } , \"age\" : 1.50 } "))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"email": []byte(`"a@b"`), "name": []byte(`{"given":"Ё"}`), "age": []byte(`1.5`)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := c.Split([]byte(`{"` + canary + `":1}`)); !errors.Is(err, schema.ErrField) || strings.Contains(err.Error(), canary) {
		t.Errorf("unknown member: %v", err)
	}
}

func TestMergePatch(t *testing.T) {
	c := mustCompile(t, person)
	set, remove, err := c.MergePatch([]byte(`{"phone":null,"age":null,"name":{"family":"Ы"},"born":"1990-05-17"}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]byte{"name": []byte(`{"family":"Ы"}`), "born": []byte(`"1990-05-17"`)}, set); diff != "" {
		t.Errorf("set (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"age", "phone"}, remove); diff != "" {
		t.Errorf("remove (-want +got):\n%s", diff)
	}
	if set, remove, err := c.MergePatch([]byte(`{}`)); err != nil || len(set)+len(remove) != 0 {
		t.Errorf("empty patch: %v, %v, %v", set, remove, err)
	}
	for name, tc := range map[string]struct {
		raw  string
		want error
	}{
		"null inside":      {`{"name":{"given":null}}`, schema.ErrPatch},
		"null in an array": {`{"nick":[null]}`, schema.ErrPatch},
		"required":         {`{"email":null}`, schema.ErrPatch},
		"unknown":          {`{"` + canary + `":null}`, schema.ErrField},
		"malformed":        {`{"email":`, schema.ErrRecord},
		"not an object":    {`null`, schema.ErrRecord},
	} {
		if set, remove, err := c.MergePatch([]byte(tc.raw)); !errors.Is(err, tc.want) || set != nil || remove != nil {
			t.Errorf("%s: %v, %v, %v", name, set, remove, err)
		}
	}
	var ve *schema.ValidationError
	if _, _, err := c.MergePatch([]byte(`{"age":"` + canary + `"}`)); !errors.As(err, &ve) || !slices.Equal(ve.Violations, []schema.Violation{{Pointer: "/age", Rule: "type"}}) {
		t.Errorf("invalid value: %v", err)
	}
}

func TestIndexValues(t *testing.T) {
	c := mustCompile(t, person, schema.WithPhoneRegion("RU"))
	for name, tc := range map[string]struct {
		field, value string
		want         []string
	}{
		"string":       {"email", `" Bob@Example.ORG "`, []string{"bob@example.org"}},
		"array":        {"nick", `["Straße","STRASSE"," b "]`, []string{"b", "strasse"}},
		"SCIM":         {"phones", `[{"value":"+1 212 555-0100","type":"home"},{"value":"8 (916) 123-45-67"},{"type":"x"}]`, []string{"+12125550100", "+79161234567"}},
		"empty array":  {"nick", `[]`, nil},
		"decomposed":   {"nick", `["e\u0301"]`, []string{"é"}},
		"nothing else": {"email", `7`, nil},
	} {
		got, version, err := c.IndexValues(tc.field, []byte(tc.value))
		if err != nil || version == 0 {
			t.Errorf("%s: version %d, %v", name, version, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, tc := range map[string]struct {
		field, value string
		want         error
	}{
		"not indexed": {"name", `"x"`, schema.ErrNotIndexed},
		"no field":    {"x", `"x"`, schema.ErrField},
		"invalid":     {"email", `"` + canary + `"`, schema.ErrValue},
		"malformed":   {"email", `"` + canary, schema.ErrValue},
	} {
		got, _, err := c.IndexValues(tc.field, []byte(tc.value))
		if !errors.Is(err, tc.want) || got != nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestVersionsOfRegions: what a national number means depends on the region, so tokens must not meet.
func TestVersionsOfRegions(t *testing.T) {
	_, none, err1 := mustCompile(t, person).Normalise("phone", "+79161234567")
	_, ru, err2 := mustCompile(t, person, schema.WithPhoneRegion("RU")).Normalise("phone", "+79161234567")
	_, us, err3 := mustCompile(t, person, schema.WithPhoneRegion("US")).Normalise("phone", "+79161234567")
	if err := errors.Join(err1, err2, err3); err != nil || none == ru || ru == us {
		t.Errorf("versions %d, %d, %d: %v", none, ru, us, err)
	}
}

func TestNormalise(t *testing.T) {
	c := mustCompile(t, person, schema.WithPhoneRegion("GB"))
	for _, tc := range []struct{ field, in, want string }{ // want "": refused
		{"email", "İ@EXAMPLE.org", "i@example.org"},
		{"email", "иван@ПРИМЕР.рф", "иван@пример.рф"},
		{"email", "a@b@c", ""}, {"email", "@b", ""}, {"email", "a@", ""}, {"email", "a b@c", ""}, {"email", "a\x00@c", ""},
		{"phone", "+44 7700 900123", "+447700900123"}, {"phone", "07700 900123", "+447700900123"},
		{"phone", "tel:+44-7700-900123", "+447700900123"}, {"phone", "+44 7700 900123 ext. 5", ""},
		{"phone", "+39 06 1234567", "+39061234567"}, {"phone", "112", ""}, {"phone", "", ""},
		{"phone", "٠٧٧٠٠٩٠٠١٢٣", "+447700900123"},
		{"nick", "ΣΊΣΥΦΟΣ", "σίσυφοσ"}, {"nick", " \u3000", ""}, {"number", " A ", " A "},
	} {
		got, _, err := c.Normalise(tc.field, tc.in)
		if got != tc.want || (tc.want == "") != errors.Is(err, schema.ErrValue) {
			t.Errorf("%s %q: %q, %v", tc.field, tc.in, got, err)
		}
	}
	if _, _, err := c.Normalise("x", "y"); !errors.Is(err, schema.ErrField) {
		t.Errorf("no field: %v", err)
	}
}

func TestMask(t *testing.T) {
	c := mustCompile(t, person)
	for _, tc := range []struct{ field, in, want string }{
		{"email", `"ivan.petrov@example.org"`, `"i***@***.org"`},
		{"email", `"iv@example.org"`, `"***@***.org"`},
		{"email", `"a@b"`, `"***@***"`},
		{"email", `"no address"`, `"***"`},
		{"phone", `"+7 916 123-45-67"`, `"***67"`},
		{"phone", `"112"`, `"***"`},
		{"name", `{"given":"Иван","family":"Ёж"}`, `{"family":"***","given":"И***"}`},
		{"name", `{}`, `"***"`},
		{"name", `{"given":"👨‍👩‍👧‍👦"}`, `{"given":"***"}`},
		{"name", `{"given":"👍🏽 абвгд"}`, `{"given":"👍🏽***"}`},
		{"name", `{"given":"e\u0301lise"}`, "{\"given\":\"e\u0301***\"}"},
		{"name", `{"given":"a\u0301\u0301\u0301\u0301\u0301\u0301bc"}`, `{"given":"***"}`},
		{"number", `"4510 123456"`, `"***"`},
		{"number", `"4510 123456 789"`, `"***` + ` 789"`},
		{"number", `"12345678"`, `"***"`},
		{"born", `"1990-05-17"`, `"1990"`},
		{"born", `"1990"`, `"***"`},
		{"age", `42`, `"***"`},
		{"unknown", `"secret"`, `"***"`},
		{"unknown", `"***"`, `"****"`},
		{"nick", `["abcdef","x"]`, `["a***","***"]`},
		{"nick", `["i***"]`, `["***"]`},
	} {
		got, err := c.Mask(tc.field, []byte(tc.in))
		if err != nil || string(got) != tc.want {
			t.Errorf("%s %s: %s, want %s, %v", tc.field, tc.in, got, tc.want, err)
		}
	}
	if got, err := c.Mask("email", []byte(`"`+canary)); !errors.Is(err, schema.ErrValue) || got != nil || strings.Contains(err.Error(), canary) {
		t.Errorf("malformed: %s, %v", got, err)
	}
}
