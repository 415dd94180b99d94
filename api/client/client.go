// Package client is the Go client of pdvault's HTTP API. Its files follow those of api/server one by one.
//
// Bodies are the types of package api. Problems come back as the sentinels of package access, so that
// errors.Is and errors.As work as if the broker had been called directly:
//
//	record, err := c.Read(ctx, client.Read{Subject: id, Collection: "profile", Purpose: "newsletter"})
//	var denied *access.DeniedError
//	if errors.As(err, &denied) { … denied.Missing … }
//
// The package must never put the token, or a value of a person, into an error, and never send the token
// over plain HTTP to another host unless it is told to.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/prototypster/pdvault/api"
)

// Config says where the server is and who calls.
type Config struct {
	// Server is http://host:port, https://host:port or unix:/path. Required.
	Server string
	// Token is the bearer token. Empty: only what needs no authentication can be called.
	Token string
	// TLS is for https. Nil: the system's roots. TLS 1.3 is demanded whatever it says.
	TLS *tls.Config
	// PlainHTTP allows http:// to a host that is not this one. The token and the data then cross the network
	// in the clear.
	PlainHTTP bool
	// Timeout bounds one call with its retries. 0: 30 s.
	Timeout time.Duration
	// Retries bounds how often a call that may be repeated is sent again when the server answers 503 with
	// Retry-After. 0: 3; negative: never.
	Retries int
	// MaxConnections bounds the connections to the server. 0: 64.
	MaxConnections int
}

// Client calls one server. All its methods may be called from any goroutine.
type Client struct {
	base    string
	token   string
	timeout time.Duration
	retries int
	http    *http.Client
	sleep   func(context.Context, time.Duration) error
}

// New checks c and returns a Client. It does not connect.
func New(c Config) (*Client, error) {
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Retries == 0 {
		c.Retries = 3
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 64
	}
	if c.Token != "" && !isToken(c.Token) {
		return nil, errors.New("client: the token has characters that no token has")
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	// A transport of our own: no proxy from the environment, no compression, a limit on everything.
	transport := &http.Transport{
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		ResponseHeaderTimeout:  15 * time.Second,
		IdleConnTimeout:        50 * time.Second, // below the server's
		MaxIdleConns:           c.MaxConnections,
		MaxIdleConnsPerHost:    c.MaxConnections,
		MaxConnsPerHost:        c.MaxConnections,
		MaxResponseHeaderBytes: 16 << 10,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
	}
	if c.TLS != nil {
		transport.TLSClientConfig = c.TLS.Clone()
	} else {
		transport.TLSClientConfig = &tls.Config{}
	}
	transport.TLSClientConfig.MinVersion = tls.VersionTLS13

	base := strings.TrimSuffix(c.Server, "/")
	if path, ok := strings.CutPrefix(base, "unix:"); ok {
		base = "http://pdvault"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
	} else {
		u, err := url.Parse(base)
		switch {
		case err != nil || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "":
			return nil, errors.New("client: Server must be http://host:port, https://host:port or unix:/path")
		case u.Scheme == "http" && !c.PlainHTTP && !isLoopback(u.Hostname()):
			return nil, errors.New("client: plain HTTP to another host would show token and data to the network: use https, or PlainHTTP")
		case u.Scheme != "http" && u.Scheme != "https":
			return nil, errors.New("client: Server must be an http, https or unix address")
		}
	}
	return &Client{
		base: base, token: c.Token, timeout: c.Timeout, retries: max(c.Retries, 0), sleep: sleep,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func isToken(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Reason says why data is read, beyond the purpose. Both members are sealed under the person's key.
type Reason struct {
	Reference     string // order or ticket number, at most api.MaxReference bytes; empty: none
	Justification string // at most api.MaxJustification bytes; empty: none
}

func (r Reason) set(h http.Header) {
	if r.Reference != "" {
		h.Set(api.HeaderReference, r.Reference)
	}
	if r.Justification != "" {
		h.Set(api.HeaderJustification, r.Justification)
	}
}

// request is one call.
type request struct {
	method, path string
	query        url.Values
	header       http.Header
	media        string // of body; empty: application/json
	body         []byte
	repeatable   bool // sending it twice does no harm
}

// response is an answer that is a success.
type response struct {
	status int
	header http.Header
	body   []byte
}

const (
	maxAnswer  = 512 << 20 // bytes; a batch of the largest records is below
	maxBackoff = 10 * time.Second
)

// do sends q, again when that is allowed, and returns a success or an *Error.
func (c *Client) do(ctx context.Context, q request) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		r, err := c.once(ctx, q)
		var problem *Error
		if !errors.As(err, &problem) || problem.Status != http.StatusServiceUnavailable ||
			problem.RetryAfter == 0 || !q.repeatable || attempt == c.retries {
			return r, err
		}
		if c.sleep(ctx, min(problem.RetryAfter, maxBackoff)) != nil {
			return nil, err
		}
	}
}

func (c *Client) once(ctx context.Context, q request) (*response, error) {
	answer, err := c.send(ctx, q)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s %s: reading the answer: %w", q.method, template(q.path), err)
	case len(raw) > maxAnswer:
		return nil, fmt.Errorf("%s %s: answer is too large", q.method, template(q.path))
	case answer.StatusCode >= 300:
		return nil, problemOf(answer, raw)
	}
	return &response{answer.StatusCode, answer.Header, raw}, nil
}

// send sends q and returns the answer, whose body the caller closes.
func (c *Client) send(ctx context.Context, q request) (*http.Response, error) {
	target := c.base + q.path
	if len(q.query) > 0 {
		target += "?" + q.query.Encode()
	}
	var body io.Reader
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(ctx, q.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: request cannot be made", q.method, template(q.path))
	}
	if q.header != nil {
		r.Header = q.header.Clone()
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if q.body != nil {
		media := q.media
		if media == "" {
			media = "application/json"
		}
		r.Header.Set("Content-Type", media)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		var wrapped *url.Error // repeats the URL, with the id of a person in it
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, fmt.Errorf("%s %s: %w", q.method, template(q.path), err)
	}
	return answer, nil
}

// template names a path without the ids in it.
func template(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if len(p) == 36 {
			parts[i] = "{id}"
		}
	}
	return strings.Join(parts, "/")
}

// call is do for a JSON answer.
func call[T any](ctx context.Context, c *Client, q request) (T, error) {
	var v T
	r, err := c.do(ctx, q)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(r.body, &v); err != nil {
		var zero T
		return zero, fmt.Errorf("%s %s: answer is not what the contract says", q.method, template(q.path))
	}
	return v, nil
}

// raw is do for an answer of bytes.
func (c *Client) raw(ctx context.Context, path string) ([]byte, error) {
	r, err := c.do(ctx, request{method: http.MethodGet, path: path, repeatable: true})
	if err != nil {
		return nil, err
	}
	return r.body, nil
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil // a raw member is not JSON: an empty body is refused by the server
	}
	return b
}

func etag(version uint64) string { return `"` + strconv.FormatUint(version, 10) + `"` }

// quote makes a structured-field string of an idempotency key.
func quote(key string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
}
