package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

// keyBackup takes a backup of the key store as the security team does.
func (i *instance) keyBackup() (path string) {
	i.t.Helper()
	path = filepath.Join(i.t.TempDir(), "keys.backup")
	if out, err := i.Output(i.t.Context(), "pdkeys", "backup", "--config", i.Path("pdkeys.yaml"), "--out", path); err != nil {
		i.t.Fatalf("taking a backup of the keys: %v\n%s", err, out)
	}
	return path
}

// export exports the log as an auditor does.
func (i *instance) export() (dir string) {
	i.t.Helper()
	dir = filepath.Join(i.t.TempDir(), "log")
	if _, err := i.pdvault("auditor", "records", "export", dir); err != nil {
		i.t.Fatalf("exporting the log: %v", err)
	}
	return dir
}

// command runs a program beside a stopped, or half stopped, instance; it must succeed.
func (i *instance) command(program string, args ...string) string {
	i.t.Helper()
	out, err := i.Output(i.t.Context(), program, args...)
	if err != nil {
		i.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// fails runs a program that must fail, and say why.
func (i *instance) fails(why, program string, args ...string) {
	i.t.Helper()
	out, err := i.Output(i.t.Context(), program, args...)
	if err == nil || !strings.Contains(err.Error(), why) {
		i.t.Errorf("%s %s: want a refusal with %q: %v\n%s", program, args[0], why, err, out)
	}
}

func (i *instance) must(err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatal(err)
	}
}

// crowd is how many the drill is about.
const crowd = 300

// The drill: both stores are lost after a night in which people came, withdrew and were erased, and both are restored
// from the backups of the evening before.
func TestDrillBothStoresAreLost(t *testing.T) {
	t.Parallel()
	i, _ := startHashiCorp(t)
	vault, keyring := i.Path("pdvault.yaml"), i.Path("pdkeys.yaml")

	// The evening.
	subjects := make([]string, crowd)
	parallel(crowd, 8, func(n int) { subjects[n] = i.create(person(n)) })
	doubter := subjects[10]
	given := i.want(http.StatusCreated, "shop", "POST", "/v1/subjects/"+doubter+"/consents", `{"purpose":"newsletter","separate_document":true}`)
	i.wantEmail(subjects[0], 0)
	data, keyFile := i.backup(), i.keyBackup()

	// The night.
	late := i.create(person(crowd))
	i.want(http.StatusOK, "shop", "POST", "/v1/consents/"+given["record_id"].(string)+"/withdrawal", "{}")
	kept := filepath.Join(t.TempDir(), "old.checkpoint")
	i.must(os.Rename(filepath.Join(i.export(), "checkpoint"), kept)) // an auditor keeps it
	erased, certificates := subjects[:5], make([][]byte, 5)
	for n, s := range erased {
		certificates[n] = i.erase(s)
	}
	if out, err := i.verifyErasure(certificates[0]); err != nil || !strings.Contains(out, "backups of the key store may open until the next epoch") {
		t.Errorf("certificate before the epoch: %v\n%s", err, out)
	}
	log := i.export()
	ledgerKey, witnessKey := i.publicKeys()
	i.must(i.Vault.Stop())
	i.must(i.Keys.Stop())
	for _, name := range []string{"data", "keys"} {
		i.must(os.Rename(i.Path(name), i.Path("lost."+name)))
	}

	// The morning. What is not what it should be is refused, and nothing is touched.
	restoreKeys := func(from string) []string {
		return []string{"restore", "--config", keyring, "--from", from, "--log", log, "--ledger-key", ledgerKey, "--witness-key", witnessKey}
	}
	i.badArchives(keyFile, func(path, why string) { i.fails(why, "pdkeys", restoreKeys(path)...) })
	i.fails("of kind", "pdkeys", restoreKeys(data)...)
	i.fails("--accept-missing-erasures", "pdkeys", "restore", "--config", keyring, "--from", keyFile)
	i.absent("keys")
	if out := i.command("pdkeys", restoreKeys(keyFile)...); !strings.Contains(out, "erasures carried out again: 5, of 5") {
		t.Errorf("restoring the keys:\n%s", out)
	}
	i.must(i.StartKeys(t.Context()))
	i.badArchives(data, func(path, why string) { i.fails(why, "pdvault", "restore", "--config", vault, "--from", path) })
	i.fails("of kind", "pdvault", "restore", "--config", vault, "--from", keyFile)
	i.absent("data")
	out := i.command("pdvault", "restore", "--config", vault, "--from", data, "--log", log)
	for _, want := range []string{"295 live, 5 erased again", "1 withdrawals of consent", "1 subject.created", "pdkeys rewind"} {
		if !strings.Contains(out, want) {
			t.Errorf("restoring the data: no %q in\n%s", want, out)
		}
	}
	if err := i.StartVault(t.Context()); err == nil {
		t.Fatal("pdvault serves a ledger that has lost its end, and nobody has accepted that")
	}
	i.must(i.Keys.Stop())
	i.command("pdkeys", "rewind", "--config", keyring, "--backup", data)
	i.must(i.StartKeys(t.Context()))
	i.must(i.StartVault(t.Context()))

	// Everyone else is back.
	parallel(crowd-len(erased), 8, func(n int) { i.wantEmail(subjects[n+len(erased)], n+len(erased)) })
	if a := i.read("shop", late, "order-fulfilment", "email"); a.Status != http.StatusNotFound {
		t.Errorf("who came in the night: %d", a.Status)
	}
	i.gone(erased, data, subjects[100])
	if a := i.read("shop", doubter, "newsletter", "email"); a.Status != http.StatusForbidden {
		t.Errorf("a withdrawn consent: %d", a.Status)
	}
	i.create(person(0)) // a value of somebody erased is free again
	i.audited(kept)

	// Older copies of either store, of before the restore, are refused, for all that they are newer than the backups.
	i.must(i.Vault.Stop())
	i.must(i.Keys.Stop())
	for _, name := range []string{"keys", "data"} {
		i.must(os.Rename(i.Path(name), i.Path("good."+name)))
		i.must(os.CopyFS(i.Path(name), os.DirFS(i.Path("lost."+name))))
		i.must(os.Chmod(i.Path(name), 0o700))
		i.must(i.StartKeys(t.Context()))
		if err := i.StartVault(t.Context()); err == nil {
			t.Errorf("pdvault serves with the lost %s put back by hand", name)
			i.must(i.Vault.Stop())
		}
		i.must(i.Keys.Stop())
		i.must(os.RemoveAll(i.Path(name)))
		i.must(os.Rename(i.Path("good."+name), i.Path(name)))
	}
	i.must(i.StartKeys(t.Context()))
	i.must(i.StartVault(t.Context()))

	// The epoch. Now the old backup of the keys is dead, and the certificates say so.
	i.rotated(i.rotate("kek"), time.Minute)
	for n, certificate := range certificates {
		var c struct{ ID string }
		i.must(json.Unmarshal(certificate, &c))
		final := i.call("privacy", "GET", "/v1/erasures/"+c.ID, "")
		if out, err := i.verifyErasure(final.Body); final.Status != http.StatusOK || err != nil || !strings.Contains(out, "and final") {
			t.Errorf("certificate %d after the epoch: %d %v\n%s", n, final.Status, err, out)
		}
	}
	i.must(i.Vault.Stop())
	i.must(i.Keys.Stop())
	i.must(os.Rename(i.Path("keys"), i.Path("good.keys")))
	i.fails("older than the last epoch", "pdkeys", restoreKeys(keyFile)...)
	i.absent("keys")
	i.must(os.Rename(i.Path("good.keys"), i.Path("keys")))
	i.must(i.StartKeys(t.Context()))
	i.must(i.StartVault(t.Context()))
	i.wantEmail(subjects[100], 100)
	if status := i.command("pdkeys", "status", "--config", keyring); !strings.Contains(status, "rewound") {
		t.Errorf("the status does not tell of the rewind:\n%s", status)
	}
}

// absent demands that a store, and anything half made of it, is not there.
func (i *instance) absent(name string) {
	i.t.Helper()
	for _, path := range []string{i.Path(name), i.Path(name + ".restoring")} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			i.t.Errorf("%s: %v", path, err)
		}
	}
}

// badArchives makes archives out of a good one that must be refused.
func (i *instance) badArchives(good string, refused func(path, why string)) {
	i.t.Helper()
	b, err := os.ReadFile(good)
	i.must(err)
	flipped := bytes.Clone(b)
	flipped[len(b)/2] ^= 1
	for name, bad := range map[string]struct {
		b   []byte
		why string
	}{
		"truncated": {b[:len(b)/2], "nothing was touched"},
		"flipped":   {flipped, "nothing was touched"},
		"longer":    {append(bytes.Clone(b), 0), "nothing was touched"},
		"foreign":   {bytes.Replace(b, []byte(`"instance":"test"`), []byte(`"instance":"tess"`), 1), "nothing was touched"},
	} {
		path := filepath.Join(i.t.TempDir(), name)
		i.must(os.WriteFile(path, bad.b, 0o600))
		refused(path, bad.why)
	}
}

// gone tries everything that there is to read erased people: HTTP, and ciphertexts out of an old archive of the data
// shown to the sidecar itself. The one who is not erased shows that the latter would work.
func (i *instance) gone(erased []string, data, other string) {
	i.t.Helper()
	for n, s := range erased {
		for _, caller := range []string{"shop", "privacy", "courier", "security"} {
			for _, purpose := range []string{"order-fulfilment", "newsletter", "subject-access"} {
				if a := i.read(caller, s, purpose, "email"); a.Status == http.StatusOK || bytes.Contains(a.Body, []byte("@example.org")) {
					i.t.Errorf("%s reads an erased person for %s: %d", caller, purpose, a.Status)
				}
			}
		}
		found := i.want(http.StatusOK, "shop", "POST", "/v1/lookups",
			fmt.Sprintf(`{"purpose":"support","collection":"profile","field":"email","value":"person%d@example.org"}`, n))
		if list, _ := found["subjects"].([]any); len(list) != 0 {
			i.t.Errorf("an erased person is found by e-mail")
		}
	}
	sidecar, err := client.Dial(i.t.Context(), client.Config{Socket: i.Path("pdkeys.sock")})
	i.must(err)
	defer sidecar.Close()
	open := func(subject string) error {
		id := uuid.MustParse(subject)
		_, _, err := sidecar.Seal(i.t.Context(), id, false, []client.SealField{{
			Collection: "profile", Field: "email", Version: 2, Carry: emailIn(i.t, data, id), CarryVersion: 1,
		}})
		return err
	}
	if err := open(other); err != nil {
		i.t.Errorf("who is not erased: %v", err)
	}
	for _, s := range erased {
		if err := open(s); !errors.Is(err, keys.ErrDestroyed) {
			i.t.Errorf("an erased person's ciphertext: %v", err)
		}
	}
}

// emailIn finds the ciphertext of a person's e-mail address in an archive of the data; see vault.Row.
func emailIn(t *testing.T, path string, subject uuid.UUID) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, raw, err := archive.ReadHeader(f, archive.KindData)
	if err != nil {
		t.Fatal(err)
	}
	key := "r" + string(subject[:]) + "profile"
	for rows := archive.NewReader(f, raw); ; {
		p, err := rows.Next()
		if err != nil {
			t.Fatalf("looking for a record in the archive: %v", err)
		}
		if string(p.Key) != key {
			continue
		}
		at := bytes.Index(p.Value, []byte("\x05email")) + len("\x05email")
		size, n := binary.Uvarint(p.Value[at:])
		return p.Value[at+n:][:size]
	}
}

// audited has an auditor look at the restored ledger: it verifies, it says that it was restored, and who kept a
// checkpoint of what is lost is told.
func (i *instance) audited(kept string) {
	i.t.Helper()
	restored := 0
	for _, e := range i.ledger(0) {
		if e.Kind == "ledger.restored" {
			restored++
		}
	}
	if report := i.verifyLedger(); restored != 1 || !strings.Contains(report, "restored    by entry") {
		i.t.Errorf("the ledger does not say that it was restored:\n%s", report)
	}
	ledgerKey, witnessKey := i.publicKeys()
	out, err := i.Output(i.t.Context(), "pdaudit", "verify", "ledger", i.export(), "--ledger-key", ledgerKey, "--witness-key", witnessKey, "--from", kept)
	if err == nil || !strings.Contains(string(out), "restored: the log was restored from backup") {
		i.t.Errorf("an auditor with an older checkpoint is told: %v\n%s", err, out)
	}
}

// A backup or a restore that is killed at any moment leaves nothing that is taken for whole, and is begun again.
func TestBackupsAndRestoresThatAreKilled(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	subjects := make([]string, 60)
	for n := range subjects {
		subjects[n] = i.create(person(n))
	}
	erased := i.create(person(100))
	vault, keyring, dir := i.Path("pdvault.yaml"), i.Path("pdkeys.yaml"), t.TempDir()
	rng := rand.New(rand.NewPCG(5, 6))
	keyFile := i.keyBackup()
	token := filepath.Join(dir, "token")
	i.must(os.WriteFile(token, []byte(i.Token("security")+"\n"), 0o600))
	for round := range killsOfBackups() {
		data, keyFile := filepath.Join(dir, fmt.Sprint("data", round)), filepath.Join(dir, fmt.Sprint("keys", round))
		i.killed(rng, "pdvault", "backup", "--out", data, "--server", i.URL, "--token-file", token)
		i.killed(rng, "pdkeys", "backup", "--config", keyring, "--out", keyFile)
		if _, err := os.Stat(data); err == nil {
			wholeArchive(t, data, archive.KindData)
		}
		if _, err := os.Stat(keyFile); err == nil {
			i.command("pdkeys", "restore", "--config", i.elsewhere(fmt.Sprint("whole", round)), "--from", keyFile, "--accept-missing-erasures")
		}
	}
	i.erase(erased)
	log := i.export()
	ledgerKey, witnessKey := i.publicKeys()
	i.must(i.Vault.Stop())
	i.must(i.Keys.Stop())
	i.must(os.RemoveAll(i.Path("keys")))
	restore := []string{"restore", "--config", keyring, "--from", keyFile, "--log", log, "--ledger-key", ledgerKey, "--witness-key", witnessKey}
	for range killsOfBackups() {
		i.killed(rng, "pdkeys", restore...)
		if _, err := os.Stat(i.Path("keys")); err == nil {
			break // it was done
		}
		i.fails("there is none", "pdkeys", "serve", "--config", keyring)
	}
	if _, err := os.Stat(i.Path("keys")); err != nil {
		i.command("pdkeys", restore...)
	}
	i.must(i.StartKeys(t.Context()))
	i.must(i.StartVault(t.Context()))
	for n, s := range subjects {
		i.wantEmail(s, n)
	}
	if a := i.read("shop", erased, "order-fulfilment", "email"); a.Status != http.StatusNotFound {
		t.Errorf("the erased person: %d", a.Status)
	}
	if _, err := os.Stat(vault); err != nil {
		t.Error(err)
	}
	i.verifyLedger()
}

// killsOfBackups is how often each program is killed; with -race they take seconds to start on a busy machine.
func killsOfBackups() int {
	if stack.Race {
		return 3
	}
	return 8
}

// killed runs a program and kills it at a random moment, if it has not ended by then.
func (i *instance) killed(rng *rand.Rand, program string, args ...string) {
	i.t.Helper()
	cmd := exec.CommandContext(i.t.Context(), filepath.Join(bin, program), args...)
	i.must(cmd.Start())
	time.Sleep(time.Duration(10+rng.IntN(300)) * time.Millisecond)
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()
}

// elsewhere writes a configuration of pdkeys that differs in where the key store is.
func (i *instance) elsewhere(name string) (path string) {
	i.t.Helper()
	b, err := os.ReadFile(i.Path("pdkeys.yaml"))
	i.must(err)
	path = i.Path("pdkeys-" + name + ".yaml")
	i.must(os.WriteFile(path, bytes.Replace(b, []byte("{dir: keys}"), []byte("{dir: "+name+"}"), 1), 0o600))
	return path
}

func wholeArchive(t *testing.T, path, kind string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, raw, err := archive.ReadHeader(f, kind)
	if err != nil {
		t.Fatal(err)
	}
	rows := archive.NewReader(f, raw)
	for err == nil {
		_, err = rows.Next()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("an archive that is there is not whole: %v", err)
	}
}

// The key store in HashiCorp Vault is lost and restored into another path. What an interrupted restore leaves there is
// never served, and a path that holds an older state of the keys is refused.
func TestAKeyStoreInHashiCorpVaultIsRestored(t *testing.T) {
	t.Parallel()
	if _, err := hcserver.Binary(); err != nil {
		t.Skipf("no HashiCorp Vault to test with: %v", err)
	}
	dir := shortDir(t)
	hc, err := hcserver.Start(t.Context(), filepath.Join(dir, "hc"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hc.Close() })
	kek, err := stack.HashiCorpKEK(t.Context(), hc, dir)
	if err != nil {
		t.Fatal(err)
	}
	role := &hcserver.AppRole{Role: "pdvault-sidecar"}
	for _, path := range []string{"first", "second"} {
		if err := hc.SetupStore(t.Context(), role, "pdvault-keys", path); err != nil {
			t.Fatal(err)
		}
	}
	i := start(t, stack.Options{Dir: filepath.Join(dir, "pdv"), KEK: kek, KeyStore: "{type: hcvault, hcvault: {path: first}}"})
	keyring := i.Path("pdkeys.yaml")
	subjects := make([]string, 40)
	for n := range subjects {
		subjects[n] = i.create(person(n))
	}
	erased := i.create(person(100))
	keyFile := i.keyBackup()
	i.erase(erased)
	log := i.export()
	ledgerKey, witnessKey := i.publicKeys()
	i.must(i.Vault.Stop())
	i.must(i.Keys.Stop())
	restore := []string{"restore", "--config", keyring, "--from", keyFile, "--log", log, "--ledger-key", ledgerKey, "--witness-key", witnessKey}
	i.fails("nothing was touched", "pdkeys", restore...) // over the store that is there
	i.path("first", "second")
	i.badArchives(keyFile, func(path, why string) {
		i.fails(why, "pdkeys", "restore", "--config", keyring, "--from", path, "--accept-missing-erasures")
	})
	i.fails("there is none", "pdkeys", "serve", "--config", keyring)

	// Killed as soon as there is something there.
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "pdkeys"), restore...)
	i.must(cmd.Start())
	eventually(t, "rows are restored", func() bool {
		var rows struct{ Keys []string }
		return hc.Request(t.Context(), "LIST", "pdvault-keys/metadata/second/rows", nil, &rows) == nil && len(rows.Keys) > 0
	})
	_ = cmd.Process.Kill() // it may have ended
	if err := cmd.Wait(); err == nil {
		t.Fatal("the restore was not killed: there is nothing to test")
	}
	i.fails("begin it again", "pdkeys", "serve", "--config", keyring)
	if out := i.command("pdkeys", restore...); !strings.Contains(out, "erasures carried out again: 1, of 1") {
		t.Errorf("%s", out)
	}
	i.must(i.StartKeys(t.Context()))
	i.must(i.StartVault(t.Context()))
	for n, s := range subjects {
		i.wantEmail(s, n)
	}
	if a := i.read("shop", erased, "order-fulfilment", "email"); a.Status != http.StatusNotFound {
		t.Errorf("the erased person: %d", a.Status)
	}
	i.create(person(200))
	i.verifyLedger()
	i.must(i.Vault.Stop())
	i.must(i.Keys.Stop())
	i.path("second", "first") // where everything was before
	i.must(i.StartKeys(t.Context()))
	if err := i.StartVault(t.Context()); err == nil {
		t.Error("pdvault serves with the key store of before the restore")
	}
}

// path changes where in HashiCorp Vault the key store is.
func (i *instance) path(from, to string) {
	i.t.Helper()
	b, err := os.ReadFile(i.Path("pdkeys.yaml"))
	i.must(err)
	i.must(os.WriteFile(i.Path("pdkeys.yaml"), bytes.Replace(b, []byte("{path: "+from+"}"), []byte("{path: "+to+"}"), 1), 0o600))
}
