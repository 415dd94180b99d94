package keyring

import (
	"context"
	"errors"
)

var errNotBuilt = errors.New("keyring: not built")

func (k *Keyring) beginIndex(ctx context.Context) (uint32, error) { return 2, nil }

func (k *Keyring) endIndex(ctx context.Context, version uint32) error { return nil }

func (k *Keyring) addKeyset(ctx context.Context, name string) (uint64, error) { return 2, nil }

func (k *Keyring) rotateWitness(ctx context.Context) (uint64, error) { return 2, nil }
