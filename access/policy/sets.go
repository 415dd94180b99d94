package policy

import (
	"iter"

	"github.com/cedar-policy/cedar-go"
)

// stringSet makes a Cedar set of strings.
func stringSet(s iter.Seq[string]) cedar.Set {
	var values []cedar.Value
	for v := range s {
		values = append(values, cedar.String(v))
	}
	return cedar.NewSet(values...)
}

// qualify flattens fields by collection into a set of qualified names.
func qualify(fields map[string][]string) map[string]bool {
	out := map[string]bool{}
	for collection, names := range fields {
		for _, f := range names {
			out[Qualify(collection, f)] = true
		}
	}
	return out
}
