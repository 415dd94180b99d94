package people_test

import (
	"bytes"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/prototypster/pdvault/access/policy"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
	"github.com/prototypster/pdvault/test/people"
	"github.com/prototypster/pdvault/vault/schema"
)

func mustProfile(t testing.TB) *schema.Collection {
	t.Helper()
	raw, err := policy.LoadDir(defaultpolicy.FS)
	if err != nil {
		t.Fatal(err)
	}
	b, err := policy.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := b.Collection("profile")
	if !ok {
		t.Fatal("the default bundle has no profile")
	}
	return c
}

func TestPeopleAreValidAndUnique(t *testing.T) {
	c := mustProfile(t)
	p := people.New(1)
	seen := map[string]map[string]bool{"email": {}, "phone": {}}
	for i := range 20_000 {
		raw := p.Person(i)
		if err := c.Validate(raw); err != nil {
			t.Fatalf("person %d: %v\n%s", i, err, raw)
		}
		fields, err := c.Split(raw)
		if err != nil {
			t.Fatalf("person %d: %v", i, err)
		}
		for name, known := range seen {
			values, _, err := c.IndexValues(name, fields[name])
			if err != nil || len(values) != 1 {
				t.Fatalf("person %d: %s: %v, %v", i, name, values, err)
			}
			if known[values[0]] {
				t.Fatalf("person %d: %s is not unique", i, name)
			}
			known[values[0]] = true
		}
	}
}

func TestPeopleAreDeterministic(t *testing.T) {
	a, b, other := people.New(7), people.New(7), people.New(8)
	for _, i := range []int{0, 1, 41, 19_999, people.Max - 1} {
		want := a.Person(i)
		b.Person(i / 2) // the order of asking does not matter
		if got := b.Person(i); !bytes.Equal(got, want) {
			t.Errorf("person %d differs between two populations of one seed", i)
		}
		if bytes.Equal(other.Person(i), want) {
			t.Errorf("person %d is the same under another seed", i)
		}
	}
}

// TestPeopleAreDiverse: what the generator is for must be in the first thousands.
func TestPeopleAreDiverse(t *testing.T) {
	p := people.New(1)
	found := map[string]bool{}
	for i := range 5000 {
		q := p.Profile(i)
		found["no name"] = found["no name"] || q.Name == nil
		found["no address"] = found["no address"] || q.Address == nil
		if q.Name == nil {
			continue
		}
		g := q.Name.GivenName
		switch n := utf8.RuneCountInString(g); {
		case n == 1:
			found["1 character"] = true
		case n == 300:
			found["300 characters"] = true
		case n > 1000:
			found["over 1000 code points"] = true
		}
		for _, r := range g {
			for name, table := range map[string]*unicode.RangeTable{
				"Cyrillic": unicode.Cyrillic, "Latin": unicode.Latin, "Arabic": unicode.Arabic, "Hebrew": unicode.Hebrew,
				"Han": unicode.Han, "Hangul": unicode.Hangul, "marks": unicode.Mn, "emoji": unicode.So,
			} {
				found[name] = found[name] || unicode.Is(table, r)
			}
		}
	}
	want := map[string]bool{}
	for _, k := range []string{"no name", "no address", "1 character", "300 characters", "over 1000 code points", "Cyrillic",
		"Latin", "Arabic", "Hebrew", "Han", "Hangul", "marks", "emoji"} {
		want[k] = true
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("shapes (-want +got):\n%s", diff)
	}
}

func TestWrite(t *testing.T) {
	var buf bytes.Buffer
	if err := people.Write(&buf, 3, 100); err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSuffix(buf.Bytes(), []byte("\n")), []byte("\n"))
	if len(lines) != 100 {
		t.Fatalf("%d lines", len(lines))
	}
	var body struct {
		Records map[string]people.Profile `json:"records"`
	}
	if err := json.Unmarshal(lines[99], &body, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(people.New(3).Profile(99), body.Records["profile"]); diff != "" {
		t.Errorf("last line (-want +got):\n%s", diff)
	}
	if err := people.Write(&buf, 3, -1); err == nil {
		t.Error("a negative number of people was written")
	}
}

func BenchmarkPerson(b *testing.B) {
	p := people.New(1)
	for i := 0; b.Loop(); i++ {
		p.Person(i % people.Max)
	}
}
