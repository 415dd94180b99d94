package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

const testOrigin = "test.pdvault/ledger"

var testTime = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// vaultSide is a ledger beside a key store on disk, whose sidecar has witnessed it.
type vaultSide struct {
	*testing.T
	dir, config string
	signer      note.Signer
	verifierKey string
	witnessKey  string
	ledger      *ledger.Ledger
	erased      uuid.UUID // whose erasure is in the ledger, after the backup
	kept        uuid.UUID
	archive     string // of the key store
	log         string // export
}

// withKeys opens the key store as pdkeys does.
func withKeys(t *testing.T, config string, f func(*keyring.Keyring)) {
	t.Helper()
	c, err := loadConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	kek, _, err := openKEK(t.Context(), c, log)
	if err != nil {
		t.Fatal(err)
	}
	store, err := badgerkv.Open(t.Context(), storeOptions(c, log))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(t.Context(), keyringConfig(c, kek, store, log))
	if err != nil {
		t.Fatal(err)
	}
	f(ring)
	if err := errors.Join(ring.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
}

func newVaultSide(t *testing.T) *vaultSide {
	t.Helper()
	v := &vaultSide{T: t, erased: uuid.New(), kept: uuid.New()}
	v.dir, v.config = instance(t, "")
	if rc, out := code(t, "init", "--config", v.config); rc != exitOK {
		t.Fatalf("init: %d, %s", rc, out)
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	if v.signer, err = note.NewSigner(skey); err != nil {
		t.Fatal(err)
	}
	v.verifierKey = vkey
	withKeys(t, v.config, func(ring *keyring.Keyring) {
		server, err := sidecar.New(t.Context(), sidecar.Config{Instance: "test", Keyring: ring})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.Bind(t.Context(), &keyspb.BindRequest{Origin: testOrigin, LedgerKey: vkey}); err != nil {
			t.Fatal(err)
		}
		status, err := server.Status(t.Context(), &keyspb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		v.witnessKey = status.WitnessKey
		v.openLedger()
		v.append(verify.Entry{Kind: verify.KindSubjectCreated})
		v.witness(server)
		refs := map[uuid.UUID]string{}
		for _, s := range []uuid.UUID{v.erased, v.kept} {
			out, err := ring.Seal(t.Context(), []keyring.SealSubject{{Subject: s, Create: true,
				Fields: []keyring.SealField{{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte(`"x"`)}}}})
			if err != nil || out[0].Err != nil {
				t.Fatal(err, out)
			}
			refs[s] = verify.FormatRef(out[0].Ref)
		}
		v.archive = filepath.Join(v.dir, "keys.backup")
		var b bytes.Buffer
		if err := ring.Backup(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(v.archive, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		v.append(verify.Entry{Kind: verify.KindSubjectErased, SubjectRef: refs[v.erased], Reason: "subject-request",
			Erasure: &verify.Erasure{ID: uuid.NewString(), Method: verify.MethodCryptographicErase}})
		v.witness(server)
		v.log = v.export()
	})
	return v
}

func (v *vaultSide) openLedger() {
	v.Helper()
	verifier, err := note.NewVerifier(v.verifierKey)
	if err != nil {
		v.Fatal(err)
	}
	witness, err := verify.NewCosignatureVerifier(v.witnessKey)
	if err != nil {
		v.Fatal(err)
	}
	v.ledger, err = ledger.Create(v.Context(), ledger.Config{
		Store: memkv.New(), Origin: testOrigin, Signer: v.signer, Verifier: verifier, Witnesses: []note.Verifier{witness},
	})
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { _ = v.ledger.Close() })
}

func (v *vaultSide) append(e verify.Entry) {
	v.Helper()
	e.ID = uuid.NewString()
	if _, err := v.ledger.Append(v.Context(), e, func(ledger.Position) kv.Change { return kv.Change{} }); err != nil {
		v.Fatal(err)
	}
}

func (v *vaultSide) witness(server *sidecar.Server) {
	v.Helper()
	cp := v.ledger.Checkpoint()
	req := &keyspb.WitnessRequest{Checkpoint: cp.Note, From: cp.Size - 1}
	proof, err := v.ledger.ProveConsistency(v.Context(), req.From, cp.Size)
	if err != nil {
		v.Fatal(err)
	}
	for _, h := range proof {
		req.Consistency = append(req.Consistency, h[:])
	}
	answer, err := server.Witness(v.Context(), req)
	if err != nil || answer.Stale {
		v.Fatal(answer, err)
	}
	if err := v.ledger.AddCosignature(cp.Size, answer.Cosignature); err != nil {
		v.Fatal(err)
	}
}

// export writes the log as pdvault records export does.
func (v *vaultSide) export() (dir string) {
	v.Helper()
	dir = v.TempDir()
	cp := v.ledger.Checkpoint()
	files := map[string][]byte{verify.CheckpointPath: cp.Note}
	for tile := range verify.TilesOf(cp.Size) {
		b, err := v.ledger.EntryBundle(v.Context(), tile.N, tile.Width)
		if tile.Level != verify.EntriesLevel {
			b, err = v.ledger.Tile(v.Context(), tile.Level, tile.N, tile.Width)
		}
		if err != nil {
			v.Fatal(err)
		}
		files[tile.Path()] = b
	}
	for name, b := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			v.Fatal(err)
		}
	}
	return dir
}

func (v *vaultSide) lose() {
	v.Helper()
	if err := os.RemoveAll(filepath.Join(v.dir, "store")); err != nil {
		v.Fatal(err)
	}
}

// names lists what is in the instance's directory.
func (v *vaultSide) names() (names []string) {
	v.Helper()
	err := fs.WalkDir(os.DirFS(v.dir), ".", func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		v.Fatal(err)
	}
	return names
}

// state tells what the restored key store knows of a subject.
func (v *vaultSide) state(subject uuid.UUID) (err error) {
	v.Helper()
	withKeys(v.T, v.config, func(ring *keyring.Keyring) {
		items, e := ring.Prepare(v.Context(), []keyring.PrepareItem{{Subject: subject}})
		if err = e; err == nil {
			err = items[0].Err
		}
	})
	return err
}

func TestARestoreCarriesErasuresOutAgain(t *testing.T) {
	v := newVaultSide(t)
	if rc, out := code(t, "restore", "--config", v.config, "--from", v.archive, "--accept-missing-erasures"); rc != exitStore || !strings.Contains(out, "not empty") {
		t.Errorf("over a store that is there: %d, %s", rc, out)
	}
	v.lose()
	rc, out := code(t, "restore", "--config", v.config, "--from", v.archive, "--log", v.log, "--ledger-key", v.verifierKey, "--witness-key", v.witnessKey)
	if rc != exitOK || !strings.Contains(out, "erasures carried out again: 1, of 1") || strings.Contains(out, "WARNING") {
		t.Fatalf("%d, %s", rc, out)
	}
	if err := v.state(v.erased); !errors.Is(err, keys.ErrDestroyed) {
		t.Errorf("the erased one: %v", err)
	}
	if err := v.state(v.kept); err != nil {
		t.Errorf("the other one: %v", err)
	}
}

func TestARestoreWithoutALogIsAskedForInWords(t *testing.T) {
	v := newVaultSide(t)
	v.lose()
	if rc, out := code(t, "restore", "--config", v.config, "--from", v.archive); rc != exitUsage || !strings.Contains(out, "erasures") {
		t.Errorf("%d, %s", rc, out)
	}
	rc, out := code(t, "restore", "--config", v.config, "--from", v.archive, "--accept-missing-erasures")
	if rc != exitOK || !strings.Contains(out, "CAN BE READ AGAIN") {
		t.Fatalf("%d, %s", rc, out)
	}
	if err := v.state(v.erased); err != nil {
		t.Errorf("the erased one: %v", err)
	}
}

// What is refused leaves the directory as it was.
func TestABadRestoreTouchesNothing(t *testing.T) {
	v := newVaultSide(t)
	v.lose()
	good, err := os.ReadFile(v.archive)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := note.GenerateKey(rand.Reader, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	bad := filepath.Join(t.TempDir(), "bad")
	withLog := func(ledgerKey, witnessKey string) []string {
		return []string{"--log", v.log, "--ledger-key", ledgerKey, "--witness-key", witnessKey}
	}
	for _, tt := range []struct {
		name string
		b    []byte
		args []string
		says string
	}{
		{"flipped", flipped, []string{"--accept-missing-erasures"}, "damaged"},
		{"cut", good[:100], []string{"--accept-missing-erasures"}, "cut short"},
		{"no archive", []byte("something else entirely, no archive"), []string{"--accept-missing-erasures"}, "not an archive"},
		{"log of another key", good, withLog(otherKey, v.witnessKey), "log cannot be used"},
		{"log without that witness", good, withLog(v.verifierKey, strings.Replace(otherKey, testOrigin, "other", 1)), "witness-key"},
	} {
		if err := os.WriteFile(bad, tt.b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := v.names()
		rc, out := code(t, append([]string{"restore", "--config", v.config, "--from", bad}, tt.args...)...)
		if rc == exitOK || !strings.Contains(out, tt.says) {
			t.Errorf("%s: %d, %s", tt.name, rc, out)
		}
		if after := v.names(); strings.Join(before, " ") != strings.Join(after, " ") {
			t.Errorf("%s: %v, then %v", tt.name, before, after)
		}
	}
}

// A log of the same size or more that says something else about what the backup has witnessed is another one, though the
// keys of ledger and witness signed it.
func TestALogThatDoesNotExtendTheBackupIsRefused(t *testing.T) {
	v := newVaultSide(t)
	v.lose()
	report := func(want string) {
		t.Helper()
		before := v.names()
		rc, out := code(t, "restore", "--config", v.config, "--from", v.archive, "--log", v.log, "--ledger-key", v.verifierKey, "--witness-key", v.witnessKey)
		if rc == exitOK || !strings.Contains(out, want) || !strings.Contains(out, "nothing was touched") {
			t.Errorf("%d, %s", rc, out)
		}
		if after := v.names(); strings.Join(before, " ") != strings.Join(after, " ") {
			t.Errorf("%v, then %v", before, after)
		}
	}
	v.log = v.fork()
	report("does not extend the 1 entries that the backup has witnessed")
}

// A rewind takes the checkpoint of a signed manifest, keeps what it makes the witness forget, and is refused for
// everything else.
func TestARewindNeedsTheLedgersSignature(t *testing.T) {
	v := newVaultSide(t)
	older := v.older()
	stranger, _, err := note.GenerateKey(rand.Reader, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	other, err := note.NewSigner(stranger)
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"another key":    v.dataBackup(older, other),
		"not older":      v.dataBackup(v.ledger.Checkpoint().Checkpoint, v.signer),
		"another origin": v.dataBackup(verify.Checkpoint{Origin: "other/ledger", Size: 1, Root: older.Root}, v.signer),
		"a key archive":  v.archive,
	} {
		if rc, out := code(t, "rewind", "--config", v.config, "--backup", path); rc == exitOK || !strings.Contains(out, "nothing was touched") {
			t.Errorf("%s: %d, %s", name, rc, out)
		}
	}
	if rc, _ := code(t, "rewind", "--config", v.config); rc != exitUsage {
		t.Errorf("without a checkpoint: %d", rc)
	}
	path := v.dataBackup(older, v.signer)
	cmd, _, _ := start(t, v.dir, v.config)
	if rc, out := code(t, "rewind", "--config", v.config, "--backup", path); rc != exitStore {
		t.Errorf("under a running sidecar: %d, %s", rc, out)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	rc, out := code(t, "rewind", "--config", v.config, "--backup", path)
	if rc != exitOK || !strings.Contains(out, "goes on from 1 entries") || !strings.Contains(out, "forgotten: 2 entries, root "+v.ledger.Checkpoint().Root.String()) {
		t.Fatalf("%d, %s", rc, out)
	}
	withKeys(t, v.config, func(ring *keyring.Keyring) {
		m, err := sidecar.LoadMemory(t.Context(), ring)
		if err != nil || m.Witnessed != older {
			t.Errorf("%+v, %v", m, err)
		}
		kept, err := ring.LoadState(t.Context(), "sidecar/rewound")
		if err != nil || !strings.HasPrefix(string(kept), "pdvault/rewound/v1\n2\n"+v.ledger.Checkpoint().Root.String()+"\n1\n") {
			t.Errorf("%q, %v", kept, err)
		}
	})
}

// fork exports another ledger under the keys of this one.
func (v *vaultSide) fork() string {
	v.Helper()
	c, err := loadConfig(v.config)
	if err != nil {
		v.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	kek, _, err := openKEK(v.Context(), c, log)
	if err != nil {
		v.Fatal(err)
	}
	in, err := os.Open(v.archive)
	if err != nil {
		v.Fatal(err)
	}
	defer in.Close()
	cfg := keyringConfig(c, kek, nil, log)
	backup, err := keyring.OpenBackup(v.Context(), cfg, in)
	if err != nil {
		v.Fatal(err)
	}
	cfg.Store = memkv.New()
	if _, err := backup.Restore(v.Context(), cfg.Store, func(*keyring.Keyring) error { return nil }); err != nil {
		v.Fatal(err)
	}
	ring, err := keyring.Open(v.Context(), cfg)
	if err != nil {
		v.Fatal(err)
	}
	defer ring.Close()
	for _, state := range []string{"sidecar/bound", "sidecar/witnessed"} {
		if err := ring.SaveState(v.Context(), state, nil); err != nil {
			v.Fatal(err)
		}
	}
	server, err := sidecar.New(v.Context(), sidecar.Config{Instance: "test", Keyring: ring})
	if err != nil {
		v.Fatal(err)
	}
	if _, err := server.Bind(v.Context(), &keyspb.BindRequest{Origin: testOrigin, LedgerKey: v.verifierKey}); err != nil {
		v.Fatal(err)
	}
	v.openLedger()
	v.append(verify.Entry{Kind: verify.KindLoginDenied})
	v.witness(server)
	v.append(verify.Entry{Kind: verify.KindLoginDenied})
	v.witness(server)
	return v.export()
}

// older is the checkpoint of the ledger's first entry.
func (v *vaultSide) older() verify.Checkpoint {
	v.Helper()
	b, err := v.ledger.Tile(v.Context(), 0, 0, 1)
	if err != nil {
		v.Fatal(err)
	}
	return verify.Checkpoint{Origin: testOrigin, Size: 1, Root: [32]byte(b)}
}

// dataBackup writes an empty archive of a data store whose ledger ends at cp.
func (v *vaultSide) dataBackup(cp verify.Checkpoint, by note.Signer) string {
	v.Helper()
	header := archive.NewHeader(archive.KindData, "test", testTime)
	var b bytes.Buffer
	raw, err := archive.WriteHeader(&b, header)
	if err != nil {
		v.Fatal(err)
	}
	_, err = archive.NewWriter(&b, raw).Close(func(sum archive.Summary) ([]byte, error) {
		return note.Sign(&note.Note{Text: verify.Backup{
			Instance: "test", ID: header.ID.String(), Created: header.Created, Digest: sum.Digest, Ledger: cp,
		}.Format()}, by)
	})
	path := filepath.Join(v.TempDir(), "data.backup")
	if err := errors.Join(err, os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		v.Fatal(err)
	}
	return path
}
