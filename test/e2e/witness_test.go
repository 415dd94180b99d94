package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// witnessKeys asks the sidecar for all the keys that it cosigns with, the newest first.
func (i *instance) witnessKeys() []string {
	i.t.Helper()
	status, err := i.Output(i.t.Context(), "pdkeys", "status", "--config", i.Path("pdkeys.yaml"))
	if err != nil {
		i.t.Fatalf("asking for the public keys: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		if keys, ok := strings.CutPrefix(line, "witness key"); ok {
			return strings.Fields(keys)
		}
	}
	i.t.Fatalf("no witness key in the status:\n%s", status)
	return nil
}

// While the witness changes its key, an auditor who has the key before and one who has the new key verify the same
// log and the same certificate, without a restart and after one.
func TestAnAuditorWithEitherWitnessKeyVerifiesDuringAnOverlap(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	i.create(person(1))
	subject := i.create(person(2))
	i.rotated(i.rotate("witness"), time.Minute)
	keys := i.witnessKeys()
	if len(keys) != 2 {
		t.Fatalf("%d witness keys overlap", len(keys))
	}
	ledgerKey, _ := i.publicKeys()
	verified := func(when string, args ...string) {
		t.Helper()
		for n, given := range [][]string{{keys[0]}, {keys[1]}, keys} {
			args := append([]string{"verify"}, args...)
			args = append(args, "--ledger-key", ledgerKey)
			for _, key := range given {
				args = append(args, "--witness-key", key)
			}
			if out, err := i.Output(t.Context(), "pdaudit", args...); err != nil {
				t.Errorf("%s, set %d of keys: %v\n%s", when, n, err, out)
			}
		}
	}
	export := func() string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "log")
		if out, err := i.pdvault("auditor", "records", "export", dir); err != nil {
			t.Fatalf("exporting the log: %v\n%s", err, out)
		}
		return dir
	}
	verified("during the overlap", "ledger", export())
	certificate := filepath.Join(t.TempDir(), "certificate.json")
	if err := os.WriteFile(certificate, i.erase(subject), 0o600); err != nil {
		t.Fatal(err)
	}
	verified("certificate", "erasure", certificate)

	i.Vault.Kill()
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := i.read("shop", i.create(person(3)), "order-fulfilment", "email"); a.Status != http.StatusOK {
		t.Fatalf("read: %d", a.Status)
	}
	verified("after a restart", "ledger", export())
}

// Each key of the witness puts a line on every checkpoint, so only so many sign beside one another. A rotation beyond
// that is refused with the reason, over HTTP and on the command line, and everything goes on.
func TestTooManyWitnessKeysAreRefusedAndChangeNothing(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	subject := i.create(person(1))
	for range 15 {
		i.rotate("witness")
	}
	before := i.witnessKeys()
	if len(before) != 16 {
		t.Fatalf("%d keys of the witness", len(before))
	}
	if p := i.want(http.StatusConflict, "security", "POST", "/v1/keys/rotations", `{"scope":"witness"}`); p["type"] != "urn:pdvault:problem:limit-reached" {
		t.Errorf("one key too many: %v", p)
	}
	if out, err := i.Output(t.Context(), "pdkeys", "rotate", "witness", "--config", i.Path("pdkeys.yaml")); err == nil || !strings.Contains(err.Error()+string(out), "too many keys") {
		t.Errorf("one key too many, on the command line: %v\n%s", err, out)
	}
	if after := i.witnessKeys(); !slices.Equal(before, after) {
		t.Errorf("the keys of the witness have changed: %d before, %d now", len(before), len(after))
	}
	if a := i.read("shop", subject, "order-fulfilment", "email"); a.Status != http.StatusOK {
		t.Errorf("read: %d", a.Status)
	}
	i.rotated(i.rotate("token"), time.Minute)
	i.verifyLedger()
}
