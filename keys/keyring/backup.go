package keyring

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

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

// Restored says what Restore has put back.
type Restored struct {
	Backup     uuid.UUID
	Created    string // archive.TimeLayout
	Subjects   int64  // bundles
	Destroyed  int64  // tombstones
	Generation uint64 // of the key store from now on
	KEKVersion uint64 // that the backup was made under
}

// Restore puts a backup into the empty store of cfg. It reads the backup twice: once to find it whole, of this
// instance and alive, and only then to write. A backup that is refused leaves the store as it is: ErrBackupDead,
// ErrBackupForeign, the errors of package archive, or ErrNotEmpty. After an error while writing, the store holds
// rows that Open refuses with ErrNotCreated.
//
// The generation rises above every one that the lost store can have had, so that who has kept its mark takes the
// restored store for what it is. Bundles that were destroyed since the backup are back; see DestroyRefs.
func Restore(ctx context.Context, cfg Config, from io.ReadSeeker) (Restored, error) {
	cfg, err := cfg.verified()
	if err != nil {
		return Restored{}, err
	}
	err = cfg.Store.View(ctx, func(r kv.Reader) error {
		pairs, err := r.Scan(nil, nil, 1)
		if err != nil {
			return storeError("reading", err)
		}
		if len(pairs) > 0 {
			return ErrNotEmpty
		}
		return nil
	})
	if err != nil {
		return Restored{}, fmt.Errorf("restoring the key store: %w", err)
	}
	if err := selfTest(ctx, cfg); err != nil {
		return Restored{}, fmt.Errorf("restoring the key store: %w", err)
	}
	b := &backupFile{cfg: cfg, from: from}
	if err := b.inspect(ctx); err != nil {
		return Restored{}, fmt.Errorf("the backup was refused, nothing was touched: %w", err)
	}
	if err := b.write(ctx); err != nil {
		return Restored{}, fmt.Errorf("restoring the key store: %w", err)
	}
	return b.restored, nil
}

// restores counts restores in the upper bits of a generation.
const restoreShift = 48

// backupFile is a backup on its way into a store.
type backupFile struct {
	cfg      Config
	from     io.ReadSeeker
	header   archive.Header
	raw      []byte // the header as it was read
	key      tink.StreamingAEAD
	sum      archive.Summary
	instance []byte
	restored Restored
}

// rows calls f for every pair of the backup, from its beginning, and returns what it came to.
func (b *backupFile) rows(ctx context.Context, f func(kv.Pair) error) (archive.Summary, error) {
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
func (b *backupFile) inspect(ctx context.Context) (err error) {
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
	c := rowCheck{cfg: b.cfg, samples: make(map[uint64]KEKItem)}
	if b.sum, err = b.rows(ctx, c.row); err != nil {
		return err
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	b.instance = c.instance
	b.restored = Restored{
		Backup: b.header.ID, Created: b.header.Created, Subjects: c.bundles, Destroyed: c.tombstones,
		Generation: (c.generation>>restoreShift + 1) << restoreShift, KEKVersion: b.header.Key.Version,
	}
	return nil
}

// rowCheck checks the rows of a backup as Open would those of a store, and keeps one wrap of each version of the KEK.
type rowCheck struct {
	cfg                 Config
	instance            []byte
	generation, newest  uint64 // the counter, and the newest in a row
	bundles, tombstones int64
	keysets             map[string]bool
	samples             map[uint64]KEKItem
}

func (c *rowCheck) row(p kv.Pair) error {
	key := string(p.Key)
	switch {
	case key == string(keyGeneration):
		var err error
		c.generation, err = decodeGeneration(p.Value)
		return err
	case key == string(keyInstance):
		c.instance = p.Value
		return nil
	case len(key) > 2 && key[:2] == "k/":
		if c.keysets == nil {
			c.keysets = make(map[string]bool)
		}
		c.keysets[key[2:]] = true
		return c.wrapped(p.Value, keysetContext(c.cfg.Instance, key[2:]))
	case len(key) == 18 && key[:2] == "b/":
		c.bundles++
		return c.wrapped(p.Value, bundleContext(c.cfg.Instance, uuid.UUID(p.Key[2:])))
	case len(key) == 18 && key[:2] == "t/":
		c.tombstones++
	}
	return nil
}

func (c *rowCheck) wrapped(value, context []byte) error {
	r, err := decodeRow(value)
	if err != nil {
		return fmt.Errorf("row of the backup: %w", err)
	}
	if r.kek != c.cfg.KEK.Name() {
		return fmt.Errorf("row of another key-encryption key: %w", ErrBackupForeign)
	}
	version, err := c.cfg.KEK.Version(r.wrapped)
	if err != nil {
		return fmt.Errorf("row of the backup: %w", err)
	}
	c.newest = max(c.newest, r.generation)
	if _, seen := c.samples[version]; !seen {
		c.samples[version] = KEKItem{context, r.wrapped}
	}
	return nil
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
	for version, item := range c.samples {
		clear, err := callKEK(ctx, c.cfg.KEK.Unwrap, []KEKItem{item})
		if isOf(err, keys.ErrKEKRetired) {
			return fmt.Errorf("keys in it are wrapped under version %d: %w", version, ErrBackupDead)
		}
		if err != nil {
			return fmt.Errorf("unwrapping a key of the backup: %w", err)
		}
		wipeAll(clear)
	}
	return nil
}

// write puts the rows into the store. What makes it a key store, its instance and generation, comes last.
func (b *backupFile) write(ctx context.Context) error {
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
// ledger names people by reference only.
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
		for i, ref := range found {
			if !refs[ref] {
				continue
			}
			if err := k.Destroy(ctx, uuid.UUID(page[i].Key[2:]), reason); err != nil {
				return destroyed, err
			}
			destroyed++
		}
	}
}

// refsOf unwraps the bundles of rows and returns their references.
func (k *Keyring) refsOf(ctx context.Context, rows []kv.Pair) ([][32]byte, error) {
	items := make([]KEKItem, len(rows))
	for i, p := range rows {
		if len(p.Key) != 18 {
			return nil, storeError("reading", fmt.Errorf("key of a bundle: %w", kv.ErrIntegrity))
		}
		r, err := k.checkRow(p.Value)
		if err != nil {
			return nil, err
		}
		items[i] = KEKItem{bundleContext(k.cfg.Instance, uuid.UUID(p.Key[2:])), r.wrapped}
	}
	start := time.Now()
	clear, err := callKEK(ctx, k.cfg.KEK.Unwrap, items)
	if k.cfg.Observe.KEK != nil {
		k.cfg.Observe.KEK("unwrap", len(items), time.Since(start), err)
	}
	if err != nil {
		return nil, fmt.Errorf("unwrapping bundles: %w", err)
	}
	defer wipeAll(clear)
	refs := make([][32]byte, len(clear))
	for i, secret := range clear {
		b, err := parseBundle(secret)
		if err != nil {
			return nil, err
		}
		refs[i] = b.ref
	}
	return refs, nil
}
