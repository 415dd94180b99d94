package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

const valid = `instance: main
listen: 127.0.0.1:8080
store: {dir: data}
sidecar: {socket: pdkeys.sock, wait: 3s}
tokens_file: /etc/tokens
`

func load(t *testing.T, text string) (Config, string, error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "pdvault.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(path)
	return c, dir, err
}

func TestPathsAreRelativeToTheConfigurationFile(t *testing.T) {
	c, dir, err := load(t, valid)
	if err != nil {
		t.Fatal(err)
	}
	if c.Store.Dir != filepath.Join(dir, "data") || c.Sidecar.Socket != filepath.Join(dir, "pdkeys.sock") || c.TokensFile != "/etc/tokens" {
		t.Errorf("%+v", c)
	}
	if c.Sidecar.Wait != 3*time.Second {
		t.Errorf("wait %v", c.Sidecar.Wait)
	}
}

func TestAConfigurationThatIsUnsafeOrMistypedIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, text, says string }{
		{"unknown member", valid + "lsiten: x\n", "lsiten"},
		{"unknown member below", strings.Replace(valid, "{dir: data}", "{dir: data, sync: false}", 1), "sync"},
		{"nothing", "", "instance is required"},
		{"no TLS beyond loopback", strings.Replace(valid, "127.0.0.1", "0.0.0.0", 1), "needs tls"},
		{"half of TLS", valid + "tls: {cert_file: c}\n", "both cert_file and key_file"},
		{"metrics to everybody", valid + "metrics_listen: 0.0.0.0:9090\n", "loopback"},
		{"unknown level", valid + "log: {level: loud}\n", "log.level"},
		{"negative limit", strings.Replace(valid, "{dir: data}", "{dir: data, ballast: -1}", 1), "negative"},
		{"negative limit of connections", valid + "limits: {connections: -1}\n", "limits must not be negative"},
		{"negative limit of requests", valid + "limits: {in_flight: -1}\n", "limits must not be negative"},
		{"limit in words", valid + "limits: {in_flight: many}\n", "in_flight"},
		{"instance that breaks the origin", strings.Replace(valid, "main", "a/b", 1), "instance"},
		{"no YAML", "\t{", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := load(t, tt.text)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want something on %q", err, tt.says)
			}
		})
	}
}

func TestTheNewestGenerationIsKept(t *testing.T) {
	store := memkv.New()
	defer store.Close()
	for _, g := range []uint64{0, 3, 2, 7} {
		if err := saveGeneration(t.Context(), store, g); err != nil {
			t.Fatal(err)
		}
	}
	if g, err := loadGeneration(t.Context(), store); err != nil || g != 7 {
		t.Errorf("%d, %v", g, err)
	}
	if err := store.Update(t.Context(), func(w kv.Writer) error { w.Set(generationKey, []byte("x")); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := loadGeneration(t.Context(), store); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("a damaged mark: %v", err)
	}
	if _, err := loadIdentity(t.Context(), store); !errors.Is(err, errNotInitialised) {
		t.Errorf("no identity: %v", err)
	}
}

// Each way in which the sidecar can fail has a code of its own in access.failed, and no code is a text that
// could hold anything.
func TestEveryFailureOfTheSidecarHasACode(t *testing.T) {
	seen := map[string]bool{}
	for _, err := range []error{
		keys.ErrSealed, keys.ErrForbidden, keys.ErrDamaged, keys.ErrUnavailable, keys.ErrKEKMissing, keys.ErrKEKRetired, keys.ErrDestroyed, keys.ErrNoKey,
		keys.ErrBudget, keys.ErrTampered, keys.ErrReplayed, keys.ErrClock, keys.ErrProofRefused, keys.ErrRolledBack, access.ErrIntegrity, vault.ErrStale, context.DeadlineExceeded, context.Canceled,
	} {
		code := failureCode(fmt.Errorf("opening: %w", err))
		if seen[code] || code == "internal" {
			t.Errorf("%v has the code %q", err, code)
		}
		seen[code] = true
	}
	if code := failureCode(errors.New("person@example.org")); code != "internal" {
		t.Errorf("an unknown failure has the code %q", code)
	}
}

func TestReadinessAsksTheSidecarOnceInAWhile(t *testing.T) {
	asked := 0
	p := statusProbe{keep: time.Hour, ask: func(context.Context) (client.Status, error) {
		asked++
		return client.Status{Instance: "main"}, nil
	}}
	for range 10 {
		if s, err := p.get(t.Context()); err != nil || s.Instance != "main" {
			t.Error(err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}
