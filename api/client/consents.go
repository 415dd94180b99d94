package client

import (
	"context"
	"net/http"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/api"
)

// GiveConsent records a consent and returns the receipt. With a key the call may be repeated.
func (c *Client) GiveConsent(ctx context.Context, key string, subject uuid.UUID, consent api.GiveConsent) (api.Receipt, error) {
	return call[api.Receipt](ctx, c, request{
		method: http.MethodPost, path: subjectPath(subject) + "/consents", body: encode(consent),
		header: idempotent(key), repeatable: key != "",
	})
}

// Consents lists the consents of a subject.
func (c *Client) Consents(ctx context.Context, subject uuid.UUID) ([]api.Consent, error) {
	r, err := call[api.Consents](ctx, c, request{method: http.MethodGet, path: subjectPath(subject) + "/consents", repeatable: true})
	return r.Consents, err
}

// WithdrawConsent withdraws a consent.
func (c *Client) WithdrawConsent(ctx context.Context, consent uuid.UUID) (api.Consent, error) {
	return call[api.Consent](ctx, c, request{method: http.MethodPost, path: "/v1/consents/" + consent.String() + "/withdrawal"})
}
