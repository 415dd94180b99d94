package archive_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

var made = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// write makes an archive of pairs whose seal is the count in text.
func write(t testing.TB, pairs []kv.Pair) []byte {
	t.Helper()
	var out bytes.Buffer
	raw, err := archive.WriteHeader(&out, archive.NewHeader(archive.KindData, "test", made))
	if err != nil {
		t.Fatal(err)
	}
	w := archive.NewWriter(&out, raw)
	for _, p := range pairs {
		if err := w.Add(p.Key, p.Value); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(func(s archive.Summary) ([]byte, error) { return fmt.Append(nil, s.Count), nil }); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// read reads an archive through.
func read(r io.Reader) (pairs []kv.Pair, seal []byte, sum archive.Summary, err error) {
	_, raw, err := archive.ReadHeader(r, archive.KindData)
	if err != nil {
		return nil, nil, sum, err
	}
	in := archive.NewReader(r, raw)
	for {
		p, err := in.Next()
		if errors.Is(err, io.EOF) {
			return pairs, in.Seal(), in.Summary(), nil
		}
		if err != nil {
			if again, err2 := in.Next(); !errors.Is(err2, err) || again.Key != nil {
				return nil, nil, sum, fmt.Errorf("an error does not stay: %w", err2)
			}
			return pairs, in.Seal(), in.Summary(), err
		}
		pairs = append(pairs, p)
	}
}

func somePairs(n, size int) []kv.Pair {
	pairs := make([]kv.Pair, n)
	for i := range pairs {
		pairs[i] = kv.Pair{Key: fmt.Appendf(nil, "k%08d", i), Value: bytes.Repeat([]byte{byte(i)}, size)}
	}
	return pairs
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pairs []kv.Pair
	}{
		{"nothing", nil},
		{"one", somePairs(1, 10)},
		{"an empty value", []kv.Pair{{Key: []byte("a"), Value: []byte{}}}},
		{"several blocks", somePairs(5000, 300)},
		{"the largest", []kv.Pair{{Key: bytes.Repeat([]byte{1}, kv.MaxKeySize), Value: make([]byte, kv.MaxValueSize)}, {Key: []byte{2}, Value: make([]byte, kv.MaxValueSize)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := write(t, tt.pairs)
			got, seal, sum, err := read(iotest.HalfReader(bytes.NewReader(b)))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got, tt.pairs, func(a, b kv.Pair) bool { return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) }) {
				t.Error("other pairs are read than were written")
			}
			if sum.Count != int64(len(tt.pairs)) || string(seal) != fmt.Sprint(len(tt.pairs)) {
				t.Errorf("count %d, seal %q", sum.Count, seal)
			}
		})
	}
}

// An archive that ends anywhere before its end, at the end of a block too, is cut short and never whole.
func TestACutAnywhereIsNoticed(t *testing.T) {
	b := write(t, somePairs(20, 7))
	for n := range len(b) {
		_, seal, _, err := read(bytes.NewReader(b[:n]))
		if !errors.Is(err, archive.ErrTruncated) {
			t.Fatalf("cut at %d of %d: %v", n, len(b), err)
		}
		if seal != nil {
			t.Fatalf("cut at %d: there is a seal", n)
		}
	}
}

func TestACutAtEachBlockIsNoticed(t *testing.T) {
	b := write(t, somePairs(10_000, 200))
	blocks := 0
	for at := headerEnd(b); at < len(b); {
		if _, _, _, err := read(bytes.NewReader(b[:at])); !errors.Is(err, archive.ErrTruncated) {
			t.Fatalf("cut before block %d: %v", blocks, err)
		}
		at += 5 + int(binary.BigEndian.Uint32(b[at+1:])) + 32
		blocks++
	}
	if blocks < 8 {
		t.Errorf("%d blocks only", blocks)
	}
}

// headerEnd is where the header of an archive ends.
func headerEnd(b []byte) int {
	const magic = len("pdvault/archive/v1\n")
	return magic + 4 + int(binary.BigEndian.Uint32(b[magic:])) + 32
}

// Each bit of an archive is covered: flipped, nothing of its block and of those behind it is given.
func TestAFlipAnywhereIsNoticed(t *testing.T) {
	b := write(t, somePairs(20, 7))
	for n := range b {
		for bit := range 8 {
			changed := bytes.Clone(b)
			changed[n] ^= 1 << bit
			pairs, seal, _, err := read(bytes.NewReader(changed))
			known := errors.Is(err, archive.ErrDamaged) || errors.Is(err, archive.ErrTruncated) ||
				errors.Is(err, archive.ErrForeign) || errors.Is(err, archive.ErrNewer)
			if !known || seal != nil && n < headerEnd(b) {
				t.Fatalf("byte %d, bit %d: %v", n, bit, err)
			}
			if n < headerEnd(b)+5 && len(pairs) > 0 {
				t.Fatalf("byte %d, bit %d: pairs are given", n, bit)
			}
		}
	}
}

func TestBlocksCannotBeMovedOrRepeated(t *testing.T) {
	b := write(t, somePairs(5000, 300))
	start := headerEnd(b)
	first := 5 + int(binary.BigEndian.Uint32(b[start+1:])) + 32
	second := 5 + int(binary.BigEndian.Uint32(b[start+first+1:])) + 32
	one, two, rest := b[start:start+first], b[start+first:start+first+second], b[start+first+second:]
	for name, changed := range map[string][]byte{
		"swapped":      slices.Concat(b[:start], two, one, rest),
		"repeated":     slices.Concat(b[:start], one, one, two, rest),
		"left out":     slices.Concat(b[:start], two, rest),
		"added behind": slices.Concat(b, []byte{0}),
		"twice":        slices.Concat(b, b),
	} {
		if _, _, _, err := read(bytes.NewReader(changed)); !errors.Is(err, archive.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := write(t, somePairs(5000, 300)) // another id
	if _, _, _, err := read(bytes.NewReader(slices.Concat(other[:headerEnd(other)], b[start:]))); !errors.Is(err, archive.ErrDamaged) {
		t.Errorf("under another header: %v", err)
	}
}

func TestWhatIsNoArchiveOfThisKindIsRefused(t *testing.T) {
	b := write(t, nil)
	for _, tt := range []struct {
		name string
		b    []byte
		kind string
		want error
	}{
		{"keys for data", b, archive.KindKeys, archive.ErrForeign},
		{"a later version", bytes.Replace(b, []byte("/v1\n"), []byte("/v2\n"), 1), archive.KindData, archive.ErrNewer},
		{"a much later version", append([]byte("pdvault/archive/v12\n"), b...), archive.KindData, archive.ErrNewer},
		{"something else", []byte(strings.Repeat("something else\n", 10)), archive.KindData, archive.ErrForeign},
		{"nothing", nil, archive.KindData, archive.ErrTruncated},
	} {
		if _, _, err := archive.ReadHeader(bytes.NewReader(tt.b), tt.kind); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestWhatAStoreCannotHoldIsNotWritten(t *testing.T) {
	for _, tt := range []struct {
		name              string
		first, key, value []byte
		want              error
	}{
		{"empty key", nil, nil, nil, kv.ErrTooLarge},
		{"large key", nil, make([]byte, kv.MaxKeySize+1), nil, kv.ErrTooLarge},
		{"large value", nil, []byte("a"), make([]byte, kv.MaxValueSize+1), kv.ErrTooLarge},
		{"the same key", []byte("a"), []byte("a"), nil, nil},
		{"a lower key", []byte("b"), []byte("a"), nil, nil},
	} {
		w := archive.NewWriter(io.Discard, nil)
		if tt.first != nil {
			if err := w.Add(tt.first, nil); err != nil {
				t.Fatal(err)
			}
		}
		err := w.Add(tt.key, tt.value)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, again := w.Close(nil); !errors.Is(again, err) {
			t.Errorf("%s: closing gives %v", tt.name, again)
		}
	}
}

func TestAFailureOfTheFileIsNotDamage(t *testing.T) {
	broken := errors.New("disk")
	b := write(t, somePairs(100, 100))
	_, _, _, err := read(io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) || errors.Is(err, archive.ErrDamaged) || errors.Is(err, archive.ErrTruncated) {
		t.Errorf("reading: %v", err)
	}
}

// Memory does not grow with the archive: 50,000 pairs of 2 KB are streamed through a few megabytes.
func TestMemoryIsBounded(t *testing.T) {
	pipe, feed := io.Pipe()
	failed := make(chan error, 1)
	const pairs = 50_000
	go func() {
		raw, err := archive.WriteHeader(feed, archive.NewHeader(archive.KindData, "test", made))
		w := archive.NewWriter(feed, raw)
		value := make([]byte, 2<<10)
		for i := 0; i < pairs && err == nil; i++ {
			err = w.Add(fmt.Appendf(nil, "k%08d", i), value)
		}
		if err == nil {
			_, err = w.Close(nil)
		}
		feed.CloseWithError(err)
		failed <- err
	}()
	_, raw, err := archive.ReadHeader(pipe, archive.KindData)
	if err != nil {
		t.Fatal(err)
	}
	r := archive.NewReader(pipe, raw)
	var most uint64
	for n := 0; ; n++ {
		_, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n%10_000 == 5_000 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if s := r.Summary(); s.Count != pairs {
		t.Errorf("%d pairs", s.Count)
	}
	if most > 16<<20 {
		t.Errorf("%d bytes are live while an archive of 100 MB is streamed", most)
	}
}

// FuzzReader: whatever is read, it ends in a sentinel or in an archive that is written to the same bytes again.
func FuzzReader(f *testing.F) {
	f.Add(write(f, nil))
	f.Add(write(f, somePairs(3, 5)))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		h, raw, err := archive.ReadHeader(in, archive.KindData)
		if err != nil {
			if raw != nil || h.Kind != "" {
				t.Error("a result in spite of an error")
			}
			return
		}
		r := archive.NewReader(in, raw)
		var out bytes.Buffer
		again, err := archive.WriteHeader(&out, h)
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("the header is written in another form: %v", err)
		}
		w := archive.NewWriter(&out, again)
		for {
			p, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return
			}
			if err := w.Add(p.Key, p.Value); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Close(func(archive.Summary) ([]byte, error) { return r.Seal(), nil }); err != nil {
			t.Fatal(err)
		}
	})
}
