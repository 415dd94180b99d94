package localkek_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/test/conformance"
)

func mustCreate(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root-key")
	if err := localkek.Create(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t testing.TB, path string) *localkek.KEK {
	t.Helper()
	k, err := localkek.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestConformance(t *testing.T) {
	conformance.KEK(t, func(t testing.TB) keyring.KEK { return mustOpen(t, mustCreate(t)) })
	conformance.Epochs(t, func(t testing.TB) (keyring.KEK, keyring.Epochs) {
		k := mustOpen(t, mustCreate(t))
		return k, k
	})
}

func TestCreate(t *testing.T) {
	path := mustCreate(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := localkek.Create(path); !errors.Is(err, localkek.ErrExists) {
		t.Errorf("a second Create gave %v", err)
	}
	mustOpen(t, path)
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the file changed")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("Create left %d files", len(entries))
	}
	other, err := os.ReadFile(mustCreate(t))
	if err != nil {
		t.Fatal(err)
	}
	if string(other) == string(before) {
		t.Error("two files hold the same key")
	}
	if err := localkek.Create(filepath.Join(t.TempDir(), "absent", "root-key")); err == nil {
		t.Error("Create made a directory")
	}
}

func TestOpenRefusesFile(t *testing.T) {
	refused := func(t *testing.T, path string) {
		t.Helper()
		if k, err := localkek.Open(path); !errors.Is(err, localkek.ErrFile) || k != nil {
			t.Errorf("Open gave %v", err)
		}
	}
	t.Run("symbolic link", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(mustCreate(t), link); err != nil {
			t.Fatal(err)
		}
		refused(t, link)
	})
	t.Run("directory", func(t *testing.T) { refused(t, t.TempDir()) })
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o700, 0o644, 0o600 | os.ModeSetuid} {
		t.Run(mode.String(), func(t *testing.T) {
			path := mustCreate(t)
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			refused(t, path)
		})
	}
	t.Run("another owner", func(t *testing.T) {
		path := mustCreate(t)
		if err := os.Chown(path, os.Getuid()+1, -1); err != nil {
			t.Skipf("needs the right to give files away: %v", err)
		}
		refused(t, path)
	})
	t.Run("absent", func(t *testing.T) {
		if _, err := localkek.Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Open gave %v", err)
		}
	})
}

func rootKey(b byte) string {
	key := make([]byte, 32)
	for i := range key {
		key[i] = b
	}
	return base64.StdEncoding.EncodeToString(key)
}

// file writes a root-key file with text.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root-key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// generations writes a root-key file of the generations given.
func generations(t *testing.T, which ...int) string {
	t.Helper()
	var parts []string
	for _, g := range which {
		parts = append(parts, fmt.Sprintf(`{"generation":%d,"key":%q}`, g, rootKey(byte(g))))
	}
	return file(t, `{"format":"pdvault/root-key/v1","keys":[`+strings.Join(parts, ",")+`]}`)
}

func TestOpenRefusesText(t *testing.T) {
	one := fmt.Sprintf(`{"generation":1,"key":%q}`, rootKey(7))
	for name, text := range map[string]string{
		"empty":               "",
		"cut short":           `{"format":"pdvault/root-key/v1","keys":[` + one,
		"trailing text":       `{"format":"pdvault/root-key/v1","keys":[` + one + `]}{}`,
		"unknown member":      `{"format":"pdvault/root-key/v1","keys":[` + one + `],"x":1}`,
		"duplicate member":    `{"format":"pdvault/root-key/v1","format":"pdvault/root-key/v1","keys":[` + one + `]}`,
		"unknown format":      `{"format":"pdvault/root-key/v2","keys":[` + one + `]}`,
		"no keys":             `{"format":"pdvault/root-key/v1","keys":[]}`,
		"generation 0":        `{"format":"pdvault/root-key/v1","keys":[{"generation":0,"key":"` + rootKey(7) + `"}]}`,
		"not ascending":       `{"format":"pdvault/root-key/v1","keys":[` + one + `,` + one + `]}`,
		"short key":           `{"format":"pdvault/root-key/v1","keys":[{"generation":1,"key":"AAAA"}]}`,
		"zero key":            `{"format":"pdvault/root-key/v1","keys":[{"generation":1,"key":"` + rootKey(0) + `"}]}`,
		"larger than allowed": `{"format":"pdvault/root-key/v1","keys":[` + one + `]}` + strings.Repeat(" ", 64<<10),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := localkek.Open(file(t, text))
			if !errors.Is(err, localkek.ErrFile) {
				t.Fatalf("Open gave %v", err)
			}
			if strings.Contains(err.Error(), rootKey(7)) {
				t.Error("the error shows the key")
			}
		})
	}
}

func TestGenerations(t *testing.T) {
	ctx := context.Background()
	one, both, two := mustOpen(t, generations(t, 1)), mustOpen(t, generations(t, 1, 2)), mustOpen(t, generations(t, 2))
	wrap := func(k *localkek.KEK) keyring.KEKItem {
		t.Helper()
		r, err := k.Wrap(ctx, []keyring.KEKItem{{Context: []byte("c"), Data: []byte("data")}})
		if err != nil || r[0].Err != nil {
			t.Fatal(err, r)
		}
		return keyring.KEKItem{Context: []byte("c"), Data: r[0].Data}
	}
	old, recent := wrap(one), wrap(both)
	for _, c := range []struct {
		name string
		kek  *localkek.KEK
		item keyring.KEKItem
		want error
	}{
		{"old under both", both, old, nil},
		{"recent under both", both, recent, nil},
		{"recent under the newer alone", two, recent, nil},
		{"old when it is removed", two, old, keys.ErrKEKRetired},
		{"recent under an old copy of the file", one, recent, keys.ErrKEKMissing},
	} {
		r, err := c.kek.Unwrap(ctx, []keyring.KEKItem{c.item})
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(r[0].Err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, r[0].Err, c.want)
		}
	}
	if both.Generation() != 2 {
		t.Errorf("generation %d wraps", both.Generation())
	}
}
