package peers

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/traffic"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// Kinds of work on HashiCorp Vault.
const (
	KVPut          = "put"
	KVGet          = "get"
	TransitEncrypt = "encrypt"
	TransitDecrypt = "decrypt"
)

const (
	kvMount      = "bench-kv"
	transitMount = "bench-transit"
	prepared     = 2000 // records that are there to be got or decrypted

	policy = `
path "bench-kv/data/*"                 { capabilities = ["create", "update", "read"] }
path "bench-transit/encrypt/records"   { capabilities = ["update"] }
path "bench-transit/decrypt/records"   { capabilities = ["update"] }
`
)

// HashiCorp is a real HashiCorp Vault with a KV engine of version 2, a transit key and a file audit device.
type HashiCorp struct {
	server *hcserver.Server
	token  string
	next   atomic.Int64

	mu          sync.Mutex // guards ciphertexts
	ciphertexts []string
}

// StartHashiCorp starts one in dir and fills it. Without a binary it returns hcserver.ErrNoBinary.
func StartHashiCorp(ctx context.Context, dir string) (_ *HashiCorp, err error) {
	server, err := hcserver.Start(ctx, dir)
	if err != nil {
		return nil, err
	}
	h := &HashiCorp{server: server}
	defer func() {
		if err != nil {
			_ = h.Close() // err says more
		}
	}()
	for _, step := range []struct {
		path string
		body map[string]any
	}{
		{"sys/audit/file", map[string]any{"type": "file", "options": map[string]any{"file_path": filepath.Join(dir, "audit.log")}}},
		{"sys/mounts/" + kvMount, map[string]any{"type": "kv", "options": map[string]any{"version": "2"}}},
		{"sys/mounts/" + transitMount, map[string]any{"type": "transit"}},
		{transitMount + "/keys/records", map[string]any{"type": "aes256-gcm96"}},
		{"sys/policies/acl/bench", map[string]any{"policy": policy}},
	} {
		if err := server.Request(ctx, "POST", step.path, step.body, nil); err != nil {
			return nil, err
		}
	}
	var auth struct {
		Token string `json:"client_token"`
	}
	if err := server.Request(ctx, "POST", "auth/token/create", map[string]any{"policies": []string{"bench"}, "no_default_policy": true}, &auth); err != nil {
		return nil, err
	}
	h.token = auth.Token
	if err := h.kvReady(ctx); err != nil {
		return nil, err
	}
	for _, kind := range []string{KVPut, TransitEncrypt} {
		if err := h.prepare(kind); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// kvReady waits until the new engine takes requests, which it refuses for a moment.
func (h *HashiCorp) kvReady(ctx context.Context) (err error) {
	for range 100 {
		if err = h.server.Request(ctx, "POST", kvMount+"/config", map[string]any{"max_versions": 1}, nil); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// prepare makes what the reading kinds read.
func (h *HashiCorp) prepare(kind string) error {
	c, err := h.Load(kind)
	if err != nil {
		return err
	}
	c.Connections, c.Duration, c.Count = 32, time.Minute, prepared
	if kind == TransitEncrypt {
		c.Answered = h.keep
	}
	r, err := load.Run(c)
	if err == nil && r.Requests < prepared {
		err = errors.New("some were refused")
	}
	if err != nil {
		return fmt.Errorf("preparing by %s: %w", kind, err)
	}
	return nil
}

func (h *HashiCorp) keep(_ int64, status int, body []byte) {
	var answer struct{ Data struct{ Ciphertext string } }
	if status == 200 && json.Unmarshal(body, &answer) == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ciphertexts = append(h.ciphertexts, answer.Data.Ciphertext)
	}
}

// Close ends the server.
func (h *HashiCorp) Close() error { return h.server.Close() }

// Load is a run of kind, without its bounds.
func (h *HashiCorp) Load(kind string) (load.Config, error) {
	c := load.Config{Address: strings.TrimPrefix(h.server.Address(), "http://")}
	switch kind {
	case KVPut:
		c.Request = func(_ int64, buf []byte) []byte {
			n := h.next.Add(1) - 1
			return h.post(buf, kvPath(n), fmt.Appendf(nil, `{"data":%s}`, traffic.Profile(n)))
		}
	case KVGet:
		c.Request = func(n int64, buf []byte) []byte {
			return fmt.Appendf(buf, "GET %s HTTP/1.1\r\nHost: x\r\nX-Vault-Token: %s\r\nX-Vault-Request: true\r\n\r\n", kvPath(n*7919%prepared), h.token)
		}
	case TransitEncrypt:
		c.Request = func(n int64, buf []byte) []byte {
			return h.post(buf, "/v1/"+transitMount+"/encrypt/records", fmt.Appendf(nil, `{"plaintext":%q}`, base64.StdEncoding.EncodeToString(traffic.Profile(n))))
		}
	case TransitDecrypt:
		h.mu.Lock()
		sealed := h.ciphertexts
		h.mu.Unlock()
		if len(sealed) == 0 {
			return c, errors.New("peers: nothing was encrypted")
		}
		c.Request = func(n int64, buf []byte) []byte {
			return h.post(buf, "/v1/"+transitMount+"/decrypt/records", fmt.Appendf(nil, `{"ciphertext":%q}`, sealed[n%int64(len(sealed))]))
		}
	default:
		return c, unknown(kind)
	}
	return c, nil
}

func kvPath(n int64) string { return fmt.Sprintf("/v1/%s/data/%x", kvMount, id(n)) }

func (h *HashiCorp) post(buf []byte, path string, body []byte) []byte {
	buf = fmt.Appendf(buf, "POST %s HTTP/1.1\r\nHost: x\r\nX-Vault-Token: %s\r\nX-Vault-Request: true\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		path, h.token, len(body))
	return append(buf, body...)
}
