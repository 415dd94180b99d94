package hcvault_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/hcvault"
)

// fake answers as HashiCorp Vault does for logins, and as the test says for transit: what a real one does
// not do on demand.
type fake struct {
	*httptest.Server
	calls   atomic.Int64 // to transit
	logins  atomic.Int64
	transit func(w http.ResponseWriter, n int64)
}

func newFake(t *testing.T, transit func(w http.ResponseWriter, n int64)) (*fake, hcvault.Config) {
	t.Helper()
	f := &fake{transit: transit}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v1/auth/approle/login":
			f.logins.Add(1)
			_, _ = w.Write([]byte(`{"auth":{"client_token":"hvs.x","lease_duration":1200,"renewable":true}}`))
		case strings.HasPrefix(r.URL.Path, "/v1/auth/token/renew-self"):
			_, _ = w.Write([]byte(`{"auth":{"client_token":"hvs.x","lease_duration":1200,"renewable":true}}`))
		case strings.HasPrefix(r.URL.Path, "/v1/transit/"):
			f.transit(w, f.calls.Add(1))
		}
	}))
	t.Cleanup(f.Close)
	secret := filepath.Join(t.TempDir(), "secret-id")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	return f, hcvault.Config{Address: f.URL, AllowHTTP: true, Key: "pdvault", RoleID: "role", SecretIDFile: secret}
}

// What is no answer about the data is never taken for one, and only what may help is tried again.
func TestAnswers(t *testing.T) {
	status := func(code int, body string) func(http.ResponseWriter, int64) {
		return func(w http.ResponseWriter, _ int64) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, c := range map[string]struct {
		transit func(http.ResponseWriter, int64)
		want    error
		calls   int64
	}{
		"204 of a proxy":           {status(204, ""), keys.ErrUnavailable, 1},
		"200 with nothing":         {status(200, ""), keys.ErrUnavailable, 1},
		"200 with a page":          {status(200, "<html>"), keys.ErrUnavailable, 1},
		"200 without results":      {status(200, `{"data":{}}`), keys.ErrUnavailable, 1},
		"200 with too few results": {status(200, `{"data":{"batch_results":[]}}`), keys.ErrUnavailable, 1},
		"200 with too many":        {status(200, `{"data":{"batch_results":[{"plaintext":"QQ=="},{"plaintext":"QQ=="}]}}`), keys.ErrUnavailable, 1},
		"200 without plaintext":    {status(200, `{"data":{"batch_results":[{}]}}`), keys.ErrUnavailable, 1},
		"200 with empty plaintext": {status(200, `{"data":{"batch_results":[{"plaintext":""}]}}`), keys.ErrUnavailable, 1},
		"200 with bad base64":      {status(200, `{"data":{"batch_results":[{"plaintext":"#"}]}}`), keys.ErrUnavailable, 1},
		"200 with unknown error":   {status(200, `{"data":{"batch_results":[{"error":"odd"}]}}`), keys.ErrUnavailable, 1},
		"400 for all items":        {status(400, `{"data":{"batch_results":[{"error":"cipher: message authentication failed"}]}}`), keys.ErrTampered, 1},
		"400 unknown":              {status(400, `{"errors":["odd"]}`), keys.ErrUnavailable, 1},
		"400 no key":               {status(400, `{"errors":["encryption key not found"]}`), keys.ErrKEKMissing, 1},
		"403":                      {status(403, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`), keys.ErrForbidden, 1},
		"404":                      {status(404, `{"errors":["no handler for route"]}`), keys.ErrKEKMissing, 1},
		"500 is not tried again":   {status(500, `{"errors":["audit"]}`), keys.ErrUnavailable, 1},
		"sealed is not tried":      {status(503, `{"errors":["Vault is sealed"]}`), keys.ErrSealed, 1},
		"503 of a proxy":           {status(503, "busy"), keys.ErrUnavailable, 1},
		"429 is tried once more":   {status(429, `{"errors":["quota"]}`), keys.ErrUnavailable, 2},
		"502 is tried once more":   {status(502, ""), keys.ErrUnavailable, 2},
		"504 is tried once more":   {status(504, ""), keys.ErrUnavailable, 2},
		"502, then well": {func(w http.ResponseWriter, n int64) {
			if n == 1 {
				w.WriteHeader(502)
				return
			}
			_, _ = w.Write([]byte(`{"data":{"batch_results":[{"plaintext":"QQ=="}]}}`))
		}, nil, 2},
		"a dead token is replaced once": {status(403, `{"errors":["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}`), keys.ErrForbidden, 2},
		"redirects are not followed": {func(w http.ResponseWriter, _ int64) {
			w.Header().Set("Location", "/v1/transit/decrypt/other")
			w.WriteHeader(307)
		}, keys.ErrUnavailable, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, cfg := newFake(t, c.transit)
			k := mustOpen(t, cfg)
			_, err := unwrapOne(k, 5*time.Second, keyringItem("context", "vault:v1:QUFB"))
			if !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if f.calls.Load() != c.calls {
				t.Errorf("%d calls, want %d", f.calls.Load(), c.calls)
			}
		})
	}
}

// A login is not sent to where an answer points: it carries the secret id.
func TestLoginRedirect(t *testing.T) {
	var followed atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/auth/approle/login" {
			followed.Store(true)
			return
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(307)
	}))
	defer s.Close()
	_, cfg := newFake(t, nil)
	cfg.Address = s.URL
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := hcvault.Open(ctx, cfg); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("Open gave %v", err)
	}
	if followed.Load() {
		t.Error("the redirect was followed")
	}
}
