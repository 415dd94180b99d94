package client_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// prover adapts a ledger.
type prover struct {
	*ledger.Ledger
	t testing.TB
}

var _ client.Prover = prover{}

func (p prover) Checkpoint() ([]byte, int64) {
	s := p.Ledger.Checkpoint()
	return s.Note, s.Size
}

func (p prover) ProveInclusion(ctx context.Context, index, size int64) ([]tlog.Hash, error) {
	return p.Ledger.ProveInclusion(ctx, index, size)
}

func (p prover) Cosigned(size int64, line []byte) {
	if err := p.AddCosignature(size, line); err != nil {
		p.t.Errorf("cosignature at %d: %v", size, err)
	}
}

// realWorld is a sidecar bound to a real ledger, and a client between the two.
func realWorld(t testing.TB, keyStore, dataStore kv.Store) (*sidecartest.World, *ledger.Ledger, *client.Client) {
	t.Helper()
	w := sidecartest.NewOn(t, keyStore)
	w.Serve()
	c, err := client.Dial(t.Context(), client.Config{Socket: w.Socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	witness, err := verify.NewCosignatureVerifier(st.WitnessKey)
	if err != nil {
		t.Fatal(err)
	}
	secret, key, err := note.GenerateKey(rand.Reader, sidecartest.Origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Create(t.Context(), ledger.Config{
		Store: dataStore, Origin: sidecartest.Origin, Signer: signer, Verifier: verifier, Witnesses: []note.Verifier{witness},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), dataStore.Close()); err != nil {
			t.Errorf("closing the ledger: %v", err)
		}
	})
	if err := c.Bind(t.Context(), sidecartest.Origin, key); err != nil {
		t.Fatal(err)
	}
	c.SetProver(prover{l, t})
	return w, l, c
}

// recordAndOpen does what a read does: an access record, and then the ciphertext.
func recordAndOpen(ctx context.Context, w *sidecartest.World, l *ledger.Ledger, c *client.Client, r record) error {
	receipt, err := l.Append(ctx, accessEntry(w, r), nil)
	if err != nil {
		return err
	}
	return r.open(ctx, c, receipt.Index, receipt.Entry)
}

func accessEntry(w *sidecartest.World, r record) verify.Entry {
	e, err := verify.ParseEntry(w.Entry(r.ref, []string{"email"}, nil))
	if err != nil {
		w.T.Errorf("entry: %v", err)
	}
	return e
}

func TestWithARealLedger(t *testing.T) {
	w, l, c := realWorld(t, memkv.New(), memkv.New())
	if _, err := c.Witness(t.Context()); err != nil {
		t.Fatalf("witnessing the empty ledger: %v", err)
	}
	r := newRecord(w)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 50 {
				if err := recordAndOpen(t.Context(), w, l, c, r); err != nil {
					t.Errorf("read: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if _, err := c.Witness(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cosigned := l.Cosigned(); cosigned.Size != 800 {
		t.Errorf("cosigned %d entries, want 800", cosigned.Size)
	}
}

// BenchmarkOpen opens one field against records that are in the log already, under one checkpoint: the call
// alone, with the gate and without a write to the key store.
func BenchmarkOpen(b *testing.B) {
	for _, callers := range []int{1, 32, 256} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			w := sidecartest.New(b)
			c := dial(b, w, nil)
			r := newRecord(w)
			entries := make([][]byte, b.N)
			for i := range entries {
				entries[i] = w.Entry(r.ref, []string{"email"}, nil)
			}
			first := w.Log.AppendAll(entries)
			if _, err := c.Witness(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			parallel(b, callers, func(i int) error { return r.open(b.Context(), c, first+int64(i), entries[i]) })
		})
	}
}

// BenchmarkRecordAndOpen does what a read does, over Badger with synced writes for ledger and key store: an
// access record is made durable, then the sidecar makes its checkpoint durable, then it opens.
func BenchmarkRecordAndOpen(b *testing.B) {
	store := func(b *testing.B, kind string) kv.Store {
		s, err := badgerkv.Create(b.Context(), badgerkv.Options{
			Dir: b.TempDir() + "/" + kind, Kind: kind, MemTableSize: 8 << 20, Space: badgerkv.Space{ReadOnly: -1, Reserve: -1, Ballast: -1},
		})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	for _, callers := range []int{1, 32, 256} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			w, l, c := realWorld(b, store(b, "keys"), store(b, "data"))
			r := newRecord(w)
			b.ReportAllocs()
			b.ResetTimer()
			parallel(b, callers, func(int) error { return recordAndOpen(b.Context(), w, l, c, r) })
		})
	}
}

// parallel calls f for 0 to b.N-1 from that many goroutines.
func parallel(b *testing.B, callers int, f func(i int) error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= b.N {
					return
				}
				if err := f(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
