package server

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/prototypster/pdvault/api"
)

// FuzzDecode checks that what the strict decoder takes is one JSON object within the limits, that it says
// the same to a decoder of another make, and that a refusal repeats nothing.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"records":{"profile":{"email":"a@example.org"}}}`, `{"records":{"a":{"n":9007199254740993}}}`,
		`{"records":{"a":{}},"records":{}}`, `{"Records":{}}`, `{"records":{"a":{"b":"\ud800"}}}`, "{\"records\":{\"\xff\":{}}}",
		`{"records":{}}{}`, `{"records":null}`, strings.Repeat(`{"records":`, 40), `{"records":{"a":{"x":1e400,"y":-0}}}`, ` {}`, `[]`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var v api.CreateSubject
		err := decode(body, &v)
		object := checkObject(body)
		if err == nil && object != nil {
			t.Fatalf("taken by decode, refused as an object: %v", object)
		}
		if err != nil {
			if len(body) > 16 && strings.Contains(err.Error(), string(body)) {
				t.Fatalf("refusal repeats the body: %v", err)
			}
			return
		}
		if !utf8.Valid(body) || !jsontext.Value(body).IsValid() {
			t.Fatal("took what is not JSON in UTF-8")
		}
		d := jsontext.NewDecoder(bytes.NewReader(body))
		for depth := 0; ; {
			tok, err := d.ReadToken()
			if err != nil {
				break
			}
			if depth = d.StackDepth(); depth > api.MaxDepth {
				t.Fatalf("took depth %d", depth)
			}
			if _, n := d.StackIndex(depth); n > 2*api.MaxMembers {
				t.Fatalf("took %d members", n)
			}
			if tok.Kind() == '0' {
				if n, err := strconv.ParseFloat(tok.String(), 64); err != nil || n > api.MaxNumber || n < -api.MaxNumber {
					t.Fatalf("took number %s", tok)
				}
			}
		}
	})
}

// FuzzIfMatch checks that a tag that is taken is the only spelling of its version.
func FuzzIfMatch(f *testing.F) {
	for _, s := range []string{`"1"`, `"01"`, `W/"1"`, `*`, `"1","2"`, `""`, `"18446744073709551615"`, `"9223372036854775807"`, `"+1"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCondition(http.Header{"If-Match": {s}})
		if err != nil {
			if c.match != nil {
				t.Error("an error with a version")
			}
			return
		}
		if etag(*c.match) != s {
			t.Errorf("%q was taken as %s", s, etag(*c.match))
		}
	})
}

// FuzzIdempotencyKey checks that a key that is taken is printable, bounded and not empty, and that quoting it
// again gives the same key.
func FuzzIdempotencyKey(f *testing.F) {
	for _, s := range []string{`"a"`, `"a\"b\\c"`, `a`, `""`, `"a";x=1`, `"\x"`, `"é"`, `"a" `, `"\"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, err := parseIdempotencyKey(http.Header{"Idempotency-Key": {s}})
		if err != nil {
			if key != "" {
				t.Error("an error with a key")
			}
			return
		}
		if key == "" || len(key) > api.MaxIdempotencyKey || !printable(key) {
			t.Errorf("took %q", key)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		if quoted != s {
			t.Errorf("%q has the other spelling %q", s, quoted)
		}
	})
}

// FuzzCursor checks that cursors, limits and indices that are taken have one spelling.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{"0", "1", "00", "-1", "+1", "9223372036854775807", "9223372036854775808", "1e3", " 1", "١"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseCursor(s); err == nil && s != "" && (n < 0 || strconv.FormatInt(n, 10) != s) {
			t.Errorf("cursor %q is %d", s, n)
		}
		if n, err := parseIndex(s); err == nil && (n < 0 || strconv.FormatInt(n, 10) != s) {
			t.Errorf("index %q is %d", s, n)
		}
		if n, err := parseLimit(s); err == nil && (n < 1 || n > api.MaxPage) {
			t.Errorf("limit %q is %d", s, n)
		}
		if id, err := parseID("id", s); err == nil && id.String() != s {
			t.Errorf("id %q is %s", s, id)
		}
	})
}

// FuzzQuery checks that a query that is taken has known parameters only, each once.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"purpose=a&fields=b", "purpose=a&purpose=b", "x=1", "purpose", "purpose=%zz", "purpose=a;fields=b", "=", "&", "purpose=%00"} {
		f.Add(s)
	}
	known := []string{"purpose", "fields", "mode"}
	f.Fuzz(func(t *testing.T, s string) {
		params, err := parseQuery(s, known)
		if err != nil {
			if params != nil {
				t.Error("an error with parameters")
			}
			return
		}
		seen := map[string]bool{}
		for _, p := range params {
			if seen[p.name] || p.value == "" || !printable(p.value) {
				t.Errorf("%q gave %v", s, params)
			}
			seen[p.name] = true
		}
	})
}
