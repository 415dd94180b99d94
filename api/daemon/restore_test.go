package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

var (
	shop     = access.Request{Caller: verify.Caller{ID: "shop", Kind: "service", Role: policy.RoleService, Authn: "token"}}
	privacy  = access.Request{Caller: verify.Caller{ID: "privacy", Kind: "person", Role: policy.RolePrivacyOfficer, Authn: "token"}}
	security = access.Request{Caller: verify.Caller{ID: "security", Kind: "person", Role: policy.RoleSecurity, Authn: "token"}}
)

// instance is a pdvault on disk beside a real sidecar.
type instance struct {
	*testing.T
	*Daemon
	keys   *sidecartest.World
	config Config
}

func newInstance(t *testing.T) *instance {
	t.Helper()
	i := &instance{T: t, keys: sidecartest.New(t)}
	i.keys.Serve()
	i.config = Config{Instance: sidecartest.Instance, Listen: "127.0.0.1:0"}
	i.config.Store = StoreConfig{Dir: filepath.Join(t.TempDir(), "data"), ReadOnlyBelow: 1 << 20, ReserveBelow: 1 << 19, Ballast: 1 << 20}
	i.config.Sidecar.Socket = i.keys.Socket
	i.config.Sidecar.Wait = 5 * time.Second
	if err := Init(t.Context(), i.config, quiet()); err != nil {
		t.Fatal(err)
	}
	i.open()
	return i
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (i *instance) open() {
	i.Helper()
	d, err := Open(i.Context(), i.config, quiet())
	if err != nil {
		i.Fatal(err)
	}
	i.Daemon = d
	i.Cleanup(i.close)
}

func (i *instance) close() {
	if i.Daemon == nil {
		return
	}
	if err := i.Daemon.Close(); err != nil {
		i.Errorf("closing: %v", err)
	}
	i.Daemon = nil
}

func (i *instance) create(n int) uuid.UUID {
	i.Helper()
	w, err := i.broker.CreateSubject(i.Context(), access.CreateRequest{Request: shop, Records: map[string][]byte{
		"profile": fmt.Appendf(nil, `{"email":"canary%d@example.org","displayName":"Canary Number %d"}`, n, n),
	}})
	if err != nil {
		i.Fatal(err)
	}
	return w.Subject
}

func (i *instance) read(subject uuid.UUID) (string, error) {
	r, err := i.broker.Read(i.Context(), access.ReadRequest{
		Request: shop, Subject: subject, Collection: "profile", Fields: []string{"email"}, Purpose: "order-fulfilment",
	})
	return string(r.Fields["email"]), err
}

func (i *instance) consent(subject uuid.UUID) uuid.UUID {
	i.Helper()
	c, err := i.broker.GiveConsent(i.Context(), access.ConsentRequest{Request: shop, Subject: subject, Purpose: "newsletter"})
	if err != nil {
		i.Fatal(err)
	}
	return c.ID
}

// backup takes a backup into a file.
func (i *instance) backup() (path string, b []byte) {
	i.Helper()
	var out bytes.Buffer
	if err := i.Backup(i.Context(), &out); err != nil {
		i.Fatal(err)
	}
	return i.file(out.Bytes()), out.Bytes()
}

func (i *instance) file(b []byte) string {
	i.Helper()
	path := filepath.Join(i.TempDir(), "backup")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		i.Fatal(err)
	}
	return path
}

// export writes the log as pdvault records export does.
func (i *instance) export() (dir string) {
	i.Helper()
	dir = i.TempDir()
	cp := i.ledger.Checkpoint()
	put := func(path string, b []byte, err error) {
		i.Helper()
		path = filepath.Join(dir, filepath.FromSlash(path))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o700)
		}
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			i.Fatal(err)
		}
	}
	for tile := range verify.TilesOf(cp.Size) {
		var b []byte
		var err error
		if tile.Level == verify.EntriesLevel {
			b, err = i.ledger.EntryBundle(i.Context(), tile.N, tile.Width)
		} else {
			b, err = i.ledger.Tile(i.Context(), tile.Level, tile.N, tile.Width)
		}
		put(tile.Path(), b, err)
	}
	put(verify.CheckpointPath, cp.Note, nil)
	return dir
}

// lose removes the data store, as a broken disk does.
func (i *instance) lose() {
	i.Helper()
	i.close()
	if err := os.RemoveAll(i.config.Store.Dir); err != nil {
		i.Fatal(err)
	}
}

func (i *instance) restore(o RestoreOptions) (RestoreReport, error) {
	i.Helper()
	return Restore(i.Context(), i.config, o, quiet())
}

// rewind is pdkeys rewind, to a checkpoint that the newest ledger key has signed.
func (i *instance) rewind(cp verify.Checkpoint) {
	i.Helper()
	m, err := sidecar.LoadMemory(i.Context(), i.keys.Ring)
	if err != nil {
		i.Fatal(err)
	}
	i.rewindUnder(cp, m.LedgerKeys[0])
}

func (i *instance) rewindUnder(cp verify.Checkpoint, key string) {
	i.Helper()
	i.keys.Stop()
	if _, err := sidecar.Rewind(i.Context(), i.keys.Ring, cp, key, time.Now()); err != nil {
		i.Fatal(err)
	}
	i.keys.Restart()
	i.keys.Serve()
}

// entries returns the entries of the ledger from index on.
func (i *instance) entries(from int64) (out []verify.Entry) {
	i.Helper()
	for n := from; n < i.ledger.Checkpoint().Size; n++ {
		raw, err := i.ledger.Entry(i.Context(), n)
		if err != nil {
			i.Fatal(err)
		}
		e, err := verify.ParseEntry(raw)
		if err != nil {
			i.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// A restored instance serves what was backed up, and the people's rights since then hold: who was erased stays
// erased, what was withdrawn stays withdrawn, what was restricted stays restricted.
func TestARestoredDataStoreServesWhatWasBackedUp(t *testing.T) {
	i := newInstance(t)
	var subjects []uuid.UUID
	for n := range 6 {
		subjects = append(subjects, i.create(n))
	}
	kept, erased, withdrawn, restricted, lifted := subjects[0], subjects[1], subjects[2], subjects[3], subjects[4]
	stays, ends := i.consent(kept), i.consent(withdrawn)
	i.consent(erased)
	if _, err := i.broker.SetRestriction(t.Context(), privacy, lifted, true, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := i.read(erased); err != nil {
		t.Fatal(err)
	}
	path, _ := i.backup()
	size := i.ledger.Checkpoint().Size

	if _, err := i.broker.WithdrawConsent(t.Context(), shop, ends); err != nil {
		t.Fatal(err)
	}
	if _, err := i.broker.SetRestriction(t.Context(), privacy, restricted, true, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := i.broker.SetRestriction(t.Context(), privacy, lifted, false, "test"); err != nil {
		t.Fatal(err)
	}
	late := i.create(100)
	if err := i.keys.Ring.Destroy(t.Context(), erased, "test"); err != nil {
		t.Fatal(err)
	}
	log := i.export()
	lost := i.ledger.Checkpoint()
	i.lose()

	report, err := i.restore(RestoreOptions{Archive: path, LogDir: log})
	if err != nil {
		t.Fatal(err)
	}
	if report.Erased != 1 || report.Withdrawn != 1 || report.Restrict != 1 || report.Lifted != 1 || report.Subjects != 5 ||
		report.Keyless != 0 || report.Reindex || !report.Rewind || report.Since[verify.KindSubjectCreated] != 1 {
		t.Errorf("%+v", report)
	}
	// The restored ledger is as long as the lost one here, and another.
	if _, err := Open(t.Context(), i.config, quiet()); !errors.Is(err, keys.ErrRolledBack) && !errors.Is(err, keys.ErrProofRefused) {
		t.Fatalf("without a rewind: %v", err)
	}
	i.rewind(report.Manifest.Ledger)
	i.open()

	for n, s := range subjects {
		value, err := i.read(s)
		switch {
		case s == erased:
			if !errors.Is(err, access.ErrNotFound) {
				t.Errorf("the erased subject: %v", err)
			}
		case s == restricted:
			if !errors.Is(err, access.ErrDenied) {
				t.Errorf("the restricted subject: %v", err)
			}
		case err != nil || value != fmt.Sprintf(`"canary%d@example.org"`, n):
			t.Errorf("subject %d: %v", n, err)
		}
	}
	if _, err := i.read(late); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("a subject of after the backup: %v", err)
	}
	for id, want := range map[uuid.UUID]string{stays: "ConsentGiven", ends: "ConsentWithdrawn"} {
		subject := kept
		if id == ends {
			subject = withdrawn
		}
		list, err := i.broker.Consents(t.Context(), privacy, subject)
		if err != nil || len(list) != 1 || list[0].ID != id || list[0].State != want {
			t.Errorf("consent: %+v, %v", list, err)
		}
	}

	// The index was made again: values are found, and those that are taken are refused.
	found, err := i.broker.Lookup(t.Context(), access.LookupRequest{
		Request: shop, Purpose: "order-fulfilment", Collection: "profile", Field: "email", Value: "canary0@example.org",
	})
	if err != nil || len(found.Subjects) != 1 || found.Subjects[0] != kept {
		t.Errorf("lookup: %v, %v", found.Subjects, err)
	}
	_, err = i.broker.CreateSubject(t.Context(), access.CreateRequest{Request: shop, Records: map[string][]byte{
		"profile": []byte(`{"email":"canary0@example.org"}`),
	}})
	if !errors.Is(err, access.ErrNotUnique) {
		t.Errorf("a taken value: %v", err)
	}
	i.create(1) // that of the erased subject is free

	// Nothing of the erased subject is left but that there was one.
	err = i.store.View(t.Context(), func(r kv.Reader) error {
		pairs, err := r.Scan(nil, nil, 100_000)
		for _, p := range pairs {
			if bytes.Contains(p.Key, erased[:]) && p.Key[0] != 's' || bytes.Equal(p.Value, erased[:]) {
				t.Errorf("a row of the erased subject is left, of kind %q", p.Key[:1])
			}
			if bytes.Contains(p.Key, erased[:]) && string(p.Value) != `{"f":1,"version":2,"erased":true}` {
				t.Errorf("its tombstone says %s", p.Value)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	// The log says what happened, and where the lost part ended.
	after := i.entries(size)
	r := after[0].Restored
	if after[0].Kind != verify.KindLedgerRestored || r == nil || r.Size != size || r.Lost != lost.Size || r.LostRoot != lost.Root.String() ||
		r.Backup != report.Manifest.ID || r.Erased != 1 || r.Withdrawn != 1 || r.Restrict != 1 {
		t.Errorf("first entry: %+v, %+v", after[0], r)
	}
	kinds := []string{after[1].Kind, after[2].Kind, after[3].Kind}
	if kinds[0] != verify.KindConsentWithdrawn || !strings.HasPrefix(kinds[1], "restriction.") || !strings.HasPrefix(kinds[2], "restriction.") {
		t.Errorf("entries: %v", kinds)
	}
	check, err := verify.VerifyLog(t.Context(), os.DirFS(i.export()), verify.LogCheck{Ledger: mustVerifier(t, i)})
	if err != nil || !check.OK() {
		t.Errorf("the restored log does not verify: %v, %v", err, check.Problems)
	}
}

func mustVerifier(t *testing.T, i *instance) note.Verifier {
	t.Helper()
	status, err := i.sidecar.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(status.LedgerKey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// When nothing was lost, the restored instance starts at once.
func TestARestoreThatLostNothingNeedsNoRewind(t *testing.T) {
	i := newInstance(t)
	s := i.create(1)
	path, _ := i.backup()
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: path})
	if err != nil || report.Rewind {
		t.Fatalf("%+v, %v", report, err)
	}
	i.open()
	if _, err := i.read(s); err != nil {
		t.Error(err)
	}
	// It is backed up and restored again, and that is another archive.
	again, _ := i.backup()
	i.lose()
	second, err := i.restore(RestoreOptions{Archive: again})
	if err != nil || second.Manifest.ID == report.Manifest.ID {
		t.Fatalf("%+v, %v", second, err)
	}
	if _, err := i.restore(RestoreOptions{Archive: again}); !errors.Is(err, ErrRestoreTarget) {
		t.Errorf("over a store that is there: %v", err)
	}
}

// A backup holds ciphertext and ledger: no value, no row of the index, nothing that is a mark of the store itself.
func TestABackupHoldsCiphertextOnly(t *testing.T) {
	i := newInstance(t)
	s := i.create(7)
	_, err := i.broker.CreateSubject(t.Context(), access.CreateRequest{
		Request: shop, Records: map[string][]byte{"profile": []byte(`{"email":"canary8@example.org"}`)},
		Idempotency: access.Idempotency{Key: "k", Route: "/v1/subjects", Fingerprint: [32]byte{1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.read(s); err != nil {
		t.Fatal(err)
	}
	if err := saveGeneration(t.Context(), i.store, i.sidecar.Generation()); err != nil {
		t.Fatal(err)
	}
	_, b := i.backup()
	for _, secret := range []string{"canary", "Canary", "example.org\""} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%q is in the backup", secret)
		}
	}
	kinds := map[byte]int{}
	in := bytes.NewReader(b)
	_, raw, err := archive.ReadHeader(in, archive.KindData)
	if err != nil {
		t.Fatal(err)
	}
	r := archive.NewReader(in, raw)
	for {
		p, err := r.Next()
		if err != nil {
			break
		}
		kinds[p.Key[0]]++
		if string(p.Key) == "mg" {
			t.Error("the mark of the key store is in the backup")
		}
	}
	if kinds['u']+kinds['x']+kinds['i']+kinds['y'] != 0 || kinds['s'] != 2 || kinds['r'] != 2 || kinds['l'] == 0 || kinds['p'] == 0 {
		t.Errorf("rows by kind: %v", kinds)
	}
}

// Whatever is wrong with an archive, it is refused before anything is touched.
func TestABadArchiveIsRefusedAndNothingIsTouched(t *testing.T) {
	i := newInstance(t)
	for n := range 3 {
		i.create(n)
	}
	_, good := i.backup()
	id, err := loadIdentity(t.Context(), i.store)
	if err != nil {
		t.Fatal(err)
	}
	signer, _, err := id.ledgerKey(t.Context(), i.sidecar)
	if err != nil {
		t.Fatal(err)
	}
	i.lose()
	parent := filepath.Dir(i.config.Store.Dir)
	before := treeHash(t, parent)

	refused := func(name string, b []byte, want ...error) {
		t.Helper()
		_, err := i.restore(RestoreOptions{Archive: i.file(b)})
		for _, w := range want {
			if errors.Is(err, w) {
				if treeHash(t, parent) != before {
					t.Fatalf("%s: something was touched", name)
				}
				return
			}
		}
		t.Errorf("%s: %v", name, err)
	}
	ends := blockEnds(good)
	for _, at := range append(ends[:len(ends)-1], 0, 1, 30, ends[0]+10, len(good)-1) {
		refused(fmt.Sprint("cut at ", at), good[:at], archive.ErrTruncated)
	}
	for at := 0; at < len(good); at += 1 + len(good)/60 {
		changed := bytes.Clone(good)
		changed[at] ^= 4
		refused(fmt.Sprint("flipped at ", at), changed, archive.ErrDamaged, archive.ErrForeign, archive.ErrNewer, archive.ErrTruncated)
	}
	refused("a byte more", append(bytes.Clone(good), 0), archive.ErrDamaged)

	// Somebody who can compute digests, and has a key of their own.
	skey, _, err := note.GenerateKey(rand.Reader, i.config.origin())
	if err != nil {
		t.Fatal(err)
	}
	other, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	forge := func(sign note.Signer, change func(*archive.Header, *verify.Backup), drop string) []byte {
		t.Helper()
		in := bytes.NewReader(good)
		header, raw, err := archive.ReadHeader(in, archive.KindData)
		if err != nil {
			t.Fatal(err)
		}
		r := archive.NewReader(in, raw)
		var pairs []kv.Pair
		for {
			p, err := r.Next()
			if err != nil {
				break
			}
			if drop == "" || p.Key[0] != drop[0] {
				pairs = append(pairs, p)
			}
		}
		m, err := verify.ReadBackup(r.Seal())
		if err != nil {
			t.Fatal(err)
		}
		change(&header, &m)
		var out bytes.Buffer
		raw, err = archive.WriteHeader(&out, header)
		if err != nil {
			t.Fatal(err)
		}
		w := archive.NewWriter(&out, raw)
		for _, p := range pairs {
			if err := w.Add(p.Key, p.Value); err != nil {
				t.Fatal(err)
			}
		}
		if _, err = w.Close(func(archive.Summary) ([]byte, error) {
			return note.Sign(&note.Note{Text: m.Format()}, sign)
		}); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	nothing := func(*archive.Header, *verify.Backup) {}
	refused("signed by another key", forge(other, nothing, ""), archive.ErrForeign)
	refused("a row left out", forge(signer, nothing, "r"), archive.ErrForeign)
	refused("another id", forge(signer, func(h *archive.Header, _ *verify.Backup) { h.ID = uuid.New() }, ""), archive.ErrForeign)
	refused("another instance", forge(signer, func(h *archive.Header, m *verify.Backup) { h.Instance, m.Instance = "other", "other" }, ""), archive.ErrForeign)
	refused("another kind", forge(signer, func(h *archive.Header, _ *verify.Backup) { h.Kind = archive.KindKeys }, ""), archive.ErrForeign)
	refused("another root", forge(signer, func(_ *archive.Header, m *verify.Backup) { m.Ledger.Root[0] ^= 1 }, ""), archive.ErrDamaged, archive.ErrForeign)

	if _, err := i.restore(RestoreOptions{Archive: i.file(good)}); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// A log that does not go on from the backup, or does not verify, is refused before anything is touched.
func TestALogThatDoesNotFitIsRefused(t *testing.T) {
	i := newInstance(t)
	i.create(1)
	early := i.export()
	i.create(2)
	path, _ := i.backup()
	i.create(3)
	damaged := i.export()
	i.lose()
	entries := filepath.Join(damaged, "tile", "entries")
	err := filepath.WalkDir(entries, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(p, bytes.Replace(b, []byte("shop"), []byte("shoq"), 1), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	before := treeHash(t, filepath.Dir(i.config.Store.Dir))
	for name, dir := range map[string]string{"older than the backup": early, "changed": damaged, "absent": t.TempDir()} {
		if _, err := i.restore(RestoreOptions{Archive: path, LogDir: dir}); !errors.Is(err, ErrRestoreLog) {
			t.Errorf("%s: %v", name, err)
		}
		if treeHash(t, filepath.Dir(i.config.Store.Dir)) != before {
			t.Errorf("%s: something was touched", name)
		}
	}
}

// A restore that stops half way leaves nothing that could be served, and is begun again.
func TestARestoreThatStopsHalfWayIsBegunAgain(t *testing.T) {
	i := newInstance(t)
	s := i.create(1)
	path, _ := i.backup()
	i.lose()
	i.keys.Ring.FailOnce("Reseal", keys.ErrUnavailable)
	if _, err := i.restore(RestoreOptions{Archive: path}); !errors.Is(err, keys.ErrUnavailable) {
		t.Fatalf("%v", err)
	}
	i.keys.Ring.Before(nil)
	if _, err := os.Stat(i.config.Store.Dir + ".restoring"); err != nil {
		t.Errorf("it did not stop half way: %v", err)
	}
	if _, err := Open(t.Context(), i.config, quiet()); !errors.Is(err, errNotInitialised) {
		t.Errorf("what is half restored can be opened: %v", err)
	}
	if _, err := i.restore(RestoreOptions{Archive: path}); err != nil {
		t.Fatal(err)
	}
	i.open()
	if _, err := i.read(s); err != nil {
		t.Error(err)
	}
}

// A backup was taken while an erasure was half done. The restored instance finishes it, and gives a certificate.
func TestAnErasureThatWasPendingInABackupIsFinished(t *testing.T) {
	i := newInstance(t)
	i.create(1)
	subject := i.create(2)
	i.keys.Ring.Before(func(op string) error {
		if op == "DestroyRef" {
			return keys.ErrUnavailable
		}
		return nil
	})
	_, err := i.broker.Erase(t.Context(), access.EraseRequest{Request: privacy, Subject: subject, Reason: "subject-request"})
	var pending *access.PendingErasureError
	if !errors.As(err, &pending) {
		t.Fatalf("%v", err)
	}
	path, _ := i.backup()
	i.lose()
	i.keys.Ring.Before(nil)
	report, err := i.restore(RestoreOptions{Archive: path})
	if err != nil || report.Subjects != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	if report.Rewind {
		i.rewind(report.Manifest.Ledger)
	}
	i.open()
	c, err := i.broker.Erasure(t.Context(), privacy, pending.ID)
	if err != nil || c.Erased.Index != pending.Entry {
		t.Errorf("%+v, %v", c, err)
	}
	if n, err := i.broker.PendingErasures(t.Context()); n != 0 || err != nil {
		t.Errorf("%d pending, %v", n, err)
	}
	check, err := verify.VerifyLog(t.Context(), os.DirFS(i.export()), verify.LogCheck{Ledger: mustVerifier(t, i)})
	if err != nil || !check.OK() || check.Erasures.Pending != 0 {
		t.Errorf("the log: %v, %+v", err, check)
	}
}

// rotate has keys of scope replaced.
func (i *instance) rotate(scope string) {
	i.Helper()
	started, err := i.broker.StartRotation(i.Context(), security, scope, uuid.Nil)
	if err != nil {
		i.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r, err := i.broker.Rotation(i.Context(), security, started.ID)
		if err == nil && r.Record >= 0 {
			return
		}
		if time.Now().After(deadline) {
			i.Fatalf("the rotation is not done: %+v, %v", r, err)
		}
	}
}

// The ledger's key is replaced while pdvault runs. Backups of after that can be restored, during the overlap and after
// it, with no restart in between; one of before cannot, which is said before anything is touched.
func TestABackupFollowsTheLedgersKey(t *testing.T) {
	i := newInstance(t)
	s := i.create(1)
	old, _ := i.backup()
	i.rotate(access.ScopeLedger)
	during, _ := i.backup()
	if err := i.ledgerKeys.dropDue(t.Context(), time.Now().Add(2*defaultKeyOverlap)); err != nil {
		t.Fatal(err)
	}
	after, _ := i.backup()

	i.lose()
	if _, err := i.restore(RestoreOptions{Archive: old}); !errors.Is(err, archive.ErrForeign) {
		t.Errorf("a backup of before: %v", err)
	}
	for _, path := range []string{during, after} {
		report, err := i.restore(RestoreOptions{Archive: path})
		if err != nil {
			t.Fatal(err)
		}
		i.rewind(report.Manifest.Ledger)
		i.open()
		if _, err := i.read(s); err != nil {
			t.Error(err)
		}
		i.lose()
	}
}

// The key of the index was replaced after the backup. The restore says so, and the start makes the index anew before
// anything is served: what is taken stays taken, what is free can be written.
func TestTheIndexOfAnOlderBackupIsMadeAnew(t *testing.T) {
	i := newInstance(t)
	i.create(1)
	path, _ := i.backup()
	i.rotate(access.ScopeIndex)
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: path})
	if err != nil || !report.Reindex {
		t.Fatalf("%+v, %v", report, err)
	}
	i.rewind(report.Manifest.Ledger)
	i.open()
	_, err = i.broker.CreateSubject(t.Context(), access.CreateRequest{Request: shop, Records: map[string][]byte{
		"profile": []byte(`{"email":"canary1@example.org"}`),
	}})
	if !errors.Is(err, access.ErrNotUnique) {
		t.Errorf("a taken value: %v", err)
	}
	i.create(2)
}

// A backup in the middle of which the ledger's key was replaced is signed with the keys of its snapshot. The newer one
// is lost with the store, so the sidecar is made to forget it.
func TestABackupIsSignedWithTheKeysOfItsSnapshot(t *testing.T) {
	i := newInstance(t)
	s := i.create(1)
	var once sync.Once
	var out bytes.Buffer
	err := i.Backup(t.Context(), writerFunc(func(b []byte) (int, error) {
		once.Do(func() { i.rotate(access.ScopeLedger) }) // the snapshot was taken before
		return out.Write(b)
	}))
	if err != nil {
		t.Fatal(err)
	}
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: i.file(out.Bytes())})
	if err != nil || !report.Rewind {
		t.Fatalf("%+v, %v", report, err)
	}
	m, err := sidecar.LoadMemory(t.Context(), i.keys.Ring)
	if err != nil {
		t.Fatal(err)
	}
	i.rewindUnder(report.Manifest.Ledger, m.LedgerKeys[1])
	i.open()
	if _, err := i.read(s); err != nil {
		t.Error(err)
	}
}

// One backup at a time; a client that goes away ends it, and the next one is not held up.
func TestABackupEndsWithItsClient(t *testing.T) {
	i := newInstance(t)
	i.create(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.Backup(ctx, new(bytes.Buffer)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	inside, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- i.Backup(t.Context(), writerFunc(func(b []byte) (int, error) {
			once.Do(func() {
				close(inside)
				<-release
			})
			return len(b), nil
		}))
	}()
	<-inside
	if err := i.Backup(t.Context(), new(bytes.Buffer)); !errors.Is(err, access.ErrBusy) {
		t.Errorf("a second one: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	i.backup()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestOnlySecurityMayTakeABackup(t *testing.T) {
	i := newInstance(t)
	if err := i.broker.PermitBackup(t.Context(), security); err != nil {
		t.Errorf("security: %v", err)
	}
	for _, r := range []access.Request{shop, privacy, {}} {
		size := i.ledger.Checkpoint().Size
		if err := i.broker.PermitBackup(t.Context(), r); !errors.Is(err, access.ErrDenied) {
			t.Errorf("%q: %v", r.Caller.ID, err)
		}
		if e := i.entries(size); len(e) != 1 || e[0].Decision != verify.Deny {
			t.Errorf("%q: the denial is not on record", r.Caller.ID)
		}
	}
}

// blockEnds are the places in an archive at which a block, or the header, ends.
func blockEnds(b []byte) []int {
	magic := len("pdvault/archive/v1\n")
	at := magic + 4 + int(binary.BigEndian.Uint32(b[magic:])) + 32
	ends := []int{at}
	for at < len(b) {
		at += 5 + int(binary.BigEndian.Uint32(b[at+1:])) + 32
		ends = append(ends, at)
	}
	return ends
}

// treeHash is over the names and contents of everything below dir.
func treeHash(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %v\n", path, d.Type())
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "%x\n", sha256.Sum256(b))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
