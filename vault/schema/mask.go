package schema

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/rivo/uniseg"
)

// hidden stands for what is not shown. Its length says nothing of the value's.
const hidden = "***"

// Mask returns the JSON to show in mode mask instead of a field's JSON value. A field without a mask, or
// unknown, is redacted. Of a short value nothing is shown; of a longer one at most a third. The result
// is never the value itself. Characters are grapheme clusters, so no letter is parted from its marks.
// Objects and arrays keep their shape, and each string in them is masked; kinds that have no characters
// (numbers, booleans) are redacted.
func (c *Collection) Mask(name string, value []byte) ([]byte, error) {
	v, err := decode(value, MaxRecordSize, MaxRecordDepth)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrValue, err)
	}
	kind := MaskRedact
	if f, ok := c.fields[name]; ok {
		kind = f.Mask
	}
	out, err := json.Marshal(maskValue(kind, v), json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("%w: not strict JSON", ErrValue)
	}
	return out, nil
}

func maskValue(kind MaskKind, v any) any {
	if kind == MaskRedact {
		return redacted(v)
	}
	switch v := v.(type) {
	case string:
		return maskString(kind, v)
	case map[string]any:
		if len(v) == 0 {
			return hidden
		}
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = maskValue(kind, e)
		}
		return out
	case []any:
		if len(v) == 0 {
			return hidden
		}
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = maskValue(kind, e)
		}
		return out
	}
	return redacted(v)
}

// redacted returns hidden, or one star more should the value be hidden itself.
func redacted(v any) string {
	if v == hidden {
		return hidden + "*"
	}
	return hidden
}

// maskString masks one string and falls back to redaction when too much of it would show.
func maskString(kind MaskKind, s string) string {
	out, shown := hidden, 0
	switch kind {
	case MaskEmail:
		out, shown = maskEmail(s)
	case MaskPhone:
		out, shown = maskPhone(s)
	case MaskName:
		first, _, _, _ := uniseg.FirstGraphemeClusterInString(s, -1)
		out, shown = first+hidden, utf8.RuneCountInString(first)
	case MaskLast4:
		tail := lastGraphemes(s, 4)
		out, shown = hidden+tail, utf8.RuneCountInString(tail)
	case MaskYear:
		if len(s) == len("2006-01-02") && s[4] == '-' && s[7] == '-' && digits(s[:4]) == 4 {
			return s[:4]
		}
	}
	if out == s || shown*3 > utf8.RuneCountInString(s) {
		return redacted(s)
	}
	return out
}

// maskEmail shows the first character of the local part, when it has three or more, and the top-level
// domain: the rest of a domain often names a family or an employer.
func maskEmail(s string) (string, int) {
	local, domain, ok := strings.Cut(s, "@")
	if !ok {
		return hidden, 0
	}
	first := ""
	if uniseg.GraphemeClusterCount(local) >= 3 {
		first, _, _, _ = uniseg.FirstGraphemeClusterInString(local, -1)
	}
	tld := ""
	if dot := strings.LastIndexByte(domain, '.'); dot > 0 {
		tld = domain[dot:]
	}
	out := first + hidden + "@" + hidden + tld
	return out, utf8.RuneCountInString(first + tld)
}

// maskPhone shows the last two digits of a number of seven or more.
func maskPhone(s string) (string, int) {
	if digits(s) < 7 {
		return hidden, 0
	}
	tail := make([]byte, 0, 2)
	for i := len(s) - 1; i >= 0 && len(tail) < 2; i-- {
		if s[i] >= '0' && s[i] <= '9' {
			tail = append(tail, s[i])
		}
	}
	slices.Reverse(tail)
	return hidden + string(tail), 2
}

// digits counts ASCII digits.
func digits(s string) (n int) {
	for i := range len(s) {
		if s[i] >= '0' && s[i] <= '9' {
			n++
		}
	}
	return n
}

// lastGraphemes returns the last n grapheme clusters of s, or "" when it has no more than n.
func lastGraphemes(s string, n int) string {
	if uniseg.GraphemeClusterCount(s) <= n {
		return ""
	}
	var starts []int
	for g := uniseg.NewGraphemes(s); g.Next(); {
		from, _ := g.Positions()
		starts = append(starts, from)
	}
	return s[starts[len(starts)-n]:]
}
