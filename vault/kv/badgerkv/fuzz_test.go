package badgerkv

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/vault/kv"
)

// FuzzSentinel: the sentinel and the clean marker of a store are what was written, or damage.
func FuzzSentinel(f *testing.F) {
	f.Add([]byte(`{"format":1,"kind":"pdvault/data/v1","id":"00112233445566778899aabbccddeeff"}`), []byte(`{"id":"00112233445566778899aabbccddeeff","manifest":"x"}`))
	f.Add([]byte(`{}`), []byte(`{}`))
	f.Add([]byte(`{"format":1e9}`), []byte(``))
	f.Fuzz(func(t *testing.T, marker, stopped []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{sentinelFile: marker, cleanFile: stopped, badger.ManifestFilename: []byte("manifest")} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		file, err := os.Open(filepath.Join(dir, sentinelFile))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		s, err := readSentinel(file, "pdvault/data/v1")
		switch {
		case err != nil && !errors.Is(err, kv.ErrIntegrity):
			t.Errorf("the sentinel: %v", err)
		case err == nil && (s.Format != formatVersion || len(s.ID) != 32 || s.Kind != "pdvault/data/v1"):
			t.Errorf("taken: %+v", s)
		}
		// No marker that the fuzzer makes has the hash of the manifest.
		if clean, err := readClean(dir, s.ID); clean || !errors.Is(err, kv.ErrIntegrity) {
			t.Errorf("the clean marker: %v, %v", clean, err)
		}
	})
}

// FuzzManifest: sets of changes are read as Badger's own reader reads them, or refused.
func FuzzManifest(f *testing.F) {
	o := Options{Dir: f.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	o, err := o.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	header := []byte{'B', 'd', 'g', 'r', 0, formatVersion, 0, 8}
	for _, tables := range []map[uint64]listed{nil, {1: {}}, {1: {}, 7: {Level: 6, KeyID: 2, Compression: 1}}} {
		if err := writeManifest(o, header, tables); err != nil {
			f.Fatal(err)
		}
		whole, err := os.ReadFile(filepath.Join(o.Dir, badger.ManifestFilename))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(whole[manifestHeader:])
		f.Add(append(whole[manifestHeader:], whole[manifestHeader:len(whole)-1]...))
	}
	f.Fuzz(func(t *testing.T, sets []byte) {
		data := append(header[:manifestHeader:manifestHeader], sets...)
		path := filepath.Join(t.TempDir(), badger.ManifestFilename)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		want, size, wantErr := badger.ReplayManifestFile(file, formatVersion, badger.DefaultOptions("").WithLogger(engineLog{log: o.Logger}))
		got, err := readManifest(data)
		if wantErr != nil {
			return // it refuses more: tables that are created twice, levels of more than a byte
		}
		if err != nil {
			t.Fatalf("refused, while the engine takes it: %v", err)
		}
		if _, taken, _ := decodeChanges(sets); taken+manifestHeader != size {
			t.Errorf("%d bytes were taken, by the engine %d", taken+manifestHeader, size)
		}
		if len(got) != len(want.Tables) {
			t.Errorf("%d tables, by the engine %d", len(got), len(want.Tables))
		}
		for id, table := range want.Tables {
			if got[id].KeyID != table.KeyID || uint8(got[id].Level) != table.Level {
				t.Errorf("table %d: %+v, by the engine %+v", id, got[id], table)
			}
		}
	})
}

// FuzzUnfinished: the record of a compaction is what was written, or refused; and whatever it says, it judges.
func FuzzUnfinished(f *testing.F) {
	record, err := encodeUnfinished(unfinished{Tables: map[uint64]listed{1: {}, 2: {Level: 6}}, Size: 100, Sum: "00", Announced: []int{2, 0}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record, false)
	f.Add([]byte(`{"tables":{},"size":8,"announced":[1]}`), true)
	f.Add([]byte(`{"tables":null,"size":-1,"announced":[]}`), true)
	f.Fuzz(func(t *testing.T, data []byte, sign bool) {
		if sign { // or the fuzzer would not come behind the checksum
			sum := sha256.Sum256(data)
			data = append(append(data[:len(data):len(data)], '\n'), hex.EncodeToString(sum[:])+"\n"...)
		}
		u, err := decodeUnfinished(data)
		if err != nil {
			return
		}
		again, err := encodeUnfinished(u)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeUnfinished(again); err != nil || len(back.Tables) != len(u.Tables) || back.Size != u.Size {
			t.Errorf("%+v became %+v (error %v)", u, back, err)
		}
		manifest := append([]byte{'B', 'd', 'g', 'r', 0, formatVersion, 0, 8}, make([]byte, 32)...)
		s, err := u.since(manifest)
		if err != nil {
			return
		}
		if v, done := u.judge(s); v == whole && done == 0 || done > len(u.Announced) {
			t.Errorf("judged %d with %d done", v, done)
		}
		u.before(s)
	})
}
