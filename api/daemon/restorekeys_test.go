package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

// rotated rotates keys of a scope and waits until that is on record.
func (i *instance) rotated(scope string) {
	i.Helper()
	job, err := i.sidecar.StartJob(i.Context(), scope, uuid.Nil, "test")
	if err != nil {
		i.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		jobs, err := i.sidecar.Jobs(i.Context())
		if err != nil {
			i.Fatal(err)
		}
		for _, j := range jobs {
			if j.ID == job.ID && j.State == keyring.JobDone && j.Recorded >= 0 {
				return
			}
			if j.ID == job.ID && j.State == keyring.JobFailed || time.Now().After(deadline) {
				i.Fatalf("rotation of %s: %+v", scope, j)
			}
		}
	}
}

func (i *instance) ledgerKey() string {
	i.Helper()
	status, err := i.sidecar.Status(i.Context())
	if err != nil {
		i.Fatal(err)
	}
	return status.LedgerKey
}

// found looks a person up by the e-mail address of create(n).
func (i *instance) found(n int) []uuid.UUID {
	i.Helper()
	f, err := i.broker.Lookup(i.Context(), access.LookupRequest{
		Request: shop, Purpose: "order-fulfilment", Collection: "profile", Field: "email", Value: email(n),
	})
	if err != nil {
		i.Fatal(err)
	}
	return f.Subjects
}

func email(n int) string { return strings.Trim(emailJSON(n), `"`) }

func (i *instance) taken(n int) error {
	_, err := i.broker.CreateSubject(i.Context(), access.CreateRequest{Request: shop, Records: map[string][]byte{
		"profile": []byte(`{"email":` + emailJSON(n) + `}`),
	}})
	return err
}

// A backup from before a rotation of the ledger key is restored, and the sidecar takes the older key again, since the
// newer one was lost with the store.
func TestABackupOfBeforeARotationOfTheLedgerKeyIsRestored(t *testing.T) {
	i := newInstance(t)
	s := i.create(1)
	first := i.ledgerKey()
	path, _ := i.backup()
	i.rotated(keyring.ScopeLedger)
	if i.ledgerKey() == first {
		t.Fatal("the key was not replaced")
	}
	log := i.export()
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: path, LogDir: log})
	if err != nil || !report.Rewind {
		t.Fatalf("%+v, %v", report, err)
	}
	i.rewindUnder(report.Manifest.Ledger, first)
	i.open()
	if _, err := i.read(s); err != nil {
		t.Error(err)
	}
	if got := i.ledgerKey(); got != first {
		t.Errorf("the sidecar is bound to %s", got)
	}
	i.rotated(keyring.ScopeLedger) // and it can be replaced again
	i.create(2)
}

// A backup from within the overlap is signed with both keys, whatever key its process began with.
func TestABackupDuringTheOverlapOfLedgerKeysIsRestored(t *testing.T) {
	i := newInstance(t)
	s := i.create(1)
	first := i.ledgerKey()
	i.rotated(keyring.ScopeLedger)
	second := i.ledgerKey()
	path, b := i.backup()
	for _, key := range []string{first, second} {
		v, err := note.NewVerifier(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify.OpenBackup(sealOfArchive(t, b), v); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := i.ledgerKeys.dropDue(t.Context(), time.Now().Add(365*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	log := i.export()
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: path, LogDir: log})
	if err != nil {
		t.Fatal(err)
	}
	i.rewindUnder(report.Manifest.Ledger, second)
	i.open()
	if _, err := i.read(s); err != nil {
		t.Error(err)
	}
	// What the restored identity does not know yet happens again.
	if err := i.ledgerKeys.dropDue(t.Context(), time.Now().Add(365*24*time.Hour)); err != nil {
		t.Error(err)
	}
}

// When its key was dropped since, a backup is refused with what to do, and restored on the word of who has kept the key.
func TestABackupUnderADroppedLedgerKeyNeedsThatKey(t *testing.T) {
	i := newInstance(t)
	s := i.create(1)
	first := i.ledgerKey()
	path, _ := i.backup()
	i.rotated(keyring.ScopeLedger)
	if err := i.ledgerKeys.dropDue(t.Context(), time.Now().Add(365*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	i.lose()
	before := treeHash(t, filepath.Dir(i.config.Store.Dir))
	if _, err := i.restore(RestoreOptions{Archive: path}); err == nil || !strings.Contains(err.Error(), "--ledger-key") {
		t.Errorf("without the key: %v", err)
	}
	if treeHash(t, filepath.Dir(i.config.Store.Dir)) != before {
		t.Error("something was touched")
	}
	report, err := i.restore(RestoreOptions{Archive: path, LedgerKeys: []string{first}})
	if err != nil || !report.Rewind {
		t.Fatalf("%+v, %v", report, err)
	}
	i.rewindUnder(report.Manifest.Ledger, first)
	i.open()
	if _, err := i.read(s); err != nil {
		t.Error(err)
	}
}

// A backup from before a rotation of the index holds tokens of a key that is gone. Before anything is served all are
// made anew: people are found, and no value that is unique is given twice.
func TestARestoreOfBeforeARotationOfTheIndexMakesItAnew(t *testing.T) {
	i := newInstance(t)
	subjects := []uuid.UUID{i.create(0), i.create(1), i.create(2)}
	path, _ := i.backup()
	i.rotated(keyring.ScopeIndex)
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: path})
	if err != nil || !report.Reindex {
		t.Fatalf("%+v, %v", report, err)
	}
	i.rewind(report.Manifest.Ledger)
	i.open()
	i.wantIndex(subjects)
	i.rotated(keyring.ScopeIndex) // it is an index like any other
	i.wantIndex(subjects)

	// A key of the same version is told from another. So it is after the key store was restored and rotated.
	i.corrupt(indexChecks, []byte(`{"3":"00000000000000000000000000000000"}`))
	i.close()
	size := i.size()
	i.open()
	i.wantIndex(subjects)
	if mends := i.mends(size); mends != 2 { // begun and done
		t.Errorf("%d entries of a mend", mends)
	}
	// One that was interrupted is begun anew; one that is done is not.
	i.corrupt(indexMend, []byte("interrupted"))
	i.close()
	i.open()
	i.wantIndex(subjects)
	i.close()
	size = i.size()
	i.open()
	if mends := i.mends(size); mends != 0 {
		t.Errorf("%d entries of a mend that nobody needed", mends)
	}
}

var indexChecks, indexMend = []byte("mk"), []byte("mr")

func (i *instance) wantIndex(subjects []uuid.UUID) {
	i.Helper()
	for n, s := range subjects {
		if f := i.found(n); len(f) != 1 || f[0] != s {
			i.Errorf("person %d is not found: %v", n, f)
		}
		if err := i.taken(n); !errors.Is(err, access.ErrNotUnique) {
			i.Errorf("value %d is given twice: %v", n, err)
		}
	}
}

func (i *instance) corrupt(key, value []byte) {
	i.Helper()
	if err := i.store.Update(i.Context(), func(w kv.Writer) error { w.Set(key, value); return nil }); err != nil {
		i.Fatal(err)
	}
}

// size is that of the ledger, as the sidecar has witnessed it.
func (i *instance) size() int64 {
	i.Helper()
	m, err := i.keys.Server.Status(i.Context(), nil)
	if err != nil {
		i.Fatal(err)
	}
	return m.WitnessedSize
}

func (i *instance) mends(from int64) (n int) {
	for _, e := range i.entries(from) {
		if e.Keys != nil && e.Keys.Phase == "mend" {
			n++
		}
	}
	return n
}

// A backup of before a rotation of all subjects' keys is dead. That is said, and nothing is touched, unless it is asked
// for in words.
func TestABackupThatNoKeyOpensIsRefused(t *testing.T) {
	i := newInstance(t)
	old := i.create(1)
	path, _ := i.backup()
	i.rotated(keyring.ScopeAllSubjects)
	fresh, _ := i.backup()
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: path})
	if !errors.Is(err, access.ErrUnreadable) || report.Unreadable != 1 || report.Keyless != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if names, err := os.ReadDir(filepath.Dir(i.config.Store.Dir)); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if _, err := i.restore(RestoreOptions{Archive: path, AcceptUnreadable: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(i.config.Store.Dir); err != nil {
		t.Fatal(err)
	}
	report, err = i.restore(RestoreOptions{Archive: fresh})
	if err != nil || report.Unreadable != 0 || report.Subjects != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	if report.Rewind {
		i.rewind(report.Manifest.Ledger)
	}
	i.open()
	if _, err := i.read(old); err != nil {
		t.Error(err)
	}
}

// Erasures since the backup are carried out again with their certificates: of who is in the backup, with or without a
// key, and of who is not.
func TestErasuresSinceABackupKeepTheirCertificates(t *testing.T) {
	i := newInstance(t)
	inBackup, other := i.create(1), i.create(2)
	path, _ := i.backup()
	late := i.create(3)
	erase := func(s uuid.UUID) uuid.UUID {
		t.Helper()
		c, err := i.broker.Erase(t.Context(), access.EraseRequest{Request: privacy, Subject: s, Reason: "subject-request"})
		if err != nil {
			t.Fatal(err)
		}
		return uuid.MustParse(c.ID)
	}
	certificates := []uuid.UUID{erase(inBackup), erase(late)}
	log := i.export()
	i.lose()
	report, err := i.restore(RestoreOptions{Archive: path, LogDir: log})
	if err != nil || report.Erased != 1 || report.Subjects != 1 || report.Pending != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	i.rewind(report.Manifest.Ledger)
	i.open()
	for _, id := range certificates {
		c, err := i.broker.Erasure(t.Context(), privacy, id)
		if err != nil || c.Status != erasure.Provisional || c.ID != id.String() {
			t.Errorf("certificate: %+v, %v", c, err)
		}
	}
	if _, err := i.read(inBackup); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("an erased person: %v", err)
	}
	if _, err := i.read(other); err != nil {
		t.Error(err)
	}
	check, err := verify.VerifyLog(t.Context(), os.DirFS(i.export()), verify.LogCheck{Ledger: mustVerifier(t, i)})
	if err != nil || !check.OK() || check.Erasures.Pending != 0 || check.Erasures.Erased != 2 {
		t.Errorf("%+v, %v", check, err)
	}
}

// A person who was erased, and whose key came back with an older key store, is erased again, key and all. So is one whose
// erasure the backup caught half done.
func TestAnErasureOfWhichTheKeyIsThereIsFinished(t *testing.T) {
	i := newInstance(t)
	s, half := i.create(1), i.create(2)
	i.keys.Ring.Before(func(op string) error {
		if op == "DestroyRef" {
			return errors.New("injected")
		}
		return nil
	})
	erase := func(s uuid.UUID) {
		t.Helper()
		_, err := i.broker.Erase(t.Context(), access.EraseRequest{Request: privacy, Subject: s, Reason: "subject-request"})
		if !errors.Is(err, access.ErrErasurePending) {
			t.Fatal(err)
		}
	}
	erase(half)
	path, _ := i.backup()
	erase(s)
	log := i.export()
	i.lose()
	i.keys.Ring.Before(nil)
	report, err := i.restore(RestoreOptions{Archive: path, LogDir: log})
	if err != nil || report.Pending != 2 || report.Erased != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	i.rewind(report.Manifest.Ledger)
	i.open()
	for _, s := range []uuid.UUID{s, half} {
		items, err := i.keys.Ring.Prepare(t.Context(), []keyring.PrepareItem{{Subject: s}})
		if err != nil || items[0].Err == nil {
			t.Errorf("a key is still there: %v", err)
		}
	}
	if n, err := i.broker.PendingErasures(t.Context()); err != nil || n != 0 {
		t.Errorf("%d erasures are pending, %v", n, err)
	}
}

func emailJSON(n int) string { return fmt.Sprintf(`"canary%d@example.org"`, n) }

// sealOfArchive returns the signed manifest of an archive.
func sealOfArchive(t *testing.T, b []byte) []byte {
	t.Helper()
	in := bytes.NewReader(b)
	_, raw, err := archive.ReadHeader(in, archive.KindData)
	if err != nil {
		t.Fatal(err)
	}
	r := archive.NewReader(in, raw)
	for err == nil {
		_, err = r.Next()
	}
	return r.Seal()
}
