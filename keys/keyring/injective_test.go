package keyring

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/keys"
)

// place is one thing that a ciphertext can be bound to: all that goes into its associated data or context.
type place struct {
	kind       string
	instance   string
	subject    uuid.UUID
	a, b       string // collection and field, or a name or label
	data       string
	version    uint64
	normaliser uint32
}

// kinds are all kinds of associated data, contexts and inputs. Each sees of a place what it is bound to; the rest of the
// place is cleared, so that two places are equal exactly when they are to have one encoding.
var kinds = map[string]struct {
	key    string // under which key it is used: only those under one must not coincide
	binds  func(p place) place
	encode func(p place) []byte
}{
	"bundle": {"kek", func(p place) place { return place{subject: p.subject} }, func(p place) []byte { return bundleContext(p.instance, p.subject) }},
	"keyset": {"kek", func(p place) place { return place{a: p.a} }, func(p place) []byte { return keysetContext(p.instance, p.a) }},
	"self-test": {"kek", func(p place) place { return place{version: p.version & 0xff} },
		func(p place) []byte { return selfTestContext(p.instance, byte(p.version)) }},
	"backup": {"kek", func(p place) place { return place{subject: p.subject} }, func(p place) []byte { return backupContext(p.instance, p.subject) }},
	"field": {"subject", func(p place) place { return place{subject: p.subject, a: p.a, b: p.b, version: p.version} },
		func(p place) []byte { return fieldAD(p.instance, p.subject, p.a, p.b, p.version) }},
	"older": {"subject", func(p place) place { return place{subject: p.subject} }, func(p place) []byte { return olderAD(p.instance, p.subject) }},
	"index value": {"subject", func(p place) place { return place{subject: p.subject, a: p.a, b: p.b, normaliser: p.normaliser} },
		func(p place) []byte {
			return indexValueAD(p.instance, p.subject, &IndexValue{Collection: p.a, Field: p.b, Normaliser: p.normaliser})
		}},
	"detail":  {"subject", func(p place) place { return place{subject: p.subject} }, func(p place) []byte { return detailAD(p.instance, p.subject) }},
	"protect": {"service", func(p place) place { return place{a: p.a} }, func(p place) []byte { return protectAD(p.instance, p.a) }},
	"token":   {"token", func(p place) place { return place{a: p.a, data: p.data} }, func(p place) []byte { return tokenInput(p.instance, p.a, []byte(p.data)) }},
	"index": {"index", func(p place) place { return place{a: p.a, b: p.b, data: p.data, normaliser: p.normaliser} },
		func(p place) []byte {
			return indexInput(&IndexValue{Collection: p.a, Field: p.b, Normaliser: p.normaliser}, []byte(p.data))
		}},
}

// text draws strings that an encoding without lengths would confuse: few letters, the words of other kinds, and what
// looks like a length.
func text() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringOfN(rapid.SampledFrom([]rune("a\x00\x01\x04/")), 0, 6, -1),
		rapid.SampledFrom([]string{"", "older", "detail", "index", "keyset", "protect", "token", "self-test", "backup", "pdv1", "\x00\x00\x00\x05older", "0123456789abcdef"}),
	)
}

func drawPlace(t *rapid.T, label string) place {
	kind := rapid.SampledFrom([]string{"bundle", "keyset", "self-test", "backup", "field", "older", "index value", "detail", "protect", "token", "index"}).Draw(t, label+" kind")
	p := kinds[kind].binds(place{
		subject: uuid.UUID(rapid.SampledFrom([][]byte{bytes.Repeat([]byte("a"), 16), []byte("0123456789abcdef"), make([]byte, 16)}).Draw(t, label+" subject")),
		a:       text().Draw(t, label+" a"), b: text().Draw(t, label+" b"), data: text().Draw(t, label+" data"),
		version:    rapid.SampledFrom([]uint64{0, 1, 2, 256, 1 << 32, 1<<64 - 1}).Draw(t, label+" version"),
		normaliser: rapid.SampledFrom([]uint32{0, 1, 1 << 16}).Draw(t, label+" normaliser"),
	})
	p.kind, p.instance = kind, rapid.SampledFrom([]string{"main", "main2", "a", "ma"}).Draw(t, label+" instance")
	if kind == "index" {
		p.instance = "" // its key is the instance's own
	}
	return p
}

// Two places under one key have one encoding only when they are one place: no kind of associated data, context or
// input can be taken for another, whatever the names and values in it.
func TestNoTwoPlacesHaveOneEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, q := drawPlace(t, "p"), drawPlace(t, "q")
		a, b := kinds[p.kind].encode(p), kinds[q.kind].encode(q)
		if kinds[p.kind].key == kinds[q.kind].key && bytes.Equal(a, b) != (p == q) {
			t.Fatalf("%+v and %+v: %x and %x", p, q, a, b)
		}
	})
}

// FuzzPlaces is the same for what a fuzzer finds, and a reader of our own gives back the parts: the second reading of
// one format that the encoding is compared with.
func FuzzPlaces(f *testing.F) {
	f.Add(uint8(0), uint8(1), "older", "detail", "x", "y", uint64(1), uint64(2))
	f.Add(uint8(4), uint8(6), "index", "", "", "\x00\x00\x00\x04", uint64(0), uint64(1)<<32)
	names := []string{"bundle", "keyset", "self-test", "backup", "field", "older", "index value", "detail", "protect", "token", "index"}
	f.Fuzz(func(t *testing.T, k, l uint8, a, b, c, d string, m, n uint64) {
		make := func(k uint8, a, b string, n uint64) place {
			kind := names[int(k)%len(names)]
			p := kinds[kind].binds(place{subject: uuid.UUID(fmt.Appendf(nil, "%-16.16s", b)[:16]), a: a, b: b, data: a + b, version: n, normaliser: uint32(n)})
			p.kind = kind
			return p
		}
		p, q := make(k, a, b, m), make(l, c, d, n)
		x, y := kinds[p.kind].encode(p), kinds[q.kind].encode(q)
		if kinds[p.kind].key == kinds[q.kind].key && bytes.Equal(x, y) != (p == q) {
			t.Fatalf("%+v and %+v: %x and %x", p, q, x, y)
		}
		if parts, ok := untuple(x); !ok || !bytes.Equal(keys.Tuple(parts...), x) {
			t.Errorf("%x is no tuple", x)
		}
	})
}

// untuple is the inverse of keys.Tuple.
func untuple(b []byte) (parts [][]byte, ok bool) {
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, false
		}
		n := binary.BigEndian.Uint32(b)
		if b = b[4:]; uint64(n) > uint64(len(b)) {
			return nil, false
		}
		parts, b = append(parts, b[:n]), b[n:]
	}
	return parts, true
}

// A kind that is missing above would not be compared. Beside them stands the row that names the instance.
func TestEveryKindOfAssociatedDataIsCompared(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		made += bytes.Count(b, []byte("keys.Tuple("))
	}
	if made != len(kinds)+1 {
		t.Errorf("the package makes %d kinds, %d are compared", made-1, len(kinds))
	}
}
