package badgerkv_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/prototypster/pdvault/test/conformance"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

// small are options for a store of a test: no demands on the machine's disk, and a few megabytes of memory.
func small(t testing.TB, dir string) badgerkv.Options {
	return badgerkv.Options{
		Dir:          dir,
		Kind:         "test",
		Logger:       slog.New(slog.DiscardHandler),
		Fatal:        func(err error) { t.Errorf("store would have ended the process: %v", err) },
		Space:        badgerkv.Space{ReadOnly: -1, Reserve: -1, Ballast: -1},
		MemTableSize: 8 << 20,
	}
}

func engine() conformance.KVEngine {
	dirs := map[kv.Store]string{}
	open := func(t testing.TB, dir string, open func(context.Context, badgerkv.Options) (*badgerkv.Store, error)) kv.Store {
		t.Helper()
		s, err := open(context.Background(), small(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		dirs[s] = dir
		return s
	}
	return conformance.KVEngine{
		New: func(t testing.TB) kv.Store { return open(t, filepath.Join(t.TempDir(), "store"), badgerkv.Create) },
		Reopen: func(t testing.TB, s kv.Store) kv.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, dirs[s], badgerkv.Open)
		},
	}
}

func TestKV(t *testing.T) { conformance.KV(t, engine()) }

func BenchmarkKV(b *testing.B) { conformance.BenchmarkKV(b, engine()) }
