package client

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/api"
)

// Erase erases a subject for one of api.ErasureReasons. Keep the certificate, its Encode: this one alone names the
// subject. Its proofs are not verified here.
//
// An *access.PendingErasureError says that the erasure is on record and will be finished without being asked for
// again; Erasure then gives the certificate, and Subject and Salt can be added to it. The call is never sent twice:
// to the second the subject might be one that never was.
func (c *Client) Erase(ctx context.Context, id uuid.UUID, reason string) (erasure.Certificate, error) {
	return c.certificate(ctx, request{method: http.MethodDelete, path: subjectPath(id), body: encode(api.Erase{Reason: reason})})
}

// Erasure returns the certificate of an erasure as it is now, by the certificate's id. It names no subject.
func (c *Client) Erasure(ctx context.Context, id uuid.UUID) (erasure.Certificate, error) {
	return c.certificate(ctx, request{method: http.MethodGet, path: "/v1/erasures/" + id.String(), repeatable: true})
}

func (c *Client) certificate(ctx context.Context, q request) (erasure.Certificate, error) {
	r, err := c.do(ctx, q)
	if err != nil {
		return erasure.Certificate{}, err
	}
	certificate, err := erasure.Parse(r.body)
	if err != nil {
		return erasure.Certificate{}, fmt.Errorf("%s %s: %w", q.method, template(q.path), err)
	}
	return certificate, nil
}
