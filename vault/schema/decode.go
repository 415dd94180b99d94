package schema

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"io"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

var (
	errTooLarge = errors.New("too large")
	errTooDeep  = errors.New("nested too deeply")
	errStrict   = errors.New("not strict JSON") // also: repeated member, invalid UTF-8, more than one value
	errNumber   = errors.New("number out of range")
)

// decode reads exactly one JSON value into maps, slices, strings, bools and json.Number, the forms that the
// schema engine takes. Its errors say nothing of the content: those of the JSON library quote it.
func decode(raw []byte, maxSize, maxDepth int) (any, error) {
	if len(raw) > maxSize {
		return nil, errTooLarge
	}
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	v, err := decodeValue(dec, maxDepth)
	if err != nil {
		return nil, err
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return nil, errStrict
	}
	return v, nil
}

func decodeValue(dec *jsontext.Decoder, depth int) (any, error) {
	tok, err := dec.ReadToken()
	if err != nil {
		return nil, errStrict
	}
	switch tok.Kind() {
	case 'n':
		return nil, nil
	case 't', 'f':
		return tok.Bool(), nil
	case '"':
		return tok.String(), nil
	case '0':
		return number(tok.String())
	}
	if depth == 0 {
		return nil, errTooDeep
	}
	if tok.Kind() == '[' {
		list := []any{}
		for dec.PeekKind() != ']' {
			v, err := decodeValue(dec, depth-1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := dec.ReadToken()
		return list, err
	}
	m := map[string]any{}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, errStrict
		}
		key := name.String()
		if m[key], err = decodeValue(dec, depth-1); err != nil {
			return nil, err
		}
	}
	_, err = dec.ReadToken()
	return m, err
}

// number keeps a number's digits. The schema engine makes a rational of it, so 1e999999999 would be a
// billion digits of memory: what no float64 can hold is refused here.
func number(s string) (any, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || len(s) > 64 || (f != 0 && math.Abs(f) < 1e-300) {
		return nil, errNumber
	}
	if f == 0 { // 0e-999999999, and what underflows to zero
		for _, r := range s {
			if r == 'e' || r == 'E' || (r >= '1' && r <= '9') {
				return nil, errNumber
			}
		}
	}
	return stdjson.Number(s), nil
}
