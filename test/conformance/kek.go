package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// KEK runs one subtest for each sentence of the contract of keyring.KEK. open gives a KEK that is ready;
// it may give the same one each time.
func KEK(t *testing.T, open func(t testing.TB) keyring.KEK) {
	for _, c := range kekCases {
		t.Run(c.sentence, func(t *testing.T) { c.run(t, &testedKEK{t, open(t)}) })
	}
}

// testedKEK adds to a KEK what the cases share.
type testedKEK struct {
	t testing.TB
	keyring.KEK
}

func kekItem(context, data string) keyring.KEKItem {
	return keyring.KEKItem{Context: []byte(context), Data: []byte(data)}
}

// call fails the test unless the call as a whole succeeds with as many results as items.
func (k *testedKEK) call(call func(context.Context, []keyring.KEKItem) ([]keyring.KEKResult, error), items ...keyring.KEKItem) []keyring.KEKResult {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	results, err := call(ctx, items)
	if err != nil {
		k.t.Fatalf("the call failed as a whole: %v", err)
	}
	if len(results) != len(items) {
		k.t.Fatalf("%d results for %d items", len(results), len(items))
	}
	for i, r := range results {
		if r.Err != nil && r.Data != nil {
			k.t.Errorf("result %d has data and an error", i)
		}
	}
	return results
}

// mustWrap returns item with its data wrapped.
func (k *testedKEK) mustWrap(context, data string) keyring.KEKItem {
	k.t.Helper()
	r := k.call(k.Wrap, kekItem(context, data))[0]
	if r.Err != nil {
		k.t.Fatalf("wrapping: %v", r.Err)
	}
	return keyring.KEKItem{Context: []byte(context), Data: r.Data}
}

// mustRewrap returns item wrapped again.
func (k *testedKEK) mustRewrap(item keyring.KEKItem) keyring.KEKItem {
	k.t.Helper()
	r := k.call(k.Rewrap, item)[0]
	if r.Err != nil {
		k.t.Fatalf("wrapping again: %v", r.Err)
	}
	return keyring.KEKItem{Context: item.Context, Data: r.Data}
}

func (k *testedKEK) wantUnwrapped(item keyring.KEKItem, want string) {
	k.t.Helper()
	r := k.call(k.Unwrap, item)[0]
	if r.Err != nil || string(r.Data) != want {
		k.t.Errorf("unwrapping gave an error (%v) or other data", r.Err)
	}
}

func (k *testedKEK) wantUnwrapError(item keyring.KEKItem, want error) {
	k.t.Helper()
	if r := k.call(k.Unwrap, item)[0]; !errors.Is(r.Err, want) {
		k.t.Errorf("unwrapping gave error %v, want %v", r.Err, want)
	}
}

type kekCase struct {
	sentence string
	run      func(t *testing.T, k *testedKEK)
}

var kekCases = []kekCase{
	{"Name has 1 to 255 bytes and never changes", func(t *testing.T, k *testedKEK) {
		if before := k.Name(); before == "" || len(before) > 255 || k.Name() != before {
			t.Errorf("name is %q, then %q", before, k.Name())
		}
	}},
	{"Unwrap is the inverse of Wrap", func(t *testing.T, k *testedKEK) {
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		for _, data := range []string{"x", "\x00", string(all), strings.Repeat("long ", 10_000)} {
			k.wantUnwrapped(k.mustWrap("a context", data), data)
		}
		k.wantUnwrapped(k.mustWrap(string(all), "any byte may stand in a context"), "any byte may stand in a context")
	}},
	{"Wrap encrypts", func(t *testing.T, k *testedKEK) {
		a, b := k.mustWrap("a", "the same plaintext"), k.mustWrap("a", "the same plaintext")
		if bytes.Contains(a.Data, []byte("plaintext")) {
			t.Error("the plaintext stands in what was wrapped")
		}
		if bytes.Equal(a.Data, b.Data) {
			t.Error("wrapping twice gave the same bytes")
		}
	}},
	{"The context is bound", func(t *testing.T, k *testedKEK) {
		contexts := []string{"a", "b", "aa", "a\x00", "A", "\x00\x00\x00\x01a"}
		for _, c := range contexts {
			item := k.mustWrap(c, "data")
			for _, other := range contexts {
				if other == c {
					continue
				}
				k.wantUnwrapError(keyring.KEKItem{Context: []byte(other), Data: item.Data}, keys.ErrTampered)
			}
		}
	}},
	{"An item that was changed fails with ErrTampered", func(t *testing.T, k *testedKEK) {
		item := k.mustWrap("a", "data")
		for i := range item.Data {
			for _, bit := range []byte{0x01, 0x80} {
				changed := bytes.Clone(item.Data)
				changed[i] ^= bit
				r := k.call(k.Unwrap, keyring.KEKItem{Context: item.Context, Data: changed})[0]
				// A changed version number may name a version that is retired or not made yet.
				if !errors.Is(r.Err, keys.ErrTampered) && !errors.Is(r.Err, keys.ErrKEKRetired) && !errors.Is(r.Err, keys.ErrKEKMissing) {
					t.Errorf("bit %#x of byte %d flipped: error %v", bit, i, r.Err)
				}
			}
		}
		for _, data := range []string{"", "x", string(item.Data[:len(item.Data)-1]), string(item.Data) + "A", string(item.Data[1:]),
			"vault:v1:", "vault:v1:####", `vault:v1:"},{"`, "\x01\x00\x00\x00\x01"} {
			k.wantUnwrapError(kekItem("a", data), keys.ErrTampered)
		}
	}},
	{"Empty data and an empty context are refused with ErrInvalid", func(t *testing.T, k *testedKEK) {
		for _, item := range []keyring.KEKItem{kekItem("a", ""), kekItem("", "data"), {}} {
			if r := k.call(k.Wrap, item)[0]; !errors.Is(r.Err, keys.ErrInvalid) {
				t.Errorf("wrapping gave error %v", r.Err)
			}
		}
		wrapped := k.mustWrap("a", "data")
		wrapped.Context = nil
		k.wantUnwrapError(wrapped, keys.ErrInvalid)
	}},
	{"An item that fails does not harm the others", func(t *testing.T, k *testedKEK) {
		results := k.call(k.Wrap, kekItem("a", "first"), kekItem("a", ""), kekItem("b", "third"))
		if results[0].Err != nil || results[1].Err == nil || results[2].Err != nil {
			t.Fatalf("errors are %v, %v, %v", results[0].Err, results[1].Err, results[2].Err)
		}
		first, third := kekItem("a", string(results[0].Data)), kekItem("b", string(results[2].Data))
		back := k.call(k.Unwrap, first, kekItem("b", string(first.Data)), kekItem("a", "junk"), third)
		if back[0].Err != nil || string(back[0].Data) != "first" || back[3].Err != nil || string(back[3].Data) != "third" {
			t.Error("good items beside bad ones did not unwrap")
		}
		if !errors.Is(back[1].Err, keys.ErrTampered) || !errors.Is(back[2].Err, keys.ErrTampered) {
			t.Errorf("bad items gave %v and %v", back[1].Err, back[2].Err)
		}
		if r := k.call(k.Unwrap, kekItem("b", string(first.Data)), kekItem("a", "junk")); r[0].Err == nil || r[1].Err == nil {
			t.Error("a batch of bad items alone gave no errors")
		}
	}},
	{"Results are in the order of items", func(t *testing.T, k *testedKEK) { kekOrder(k, 100) }},
	{"A batch may be as large as 5,000", func(t *testing.T, k *testedKEK) { kekOrder(k, 5_000) }},
	{"A batch may be empty", func(t *testing.T, k *testedKEK) {
		k.call(k.Wrap)
		k.call(k.Unwrap)
		k.call(k.Rewrap)
	}},
	{"Rewrap wraps again under the same context", func(t *testing.T, k *testedKEK) {
		item := k.mustWrap("a", "data")
		again := k.mustRewrap(item)
		if bytes.Equal(again.Data, item.Data) {
			t.Error("it gave back what it was given")
		}
		k.wantUnwrapped(again, "data")
		k.wantUnwrapped(item, "data")
		k.wantUnwrapError(keyring.KEKItem{Context: []byte("b"), Data: again.Data}, keys.ErrTampered)
		if bytes.Contains(again.Data, []byte("data")) {
			t.Error("the plaintext stands in it")
		}
	}},
	{"An item of Rewrap fails as in Unwrap, and does not harm the others", func(t *testing.T, k *testedKEK) {
		item := k.mustWrap("a", "data")
		before := bytes.Clone(item.Data)
		changed := bytes.Clone(item.Data)
		changed[len(changed)-3] ^= 1
		r := k.call(k.Rewrap, item, keyring.KEKItem{Context: []byte("b"), Data: item.Data}, kekItem("a", "junk"), kekItem("a", ""),
			keyring.KEKItem{Context: []byte("a"), Data: changed}, keyring.KEKItem{Data: item.Data}, item)
		for i, want := range []error{nil, keys.ErrTampered, keys.ErrTampered, keys.ErrTampered, keys.ErrTampered, keys.ErrInvalid, nil} {
			if !errors.Is(r[i].Err, want) {
				t.Errorf("item %d gave error %v, want %v", i, r[i].Err, want)
			}
		}
		if !bytes.Equal(item.Data, before) {
			t.Error("it changed its item")
		}
	}},
	{"Rewrap keeps the order of items", func(t *testing.T, k *testedKEK) {
		items := make([]keyring.KEKItem, 1_000)
		for i := range items {
			items[i] = keyring.KEKItem{Context: binary.BigEndian.AppendUint32(nil, uint32(i%7)), Data: fmt.Append(nil, "item ", i)}
		}
		wrapped := k.call(k.Wrap, items...)
		again := make([]keyring.KEKItem, len(items))
		for i, r := range wrapped {
			again[i] = keyring.KEKItem{Context: items[i].Context, Data: r.Data}
		}
		for i, r := range k.call(k.Rewrap, again...) {
			again[i].Data = r.Data
		}
		for i, r := range k.call(k.Unwrap, again...) {
			if r.Err != nil || !bytes.Equal(r.Data, items[i].Data) {
				t.Fatalf("item %d came back as another, or not: %v", i, r.Err)
			}
		}
	}},
	{"Version tells the version from the form alone, or fails with ErrTampered", func(t *testing.T, k *testedKEK) {
		item := k.mustWrap("a", "data")
		version, err := k.Version(item.Data)
		if err != nil || version == 0 {
			t.Errorf("version is %d, %v", version, err)
		}
		for _, data := range []string{"", "x", "vault:v0:AAAA", "vault:v:AAAA", "vault:v1", "\x01\x00\x00\x00\x00" + strings.Repeat("x", 40)} {
			if version, err := k.Version([]byte(data)); !errors.Is(err, keys.ErrTampered) || version != 0 {
				t.Errorf("%q gave version %d, %v", data, version, err)
			}
		}
	}},
	{"Calls return soon after ctx ends, with ErrUnavailable", func(t *testing.T, k *testedKEK) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		start := time.Now()
		for name, call := range map[string]func(context.Context, []keyring.KEKItem) ([]keyring.KEKResult, error){"Wrap": k.Wrap, "Unwrap": k.Unwrap, "Rewrap": k.Rewrap} {
			if _, err := call(ctx, []keyring.KEKItem{kekItem("a", "data")}); !errors.Is(err, keys.ErrUnavailable) {
				t.Errorf("%s gave error %v", name, err)
			}
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("they took %v", took)
		}
		k.wantUnwrapped(k.mustWrap("a", "still well"), "still well")
	}},
	{"Context and Data are not kept and not changed", func(t *testing.T, k *testedKEK) {
		item := kekItem("a context", "data")
		wrapped := k.call(k.Wrap, item)[0].Data
		if string(item.Context) != "a context" || string(item.Data) != "data" {
			t.Error("Wrap changed its item")
		}
		clear(item.Context)
		clear(item.Data)
		unwrap := keyring.KEKItem{Context: []byte("a context"), Data: wrapped}
		before := string(wrapped)
		k.wantUnwrapped(unwrap, "data")
		if string(wrapped) != before {
			t.Error("Unwrap changed its item")
		}
	}},
	{"The caller owns the results and wipes them", func(t *testing.T, k *testedKEK) {
		item := k.mustWrap("a", "data")
		clear(k.call(k.Unwrap, item)[0].Data)
		k.wantUnwrapped(item, "data")
	}},
	{"Ready does a real wrap and unwrap", func(t *testing.T, k *testedKEK) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := k.Ready(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := k.Ready(ctx); !errors.Is(err, keys.ErrUnavailable) {
			t.Errorf("after ctx has ended it gives %v", err)
		}
	}},
	{"All methods may be called from any goroutine", func(t *testing.T, k *testedKEK) {
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for j := range 8 {
					context, data := fmt.Sprint("context ", i), fmt.Sprint("data ", i, j)
					r := k.call2(k.Wrap, kekItem(context, data))
					r = k.call2(k.Unwrap, kekItem(context, string(r.Data)))
					if r.Err != nil || string(r.Data) != data {
						t.Errorf("round trip failed: %v", r.Err)
					}
				}
			})
		}
		wg.Wait()
	}},
	{"Errors show neither data nor context", func(t *testing.T, k *testedKEK) {
		item := k.mustWrap("canary-context", "canary-data")
		changed := bytes.Clone(item.Data)
		changed[len(changed)/2] ^= 0x01
		for _, it := range []keyring.KEKItem{
			{Context: []byte("canary-other"), Data: item.Data}, {Context: item.Context, Data: changed}, kekItem("canary-context", "canary-junk"),
		} {
			err := k.call(k.Unwrap, it)[0].Err
			if err == nil || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), string(changed)) {
				t.Errorf("error is %v", err)
			}
		}
	}},
}

// call2 is call for other goroutines than the test's: it gives the error in the result.
func (k *testedKEK) call2(call func(context.Context, []keyring.KEKItem) ([]keyring.KEKResult, error), item keyring.KEKItem) keyring.KEKResult {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	results, err := call(ctx, []keyring.KEKItem{item})
	if err != nil || len(results) != 1 {
		return keyring.KEKResult{Err: fmt.Errorf("%d results, %w", len(results), err)}
	}
	return results[0]
}

func kekOrder(k *testedKEK, n int) {
	k.t.Helper()
	items := make([]keyring.KEKItem, n)
	for i := range items {
		items[i] = keyring.KEKItem{Context: binary.BigEndian.AppendUint32(nil, uint32(i%7)), Data: fmt.Append(nil, "item ", i)}
	}
	wrapped := k.call(k.Wrap, items...)
	back := make([]keyring.KEKItem, n)
	for i, r := range wrapped {
		if r.Err != nil {
			k.t.Fatalf("item %d: %v", i, r.Err)
		}
		back[i] = keyring.KEKItem{Context: items[i].Context, Data: r.Data}
	}
	for i, r := range k.call(k.Unwrap, back...) {
		if r.Err != nil || !bytes.Equal(r.Data, items[i].Data) {
			k.t.Fatalf("item %d came back as another, or not: %v", i, r.Err)
		}
	}
}
