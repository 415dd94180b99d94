package schema

import (
	_ "embed"
	"strings"
)

// pdTerms are the terms of the Data Privacy Vocabulary's extension for kinds of personal data that a field
// may be annotated with, one on each line: a selection from DPV pd (https://w3id.org/dpv/pd).
//
//go:embed pd.txt
var pdTerms string

// categoryKnown reports whether curie is "pd:" and a term of the list.
func categoryKnown(curie string) bool {
	term, ok := strings.CutPrefix(curie, "pd:")
	if !ok || term == "" || strings.ContainsAny(term, "\n#") {
		return false
	}
	for line := range strings.Lines(pdTerms) {
		if strings.TrimSpace(line) == term {
			return true
		}
	}
	return false
}
