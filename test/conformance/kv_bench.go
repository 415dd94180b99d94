package conformance

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/prototypster/pdvault/vault/kv"
)

const (
	benchKeys  = 10_000
	benchValue = 256 // bytes, about one sealed field
)

// BenchmarkKV measures what pdvault does most, on a store of 10 000 keys.
func BenchmarkKV(b *testing.B, engine KVEngine) {
	s := engine.New(b)
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	for i := 0; i < benchKeys; i += 1000 {
		benchUpdate(b, s, i, 1000)
	}
	for _, keys := range []int{1, 4, 8} {
		b.Run(fmt.Sprintf("ViewGet%d", keys), func(b *testing.B) { benchGet(b, s, keys) })
	}
	b.Run("ViewGet4Parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			batch := benchBatch(0, 4)
			for pb.Next() {
				_ = s.View(context.Background(), func(r kv.Reader) error { _, err := r.Get(batch...); return err })
			}
		})
	})
	b.Run("ViewScan100", func(b *testing.B) { benchScan(b, s, 100) })
	for _, writes := range []int{1, 64} {
		b.Run(fmt.Sprintf("Update%d", writes), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				benchUpdate(b, s, i*writes%benchKeys, writes)
			}
		})
	}
	b.Run("Update1Parallel32", func(b *testing.B) {
		var n atomic.Int64
		b.SetParallelism(16) // times GOMAXPROCS
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				benchUpdate(b, s, int(n.Add(1))%benchKeys, 1)
			}
		})
	})
}

func benchKey(i int) []byte { return fmt.Appendf(nil, "subject/%08d/head", i) }

func benchBatch(first, n int) [][]byte {
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = benchKey((first + i*997) % benchKeys)
	}
	return keys
}

func benchGet(b *testing.B, s kv.Store, n int) {
	batches := make([][][]byte, 64)
	for i := range batches {
		batches[i] = benchBatch(i*31, n)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		err := s.View(context.Background(), func(r kv.Reader) error {
			values, err := r.Get(batches[i%len(batches)]...)
			if err == nil && len(values[n-1]) != benchValue {
				b.Fatalf("a value has %d bytes", len(values[n-1]))
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchScan(b *testing.B, s kv.Store, n int) {
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		err := s.View(context.Background(), func(r kv.Reader) error {
			pairs, err := r.Scan([]byte("subject/"), benchKey(i%(benchKeys-2*n)), n)
			if err == nil && len(pairs) != n {
				b.Fatalf("a scan gave %d pairs", len(pairs))
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchUpdate(b *testing.B, s kv.Store, first, n int) {
	value := make([]byte, benchValue)
	err := s.Update(context.Background(), func(w kv.Writer) error {
		for i := range n {
			w.Set(benchKey((first+i)%benchKeys), value)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
