package hcvault_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/test/conformance"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// server is shared by the tests of this package, which run one after another and leave it running and
// unsealed.
var server *hcserver.Server

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "hcvault")
	if err == nil {
		server, err = hcserver.Start(context.Background(), dir)
	}
	if err != nil && !errors.Is(err, hcserver.ErrNoBinary) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if server != nil {
		if err := server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

var keyNumber int

// setup makes a transit key and role of the test's own.
func setup(t testing.TB, set hcserver.Setup) (*hcserver.AppRole, hcvault.Config) {
	t.Helper()
	if server == nil {
		t.Skip(hcserver.ErrNoBinary)
	}
	if set.Key == "" {
		keyNumber++
		set.Key = fmt.Sprintf("test%d", keyNumber)
	}
	role, err := server.SetupTransit(context.Background(), set)
	if err != nil {
		t.Fatal(err)
	}
	return role, hcvault.Config{Address: server.Address(), AllowHTTP: true, Key: role.Key, RoleID: role.RoleID,
		SecretIDFile: role.SecretIDFile, Wrapped: set.Wrap, Logger: testLogger(t),
		Epoch: hcvault.Role{RoleID: role.EpochRoleID, SecretIDFile: role.EpochSecretIDFile, Wrapped: set.Wrap}}
}

// testLogger writes to the test's log, and fails the test when a line shows a token.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(logWriter{t}, nil))
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "hvs.") {
		w.t.Errorf("a token is in the log")
	}
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func mustOpen(t testing.TB, cfg hcvault.Config) *hcvault.KEK {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	k, err := hcvault.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// admin makes a request with the root token.
func admin(t testing.TB, method, path string, body map[string]any, out any) {
	t.Helper()
	if err := server.Request(context.Background(), method, path, body, out); err != nil {
		t.Fatal(err)
	}
}

func wrapOne(k keyring.KEK, timeout time.Duration, data string) (keyring.KEKItem, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r, err := k.Wrap(ctx, []keyring.KEKItem{{Context: []byte("context"), Data: []byte(data)}})
	if err != nil {
		return keyring.KEKItem{}, err
	}
	return keyring.KEKItem{Context: []byte("context"), Data: r[0].Data}, r[0].Err
}

func unwrapOne(k keyring.KEK, timeout time.Duration, item keyring.KEKItem) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r, err := k.Unwrap(ctx, []keyring.KEKItem{item})
	if err != nil {
		return "", err
	}
	return string(r[0].Data), r[0].Err
}

func mustWrap(t testing.TB, k keyring.KEK, data string) keyring.KEKItem {
	t.Helper()
	item, err := wrapOne(k, 10*time.Second, data)
	if err != nil {
		t.Fatal(err)
	}
	return item
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

// recovers fails the test unless item unwraps within d.
func recovers(t testing.TB, k keyring.KEK, item keyring.KEKItem, want string, d time.Duration) {
	t.Helper()
	start := time.Now()
	for {
		got, err := unwrapOne(k, 3*time.Second, item)
		if err == nil {
			if got != want {
				t.Fatal("it gave something else back")
			}
			t.Logf("recovered after %v", time.Since(start).Round(time.Millisecond))
			return
		}
		if time.Since(start) > d {
			t.Fatalf("no recovery within %v: %v", d, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestConformance(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	conformance.KEK(t, func(testing.TB) keyring.KEK { return k })
	conformance.Epochs(t, func(t testing.TB) (keyring.KEK, keyring.Epochs) {
		_, cfg := setup(t, hcserver.Setup{}) // a key of its own, since versions are counted
		k := mustOpen(t, cfg)
		return k, k.Epochs()
	})
}

func TestKeyring(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	ring, err := keyring.Create(context.Background(), keyring.Config{Instance: "test", KEK: k, Store: memkv.New()})
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Close(); err != nil {
		t.Error(err)
	}
}

func TestKeyThatIsNotDerived(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{NotDerived: true})
	store := memkv.New()
	_, err := keyring.Create(context.Background(), keyring.Config{Instance: "test", KEK: mustOpen(t, cfg), Store: store})
	wantErr(t, err, keyring.ErrNotBound)
}

func TestConfigRefused(t *testing.T) {
	good := hcvault.Config{Address: "https://127.0.0.1:1", Key: "pdvault", RoleID: "r", SecretIDFile: "/nonexistent"}
	for name, change := range map[string]func(*hcvault.Config){
		"http":                       func(c *hcvault.Config) { c.Address = "http://127.0.0.1:8200" },
		"http to elsewhere":          func(c *hcvault.Config) { c.Address, c.AllowHTTP = "http://192.0.2.1:8200", true },
		"http to a name":             func(c *hcvault.Config) { c.Address, c.AllowHTTP = "http://localhost:8200", true },
		"unix socket":                func(c *hcvault.Config) { c.Address, c.AllowHTTP = "unix:///run/x", true },
		"no address":                 func(c *hcvault.Config) { c.Address = "" },
		"address with a path":        func(c *hcvault.Config) { c.Address = "https://127.0.0.1:1/v1" },
		"address with a password":    func(c *hcvault.Config) { c.Address = "https://a:b@127.0.0.1:1" },
		"no key":                     func(c *hcvault.Config) { c.Key = "" },
		"key that leaves its path":   func(c *hcvault.Config) { c.Key = "../x" },
		"key with a path":            func(c *hcvault.Config) { c.Key = "a/b" },
		"mount that leaves its path": func(c *hcvault.Config) { c.Mount = "transit/../sys" },
		"no role id":                 func(c *hcvault.Config) { c.RoleID = "" },
		"no file of the secret id":   func(c *hcvault.Config) { c.SecretIDFile = "" },
		"half an epoch's role":       func(c *hcvault.Config) { c.Epoch.RoleID = "e" },
		"the sidecar's role for epochs": func(c *hcvault.Config) {
			c.Epoch = hcvault.Role{RoleID: c.RoleID, SecretIDFile: "/nonexistent/other"}
		},
		"CA file without certificate": func(c *hcvault.Config) { c.CAFile = os.DevNull },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			change(&cfg)
			_, err := hcvault.Open(context.Background(), cfg)
			wantErr(t, err, keys.ErrInvalid)
		})
	}
}

// Nothing in the environment may redirect the client, lend it a token, or stop it.
func TestEnvironment(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	for name, value := range map[string]string{
		"VAULT_ADDR": "https://192.0.2.1:8200", "VAULT_AGENT_ADDR": "https://192.0.2.1:8200", "VAULT_TOKEN": "hvs.nonsense",
		"VAULT_NAMESPACE": "elsewhere", "VAULT_SKIP_VERIFY": "true", "VAULT_CACERT": "/nonexistent", "VAULT_PROXY_ADDR": "http://192.0.2.1:1",
		"VAULT_HEADERS": `{"X-A":"b"}`, "VAULT_CLIENT_TIMEOUT": "1ns", "VAULT_MAX_RETRIES": "x",
		"HTTP_PROXY": "http://192.0.2.1:1", "HTTPS_PROXY": "http://192.0.2.1:1",
	} {
		t.Setenv(name, value)
	}
	k := mustOpen(t, cfg)
	mustWrap(t, k, "data")
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "VAULT_") {
			t.Errorf("%s is still set", strings.SplitN(e, "=", 2)[0])
		}
	}
}

// A server with a certificate that nobody vouches for is not spoken to.
func TestTLSIsVerified(t *testing.T) {
	if server == nil {
		t.Skip(hcserver.ErrNoBinary)
	}
	_, cfg := setup(t, hcserver.Setup{})
	cfg.Address = strings.Replace(cfg.Address, "http://", "https://", 1) // speaks no TLS at all
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := hcvault.Open(ctx, cfg)
	wantErr(t, err, keys.ErrUnavailable)
}

// F21: sealed, and recovery after the unseal.
func TestSealed(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	ctx := context.Background()
	if err := server.Seal(ctx); err != nil {
		t.Fatal(err)
	}
	unsealed := false
	t.Cleanup(func() {
		if !unsealed {
			_ = server.Unseal(ctx)
		}
	})
	start := time.Now()
	_, err := unwrapOne(k, 3*time.Second, item)
	wantErr(t, err, keys.ErrSealed)
	_, err = wrapOne(k, 3*time.Second, "data")
	wantErr(t, err, keys.ErrSealed)
	wantErr(t, k.Ready(ctx), keys.ErrSealed)
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("being refused took %v", took)
	}
	if err := server.Unseal(ctx); err != nil {
		t.Fatal(err)
	}
	unsealed = true
	recovers(t, k, item, "data", 5*time.Second)
}

// Sealed when the sidecar starts: an error, and no hang.
func TestOpenSealed(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	ctx := context.Background()
	if err := server.Seal(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Unseal(ctx); err != nil {
			t.Fatal(err)
		}
	}()
	_, err := hcvault.Open(ctx, cfg)
	wantErr(t, err, keys.ErrSealed)
}

// F22: killed, comes back sealed, is unsealed.
func TestKilled(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	ctx := context.Background()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		start := time.Now()
		_, err := unwrapOne(k, 3*time.Second, item)
		wantErr(t, err, keys.ErrUnavailable)
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("being refused took %v", took)
		}
	}
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // two probes of the breaker
	_, err := unwrapOne(k, 3*time.Second, item)
	wantErr(t, err, keys.ErrSealed)
	if err := server.Unseal(ctx); err != nil {
		t.Fatal(err)
	}
	recovers(t, k, item, "data", 5*time.Second)
}

// F23: a hang costs at most 2 s, soon nothing, and no goroutines.
func TestHanging(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	stopped := true
	defer func() {
		if stopped {
			_ = server.Cont()
		}
	}()
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			start := time.Now()
			_, err := unwrapOne(k, 10*time.Second, item)
			wantErr(t, err, keys.ErrUnavailable)
			if took := time.Since(start); took > 9*time.Second {
				t.Errorf("a call took %v", took)
			}
		})
	}
	start := time.Now()
	_, err := unwrapOne(k, 10*time.Second, item)
	wantErr(t, err, keys.ErrUnavailable)
	if took := time.Since(start); took > 9*time.Second {
		t.Errorf("a call took %v", took)
	}
	wg.Wait()
	start = time.Now()
	for range 100 {
		_, err := unwrapOne(k, 10*time.Second, item)
		wantErr(t, err, keys.ErrUnavailable)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("100 calls while it is known to hang took %v", took) // each would take its whole deadline
	}
	if after := runtime.NumGoroutine(); after > before+20 {
		t.Errorf("%d goroutines, before %d", after, before)
	}
	if err := server.Cont(); err != nil {
		t.Fatal(err)
	}
	stopped = false
	recovers(t, k, item, "data", 3*time.Second)
}

// logins counts the service tokens that a role has.
func accessors(t *testing.T) []string {
	t.Helper()
	var list struct {
		Keys []string `json:"keys"`
	}
	admin(t, "LIST", "auth/token/accessors", nil, &list)
	return list.Keys
}

// revoke revokes every token of a role's policy.
func revoke(t *testing.T, role *hcserver.AppRole) (n int) {
	t.Helper()
	for _, a := range accessors(t) {
		var info struct {
			Policies []string `json:"policies"`
		}
		if err := server.Request(context.Background(), "POST", "auth/token/lookup-accessor", map[string]any{"accessor": a}, &info); err != nil {
			continue // gone meanwhile
		}
		if len(info.Policies) == 1 && info.Policies[0] == role.Role {
			admin(t, "POST", "auth/token/revoke-accessor", map[string]any{"accessor": a}, nil)
			n++
		}
	}
	return n
}

// F25: the token is revoked; waiting requests resume after one login.
func TestTokenRevoked(t *testing.T) {
	role, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	if k.TokenValid() < 15*time.Minute {
		t.Errorf("token is valid for %v", k.TokenValid())
	}
	time.Sleep(time.Second) // so that a login may happen at once
	if n := revoke(t, role); n != 1 {
		t.Fatalf("%d tokens revoked", n)
	}
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if got, err := unwrapOne(k, 3*time.Second, item); err != nil || got != "data" {
				t.Errorf("a waiting request failed: %v", err)
			}
		})
	}
	wg.Wait()
	if n := revoke(t, role); n != 1 {
		t.Errorf("%d logins instead of one", n)
	}
	// Again at once: not more than a login per second, and no failure.
	if _, err := unwrapOne(k, 3*time.Second, item); err != nil {
		t.Error(err)
	}
}

// F25: tokens that live 3 s, at most 6, over 15 s of traffic.
func TestTokenExpires(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	_, cfg := setup(t, hcserver.Setup{TokenTTL: 3 * time.Second, TokenMaxTTL: 6 * time.Second})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := unwrapOne(k, 3*time.Second, item); err != nil {
			t.Fatalf("a request failed: %v", err)
		}
	}
}

// F25: no storm of logins when they are refused, and recovery when a new secret id is delivered.
func TestSecretIDUsedUp(t *testing.T) {
	role, cfg := setup(t, hcserver.Setup{SecretUses: 1})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	time.Sleep(time.Second)
	revoke(t, role)
	start := time.Now()
	_, err := unwrapOne(k, 3*time.Second, item)
	wantErr(t, err, keys.ErrForbidden)
	for range 200 {
		_, err := unwrapOne(k, 3*time.Second, item)
		wantErr(t, err, keys.ErrForbidden)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("refusals took %v", took)
	}
	if err := server.NewSecretID(context.Background(), role, false); err != nil {
		t.Fatal(err)
	}
	recovers(t, k, item, "data", 10*time.Second)
}

func TestWrappedSecretID(t *testing.T) {
	role, cfg := setup(t, hcserver.Setup{Wrap: true})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	time.Sleep(time.Second)
	revoke(t, role)
	if _, err := unwrapOne(k, 3*time.Second, item); err != nil {
		t.Errorf("the unwrapped secret id was not remembered: %v", err)
	}
	// Somebody who comes second with the same wrapping token is refused.
	_, err := hcvault.Open(context.Background(), cfg)
	wantErr(t, err, keys.ErrForbidden)
}

// F26: the policy changes to deny.
func TestPolicyDenied(t *testing.T) {
	role, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	policy, err := hcserver.Policy(role.Key)
	if err != nil {
		t.Fatal(err)
	}
	admin(t, "POST", "sys/policies/acl/"+role.Role, map[string]any{"policy": `path "auth/token/renew-self" { capabilities = ["update"] }`}, nil)
	before := len(accessors(t))
	for range 20 {
		_, err = unwrapOne(k, 3*time.Second, item)
		wantErr(t, err, keys.ErrForbidden)
	}
	if after := len(accessors(t)); after != before {
		t.Errorf("%d new logins", after-before)
	}
	admin(t, "POST", "sys/policies/acl/"+role.Role, map[string]any{"policy": policy}, nil)
	recovers(t, k, item, "data", time.Second)
}

// F27, F28: the key is deleted; nothing makes a new one.
func TestKeyDeleted(t *testing.T) {
	role, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	item := mustWrap(t, k, "data")
	admin(t, "POST", "transit/keys/"+role.Key+"/config", map[string]any{"deletion_allowed": true}, nil)
	admin(t, "DELETE", "transit/keys/"+role.Key, nil, nil)
	_, err := unwrapOne(k, 3*time.Second, item)
	wantErr(t, err, keys.ErrKEKMissing)
	_, err = wrapOne(k, 3*time.Second, "data")
	if !errors.Is(err, keys.ErrKEKMissing) && !errors.Is(err, keys.ErrForbidden) {
		t.Errorf("wrapping under a deleted key gave %v", err)
	}
	if err := server.Request(context.Background(), "GET", "transit/keys/"+role.Key, nil, nil); err == nil {
		t.Error("the key came back")
	}
	// Made again under the same name, it opens nothing of the old one.
	admin(t, "POST", "transit/keys/"+role.Key, map[string]any{"type": "aes256-gcm96", "derived": true}, nil)
	_, err = unwrapOne(k, 3*time.Second, item)
	wantErr(t, err, keys.ErrTampered)
}

// F28: a mistyped name of the key.
func TestKeyMistyped(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	cfg.Key += "x"
	k := mustOpen(t, cfg)
	_, err := wrapOne(k, 3*time.Second, "data")
	wantErr(t, err, keys.ErrForbidden)
	if err := server.Request(context.Background(), "GET", "transit/keys/"+cfg.Key, nil, nil); err == nil {
		t.Error("a key was made")
	}
}

// F27, F30: versions that are retired, and that are not there yet.
func TestVersions(t *testing.T) {
	role, cfg := setup(t, hcserver.Setup{})
	k := mustOpen(t, cfg)
	old := mustWrap(t, k, "old")
	admin(t, "POST", "transit/keys/"+role.Key+"/rotate", nil, nil)
	recent := mustWrap(t, k, "recent")
	if got, err := unwrapOne(k, 3*time.Second, old); err != nil || got != "old" {
		t.Errorf("after the rotation: %v", err)
	}
	admin(t, "POST", "transit/keys/"+role.Key+"/config", map[string]any{"min_decryption_version": 2, "min_encryption_version": 2}, nil)
	_, err := unwrapOne(k, 3*time.Second, old)
	wantErr(t, err, keys.ErrKEKRetired)
	admin(t, "POST", "transit/keys/"+role.Key+"/trim", map[string]any{"min_available_version": 2}, nil)
	_, err = unwrapOne(k, 3*time.Second, old)
	wantErr(t, err, keys.ErrKEKRetired)
	if got, err := unwrapOne(k, 3*time.Second, recent); err != nil || got != "recent" {
		t.Errorf("after the trim: %v", err)
	}
	future := keyring.KEKItem{Context: recent.Context, Data: []byte(strings.Replace(string(recent.Data), "vault:v2:", "vault:v3:", 1))}
	_, err = unwrapOne(k, 3*time.Second, future)
	wantErr(t, err, keys.ErrKEKMissing)
}

// The role can do nothing but what sidecar.hcl says.
func TestPolicyIsNarrow(t *testing.T) {
	role, cfg := setup(t, hcserver.Setup{})
	secretID, err := os.ReadFile(cfg.SecretIDFile)
	if err != nil {
		t.Fatal(err)
	}
	var auth struct {
		Token    string   `json:"client_token"`
		Policies []string `json:"policies"`
	}
	admin(t, "POST", "auth/approle/login", map[string]any{"role_id": role.RoleID, "secret_id": strings.TrimSpace(string(secretID))}, &auth)
	if len(auth.Policies) != 1 {
		t.Errorf("policies are %q", auth.Policies)
	}
	var caps map[string]any
	paths := []string{"transit/encrypt/" + role.Key, "transit/decrypt/" + role.Key, "transit/rewrap/" + role.Key,
		"transit/encrypt/other", "transit/decrypt/other", "transit/keys/" + role.Key, "transit/keys/" + role.Key + "/rotate",
		"transit/keys/" + role.Key + "/config", "transit/keys/" + role.Key + "/trim", "transit/export/encryption-key/" + role.Key,
		"transit/datakey/plaintext/" + role.Key, "transit/backup/" + role.Key, "transit/config/keys", "sys/mounts", "auth/token/create"}
	admin(t, "POST", "sys/capabilities", map[string]any{"token": auth.Token, "paths": paths}, &caps)
	for i, p := range paths {
		want := "[deny]"
		if i < 3 {
			want = "[update]"
		}
		if got := fmt.Sprint(caps[p]); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
}

func TestNoLeaks(t *testing.T) {
	_, cfg := setup(t, hcserver.Setup{})
	ignore := goleak.IgnoreCurrent()
	ctx := context.Background()
	k, err := hcvault.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Ready(ctx); err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Errorf("the second Close gave %v", err)
	}
	if _, err := wrapOne(k, time.Second, "data"); err == nil {
		t.Error("a call after Close succeeded")
	}
	goleak.VerifyNone(t, ignore)
}

func keyringItem(context, data string) keyring.KEKItem {
	return keyring.KEKItem{Context: []byte(context), Data: []byte(data)}
}
