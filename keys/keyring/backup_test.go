package keyring_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// rootKey is a root-key file whose generations a test adds and removes, as an epoch does.
type rootKey struct {
	t    *testing.T
	path string
}

func newRootKey(t *testing.T) *rootKey {
	t.Helper()
	r := &rootKey{t, filepath.Join(t.TempDir(), "root-key")}
	if err := localkek.Create(r.path); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rootKey) open() *localkek.KEK {
	r.t.Helper()
	k, err := localkek.Open(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	return k
}

// change rewrites the list of generations.
func (r *rootKey) change(f func(keys []any) []any) {
	r.t.Helper()
	var file map[string]any
	b, err := os.ReadFile(r.path)
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	file["keys"] = f(file["keys"].([]any))
	if b, err = json.Marshal(file); err == nil {
		err = os.WriteFile(r.path, b, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// rotate adds generation n; retire removes all before it.
func (r *rootKey) rotate(n int) {
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{byte(n)}, 32))
	r.change(func(keys []any) []any { return append(keys, map[string]any{"generation": n, "key": key}) })
}

func (r *rootKey) retire() {
	r.change(func(keys []any) []any { return keys[len(keys)-1:] })
}

// backedUp is a keyring with people in it, one of them erased, and a backup of it.
type backedUp struct {
	*testing.T
	root     *rootKey
	store    kv.Store
	cfg      keyring.Config
	ring     *keyring.Keyring
	subjects []uuid.UUID
	sealed   [][]byte
	erased   uuid.UUID
	archive  []byte
}

func newBackedUp(t *testing.T, people int) *backedUp {
	t.Helper()
	b := &backedUp{T: t, root: newRootKey(t), store: memkv.New()}
	b.cfg = keyring.Config{Instance: "test", KEK: b.root.open(), Store: b.store}
	var err error
	if b.ring, err = keyring.Create(t.Context(), b.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.ring.Close() })
	for range people {
		b.subjects = append(b.subjects, uuid.New())
	}
	b.erased = uuid.New()
	for _, s := range append(b.subjects, b.erased) {
		out, err := b.ring.Seal(t.Context(), []keyring.SealSubject{sealOf(s, true, `"a value"`)})
		if err != nil || out[0].Err != nil {
			t.Fatal(err, out)
		}
		b.sealed = append(b.sealed, out[0].Fields[0].Ciphertext)
	}
	if err := b.ring.Destroy(t.Context(), b.erased, "test"); err != nil {
		t.Fatal(err)
	}
	if err := b.ring.SaveState(t.Context(), "sidecar/witnessed", []byte("a state")); err != nil {
		t.Fatal(err)
	}
	b.archive = b.backup()
	return b
}

func (b *backedUp) backup() []byte {
	b.Helper()
	var out bytes.Buffer
	if err := b.ring.Backup(b.Context(), &out); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// restore restores into a new store, with the KEK as it is now.
func (b *backedUp) restore(archived []byte) (*keyring.Keyring, kv.Store, keyring.Restored, error) {
	b.Helper()
	cfg := b.cfg
	cfg.KEK, cfg.Store = b.root.open(), memkv.New()
	out, err := keyring.Restore(b.Context(), cfg, bytes.NewReader(archived))
	if err != nil {
		if rows := len(allRows(b.T, cfg.Store)); rows != 0 {
			b.Errorf("refused with %v, and %d rows were written", err, rows)
		}
		return nil, cfg.Store, out, err
	}
	ring, err := keyring.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ring.Close() })
	return ring, cfg.Store, out, nil
}

func allRows(t *testing.T, s kv.Store) (pairs []kv.Pair) {
	t.Helper()
	err := s.View(t.Context(), func(r kv.Reader) (err error) {
		pairs, err = r.Scan(nil, nil, 100_000)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pairs
}

func opened(t *testing.T, k *keyring.Keyring, subject uuid.UUID, ciphertext []byte) error {
	t.Helper()
	out, err := k.Open(t.Context(), []keyring.OpenSubject{openOf(subject, ciphertext)})
	if err == nil {
		err = out[0].Err
	}
	return err
}

func TestARestoredKeyStoreOpensWhatTheLostOneSealed(t *testing.T) {
	b := newBackedUp(t, 2_500) // several transactions
	ring, store, out, err := b.restore(b.archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 1000, 2499} {
		if err := opened(t, ring, b.subjects[n], b.sealed[n]); err != nil {
			t.Errorf("subject %d: %v", n, err)
		}
	}
	wantErr(t, opened(t, ring, b.erased, b.sealed[len(b.sealed)-1]), keys.ErrDestroyed)
	if ring.SidecarID() != b.ring.SidecarID() || !bytes.Equal(ring.WitnessPublic(), b.ring.WitnessPublic()) {
		t.Error("the sidecar is another one")
	}
	if state, err := ring.LoadState(t.Context(), "sidecar/witnessed"); err != nil || string(state) != "a state" {
		t.Errorf("state %q, %v", state, err)
	}
	if out.Subjects != 2_500 || out.Destroyed != 1 || out.KEKVersion != 1 {
		t.Errorf("%+v", out)
	}
	if g := ring.Generation(); g != 1<<48 || out.Generation != g || g <= b.ring.Generation() {
		t.Errorf("generation %d after %d", g, b.ring.Generation())
	}
	before := allRows(t, b.store)
	after := allRows(t, store)
	if len(before) != len(after) {
		t.Errorf("%d rows after %d", len(after), len(before))
	}
	// It is used like any other, and restored from a backup of its own once more.
	if _, err := ring.Seal(t.Context(), []keyring.SealSubject{sealOf(uuid.New(), true, `"another"`)}); err != nil {
		t.Error(err)
	}
	var again bytes.Buffer
	if err := ring.Backup(t.Context(), &again); err != nil {
		t.Fatal(err)
	}
	twice, _, _, err := b.restore(again.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if g := twice.Generation(); g != 2<<48 {
		t.Errorf("generation %d after the second restore", g)
	}
}

// A backup shows one moment, whatever is written while it is taken, and holds nothing that can be read without the KEK.
func TestABackupIsOneSnapshotAndOpaque(t *testing.T) {
	b := newBackedUp(t, 50)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = b.ring.Seal(t.Context(), []keyring.SealSubject{sealOf(uuid.New(), true, `"x"`)})
			}
		}
	}()
	archived := b.backup()
	close(stop)
	<-done
	if _, _, _, err := b.restore(archived); err != nil {
		t.Error(err)
	}
	for _, p := range allRows(t, b.store) {
		if len(p.Value) > 16 && bytes.Contains(b.archive, p.Value) || bytes.Contains(b.archive, p.Key) && len(p.Key) > 2 {
			t.Fatal("a row can be read in the backup")
		}
	}
}

func TestABackupThatWasCutOrChangedIsRefused(t *testing.T) {
	b := newBackedUp(t, 20)
	for n := range len(b.archive) {
		if n > 700 && n < len(b.archive)-40 && n%97 != 0 {
			continue // the middle of one segment is like any other part of it
		}
		_, _, _, err := b.restore(b.archive[:n])
		if !errors.Is(err, archive.ErrTruncated) && !errors.Is(err, archive.ErrDamaged) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		changed := bytes.Clone(b.archive)
		changed[n] ^= 0x10
		_, _, _, err = b.restore(changed)
		if !errors.Is(err, archive.ErrTruncated) && !errors.Is(err, archive.ErrDamaged) && !errors.Is(err, archive.ErrForeign) && !errors.Is(err, archive.ErrNewer) {
			t.Fatalf("byte %d changed: %v", n, err)
		}
	}
	if _, _, _, err := b.restore(append(bytes.Clone(b.archive), 0)); !errors.Is(err, archive.ErrDamaged) {
		t.Errorf("a byte behind the end: %v", err)
	}
}

// At a segment's end nothing is left half: that it was not the last one is what tells.
func TestABackupThatWasCutAtASegmentIsRefused(t *testing.T) {
	b := newBackedUp(t, 20)
	for n := range 12 {
		if err := b.ring.SaveState(t.Context(), fmt.Sprint("large/", n), make([]byte, keyring.MaxState)); err != nil {
			t.Fatal(err)
		}
	}
	b.archive = b.backup()
	_, raw, err := archive.ReadHeader(bytes.NewReader(b.archive), archive.KindKeys)
	if err != nil {
		t.Fatal(err)
	}
	for segment := 1; ; segment++ {
		at := len(raw) + segment<<20
		if at >= len(b.archive) {
			if segment < 3 {
				t.Errorf("%d segments only", segment)
			}
			break
		}
		for _, n := range []int{at - 1, at, at + 1} {
			if _, _, _, err := b.restore(b.archive[:n]); !errors.Is(err, archive.ErrDamaged) {
				t.Errorf("cut at %d: %v", n, err)
			}
		}
	}
	if _, _, _, err := b.restore(b.archive); err != nil {
		t.Error(err)
	}
}

// The header can be written by anybody. What it says is authenticated by what follows.
func TestAHeaderOfAnotherBackupIsRefused(t *testing.T) {
	b := newBackedUp(t, 2)
	h, raw, err := archive.ReadHeader(bytes.NewReader(b.archive), archive.KindKeys)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*archive.Header){
		"time":    func(h *archive.Header) { h.Created = "2030-01-01T00:00:00.000Z" },
		"id":      func(h *archive.Header) { h.ID = uuid.New() },
		"version": func(h *archive.Header) { key := *h.Key; key.Version = 99; h.Key = &key },
		"no key":  func(h *archive.Header) { h.Key = nil },
	} {
		changed := h
		change(&changed)
		var out bytes.Buffer
		if _, err := archive.WriteHeader(&out, changed); err != nil {
			t.Fatal(err)
		}
		out.Write(b.archive[len(raw):])
		_, _, _, err := b.restore(out.Bytes())
		if !errors.Is(err, archive.ErrDamaged) && !errors.Is(err, keyring.ErrBackupForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestABackupOfSomebodyElseIsRefused(t *testing.T) {
	b := newBackedUp(t, 2)
	cfg := b.cfg
	cfg.Instance, cfg.Store = "other", memkv.New()
	_, err := keyring.Restore(t.Context(), cfg, bytes.NewReader(b.archive))
	wantErr(t, err, keyring.ErrBackupForeign)
	other := newRootKey(t)
	cfg = b.cfg
	cfg.KEK, cfg.Store = other.open(), memkv.New()
	_, err = keyring.Restore(t.Context(), cfg, bytes.NewReader(b.archive))
	wantErr(t, err, keyring.ErrBackupForeign)

	_, err = keyring.Restore(t.Context(), b.cfg, bytes.NewReader(b.archive))
	wantErr(t, err, keyring.ErrNotEmpty)
}

// A backup dies with the epoch: once the generation that wrapped its key is gone, nobody can restore it.
func TestABackupOlderThanTheEpochIsDead(t *testing.T) {
	b := newBackedUp(t, 3)
	b.root.rotate(2)
	if _, _, _, err := b.restore(b.archive); err != nil {
		t.Errorf("before the old generation is retired: %v", err)
	}
	b.root.retire()
	_, _, _, err := b.restore(b.archive)
	wantErr(t, err, keyring.ErrBackupDead)
}

// A backup that was taken while an epoch was under way is wrapped under the new version, but bundles in it are not
// yet. When the epoch is over it is dead too, and that is said before anything is written.
func TestABackupFromTheMiddleOfAnEpochIsDeadAfterIt(t *testing.T) {
	b := newBackedUp(t, 3)
	b.root.rotate(2)
	cfg := b.cfg
	cfg.KEK = b.root.open()
	ring, err := keyring.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	var out bytes.Buffer
	if err := ring.Backup(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	b.root.retire()
	_, _, _, err = b.restore(out.Bytes())
	wantErr(t, err, keyring.ErrBackupDead)
}

// Erasures that came after the backup are carried out again by reference.
func TestErasuresSinceABackupAreCarriedOutAgain(t *testing.T) {
	b := newBackedUp(t, 1_200)
	refs := make(map[[32]byte]bool)
	for _, n := range []int{3, 700, 1_199} {
		items, err := b.ring.Prepare(t.Context(), []keyring.PrepareItem{{Subject: b.subjects[n]}})
		if err != nil || items[0].Err != nil {
			t.Fatal(err, items)
		}
		refs[[32]byte(items[0].Ref)] = true
	}
	refs[[32]byte{1}] = true // of somebody who was never in the backup
	ring, _, _, err := b.restore(b.archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := opened(t, ring, b.subjects[700], b.sealed[700]); err != nil {
		t.Fatal(err)
	}
	n, err := ring.DestroyRefs(t.Context(), refs, "erasure-replayed")
	if err != nil || n != 3 {
		t.Fatalf("%d destroyed, %v", n, err)
	}
	for i, want := range map[int]error{3: keys.ErrDestroyed, 700: keys.ErrDestroyed, 1_199: keys.ErrDestroyed, 4: nil, 0: nil} {
		if err := opened(t, ring, b.subjects[i], b.sealed[i]); !errors.Is(err, want) {
			t.Errorf("subject %d: %v, want %v", i, err, want)
		}
	}
	if n, err := ring.DestroyRefs(t.Context(), refs, "erasure-replayed"); err != nil || n != 0 {
		t.Errorf("again: %d destroyed, %v", n, err)
	}
}

// A store that was written in part is never opened, wherever the writing stopped.
// A bundle that was damaged before the backup was taken is one person's loss, and not everybody's: the others come back,
// and the erasures are carried out.
func TestADamagedBundleKeepsNobodyElseFromComingBack(t *testing.T) {
	for name, spoil := range map[string]func(row []byte) []byte{
		"what the KEK gave": func(row []byte) []byte { row[len(row)-1] ^= 1; return row },
		"form of the row":   func([]byte) []byte { return []byte("x") },
		"form of the wrap":  func(row []byte) []byte { return append(row[:15+len("localkek")], 'x') },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackedUp(t, 20)
			// The first in the order of the store, which stands for its version of the KEK.
			first := slices.MinFunc(b.subjects, func(x, y uuid.UUID) int { return bytes.Compare(x[:], y[:]) })
			err := b.store.Update(t.Context(), func(w kv.Writer) error {
				row, err := w.Get(keyring.KeyBundle(first))
				if err == nil {
					w.Set(keyring.KeyBundle(first), spoil(bytes.Clone(row[0])))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			gone := 0
			for b.subjects[gone] == first {
				gone++
			}
			ref, err := b.ring.Ref(t.Context(), b.subjects[gone:gone+1])
			if err != nil || ref[0].Err != nil {
				t.Fatal(err, ref)
			}
			ring, _, _, err := b.restore(b.backup())
			if err != nil {
				t.Fatal(err)
			}
			n, err := ring.DestroyRefs(t.Context(), map[[32]byte]bool{[32]byte(ref[0].Ref): true}, "erasure-replayed")
			if err != nil || n != 1 {
				t.Fatalf("destroyed %d, %v", n, err)
			}
			for i, s := range b.subjects {
				want := error(nil)
				switch {
				case i == gone:
					want = keys.ErrDestroyed
				case s == first:
					want = keys.ErrTampered
				}
				wantErr(t, opened(t, ring, s, b.sealed[i]), want)
			}
		})
	}
}

func TestARestoreThatStopsHalfWayLeavesNoKeyStore(t *testing.T) {
	b := newBackedUp(t, 2_500)
	for failing := 1; ; failing++ {
		store := &testStore{Store: memkv.New()}
		updates := 0
		store.before = func(op string) error {
			if op != "update" {
				return nil
			}
			if updates++; updates == failing {
				return errInjected
			}
			return nil
		}
		cfg := b.cfg
		cfg.Store = store
		_, err := keyring.Restore(t.Context(), cfg, bytes.NewReader(b.archive))
		if err == nil {
			if failing < 3 {
				t.Errorf("only %d transactions", failing-1)
			}
			return
		}
		store.mu.Lock()
		store.before = nil
		store.mu.Unlock()
		wantErr(t, err, errInjected)
		if _, err := keyring.Open(t.Context(), cfg); !errors.Is(err, keyring.ErrNotCreated) && !errors.Is(err, keyring.ErrRestoring) {
			t.Errorf("failing at transaction %d: opening gives %v", failing, err)
		}
		if _, err := keyring.Restore(t.Context(), cfg, bytes.NewReader(b.archive)); err != nil {
			t.Errorf("failing at transaction %d: begun again: %v", failing, err)
		}
		if got, want := len(allRows(t, cfg.Store)), len(allRows(t, b.store)); got != want {
			t.Errorf("failing at transaction %d: %d rows, want %d", failing, got, want)
		}
	}
}

// What a restore has yet to take away is never served: until its last step has been taken, the store is not opened,
// and a restore that is begun again starts from nothing.
func TestARestoreIsNotOpenedBeforeItIsFinished(t *testing.T) {
	b := newBackedUp(t, 10)
	cfg := b.cfg
	cfg.Store = memkv.New()
	file, err := keyring.OpenBackup(t.Context(), cfg, bytes.NewReader(b.archive))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(file.State("sidecar/witnessed")); got != "a state" {
		t.Errorf("state in the backup: %q", got)
	}
	_, err = file.Restore(t.Context(), cfg.Store, func(ring *keyring.Keyring) error {
		if err := ring.Destroy(t.Context(), b.subjects[0], "test"); err != nil {
			t.Error(err)
		}
		if _, err := keyring.Open(t.Context(), cfg); !errors.Is(err, keyring.ErrRestoring) {
			t.Errorf("opened under the restore: %v", err)
		}
		return errInjected
	})
	wantErr(t, err, errInjected)
	_, err = keyring.Open(t.Context(), cfg)
	wantErr(t, err, keyring.ErrRestoring)
	if _, err := keyring.Restore(t.Context(), cfg, bytes.NewReader(b.archive)); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	if err := opened(t, ring, b.subjects[0], b.sealed[0]); err != nil {
		t.Errorf("the one that was destroyed in the restore before: %v", err)
	}
}

func TestABackupFailsWithItsWriter(t *testing.T) {
	b := newBackedUp(t, 50)
	for limit := 0; limit < len(b.archive); limit += 1 + len(b.archive)/7 {
		if err := b.ring.Backup(t.Context(), &limited{limit}); !errors.Is(err, errInjected) {
			t.Errorf("writer of %d bytes: %v", limit, err)
		}
	}
	if err := b.ring.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.ring.Backup(t.Context(), &bytes.Buffer{}), keys.ErrUnavailable)
}

// limited fails after some bytes.
type limited struct{ left int }

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		return 0, fmt.Errorf("writing: %w", errInjected)
	}
	return len(b), nil
}
