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

// BenchmarkGet reads one key that is in a table, with and without the comparison.
func BenchmarkGet(b *testing.B) {
	o := testOptions(b, filepath.Join(b.TempDir(), "store"))
	s := mustCreate(b, o)
	const keys = 100_000
	for i := 0; i < keys; {
		err := s.Update(b.Context(), func(w kv.Writer) error {
			for end := i + 1000; i < end; i++ {
				w.Set([]byte(fmt.Sprintf("key/%06d", i*7919%keys)), bytes.Repeat([]byte("v"), 300))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	mustClose(b, s)
	s = mustOpen(b, o)
	for _, compared := range []bool{true, false} {
		b.Run(fmt.Sprintf("compared %t", compared), func(b *testing.B) {
			b.ReportAllocs()
			err := s.View(b.Context(), func(r kv.Reader) error {
				for n := 0; b.Loop(); n++ {
					k := []byte(fmt.Sprintf("key/%06d", n*104729%keys))
					if compared {
						if _, err := r.Get(k); err != nil {
							return err
						}
						continue
					}
					item, err := r.(*reader).txn.Get(engineKey(k))
					if err == nil {
						_, err = r.(*reader).valueOf(item)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
