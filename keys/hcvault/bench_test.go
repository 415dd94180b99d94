package hcvault_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
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
