package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/streamingaead"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

var (
	// ErrBackupDead is returned by Restore for a backup that is older than the last epoch: its key, or keys in it,
	// are wrapped under a version of the KEK that was destroyed, so nobody can open them any more.
	ErrBackupDead = errors.New("keyring: backup is older than the last epoch: what it holds is dead")
	// ErrBackupForeign is returned by Restore for a backup of another instance or KEK.
	ErrBackupForeign = errors.New("keyring: backup is of another instance or key-encryption key")
)

// A backup of the key store is an archive (package archive) of all its rows, encrypted behind the header:
//
//	header, in clear, with the wrapped key ‖ Tink streaming AEAD (AES256-GCM-HKDF, segments of 1 MiB) of the blocks
//
// The key is made for one backup. The KEK wraps it under backupContext, so the backup dies when the KEK's version is
// retired. The associated data is the header, byte for byte. Example of the header's JSON:
//
//	{"kind":"keys","instance":"main","id":"0199…","created":"…","key":{"kek":"hcvault","version":7,"wrapped":"…"}}

// backupContext binds the key of a backup to the backup.
func backupContext(instance string, id uuid.UUID) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), []byte("backup"), id[:])
}

const (
	backupPage  = 256     // rows read at once
	backupBlock = 1 << 20 // of what buffers the stream
)

// Backup writes an encrypted archive of the key store to w, as one snapshot shows it, while the keyring is in use.
// The bundles in it stay wrapped as they are; whoever would restore it needs the KEK.
func (k *Keyring) Backup(ctx context.Context, w io.Writer) error {
	if _, err := k.current(); err != nil {
		return err
	}
	header := archive.NewHeader(archive.KindKeys, k.cfg.Instance, k.cfg.Now())
	primitive, wrapped, err := newBackupKey(ctx, k.cfg, header.ID)
	if err != nil {
		return fmt.Errorf("backing up the key store: %w", err)
	}
	version, err := k.cfg.KEK.Version(wrapped)
	if err != nil {
		return fmt.Errorf("backing up the key store: %w", err)
	}
	header.Key = &archive.Key{KEK: k.cfg.KEK.Name(), Version: version, Wrapped: wrapped}
	var sum archive.Summary
	err = k.store.View(ctx, func(r kv.Reader) error {
		raw, err := archive.WriteHeader(w, header)
		if err != nil {
			return err
		}
		sealed, err := primitive.NewEncryptingWriter(w, raw)
		if err != nil {
			return fmt.Errorf("encrypting: %w", err)
		}
		rows := archive.NewWriter(sealed, raw)
		err = eachRow(ctx, r, nil, func(p kv.Pair) error { return rows.Add(p.Key, p.Value) })
		if err != nil {
			return err
		}
		if sum, err = rows.Close(nil); err != nil {
			return err
		}
		if err := sealed.Close(); err != nil {
			return fmt.Errorf("writing an archive: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("backing up the key store: %w", err)
	}
	k.cfg.Logger.Info("key store was backed up", "id", header.ID, "items", sum.Count, "bytes", sum.Bytes, "version", version)
	return nil
}

// eachRow calls f for every row under prefix.
func eachRow(ctx context.Context, r kv.Reader, prefix []byte, f func(kv.Pair) error) error {
	var last []byte
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pairs, err := r.Scan(prefix, last, backupPage)
		if err != nil {
			return storeError("reading", err)
		}
		for _, p := range pairs {
			last = p.Key
			if err := f(p); err != nil {
				return err
			}
		}
		if len(pairs) < backupPage {
			return nil
		}
	}
}

// newBackupKey makes the key of one backup, ready and wrapped.
func newBackupKey(ctx context.Context, cfg Config, id uuid.UUID) (tink.StreamingAEAD, []byte, error) {
	handle, err := keyset.NewHandle(streamingaead.AES256GCMHKDF1MBKeyTemplate())
	if err != nil {
		return nil, nil, fmt.Errorf("making a keyset: %w", err)
	}
	primitive, err := streamingaead.New(handle)
	if err != nil {
		return nil, nil, fmt.Errorf("making a primitive: %w", err)
	}
	buf := bytes.NewBuffer(make([]byte, 0, 512)) // large enough not to be copied when it grows
	defer func() { clear(buf.Bytes()) }()
	if err := insecurecleartextkeyset.Write(handle, keyset.NewBinaryWriter(buf)); err != nil {
		return nil, nil, fmt.Errorf("serialising a keyset: %w", err)
	}
	wrapped, err := callKEK(ctx, cfg.KEK.Wrap, []KEKItem{{backupContext(cfg.Instance, id), buf.Bytes()}})
	if err != nil {
		return nil, nil, fmt.Errorf("wrapping the key of a backup: %w", err)
	}
	return primitive, wrapped[0], nil
}

// openBackupKey is the inverse of newBackupKey.
func openBackupKey(ctx context.Context, cfg Config, h archive.Header) (tink.StreamingAEAD, error) {
	clear, err := callKEK(ctx, cfg.KEK.Unwrap, []KEKItem{{backupContext(cfg.Instance, h.ID), h.Key.Wrapped}})
	switch {
	case isOf(err, keys.ErrKEKRetired):
		return nil, fmt.Errorf("its key is wrapped under version %d: %w", h.Key.Version, ErrBackupDead)
	case isOf(err, keys.ErrTampered):
		return nil, fmt.Errorf("its key was not wrapped for it by this key-encryption key: %w", ErrBackupForeign)
	case err != nil:
		return nil, fmt.Errorf("unwrapping the key of the backup: %w", err)
	}
	defer wipeAll(clear)
	handle, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(clear[0])))
	if err != nil {
		return nil, fmt.Errorf("key of the backup: %w", archive.ErrDamaged)
	}
	want := streamingaead.AES256GCMHKDF1MBKeyTemplate().GetTypeUrl()
	for _, info := range handle.KeysetInfo().GetKeyInfo() {
		if info.GetTypeUrl() != want {
			return nil, fmt.Errorf("key of the backup is of another type: %w", archive.ErrDamaged)
		}
	}
	primitive, err := streamingaead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("key of the backup: %w", archive.ErrDamaged)
	}
	return primitive, nil
}
