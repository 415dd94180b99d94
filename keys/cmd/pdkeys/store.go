package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

const (
	storeBadger  = "badger"
	storeHCVault = "hcvault"
)

var errStoreKEK = errors.New("a key store in HashiCorp Vault needs a KEK there")

// openStore opens the key store of the configuration. One in HashiCorp Vault uses the login of the KEK, so it
// is closed before that.
func openStore(ctx context.Context, c Config, kek keyring.KEK, log *slog.Logger) (kv.Store, error) {
	if c.Store.Type == storeHCVault {
		return hcStore(ctx, c, kek, log, hcvault.OpenStore)
	}
	return opened(badgerkv.Open(ctx, storeOptions(c, log)))
}

// createStore makes what openStore opens. It never replaces anything.
func createStore(ctx context.Context, c Config, kek keyring.KEK, log *slog.Logger) (kv.Store, error) {
	if c.Store.Type == storeHCVault {
		return hcStore(ctx, c, kek, log, hcvault.CreateStore)
	}
	return opened(badgerkv.Create(ctx, storeOptions(c, log)))
}

func hcStore(ctx context.Context, c Config, kek keyring.KEK, log *slog.Logger, open func(context.Context, hcvault.StoreConfig) (*hcvault.Store, error)) (kv.Store, error) {
	k, ok := kek.(*hcvault.KEK)
	if !ok {
		return nil, errStoreKEK
	}
	return opened(open(ctx, hcvault.StoreConfig{
		KEK: k, Mount: c.Store.HCVault.Mount, Path: c.Store.HCVault.Path, Instance: c.Instance, Logger: log,
	}))
}

// opened keeps a nil pointer from becoming a store.
func opened[S kv.Store](s S, err error) (kv.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// checkStore is the part of check about the key store.
func (c *Config) checkStore(need func(ok bool, format string, args ...any)) {
	switch h := c.Store.HCVault; c.Store.Type {
	case "", storeBadger:
		need(c.Store.Dir != "", "store.dir is missing")
		need(h.Mount == "" && h.Path == "", "store.hcvault is given, but store.type is not hcvault")
	case storeHCVault:
		need(c.Store.Dir == "", "store.dir is given, but store.type is hcvault")
		need(h.Path != "", "store.hcvault.path is missing")
		need(c.KEK.Type == kekHCVault, "store.type is hcvault, so kek.type must be: the store uses its address and login")
	default:
		need(false, "store.type: want %s or %s", storeBadger, storeHCVault)
	}
}

// storeName says where the key store is, for people.
func (c *Config) storeName() string {
	if c.Store.Type == storeHCVault {
		return "HashiCorp Vault at path " + c.Store.HCVault.Path
	}
	return c.Store.Dir
}

// ownedPath is what belongs to the sidecar's user: the key store or, when that is no directory, the directory
// of the socket.
func (c *Config) ownedPath() string {
	if c.Store.Type == storeHCVault {
		return filepath.Dir(c.Socket.Path)
	}
	return c.Store.Dir
}
