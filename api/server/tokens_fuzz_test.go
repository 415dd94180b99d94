package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// FuzzTokens: a tokens file gives whole hashes of named callers, in the form that FormatToken writes, or an error that
// holds none of its lines.
func FuzzTokens(f *testing.F) {
	line := FormatToken(TokenHash{CallerID: "shop", SHA256: HashToken("secret")})
	f.Add(line)
	f.Add("# tokens\n\n" + line + "\n" + line)
	f.Add(strings.ToUpper(line))
	f.Add(`{"caller":"shop","caller":"auditor","sha256":""}`)
	f.Add(`{"caller":"shop","sha256":"` + strings.Repeat("ab", 31) + `"}`)
	f.Fuzz(func(t *testing.T, text string) {
		hashes, err := ParseTokens(strings.NewReader(text))
		if err != nil {
			if hashes != nil {
				t.Error("failed with a result")
			}
			for l := range strings.Lines(text) {
				if l = strings.TrimSpace(l); len(l) > 24 && strings.Contains(err.Error(), l) {
					t.Errorf("the error holds a line: %v", err)
				}
			}
			return
		}
		var again strings.Builder
		for _, h := range hashes {
			if !isName(h.CallerID) {
				t.Errorf("caller %q", h.CallerID)
			}
			again.WriteString(FormatToken(h) + "\n")
		}
		back, err := ParseTokens(strings.NewReader(again.String()))
		if err != nil || len(back) != len(hashes) {
			t.Errorf("what was taken does not come back: %v", err)
		}
	})
}

// FuzzAuthorization: no header authenticates but the one with the token.
func FuzzAuthorization(f *testing.F) {
	tokens, err := NewTokens([]TokenHash{{CallerID: "shop", SHA256: HashToken("secret")}}, func(string) (verify.Caller, bool) { return verify.Caller{}, true })
	if err != nil {
		f.Fatal(err)
	}
	for _, h := range []string{"Bearer secret", "bearer secret", "Bearer  secret", "Bearer secret ", "Bearer", "Basic secret", "secret", ""} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := &http.Request{Header: http.Header{"Authorization": {header}}}
		c, err := tokens.Authenticate(r)
		if good := strings.EqualFold(header, "Bearer secret") && strings.HasSuffix(header, " secret"); (err == nil) != good || err != nil && c != (verify.Caller{}) {
			t.Errorf("%q: %+v, %v", header, c, err)
		}
	})
}

// FuzzHeaders: what the headers and ids of a request are taken for has one spelling, and no control character.
func FuzzHeaders(f *testing.F) {
	f.Add("6f1c0a52-7f6b-4a3e-9d57-0d2f5a9b1c11", "a reference", `"3"`, "")
	f.Add("6F1C0A52-7F6B-4A3E-9D57-0D2F5A9B1C11", "\x01", `W/"3"`, "*")
	f.Add("urn:uuid:6f1c0a52-7f6b-4a3e-9d57-0d2f5a9b1c11", "\xff", `"1", "2"`, `"1"`)
	f.Fuzz(func(t *testing.T, id, text, match, none string) {
		if u, err := parseID("id", id); err == nil && u.String() != id {
			t.Errorf("%q was taken for %v", id, u)
		}
		h := http.Header{"Access-Reference": {text}, "If-Match": {match}, "If-None-Match": {none}}
		if s, err := freeText(h, "Access-Reference", 256); err == nil && (s != text || len(s) > 256 || !printable(s)) {
			t.Errorf("%q was taken", s)
		}
		c, err := parseCondition(h)
		if err == nil && (c.match == nil || etag(*c.match) != match) {
			t.Errorf("%q and %q were taken", match, none)
		}
	})
}
