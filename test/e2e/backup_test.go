package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// backup takes a backup of the data store as the security team does.
func (i *instance) backup() (path string) {
	i.t.Helper()
	path = filepath.Join(i.t.TempDir(), "data.backup")
	if out, err := i.pdvault("security", "backup", "--out", path); err != nil {
		i.t.Fatalf("taking a backup: %v\n%s", err, out)
	}
	return path
}

// wantEmail reads the e-mail address of a person of person(n).
func (i *instance) wantEmail(subject string, n int) {
	i.t.Helper()
	a := i.read("shop", subject, "order-fulfilment", "email")
	var read struct{ Fields struct{ Email string } }
	if a.Status != http.StatusOK || json.Unmarshal(a.Body, &read) != nil || read.Fields.Email != fmt.Sprintf("person%d@example.org", n) {
		i.t.Errorf("subject %d: %d", n, a.Status)
	}
}

// The data store is lost. It is restored from a backup with the commands that the operator has, the security team
// accepts the loss, and the instance goes on; nobody but the security team can take a backup.
func TestALostDataStoreIsRestored(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	var subjects []string
	for n := range 20 {
		subjects = append(subjects, i.create(person(n)))
	}
	for _, caller := range []string{"shop", "auditor", "privacy"} {
		if _, err := i.pdvault(caller, "backup", "--out", filepath.Join(t.TempDir(), "b")); err == nil {
			t.Errorf("%s takes a backup", caller)
		}
	}
	path := i.backup()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("@example.org")) || bytes.Contains(raw, []byte("Given1")) {
		t.Error("there is personal data in the backup")
	}
	late := i.create(person(100))
	log := filepath.Join(t.TempDir(), "log")
	if _, err := i.pdvault("auditor", "records", "export", log); err != nil {
		t.Fatal(err)
	}
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Output(t.Context(), "pdvault", "restore", "--config", i.Path("pdvault.yaml"), "--from", path); err == nil {
		t.Error("a restore replaced a store")
	}
	if err := os.RemoveAll(i.Path("data")); err != nil {
		t.Fatal(err)
	}
	out, err := i.Output(t.Context(), "pdvault", "restore", "--config", i.Path("pdvault.yaml"), "--from", path, "--log", log)
	if err != nil || !strings.Contains(string(out), "20 live") || !strings.Contains(string(out), "pdkeys rewind") {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := i.StartVault(t.Context()); err == nil {
		t.Fatal("pdvault serves a ledger that has lost its end, and nobody has accepted that")
	}
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := i.Output(t.Context(), "pdkeys", "rewind", "--config", i.Path("pdkeys.yaml"), "--backup", path); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n, s := range subjects {
		i.wantEmail(s, n)
	}
	if a := i.read("shop", late, "order-fulfilment", "email"); a.Status != http.StatusNotFound {
		t.Errorf("a subject of after the backup: %d", a.Status)
	}
	i.create(person(100))
	found := false
	for _, e := range i.ledger(0) {
		found = found || e.Kind == "ledger.restored"
	}
	if !found {
		t.Error("the ledger does not say that it was restored")
	}
	i.verifyLedger()
}

// A restore that is killed at any moment leaves nothing that is taken for a store, and is begun again.
func TestARestoreThatIsKilledIsBegunAgain(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	subjects := make([]string, 60)
	for n := range subjects {
		subjects[n] = i.create(person(n))
	}
	path := i.backup()
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(i.Path("data")); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	args := []string{"restore", "--config", i.Path("pdvault.yaml"), "--from", path}
	for round := range 8 {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "pdvault"), args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(30+rng.IntN(400)) * time.Millisecond)
		_ = cmd.Process.Kill() // it may have ended
		if err := cmd.Wait(); err == nil {
			t.Logf("round %d: it was done", round)
			break
		}
		if _, err := os.Stat(i.Path("data")); err == nil {
			break // it was killed after the store had its name
		}
	}
	if _, err := os.Stat(i.Path("data")); err != nil {
		if out, err := i.Output(t.Context(), "pdvault", args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n, s := range subjects {
		i.wantEmail(s, n)
	}
	i.verifyLedger()
}

// The key store is lost after a person was erased and others were added. Restored from a backup and the log, it opens
// what it could open then, never the erased person's data, and pdvault takes it for what it is.
func TestALostKeyStoreIsRestored(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	first, second := i.create(person(1)), i.create(person(2))
	path := filepath.Join(t.TempDir(), "keys.backup")
	if out, err := i.Output(t.Context(), "pdkeys", "backup", "--config", i.Path("pdkeys.yaml"), "--out", path); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if a := i.call("privacy", "DELETE", "/v1/subjects/"+second, `{"reason":"subject-request"}`); a.Status != http.StatusOK {
		t.Fatalf("erasing: %d", a.Status)
	}
	ledgerKey, witnessKey := i.publicKeys()
	log := filepath.Join(t.TempDir(), "log")
	if _, err := i.pdvault("auditor", "records", "export", log); err != nil {
		t.Fatal(err)
	}
	for _, stop := range []func() error{i.Vault.Stop, i.Keys.Stop} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(i.Path("keys")); err != nil {
		t.Fatal(err)
	}
	out, err := i.Output(t.Context(), "pdkeys", "restore", "--config", i.Path("pdkeys.yaml"), "--from", path,
		"--log", log, "--ledger-key", ledgerKey, "--witness-key", witnessKey)
	if err != nil || !strings.Contains(string(out), "erasures carried out again: 1, of 1") {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.wantEmail(first, 1)
	if a := i.read("shop", second, "order-fulfilment", "email"); a.Status != http.StatusNotFound {
		t.Errorf("the erased subject: %d", a.Status)
	}
	i.create(person(3))
	i.verifyLedger()
}
