package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

// checkTarget demands that there is nothing to lose where the key store is to be restored. Of one in HashiCorp Vault
// that is found out when it is opened, still before anything is written.
func checkTarget(c Config) error {
	if c.Store.Type == storeHCVault {
		return nil
	}
	names, err := os.ReadDir(c.Store.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: %s is not empty, nothing was touched", errStore, c.Store.Dir)
	}
	return nil
}

// restoreInto has fill restore into a new store. In a directory, it is built beside the one that is wanted and takes
// its name when it is complete; in HashiCorp Vault it is built in its place, where the mark of the keyring keeps it
// from being opened until then.
func restoreInto(ctx context.Context, c Config, kek keyring.KEK, log *slog.Logger, fill func(kv.Store) (keyring.Restored, error)) (out keyring.Restored, err error) {
	if c.Store.Type == storeHCVault {
		store, err := createStore(ctx, c, kek, log)
		if errors.Is(err, hcvault.ErrStoreExists) { // also one that an interrupted restore has left
			store, err = openStore(ctx, c, kek, log)
		}
		if err != nil {
			return out, storeError(c, err)
		}
		if out, err = fillAndClose(store, fill); errors.Is(err, keyring.ErrNotEmpty) {
			return out, fmt.Errorf("%w: there is a key store in %s, nothing was touched: %w", errStore, c.storeName(), err)
		}
		return out, err
	}
	final := c.Store.Dir
	c.Store.Dir = filepath.Clean(final) + ".restoring"
	if err := os.RemoveAll(c.Store.Dir); err != nil {
		return out, fmt.Errorf("%w: removing an interrupted restore: %w", errStore, err)
	}
	store, err := createStore(ctx, c, kek, log)
	if err != nil {
		return out, fmt.Errorf("%w: %w", errStore, err)
	}
	if out, err = fillAndClose(store, fill); err != nil {
		return out, errors.Join(err, os.RemoveAll(c.Store.Dir))
	}
	if err := badgerkv.Rename(c.Store.Dir, final); err != nil {
		return out, fmt.Errorf("%w: %w", errStore, err)
	}
	return out, nil
}

func fillAndClose(store kv.Store, fill func(kv.Store) (keyring.Restored, error)) (keyring.Restored, error) {
	out, err := fill(store)
	return out, errors.Join(err, store.Close())
}
