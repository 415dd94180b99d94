// Package hcvault is the key-encryption key in HashiCorp Vault: one derived transit key per instance, which
// wraps bundles under a context. HashiCorp Vault sees bundles on their way in and out; it never sees what
// they encrypt, and it is asked for batches, not for fields. Beside it the package has a key store in a KV
// engine of version 2, which is independent of it but for connection and login.
//
// The package is the one importer of HashiCorp's client. It must never use a token that may do more than
// deploy/hcvault/sidecar.hcl allows, with a key store there also store.hcl, or during an epoch, for rotating and
// retiring alone, a second one with epoch.hcl; never create a transit key, and take nothing from the environment.
package hcvault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	hcapi "github.com/hashicorp/vault/api"
	"golang.org/x/time/rate"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// Name is what KEK.Name returns.
const Name = "hcvault"

const (
	callTimeout  = 2 * time.Second // of one request with its retry
	dialTimeout  = 1 * time.Second
	maxRetries   = 1
	minRetryWait = 50 * time.Millisecond
	maxRetryWait = 250 * time.Millisecond
	maxRequests  = 500 // per second; a request is a batch
	maxBurst     = 50
	maxAtOnce    = 16
	maxItems     = 5_000    // in one request; HashiCorp Vault takes 10,000 JSON elements
	maxBody      = 32 << 20 // of an answer
)

// Config says where HashiCorp Vault is and how the sidecar logs in. Address, Key, RoleID and SecretIDFile
// must be set.
type Config struct {
	Address    string // https://host:port
	AllowHTTP  bool   // also http:// to a loopback address, for development and tests
	CAFile     string // PEM; empty means the system's roots
	ServerName string // expected in the certificate; empty means the host of Address
	Namespace  string // of HashiCorp Vault Enterprise or OpenBao; empty means none

	Mount string // of the transit engine; empty means "transit"
	Key   string // name of the transit key

	AppRoleMount string // empty means "approle"
	RoleID       string
	SecretIDFile string // holds the secret id, or a wrapping token for it
	Wrapped      bool   // SecretIDFile holds a wrapping token

	Epoch Role // what rotates and retires versions of the key; zero: nothing does, and Epochs is nil

	Logger *slog.Logger // nil means none
}

// Role is an AppRole besides the sidecar's own.
type Role struct {
	RoleID       string
	SecretIDFile string // holds the secret id, or a wrapping token for it
	Wrapped      bool   // SecretIDFile holds a wrapping token
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*$`)

func (cfg Config) verified() (Config, error) {
	if cfg.Mount == "" {
		cfg.Mount = "transit"
	}
	if cfg.AppRoleMount == "" {
		cfg.AppRoleMount = "approle"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	refused := func(why string) (Config, error) {
		return cfg, fmt.Errorf("hcvault: config: %s: %w", why, keys.ErrInvalid)
	}
	if cfg.RoleID == "" || cfg.SecretIDFile == "" {
		return refused("role id or file of the secret id is not set")
	}
	if (cfg.Epoch.RoleID == "") != (cfg.Epoch.SecretIDFile == "") || cfg.Epoch.Wrapped && cfg.Epoch.RoleID == "" {
		return refused("role id or file of the secret id of the epoch is not set")
	}
	if cfg.Epoch.RoleID == cfg.RoleID || cfg.Epoch.SecretIDFile == cfg.SecretIDFile {
		return refused("the epoch has no role of its own")
	}
	if !nameRE.MatchString(cfg.Mount) || !nameRE.MatchString(cfg.AppRoleMount) || !nameRE.MatchString(cfg.Key) || strings.Contains(cfg.Key, "/") {
		return refused("name of a mount or of the key")
	}
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return refused("address is not https://host:port")
	}
	switch u.Scheme {
	case "https":
	case "http":
		if !cfg.AllowHTTP {
			return refused("address is http and that is not allowed")
		}
		if ip := net.ParseIP(u.Hostname()); ip == nil || !ip.IsLoopback() {
			return refused("address is http and not a loopback address")
		}
	default:
		return refused("address is not https://host:port")
	}
	return cfg, nil
}

// KEK wraps with a derived transit key. It logs in by itself, renews its token, logs in again when the
// token dies, and recovers from any outage without being opened again.
type KEK struct {
	cfg       Config
	client    *hcapi.Client
	transport *http.Transport
	session   *session
	breaker   *breaker
	slots     chan struct{} // bounds requests at a time
	epochs    *Epochs       // nil without a role for them
	close     sync.Once
}

var _ keyring.KEK = (*KEK)(nil)

// Open logs in and returns the KEK. It fails when the first login does. It removes VAULT_* from the
// environment of the process, so that nothing there redirects the client, weakens its TLS or lends it a
// token.
func Open(ctx context.Context, cfg Config) (*KEK, error) {
	cfg, err := cfg.verified()
	if err != nil {
		return nil, err
	}
	if err := clearEnvironment(); err != nil {
		return nil, err
	}
	transport, err := newTransport(cfg)
	if err != nil {
		return nil, err
	}
	limiter := rate.NewLimiter(maxRequests, maxBurst)
	client, err := newClient(cfg, transport, limiter)
	if err != nil {
		return nil, err
	}
	bare, err := newClient(cfg, transport, limiter)
	if err != nil {
		return nil, err
	}
	k := &KEK{cfg: cfg, client: client, transport: transport, slots: make(chan struct{}, maxAtOnce)}
	if cfg.Epoch != (Role{}) {
		if k.epochs, err = newEpochs(k, limiter); err != nil {
			return nil, err
		}
	}
	k.session = newSession(cfg, client, bare, new(unwrapped))
	k.breaker = newBreaker(cfg.Logger, k.probe)
	if _, err := k.session.token(ctx, 0); err != nil {
		_ = k.Close()
		return nil, fmt.Errorf("logging in to HashiCorp Vault: %w", err)
	}
	return k, nil
}

// Close ends the session and revokes its token, if HashiCorp Vault can be reached. A second Close returns
// nil.
func (k *KEK) Close() error {
	k.close.Do(func() {
		k.breaker.close()
		if k.epochs != nil {
			k.epochs.close()
		}
		k.session.close()
		k.transport.CloseIdleConnections()
	})
	return nil
}

// Name implements keyring.KEK.
func (k *KEK) Name() string { return Name }

// TokenValid is how long the token of the session is valid still, as far as is known; 0 without one.
func (k *KEK) TokenValid() time.Duration { return k.session.valid() }

// clearEnvironment removes what HashiCorp's client would read.
func clearEnvironment() error {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "VAULT_") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("hcvault: clearing %s: %w", name, err)
			}
		}
	}
	return nil
}

func newTransport(cfg Config) (*http.Transport, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("hcvault: reading CA file: %w", err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("hcvault: CA file holds no certificate: %w", keys.ErrInvalid)
		}
	}
	return &http.Transport{
		Proxy:                 nil, // none from the environment
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig, // set, so HTTP/1.1: a hanging connection holds up one request and not all
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: callTimeout,
		IdleConnTimeout:       60 * time.Second,
		MaxIdleConnsPerHost:   maxAtOnce,
		MaxConnsPerHost:       2 * maxAtOnce,
	}, nil
}

// newClient makes HashiCorp's client with nothing left to its defaults or to the environment. It is also
// used for a second client, since theirs forgets DisableRedirects when it is cloned.
func newClient(cfg Config, transport *http.Transport, limiter *rate.Limiter) (*hcapi.Client, error) {
	client, err := hcapi.NewClient(&hcapi.Config{
		Address: cfg.Address,
		// The timeout of the HTTP client bounds each try up to the end of the answer, also where the API
		// takes no context (token renewal). The API's own Timeout stays 0: its raw writes end its context
		// before the answer is read. Every call of ours has a context of callTimeout besides.
		HttpClient: &http.Client{
			Transport:     transport,
			Timeout:       callTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxRetries:       maxRetries,
		MinRetryWait:     minRetryWait,
		MaxRetryWait:     maxRetryWait,
		Backoff:          retryablehttp.LinearJitterBackoff,
		CheckRetry:       checkRetry,
		DisableRedirects: true,
		Limiter:          limiter,
	})
	if err != nil {
		return nil, fmt.Errorf("hcvault: making the client: %w", err)
	}
	client.SetToken("")
	if cfg.Namespace != "" {
		client.SetNamespace(cfg.Namespace)
	}
	return client, nil
}

// checkRetry says which failures are tried once more: those that happened before HashiCorp Vault worked on
// the request, or that ask for it. A 500 may be a failed audit, a 503 is sealed: neither gets better soon.
func checkRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		var op *net.OpError
		return errors.As(err, &op) && op.Op == "dial" && !op.Timeout() ||
			errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), nil
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true, nil
	}
	return false, nil
}
