package schema

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nyaruka/phonenumbers"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// normaliserVersion is stored with every index token. Raise it when the output of any normaliser changes
// for some input: tokens of different versions never meet, so the index must be rebuilt.
const normaliserVersion = 1

// version returns the version of the field's normaliser. That of phone holds the default region as well, since
// the region decides what a national number means.
func (c *Collection) version(f *field) uint32 {
	v := uint32(normaliserVersion)
	if f.Normalise == NormalisePhone && len(c.phoneRegion) == 2 {
		v |= uint32(c.phoneRegion[0])<<24 | uint32(c.phoneRegion[1])<<16
	}
	return v
}

// normalise returns the normal form of s, never an empty one. The error is ErrValue itself.
func (c *Collection) normalise(f *field, s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", ErrValue
	}
	var out string
	switch f.Normalise {
	case NormaliseEmail:
		out = normaliseEmail(s)
	case NormalisePhone:
		out = normalisePhone(s, c.phoneRegion)
	case NormaliseText:
		out = normaliseText(s)
	case NormaliseNone:
		out = s
	}
	if out == "" {
		return "", ErrValue
	}
	return out, nil
}

// normaliseEmail lower-cases the local part too: RFC 5321 lets a host tell Bob@ from bob@, in practice
// none does, and two accounts for one mailbox are the greater harm. It returns "" for what is no address.
func normaliseEmail(s string) string {
	s = norm.NFC.String(strings.ToLower(norm.NFC.String(strings.TrimSpace(s))))
	at := strings.LastIndexByte(s, '@')
	if at < 1 || at == len(s)-1 || utf8.RuneCountInString(s) > 320 || strings.IndexByte(s[:at], '@') >= 0 {
		return ""
	}
	for _, r := range s {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			return ""
		}
	}
	return s
}

// normalisePhone returns the number in E.164, or "". A number need only be possible (right length for its
// country), not assigned: lists of assigned ranges age, and a person's new number must not be refused.
// Extensions are refused: E.164 has none, and two desks would become one person.
func normalisePhone(s, region string) string {
	n, err := phonenumbers.Parse(strings.TrimSpace(s), region)
	if err != nil || !phonenumbers.IsPossibleNumber(n) || n.GetExtension() != "" {
		return ""
	}
	return phonenumbers.Format(n, phonenumbers.E164)
}

func regionKnown(region string) bool { return phonenumbers.GetSupportedRegions()[region] }

// normaliseText folds case fully (ß is ss) between decompositions, as Unicode's canonical caseless matching
// does; without the first one, folding and composing would not be stable.
func normaliseText(s string) string {
	folded := strings.Map(foldCherokee, cases.Fold().String(norm.NFD.String(s)))
	return strings.TrimSpace(norm.NFC.String(folded))
}

// foldCherokee takes small Cherokee letters to capitals, which are what Unicode folds to in that one script.
// cases.Fold swaps the two.
func foldCherokee(r rune) rune {
	switch {
	case r >= 0xAB70 && r <= 0xABBF:
		return r - 0xAB70 + 0x13A0
	case r >= 0x13F8 && r <= 0x13FD:
		return r - 8
	}
	return r
}
