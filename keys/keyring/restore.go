package keyring

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

// ErrRestoring is returned by Open for a key store in which a restore was interrupted. Begun again, it clears what
// there is.
var ErrRestoring = errors.New("keyring: a restore of the key store was interrupted, begin it again")

// Restored says what a restore has put back.
type Restored struct {
	Backup     uuid.UUID
	Created    string // archive.TimeLayout
	Subjects   int64  // bundles
	Destroyed  int64  // tombstones
	Generation uint64 // of the key store from now on
	KEKVersion uint64 // that the backup was made under
}

// restoreShift is where a generation counts restores.
const restoreShift = 48

// BackupFile is a backup that was found whole, of this instance and alive. It belongs to one goroutine.
type BackupFile struct {
	cfg      Config
	from     io.ReadSeeker
	header   archive.Header
	raw      []byte // the header as it was read
	key      tink.StreamingAEAD
	sum      archive.Summary
	instance []byte
	states   map[string][]byte // what SaveState had saved
	restored Restored
}

// OpenBackup reads a backup from its first byte to its last, and refuses one that is damaged, of somebody else or
// dead: ErrBackupDead, ErrBackupForeign, the errors of package archive. It does not use the store of cfg, which may
// be nil. from is read again by Restore.
func OpenBackup(ctx context.Context, cfg Config, from io.ReadSeeker) (*BackupFile, error) {
	cfg, err := cfg.withoutStore()
	if err != nil {
		return nil, err
	}
	if err := selfTest(ctx, cfg); err != nil {
		return nil, fmt.Errorf("restoring the key store: %w", err)
	}
	b := &BackupFile{cfg: cfg, from: from}
	if err := b.inspect(ctx); err != nil {
		return nil, fmt.Errorf("the backup was refused, nothing was touched: %w", err)
	}
	return b, nil
}

// State returns what SaveState had saved under name when the backup was taken, nil if nothing.
func (b *BackupFile) State(name string) []byte { return b.states[name] }

// Restore puts the backup into an empty store, or into one in which a Restore was interrupted, which it clears. Any
// other is left as it is: ErrNotEmpty.
//
// finish is called with the restored keyring when all rows are there. Until it has returned nil, the store is one
// that Open refuses with ErrRestoring: so no sidecar ever serves what finish has yet to take away.
//
// The generation rises above every one that the lost store can have had, so that who has kept its mark takes the
// restored store for what it is. Bundles that were destroyed since the backup are back; see DestroyRefs.
func (b *BackupFile) Restore(ctx context.Context, store kv.Store, finish func(*Keyring) error) (Restored, error) {
	b.cfg.Store, b.cfg.Epochs = store, nil
	if err := b.begin(ctx); err != nil {
		return Restored{}, fmt.Errorf("restoring the key store: %w", err)
	}
	if err := b.write(ctx); err != nil {
		return Restored{}, fmt.Errorf("restoring the key store: %w", err)
	}
	ring, err := open(ctx, b.cfg, true)
	if err != nil {
		return Restored{}, err
	}
	if err := errors.Join(finish(ring), ring.Close()); err != nil {
		return Restored{}, err
	}
	err = store.Update(ctx, func(w kv.Writer) error {
		w.Delete(keyRestoring)
		return nil
	})
	if err != nil {
		return Restored{}, fmt.Errorf("restoring the key store: %w", storeError("writing to", err))
	}
	return b.restored, nil
}

// begin marks the store as one that is being restored, and clears what an interrupted restore has left.
func (b *BackupFile) begin(ctx context.Context) error {
	err := b.cfg.Store.Update(ctx, func(w kv.Writer) error {
		pairs, err := w.Scan(nil, nil, 1)
		if err != nil {
			return storeError("reading", err)
		}
		mark, err := w.Get(keyRestoring)
		if err != nil {
			return storeError("reading", err)
		}
		if len(pairs) > 0 && mark[0] == nil {
			return ErrNotEmpty
		}
		w.Set(keyRestoring, b.header.ID[:])
		return nil
	})
	if err != nil {
		return err
	}
	var after []byte
	for {
		var page []kv.Pair
		err := b.cfg.Store.View(ctx, func(r kv.Reader) (err error) {
			page, err = r.Scan(nil, after, maxCommitChanges)
			return err
		})
		if err != nil {
			return storeError("reading", err)
		}
		if len(page) == 0 {
			return nil
		}
		after = page[len(page)-1].Key
		err = b.cfg.Store.Update(ctx, func(w kv.Writer) error {
			for _, p := range page {
				if !bytes.Equal(p.Key, keyRestoring) {
					w.Delete(p.Key)
				}
			}
			return nil
		})
		if err != nil {
			return storeError("writing to", err)
		}
	}
}

// rows calls f for every pair of the backup, from its beginning, and returns what it came to.
func (b *BackupFile) rows(ctx context.Context, f func(kv.Pair) error) (archive.Summary, error) {
	if _, err := b.from.Seek(int64(len(b.raw)), io.SeekStart); err != nil {
		return archive.Summary{}, fmt.Errorf("reading the backup: %w", err)
	}
	source := &sourceReader{r: b.from}
	clear, err := b.key.NewDecryptingReader(bufio.NewReaderSize(source, backupBlock), b.raw)
	if err != nil {
		return archive.Summary{}, fmt.Errorf("decrypting: %w", archive.ErrDamaged)
	}
	r := archive.NewReader(&authenticReader{clear, source}, b.raw)
	for n := 0; ; n++ {
		if n%backupPage == 0 && ctx.Err() != nil {
			return archive.Summary{}, context.Cause(ctx)
		}
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.Summary(), nil
		}
		if err != nil {
			return archive.Summary{}, err
		}
		if err := f(p); err != nil {
			return archive.Summary{}, err
		}
	}
}

// sourceReader remembers a failure of the file, which Tink does not tell from one of the ciphertext.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// authenticReader makes what fails to decrypt damage. It cannot tell a cut from a flip: both fail in the last
// segment.
type authenticReader struct {
	r      io.Reader
	source *sourceReader
}

func (a *authenticReader) Read(b []byte) (int, error) {
	n, err := a.r.Read(b)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case a.source.err != nil:
		return n, a.source.err
	}
	return n, fmt.Errorf("it does not decrypt, it was changed or cut short: %w", archive.ErrDamaged)
}

// inspect reads the backup from its first byte to its last.
func (b *BackupFile) inspect(ctx context.Context) (err error) {
	if _, err := b.from.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading the backup: %w", err)
	}
	if b.header, b.raw, err = archive.ReadHeader(b.from, archive.KindKeys); err != nil {
		return err
	}
	switch h := b.header; {
	case h.Key == nil:
		return fmt.Errorf("it has no key: %w", archive.ErrDamaged)
	case h.Instance != b.cfg.Instance:
		return fmt.Errorf("it is of instance %q, not of %q: %w", h.Instance, b.cfg.Instance, ErrBackupForeign)
	case h.Key.KEK != b.cfg.KEK.Name():
		return fmt.Errorf("its key-encryption key is %q, not %q: %w", h.Key.KEK, b.cfg.KEK.Name(), ErrBackupForeign)
	}
	if b.key, err = openBackupKey(ctx, b.cfg, b.header); err != nil {
		return err
	}
	c := rowCheck{cfg: b.cfg, keysets: make(map[string]bool), states: make(map[string][]byte), samples: make(map[uint64]KEKItem)}
	if b.sum, err = b.rows(ctx, c.row); err != nil {
		return err
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	b.instance, b.states = c.instance, c.states
	b.restored = Restored{
		Backup: b.header.ID, Created: b.header.Created, Subjects: c.bundles, Destroyed: c.tombstones,
		Generation: (c.generation>>restoreShift + 1) << restoreShift, KEKVersion: b.header.Key.Version,
	}
	return nil
}

// rowCheck checks the rows of a backup as Open would those of a store, and keeps the keysets, and one bundle of each
// version of the KEK. A bundle that was damaged in the store is so in the backup, which is as good as the store was:
// it must not keep everybody's from coming back.
type rowCheck struct {
	cfg                 Config
	instance            []byte
	generation, newest  uint64 // the counter, and the newest in a row
	bundles, tombstones int64
	keysets             map[string]bool
	states              map[string][]byte
	damaged             int64              // bundles that no KEK will unwrap, as far as their form tells
	samples             map[uint64]KEKItem // bundles, by version of the KEK
	wraps               []KEKItem          // the keysets
}

func (c *rowCheck) row(p kv.Pair) error {
	key := string(p.Key)
	switch {
	case key == string(keyRestoring):
		return fmt.Errorf("it was taken of a key store that was being restored: %w", archive.ErrDamaged)
	case key == string(keyGeneration):
		var err error
		c.generation, err = decodeGeneration(p.Value)
		return err
	case key == string(keyInstance):
		c.instance = p.Value
		return nil
	case strings.HasPrefix(key, string(prefixState)):
		c.states[key[len(prefixState):]] = p.Value
	case len(key) > 2 && key[:2] == "k/":
		c.keysets[key[2:]] = true
		wrapped, _, err := c.wrapped(p.Value)
		c.wraps = append(c.wraps, KEKItem{keysetContext(c.cfg.Instance, key[2:]), wrapped})
		return err
	case len(key) == 18 && key[:2] == "b/":
		c.bundles++
		wrapped, version, err := c.wrapped(p.Value)
		if isOf(err, keys.ErrTampered) {
			c.damaged++
			return nil
		}
		if _, seen := c.samples[version]; !seen {
			c.samples[version] = KEKItem{bundleContext(c.cfg.Instance, uuid.UUID(p.Key[2:])), wrapped}
		}
		return err
	case len(key) == 18 && key[:2] == "t/":
		c.tombstones++
	}
	return nil
}

// wrapped takes a row apart. It fails with keys.ErrTampered when the row has not the form of one.
func (c *rowCheck) wrapped(value []byte) (wrapped []byte, version uint64, err error) {
	r, err := decodeRow(value)
	if err != nil {
		return nil, 0, fmt.Errorf("row of the backup: %w", err)
	}
	if r.kek != c.cfg.KEK.Name() {
		return nil, 0, fmt.Errorf("row of another key-encryption key: %w", ErrBackupForeign)
	}
	if version, err = c.cfg.KEK.Version(r.wrapped); err != nil {
		return nil, 0, fmt.Errorf("row of the backup: %w", err)
	}
	c.newest = max(c.newest, r.generation)
	return r.wrapped, version, nil
}

// finish checks what only all rows together tell.
func (c *rowCheck) finish(ctx context.Context) error {
	switch {
	case !bytes.Equal(c.instance, instanceRow(c.cfg.Instance, c.cfg.KEK.Name())):
		return ErrBackupForeign
	case c.generation == 0 || c.newest > c.generation:
		return fmt.Errorf("generation of the backup: %w", archive.ErrDamaged)
	case c.generation>>restoreShift == 1<<(64-restoreShift)-1:
		return fmt.Errorf("the key store was restored too often: %w", keys.ErrInvalid)
	}
	for _, name := range keysetNames {
		if !c.keysets[name] {
			return fmt.Errorf("keyset %q is not in the backup: %w", name, archive.ErrDamaged)
		}
	}
	unwrapped, err := callKEK(ctx, c.cfg.KEK.Unwrap, c.wraps)
	wipeAll(unwrapped)
	if isOf(err, keys.ErrKEKRetired) {
		return fmt.Errorf("the keysets in it: %w", ErrBackupDead)
	}
	if err != nil {
		return fmt.Errorf("unwrapping the keysets of the backup: %w", err)
	}
	for version, item := range c.samples {
		unwrapped, err := callKEK(ctx, c.cfg.KEK.Unwrap, []KEKItem{item})
		wipeAll(unwrapped)
		switch {
		case isOf(err, keys.ErrKEKRetired):
			return fmt.Errorf("keys in it are wrapped under version %d: %w", version, ErrBackupDead)
		case isOf(err, keys.ErrTampered):
			c.damaged++
		case err != nil:
			return fmt.Errorf("unwrapping a key of the backup: %w", err)
		}
	}
	if c.damaged > 0 {
		c.cfg.Logger.Error("bundles in the backup were damaged when it was taken; they are restored as they are", "count", c.damaged)
	}
	return nil
}

// write puts the rows into the store. Its instance and generation come last.
func (b *BackupFile) write(ctx context.Context) error {
	var batch []kv.Pair
	bytes := 0
	flush := func(more ...kv.Pair) error {
		err := b.cfg.Store.Update(ctx, func(w kv.Writer) error {
			for _, p := range append(batch, more...) {
				w.Set(p.Key, p.Value)
			}
			return nil
		})
		if err != nil {
			return storeError("writing to", err)
		}
		batch, bytes = batch[:0], 0
		return nil
	}
	sum, err := b.rows(ctx, func(p kv.Pair) error {
		if string(p.Key) == string(keyGeneration) || string(p.Key) == string(keyInstance) {
			return nil
		}
		batch = append(batch, p)
		if bytes += len(p.Key) + len(p.Value); len(batch) < maxCommitChanges && bytes < maxCommitBytes {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	if sum != b.sum {
		return fmt.Errorf("the backup has changed while it was read: %w", archive.ErrDamaged)
	}
	return flush(kv.Pair{Key: keyInstance, Value: b.instance},
		kv.Pair{Key: keyGeneration, Value: binary.BigEndian.AppendUint64(nil, b.restored.Generation)})
}

// DestroyRefs destroys the bundle of each subject whose reference is in refs, and returns how many it destroyed. It
// unwraps every bundle of the store, in batches. It is how the erasures since a backup are carried out again: the
// ledger names people by reference only. A bundle that is damaged is left as it is: nothing of its subject opens.
func (k *Keyring) DestroyRefs(ctx context.Context, refs map[[32]byte]bool, reason string) (destroyed int, err error) {
	if _, err := k.current(); err != nil {
		return 0, err
	}
	var last []byte
	for {
		var page []kv.Pair
		err := k.store.View(ctx, func(r kv.Reader) (err error) {
			page, err = r.Scan([]byte("b/"), last, maxCommitChanges)
			return err
		})
		if err != nil {
			return destroyed, storeError("reading", err)
		}
		if len(page) == 0 {
			return destroyed, nil
		}
		last = page[len(page)-1].Key
		found, err := k.refsOf(ctx, page)
		if err != nil {
			return destroyed, err
		}
		for id, ref := range found {
			if !refs[ref] {
				continue
			}
			if err := k.Destroy(ctx, id, reason); err != nil {
				return destroyed, err
			}
			destroyed++
		}
	}
}

// refsOf unwraps the bundles of rows and returns the references of their subjects, but of those that are damaged.
func (k *Keyring) refsOf(ctx context.Context, rows []kv.Pair) (map[uuid.UUID][32]byte, error) {
	var ids []uuid.UUID
	var items []KEKItem
	damaged := 0
	for _, p := range rows {
		if len(p.Key) != 18 {
			return nil, storeError("reading", fmt.Errorf("key of a bundle: %w", kv.ErrIntegrity))
		}
		id := uuid.UUID(p.Key[2:])
		r, err := k.checkRow(p.Value)
		if isOf(err, keys.ErrTampered) {
			damaged++
			continue
		}
		if err != nil {
			return nil, err
		}
		ids, items = append(ids, id), append(items, KEKItem{bundleContext(k.cfg.Instance, id), r.wrapped})
	}
	results, err := k.unwraps.direct(ctx, items)
	if err != nil {
		return nil, fmt.Errorf("unwrapping bundles: %w", err)
	}
	refs := make(map[uuid.UUID][32]byte, len(ids))
	for i, r := range results {
		b, itemErr := (*bundle)(nil), r.Err
		if itemErr == nil {
			b, itemErr = parseBundle(r.Data, nil, nil) // for the reference alone
			r.Data.Wipe()
		}
		switch {
		case itemErr == nil:
			refs[ids[i]] = b.ref
		case isOf(itemErr, keys.ErrTampered):
			damaged++
		case err == nil:
			err = itemErr
		}
	}
	if err != nil {
		return nil, fmt.Errorf("unwrapping bundles: %w", err)
	}
	if damaged > 0 {
		k.cfg.Logger.Error("bundles are damaged; whose they are is not known", "count", damaged)
	}
	return refs, nil
}
