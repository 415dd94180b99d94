package keyring_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// A key is dropped without the KEK, so that an outage holds no older key in place; who is in the cache stays there, and
// has the older key no more.
func TestRetireAsksNoKEK(t *testing.T) {
	r := newRing(t, nil)
	s, old := r.mustCreate("value")
	out, err := r.reseal(1, s, held{item: itemOf(old)})
	if err != nil {
		t.Fatal(err)
	}
	r.wantOpen(s, old, "value")
	r.wantRow(s, 1, 2)
	r.kek.set(func() { r.kek.before = func(string) error { return errInjected } })
	wantErr(t, r.retire(1, s), nil)
	r.wantRow(s, 1, 1)
	r.wantOpen(s, out[0], "value") // from the cache
	r.wantOpenErr(s, old, keys.ErrTampered)
	r.kek.set(func() { r.kek.before = nil })
	again := r.reopen()
	again.wantOpen(s, out[0], "value")
	again.wantOpenErr(s, old, keys.ErrTampered)
}

func itemOf(ciphertext []byte) keyring.ResealItem {
	it := fieldAt(1)
	it.Ciphertext = ciphertext
	return it
}

// The older keys in a row open for its subject beside its newest key, and nowhere else: not in another's row, not in
// an earlier or later row of the same subject, not in pieces.
func TestOlderKeysAreBoundToTheirRow(t *testing.T) {
	r := newRing(t, nil)
	s, sealed := r.mustCreate("value")
	other, othersSealed := r.mustCreate("other")
	for _, id := range []uuid.UUID{s, other} {
		if _, err := r.reseal(1, id); err != nil {
			t.Fatal(err)
		}
	}
	first := r.rawGet(keyring.KeyBundle(s))
	others := r.rawGet(keyring.KeyBundle(other))
	if _, err := r.reseal(2, s); err != nil {
		t.Fatal(err)
	}
	second := r.rawGet(keyring.KeyBundle(s))
	r.wantRow(s, 2, 3)
	r.wantOpen(s, sealed, "value")
	for name, older := range map[string][]byte{
		"another subject's": olderOf(others), "those of before": olderOf(first), "none": {},
		"cut": olderOf(second)[:len(olderOf(second))-1], "longer": append(olderOf(second), 0), "nonsense": bytes.Repeat([]byte{1}, 100),
	} {
		t.Run(name, func(t *testing.T) {
			r := &ring{Keyring: r.Keyring, t: t, kek: r.kek, store: r.store, cfg: r.cfg}
			r.rawSet(keyring.KeyBundle(s), withOlder(second, older))
			r.wantOpenErr(s, sealed, keys.ErrTampered)
			if _, err := r.reseal(3, s); !errors.Is(err, keys.ErrTampered) {
				t.Errorf("a new key beside them: %v", err)
			}
		})
	}
	r.rawSet(keyring.KeyBundle(s), second)
	r.wantOpen(s, sealed, "value")
	r.wantOpen(other, othersSealed, "other")
	// A subject that has one key says so.
	wantErr(t, r.retire(2, s), nil)
	one := r.rawGet(keyring.KeyBundle(s))
	r.rawSet(keyring.KeyBundle(s), withOlder(one, olderOf(second)))
	wantErr(t, r.retire(2, s), keys.ErrTampered)
	r.wantOpenErr(s, sealed, keys.ErrTampered)
}

// An epoch wraps the newest key anew, and the older ones stay beside it.
func TestEpochKeepsOlderKeys(t *testing.T) {
	r := newEpochRing(t, nil)
	s, old := r.mustCreate("value")
	out, err := r.reseal(1, s, held{item: itemOf(old)})
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	if j := r.ends(); j.State != keyring.JobDone {
		t.Fatalf("the epoch failed: %+v", j)
	}
	r.restart()
	r.wantRow(s, 1, 2)
	r.wantOpen(s, old, "value")
	r.wantOpen(s, out[0], "value")
	wantErr(t, r.retire(1, s), nil)
	r.restart()
	r.wantOpen(s, out[0], "value")
	r.wantOpenErr(s, old, keys.ErrTampered)
}

// A key is dropped of a row that another node has just written, of which this one knows nothing yet.
func TestRetireOfARowThatAnotherNodeHasWritten(t *testing.T) {
	r := newRing(t, nil)
	s, old := r.mustCreate("value")
	other := r.reopen()
	if _, err := r.reseal(1, s, held{item: itemOf(old)}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, other.retire(1, s), nil)
	r.wantRow(s, 1, 1)
	r.wantOpenErr(s, old, keys.ErrTampered)
}

// Where the older keys of a row lie, see row: a length of two bytes after the name of the KEK, and they.
func olderOf(row []byte) []byte {
	at := 15 + int(row[14])
	return bytes.Clone(row[at+2 : at+2+int(binary.BigEndian.Uint16(row[at:]))])
}

func withOlder(row, older []byte) []byte {
	at := 15 + int(row[14])
	out := binary.BigEndian.AppendUint16(bytes.Clone(row[:at]), uint16(len(older)))
	return append(append(out, older...), row[at+2+len(olderOf(row)):]...)
}
