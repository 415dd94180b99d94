package client

import (
	"context"
	"net/http"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/api"
)

// CreateSubject makes a subject with its first records. With a key the call may be repeated for 24 hours and
// makes one subject; without one it is never sent twice.
func (c *Client) CreateSubject(ctx context.Context, key string, records map[string]jsontext.Value) (api.SubjectCreated, error) {
	return call[api.SubjectCreated](ctx, c, request{
		method: http.MethodPost, path: "/v1/subjects", body: encode(api.CreateSubject{Records: records}),
		header: idempotent(key), repeatable: key != "",
	})
}

func idempotent(key string) http.Header {
	h := http.Header{}
	if key != "" {
		h.Set("Idempotency-Key", quote(key))
	}
	return h
}

// Subject returns the metadata of a subject.
func (c *Client) Subject(ctx context.Context, id uuid.UUID) (api.Subject, error) {
	return call[api.Subject](ctx, c, request{method: http.MethodGet, path: subjectPath(id), repeatable: true})
}

func subjectPath(id uuid.UUID) string { return "/v1/subjects/" + id.String() }

// Condition is what a write demands of the record. The zero value demands that it is absent or that the
// server does not insist.
type Condition struct {
	Version uint64 // the version that the caller saw; 0: none
	Absent  bool   // the record must not exist
}

func (c Condition) header() http.Header {
	h := http.Header{}
	if c.Version > 0 {
		h.Set("If-Match", etag(c.Version))
	}
	if c.Absent {
		h.Set("If-None-Match", "*")
	}
	return h
}

// PutRecord writes a record whole. It is never sent twice, as are PatchRecord and DeleteRecord: after an
// answer that was lost, the second could not tell whether the first did it.
func (c *Client) PutRecord(ctx context.Context, id uuid.UUID, collection string, record []byte, condition Condition) (api.RecordWritten, error) {
	return call[api.RecordWritten](ctx, c, request{
		method: http.MethodPut, path: recordPath(id, collection), body: record, header: condition.header(),
	})
}

// PatchRecord changes fields of a record by a JSON merge patch.
func (c *Client) PatchRecord(ctx context.Context, id uuid.UUID, collection string, patch []byte, condition Condition) (api.RecordWritten, error) {
	return call[api.RecordWritten](ctx, c, request{
		method: http.MethodPatch, path: recordPath(id, collection), body: patch, media: "application/merge-patch+json",
		header: condition.header(),
	})
}

// DeleteRecord deletes a record.
func (c *Client) DeleteRecord(ctx context.Context, id uuid.UUID, collection string, condition Condition) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: recordPath(id, collection), header: condition.header()})
	return err
}

func recordPath(id uuid.UUID, collection string) string {
	return subjectPath(id) + "/records/" + pathEscape(collection)
}

// Restrict restricts the processing of a subject's data.
func (c *Client) Restrict(ctx context.Context, id uuid.UUID, reason string) (api.RestrictionChanged, error) {
	return call[api.RestrictionChanged](ctx, c, request{
		method: http.MethodPut, path: subjectPath(id) + "/restriction", body: encode(api.Restriction{Reason: reason}),
	})
}

// Unrestrict lifts the restriction. reason may be empty.
func (c *Client) Unrestrict(ctx context.Context, id uuid.UUID, reason string) (api.RestrictionChanged, error) {
	q := request{method: http.MethodDelete, path: subjectPath(id) + "/restriction"}
	if reason != "" {
		q.body = encode(api.Restriction{Reason: reason})
	}
	return call[api.RestrictionChanged](ctx, c, q)
}
