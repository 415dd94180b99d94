package hcvault_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/test/conformance"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/vault/kv"
)

const storeMount = "teststore"

// shortLease is long enough for a busy machine and short enough for a test.
const shortLease = 3 * time.Second

// storeSetup makes a role that may keep stores at paths of its own, and returns the configuration of one.
func storeSetup(t testing.TB) hcvault.StoreConfig {
	t.Helper()
	role, cfg := setup(t, hcserver.Setup{})
	if err := server.SetupStore(context.Background(), role, storeMount, role.Key+"/+"); err != nil {
		t.Fatal(err)
	}
	return hcvault.StoreConfig{KEK: mustOpen(t, cfg), Mount: storeMount, Path: role.Key + "/main", Instance: "test", Lease: shortLease, Logger: cfg.Logger}
}

func mustCreateStore(t testing.TB, cfg hcvault.StoreConfig) *hcvault.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := hcvault.CreateStore(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s
}

func mustOpenStore(t testing.TB, cfg hcvault.StoreConfig) *hcvault.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := hcvault.OpenStore(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s
}

func closeAtEnd(t testing.TB, s *hcvault.Store) {
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// storeEngine gives each store a path of its own. They share a login.
func storeEngine(t testing.TB) conformance.KVEngine {
	t.Helper()
	base := storeSetup(t)
	base.Lease, base.Logger, base.CacheRows = 0, nil, 100
	n := 0
	configs := map[kv.Store]hcvault.StoreConfig{}
	return conformance.KVEngine{
		New: func(t testing.TB) kv.Store {
			t.Helper()
			n++
			cfg := base
			cfg.Path = fmt.Sprintf("%s%d", base.Path, n)
			s, err := hcvault.CreateStore(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			configs[s] = cfg
			return s
		},
		Reopen: func(t testing.TB, s kv.Store) kv.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			again, err := hcvault.OpenStore(context.Background(), configs[s])
			if err != nil {
				t.Fatal(err)
			}
			configs[again] = configs[s]
			return again
		},
	}
}

func TestKV(t *testing.T) { conformance.KV(t, storeEngine(t)) }
