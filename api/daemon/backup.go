package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

// backupPage is how many rows are read at once. It bounds the memory of a backup, together with
// kv.MaxValueSize.
const backupPage = 64

// leftOut reports whether backups leave out the rows whose keys begin with b: the blind index, which a restore
// makes again, and outcomes of idempotency keys, which are of no use later.
func leftOut(b byte) bool {
	key := []byte{b}
	return vault.IsIndexRow(key) || access.IsIdempotencyRow(key)
}

// Backup writes an archive of the data store to w, as one snapshot shows it, while the instance serves. What it
// holds is ciphertext and ledger: no key, and nothing that opens without the key store. The manifest at its end
// is signed with every key that the ledger in it signs with. A second backup at the same time is refused with access.ErrBusy.
func (d *Daemon) Backup(ctx context.Context, w io.Writer) error {
	if !d.backingUp.TryLock() {
		return access.ErrBusy
	}
	defer d.backingUp.Unlock()
	start := time.Now()
	header := archive.NewHeader(archive.KindData, d.config.Instance, start)
	header.Store = d.store.ID()
	sum, err := writeBackup(ctx, d.store, header, w, d.sidecar, d.sidecar.Generation())
	if err != nil {
		d.log.Error("backup failed", "id", header.ID, "error", err)
		return err
	}
	d.log.Info("backup was taken", "id", header.ID, "rows", sum.Count, "bytes", sum.Bytes, "took", time.Since(start))
	return nil
}

func writeBackup(ctx context.Context, store kv.Store, header archive.Header, w io.Writer, sidecar protector, generation uint64) (sum archive.Summary, err error) {
	err = store.View(ctx, func(r kv.Reader) error {
		// The keys of the snapshot, not those that sign by now: who restores it goes on with these.
		id, err := readIdentity(r)
		if err != nil {
			return err
		}
		keys, err := id.keys(ctx, sidecar)
		if err != nil {
			return err
		}
		stored, err := r.Get(ledger.CheckpointKey())
		if err != nil {
			return fmt.Errorf("reading the checkpoint: %w", err)
		}
		checkpoint, err := ledger.StoredCheckpoint(stored[0])
		if err != nil {
			return err
		}
		raw, err := archive.WriteHeader(w, header)
		if err != nil {
			return err
		}
		out := archive.NewWriter(w, raw)
		for b := range 256 {
			if leftOut(byte(b)) {
				continue
			}
			if err := copyRows(ctx, r, byte(b), out); err != nil {
				return err
			}
		}
		sum, err = out.Close(func(sum archive.Summary) ([]byte, error) {
			manifest := verify.Backup{
				Instance: header.Instance, ID: header.ID.String(), Created: header.Created, Count: sum.Count,
				Digest: tlog.Hash(sum.Digest), Ledger: checkpoint.Checkpoint, Generation: generation,
			}
			signers := make([]note.Signer, len(keys))
			for i, k := range keys {
				signers[i] = k.Signer
			}
			signed, err := note.Sign(&note.Note{Text: manifest.Format()}, signers...)
			if err != nil {
				return nil, fmt.Errorf("signing the manifest: %w", err)
			}
			return signed, nil
		})
		return err
	})
	return sum, err
}

// copyRows adds the rows whose keys begin with b.
func copyRows(ctx context.Context, r kv.Reader, b byte, out *archive.Writer) error {
	var last []byte
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("taking a backup: %w", context.Cause(ctx))
		}
		pairs, err := r.Scan([]byte{b}, last, backupPage)
		if err != nil {
			return fmt.Errorf("reading rows: %w", err)
		}
		for _, p := range pairs {
			last = p.Key
			if bytes.Equal(p.Key, generationKey) {
				continue // a mark of this store, not of its content
			}
			if err := out.Add(p.Key, p.Value); err != nil {
				return err
			}
		}
		if len(pairs) < backupPage {
			return nil
		}
	}
}
