package keyring_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// held is one ciphertext as the data store holds it, and what it should open to.
type held struct {
	item  keyring.ResealItem
	value string
	key   int // of the model: which of the subject's keys it is under
}

// sealHeld seals value at the place that it names.
func (r *ring) sealHeld(subject uuid.UUID, it keyring.ResealItem, value string) (held, error) {
	ctx := context.Background()
	if it.Kind == keyring.ItemDetail {
		out, err := r.Prepare(ctx, []keyring.PrepareItem{{Subject: subject, Detail: []byte(value)}})
		if err == nil {
			err = out[0].Err
		}
		if err != nil {
			return held{}, err
		}
		it.Ciphertext = out[0].SealedDetail
		return held{item: it, value: value}, nil
	}
	f := keyring.SealField{Collection: it.Collection, Field: it.Field, Version: it.Version, Plaintext: []byte(value)}
	if it.Kind == keyring.ItemIndex {
		f.Index = []keyring.IndexValue{{Collection: it.Collection, Field: it.Field, Normaliser: it.Normaliser, Value: value}}
	}
	out, err := r.Seal(ctx, []keyring.SealSubject{{Subject: subject, Fields: []keyring.SealField{f}}})
	if err == nil {
		err = out[0].Err
	}
	if err != nil {
		return held{}, err
	}
	if it.Ciphertext = out[0].Fields[0].Ciphertext; it.Kind == keyring.ItemIndex {
		it.Ciphertext = out[0].Fields[0].Index[0].Sealed
	}
	return held{item: it, value: value}, nil
}

// openHeld opens h, or, for an index value, checks its token, and reports a value that is another.
func (r *ring) openHeld(subject uuid.UUID, h held) error {
	ctx := context.Background()
	it := h.item
	got := h.value
	switch it.Kind {
	case keyring.ItemField:
		out, err := r.Open(ctx, []keyring.OpenSubject{{Subject: subject, Collection: it.Collection, Version: it.Version,
			Fields: []keyring.OpenField{{Field: it.Field, Ciphertext: it.Ciphertext}}}})
		if err == nil {
			err = out[0].Err
		}
		if err != nil {
			return err
		}
		got = string(out[0].Fields[0].Plaintext)
	case keyring.ItemDetail:
		opened, err := r.OpenDetail(ctx, subject, it.Ciphertext)
		if err != nil {
			return err
		}
		got = string(opened)
	case keyring.ItemIndex:
		v := keyring.IndexValue{Collection: it.Collection, Field: it.Field, Normaliser: it.Normaliser, Sealed: it.Ciphertext}
		out, err := r.Reindex(ctx, []keyring.ReindexSubject{{Subject: subject, Values: []keyring.IndexValue{v}}})
		if err == nil {
			err = out[0].Err
		}
		if err != nil {
			return err
		}
		v.Value, v.Sealed = h.value, nil
		want, err := r.Index(ctx, []keyring.IndexValue{v})
		if err != nil {
			return err
		}
		if !bytes.Equal(out[0].Tokens[0][0].Token, want[0][0].Token) {
			got = "another"
		}
	}
	if got != h.value {
		return errors.New("opened to another value")
	}
	return nil
}

// reseal seals items of one subject again.
func (r *ring) reseal(rotation uint32, subject uuid.UUID, items ...held) ([][]byte, error) {
	s := keyring.ResealSubject{Subject: subject}
	for _, h := range items {
		s.Items = append(s.Items, h.item)
	}
	out, err := r.Reseal(context.Background(), rotation, []keyring.ResealSubject{s})
	if err == nil {
		err = out[0].Err
	}
	if err != nil {
		if out != nil && (out[0].Ciphertexts != nil || out[0].Ref != nil) {
			r.t.Error("an outcome has an error and ciphertexts")
		}
		return nil, err
	}
	if len(out[0].Ref) != 32 || len(out[0].Ciphertexts) != len(items) || out[0].Rotation < rotation {
		r.t.Errorf("outcome is of another shape: rotation %d", out[0].Rotation)
	}
	return out[0].Ciphertexts, nil
}

func (r *ring) retire(rotation uint32, subject uuid.UUID) error {
	out, err := r.Retire(context.Background(), rotation, []uuid.UUID{subject})
	if err == nil {
		err = out[0]
	}
	return err
}

// wantRow fails the test unless the row of subject names rotation and number of keys.
func (r *ring) wantRow(subject uuid.UUID, rotation uint32, number int) {
	r.t.Helper()
	gotRotation, gotKeys, err := keyring.RowOf(r.rawGet(keyring.KeyBundle(subject)))
	if err != nil || gotRotation != rotation || gotKeys != number {
		r.t.Errorf("row names rotation %d and %d keys, %v; want %d and %d", gotRotation, gotKeys, err, rotation, number)
	}
}

func fieldAt(version uint64) keyring.ResealItem {
	return keyring.ResealItem{Kind: keyring.ItemField, Collection: "profile", Field: "email", Version: version}
}

var (
	indexAt  = keyring.ResealItem{Kind: keyring.ItemIndex, Collection: "profile", Field: "email", Normaliser: 1}
	detailAt = keyring.ResealItem{Kind: keyring.ItemDetail}
)

// A rotation: a new key, everything under it, the old key gone. What was not shown to Reseal is lost then.
func TestResealAndRetire(t *testing.T) {
	r := newRing(t, nil)
	s, _ := r.mustCreate("x")
	other, otherSealed := r.mustCreate("other")
	var items []held
	for _, it := range []keyring.ResealItem{fieldAt(1), fieldAt(2), indexAt, detailAt} {
		h, err := r.sealHeld(s, it, "value")
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, h)
	}
	refs, err := r.Ref(context.Background(), []uuid.UUID{s})
	if err != nil {
		t.Fatal(err)
	}
	left, items := items[1], append(items[:1:1], items[2:]...)
	wantErr(t, r.retire(1, s), keys.ErrInvalid)
	old := append([]held(nil), items...)
	generation := r.Generation()
	out, err := r.reseal(1, s, items...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Generation() != generation+1 {
		t.Errorf("generation is %d, was %d", r.Generation(), generation)
	}
	for i := range items {
		if items[i].item.Ciphertext = out[i]; out[i] == nil {
			t.Fatalf("item %d was not sealed again", i)
		}
	}
	r.wantRow(s, 1, 2)
	r.wantRow(other, 0, 1)
	for _, k := range []*ring{r, r.reopen()} {
		for _, h := range append(append([]held{left}, old...), items...) {
			wantErr(t, k.openHeld(s, h), nil)
		}
	}
	// Again: nothing is done, also when the items are mixed.
	generation = r.Generation()
	out, err = r.reseal(1, s, items[0], old[1], items[2])
	if err != nil || out[0] != nil || out[1] == nil || out[2] != nil || r.Generation() != generation {
		t.Errorf("repeated: %v", err)
	}
	for range 2 {
		wantErr(t, r.retire(1, s), nil)
		r.wantRow(s, 1, 1)
	}
	if r.Generation() != generation+1 {
		t.Errorf("generation is %d, was %d", r.Generation(), generation)
	}
	for _, k := range []*ring{r, r.reopen()} {
		for _, h := range items {
			wantErr(t, k.openHeld(s, h), nil)
		}
		for _, h := range append([]held{left}, old...) {
			wantErr(t, k.openHeld(s, h), keys.ErrTampered)
		}
		k.wantOpen(other, otherSealed, "other")
		again, err := k.Ref(context.Background(), []uuid.UUID{s})
		if err != nil || !bytes.Equal(again[0].Ref, refs[0].Ref) {
			t.Errorf("the reference changed with the key: %v", err)
		}
	}
	_, err = r.reseal(1, s, old[0])
	wantErr(t, err, keys.ErrTampered)
	wantErr(t, r.retire(0, other), nil)
}

// One subject that fails does not harm the others, and a subject may be named twice.
func TestResealOutcomesAreSeparate(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	a, ca := r.mustCreate("a")
	b, cb := r.mustCreate("b")
	gone, cg := r.mustCreate("gone")
	wantErr(t, r.Destroy(ctx, gone, "x"), nil)
	of := func(c []byte) []keyring.ResealItem {
		it := fieldAt(1)
		it.Ciphertext = c
		return []keyring.ResealItem{it}
	}
	subjects := []keyring.ResealSubject{
		{Subject: a, Items: of(ca)}, {Subject: b, Items: append(of(cb), of(ca)...)}, {Subject: gone, Items: of(cg)},
		{Subject: uuid.New()}, {Subject: a, Items: []keyring.ResealItem{{Kind: 3, Ciphertext: ca}}}, {Subject: a, Items: of(ca)},
	}
	wants := []error{nil, keys.ErrTampered, keys.ErrDestroyed, keys.ErrNoKey, keys.ErrInvalid, nil}
	out, err := r.Reseal(ctx, 1, subjects)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range wants {
		if !errors.Is(out[i].Err, want) || want != nil && (out[i].Ciphertexts != nil || out[i].Ref != nil) {
			t.Errorf("outcome %d: %v, want %v", i, out[i].Err, want)
		}
	}
	r.wantRow(a, 1, 2)
	r.wantOpen(a, out[0].Ciphertexts[0], "a")
	r.wantOpen(a, out[5].Ciphertexts[0], "a")
	r.wantOpen(b, cb, "b")
	errs, err := r.Retire(ctx, 1, []uuid.UUID{a, gone, uuid.New(), a})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{nil, keys.ErrDestroyed, keys.ErrNoKey, nil} {
		wantErr(t, errs[i], want)
	}
	r.wantRow(a, 1, 1)
}

func TestResealLimits(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, c := r.mustCreate("x")
	at := func(change func(*keyring.ResealItem)) []keyring.ResealItem {
		it := fieldAt(1)
		it.Ciphertext = c
		change(&it)
		return []keyring.ResealItem{it}
	}
	for name, items := range map[string][]keyring.ResealItem{
		"too many":      make([]keyring.ResealItem, keyring.MaxReseal+1),
		"unknown kind":  at(func(it *keyring.ResealItem) { it.Kind = -1 }),
		"empty":         at(func(it *keyring.ResealItem) { it.Ciphertext = nil }),
		"large":         at(func(it *keyring.ResealItem) { it.Ciphertext = make([]byte, keyring.MaxValue+100) }),
		"large index":   at(func(it *keyring.ResealItem) { *it = indexAt; it.Ciphertext = make([]byte, keyring.MaxIndexValue+100) }),
		"no collection": at(func(it *keyring.ResealItem) { it.Collection = "" }),
		"no field":      at(func(it *keyring.ResealItem) { it.Field = "" }),
	} {
		out, err := r.Reseal(ctx, 1, []keyring.ResealSubject{{Subject: s, Items: items}})
		if err != nil || !errors.Is(out[0].Err, keys.ErrInvalid) {
			t.Errorf("%s: %v, %v", name, err, out)
		}
	}
	r.wantRow(s, 0, 1)
	_, err := r.Reseal(ctx, 1, make([]keyring.ResealSubject, keyring.MaxItems+1))
	wantErr(t, err, keys.ErrInvalid)
	_, err = r.Retire(ctx, 1, make([]uuid.UUID, keyring.MaxItems+1))
	wantErr(t, err, keys.ErrInvalid)

	// As many keys as a bundle may have, and no more until the older ones are retired.
	items := []held{{item: at(func(*keyring.ResealItem) {})[0], value: "x"}}
	for n := 1; n < keyring.MaxBundleKeys; n++ {
		if _, err := r.reseal(uint32(n), s); err != nil {
			t.Fatalf("key %d: %v", n+1, err)
		}
	}
	_, err = r.reseal(keyring.MaxBundleKeys, s, items...)
	wantErr(t, err, keys.ErrInvalid)
	r.wantRow(s, keyring.MaxBundleKeys-1, keyring.MaxBundleKeys)
	r.reopen().wantOpen(s, c, "x")
	out, err := r.reseal(1, s, items...)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.retire(1, s), nil)
	items[0].item.Ciphertext = out[0]
	_, err = r.reseal(keyring.MaxBundleKeys, s, items...)
	wantErr(t, err, nil)
	r.wantRow(s, keyring.MaxBundleKeys, 2)
}

// modelled is a subject as it should be.
type modelled struct {
	id       uuid.UUID
	gone     bool
	rotation uint32
	newest   int
	live     map[int]bool // keys that open
	items    []held
}

// Whatever is sealed, sealed again, retired and destroyed in whatever order: what is under a key that was not
// retired opens to what was sealed, and nothing else opens.
func TestRotationProperties(t *testing.T) {
	r := newRing(t, func(c *keyring.Config) { c.CacheSize = 2 })
	places := []keyring.ResealItem{fieldAt(1), fieldAt(2), indexAt, detailAt}
	rapid.Check(t, func(t *rapid.T) {
		k := r
		var subjects []*modelled
		pick := func() *modelled { return rapid.SampledFrom(subjects).Draw(t, "subject") }
		rotation := uint32(0)
		create := func() {
			s := &modelled{live: map[int]bool{0: true}}
			var err error
			s.id = uuid.New()
			if _, err = k.seal(s.id, true, "x"); err != nil {
				t.Fatal(err)
			}
			subjects = append(subjects, s)
		}
		create()
		t.Repeat(map[string]func(*rapid.T){
			"create": func(*rapid.T) { create() },
			"seal": func(t *rapid.T) {
				s := pick()
				h, err := k.sealHeld(s.id, rapid.SampledFrom(places).Draw(t, "place"), rapid.StringN(1, 40, -1).Draw(t, "value"))
				if s.gone {
					if !errors.Is(err, keys.ErrDestroyed) {
						t.Fatalf("sealing for a destroyed subject: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				h.key = s.newest
				s.items = append(s.items, h)
			},
			"reseal": func(t *rapid.T) {
				s := pick()
				if rapid.Bool().Draw(t, "new rotation") {
					rotation++
				}
				var want error
				var chosen []int
				for i := range s.items {
					if !rapid.Bool().Draw(t, "item") {
						continue
					}
					chosen = append(chosen, i)
				}
				items := make([]held, len(chosen))
				for n, i := range chosen {
					if items[n] = s.items[i]; !s.live[items[n].key] {
						want = keys.ErrTampered
					}
				}
				if s.gone {
					want = keys.ErrDestroyed
				}
				renews := s.rotation < rotation
				if !s.gone && renews && len(s.live) >= keyring.MaxBundleKeys {
					want, renews = keys.ErrInvalid, false
				}
				out, err := k.reseal(rotation, s.id, items...)
				if !errors.Is(err, want) {
					t.Fatalf("resealing gave %v, want %v", err, want)
				}
				if !s.gone && renews {
					s.rotation, s.newest = rotation, s.newest+1
					s.live[s.newest] = true
				}
				if err != nil {
					return
				}
				for n, i := range chosen {
					if (out[n] == nil) != (s.items[i].key == s.newest) {
						t.Fatalf("item is under key %d of %d, and was sealed again: %v", s.items[i].key, s.newest, out[n] != nil)
					}
					// The data store may take over what it was given, or not, as when its commit is refused.
					if out[n] != nil && rapid.Bool().Draw(t, "taken over") {
						s.items[i].item.Ciphertext, s.items[i].key = out[n], s.newest
					}
				}
			},
			"retire": func(t *rapid.T) {
				s := pick()
				of := rapid.Uint32Range(0, rotation).Draw(t, "rotation")
				var want error
				switch {
				case s.gone:
					want = keys.ErrDestroyed
				case s.rotation < of:
					want = keys.ErrInvalid
				default:
					s.live = map[int]bool{s.newest: true}
				}
				if err := k.retire(of, s.id); !errors.Is(err, want) {
					t.Fatalf("retiring gave %v, want %v", err, want)
				}
			},
			"destroy": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "rarely") > 0 {
					t.Skip()
				}
				s := pick()
				if err := k.Destroy(context.Background(), s.id, "x"); err != nil {
					t.Fatal(err)
				}
				s.gone = true
			},
			"restart": func(*rapid.T) { k = r.reopen() },
			"": func(t *rapid.T) {
				s := pick()
				for _, h := range s.items {
					var want error
					if s.gone {
						want = keys.ErrDestroyed
					} else if !s.live[h.key] {
						want = keys.ErrTampered
					}
					if err := k.openHeld(s.id, h); !errors.Is(err, want) {
						t.Fatalf("opening what is under key %d gave %v, want %v", h.key, err, want)
					}
				}
			},
		})
	})
}

// cell is a row of the data store: a ciphertext, under a version that every commit raises.
type cell struct {
	mu      sync.Mutex
	version int
	record  uint64
	c       []byte
	value   string
}

func (c *cell) get() (version int, record uint64, ciphertext []byte, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version, c.record, c.c, c.value
}

// put is a commit on the condition that the row is at version.
func (c *cell) put(version int, record uint64, ciphertext []byte, value string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.version != version {
		return false
	}
	c.version, c.record, c.c, c.value = version+1, record, ciphertext, value
	return true
}

// Reads and writes go on while every key is rotated, over and over, on two nodes, and are never wrong: a writer
// whose commit is overtaken seals again, a reader whose ciphertext went stale reads it again.
func TestRotationWhileInUse(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, func(c *keyring.Config) { c.CacheSize = 4 }) // fewer than there are subjects
	nodes := []*ring{r, r.reopen()}
	const people = 8
	subjects, cells := make([]uuid.UUID, people), make([]cell, people)
	for i := range subjects {
		var c []byte
		subjects[i], c = r.mustCreate("0")
		cells[i].record, cells[i].c, cells[i].value = 1, c, "0"
	}
	done := make(chan struct{})
	var reads, writes atomic.Int64
	var wg sync.WaitGroup
	for g := range 4 {
		node := nodes[g%2]
		wg.Go(func() { // a reader
			for n := g; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				i := n % people
				for {
					version, record, c, want := cells[i].get()
					err := node.openHeld(subjects[i], held{item: keyring.ResealItem{Collection: "profile", Field: "email", Version: record, Ciphertext: c}, value: want})
					if err == nil {
						reads.Add(1)
						break
					}
					if now, _, _, _ := cells[i].get(); !errors.Is(err, keys.ErrTampered) || now == version {
						t.Errorf("reading: %v", err)
						return
					}
				}
			}
		})
		wg.Go(func() { // a writer
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				i := (n + g) % people
				version, record, _, _ := cells[i].get()
				value := fmt.Sprint(g, n)
				h, err := node.sealHeld(subjects[i], fieldAt(record+1), value)
				if err != nil {
					t.Errorf("writing: %v", err)
					return
				}
				if cells[i].put(version, record+1, h.item.Ciphertext, value) {
					writes.Add(1)
				}
			}
		})
	}
	for rotation := uint32(1); rotation <= 15; rotation++ {
		node := nodes[rotation%2]
		for i, s := range subjects {
			for {
				version, record, c, value := cells[i].get()
				out, err := node.reseal(rotation, s, held{item: keyring.ResealItem{Collection: "profile", Field: "email", Version: record, Ciphertext: c}})
				if err != nil {
					t.Errorf("resealing: %v", err)
					break
				}
				if out[0] == nil {
					out[0] = c
				}
				if cells[i].put(version, record, out[0], value) {
					break
				}
			}
		}
		time.Sleep(2 * time.Millisecond) // for who has read a row and not yet used it
		errs, err := node.Retire(ctx, rotation, subjects)
		for _, e := range errs {
			err = errors.Join(err, e)
		}
		if err != nil {
			t.Errorf("retiring: %v", err)
		}
	}
	close(done)
	wg.Wait()
	t.Logf("%d reads, %d writes", reads.Load(), writes.Load())
	for i, s := range subjects {
		r.wantRow(s, 15, 1)
		_, record, c, want := cells[i].get()
		wantErr(t, r.reopen().openHeld(s, held{item: keyring.ResealItem{Collection: "profile", Field: "email", Version: record, Ciphertext: c}, value: want}), nil)
	}
}

// Two nodes that rotate one subject at the same time do it once, and a destruction meanwhile wins.
func TestRotationsRace(t *testing.T) {
	a := newRing(t, nil)
	nodes := []*ring{a, a.reopen()}
	for range 20 {
		s, c := a.mustCreate("x")
		it := fieldAt(1)
		it.Ciphertext = c
		var wg sync.WaitGroup
		sealed := make([][]byte, 4)
		for i := range sealed {
			wg.Go(func() {
				out, err := nodes[i%2].reseal(1, s, held{item: it})
				if wantErr(t, err, nil); err == nil {
					sealed[i] = out[0]
				}
			})
		}
		wg.Wait()
		for _, again := range sealed { // all under the one new key
			a.wantOpen(s, again, "x")
		}
		a.wantRow(s, 1, 2)
		for i := range 4 {
			wg.Go(func() {
				if _, err := nodes[i%2].reseal(2, s); err != nil {
					wantErr(t, err, keys.ErrDestroyed)
				}
			})
		}
		wg.Go(func() { wantErr(t, a.Destroy(context.Background(), s, "x"), nil) })
		wg.Wait()
		for _, k := range nodes {
			k.wantOpenErr(s, c, keys.ErrDestroyed)
		}
		if a.rawGet(keyring.KeyBundle(s)) != nil {
			t.Fatal("a rotation brought a destroyed bundle back")
		}
	}
}

// Promise 6 holds for a rotation too: what is shown at another place than it was sealed for is refused. All pairs.
func TestMovedItem(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	type placed struct {
		subject uuid.UUID
		h       held
	}
	var all []placed
	for range 2 {
		s, _ := r.mustCreate("x")
		for _, c := range []string{"profile", "profil"} {
			for _, f := range []string{"email", "eemail"} {
				for _, n := range []uint32{1, 2} {
					for _, kind := range []int{keyring.ItemField, keyring.ItemIndex} {
						it := keyring.ResealItem{Kind: kind, Collection: c, Field: f}
						if it.Version, it.Normaliser = uint64(n), 0; kind == keyring.ItemIndex {
							it.Version, it.Normaliser = 0, n
						}
						h, err := r.sealHeld(s, it, "value")
						if err != nil {
							t.Fatal(err)
						}
						all = append(all, placed{s, h})
					}
				}
			}
		}
		h, err := r.sealHeld(s, detailAt, "value")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, placed{s, h})
		if _, err := r.reseal(1, s); err != nil { // so that every item has to be opened
			t.Fatal(err)
		}
	}
	pairs := 0
	for to, p := range all {
		calls := make([]keyring.ResealSubject, len(all))
		indexes := make([]keyring.ReindexSubject, len(all))
		for from := range all {
			it := p.h.item
			it.Ciphertext = all[from].h.item.Ciphertext
			calls[from] = keyring.ResealSubject{Subject: p.subject, Items: []keyring.ResealItem{it}}
			indexes[from] = keyring.ReindexSubject{Subject: p.subject, Values: []keyring.IndexValue{
				{Collection: it.Collection, Field: it.Field, Normaliser: it.Normaliser, Sealed: it.Ciphertext}}}
		}
		out, err := r.Reseal(ctx, 1, calls)
		if err != nil {
			t.Fatal(err)
		}
		for from, o := range out {
			pairs++
			if from == to {
				wantErr(t, o.Err, nil)
			} else if !errors.Is(o.Err, keys.ErrTampered) || o.Ciphertexts != nil {
				t.Errorf("item %d is sealed again at the place of %d: %v", from, to, o.Err)
			}
		}
		if p.h.item.Kind != keyring.ItemIndex {
			continue
		}
		tokens, err := r.Reindex(ctx, indexes)
		if err != nil {
			t.Fatal(err)
		}
		for from, o := range tokens {
			pairs++
			if from == to {
				wantErr(t, o.Err, nil)
			} else if !errors.Is(o.Err, keys.ErrTampered) || o.Tokens != nil {
				t.Errorf("item %d has tokens at the place of %d: %v", from, to, o.Err)
			}
		}
	}
	t.Logf("%d pairs", pairs)
}

func TestRotationErrorsHoldNoData(t *testing.T) {
	const canary = "canary-5f3a"
	ctx := context.Background()
	r := newRing(t, nil)
	s, c := r.mustCreate(canary)
	index, err := r.sealHeld(s, indexAt, canary)
	if err != nil {
		t.Fatal(err)
	}
	field := held{item: fieldAt(2)} // is of version 1
	field.item.Ciphertext = c
	_, err = r.reseal(1, s, field)
	errs := []error{err}
	index.item.Normaliser++
	_, err = r.reseal(1, s, index)
	errs = append(errs, err, r.openHeld(s, index), r.retire(2, s))
	_, err = r.DestroyRef(ctx, s, make([]byte, 32), canary)
	errs = append(errs, err)
	_, err = r.Index(ctx, []keyring.IndexValue{{Collection: "a", Field: "b", Value: strings.Repeat(canary, 1000)}})
	errs = append(errs, err)
	for i, err := range errs {
		if err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), s.String()) {
			t.Errorf("error %d is %v", i, err)
		}
	}
}

func TestRotationWipesSecrets(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, _ := r.mustCreate("value")
	h, err := r.sealHeld(s, indexAt, "value")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.reseal(1, s, h); err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.retire(1, s), nil)
	version, err := r.BeginIndex(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.EndIndex(ctx, version), nil)
	_, err = r.AddKeyset(ctx, "token")
	wantErr(t, err, nil)
	_, err = r.RotateWitness(ctx)
	wantErr(t, err, nil)
	// And when the row is changed meanwhile, when the KEK fails, and when the store does.
	for _, fail := range []string{"wrap", "unwrap", "update"} {
		hook := func(op string) error {
			if op == fail {
				return errInjected
			}
			return nil
		}
		r.kek.set(func() { r.kek.before = hook })
		r.store.mu.Lock()
		r.store.before = hook
		r.store.mu.Unlock()
		_, err := r.reseal(2, s)
		wantErr(t, err, keys.ErrUnavailable)
		_, err = r.RotateWitness(ctx)
		wantErr(t, err, keys.ErrUnavailable)
	}
	r.wantWiped(30)
}

// agingKEK wraps under version 1 for some calls, then under version 2, as a KEK does that is rotated meanwhile.
type agingKEK struct {
	keyring.KEK
	mu       sync.Mutex
	old      int // calls of Wrap that are still under version 1
	versions map[string]uint64
}

func (k *agingKEK) Wrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	out, err := k.KEK.Wrap(ctx, items)
	k.mu.Lock()
	defer k.mu.Unlock()
	version := uint64(2)
	if k.old > 0 {
		version = 1
		k.old--
	}
	for i := range out {
		k.versions[string(out[i].Data)] = version
	}
	return out, err
}

func (k *agingKEK) Version(wrapped []byte) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := k.versions[string(wrapped)]; v > 0 {
		return v, nil
	}
	return 0, keys.ErrTampered
}

// What an epoch overtakes is wrapped again; below the floor nothing is written.
func TestFloor(t *testing.T) {
	ctx := context.Background()
	kek := &agingKEK{KEK: newKEK(t), old: 1 << 20, versions: make(map[string]uint64)}
	r := newRing(t, func(c *keyring.Config) { c.KEK = kek })
	s, c := r.mustCreate("value")
	operations := map[string]func() error{
		"create":  func() error { _, err := r.seal(uuid.New(), true, "x"); return err },
		"reseal":  func() error { _, err := r.reseal(1, s); return err },
		"index":   func() error { _, err := r.BeginIndex(ctx); return err },
		"token":   func() error { _, err := r.AddKeyset(ctx, "token"); return err },
		"witness": func() error { _, err := r.RotateWitness(ctx); return err },
	}
	r.rawSet(keyring.KeyFloor, binary.BigEndian.AppendUint64(nil, 2))
	generation := r.Generation()
	for _, name := range []string{"create", "reseal", "index", "token", "witness"} {
		if err := operations[name](); !errors.Is(err, keys.ErrUnavailable) {
			t.Errorf("%s below the floor gave %v", name, err)
		}
	}
	if r.Generation() != generation {
		t.Error("something was written below the floor")
	}
	r.wantOpen(s, c, "value")
	for _, name := range []string{"create", "reseal", "index", "token", "witness"} {
		kek.mu.Lock()
		kek.old = 2
		kek.mu.Unlock()
		if err := operations[name](); err != nil {
			t.Errorf("%s, wrapped again, gave %v", name, err)
		}
		if kek.old != 0 {
			t.Errorf("%s was not wrapped again", name)
		}
	}
	// What is not wrapped anew need not wait for the epoch, which finds it as it would have found it before.
	r.rawSet(keyring.KeyFloor, binary.BigEndian.AppendUint64(nil, 1<<20))
	if err := r.retire(1, s); err != nil {
		t.Errorf("retire below the floor gave %v", err)
	}
	r.wantRow(s, 1, 1)
	r.rawSet(keyring.KeyFloor, []byte{1})
	if err := operations["create"](); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("with a broken floor: %v", err)
	}
}

func TestDestroyRef(t *testing.T) {
	ctx := context.Background()
	for name, cold := range map[string]bool{"warm": false, "cold": true} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, nil)
			s, c := r.mustCreate("value")
			other, co := r.mustCreate("other")
			refs, err := r.Ref(ctx, []uuid.UUID{s, other})
			if err != nil {
				t.Fatal(err)
			}
			node := r
			if cold {
				node = r.reopen()
			}
			for _, ref := range [][]byte{nil, {}, refs[1].Ref, refs[0].Ref[:31]} {
				_, err := node.DestroyRef(ctx, s, ref, "x")
				wantErr(t, err, keys.ErrProofRefused)
			}
			_, err = node.DestroyRef(ctx, uuid.New(), refs[0].Ref, "x")
			wantErr(t, err, keys.ErrNoKey)
			_, err = node.DestroyRef(ctx, s, refs[0].Ref, strings.Repeat("x", keyring.MaxReason+1))
			wantErr(t, err, keys.ErrInvalid)
			r.wantOpen(s, c, "value")
			generation := node.Generation()
			out, err := node.DestroyRef(ctx, s, refs[0].Ref, "x")
			if err != nil || out != (keyring.Destroyed{Generation: generation + 1, KEKVersion: 1}) {
				t.Errorf("destroying gave %+v, %v", out, err)
			}
			r.wantOpenErr(s, c, keys.ErrDestroyed)
			r.wantOpen(other, co, "other")
			wantErr(t, r.Destroy(ctx, other, "x"), nil)
			for _, k := range []*ring{node, r.reopen()} { // also with another reference
				again, err := k.DestroyRef(ctx, s, refs[1].Ref, "y")
				if err != nil || again != (keyring.Destroyed{Generation: generation + 1, KEKVersion: 1, Already: true}) {
					t.Errorf("destroying again gave %+v, %v", again, err)
				}
			}
			r.rawSet(keyring.KeyTombstone(s), []byte("x"))
			_, err = r.DestroyRef(ctx, s, refs[0].Ref, "x")
			wantErr(t, err, keys.ErrUnavailable)
			r.wantOpenErr(s, c, keys.ErrDestroyed)
		})
	}
}

// A row that is damaged does not stand in the way of an erasure by order.
func TestDestroyDamaged(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	r.rawSet(keyring.KeyBundle(s), []byte("x"))
	_, err := r.DestroyRef(ctx, s, make([]byte, 32), "x")
	wantErr(t, err, keys.ErrTampered)
	wantErr(t, r.Destroy(ctx, s, "x"), nil)
	r.wantOpenErr(s, c, keys.ErrDestroyed)
}

// each call of KEK and key store fails in each rotation, without and with its effect; what was sealed, tokens and
// tags stay right, and the rotation succeeds when it is repeated.
func TestFaultsOfRotation(t *testing.T) {
	ctx := context.Background()
	type prepared struct {
		*world
		index  []keyring.IndexToken
		tag    []byte
		secret []byte
		ref    []byte
	}
	value := []keyring.IndexValue{{Collection: "profile", Field: "email", Normaliser: 1, Value: "a"}}
	prepare := func(t *testing.T) *prepared {
		p := &prepared{world: newWorld(t)}
		tokens, err := p.Index(ctx, value)
		if err != nil {
			t.Fatal(err)
		}
		p.index = tokens[0]
		p.tag, err = p.Token(ctx, "l", []byte("data"))
		if err == nil {
			p.secret, err = p.Protect(ctx, "l", []byte("data"))
		}
		refs, e := p.Ref(ctx, []uuid.UUID{p.victim})
		if err != nil || e != nil {
			t.Fatal(err, e)
		}
		p.ref = refs[0].Ref
		p.world.ring = p.reopen()
		return p
	}
	verify := func(p *prepared) {
		p.t.Helper()
		p.check(false)
		for _, r := range []*ring{p.ring, p.reopen()} {
			tokens, err := r.Index(ctx, value)
			if err != nil || !bytes.Equal(tokens[0][0].Token, p.index[0].Token) && tokens[0][0].Key == 1 {
				p.t.Errorf("the token under the first index key changed: %v", err)
			}
			wantErr(p.t, r.VerifyToken(ctx, "l", []byte("data"), p.tag), nil)
			_, err = r.Unprotect(ctx, "l", p.secret)
			wantErr(p.t, err, nil)
			signature, err := r.WitnessSign([]byte("x"))
			if err != nil || len(signature) != 64 || r.SidecarID() == "" {
				p.t.Errorf("the witness does not sign: %v", err)
			}
		}
	}
	rotate := func(p *prepared) error {
		h := held{item: fieldAt(1), value: "live"}
		h.item.Ciphertext = p.sealed
		out, err := p.reseal(1, p.live, h)
		if err == nil && out[0] != nil {
			p.sealed = out[0] // as the data store does, once it has committed
		}
		return err
	}
	operations := map[string]struct{ before, run func(p *prepared) error }{
		"Reseal": {run: rotate},
		"Retire": {before: rotate, run: func(p *prepared) error { return p.retire(1, p.live) }},
		"BeginIndex": {run: func(p *prepared) error {
			version, err := p.BeginIndex(ctx)
			if err == nil && version != 2 {
				p.t.Errorf("version is %d", version)
			}
			return err
		}},
		"EndIndex": {
			before: func(p *prepared) error { _, err := p.BeginIndex(ctx); return err },
			run:    func(p *prepared) error { return p.EndIndex(ctx, 2) },
		},
		"token":         {run: func(p *prepared) error { _, err := p.AddKeyset(ctx, "token"); return err }},
		"service":       {run: func(p *prepared) error { _, err := p.AddKeyset(ctx, "service"); return err }},
		"RotateWitness": {run: func(p *prepared) error { _, err := p.RotateWitness(ctx); return err }},
		"DestroyRef":    {run: func(p *prepared) error { _, err := p.DestroyRef(ctx, p.victim, p.ref, "x"); return err }},
	}
	for name, op := range operations {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/applied=%v", name, applied), func(t *testing.T) {
				for n := 1; ; n++ {
					p := prepare(t)
					if op.before != nil {
						if err := op.before(p); err != nil {
							t.Fatal(err)
						}
					}
					f := &faults{n: n, applied: applied}
					f.place(p.ring)
					err := op.run(p)
					f.remove(p.ring)
					if f.fired == "" {
						if err != nil {
							t.Fatalf("without a fault: %v", err)
						}
						if f.seen >= n {
							continue // a View, which has no effect to fail after
						}
						if n == 1 {
							t.Fatal("no call was made")
						}
						verify(p)
						return
					}
					if !errors.Is(err, keys.ErrUnavailable) {
						t.Errorf("call %d (%s) failed with %v", n, f.fired, err)
					}
					verify(p)
					if err := op.run(p); err != nil {
						t.Errorf("repeated after call %d (%s): %v", n, f.fired, err)
					}
					verify(p)
					if name == "Retire" {
						p.wantRow(p.live, 1, 1)
					}
				}
			})
		}
	}
}

// A rotation of everybody does not drive those who are asked for out of the cache, nor does its repetition, for which
// the bundles are needed as they are, nor one of the index.
func TestRotationSparesTheCache(t *testing.T) {
	r := newRing(t, func(c *keyring.Config) { c.CacheSize = 4 })
	var others []uuid.UUID
	for range 20 {
		s, _ := r.mustCreate("x")
		others = append(others, s)
	}
	var hot []uuid.UUID
	var sealed [][]byte
	for range 4 {
		s, c := r.mustCreate("hot")
		hot, sealed = append(hot, s), append(sealed, c)
	}
	for _, s := range append(append([]uuid.UUID(nil), hot...), others...) {
		if _, err := r.reseal(1, s); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range others {
		if _, err := r.reseal(1, s); err != nil {
			t.Fatal(err)
		}
		out, err := r.Reindex(context.Background(), []keyring.ReindexSubject{{Subject: s}})
		if err != nil || out[0].Err != nil {
			t.Fatal(err, out)
		}
	}
	unwraps := r.kek.unwraps.Load()
	for i := range hot {
		r.wantOpen(hot[i], sealed[i], "hot")
	}
	if r.kek.unwraps.Load() != unwraps {
		t.Error("the KEK was asked for those who were in the cache")
	}
}

// A row that is there beside a tombstone, as when an engine lost its deletion, is not rotated, even if the tombstone
// comes while the KEK is asked.
func TestTombstoneBeatsRotation(t *testing.T) {
	r := newRing(t, nil)
	s, _ := r.mustCreate("value")
	row := r.rawGet(keyring.KeyBundle(s))
	other, _ := r.mustCreate("other")
	wantErr(t, r.Destroy(context.Background(), other, "x"), nil)
	tombstone := r.rawGet(keyring.KeyTombstone(other))
	wraps := 0
	r.kek.set(func() {
		r.kek.before = func(op string) error {
			if op == "wrap" {
				wraps++
				r.rawSet(keyring.KeyTombstone(s), tombstone)
			}
			return nil
		}
	})
	_, err := r.reseal(1, s)
	wantErr(t, err, keys.ErrDestroyed)
	if wraps != 1 || !bytes.Equal(r.rawGet(keyring.KeyBundle(s)), row) {
		t.Errorf("wrapped %d times, or the row was changed", wraps)
	}
}

// A row that names another number of keys than there are is refused, whatever is done with it.
func TestKeyCountOfRow(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	s, c := r.mustCreate("value")
	more := func(key []byte) {
		row := r.rawGet(key)
		row[13]++
		r.rawSet(key, row)
	}
	more(keyring.KeyBundle(s))
	_, err := r.reseal(1, s)
	wantErr(t, err, keys.ErrTampered)
	wantErr(t, r.retire(0, s), keys.ErrTampered)
	r.wantOpenErr(s, c, keys.ErrTampered)
	for _, name := range []string{"identity", "index", "token", "service"} {
		key := keyring.KeyKeyset(name)
		good := r.rawGet(key)
		more(key)
		wantErr(t, r.Refresh(ctx), keys.ErrTampered)
		_, err := keyring.Open(ctx, r.cfg)
		wantErr(t, err, keys.ErrTampered)
		r.rawSet(key, good)
	}
	wantErr(t, r.Refresh(ctx), nil)
}
