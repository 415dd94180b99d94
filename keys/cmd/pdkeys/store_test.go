package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// A sidecar whose key store is in HashiCorp Vault, with the rights of deploy/hcvault and one login for both.
func TestKeyStoreInHashiCorpVault(t *testing.T) {
	server, err := hcserver.Start(t.Context(), filepath.Join(t.TempDir(), "hcvault"))
	if errors.Is(err, hcserver.ErrNoBinary) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	role, err := server.SetupTransit(t.Context(), hcserver.Setup{})
	if err == nil {
		err = server.SetupStore(t.Context(), role, "pdvault-keys", "main")
	}
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pdk")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	config := filepath.Join(dir, "pdkeys.yaml")
	text := fmt.Sprintf(`instance: test
socket: {path: s}
store: {type: hcvault, hcvault: {path: main}}
kek:
  type: hcvault
  hcvault:
    address: %s
    allow_plain_http_on_loopback: true
    key: %s
    approle: {role_id_file: role-id, secret_id_file: %s}
`, server.Address(), role.Key, role.SecretIDFile)
	for path, text := range map[string]string{config: text, filepath.Join(dir, "role-id"): role.RoleID} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	if rc, out := code(t, "serve", "--config", config); rc != exitStore || !strings.Contains(out, "pdkeys init") {
		t.Errorf("serve before init: %d, %s", rc, out)
	}
	if rc, out := code(t, "init", "--config", config); rc != exitOK || !strings.Contains(out, "created key store") {
		t.Fatalf("init: %d, %s", rc, out)
	}
	if rc, out := code(t, "init", "--config", config); rc != exitStore {
		t.Errorf("init again: %d, %s", rc, out)
	}
	cmd, out, c := start(t, dir, config)
	wrapped, err := c.Protect(t.Context(), "ledger-key", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if rc, text := code(t, "serve", "--config", config); rc != exitStore {
		t.Errorf("a second sidecar on the same store: %d, %s", rc, text)
	}
	if rc, table := code(t, "status", "--config", config); rc != exitOK {
		t.Errorf("status: %d, %s", rc, table)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve ended with %v\n%s", err, out)
	}
	if err := server.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rc, out := code(t, "serve", "--config", config); rc != exitKEK {
		t.Errorf("serve with HashiCorp Vault sealed: %d, %s", rc, out)
	}
	if err := server.Unseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _, again := start(t, dir, config)
	if got, err := again.Unprotect(t.Context(), "ledger-key", wrapped); err != nil || string(got) != "secret" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

func TestConfigOfTheKeyStore(t *testing.T) {
	const local = "kek: {type: local, local: {path: r}}\n"
	const hc = "kek: {type: hcvault, hcvault: {address: 'https://h', key: k, approle: {role_id_file: a, secret_id_file: b}}}\n"
	for _, tt := range []struct{ store, kek, want string }{
		{"{dir: d}", hc, ""},
		{"{type: badger, dir: d}", local, ""},
		{"{type: hcvault, hcvault: {path: main}}", hc, ""},
		{"{type: hcvault, hcvault: {mount: m, path: main}}", hc, ""},
		{"{type: hcvault, hcvault: {path: main}}", local, "kek.type"},
		{"{type: hcvault, dir: d, hcvault: {path: main}}", hc, "store.dir"},
		{"{type: hcvault}", hc, "store.hcvault.path"},
		{"{dir: d, hcvault: {path: main}}", hc, "store.type"},
		{"{type: other, dir: d}", hc, "store.type"},
		{"{}", local, "store.dir"},
	} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		text := "instance: main\nsocket: {path: /run/s}\nstore: " + tt.store + "\n" + tt.kek
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadConfig(path)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("store: %s, %s gave %v, want %q in it", tt.store, tt.kek, err, tt.want)
		}
	}
}
