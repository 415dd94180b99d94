package client

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/api"
)

// Read asks for fields of one record.
type Read struct {
	Subject    uuid.UUID
	Collection string
	Purpose    string
	Fields     []string // empty: all that the purpose covers
	Mode       string   // reveal or mask; empty: reveal
	Reason
}

// Read reads fields of a record for a purpose. Each time it is sent is on record.
func (c *Client) Read(ctx context.Context, r Read) (api.Record, error) {
	q := request{
		method: http.MethodGet, path: recordPath(r.Subject, r.Collection), repeatable: true,
		query: url.Values{"purpose": {r.Purpose}}, header: http.Header{},
	}
	if len(r.Fields) > 0 {
		q.query.Set("fields", strings.Join(r.Fields, ","))
	}
	if r.Mode != "" {
		q.query.Set("mode", r.Mode)
	}
	r.set(q.header)
	return call[api.Record](ctx, c, q)
}

// ReadBatch makes up to api.MaxBatch reads for one purpose. A problem of one read is in its result; see
// ProblemError.
func (c *Client) ReadBatch(ctx context.Context, b api.Reads, why Reason) ([]api.ReadResult, error) {
	r, err := call[api.ReadResults](ctx, c, post("/v1/reads", b, why))
	return r.Results, err
}

// Lookup finds subjects by the value of an indexed field.
func (c *Client) Lookup(ctx context.Context, l api.Lookup, why Reason) (api.LookupResult, error) {
	return call[api.LookupResult](ctx, c, post("/v1/lookups", l, why))
}

// Verify asks whether a field has a value, without disclosing it.
func (c *Client) Verify(ctx context.Context, v api.Verification, why Reason) (api.VerificationResult, error) {
	return call[api.VerificationResult](ctx, c, post("/v1/verifications", v, why))
}

// Check asks whether a read would be allowed.
func (c *Client) Check(ctx context.Context, a api.AccessCheck, why Reason) (api.AccessCheckResult, error) {
	return call[api.AccessCheckResult](ctx, c, post("/v1/access-checks", a, why))
}

// post is a POST that changes nothing but the log, so that it may be repeated.
func post(path string, body any, why Reason) request {
	q := request{method: http.MethodPost, path: path, body: encode(body), header: http.Header{}, repeatable: true}
	why.set(q.header)
	return q
}

// pathEscape escapes everything that could end a segment of a path.
func pathEscape(s string) string { return url.PathEscape(s) }
