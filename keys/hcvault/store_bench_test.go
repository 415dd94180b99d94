package hcvault_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/test/conformance"
	"github.com/prototypster/pdvault/vault/kv"
)

// BenchmarkKV has all values in memory.
func BenchmarkKV(b *testing.B) {
	engine := storeEngine(b)
	conformance.BenchmarkKV(b, engine)
}

// Rows of the size of a bundle's, none of which is in memory, and the time that it takes to open the store.
func BenchmarkStore(b *testing.B) {
	const rows = 5_000
	cfg := storeSetup(b)
	cfg.Logger, cfg.CacheRows, cfg.Lease = nil, 1, 0
	s, err := hcvault.CreateStore(context.Background(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	key := func(i int) []byte { return fmt.Appendf(nil, "b/%016d", i%rows) }
	for first := 0; first < rows; first += 1000 {
		err := s.Update(context.Background(), func(w kv.Writer) error {
			for i := range 1000 {
				w.Set(key(first+i), make([]byte, 250))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	// Everything is applied and nothing is in memory.
	if err = s.Close(); err == nil {
		s, err = hcvault.OpenStore(context.Background(), cfg)
	}
	if err != nil {
		b.Fatal(err)
	}
	for _, callers := range []int{1, 32} {
		b.Run(fmt.Sprintf("ColdGet/callers=%d", callers), func(b *testing.B) {
			var next atomic.Int64
			b.SetParallelism(max(1, callers/2)) // times GOMAXPROCS
			get := func() {
				i := int(next.Add(1)) * 7
				err := s.View(context.Background(), func(r kv.Reader) error {
					_, err := r.Get(key(i))
					return err
				})
				if err != nil {
					b.Error(err)
				}
			}
			if callers == 1 {
				for b.Loop() {
					get()
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						get()
					}
				})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
		})
	}
	b.Run("ColdGet100", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			err := s.View(context.Background(), func(r kv.Reader) error {
				keys := make([][]byte, 100)
				for n := range keys {
					keys[n] = key(i*100 + n)
				}
				_, err := r.Get(keys...)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
	})
	set := func(i int) {
		err := s.Update(context.Background(), func(w kv.Writer) error {
			w.Set(key(i), make([]byte, 250))
			return nil
		})
		if err != nil {
			b.Error(err)
		}
	}
	b.Run("Commit/callers=1", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			set(i)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	})
	b.Run("Commit/callers=32", func(b *testing.B) {
		var next atomic.Int64
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				set(int(next.Add(1)))
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	})
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("Removal/rows=%d", n), func(b *testing.B) { // waits until HashiCorp Vault holds them no more
			for b.Loop() {
				b.StopTimer()
				fill := func(remove bool) {
					err := s.Update(context.Background(), func(w kv.Writer) error {
						for i := range n {
							if k := fmt.Appendf(nil, "gone/%d", i); remove {
								w.Delete(k)
							} else {
								w.Set(k, []byte("x"))
							}
						}
						return nil
					})
					if err != nil {
						b.Fatal(err)
					}
				}
				fill(false)
				b.StartTimer()
				fill(true)
			}
		})
	}
	b.Run("CloseAndOpen", func(b *testing.B) {
		for b.Loop() {
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			if s, err = hcvault.OpenStore(context.Background(), cfg); err != nil {
				b.Fatal(err)
			}
		}
	})
	if err := s.Close(); err != nil {
		b.Error(err)
	}
}
