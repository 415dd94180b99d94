package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

// Filter selects access records. Zero members select everything.
type Filter struct {
	Subject                                 uuid.UUID
	Caller, Purpose, Ground, Decision, Kind string
	From, To                                time.Time
	Cursor                                  string // Next of the page before
	Limit                                   int    // 0: api.DefaultPage
}

// AccessRecords returns a page of the log, oldest first.
func (c *Client) AccessRecords(ctx context.Context, f Filter) (api.AccessRecords, error) {
	query := url.Values{}
	for name, value := range map[string]string{
		"caller": f.Caller, "purpose": f.Purpose, "ground": f.Ground, "decision": f.Decision, "kind": f.Kind, "cursor": f.Cursor,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if f.Subject != uuid.Nil {
		query.Set("subject", f.Subject.String())
	}
	if !f.From.IsZero() {
		query.Set("from", f.From.Format(time.RFC3339Nano))
	}
	if !f.To.IsZero() {
		query.Set("to", f.To.Format(time.RFC3339Nano))
	}
	if f.Limit > 0 {
		query.Set("limit", strconv.Itoa(f.Limit))
	}
	return call[api.AccessRecords](ctx, c, request{method: http.MethodGet, path: "/v1/access-records", query: query, repeatable: true})
}

// AccessRecord returns the entry at index.
func (c *Client) AccessRecord(ctx context.Context, index int64) (api.AccessRecord, error) {
	return call[api.AccessRecord](ctx, c, request{method: http.MethodGet, path: recordIndex(index), repeatable: true})
}

// Proof returns the proof that the entry at index is in the log, as a C2SP tlog-proof.
func (c *Client) Proof(ctx context.Context, index int64) ([]byte, error) {
	return c.raw(ctx, recordIndex(index)+"/proof")
}

func recordIndex(index int64) string { return "/v1/access-records/" + strconv.FormatInt(index, 10) }

// Checkpoint returns the newest checkpoint of the log.
func (c *Client) Checkpoint(ctx context.Context) ([]byte, error) {
	return c.raw(ctx, "/log/checkpoint")
}

// Tile returns a tile or an entry bundle by its path, such as tile/0/000 or tile/entries/000.p/7.
func (c *Client) Tile(ctx context.Context, path string) ([]byte, error) {
	return c.raw(ctx, "/log/"+path)
}

// Policy returns the bundle in force, byte for byte, and its version.
func (c *Client) Policy(ctx context.Context) (version int64, bundle []byte, err error) {
	return c.bundle(ctx, "/v1/policy")
}

// PolicyVersion returns the bundle of a version, byte for byte.
func (c *Client) PolicyVersion(ctx context.Context, version int64) (bundle []byte, err error) {
	got, bundle, err := c.bundle(ctx, "/v1/policy/versions/"+strconv.FormatInt(version, 10))
	if err == nil && got != version {
		return nil, fmt.Errorf("policy version %d: server answered with another: %w", version, access.ErrIntegrity)
	}
	return bundle, err
}

// bundle reads a bundle and compares it with its digest.
func (c *Client) bundle(ctx context.Context, path string) (int64, []byte, error) {
	r, err := c.do(ctx, request{method: http.MethodGet, path: path, repeatable: true})
	if err != nil {
		return 0, nil, err
	}
	sum := sha256.Sum256(r.body)
	if r.header.Get("Repr-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" {
		return 0, nil, fmt.Errorf("policy bundle is not the one that was published: %w", access.ErrIntegrity)
	}
	version, err := strconv.ParseInt(strings.Trim(r.header.Get("ETag"), `"`), 10, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("policy bundle has no version: %w", ErrProtocol)
	}
	return version, r.body, nil
}

// PolicyVersions lists the published versions, oldest first.
func (c *Client) PolicyVersions(ctx context.Context) ([]api.PolicyVersion, error) {
	r, err := call[api.PolicyVersions](ctx, c, request{method: http.MethodGet, path: "/v1/policy/versions", repeatable: true})
	return r.Versions, err
}

// PublishPolicy publishes a bundle as a new version.
func (c *Client) PublishPolicy(ctx context.Context, bundle []byte) (api.PolicyVersion, error) {
	return call[api.PolicyVersion](ctx, c, request{method: http.MethodPost, path: "/v1/policy", body: bundle})
}
