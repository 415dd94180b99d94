package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// With the key store in HashiCorp Vault as well, the sidecar keeps nothing on its disk, and everything is as it is with
// a directory: kill and restart, an epoch, an erasure; and an older copy put back is refused.
func TestTheKeyStoreMayBeInHashiCorpVault(t *testing.T) {
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
	if err := hc.SetupStore(t.Context(), &hcserver.AppRole{Role: "pdvault-sidecar"}, "pdvault-keys", "test"); err != nil {
		t.Fatal(err)
	}
	i := start(t, stack.Options{Dir: filepath.Join(dir, "pdv"), KEK: kek, KeyStore: "{type: hcvault, hcvault: {path: test}}"})
	if found, err := filepath.Glob(i.Path("keys*")); err != nil || len(found) > 0 {
		t.Errorf("a key store on the disk: %v %v", found, err)
	}
	tr := newTraffic(i, 3, 30, false)
	erased := i.create(person(1000))
	subject := i.create(person(1001))

	stop := tr.run()
	i.evidence(t, "kek", i.rotated(i.rotate("kek"), time.Minute))
	stop()
	i.erase(erased)
	if a := i.read("shop", erased, "order-fulfilment", "email"); a.Status == http.StatusOK {
		t.Error("an erased person is read")
	}

	// After a kill the lease of the one before must run out.
	i.Keys.Kill()
	i.refused("GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "")
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "reads are served again", func() bool { return !i.notServed(subject, 1001) })
	tr.checkAll(t)
	i.restartKeys()
	eventually(t, "reads are served again", func() bool { return !i.notServed(subject, 1001) })
	i.evidence(t, "all-subjects", i.rotated(i.rotate("all-subjects"), time.Minute))
	tr.checkAll(t)
	i.verifyLedger()

	// HashiCorp Vault is put back as a whole to when there was one bundle less: the KEK does not show it.
	older, err := hc.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i.create(person(1002))
	i.ready()
	time.Sleep(2 * time.Second) // pdvault keeps the generation that it has seen once a second
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := hc.Restore(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err == nil {
		t.Error("pdvault serves with an older key store")
	} else if !strings.Contains(err.Error(), "rolled back") {
		t.Errorf("what pdvault says: %v", err)
	}
}
