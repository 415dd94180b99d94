// Package localkek is a key-encryption key in a file: for development, tests, and operators who protect a
// file (a TPM-bound disk, a systemd credential) instead of running HashiCorp Vault.
//
// Each thing is wrapped under a key of its own, HKDF-SHA-256(root key, info = context), with AES-256-GCM
// and a random nonce. The file holds one root key per generation; the newest wraps, all unwrap.
//
// Who holds the file and the key store holds all keys. The package must never write the file except in
// Create, Rotate and Retire, each of which replaces it as a whole.
package localkek

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/go-json-experiment/json"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// Name is what KEK.Name returns.
const Name = "localkek"

var (
	// ErrFile is returned by Open when the root-key file is not a regular file of this user with mode 0600
	// or 0400, or does not parse.
	ErrFile = errors.New("localkek: root-key file refused")
	// ErrExists is returned by Create when the path exists.
	ErrExists = errors.New("localkek: root-key file exists")
)

// rootFile is the root-key file: JSON, UTF-8, at most 64 KiB. Example:
//
//	{"format":"pdvault/root-key/v1","keys":[{"generation":1,"key":"3q2+7w...32 bytes in base64...="}]}
//
// Generations are positive and ascending. Rotate appends one; Retire removes those that nothing is wrapped
// under any more.
type rootFile struct {
	Format string    `json:"format"`
	Keys   []rootKey `json:"keys"`
}

type rootKey struct {
	Generation uint32 `json:"generation"`
	Key        []byte `json:"key"` // base64
}

const (
	format      = "pdvault/root-key/v1"
	rootSize    = 32
	maxFileSize = 64 << 10
)

// What Wrap returns:
//
//	offset  size  what
//	0       1     format, 0x01
//	1       4     generation of the root key, big endian
//	5       12    nonce
//	17      rest  ciphertext and tag; the context is also the associated data
const (
	wrapFormat = 0x01
	headerSize = 5
	overhead   = headerSize + 12 + 16
)

// KEK wraps under the root keys of a file.
type KEK struct {
	path string
	file sync.Mutex // held while the file is replaced

	mu     sync.RWMutex // guards the rest
	roots  map[uint32][]byte
	newest uint32
}

var (
	_ keyring.KEK    = (*KEK)(nil)
	_ keyring.Epochs = (*KEK)(nil)
)

// Create makes a root-key file with one generation. File and directory are synced before it returns, and
// the file appears complete or not at all. It refuses a path that exists.
func Create(path string) (err error) {
	root := make([]byte, rootSize)
	_, _ = rand.Read(root) // never fails
	defer clear(root)
	text, err := encode(rootFile{format, []rootKey{{1, root}}})
	if err != nil {
		return err
	}
	defer clear(text)

	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".root-key-*") // mode 0600
	if err != nil {
		return fmt.Errorf("creating root-key file: %w", err)
	}
	defer func() {
		if e := os.Remove(tmp.Name()); err == nil && e != nil {
			err = fmt.Errorf("creating root-key file: %w", e)
		}
		if err == nil {
			err = syncDir(dir)
		}
	}()
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("creating root-key file: %w", err)
	}
	if err := os.Link(tmp.Name(), path); err != nil { // unlike a rename, never replaces
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%w: %s", ErrExists, path)
		}
		return fmt.Errorf("creating root-key file: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing directory of root-key file: %w", err)
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("syncing directory of root-key file: %w", err)
	}
	return nil
}

func encode(f rootFile) ([]byte, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encoding root-key file: %w", err)
	}
	return append(b, '\n'), nil
}

// Open reads a root-key file. It refuses a symbolic link, another user's file, and one that anybody else
// may read.
func Open(path string) (*KEK, error) {
	f, roots, err := read(path)
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	k := &KEK{path: path}
	k.set(roots)
	return k, nil
}

// read parses the file at path, and returns it open as well.
func read(path string) (_ *os.File, _ []rootKey, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, syscall.ELOOP) {
			return nil, nil, fmt.Errorf("%w: %s is a symbolic link", ErrFile, path)
		}
		return nil, nil, fmt.Errorf("opening root-key file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	info, err := f.Stat() // of what is open, not of what the path names by now
	if err != nil {
		return nil, nil, fmt.Errorf("opening root-key file: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, nil, fmt.Errorf("%w: %s is not a regular file", ErrFile, path)
	case mode != 0o600 && mode != 0o400:
		return nil, nil, fmt.Errorf("%w: mode of %s is %v, not 0600", ErrFile, path, mode)
	case !ok || int(stat.Uid) != os.Geteuid():
		return nil, nil, fmt.Errorf("%w: %s belongs to another user", ErrFile, path)
	}
	text := make([]byte, maxFileSize+1)
	n, err := io.ReadFull(f, text)
	defer clear(text)
	switch {
	case err == nil:
		return nil, nil, fmt.Errorf("%w: %s is too large", ErrFile, path)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		return nil, nil, fmt.Errorf("reading root-key file: %w", err)
	}
	roots, err := decode(text[:n])
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrFile, path, err)
	}
	return f, roots, nil
}

// set takes roots, which it keeps, for those of k.
func (k *KEK) set(roots []rootKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// Those before are not wiped: a call under way may still derive from one.
	k.roots = make(map[uint32][]byte, len(roots))
	for _, r := range roots {
		k.roots[r.Generation] = r.Key
		k.newest = r.Generation
	}
}

// decode parses a root-key file strictly. Its errors hold nothing of the text.
func decode(text []byte) ([]rootKey, error) {
	var f rootFile
	if err := json.Unmarshal(text, &f, json.RejectUnknownMembers(true)); err != nil {
		return nil, errors.New("not a root-key file")
	}
	if f.Format != format {
		return nil, errors.New("unknown format")
	}
	if len(f.Keys) == 0 {
		return nil, errors.New("no keys")
	}
	var last uint32
	for _, k := range f.Keys {
		if k.Generation <= last {
			return nil, errors.New("generations do not ascend from 1")
		}
		if last = k.Generation; len(k.Key) != rootSize || bytes.Equal(k.Key, make([]byte, rootSize)) {
			return nil, fmt.Errorf("key of generation %d is not 32 random bytes", last)
		}
	}
	return f.Keys, nil
}

// Name implements keyring.KEK.
func (k *KEK) Name() string { return Name }

// Generation is the one that wraps.
func (k *KEK) Generation() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.newest
}

// root returns the key of a generation, nil if there is none, and the newest generation. A generation of 0
// stands for the newest.
func (k *KEK) root(generation uint32) (root []byte, newest uint32) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if generation == 0 {
		generation = k.newest
	}
	return k.roots[generation], k.newest
}

// Ready implements keyring.KEK.
func (k *KEK) Ready(ctx context.Context) error {
	probe := keys.Tuple([]byte("pdv1"), []byte("ready"))
	wrapped, err := k.Wrap(ctx, []keyring.KEKItem{{Context: probe, Data: probe}})
	if err != nil {
		return err
	}
	if wrapped[0].Err != nil {
		return wrapped[0].Err
	}
	back, err := k.Unwrap(ctx, []keyring.KEKItem{{Context: probe, Data: wrapped[0].Data}})
	if err != nil {
		return err
	}
	return back[0].Err
}

// Wrap implements keyring.KEK.
func (k *KEK) Wrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return each(ctx, items, k.wrap)
}

// Unwrap implements keyring.KEK.
func (k *KEK) Unwrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return each(ctx, items, k.unwrap)
}

// Rewrap implements keyring.KEK.
func (k *KEK) Rewrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return each(ctx, items, k.rewrap)
}

// Version implements keyring.KEK: the generation of the root key.
func (k *KEK) Version(wrapped []byte) (uint64, error) {
	if len(wrapped) <= overhead || wrapped[0] != wrapFormat || binary.BigEndian.Uint32(wrapped[1:]) == 0 {
		return 0, fmt.Errorf("wrapped data of an unknown format: %w", keys.ErrTampered)
	}
	return uint64(binary.BigEndian.Uint32(wrapped[1:])), nil
}

func each(ctx context.Context, items []keyring.KEKItem, one func(keyring.KEKItem) ([]byte, error)) ([]keyring.KEKResult, error) {
	results := make([]keyring.KEKResult, len(items))
	for i, item := range items {
		if i%64 == 0 && ctx.Err() != nil {
			for _, r := range results[:i] {
				r.Data.Wipe()
			}
			return nil, fmt.Errorf("%w: %w", keys.ErrUnavailable, context.Cause(ctx))
		}
		results[i].Data, results[i].Err = one(item)
	}
	return results, nil
}

// aead makes the key of context under a root key.
func aead(root, context []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, root, nil, string(context), 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (k *KEK) wrap(item keyring.KEKItem) ([]byte, error) {
	if len(item.Context) == 0 || len(item.Data) == 0 {
		return nil, fmt.Errorf("nothing to wrap, or no context: %w", keys.ErrInvalid)
	}
	root, newest := k.root(0)
	a, err := aead(root, item.Context)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", keys.ErrUnavailable)
	}
	b := make([]byte, headerSize, overhead+len(item.Data))
	b[0] = wrapFormat
	binary.BigEndian.PutUint32(b[1:], newest)
	return a.Seal(b, nil, item.Data, item.Context), nil
}

func (k *KEK) unwrap(item keyring.KEKItem) ([]byte, error) {
	if len(item.Context) == 0 {
		return nil, fmt.Errorf("no context: %w", keys.ErrInvalid)
	}
	if len(item.Data) <= overhead || item.Data[0] != wrapFormat {
		return nil, fmt.Errorf("wrapped data of an unknown format: %w", keys.ErrTampered)
	}
	generation := binary.BigEndian.Uint32(item.Data[1:])
	root, newest := k.root(generation)
	switch {
	case generation == 0:
		return nil, fmt.Errorf("wrapped data of an unknown format: %w", keys.ErrTampered)
	case root != nil:
	case generation > newest: // the file is an old copy
		return nil, keys.ErrKEKMissing
	default:
		return nil, keys.ErrKEKRetired
	}
	a, err := aead(root, item.Context)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", keys.ErrUnavailable)
	}
	out, err := a.Open(nil, nil, item.Data[headerSize:], item.Context)
	if err != nil {
		return nil, keys.ErrTampered
	}
	return out, nil
}

func (k *KEK) rewrap(item keyring.KEKItem) ([]byte, error) {
	data, err := k.unwrap(item)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return k.wrap(keyring.KEKItem{Context: item.Context, Data: data})
}
