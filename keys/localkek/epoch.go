package localkek

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"syscall"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// nextSuffix is of the file that is about to replace the root-key file. One that a crash left behind may hold
// generations that were retired since, so each replacement begins by overwriting it.
const nextSuffix = ".next"

// Versions implements keyring.Epochs.
func (k *KEK) Versions(ctx context.Context) (keyring.KEKVersions, error) {
	if ctx.Err() != nil {
		return keyring.KEKVersions{}, fmt.Errorf("%w: %w", keys.ErrUnavailable, context.Cause(ctx))
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.versionsLocked(), nil
}

func (k *KEK) versionsLocked() keyring.KEKVersions {
	oldest := k.newest
	for g := range k.roots {
		oldest = min(oldest, g)
	}
	return keyring.KEKVersions{Newest: uint64(k.newest), Oldest: uint64(oldest), Minimum: uint64(oldest)}
}

// Rotate implements keyring.Epochs: it appends a generation to the file. The new one wraps once it is durable.
func (k *KEK) Rotate(ctx context.Context, from uint64) (uint64, error) {
	var newest uint64
	err := k.replace(ctx, func(roots []rootKey) ([]rootKey, error) {
		last := roots[len(roots)-1].Generation
		newest = uint64(last)
		switch {
		case newest < from:
			return nil, fmt.Errorf("root-key file is older than it was: %w", keys.ErrKEKMissing)
		case newest > from:
			return nil, nil
		case last == math.MaxUint32:
			return nil, fmt.Errorf("there are no more generations: %w", keys.ErrInvalid)
		}
		newest++
		root := make([]byte, rootSize)
		_, _ = rand.Read(root) // never fails
		return append(roots, rootKey{last + 1, root}), nil
	})
	if err != nil {
		return 0, err
	}
	return newest, nil
}

// Retire implements keyring.Epochs: it removes generations from the file, and overwrites the file that held
// them, which destroys them as far as the disk writes in place. A copy of the file that somebody made is beyond
// its reach: who keeps one keeps what was wrapped under it.
func (k *KEK) Retire(ctx context.Context, oldest uint64) error {
	return k.replace(ctx, func(roots []rootKey) ([]rootKey, error) {
		if oldest > uint64(roots[len(roots)-1].Generation) {
			return nil, fmt.Errorf("the newest generation would be retired: %w", keys.ErrInvalid)
		}
		n := 0
		for uint64(roots[n].Generation) < oldest {
			n++
		}
		if n == 0 {
			return nil, nil
		}
		return roots[n:], nil
	})
}

// End implements keyring.Epochs. No rights are taken.
func (k *KEK) End(context.Context) {}

// replace reads the file, and puts what change makes of it in its place, durably; nil means that it stays. What
// is in memory follows the file. The file is complete at any time: the old one, or the new one.
func (k *KEK) replace(ctx context.Context, change func([]rootKey) ([]rootKey, error)) error {
	k.file.Lock()
	defer k.file.Unlock()
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", keys.ErrUnavailable, context.Cause(ctx))
	}
	old, roots, err := read(k.path)
	if err != nil {
		return fileError(err)
	}
	defer old.Close()
	if err := k.sameFile(roots); err != nil {
		return err
	}
	if err := discard(k.path + nextSuffix); err != nil {
		return fileError(err)
	}
	changed, err := change(roots)
	if err != nil {
		return err
	}
	if changed != nil {
		if err := swap(k.path, old, changed); err != nil {
			return fileError(err)
		}
		roots = changed
	} else if err := syncDir(filepath.Dir(k.path)); err != nil { // the one before may have failed at that
		return fileError(err)
	}
	k.set(roots)
	return nil
}

// sameFile refuses roots that lack a generation in memory, unless it is older than all of them: the file was put
// back to an older state, or is another's.
func (k *KEK) sameFile(roots []rootKey) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	held := make(map[uint32][]byte, len(roots))
	for _, r := range roots {
		held[r.Generation] = r.Key
	}
	for g, root := range k.roots {
		if g >= roots[0].Generation && !bytes.Equal(held[g], root) {
			return fmt.Errorf("root-key file is not the one that was opened: %w", keys.ErrKEKMissing)
		}
	}
	return nil
}

// swap replaces the file at path, which is open as old, by one that holds roots.
func swap(path string, old *os.File, roots []rootKey) error {
	info, err := old.Stat()
	if err != nil {
		return err
	}
	text, err := encode(rootFile{format, roots})
	if err != nil {
		return err
	}
	defer clear(text)
	if len(text) > maxFileSize {
		return fmt.Errorf("too many generations for one file: %w", keys.ErrInvalid)
	}
	next := path + nextSuffix
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	// What the path names is opened for overwriting while it can still be found.
	var gone *os.File
	if err == nil && info.Mode().Perm()&0o200 != 0 {
		gone, err = os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		_ = discard(next)
		return err
	}
	if gone != nil {
		defer gone.Close()
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	overwrite(gone)
	return nil
}

// overwrite puts zeros over a file that has no name any more. That it fails, or that the disk keeps what was
// there elsewhere, changes nothing about the file in its place.
func overwrite(f *os.File) {
	if f == nil {
		return
	}
	info, err := f.Stat()
	if err != nil {
		return
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Nlink != 0 {
		return // it goes by another name too, which is not ours
	}
	if _, err := f.WriteAt(make([]byte, info.Size()), 0); err == nil {
		_ = f.Sync()
	}
}

// discard removes what an interrupted replacement left behind.
func discard(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if f != nil {
		defer f.Close()
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	overwrite(f)
	return syncDir(filepath.Dir(path))
}

// fileError makes a failure of the file a sentinel of package keys.
func fileError(err error) error {
	switch {
	case errors.Is(err, keys.ErrInvalid):
		return err
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("replacing root-key file: %w: %w", keys.ErrForbidden, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("replacing root-key file: %w: %w", keys.ErrKEKMissing, err)
	}
	return fmt.Errorf("replacing root-key file: %w: %w", keys.ErrUnavailable, err)
}
