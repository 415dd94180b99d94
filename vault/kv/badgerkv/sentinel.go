package badgerkv

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/prototypster/pdvault/vault/kv"
)

// Our files beside Badger's.
const (
	sentinelFile = "STORE.json"
	cleanFile    = "CLEAN.json"
	ballastFile  = "BALLAST"
	copyDir      = "unclean-copy"

	unfinishedFile = "COMPACTION"
)

// sentinel is what makes a directory a store of ours. It is written once, last in Create, and also lies in
// Badger as the canary: a sentinel beside somebody else's data is noticed.
//
//	{"format":1,"id":"9f86d081884c7d659a2feaa0c55ad015","kind":"data","created":"2026-01-02T15:04:05Z"}
type sentinel struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"` // 16 random bytes in hex
	Kind    string    `json:"kind"`
	Created time.Time `json:"created"`
}

// clean is left by a clean stop and removed before the engine opens. The hash notices a MANIFEST that was
// replaced, by an older one for instance, under which Badger would delete the newer tables.
//
//	{"id":"9f86…","manifest":"<sha-256 in hex>","closed":"2026-01-02T15:04:05Z"}
type clean struct {
	ID       string    `json:"id"`
	Manifest string    `json:"manifest"`
	Closed   time.Time `json:"closed"`
}

func newSentinel(kind string, now time.Time) sentinel {
	var id [16]byte
	rand.Read(id[:]) // never fails: it ends the program instead
	return sentinel{Format: formatVersion, ID: hex.EncodeToString(id[:]), Kind: kind, Created: now.UTC()}
}

// lockSentinel opens and locks the sentinel of dir, so that a second opener fails before it changes
// anything. The caller closes the file to release the lock.
func lockSentinel(dir string) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, sentinelFile))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("locking the sentinel: %w", err)
	}
	return f, nil
}

func readSentinel(f *os.File, kind string) (sentinel, error) {
	var s sentinel
	if err := json.NewDecoder(f).Decode(&s); err != nil {
		return s, fmt.Errorf("badgerkv: sentinel %s cannot be read (%w): %w", sentinelFile, err, kv.ErrIntegrity)
	}
	if id, err := hex.DecodeString(s.ID); err != nil || len(id) != 16 {
		return s, fmt.Errorf("badgerkv: sentinel %s holds no store id: %w", sentinelFile, kv.ErrIntegrity)
	}
	if s.Format != formatVersion {
		return s, fmt.Errorf("badgerkv: store has format %d, this program knows %d: %w", s.Format, formatVersion, kv.ErrIntegrity)
	}
	if kind != "" && s.Kind != kind {
		return s, fmt.Errorf("badgerkv: store is of kind %q, wanted %q: %w", s.Kind, kind, kv.ErrIntegrity)
	}
	return s, nil
}

// readClean reports whether the last stop was clean, and refuses a MANIFEST that was changed since.
func readClean(dir, id string) (bool, error) {
	data, err := os.ReadFile(filepath.Join(dir, cleanFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("badgerkv: reading the clean marker: %w", err)
	}
	var c clean
	if err := json.Unmarshal(data, &c); err != nil {
		return false, fmt.Errorf("badgerkv: clean marker cannot be read (%w): %w", err, kv.ErrIntegrity)
	}
	sum, err := hashFile(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return false, err
	}
	if c.ID != id || c.Manifest != sum {
		return false, fmt.Errorf("badgerkv: %s is not the one of the last clean stop; restore the directory from a backup: %w",
			badger.ManifestFilename, kv.ErrIntegrity)
	}
	return true, nil
}

func writeClean(dir, id string, now time.Time) error {
	sum, err := hashFile(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return err
	}
	return writeDurably(dir, cleanFile, clean{ID: id, Manifest: sum, Closed: now.UTC()})
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("badgerkv: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("badgerkv: hashing %s: %w", filepath.Base(path), err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeDurably writes v as JSON to dir/name. After a power cut the file is there whole or not at all.
func writeDurably(dir, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("badgerkv: encoding %s: %w", name, err)
	}
	return replaceDurably(dir, name, append(data, '\n'), nil)
}

// replaceDurably writes data to dir/name. After a power cut the file is there whole, or as it was before. With a check, it
// is replaced only if that finds nothing wrong with the new file.
func replaceDurably(dir, name string, data []byte, check func(*os.File) error) error {
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("badgerkv: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil && check != nil {
		err = check(f)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		return fmt.Errorf("badgerkv: writing %s: %w", name, err)
	}
	return syncDir(dir)
}

// Rename gives the directory of a closed store the name to, durably. Both have one parent, and nothing is at to.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("badgerkv: giving a store its name: %w", err)
	}
	return syncDir(filepath.Dir(filepath.Clean(to)))
}

// syncFile makes what was written to a file durable, by whomever.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("badgerkv: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("badgerkv: syncing %s: %w", filepath.Base(path), err)
	}
	return nil
}

// syncDir makes creations, renames and removals in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("badgerkv: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("badgerkv: syncing %s: %w", dir, err)
	}
	return nil
}
