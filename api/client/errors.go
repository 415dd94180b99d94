package client

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/keys"
)

// What the server says and package access has no word for.
var (
	// ErrUnauthenticated is returned when the token is absent or not accepted.
	ErrUnauthenticated = errors.New("client: not authenticated")
	// ErrTooLarge is returned when the request is larger than the call takes.
	ErrTooLarge = errors.New("client: request is too large")
	// ErrLimitReached is returned when a limit on what is kept is reached, such as consents of a subject, or keys in use
	// beside one another.
	ErrLimitReached = errors.New("client: limit is reached")
	// ErrStorageFull is returned when the server's storage is full: reads go on, writes do not.
	ErrStorageFull = errors.New("client: storage of the server is full")
	// ErrTimeout is returned when the server took too long. Whether a write happened is not known.
	ErrTimeout = errors.New("client: server took too long, outcome is not known")
	// ErrInternal is returned for every failure that the server does not explain.
	ErrInternal = errors.New("client: server failed")
	// ErrProtocol is returned when the server does not know what this client sends: their versions differ, or
	// the answer came from something else.
	ErrProtocol = errors.New("client: server does not speak this protocol")
)

// sentinels gives each problem type its error; denials are left out.
var sentinels = map[string]error{
	api.ProblemUnauthenticated:      ErrUnauthenticated,
	api.ProblemNotFound:             access.ErrNotFound,
	api.ProblemMethodNotAllowed:     ErrProtocol,
	api.ProblemNotUnique:            access.ErrNotUnique,
	api.ProblemLimitReached:         ErrLimitReached,
	api.ProblemRotationRunning:      keys.ErrJobRunning,
	api.ProblemDecryptBudget:        access.ErrLimited,
	api.ProblemErasurePending:       access.ErrErasurePending,
	api.ProblemVersionMismatch:      access.ErrVersion,
	api.ProblemTooLarge:             ErrTooLarge,
	api.ProblemBatchTooLarge:        access.ErrBatchTooLarge,
	api.ProblemUnsupportedMediaType: ErrProtocol,
	api.ProblemInvalidRequest:       access.ErrInvalid,
	api.ProblemSchemaViolation:      access.ErrInvalid,
	api.ProblemIdempotencyMismatch:  access.ErrIdempotencyMismatch,
	api.ProblemVersionRequired:      access.ErrVersionRequired,
	api.ProblemRateLimited:          access.ErrLimited,
	api.ProblemInternal:             ErrInternal,
	api.ProblemIntegrity:            access.ErrIntegrity,
	api.ProblemBusy:                 access.ErrBusy,
	api.ProblemKeyService:           access.ErrUnavailable,
	api.ProblemClock:                access.ErrUnavailable,
	api.ProblemLog:                  access.ErrUnavailable,
	api.ProblemTimeout:              ErrTimeout,
	api.ProblemStorageFull:          ErrStorageFull,
}

// Error is an answer that is not a success. It wraps the sentinel of its problem type, and the typed error
// of package access where there is one: *access.DeniedError, *access.FieldError, *access.NotUniqueError,
// *access.RotationError, *access.PendingErasureError.
type Error struct {
	Status     int
	Problem    api.Problem
	RetryAfter time.Duration // 0: the server did not say

	wraps []error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "server answered %d %s", e.Status, strings.TrimPrefix(e.Problem.Type, api.ProblemPrefix))
	if e.Problem.Title != "" {
		fmt.Fprintf(&b, ": %s", e.Problem.Title)
	}
	for _, m := range e.Problem.Missing {
		fmt.Fprintf(&b, "; missing %s %s", m.Kind, m.Name)
	}
	for _, v := range e.Problem.Violations {
		fmt.Fprintf(&b, "; %s %s", v.Pointer, v.Rule)
	}
	if e.Problem.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", e.Problem.RequestID)
	}
	return b.String()
}

// Unwrap returns what the problem means.
func (e *Error) Unwrap() []error { return e.wraps }

// problemOf turns an answer into an Error.
func problemOf(r *http.Response, body []byte) *Error {
	e := &Error{Status: r.StatusCode}
	media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if media != api.ProblemMediaType || json.Unmarshal(body, &e.Problem) != nil {
		e.Problem = api.Problem{Type: "about:blank", Status: r.StatusCode}
		e.wraps = []error{ErrProtocol}
		return e
	}
	if s, err := strconv.Atoi(r.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(min(s, 86400)) * time.Second
	}
	e.wraps = meaning(&e.Problem)
	return e
}

// ProblemError returns the error that a problem inside an answer stands for, such as one of a batch.
func ProblemError(p *api.Problem) error {
	return &Error{Status: p.Status, Problem: *p, wraps: meaning(p)}
}

func meaning(p *api.Problem) []error {
	if p.Status == http.StatusForbidden {
		denied := &access.DeniedError{Reason: p.Reason, Record: -1}
		for _, m := range p.Missing {
			denied.Missing = append(denied.Missing, policy.Missing(m))
		}
		if p.AccessRecord != nil {
			denied.Record = *p.AccessRecord
		}
		return []error{denied}
	}
	sentinel, ok := sentinels[p.Type]
	switch {
	case !ok && p.Status >= 500:
		sentinel = ErrInternal
	case !ok:
		sentinel = ErrProtocol
	}
	out := []error{sentinel}
	if id, err := uuid.Parse(p.Rotation); err == nil {
		out = append(out, &access.RotationError{Running: id, Err: sentinel})
	}
	if id, err := uuid.Parse(p.Erasure); err == nil && p.AccessRecord != nil {
		out = append(out, &access.PendingErasureError{ID: id, Entry: *p.AccessRecord, Salt: p.ErasureSalt})
	}
	for _, v := range p.Violations {
		switch {
		case errors.Is(sentinel, access.ErrInvalid):
			out = append(out, &access.FieldError{Field: v.Pointer, Why: v.Rule})
		case errors.Is(sentinel, access.ErrNotUnique):
			collection, field, _ := strings.Cut(strings.TrimPrefix(v.Pointer, "/"), "/")
			out = append(out, &access.NotUniqueError{Collection: collection, Field: field})
		}
	}
	return out
}
