package memkv_test

import (
	"context"
	"testing"

	"github.com/prototypster/pdvault/test/conformance"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

var engine = conformance.KVEngine{New: func(testing.TB) kv.Store { return memkv.New() }}

func TestKV(t *testing.T) { conformance.KV(t, engine) }

func BenchmarkKV(b *testing.B) { conformance.BenchmarkKV(b, engine) }

func TestUseAfterTransactionPanics(t *testing.T) {
	s := memkv.New()
	var r kv.Reader
	var w kv.Writer
	_ = s.View(context.Background(), func(got kv.Reader) error { r = got; return nil })
	_ = s.Update(context.Background(), func(got kv.Writer) error { w = got; return nil })
	for name, use := range map[string]func(){
		"Get of a Reader":    func() { _, _ = r.Get([]byte("k")) },
		"Scan of a Reader":   func() { _, _ = r.Scan(nil, nil, 1) },
		"Get of a Writer":    func() { _, _ = w.Get([]byte("k")) },
		"Set of a Writer":    func() { w.Set([]byte("k"), nil) },
		"Delete of a Writer": func() { w.Delete([]byte("k")) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s after the transaction did not panic", name)
				}
			}()
			use()
		}()
	}
}
