package localkek

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// FuzzRootKeys: a root-key file gives ascending generations of 32 bytes each, or an error that holds nothing of it.
func FuzzRootKeys(f *testing.F) {
	file := rootFile{Format: format, Keys: []rootKey{{Generation: 1, Key: bytes.Repeat([]byte{1}, rootSize)}, {Generation: 3, Key: bytes.Repeat([]byte{2}, rootSize)}}}
	good, err := json.Marshal(&file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(strings.Replace(string(good), `"generation":3`, `"generation":1`, 1)))
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := decode(text)
		if err != nil {
			if keys != nil {
				t.Error("failed with a result")
			}
			if len(text) >= 32 && strings.Contains(err.Error(), string(text[:32])) {
				t.Error("the error holds what was in the file")
			}
			return
		}
		last := uint32(0)
		for _, k := range keys {
			if k.Generation <= last || len(k.Key) != rootSize || bytes.Equal(k.Key, make([]byte, rootSize)) {
				t.Errorf("generation %d of %d bytes after %d", k.Generation, len(k.Key), last)
			}
			last = k.Generation
		}
		if last == 0 {
			t.Error("no keys")
		}
	})
}
