package hcvault

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/prototypster/pdvault/vault/kv"
)

// FuzzSecrets: a secret of a key store is what was written there, or a violation of integrity.
func FuzzSecrets(f *testing.F) {
	for _, v := range []any{
		marker{F: 1, Kind: storeKind, Instance: "main", Store: "00", Created: time.Unix(1_700_000_000, 0).UTC()},
		owner{F: 1, ID: "b7", Fence: 3, Renewed: 41, LeaseMS: 15000},
		record{F: 1, Seq: 118, Fence: 3, ID: "5a", Rows: 12, Sum: "9f", Tx: []byte{1, 1, 'a', 1, 'x'}},
		record{F: 1, Seq: 118, Fence: 3, ID: "5a", Rows: 12, Done: true},
		row{F: 1, Seq: 118, V: []byte{3}},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{`{}`, `null`, `{"f":2}`, `{"f":1,"F":1}`, `{"f":1,"seq":1,"v":"","v":"AA=="}`, `{"f":1} x`, `{"F":1,"SEQ":1,"V":"AA=="}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(name string, v any, err error, again func(*secret) (any, error)) {
			if err != nil {
				if !errors.Is(err, kv.ErrIntegrity) {
					t.Errorf("%s: %v", name, err)
				}
				return
			}
			// Strict JSON has each member once, in one case, so what was taken is what any reader takes.
			if !jsontext.Value(b).IsValid() {
				t.Errorf("%s: taken, and no strict JSON", name)
			}
			encoded, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := again(&secret{data: encoded}); err != nil || !reflect.DeepEqual(back, v) {
				t.Errorf("%s: what was taken does not come back: %v", name, err)
			}
		}
		s := &secret{data: b}
		m, err := decodeMarker(s)
		check("marker", m, err, func(s *secret) (any, error) { return decodeMarker(s) })
		o, err := decodeOwner(s)
		check("owner", o, err, func(s *secret) (any, error) { return decodeOwner(s) })
		r, err := decodeRecord(s)
		check("record", r, err, func(s *secret) (any, error) { return decodeRecord(s) })
		w, err := decodeRow(s)
		check("row", w, err, func(s *secret) (any, error) { return decodeRow(s) })
		if err == nil && (w.V == nil || w.Seq == 0 || w.F != storeFormat) {
			t.Errorf("a row was taken: %+v", w)
		}
	})
}

// FuzzWrites: the writes of a commit are made as they were given, or the commit is damaged.
func FuzzWrites(f *testing.F) {
	f.Add(appendDelete(appendSet(nil, "a", []byte("x")), "b"))
	f.Add(appendSet(nil, "a", nil))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{1, 0x81, 0, 'a', 0}) // a length in more bytes than it needs
	f.Add([]byte{3})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		err := decodeWrites(b, func(key string, value []byte) { again = appendSet(again, key, value) }, func(key string) { again = appendDelete(again, key) })
		switch {
		case err != nil && !errors.Is(err, kv.ErrIntegrity):
			t.Error(err)
		case err == nil && !bytes.Equal(again, b):
			t.Error("taken, and encodes to other bytes")
		}
	})
}

// FuzzRowName: a row has one name, under one shard.
func FuzzRowName(f *testing.F) {
	f.Add(shardOf("g"), "67")
	f.Add("00", "67")
	f.Add(shardOf("g"), "6")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, shard, name string) {
		key, err := keyOf(shard, name)
		switch {
		case err != nil && (!errors.Is(err, kv.ErrIntegrity) || key != ""):
			t.Errorf("failed with %v and a result", err)
		case err == nil && rowName(key) != "rows/"+shard+"/"+name:
			t.Error("two names of one row")
		}
	})
}
