package keyring_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// The benchmarks run on the engine that is used, and on the one in memory, which shows what the keyring
// itself costs.
func engines(b *testing.B, run func(b *testing.B, store kv.Store)) {
	b.Run("badger", func(b *testing.B) {
		s, err := badgerkv.Create(context.Background(), badgerkv.Options{Dir: filepath.Join(b.TempDir(), "keys"),
			Space: badgerkv.Space{ReadOnly: -1, Reserve: -1, Ballast: -1}})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		run(b, s)
	})
	b.Run("memory", func(b *testing.B) { run(b, memkv.New()) })
}

func benchRing(b *testing.B, store kv.Store, cacheSize int) *keyring.Keyring {
	b.Helper()
	path := filepath.Join(b.TempDir(), "root-key")
	if err := localkek.Create(path); err != nil {
		b.Fatal(err)
	}
	kek, err := localkek.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	k, err := keyring.Create(context.Background(), keyring.Config{Instance: "bench", KEK: kek, Store: store, CacheSize: cacheSize})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = k.Close() })
	return k
}

// sixFields is the record of design.md, 6 fields of some 30 bytes.
func sixFields(subject uuid.UUID, create bool) keyring.SealSubject {
	s := keyring.SealSubject{Subject: subject, Create: create}
	for _, f := range []string{"email", "phone", "name", "address", "birthdate", "locale"} {
		s.Fields = append(s.Fields, keyring.SealField{Collection: "profile", Field: f, Version: 1,
			Plaintext: []byte(`"some thirty bytes of a value"`)})
	}
	s.Fields[0].Index = []keyring.IndexValue{{Collection: "profile", Field: "email", Normaliser: 1, Value: "a@example.org"}}
	return s
}

func mustSeal(b *testing.B, k *keyring.Keyring, subjects []keyring.SealSubject) []keyring.SealedSubject {
	b.Helper()
	out, err := k.Seal(context.Background(), subjects)
	if err != nil {
		b.Fatal(err)
	}
	for i := range out {
		if out[i].Err != nil {
			b.Fatal(out[i].Err)
		}
	}
	return out
}

// people makes n subjects and what opens their records.
func people(b *testing.B, k *keyring.Keyring, n int) []keyring.OpenSubject {
	b.Helper()
	records := make([]keyring.OpenSubject, 0, n)
	for len(records) < n {
		batch := make([]keyring.SealSubject, min(1000, n-len(records)))
		for i := range batch {
			batch[i] = sixFields(uuid.New(), true)
		}
		for i, s := range mustSeal(b, k, batch) {
			o := keyring.OpenSubject{Subject: batch[i].Subject, Collection: "profile", Version: 1}
			for j, f := range s.Fields {
				o.Fields = append(o.Fields, keyring.OpenField{Field: batch[i].Fields[j].Field, Ciphertext: f.Ciphertext})
			}
			records = append(records, o)
		}
	}
	return records
}

// perItem reports the cost of one subject beside that of one call.
func perItem(b *testing.B, batch int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/subject")
	b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "subjects/s")
}

func BenchmarkCreate(b *testing.B) {
	for _, c := range []struct {
		name  string
		batch int
	}{{"1", 1}, {"32", 32}, {"1000", 1000}} {
		b.Run(c.name, func(b *testing.B) {
			engines(b, func(b *testing.B, store kv.Store) {
				k := benchRing(b, store, 0)
				b.ReportAllocs()
				for b.Loop() {
					subjects := make([]keyring.SealSubject, c.batch)
					for i := range subjects {
						subjects[i] = sixFields(uuid.New(), true)
					}
					mustSeal(b, k, subjects)
				}
				perItem(b, c.batch)
			})
		})
	}
}

// Concurrent creations of one subject each, which share transactions and calls to the KEK.
func BenchmarkCreateConcurrent(b *testing.B) {
	engines(b, func(b *testing.B, store kv.Store) {
		k := benchRing(b, store, 0)
		b.SetParallelism(16) // 32 on two cores
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				mustSeal(b, k, []keyring.SealSubject{sixFields(uuid.New(), true)})
			}
		})
		perItem(b, 1)
	})
}

func BenchmarkSeal(b *testing.B) {
	engines(b, func(b *testing.B, store kv.Store) {
		k := benchRing(b, store, 0)
		records := people(b, k, 1000)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			mustSeal(b, k, []keyring.SealSubject{sixFields(records[i%len(records)].Subject, false)})
			i++
		}
		perItem(b, 1)
	})
}

func benchOpen(b *testing.B, k *keyring.Keyring, records []keyring.OpenSubject, batch int) {
	b.ReportAllocs()
	at := 0
	for b.Loop() {
		if at+batch > len(records) {
			at = 0
		}
		out, err := k.Open(context.Background(), records[at:at+batch])
		if err != nil {
			b.Fatal(err)
		}
		for i := range out {
			if out[i].Err != nil {
				b.Fatal(out[i].Err)
			}
		}
		at += batch
	}
	perItem(b, batch)
}

func BenchmarkOpenWarm(b *testing.B) {
	for _, c := range []struct {
		name  string
		batch int
	}{{"1", 1}, {"32", 32}} {
		b.Run(c.name, func(b *testing.B) {
			engines(b, func(b *testing.B, store kv.Store) {
				k := benchRing(b, store, 0)
				benchOpen(b, k, people(b, k, 8_000), c.batch)
			})
		})
	}
}

// Cold with the KEK in a file: a cache that holds next to nothing.
func BenchmarkOpenCold(b *testing.B) {
	for _, c := range []struct {
		name  string
		batch int
	}{{"1", 1}, {"32", 32}, {"1000", 1000}} {
		b.Run(c.name, func(b *testing.B) {
			engines(b, func(b *testing.B, store kv.Store) {
				k := benchRing(b, store, 1)
				benchOpen(b, k, people(b, k, 8_000), c.batch)
			})
		})
	}
}

// A rotation of everybody: a new key each and six fields sealed again, then the old key dropped, in batches.
func BenchmarkRotate(b *testing.B) {
	const batch = 500
	engines(b, func(b *testing.B, store kv.Store) {
		k := benchRing(b, store, 0)
		subjects := make([]keyring.ResealSubject, 0, batch)
		ids := make([]uuid.UUID, 0, batch)
		for _, o := range people(b, k, batch) {
			s := keyring.ResealSubject{Subject: o.Subject}
			for _, f := range o.Fields {
				s.Items = append(s.Items, keyring.ResealItem{Kind: keyring.ItemField, Collection: "profile", Field: f.Field,
					Version: 1, Ciphertext: f.Ciphertext})
			}
			subjects, ids = append(subjects, s), append(ids, o.Subject)
		}
		rotation := uint32(0)
		b.ResetTimer()
		for b.Loop() {
			rotation++
			out, err := k.Reseal(context.Background(), rotation, subjects)
			if err != nil {
				b.Fatal(err)
			}
			for i := range out {
				if out[i].Err != nil {
					b.Fatal(out[i].Err)
				}
				for n, c := range out[i].Ciphertexts {
					subjects[i].Items[n].Ciphertext = c
				}
			}
			errs, err := k.Retire(context.Background(), rotation, ids)
			if err != nil {
				b.Fatal(err)
			}
			for _, err := range errs {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
		perItem(b, batch)
	})
}

// What a second index key costs while an index rotation is under way.
func BenchmarkIndex(b *testing.B) {
	k := benchRing(b, memkv.New(), 0)
	values := []keyring.IndexValue{{Collection: "profile", Field: "email", Normaliser: 1, Value: "a@example.org"}}
	for _, name := range []string{"1 key", "2 keys"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Index(context.Background(), values); err != nil {
					b.Fatal(err)
				}
			}
		})
		if _, err := k.BeginIndex(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
