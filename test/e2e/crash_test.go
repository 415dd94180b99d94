package e2e

import (
	"net/http"
	"os"
	"testing"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

func stackOptions() stack.Options { return stack.Options{} }

// The sidecar remembers the newest checkpoint. A data store that was put back from an older copy is refused.
func TestAnOlderCopyOfTheDataStoreIsRefused(t *testing.T) {
	i := start(t, stackOptions())
	i.create(person(1))
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(i.Path("older"), os.DirFS(i.Path("data"))); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.create(person(2))
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(i.Path("data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(i.Path("older"), i.Path("data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(i.Path("data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err == nil {
		t.Fatal("pdvault serves from an older copy")
	}
	if code := i.Vault.ExitCode(); code == 0 {
		t.Error("the refusal looks like a success")
	}
}

// Likewise for the key store: pdvault remembers its newest generation.
func TestAnOlderCopyOfTheKeyStoreIsRefused(t *testing.T) {
	i := start(t, stackOptions())
	i.create(person(1))
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(i.Path("older"), os.DirFS(i.Path("keys"))); err != nil {
		t.Fatal(err)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	var second string
	eventually(t, "writes are served again", func() bool {
		a, err := i.Do(t.Context(), "shop", "POST", "/v1/subjects", []byte(`{"records":{"profile":`+person(2)+`}}`))
		second = string(a.Body)
		return err == nil && a.Status == http.StatusCreated
	})
	if second == "" {
		t.Fatal("no second subject")
	}
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := i.Keys.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(i.Path("keys")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(i.Path("older"), i.Path("keys")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(i.Path("keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.StartVault(t.Context()); err == nil {
		t.Error("pdvault serves with an older key store")
	}
}
