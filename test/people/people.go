// Package people generates populations of people who do not exist: profile records that are valid against
// the default policy bundle, the same for the same seed, in the scripts and shapes that real names come in.
// It is for tests, demonstrations and load.
//
// It must never hold data of a person who lives: names are common words joined at random, numbers and
// addresses are made from an index.
package people

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/brianvoe/gofakeit/v7"
	"github.com/go-json-experiment/json"
	"golang.org/x/text/unicode/norm"
)

// Population is all the people of one seed. It is immutable and may be used from any goroutine.
type Population struct{ seed uint64 }

// New returns the population of a seed.
func New(seed uint64) *Population { return &Population{seed} }

// Max is how many people of one population have e-mail addresses and phone numbers of their own.
const Max = 100_000_000

// Profile is a record of the default bundle's collection profile. Empty members are left out.
type Profile struct {
	UserName    string   `json:"userName,omitzero"`
	Name        *Name    `json:"name,omitzero"`
	DisplayName string   `json:"displayName,omitzero"`
	Email       string   `json:"email,omitzero"`
	Phone       string   `json:"phone,omitzero"`
	Address     *Address `json:"address,omitzero"`
	Birthdate   string   `json:"birthdate,omitzero"`
	Gender      string   `json:"gender,omitzero"`
	Locale      string   `json:"locale,omitzero"`
	Timezone    string   `json:"timezone,omitzero"`
}

// Name is the field name of a Profile.
type Name struct {
	GivenName  string `json:"givenName,omitzero"`
	FamilyName string `json:"familyName,omitzero"`
	MiddleName string `json:"middleName,omitzero"`
}

// Address is the field address of a Profile.
type Address struct {
	StreetAddress string `json:"streetAddress,omitzero"`
	Locality      string `json:"locality,omitzero"`
	Region        string `json:"region,omitzero"`
	PostalCode    string `json:"postalCode,omitzero"`
	Country       string `json:"country,omitzero"`
}

// Person returns the profile of the i-th person as JSON. It panics when i is negative or not below Max.
func (p *Population) Person(i int) []byte {
	b, err := json.Marshal(p.Profile(i))
	if err != nil {
		panic("people: a generated profile does not encode")
	}
	return b
}

// Profile returns the profile of the i-th person. Everyone has an e-mail address and a phone number that
// nobody else in the population has; every other field may be missing.
func (p *Population) Profile(i int) Profile {
	if i < 0 || i >= Max {
		panic("people: index out of range")
	}
	rng := rand.New(rand.NewPCG(p.seed, uint64(i)))
	fake := gofakeit.NewFaker(rng, false)
	sc := scripts()[rng.IntN(len(scripts()))]
	given, family := sc.name(rng, fake)
	given, family = reshape(rng, given), reshape(rng, family)

	out := Profile{
		Email: email(rng, i),
		Phone: phone(rng, p.seed, i),
	}
	most := func() bool { return rng.IntN(100) < 85 }
	if most() {
		out.UserName = fmt.Sprintf("%s%d", fake.Username(), i)
	}
	if most() {
		out.Name = &Name{GivenName: given, FamilyName: family}
		if rng.IntN(3) == 0 {
			out.Name.MiddleName, _ = sc.name(rng, fake)
		}
	}
	if most() {
		out.DisplayName = given
		if rng.IntN(4) == 0 {
			out.DisplayName += " " + emoji()[rng.IntN(len(emoji()))]
		}
	}
	if most() {
		out.Address = &Address{StreetAddress: fmt.Sprintf("%s %d", family, 1+rng.IntN(200)), Locality: sc.places[rng.IntN(len(sc.places))],
			PostalCode: fake.Zip(), Country: sc.country}
		if rng.IntN(4) == 0 {
			out.Address.Region = fake.State()
		}
	}
	if most() {
		from := time.Date(1930, 1, 1, 0, 0, 0, 0, time.UTC)
		out.Birthdate = from.AddDate(0, 0, rng.IntN(365*78)).Format(time.DateOnly)
	}
	if rng.IntN(3) == 0 {
		out.Gender = []string{"female", "male", "другой", "–", "אחר"}[rng.IntN(5)]
	}
	if most() {
		out.Locale, out.Timezone = sc.locale, sc.timezone
	}
	return out
}

// reshape turns some names into the ones that break programs: one character, 300 characters, characters
// built of many, letters with their marks apart, directions mixed.
func reshape(rng *rand.Rand, s string) string {
	switch rng.IntN(40) {
	case 0:
		return string([]rune(norm.NFC.String(s))[:1])
	case 1:
		return repeat(s, 300)
	case 2:
		return strings.Repeat(emoji()[rng.IntN(len(emoji()))], 1+rng.IntN(300))
	case 3:
		return norm.NFD.String(s + "é ñ й ệ")
	case 4:
		return s + "\u0301\u0308\u0323"
	case 5:
		return "\u202b" + s + "\u202c (" + s + ")"
	case 6:
		return s + "-" + s + " d’" + s
	}
	return s
}

// repeat returns a name of exactly n code points made of s.
func repeat(s string, n int) string {
	runes := []rune(strings.Repeat(s, n/len([]rune(s))+1))
	return string(runes[:n])
}

// emoji are characters of one to eleven code points.
func emoji() []string {
	return []string{"🙂", "🦊", "👍🏽", "❤️", "🇰🇿", "👩‍🚀", "👨‍👩‍👧‍👦", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "1️⃣", "🧑🏻‍❤️‍💋‍🧑🏿"}
}

// email is unique by the index at the end of its local part.
func email(rng *rand.Rand, i int) string {
	words := []string{"mail", "Post", "box", "me", "почта", "hello.world", "x", "first+tag", "o'neil", "dörte", "名前"}
	hosts := []string{"example.org", "example.com", "Example.NET", "mail.example.org", "пример.example", "例え.example"}
	return fmt.Sprintf("%s.%d@%s", words[rng.IntN(len(words))], i, hosts[rng.IntN(len(hosts))])
}

// phone is unique: people of one country differ in the digits after its prefix, which are the person's
// rank in that country, scattered by a step that shares no factor with ten.
func phone(rng *rand.Rand, seed uint64, i int) string {
	c := countries()[i%len(countries())]
	rank := uint64(i / len(countries()))
	mod := uint64(1)
	for range c.digits {
		mod *= 10
	}
	n := (rank*7919 + seed%mod) % mod
	digits := fmt.Sprintf("%s%0*d", c.prefix, c.digits, n)
	switch rng.IntN(3) {
	case 0: // as people write it
		cut := len(digits) - 4
		return digits[:3] + " " + digits[3:cut] + "-" + digits[cut:cut+2] + "-" + digits[cut+2:]
	case 1:
		return digits[:4] + " (" + digits[4:6] + ") " + digits[6:]
	}
	return digits
}

// Line returns the i-th person as the body of POST /v1/subjects.
func (p *Population) Line(i int) []byte {
	b := append([]byte(`{"records":{"profile":`), p.Person(i)...)
	return append(b, `}}`...)
}

// Write writes the first n people of a seed as newline-delimited JSON, one Line each.
func Write(w io.Writer, seed uint64, n int) error {
	if n < 0 || n > Max {
		return fmt.Errorf("people: 0 to %d people", Max)
	}
	buf := bufio.NewWriter(w)
	p := New(seed)
	for i := range n {
		if _, err := buf.Write(append(p.Line(i), '\n')); err != nil {
			return fmt.Errorf("writing people: %w", err)
		}
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("writing people: %w", err)
	}
	return nil
}
