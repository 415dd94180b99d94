package localkek_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
)

func mustRotate(t testing.TB, k *localkek.KEK, from, want uint64) {
	t.Helper()
	if newest, err := k.Rotate(context.Background(), from); err != nil || newest != want {
		t.Fatalf("rotating gave %d, %v", newest, err)
	}
}

// The file is replaced as a whole: same mode, nothing beside it, and what is opened later agrees with what is in
// memory.
func TestRotateAndRetireReplaceTheFile(t *testing.T) {
	ctx := context.Background()
	for _, mode := range []os.FileMode{0o600, 0o400} {
		path := mustCreate(t)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		k := mustOpen(t, path)
		mustRotate(t, k, 1, 2)
		mustRotate(t, k, 2, 3)
		if err := k.Retire(ctx, 2); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != mode {
			t.Errorf("mode was %v, is %v, %v", mode, info.Mode(), err)
		}
		again := mustOpen(t, path)
		for _, k := range []*localkek.KEK{k, again} {
			if v, err := k.Versions(ctx); err != nil || v != (keyring.KEKVersions{Newest: 3, Oldest: 2, Minimum: 2}) {
				t.Errorf("versions are %+v, %v", v, err)
			}
		}
		r, err := k.Wrap(ctx, []keyring.KEKItem{{Context: []byte("c"), Data: []byte("data")}})
		if err != nil {
			t.Fatal(err)
		}
		if r, err = again.Unwrap(ctx, []keyring.KEKItem{{Context: []byte("c"), Data: r[0].Data}}); err != nil || string(r[0].Data) != "data" {
			t.Errorf("it does not unwrap after a restart: %v", err)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("%d files are left, %v", len(entries), err)
		}
	}
}

// A file that lost its name is overwritten by Retire; one that has another name still is not ours to destroy.
func TestRetireOverwritesTheOldFile(t *testing.T) {
	ctx := context.Background()
	path := mustCreate(t)
	k := mustOpen(t, path)
	mustRotate(t, k, 1, 2)
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := k.Retire(ctx, 2); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<10)
	n, _ := old.ReadAt(b, 0)
	if n == 0 || strings.Trim(string(b[:n]), "\x00") != "" {
		t.Error("the old file holds its keys still")
	}

	mustRotate(t, k, 2, 3)
	other := filepath.Join(filepath.Dir(path), "other")
	if err := os.Link(path, other); err != nil {
		t.Fatal(err)
	}
	if err := k.Retire(ctx, 3); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, other)
}

// What a crash left of a replacement may hold retired generations: the next one removes it.
func TestRetireRemovesWhatACrashLeft(t *testing.T) {
	path := mustCreate(t)
	k := mustOpen(t, path)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	left := path + ".next"
	for _, content := range []string{"", string(text[:20]), string(text)} {
		if err := os.WriteFile(left, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, path) // is as it was
		if err := k.Retire(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(left); !os.IsNotExist(err) {
			t.Errorf("it is there still: %v", err)
		}
	}
	// Nor does a link lead elsewhere.
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, left); err != nil {
		t.Fatal(err)
	}
	_, err = k.Rotate(context.Background(), 1)
	if err == nil {
		t.Error("a symbolic link in the place of the next file was accepted")
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "x" {
		t.Errorf("the link's target was written: %q, %v", b, err)
	}
}

// A file that was put back to an older state, or exchanged, is not written over.
func TestRotateRefusesAnotherFile(t *testing.T) {
	ctx := context.Background()
	path := mustCreate(t)
	k := mustOpen(t, path)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mustRotate(t, k, 1, 2)
	foreign, err := os.ReadFile(mustCreate(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"older": old, "foreign": foreign} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := k.Rotate(ctx, 2)
		wantErr(t, name, err, keys.ErrKEKMissing)
		wantErr(t, name, k.Retire(ctx, 2), keys.ErrKEKMissing)
		if b, err := os.ReadFile(path); err != nil || string(b) != string(text) {
			t.Errorf("%s: the file was written", name)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err = k.Rotate(ctx, 2)
	wantErr(t, "removed", err, keys.ErrKEKMissing)
}

// Wrapping goes on while versions come and go.
func TestRotateBesideUse(t *testing.T) {
	ctx := context.Background()
	k := mustOpen(t, mustCreate(t))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := k.Wrap(ctx, []keyring.KEKItem{{Context: []byte("c"), Data: []byte("data")}})
				if err != nil || r[0].Err != nil {
					t.Error(err, r)
					return
				}
				if _, err := k.Version(r[0].Data); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for v := uint64(1); v < 20; v++ {
		mustRotate(t, k, v, v+1)
		if err := k.Retire(ctx, v+1); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error is %v, want %v", what, err, want)
	}
}
