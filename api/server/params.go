package server

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/api"
)

// parseID accepts the one spelling of a UUID: lower case with hyphens.
func parseID(field, s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 || id == uuid.Nil { // the nil UUID is nobody's
		return uuid.Nil, invalid(field, "must be a UUID in lower case with hyphens")
	}
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'F' {
			return uuid.Nil, invalid(field, "must be a UUID in lower case with hyphens")
		}
	}
	return id, nil
}

// isName reports whether s can be the name of a collection, a field, a purpose or a caller.
func isName(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

func parseName(field, s string) (string, error) {
	if !isName(s) {
		return "", invalid(field, "must be 1 to 64 of the characters A-Z a-z 0-9 - _")
	}
	return s, nil
}

// parameter is one parameter of a query.
type parameter struct{ name, value string }

// parameters is a parsed query, small enough to be searched one by one.
type parameters []parameter

func (p parameters) get(name string) string {
	for i := range p {
		if p[i].name == name {
			return p[i].value
		}
	}
	return ""
}

// parseQuery parses raw and refuses parameters that are unknown, repeated, empty or not UTF-8: each could
// mean something else to another reader. The name of an unknown one is not repeated.
func parseQuery(raw string, known []string) (parameters, error) {
	if raw == "" {
		return nil, nil
	}
	params := make(parameters, 0, len(known))
	for part := range strings.SplitSeq(raw, "&") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || value == "" {
			return nil, invalid("query", "each parameter must have the form name=value")
		}
		if strings.IndexByte(name, '%') >= 0 || strings.IndexByte(name, '+') >= 0 {
			return nil, invalid("query", "has a parameter that this call does not know")
		}
		i := 0
		for i < len(known) && known[i] != name {
			i++
		}
		if i == len(known) {
			return nil, invalid("query", "has a parameter that this call does not know")
		}
		for j := range params {
			if params[j].name == name {
				return nil, invalid(name, "must be given once")
			}
		}
		if strings.IndexByte(value, '%') >= 0 || strings.IndexByte(value, '+') >= 0 {
			var err error
			if value, err = url.QueryUnescape(value); err != nil {
				return nil, invalid(name, "is not percent-encoded correctly")
			}
		}
		if !printable(value) {
			return nil, invalid(name, "must be printable UTF-8")
		}
		params = append(params, parameter{known[i], value})
	}
	return params, nil
}

// printable reports whether s is UTF-8 without control characters.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}

// parseNames splits a comma-separated list of names. An empty list is nil.
func parseNames(field, s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	names := strings.Split(s, ",")
	if len(names) > api.MaxMembers {
		return nil, invalid(field, "names too many fields")
	}
	for _, name := range names {
		if !isName(name) {
			return nil, invalid(field, "must be a comma-separated list of names without spaces")
		}
	}
	return names, nil
}

// freeText returns the one value of a header that a person may have written, at most limit bytes.
func freeText(h http.Header, name string, limit int) (string, error) {
	values := h[name]
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", invalid(name, "must be given once")
	case len(values[0]) > limit:
		return "", invalid(name, "must be at most "+strconv.Itoa(limit)+" bytes")
	case !printable(values[0]):
		return "", invalid(name, "must be printable UTF-8")
	}
	return values[0], nil
}

// condition is what If-Match and If-None-Match say.
type condition struct {
	match  *uint64
	absent bool
}

// parseCondition takes If-Match with one strong entity tag of ours, or If-None-Match with *. Lists, weak tags
// and If-Match: * are refused: none of them names the version that the caller saw.
func parseCondition(h http.Header) (condition, error) {
	var c condition
	switch values := h["If-Match"]; {
	case len(values) > 1:
		return c, invalid("If-Match", "must be given once")
	case len(values) == 1:
		version, err := parseETag(values[0])
		if err != nil {
			return c, err
		}
		c.match = &version
	}
	switch values := h["If-None-Match"]; {
	case len(values) == 0:
	case len(values) > 1 || values[0] != "*":
		return c, invalid("If-None-Match", "must be *")
	case c.match != nil:
		return c, invalid("If-None-Match", "cannot be combined with If-Match")
	default:
		c.absent = true
	}
	return c, nil
}

func parseETag(s string) (uint64, error) {
	const why = `must be one strong entity tag as this server sends it, such as "3"`
	if len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' {
		return 0, invalid("If-Match", why)
	}
	version, ok := parseDecimal(s[1 : len(s)-1])
	if !ok || version == 0 {
		return 0, invalid("If-Match", why)
	}
	return uint64(version), nil
}

// parseDecimal accepts the one decimal spelling of 0 to 2^63-1.
func parseDecimal(s string) (int64, bool) {
	if len(s) == 0 || len(s) > 19 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// parseIdempotencyKey reads an Idempotency-Key: a structured-field string (RFC 9651) without parameters.
// Absent is the empty key.
func parseIdempotencyKey(h http.Header) (string, error) {
	const name, why = "Idempotency-Key", `must be one quoted string of 1 to 255 ASCII characters`
	values := h[name]
	if len(values) == 0 {
		return "", nil
	}
	s := values[0]
	if len(values) > 1 || len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' {
		return "", invalid(name, why)
	}
	key := make([]byte, 0, len(s)-2)
	for i := 1; i < len(s)-1; i++ {
		c := s[i]
		switch {
		case c < ' ' || c > '~' || c == '"':
			return "", invalid(name, why)
		case c == '\\':
			i++
			if i == len(s)-1 || s[i] != '"' && s[i] != '\\' {
				return "", invalid(name, why)
			}
			c = s[i]
		}
		key = append(key, c)
	}
	if len(key) > api.MaxIdempotencyKey {
		return "", invalid(name, why)
	}
	return string(key), nil
}

// parseCursor reads the cursor of a list: what the previous page gave. Empty is the beginning.
func parseCursor(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, ok := parseDecimal(s)
	if !ok {
		return 0, invalid("cursor", "must be the next of the page before")
	}
	return n, nil
}

func parseLimit(s string) (int, error) {
	if s == "" {
		return api.DefaultPage, nil
	}
	n, ok := parseDecimal(s)
	if !ok || n < 1 || n > api.MaxPage {
		return 0, invalid("limit", "must be 1 to "+strconv.Itoa(api.MaxPage))
	}
	return int(n), nil
}

func parseTime(field, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, invalid(field, "must be an RFC 3339 time")
	}
	return t, nil
}

// parseIndex reads the index of a ledger entry in a path.
func parseIndex(s string) (int64, error) {
	n, ok := parseDecimal(s)
	if !ok {
		return 0, invalid("index", "must be the index of an entry")
	}
	return n, nil
}
