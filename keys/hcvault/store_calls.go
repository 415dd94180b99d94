package hcvault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	hcapi "github.com/hashicorp/vault/api"
	"golang.org/x/time/rate"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// Requests of the key store are small and come one for each row, so their bound is higher than that of the
// KEK, whose requests are batches.
const (
	maxStoreRequests = 4_000 // per second
	maxStoreBurst    = 256
)

var (
	// errMoved is what a write gets whose secret is not at the version that it was to replace.
	errMoved = errors.New("hcvault: secret is at another version")
	// errNotSent marks the failure of a request that HashiCorp Vault cannot have worked on.
	errNotSent = errors.New("hcvault: request was not made")
)

// secrets makes the requests of one key store, all below one path of one KV engine, over the connection and
// with the login of a KEK.
type secrets struct {
	kek    *KEK
	client *hcapi.Client // a client of its own, for its limiter; the token is the session's
	mount  string
	root   string // path of the store below the mount
	slots  chan struct{}

	mu    sync.Mutex // guards login
	login uint64     // number of the token in client
}

// secret is one version of a secret.
type secret struct {
	version uint64
	data    json.RawMessage
}

func newSecrets(k *KEK, mount, root string) (*secrets, error) {
	client, err := newClient(k.cfg, k.transport, rate.NewLimiter(maxStoreRequests, maxStoreBurst))
	if err != nil {
		return nil, err
	}
	return &secrets{kek: k, client: client, mount: mount, root: root, slots: make(chan struct{}, maxAtOnce)}, nil
}

// read returns the newest version of a secret, or nil if there is none. One whose versions were deleted but
// whose metadata is there is damage: nothing here leaves such.
func (c *secrets) read(ctx context.Context, name string) (*secret, error) {
	text, status, err := c.call(ctx, func(ctx context.Context) (*hcapi.Response, error) {
		return c.client.Logical().ReadRawWithContext(ctx, c.mount+"/data/"+c.root+"/"+name)
	})
	if status == http.StatusNotFound && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var a struct {
		Data struct {
			Data     json.RawMessage `json:"data"`
			Metadata struct {
				Version uint64 `json:"version"`
			} `json:"metadata"`
		} `json:"data"`
	}
	if json.Unmarshal(text, &a) != nil || a.Data.Metadata.Version == 0 || len(a.Data.Data) == 0 {
		return nil, fmt.Errorf("HashiCorp Vault's answer is not that of a KV engine of version 2: %w: %w", keys.ErrUnavailable, kv.ErrIntegrity)
	}
	return &secret{a.Data.Metadata.Version, a.Data.Data}, nil
}

// write makes the version of a secret that follows version cas; 0: the secret must not be there. It returns
// the new version. The error is errMoved if the secret was elsewhere, wraps errNotSent if nothing can have
// been written, and leaves it open otherwise.
func (c *secrets) write(ctx context.Context, name string, cas uint64, data any) (uint64, error) {
	var body struct {
		Options struct {
			CAS uint64 `json:"cas"`
		} `json:"options"`
		Data any `json:"data"`
	}
	body.Options.CAS, body.Data = cas, data
	b, err := json.Marshal(body)
	if err != nil {
		return 0, fmt.Errorf("hcvault: encoding a secret: %w: %w", errNotSent, err)
	}
	text, status, err := c.call(ctx, func(ctx context.Context) (*hcapi.Response, error) {
		return c.client.Logical().WriteRawWithContext(ctx, c.mount+"/data/"+c.root+"/"+name, b)
	})
	if err == nil && status == http.StatusNotFound {
		err = errNoMount
	}
	if err != nil {
		return 0, err
	}
	var a struct {
		Data struct {
			Version uint64 `json:"version"`
		} `json:"data"`
		Warnings []string `json:"warnings"`
	}
	if json.Unmarshal(text, &a) != nil || a.Data.Version == 0 {
		return 0, fmt.Errorf("HashiCorp Vault's answer is not that of a KV engine of version 2: %w: %w", keys.ErrUnavailable, kv.ErrIntegrity)
	}
	if a.Data.Version != cas+1 {
		return 0, fmt.Errorf("a write made version %d of a secret at version %d: %w", a.Data.Version, cas, kv.ErrIntegrity)
	}
	for _, w := range a.Warnings {
		if strings.Contains(w, "cleaning up old versions") {
			// The next write of the secret removes it.
			c.kek.cfg.Logger.Warn("HashiCorp Vault could not remove the older version of a secret")
		}
	}
	return a.Data.Version, nil
}

// destroy removes a secret with all its versions and its metadata. One that is not there is fine.
func (c *secrets) destroy(ctx context.Context, name string) error {
	_, status, err := c.call(ctx, func(ctx context.Context) (*hcapi.Response, error) {
		return c.client.Logical().DeleteRawWithContext(ctx, c.mount+"/metadata/"+c.root+"/"+name)
	})
	if err == nil && status == http.StatusNotFound {
		err = errNoMount
	}
	return err
}

// list returns the names below a folder, those of folders with a slash at their end.
func (c *secrets) list(ctx context.Context, folder string) ([]string, error) {
	text, status, err := c.call(ctx, func(ctx context.Context) (*hcapi.Response, error) {
		return c.client.Logical().ReadRawWithDataWithContext(ctx, c.mount+"/metadata/"+c.root+"/"+folder, map[string][]string{"list": {"true"}})
	})
	if status == http.StatusNotFound && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var a struct {
		Data struct {
			Keys []string `json:"keys"`
		} `json:"data"`
	}
	if json.Unmarshal(text, &a) != nil || a.Data.Keys == nil {
		return nil, fmt.Errorf("HashiCorp Vault's answer is not a list: %w: %w", keys.ErrUnavailable, kv.ErrIntegrity)
	}
	return a.Data.Keys, nil
}

// keepsOneVersion refuses an engine that keeps more than one version of a secret, or deletes by itself. A
// secret that was written twice shows it.
func (c *secrets) keepsOneVersion(ctx context.Context, name string) error {
	text, status, err := c.call(ctx, func(ctx context.Context) (*hcapi.Response, error) {
		return c.client.Logical().ReadRawWithContext(ctx, c.mount+"/metadata/"+c.root+"/"+name)
	})
	if err != nil {
		return err
	}
	var a struct {
		Data struct {
			Versions map[string]struct {
				DeletionTime string `json:"deletion_time"`
			} `json:"versions"`
		} `json:"data"`
	}
	if status != http.StatusOK || json.Unmarshal(text, &a) != nil || len(a.Data.Versions) == 0 {
		return fmt.Errorf("HashiCorp Vault's answer is not that of a KV engine of version 2: %w: %w", keys.ErrUnavailable, kv.ErrIntegrity)
	}
	if len(a.Data.Versions) > 1 {
		return fmt.Errorf("hcvault: the KV engine keeps older versions of secrets, so that what was erased would stay; set its max_versions to 1: %w", keys.ErrInvalid)
	}
	for _, v := range a.Data.Versions {
		if v.DeletionTime != "" {
			return fmt.Errorf("hcvault: the KV engine deletes secrets by itself; set its delete_version_after to 0s: %w", keys.ErrInvalid)
		}
	}
	return nil
}

// errNoMount, and an answer that is none, may come from something that stands before HashiCorp Vault: they pass.
var errNoMount = fmt.Errorf("HashiCorp Vault has no KV engine there: %w: %w", keys.ErrUnavailable, kv.ErrIntegrity)

// call makes a request, with one new login if the token has died. Status 404 is no error if it says that the
// secret is not there.
func (c *secrets) call(ctx context.Context, request func(context.Context) (*hcapi.Response, error)) ([]byte, int, error) {
	if !c.kek.breaker.allows() {
		return nil, 0, fmt.Errorf("%w: HashiCorp Vault gives no answer: %w", errNotSent, keys.ErrUnavailable)
	}
	login, err := c.token(ctx, 0)
	if err != nil {
		return nil, 0, err
	}
	text, status, err := c.once(ctx, request)
	if !errors.Is(err, errDeadToken) {
		return text, status, err
	}
	if _, err := c.token(ctx, login); err != nil {
		return nil, 0, err
	}
	return c.once(ctx, request)
}

// token waits until the client has a token that is not the one with number dead, and returns its number.
func (c *secrets) token(ctx context.Context, dead uint64) (uint64, error) {
	login, err := c.kek.session.token(ctx, dead)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNotSent, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if login > c.login {
		c.client.SetToken(c.kek.client.Token())
		c.login = login
	}
	return login, nil
}

func (c *secrets) once(ctx context.Context, request func(context.Context) (*hcapi.Response, error)) ([]byte, int, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("%w: %w", errNotSent, callError(ctx.Err()))
	}
	resp, err := request(ctx)
	var text []byte
	status := 0
	if resp != nil {
		defer resp.Body.Close()
		status = resp.StatusCode
		var e error
		if text, e = io.ReadAll(io.LimitReader(resp.Body, maxBody)); err == nil {
			err = e
		}
	}
	// A caller that gave up early says nothing about HashiCorp Vault.
	if caller.Err() == nil || !isOutage(err) {
		c.kek.breaker.record(isOutage(err))
	}
	if err == nil {
		return text, status, nil
	}
	var refusal *hcapi.ResponseError
	var op *net.OpError
	switch {
	case errors.As(err, &refusal) && refusal.StatusCode == http.StatusNotFound:
		return nil, refusal.StatusCode, absence(text)
	case errors.As(err, &refusal) && refusal.StatusCode == http.StatusBadRequest && strings.Contains(strings.Join(refusal.Errors, "\n"), "check-and-set parameter did not match"):
		return nil, refusal.StatusCode, errMoved
	case refusal == nil && errors.As(err, &op) && op.Op == "dial":
		return nil, 0, fmt.Errorf("%w: %w", errNotSent, callError(err))
	}
	return nil, status, callError(err)
}

// absence tells the 404 of a secret that is not there from that of a mount that is not, and from that of a
// secret whose versions were deleted.
func absence(text []byte) error {
	var a struct {
		Errors []string        `json:"errors"`
		Data   json.RawMessage `json:"data"`
	}
	if json.Unmarshal(text, &a) != nil || len(a.Errors) > 0 {
		return errNoMount
	}
	if len(a.Data) > 0 && string(a.Data) != "null" {
		return fmt.Errorf("the versions of a secret were deleted: %w", kv.ErrIntegrity)
	}
	return nil
}
