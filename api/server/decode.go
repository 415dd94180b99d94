package server

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

// Errors that a request ends with before the broker is asked.
var (
	errTooLarge    = errors.New("body is larger than this call takes")
	errMediaType   = errors.New("media type of the body is not the one that this call takes")
	errNoRoute     = errors.New("no such path")
	errNoMethod    = errors.New("method is not allowed on this path")
	errPanic       = errors.New("handler panicked")
	errRoleMissing = errors.New("role may not see this")
)

// Media types of request bodies.
const (
	mediaJSON  = "application/json"
	mediaPatch = "application/merge-patch+json"
)

func invalid(field, why string) error { return &access.FieldError{Field: field, Why: why} }

// readBody reads the body of r: at most limit bytes, of the media type, not empty unless optional. It takes no more
// memory than has come: large is asked before more than smallBody is kept, and its error ends the reading.
func readBody(w http.ResponseWriter, r *http.Request, media string, limit int64, optional bool, large func() error) ([]byte, error) {
	if r.ContentLength == 0 && optional {
		return nil, nil
	}
	if err := checkMedia(r.Header["Content-Type"], media); err != nil {
		return nil, err
	}
	if len(r.Header["Content-Encoding"]) > 0 {
		return nil, errMediaType
	}
	if r.ContentLength > limit {
		return nil, errTooLarge
	}
	var body []byte
	var err error
	if r.ContentLength >= 0 {
		body, err = readSized(r.Body, r.ContentLength, large)
	} else {
		body, err = readUnsized(http.MaxBytesReader(w, r.Body, limit), large)
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, errTooLarge
	case errors.Is(err, errBusy):
		return nil, err
	case err != nil:
		return nil, invalid("", "body ended early or came too slowly")
	}
	return body, nil
}

// readSized reads size bytes.
func readSized(r io.Reader, size int64, large func() error) ([]byte, error) {
	body := make([]byte, min(size, smallBody))
	if _, err := io.ReadFull(r, body); err != nil || size <= smallBody {
		return body, err
	}
	if err := large(); err != nil {
		return nil, err
	}
	body = append(make([]byte, 0, size), body...)[:size]
	_, err := io.ReadFull(r, body[smallBody:])
	return body, err
}

// readUnsized reads to the end, which r bounds.
func readUnsized(r io.Reader, large func() error) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, smallBody))
	if err != nil || len(body) < smallBody {
		return body, err
	}
	if err := large(); err != nil {
		return nil, err
	}
	rest, err := io.ReadAll(r)
	return append(body, rest...), err
}

// checkMedia accepts media alone, or with charset=utf-8.
func checkMedia(header []string, media string) error {
	if len(header) != 1 {
		return errMediaType
	}
	if header[0] == media {
		return nil
	}
	got, params, err := mime.ParseMediaType(header[0])
	if err != nil || got != media || len(params) > 1 {
		return errMediaType
	}
	if charset, ok := params["charset"]; len(params) == 1 && (!ok || !strings.EqualFold(charset, "utf-8")) {
		return errMediaType
	}
	return nil
}

// decode reads one JSON object into v and refuses everything that another reader could understand
// differently: unknown and repeated members (names are case-sensitive), data after the object, invalid UTF-8,
// and what is over the limits of package api. Errors never repeat a name or a value of the body.
func decode(body []byte, v any) error {
	if err := checkLimits(body); err != nil {
		return err
	}
	return decodeError(json.Unmarshal(body, v, json.RejectUnknownMembers(true)))
}

// checkObject is decode for a body whose members are not ours to know.
func checkObject(body []byte) error {
	if err := checkLimits(body); err != nil {
		return err
	}
	var v jsontext.Value
	return decodeError(json.Unmarshal(body, &v))
}

func decodeError(err error) error {
	var syntactic *jsontext.SyntacticError
	var semantic *json.SemanticError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jsontext.ErrDuplicateName):
		return invalid("", "an object has the same member twice")
	case errors.Is(err, json.ErrUnknownName):
		return invalid("", "a member is not known; names are case-sensitive")
	case errors.As(err, &syntactic):
		return invalid("", "not strict JSON in UTF-8 at byte "+strconv.FormatInt(syntactic.ByteOffset, 10))
	case errors.As(err, &semantic):
		// A name that is not ours would have been refused above, so the pointer holds none of the caller's.
		return invalid(string(semantic.JSONPointer), "has the wrong JSON type or format")
	}
	return invalid("", "not strict JSON")
}

// checkLimits enforces the limits on depth, members, strings and numbers in one pass without allocation. It
// need not recognise what is not JSON at all: the decoder that follows does.
func checkLimits(body []byte) error {
	var members [api.MaxDepth + 1]int // commas seen at each depth
	depth := 0
	i := skipSpace(body, 0)
	if i == len(body) || body[i] != '{' {
		return invalid("", "must be one JSON object")
	}
	for ; i < len(body); i++ {
		switch c := body[i]; {
		case c == '"':
			start := i + 1
			for i++; i < len(body) && body[i] != '"'; i++ {
				if body[i] == '\\' {
					i++
				}
			}
			if i-start > api.MaxString {
				return invalid("", "a string is longer than "+strconv.Itoa(api.MaxString)+" bytes")
			}
		case c == '{' || c == '[':
			if depth++; depth > api.MaxDepth {
				return invalid("", "is nested deeper than "+strconv.Itoa(api.MaxDepth))
			}
			members[depth] = 0
		case c == '}' || c == ']':
			if depth--; depth < 0 {
				return invalid("", "not strict JSON")
			}
		case c == ',':
			if members[depth]++; members[depth] >= api.MaxMembers {
				return invalid("", "an object or array has more than "+strconv.Itoa(api.MaxMembers)+" members")
			}
		case c == '-' || '0' <= c && c <= '9':
			start := i
			for i+1 < len(body) && isNumberByte(body[i+1]) {
				i++
			}
			if !exactNumber(body[start : i+1]) {
				return invalid("", "a number is larger than 2^53: send it as a string")
			}
		}
	}
	return nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n') {
		i++
	}
	return i
}

func isNumberByte(c byte) bool {
	return '0' <= c && c <= '9' || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-'
}

// exactNumber reports whether every reader of JSON gets the same number out of text.
func exactNumber(text []byte) bool {
	if len(text) <= 15 && !hasExponent(text) {
		return true
	}
	s := string(text)
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return -api.MaxNumber <= n && n <= api.MaxNumber
	}
	f, err := strconv.ParseFloat(s, 64)
	return err == nil && -api.MaxNumber < f && f < api.MaxNumber
}

func hasExponent(text []byte) bool {
	for _, c := range text {
		if c == 'e' || c == 'E' {
			return true
		}
	}
	return false
}
