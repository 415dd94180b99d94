package ledger_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// BenchmarkAppend appends access records with one check and one write of state each, from some callers at
// once; badgerkv syncs each transaction.
func BenchmarkAppend(b *testing.B) {
	for _, engine := range []struct {
		name string
		open func(testing.TB) kv.Store
	}{
		{"badgerkv", newBadger},
		{"memkv", func(testing.TB) kv.Store { return memkv.New() }},
	} {
		for _, callers := range []int{1, 32, 256} {
			b.Run(fmt.Sprintf("%s/callers=%d", engine.name, callers), func(b *testing.B) {
				k := newKeys(b)
				cfg := k.config(engine.open(b))
				var batches, committed atomic.Int64
				cfg.Observe = func(s ledger.BatchStats) {
					batches.Add(1)
					committed.Add(int64(s.Committed))
				}
				l := mustCreate(b, cfg)
				var next atomic.Int64
				b.SetParallelism(max(1, callers/2)) // times GOMAXPROCS, which is 2 on the reference machine
				if callers == 1 {
					for b.Loop() {
						appendOne(b, l, next.Add(1))
					}
				} else {
					b.ResetTimer()
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							appendOne(b, l, next.Add(1))
						}
					})
				}
				b.ReportMetric(float64(committed.Load())/b.Elapsed().Seconds(), "appends/s")
				b.ReportMetric(float64(committed.Load())/float64(max(1, batches.Load())), "entries/batch")
			})
		}
	}
}

func appendOne(b *testing.B, l *ledger.Ledger, i int64) {
	_, err := l.Append(context.Background(), entry(int(4*i+2)), func(p ledger.Position) kv.Change {
		var c kv.Change
		c.Expect([]byte("policy/head"), nil, kv.ErrConflict)
		c.Set(be64(i), be64(p.Index))
		return c
	})
	if err != nil {
		b.Error(err)
	}
}

func BenchmarkProveInclusion(b *testing.B) {
	const size = 100_000
	l := mustCreate(b, newKeys(b).config(memkv.New()))
	for l.Checkpoint().Size < size {
		appendN(b, l, 2000)
	}
	for name, index := range map[string]func(i int64) int64{
		"recent": func(i int64) int64 { return size - 1 - i%1000 },
		"any":    func(i int64) int64 { return i * 7919 % size },
	} {
		b.Run(name, func(b *testing.B) {
			var i int64
			for b.Loop() {
				i++
				if _, err := l.ProveInclusion(context.Background(), index(i), size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("consistency", func(b *testing.B) {
		var i int64
		for b.Loop() {
			i++
			if _, err := l.ProveConsistency(context.Background(), size-1-i%64, size); err != nil {
				b.Fatal(err)
			}
		}
	})
}
