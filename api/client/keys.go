package client

import (
	"context"
	"net/http"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/api"
)

// Keys tells which versions of which keys are in use, and when the next epoch is due.
func (c *Client) Keys(ctx context.Context) (api.Keys, error) {
	return call[api.Keys](ctx, c, request{method: http.MethodGet, path: "/v1/keys", repeatable: true})
}

const rotationsPath = "/v1/keys/rotations"

// StartRotation begins a rotation of one of api.RotationScopes; subject is for api.ScopeSubject, and zero for
// every other. While another one is running the error is an *access.RotationError, which names it.
func (c *Client) StartRotation(ctx context.Context, scope string, subject uuid.UUID) (api.Rotation, error) {
	body := api.StartRotation{Scope: scope}
	if subject != uuid.Nil {
		body.Subject = subject.String()
	}
	return call[api.Rotation](ctx, c, request{method: http.MethodPost, path: rotationsPath, body: encode(body)})
}

// Rotations lists the rotations, the newest first.
func (c *Client) Rotations(ctx context.Context) ([]api.Rotation, error) {
	r, err := call[api.Rotations](ctx, c, request{method: http.MethodGet, path: rotationsPath, repeatable: true})
	return r.Rotations, err
}

// Rotation returns one rotation.
func (c *Client) Rotation(ctx context.Context, id uuid.UUID) (api.Rotation, error) {
	return call[api.Rotation](ctx, c, request{method: http.MethodGet, path: rotationsPath + "/" + id.String(), repeatable: true})
}
