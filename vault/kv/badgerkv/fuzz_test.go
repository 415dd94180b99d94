package badgerkv

import (
	"errors"
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
