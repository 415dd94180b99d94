package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

var (
	errStore = errors.New("key store")
	errKEK   = errors.New("key-encryption key")
)

// storeKind is written into the store, so that a data store is never taken for a key store.
const storeKind = "keys"

// storeOptions keep the engine small: a million bundles are some 500 MB on disk, of which the page cache
// holds what is in use, and the keyring has a cache of its own.
func storeOptions(c Config, log *slog.Logger) badgerkv.Options {
	return badgerkv.Options{
		Dir: c.Store.Dir, Kind: storeKind, Logger: log,
		MemTableSize: 16 << 20, NumMemtables: 2,
	}
}

// openKEK returns the KEK and what closes it.
func openKEK(ctx context.Context, c Config, log *slog.Logger) (keyring.KEK, func() error, error) {
	if c.KEK.Type == kekLocal {
		k, err := localkek.Open(c.KEK.Local.Path)
		if notExist(err) {
			return nil, nil, fmt.Errorf("%w: there is no root key %s; create it with pdkeys init, or restore it: %w", errStore, c.KEK.Local.Path, err)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errKEK, err)
		}
		return k, func() error { return nil }, nil
	}
	h := c.KEK.HCVault
	role, err := os.ReadFile(h.AppRole.RoleIDFile)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: reading role id: %w", errKEK, err)
	}
	var epoch hcvault.Role
	if h.Epoch != (AppRole{}) {
		id, err := os.ReadFile(h.Epoch.RoleIDFile)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: reading role id of the epoch: %w", errKEK, err)
		}
		epoch = hcvault.Role{RoleID: string(bytes.TrimSpace(id)), SecretIDFile: h.Epoch.SecretIDFile, Wrapped: h.Epoch.Wrapped}
	}
	k, err := hcvault.Open(ctx, hcvault.Config{
		Address: h.Address, AllowHTTP: h.AllowPlainHTTPOnLoopback, CAFile: h.CAFile, ServerName: h.ServerName, Namespace: h.Namespace,
		Mount: h.Mount, Key: h.Key,
		AppRoleMount: h.AppRole.Mount, RoleID: string(bytes.TrimSpace(role)), SecretIDFile: h.AppRole.SecretIDFile, Wrapped: h.AppRole.Wrapped,
		Epoch:  epoch,
		Logger: log,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errKEK, err)
	}
	return k, k.Close, nil
}

func keyringConfig(c Config, kek keyring.KEK, store kv.Store, log *slog.Logger) keyring.Config {
	return keyring.Config{
		Instance: c.Instance, KEK: kek, Store: store, CacheSize: c.Cache.Size, CacheTTL: c.Cache.TTL, Logger: log,
		WitnessOverlap: time.Duration(c.WitnessOverlap),
	}
}

// withEpochs lets a keyring that is being served carry out epochs. Who works on a key store that is not served must
// not: an epoch belongs to the running sidecar.
func withEpochs(c Config, cfg keyring.Config) keyring.Config {
	switch k := cfg.KEK.(type) {
	case *localkek.KEK:
		cfg.Epochs = k
	case *hcvault.KEK:
		if e := k.Epochs(); e != nil {
			cfg.Epochs = e
		}
	}
	cfg.EpochInterval = c.epochInterval()
	return cfg
}

// storeError says what to do about a key store that does not open.
func storeError(c Config, err error) error {
	switch {
	case notExist(err), errors.Is(err, hcvault.ErrNoStore):
		return fmt.Errorf("%w: there is none in %s; create it with pdkeys init, or restore it: %w", errStore, c.storeName(), err)
	case errors.Is(err, keys.ErrUnavailable): // only of a store in HashiCorp Vault; a later start may succeed
		return fmt.Errorf("key store: %w", err)
	}
	return fmt.Errorf("%w: %w", errStore, err)
}

// createRootKey makes the root-key file of a local KEK and reports whether it did. A file that is there is
// refused, since it may wrap the keys of another store.
func createRootKey(c Config) (made bool, err error) {
	if c.KEK.Type != kekLocal {
		return false, nil
	}
	// A store that exists is found before a new root key lies beside it.
	if names, err := os.ReadDir(c.Store.Dir); err == nil && len(names) > 0 {
		return false, fmt.Errorf("%w: %s is not empty", errStore, c.Store.Dir)
	}
	if err := localkek.Create(c.KEK.Local.Path); err != nil {
		return false, fmt.Errorf("%w: %w", errKEK, err)
	}
	return true, nil
}
