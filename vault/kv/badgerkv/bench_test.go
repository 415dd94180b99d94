package badgerkv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/prototypster/pdvault/vault/kv"
)

// BenchmarkOpen opens a store of 1 GB that was closed cleanly: what a start has to verify.
func BenchmarkOpen(b *testing.B) {
	o := testOptions(b, filepath.Join(b.TempDir(), "store"))
	o.MemTableSize = 32 << 20
	s := mustCreate(b, o)
	const rows, row = 1 << 20, 1 << 10
	random := rand.New(rand.NewPCG(1, 1))
	value := bytes.Repeat([]byte("v"), row)
	for n := 0; n < rows; {
		err := s.Update(b.Context(), func(w kv.Writer) error {
			for end := n + 1000; n < end; n++ {
				binary.NativeEndian.PutUint64(value, random.Uint64())
				w.Set(fmt.Appendf(nil, "key/%016x", random.Uint64()), bytes.Clone(value))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	mustClose(b, s)
	b.SetBytes(rows * row)
	for b.Loop() {
		s = mustOpen(b, o)
		b.StopTimer()
		mustClose(b, s)
		b.StartTimer()
	}
}
