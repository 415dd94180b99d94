package hcvault_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// setupScript runs deploy/hcvault/setup.sh with a token and the client commands of the server's own binary.
func setupScript(t *testing.T, token string, args []string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{filepath.Join("..", "..", "deploy", "hcvault", "setup.sh")}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "VAULT=" + server.Binary(),
		"VAULT_ADDR=" + server.Address(), "VAULT_TOKEN=" + token}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// scripted sets a key up with the script, with a token that may do what setup.hcl says and no more.
func scripted(t *testing.T, key string) (env []string, token string) {
	t.Helper()
	if server == nil {
		t.Skip(hcserver.ErrNoBinary)
	}
	token, err := server.SetupToken(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	env = []string{"KEY=" + key, "ROLE=" + key + "-sidecar", "EPOCH_ROLE=" + key + "-epoch", "MOUNT=transit"}
	for range 2 { // it may be run again
		if out, err := setupScript(t, token, nil, env...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return env, token
}

// What setup.sh leaves is what the sidecar needs, from its creation through an epoch.
func TestSetupScript(t *testing.T) {
	env, token := scripted(t, "scripted")
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		out, err := setupScript(t, token, args, env...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	ids := make(map[string]string)
	for line := range strings.Lines(run("role-ids")) {
		role, id, _ := strings.Cut(strings.TrimSpace(line), " ")
		ids[role] = id
	}
	secret, epochSecret := filepath.Join(dir, "secret-id"), filepath.Join(dir, "epoch-secret-id")
	run("secret-id", secret)
	run("epoch-secret-id", epochSecret)
	k := mustOpen(t, hcvault.Config{Address: server.Address(), AllowHTTP: true, Key: "scripted", RoleID: ids["scripted-sidecar"],
		SecretIDFile: secret, Wrapped: true, Logger: testLogger(t),
		Epoch: hcvault.Role{RoleID: ids["scripted-epoch"], SecretIDFile: epochSecret, Wrapped: true}})
	ring, err := keyring.Create(context.Background(), keyring.Config{Instance: "test", KEK: k, Epochs: k.Epochs(), Store: memkv.New()})
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	epochEnds(t, ring)
	info, err := os.Stat(secret)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode of the secret id's file is %v, %v", info.Mode(), err)
	}

	for _, args := range [][]string{{"x"}, {"secret-id"}, {"role-ids", "x"}} {
		if out, err := setupScript(t, token, args, env...); err == nil || !strings.Contains(out, "usage") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	plain, err := server.SetupToken(context.Background(), "plain")
	if err != nil {
		t.Fatal(err)
	}
	admin(t, "POST", "transit/keys/plain", map[string]any{"type": "aes256-gcm96", "derived": false}, nil)
	if out, err := setupScript(t, plain, nil, "KEY=plain", "ROLE=plain-sidecar", "EPOCH_ROLE=plain-epoch"); err == nil || !strings.Contains(out, "not derived") {
		t.Errorf("a key that is not derived passed: %v\n%s", err, out)
	}
}

// A key store in HashiCorp Vault is set up by the same script; running it again takes nothing away.
func TestSetupScriptOfTheKeyStore(t *testing.T) {
	env, token := scripted(t, "stored")
	env = append(env, "STORE_MOUNT=stored-keys")
	with := append(env[:len(env):len(env)], "STORE=main")
	for range 2 {
		if out, err := setupScript(t, token, nil, with...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if out, err := setupScript(t, token, nil, env...); err == nil || !strings.Contains(out, "STORE") {
		t.Errorf("a run that forgets the key store: %v\n%s", err, out)
	}
	if out, err := setupScript(t, token, nil, append(env, "STORE=../x")...); err == nil || !strings.Contains(out, "letters") {
		t.Errorf("a path that is none: %v\n%s", err, out)
	}
	secret := filepath.Join(t.TempDir(), "secret-id")
	// A file of an earlier run that everybody may read is not written into.
	if err := os.WriteFile(secret+".new", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := setupScript(t, token, []string{"secret-id", secret}, with...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if info, err := os.Stat(secret); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode of the secret id's file is %v, %v", info.Mode(), err)
	}
	var id struct {
		RoleID string `json:"role_id"`
	}
	admin(t, "GET", "auth/approle/role/stored-sidecar/role-id", nil, &id)
	k := mustOpen(t, hcvault.Config{Address: server.Address(), AllowHTTP: true, Key: "stored", RoleID: id.RoleID,
		SecretIDFile: secret, Wrapped: true, Logger: testLogger(t)})
	s, err := hcvault.CreateStore(t.Context(), hcvault.StoreConfig{KEK: k, Mount: "stored-keys", Path: "main", Instance: "test", Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ring, err := keyring.Create(t.Context(), keyring.Config{Instance: "test", KEK: k, Store: s})
	if err != nil {
		t.Fatal(err)
	}
	_ = ring.Close()
}

// Who may do what, tried and not read off the policies: each role, and the person who sets up.
func TestAuthorities(t *testing.T) {
	ctx := context.Background()
	_, setup := scripted(t, "authority")
	login := func(role string) string {
		t.Helper()
		var id struct {
			RoleID   string `json:"role_id"`
			SecretID string `json:"secret_id"`
		}
		admin(t, "GET", "auth/approle/role/"+role+"/role-id", nil, &id)
		admin(t, "POST", "auth/approle/role/"+role+"/secret-id", nil, &id)
		var auth struct {
			Token    string   `json:"client_token"`
			Policies []string `json:"policies"`
		}
		admin(t, "POST", "auth/approle/login", map[string]any{"role_id": id.RoleID, "secret_id": id.SecretID}, &auth)
		if len(auth.Policies) != 1 || auth.Policies[0] != role {
			t.Errorf("policies of %s are %q", role, auth.Policies)
		}
		return auth.Token
	}
	tokens := map[string]string{"sidecar": login("authority-sidecar"), "epoch": login("authority-epoch"), "setup": setup}
	const ciphertext = "vault:v1:AAAA"
	type body = map[string]any
	for _, c := range []struct {
		method, path string
		body         body
		who          string // may
	}{
		{"POST", "transit/encrypt/authority", body{"plaintext": "AAAA", "context": "AAAA"}, "sidecar"},
		{"POST", "transit/decrypt/authority", body{"ciphertext": ciphertext, "context": "AAAA"}, "sidecar"},
		{"POST", "transit/rewrap/authority", body{"ciphertext": ciphertext, "context": "AAAA"}, "sidecar"},
		{"POST", "transit/encrypt/authorityx", body{"plaintext": "AAAA", "context": "AAAA"}, ""},
		{"GET", "transit/keys/authority", nil, "epoch setup"},
		{"GET", "transit/keys", nil, ""},
		{"POST", "transit/keys/authority/rotate", nil, "epoch"},
		{"POST", "transit/keys/authority/config", body{"min_decryption_version": 1, "min_encryption_version": 1}, "epoch"},
		{"POST", "transit/keys/authority/trim", body{"min_available_version": 1}, "epoch"},
		{"POST", "transit/keys/authority/config", body{"deletion_allowed": true}, ""},
		{"POST", "transit/keys/authority/config", body{"deletion_allowed": "true"}, ""},
		{"POST", "transit/keys/authority/config", body{"deletion_allowed": false}, "setup"},
		{"POST", "transit/keys/authority/config", body{"exportable": true}, ""},
		{"POST", "transit/keys/authority/config", body{"allow_plaintext_backup": true, "min_decryption_version": 1}, ""},
		{"POST", "transit/keys/authority/config", body{"auto_rotate_period": "1h"}, ""},
		{"DELETE", "transit/keys/authority", nil, ""},
		{"GET", "transit/export/encryption-key/authority", nil, ""},
		{"GET", "transit/backup/authority", nil, ""},
		{"POST", "transit/datakey/plaintext/authority", body{"context": "AAAA"}, ""},
		{"POST", "transit/keys/authority-other", nil, ""},
		{"POST", "transit/keys/authority", nil, "setup"}, // which changes nothing, as it exists
		{"POST", "transit/config/keys", body{"disable_upsert": true}, "setup"},
		{"GET", "sys/mounts", nil, "setup"},
		{"POST", "sys/mounts/other", body{"type": "kv"}, ""},
		{"DELETE", "sys/mounts/transit", nil, ""},
		{"POST", "sys/policies/acl/other", body{"policy": ""}, ""},
		{"GET", "sys/policies/acl/authority-sidecar", nil, "setup"},
		{"GET", "auth/approle/role/authority-epoch/role-id", nil, "setup"},
		{"POST", "auth/approle/role/authority-epoch/secret-id", nil, ""}, // wrapped only
		{"POST", "auth/approle/role/other", body{"token_policies": "root"}, ""},
		{"POST", "auth/token/create", nil, ""},
		{"GET", "sys/storage/raft/snapshot", nil, ""},
		{"PUT", "sys/seal", nil, ""},
		{"POST", "auth/token/renew-self", nil, "sidecar epoch"},
	} {
		for role, token := range tokens {
			err := server.RequestAs(ctx, token, c.method, c.path, c.body)
			refused := err != nil && (strings.Contains(err.Error(), "status 403") || strings.Contains(err.Error(), "permission denied"))
			if err != nil && strings.Contains(err.Error(), "Vault is sealed") {
				t.Fatalf("%s has sealed the server", role)
			}
			if may := strings.Contains(" "+c.who+" ", " "+role+" "); may == refused {
				t.Errorf("%s: %s %s %v: %v", role, c.method, c.path, c.body, err)
			}
		}
	}
	if v := fmt.Sprint(tokens["setup"]); v == server.RootToken() {
		t.Error("the setup ran as root")
	}
}
