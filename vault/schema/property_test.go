package schema_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/vault/schema"
)

// checkMask holds for every string and every kind of mask: the mask is not the value, and does not hold it,
// nor more than a third of it.
func checkMask(t testing.TB, c *schema.Collection, field, s string) {
	t.Helper()
	raw, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		t.Skip("not UTF-8")
	}
	masked, err := c.Mask(field, raw)
	if err != nil {
		t.Fatalf("%s: %v", field, err)
	}
	var out string
	if err := json.Unmarshal(masked, &out); err != nil {
		t.Fatalf("%s: not a string: %v", field, err)
	}
	if out == s {
		t.Fatalf("%s: the mask of %q is itself", field, s)
	}
	if field == "born" {
		return // a year is four of ten characters
	}
	shown := utf8.RuneCountInString(strings.NewReplacer("***@***", "", "***", "").Replace(out))
	if out != "****" && shown*3 > utf8.RuneCountInString(s) {
		t.Fatalf("%s: the mask %q shows too much of %q", field, out, s)
	}
}

func maskedFields() []string { return []string{"email", "phone", "number", "born", "age", "unknown"} }

func TestMaskProperties(t *testing.T) {
	c := mustCompile(t, person)
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z*]{0,6}@[a-z*]{0,3}\.[a-z]{1,3}`),
			rapid.StringMatching(`\+?[0-9 ]{0,14}`), rapid.StringMatching(`[0-9]{4}-[0-9]{2}-[0-9]{2}`)).Draw(rt, "s")
		s = strings.ReplaceAll(s, "*", "x") // what the value shows could not be told from what hides it
		for _, f := range maskedFields() {
			checkMask(t, c, f, s)
		}
	})
}

// checkNormalise: what is accepted is its own normal form.
func checkNormalise(t testing.TB, c *schema.Collection, field, s string) {
	t.Helper()
	once, v1, err := c.Normalise(field, s)
	if err != nil {
		if !errors.Is(err, schema.ErrValue) || once != "" {
			t.Fatalf("%s: %q, %v", field, once, err)
		}
		return
	}
	twice, v2, err := c.Normalise(field, once)
	if err != nil || twice != once || v1 != v2 {
		t.Fatalf("%s: %q normalises to %q and then to %q, %v", field, s, once, twice, err)
	}
}

func TestNormaliseIsIdempotent(t *testing.T) {
	c := mustCompile(t, person, schema.WithPhoneRegion("RU"))
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringMatching(`\+?[0-9 ()-]{5,18}`), rapid.StringMatching(`\pL{1,8}\pM{0,3}@\pL{1,8}\.\pL{2,3}`)).Draw(rt, "s")
		for _, f := range []string{"email", "phone", "nick", "number"} {
			checkNormalise(t, c, f, s)
		}
	})
}

func FuzzMask(f *testing.F) {
	for _, s := range []string{"", "***", "a@b.c", "i***@***.org", "+79161234567", "1990-05-17", "👨‍👩‍👧‍👦", "e\u0301", "\u202e"} {
		f.Add(s)
	}
	c := mustCompile(f, person)
	f.Fuzz(func(t *testing.T, s string) {
		for _, field := range maskedFields() {
			checkMask(t, c, field, s)
		}
	})
}

func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"İ@x.y", "ΐ@ΐ.ΐ", "ŉ", "\u0345", "+7 916 1234567", "8 916 1234567", "+39 06 1", "ẞ", "ﬁ", "ǰ"} {
		f.Add(s)
	}
	c := mustCompile(f, person, schema.WithPhoneRegion("RU"))
	f.Fuzz(func(t *testing.T, s string) {
		for _, field := range []string{"email", "phone", "nick", "number"} {
			checkNormalise(t, c, field, s)
		}
	})
}

// FuzzRecord: what validates can be split, each part validates by itself, and joined again it is the same
// record; on error every result is nil.
func FuzzRecord(f *testing.F) {
	for _, s := range []string{`{"email":"a@b"}`, `{"email":"a@b","name":{"given":"x"},"age":3}`, `{"email":null}`, `{"age":1e400}`, `[]`, `{"phones":[{"value":"+79161234567"}]}`} {
		f.Add([]byte(s))
	}
	c := mustCompile(f, person)
	f.Fuzz(func(t *testing.T, raw []byte) {
		fields, errSplit := c.Split(raw)
		if errSplit != nil && fields != nil {
			t.Fatal("a result beside an error")
		}
		set, remove, errPatch := c.MergePatch(raw)
		if errPatch != nil && (set != nil || remove != nil) {
			t.Fatal("a patch beside an error")
		}
		if c.Validate(raw) != nil {
			return
		}
		if errSplit != nil {
			t.Fatalf("valid, and cannot be split: %v", errSplit)
		}
		if err := c.ValidateFields(fields); err != nil {
			t.Fatalf("valid as a whole and not in parts: %v", err)
		}
		var parts [][]byte
		for name, value := range fields {
			parts = append(parts, []byte(`"`+name+`":`+string(value)))
		}
		joined := append(append([]byte("{"), bytes.Join(parts, []byte(","))...), '}')
		if err := c.Validate(joined); err != nil {
			t.Fatalf("joined again: %v", err)
		}
		a, b := jsontext.Value(bytes.Clone(raw)), jsontext.Value(joined)
		if a.Canonicalize() != nil || b.Canonicalize() != nil || !bytes.Equal(a, b) {
			t.Fatalf("joined again it is another record")
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte(person))
	f.Add([]byte(one(`"type":"string","pattern":"^a$"`)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := schema.Compile("person", raw)
		if (err != nil) != (c == nil) || (err != nil && !errors.Is(err, schema.ErrSchema)) {
			t.Fatalf("%v, %v", c, err)
		}
		if c != nil {
			_ = c.Validate([]byte(`{"f":"x"}`))
		}
	})
}

func BenchmarkValidate(b *testing.B) {
	c := mustCompile(b, person)
	raw := []byte(`{"email":"a@b","phone":"+7 916 123-45-67","nick":["x"],"name":{"given":"Ё"},"born":"1990-05-17","age":7}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Validate(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	c := mustCompile(b, person)
	raw := []byte(`{"email":"a@b","phone":"+7 916 123-45-67","nick":["x"],"name":{"given":"Ё"},"born":"1990-05-17","age":7}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Split(raw); err != nil {
			b.Fatal(err)
		}
	}
}
