package keyring

import (
	"context"
	"io"
)

// Cached is how many bundles are unwrapped now.
func (k *Keyring) Cached() int { return k.cache.len() }

// KeyBundle is where a subject's row lies, for tests that move rows.
var KeyBundle = keyBundle

// KeyKeyset is where a keyset of the instance lies.
var KeyKeyset = keyKeyset

// KeyGeneration is where the counter lies.
var KeyGeneration = keyGeneration

// KeyTombstone is where a destroyed subject's tombstone lies.
var KeyTombstone = keyTombstone

// KeyFloor is where the floor lies.
var KeyFloor = keyFloor

// MaxBundleKeys is how many keys a bundle may have.
const MaxBundleKeys = maxBundleKeys

// What jobs call.
func (k *Keyring) BeginIndex(ctx context.Context) (uint32, error) { return k.beginIndex(ctx) }
func (k *Keyring) EndIndex(ctx context.Context, version uint32) error {
	return k.endIndex(ctx, version)
}
func (k *Keyring) RotateWitness(ctx context.Context) (uint64, error) { return k.rotateWitness(ctx) }
func (k *Keyring) AddKeyset(ctx context.Context, name string) (uint64, error) {
	return k.addKeyset(ctx, name)
}

// Refresh is what the sweeper does to the instance's keysets.
func (k *Keyring) Refresh(ctx context.Context) error { return k.refresh(ctx) }

// KeyVersions lists the keys of the instance.
func (k *Keyring) KeyVersions() []KeyVersion {
	in, err := k.current()
	if err != nil {
		return nil
	}
	return in.keyVersions()
}

// RowOf tells rotation and number of keys that a row names.
func RowOf(b []byte) (rotation uint32, keys int, err error) {
	r, err := decodeRow(b)
	return r.rotation, int(r.keys), err
}

// KeyLastEpoch is where the time of the last epoch lies.
var KeyLastEpoch = keyLastEpoch

// Poke makes the keyring look at the schedule at once.
func (k *Keyring) Poke() { k.epochs.poke() }

// WrappedOf is what the KEK gave for a row.
func WrappedOf(b []byte) []byte {
	r, err := decodeRow(b)
	if err != nil {
		return nil
	}
	return r.wrapped
}

// WitnessPrivate returns the private halves of the witness keys themselves, to see whether they are wiped.
func (k *Keyring) WitnessPrivate() [][]byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var out [][]byte
	for _, w := range k.instance.identity.keys {
		out = append(out, w.private)
	}
	return out
}

// Restore opens a backup and restores it into the store of cfg, with nothing left to finish.
func Restore(ctx context.Context, cfg Config, from io.ReadSeeker) (Restored, error) {
	b, err := OpenBackup(ctx, cfg, from)
	if err != nil {
		return Restored{}, err
	}
	return b.Restore(ctx, cfg.Store, func(*Keyring) error { return nil })
}
