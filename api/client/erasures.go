package client

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/api"
)

// Erased is a finished erasure.
type Erased struct {
	ID          uuid.UUID // of the certificate
	Certificate []byte    // JSON, byte for byte as it is verified offline
}

// Erase erases a subject for one of api.ErasureReasons. Keep the certificate: this one alone names the subject.
// It is never sent twice, since the answer to the second would not. An error that is access.ErrErasurePending
// says that the erasure is on record and will be finished without being asked for again.
func (c *Client) Erase(ctx context.Context, id uuid.UUID, reason string) (Erased, error) {
	r, err := c.do(ctx, request{method: http.MethodDelete, path: subjectPath(id), body: encode(api.Erase{Reason: reason})})
	if err != nil {
		return Erased{}, err
	}
	certificate, err := uuid.Parse(strings.TrimPrefix(r.header.Get("Location"), erasuresPath))
	if err != nil {
		return Erased{}, fmt.Errorf("erasure: answer does not name its certificate: %w", ErrProtocol)
	}
	return Erased{certificate, r.body}, nil
}

const erasuresPath = "/v1/erasures/"

// Erasure returns the certificate of an erasure as it is now, by the certificate's id.
func (c *Client) Erasure(ctx context.Context, id uuid.UUID) ([]byte, error) {
	return c.raw(ctx, erasuresPath+id.String())
}

// ErasureAct returns the act of an erasure, an HTML page for printing, by the certificate's id.
func (c *Client) ErasureAct(ctx context.Context, id uuid.UUID) ([]byte, error) {
	r, err := c.do(ctx, request{
		method: http.MethodGet, path: erasuresPath + id.String(), header: http.Header{"Accept": {"text/html"}}, repeatable: true,
	})
	if err != nil {
		return nil, err
	}
	return r.body, nil
}
