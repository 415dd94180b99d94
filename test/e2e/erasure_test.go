package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// erase erases a person and returns the certificate.
func (i *instance) erase(subject string) []byte {
	i.t.Helper()
	a := i.call("privacy", "DELETE", "/v1/subjects/"+subject, `{"reason":"subject-request"}`)
	if a.Status != http.StatusOK {
		i.t.Fatalf("erasing: %d %s", a.Status, a.Body)
	}
	return a.Body
}

// verifyErasure has pdaudit check a certificate with the public keys alone.
func (i *instance) verifyErasure(certificate []byte) (string, error) {
	i.t.Helper()
	file := filepath.Join(i.t.TempDir(), "certificate.json")
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		i.t.Fatal(err)
	}
	ledgerKey, witnessKey := i.publicKeys()
	out, err := i.Output(i.t.Context(), "pdaudit", "verify", "erasure", file, "--ledger-key", ledgerKey, "--witness-key", witnessKey)
	return string(out), err
}

// An erased person is gone for everybody at once; the certificate holds offline, says honestly that backups are
// not dead yet, and is final after the next epoch.
func TestErasedIsGoneAndTheCertificateSaysSo(t *testing.T) {
	t.Parallel()
	i, _ := startHashiCorp(t)
	other, subject := i.create(person(1)), i.create(person(2))
	i.want(http.StatusCreated, "shop", "POST", "/v1/subjects/"+subject+"/consents",
		`{"purpose":"newsletter","separate_document":true,"capture":{"form_uri":"/join","note":"canary-of-a-capture"}}`)
	for range 3 {
		a := i.call("shop", "GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "", "Access-Reference", "order 4711")
		if a.Status != http.StatusOK {
			t.Fatalf("read: %d %s", a.Status, a.Body)
		}
	}
	// Without rights nobody learns that the person exists.
	if a := i.call("shop", "DELETE", "/v1/subjects/"+subject, `{"reason":"subject-request"}`); a.Status != http.StatusForbidden {
		t.Errorf("the shop erases: %d", a.Status)
	}
	certificate := i.erase(subject)
	for _, caller := range []string{"shop", "privacy"} {
		for _, purpose := range []string{"order-fulfilment", "newsletter", "subject-access"} {
			if a := i.read(caller, subject, purpose, "email"); a.Status == http.StatusOK {
				t.Errorf("%s reads an erased person for %s", caller, purpose)
			}
		}
	}
	found := i.want(http.StatusOK, "shop", "POST", "/v1/lookups", `{"purpose":"support","collection":"profile","field":"email","value":"person2@example.org"}`)
	if list, _ := found["subjects"].([]any); len(list) != 0 {
		t.Error("an erased person is found by e-mail")
	}
	if a := i.call("privacy", "DELETE", "/v1/subjects/"+subject, `{"reason":"subject-request"}`); a.Status != http.StatusNotFound {
		t.Errorf("a second erasure: %d", a.Status)
	}
	i.create(person(2)) // the unique value is free again

	out, err := i.verifyErasure(certificate)
	if err != nil || !strings.Contains(out, "until the next epoch") {
		t.Errorf("certificate before the epoch: %v\n%s", err, out)
	}
	if _, err := i.verifyErasure(bytes.Replace(certificate, []byte("subject-request"), []byte("account-closed"), 1)); err == nil {
		t.Error("a changed certificate holds")
	}
	var c struct{ ID string }
	if err := json.Unmarshal(certificate, &c); err != nil || c.ID == "" {
		t.Fatalf("certificate: %v", err)
	}
	i.rotated(i.rotate("kek"), time.Minute)
	final := i.call("privacy", "GET", "/v1/erasures/"+c.ID, "")
	if final.Status != http.StatusOK || bytes.Contains(final.Body, []byte(subject)) {
		t.Fatalf("final certificate: %d %s", final.Status, final.Body)
	}
	if out, err := i.verifyErasure(final.Body); err != nil || !strings.Contains(out, "and final") {
		t.Errorf("certificate after the epoch: %v\n%s", err, out)
	}
	act := i.call("privacy", "GET", "/v1/erasures/"+c.ID, "", "Accept", "text/html")
	if act.Status != http.StatusOK || !strings.Contains(act.Header.Get("Content-Type"), "text/html") {
		t.Errorf("act: %d %s", act.Status, act.Header.Get("Content-Type"))
	}
	if a := i.read("shop", other, "order-fulfilment", "email"); a.Status != http.StatusOK {
		t.Errorf("somebody else is not read: %d", a.Status)
	}
	i.verifyLedger()
}

// An erasure that was recorded while the sidecar was down is finished when it is back, without being asked again.
func TestAnErasureThatWasCutOffIsFinished(t *testing.T) {
	t.Parallel()
	i := start(t, stackOptions())
	subject := i.create(person(1))
	if a := i.read("shop", subject, "order-fulfilment", "email"); a.Status != http.StatusOK { // its reference is known now
		t.Fatalf("read: %d", a.Status)
	}
	i.Keys.Kill()
	a, err := i.Do(t.Context(), "privacy", "DELETE", "/v1/subjects/"+subject, []byte(`{"reason":"subject-request"}`))
	if err != nil || a.Status != http.StatusServiceUnavailable {
		t.Fatalf("an erasure without the sidecar: %v, %d %s", err, a.Status, a.Body)
	}
	recorded := strings.Contains(string(a.Body), "erasure-pending")
	i.Vault.Kill() // and pdvault as well
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !recorded {
		i.erase(subject)
	}
	eventually(t, "the key is destroyed, on record", func() bool {
		for _, e := range i.ledger(0) {
			if e.Kind == "key.destroyed" {
				return true
			}
		}
		return false
	})
	i.verifyLedger()
}
