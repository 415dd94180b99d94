package hcvault_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// Batches of bundles through a real HashiCorp Vault on the same machine.
func BenchmarkUnwrap(b *testing.B) {
	_, cfg := setup(b, hcserver.Setup{})
	cfg.Logger = nil
	k := mustOpen(b, cfg)
	for _, batch := range []int{1, 32, 100, 1000, 5000} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			items := make([]keyring.KEKItem, batch)
			for i := range items {
				items[i] = keyring.KEKItem{Context: fmt.Append(nil, "subject ", i), Data: make([]byte, 150)}
			}
			wrapped, err := k.Wrap(context.Background(), items)
			if err != nil {
				b.Fatal(err)
			}
			for i := range items {
				items[i].Data = wrapped[i].Data
			}
			for b.Loop() {
				if _, err := k.Unwrap(context.Background(), items); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "items/s")
		})
	}
}

// Reads of one subject each by 32 callers, none of which is in the cache.
func BenchmarkOpenCold(b *testing.B) {
	_, cfg := setup(b, hcserver.Setup{})
	cfg.Logger = nil
	k, err := keyring.Create(context.Background(), keyring.Config{Instance: "bench", KEK: mustOpen(b, cfg), Store: memkv.New(), CacheSize: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	subjects := make([]keyring.SealSubject, 5_000)
	for i := range subjects {
		subjects[i] = keyring.SealSubject{Subject: uuid.New(), Create: true, Fields: []keyring.SealField{
			{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte("value")}}}
	}
	sealed, err := k.Seal(context.Background(), subjects)
	if err != nil {
		b.Fatal(err)
	}
	var next atomic.Int64
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := int(next.Add(1)) % len(subjects)
			out, err := k.Open(context.Background(), []keyring.OpenSubject{{Subject: subjects[i].Subject, Collection: "profile", Version: 1,
				Fields: []keyring.OpenField{{Field: "email", Ciphertext: sealed[i].Fields[0].Ciphertext}}}})
			if err == nil {
				err = out[0].Err
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}

// An epoch over 30,000 bundles on the engine that is used: alone, and beside 16 readers whose own rate is shown
// without it and with it.
func BenchmarkEpoch(b *testing.B) {
	const bundles = 30_000
	store, err := badgerkv.Create(context.Background(), badgerkv.Options{Dir: filepath.Join(b.TempDir(), "keys"),
		Space: badgerkv.Space{ReadOnly: -1, Reserve: -1, Ballast: -1}})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	_, cfg := setup(b, hcserver.Setup{})
	cfg.Logger = nil
	kek := mustOpen(b, cfg)
	k, err := keyring.Create(context.Background(), keyring.Config{Instance: "bench", KEK: kek, Epochs: kek.Epochs(), Store: store})
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	var asked []keyring.OpenSubject
	for len(asked) < bundles {
		subjects := make([]keyring.SealSubject, 5_000)
		for i := range subjects {
			subjects[i] = keyring.SealSubject{Subject: uuid.New(), Create: true, Fields: []keyring.SealField{
				{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte("value")}}}
		}
		sealed, err := k.Seal(context.Background(), subjects)
		if err != nil {
			b.Fatal(err)
		}
		for i, s := range sealed {
			asked = append(asked, keyring.OpenSubject{Subject: subjects[i].Subject, Collection: "profile", Version: 1,
				Fields: []keyring.OpenField{{Field: "email", Ciphertext: s.Fields[0].Ciphertext}}})
		}
	}
	epoch := func(b *testing.B) float64 {
		start := time.Now()
		epochEnds(b, k)
		return bundles / time.Since(start).Seconds()
	}
	b.Run("alone", func(b *testing.B) {
		rate := 0.0
		for b.Loop() {
			rate = epoch(b)
		}
		b.ReportMetric(rate, "bundles/s")
	})
	b.Run("beside readers", func(b *testing.B) {
		var reads atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for n := range 16 {
			wg.Go(func() {
				for i := n; ; i += 16 {
					select {
					case <-stop:
						return
					default:
					}
					// Of 2,000 people, who stay in the cache.
					if _, err := k.Open(context.Background(), asked[i%2000:i%2000+1]); err != nil {
						b.Error(err)
						return
					}
					reads.Add(1)
				}
			})
		}
		rate := func(d time.Duration, n int64) float64 { return float64(n) / d.Seconds() }
		time.Sleep(time.Second)
		before, start := reads.Load(), time.Now()
		time.Sleep(3 * time.Second)
		without := rate(time.Since(start), reads.Load()-before)
		var with, bundles float64
		for b.Loop() {
			before, start = reads.Load(), time.Now()
			bundles = epoch(b)
			with = rate(time.Since(start), reads.Load()-before)
		}
		close(stop)
		wg.Wait()
		b.ReportMetric(bundles, "bundles/s")
		b.ReportMetric(without, "reads/s_without")
		b.ReportMetric(with, "reads/s_with")
		b.ReportMetric(100*with/without, "%left")
	})
}
