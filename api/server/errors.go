package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/schema"
)

// Mapping is one row of the error table: what a caller is told when an error happens.
type Mapping struct {
	Err        error
	Status     int
	Type       string // problem type
	Title      string // public text; nothing else of the error is shown
	RetryAfter int    // seconds; 0: the header is not sent
}

// statusClientClosed is what is logged when the client went away; nobody receives it.
const statusClientClosed = 499

// table maps errors to answers. The first row whose Err the error wraps decides, so what must never be
// mistaken for something else comes first: an integrity violation that also wraps "not found" is an
// integrity violation. What no row matches is internal.
var table = [...]Mapping{
	{access.ErrIntegrity, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{vault.ErrIntegrity, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{consent.ErrIntegrity, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{kv.ErrIntegrity, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	// Of an erasure that is recorded the outcome is known, whatever in the key service kept it from being finished at
	// once; and only this answer has the salt of the certificate.
	{access.ErrErasurePending, 503, api.ProblemErasurePending, "The erasure is recorded and will be finished", 2},
	{keys.ErrDamaged, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{keys.ErrTampered, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{keys.ErrRolledBack, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{keys.ErrKEKRetired, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{keys.ErrReplayed, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{keys.ErrClock, 503, api.ProblemClock, "The clock of the machine and the access log disagree", 2},
	{keys.ErrProofRefused, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},
	{keys.ErrNoKey, 500, api.ProblemIntegrity, "Stored data contradicts itself", 0},

	{ErrNoCredentials, 401, api.ProblemUnauthenticated, "Authentication is required", 0},
	{ErrBadCredentials, 401, api.ProblemUnauthenticated, "Authentication is required", 0},
	{errRoleMissing, 403, api.ProblemAccessDenied, "Access denied", 0},
	{access.ErrDenied, 403, api.ProblemAccessDenied, "Access denied", 0}, // denials refines the type

	{errNoRoute, 404, api.ProblemNotFound, "Not found", 0},
	{errNoMethod, 405, api.ProblemMethodNotAllowed, "Method not allowed", 0},
	{errTooLarge, 413, api.ProblemTooLarge, "Request is too large", 0},
	{errMediaType, 415, api.ProblemUnsupportedMediaType, "Media type is not supported here", 0},
	{access.ErrInvalid, 400, api.ProblemInvalidRequest, "Invalid request", 0},
	{schema.ErrRecord, 400, api.ProblemInvalidRequest, "Record is not a JSON object within the limits", 0},
	{schema.ErrPatch, 400, api.ProblemInvalidRequest, "Patch replaces or removes whole fields only", 0},
	{schema.ErrField, 422, api.ProblemSchemaViolation, "Record does not satisfy its schema", 0},
	{schema.ErrValue, 422, api.ProblemSchemaViolation, "Record does not satisfy its schema", 0},
	{ledger.ErrQuery, 400, api.ProblemInvalidRequest, "The filter can select nothing", 0},
	{schema.ErrNotIndexed, 400, api.ProblemInvalidRequest, "Field is not indexed", 0},
	{policy.ErrBundle, 422, api.ProblemSchemaViolation, "Policy bundle is not valid", 0},
	{schema.ErrSchema, 422, api.ProblemSchemaViolation, "Schema of a collection is not valid", 0},

	{access.ErrVersionRequired, 428, api.ProblemVersionRequired, "The record exists: If-Match is required", 0},
	{access.ErrVersion, 412, api.ProblemVersionMismatch, "The record has another version", 0},
	{access.ErrNotUnique, 409, api.ProblemNotUnique, "The value of a unique field is taken", 0},
	{vault.ErrNotUnique, 409, api.ProblemNotUnique, "The value of a unique field is taken", 0},
	{consent.ErrTooMany, 409, api.ProblemLimitReached, "The subject has too many consents", 0},
	{access.ErrIdempotencyMismatch, 422, api.ProblemIdempotencyMismatch, "The Idempotency-Key was used for another request", 0},
	{keys.ErrJobRunning, 409, api.ProblemRotationRunning, "Another rotation is running", 0},
	{keys.ErrTooManyKeys, 409, api.ProblemLimitReached, "Too many keys of this kind are in use: the oldest have to go first", 0},
	{keys.ErrBudget, 429, api.ProblemDecryptBudget, "The key service opens no more for now", 60},
	{access.ErrLimited, 429, api.ProblemRateLimited, "The budget of the caller is used up", 10},

	{kv.ErrStorageFull, 507, api.ProblemStorageFull, "Storage is full: reads go on, writes do not", 0},
	{access.ErrBatchTooLarge, 413, api.ProblemBatchTooLarge, "The answer would be too large: read the rest in another batch", 0},
	{kv.ErrTooLarge, 413, api.ProblemTooLarge, "Request is too large", 0},
	{ledger.ErrEntryTooLarge, 413, api.ProblemTooLarge, "Request is too large", 0},
	{errBusy, 503, api.ProblemBusy, "The server is busy: try again", 1},
	{access.ErrBusy, 503, api.ProblemBusy, "State changed repeatedly: try again", 1},
	{kv.ErrConflict, 503, api.ProblemBusy, "State changed repeatedly: try again", 1},
	{vault.ErrStale, 503, api.ProblemBusy, "State changed repeatedly: try again", 1},
	{consent.ErrStale, 503, api.ProblemBusy, "State changed repeatedly: try again", 1},

	// A deadline says nothing about the outcome, so it comes before "unavailable".
	{context.DeadlineExceeded, 504, api.ProblemTimeout, "The request took too long; its outcome is not known", 0},
	{keys.ErrSealed, 503, api.ProblemKeyService, "The key service cannot answer", 2},
	{keys.ErrForbidden, 503, api.ProblemKeyService, "The key service cannot answer", 2},
	{keys.ErrUnavailable, 503, api.ProblemKeyService, "The key service cannot answer", 2},
	{keys.ErrKEKMissing, 503, api.ProblemKeyService, "The key service cannot answer", 2},
	{ledger.ErrUnavailable, 503, api.ProblemLog, "The access log cannot be written", 2},
	{ledger.ErrClosed, 503, api.ProblemLog, "The access log cannot be written", 2},
	{kv.ErrClosed, 503, api.ProblemLog, "The access log cannot be written", 2},
	{access.ErrUnavailable, 503, api.ProblemLog, "The access log cannot be written", 2},

	{access.ErrNotFound, 404, api.ProblemNotFound, "Not found", 0},
	{vault.ErrNoSubject, 404, api.ProblemNotFound, "Not found", 0},
	{vault.ErrNoRecord, 404, api.ProblemNotFound, "Not found", 0},
	{consent.ErrNotFound, 404, api.ProblemNotFound, "Not found", 0},
	{ledger.ErrNotFound, 404, api.ProblemNotFound, "Not found", 0},
	{keys.ErrNoJob, 404, api.ProblemNotFound, "Not found", 0},
	{keys.ErrDestroyed, 404, api.ProblemNotFound, "Not found", 0},

	{context.Canceled, statusClientClosed, api.ProblemClientClosed, "The client closed the request", 0},
}

var internalError = Mapping{nil, 500, api.ProblemInternal, "Internal error", 0}

// Mappings returns the error table, for tests of clients and for documentation.
func Mappings() []Mapping { return append([]Mapping(nil), table[:]...) }

// denials gives the reasons of denials their problem types; every other reason is ProblemAccessDenied.
var denials = map[string]struct{ problem, title string }{
	policy.ReasonUnknownPurpose:      {api.ProblemPurposeUnknown, "Purpose is not registered"},
	policy.ReasonConsentMissing:      {api.ProblemConsentMissing, "Consent is missing"},
	policy.ReasonConsentWithdrawn:    {api.ProblemConsentWithdrawn, "Consent was withdrawn"},
	policy.ReasonConsentExpired:      {api.ProblemConsentExpired, "Consent has expired"},
	policy.ReasonPurposeNotConsented: {api.ProblemPurposeNotConsented, "No consent covers this purpose"},
	policy.ReasonFieldNotInPurpose:   {api.ProblemFieldNotCovered, "A field is not covered"},
	policy.ReasonFieldNotCovered:     {api.ProblemFieldNotCovered, "A field is not covered"},
	policy.ReasonFieldUnknown:        {api.ProblemFieldNotCovered, "A field is not covered"},
	policy.ReasonAgreementMissing:    {api.ProblemAgreementMissing, "No agreement in force covers this"},
	policy.ReasonAgreementExpired:    {api.ProblemAgreementMissing, "No agreement in force covers this"},
	policy.ReasonAgreementNotYet:     {api.ProblemAgreementMissing, "No agreement in force covers this"},
	policy.ReasonSubjectRestricted:   {api.ProblemSubjectRestricted, "Processing is restricted"},
}

// mappingOf finds the row of err. When the client has gone away, that is what is said, whatever it led to.
func mappingOf(ctx context.Context, err error) Mapping {
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return table[len(table)-1]
	}
	for i := range table {
		if errors.Is(err, table[i].Err) {
			return table[i]
		}
	}
	var validation *schema.ValidationError
	if errors.As(err, &validation) {
		return Mapping{nil, 422, api.ProblemSchemaViolation, "Record does not satisfy its schema", 0}
	}
	return internalError
}

// problemOf says err to a caller: the public text of its row, and what the typed errors carry for callers.
func problemOf(ctx context.Context, err error) (api.Problem, Mapping) {
	m := mappingOf(ctx, err)
	p := api.Problem{Type: m.Type, Title: m.Title, Status: m.Status}

	var denied *access.DeniedError
	var field *access.FieldError
	var unique *access.NotUniqueError
	var vaultUnique *vault.NotUniqueError
	var validation *schema.ValidationError
	var bundle *policy.BundleError
	var pending *access.PendingErasureError
	var rotating *access.RotationError
	switch {
	case m.Type != api.ProblemClientClosed && errors.As(err, &pending):
		record := pending.Entry
		p.Erasure, p.ErasureSalt, p.AccessRecord = pending.ID.String(), pending.Salt, &record
	case m.Status >= 500:
	case m.Type == api.ProblemRotationRunning && errors.As(err, &rotating):
		p.Rotation = rotating.Running.String()
	case errors.As(err, &denied):
		p.Reason = denied.Reason
		if d, ok := denials[denied.Reason]; ok {
			p.Type, p.Title = d.problem, d.title
		}
		for _, missing := range denied.Missing {
			p.Missing = append(p.Missing, api.Missing(missing))
		}
		if denied.Record >= 0 {
			record := denied.Record
			p.AccessRecord = &record
		}
	case errors.As(err, &bundle):
		rule := bundle.Reason
		if bundle.Err != nil {
			rule += ": " + bundle.Err.Error() // a bundle is the operator's own text and holds no person
		}
		p.Violations = []api.Violation{{Pointer: bundle.Path, Rule: rule}}
	case errors.As(err, &field):
		p.Violations = []api.Violation{{Pointer: field.Field, Rule: field.Why}}
	case errors.As(err, &validation):
		for _, v := range validation.Violations {
			p.Violations = append(p.Violations, api.Violation{Pointer: v.Pointer, Rule: v.Rule})
		}
	case errors.As(err, &unique):
		p.Violations = []api.Violation{{Pointer: "/" + unique.Collection + "/" + unique.Field, Rule: "must be unique"}}
	case errors.As(err, &vaultUnique):
		p.Violations = []api.Violation{{Pointer: "/" + vaultUnique.Collection + "/" + vaultUnique.Field, Rule: "must be unique"}}
	}
	return p, m
}

// encodeProblem returns the body of p. Denials and "not found" are padded to a multiple of
// api.PadProblems, so that the length does not tell one from the other; space after a JSON value means
// nothing.
func encodeProblem(p *api.Problem) []byte {
	b := encodeJSON(p)
	if p.Status == http.StatusForbidden || p.Status == http.StatusNotFound {
		for len(b)%api.PadProblems != 0 {
			b = append(b, ' ')
		}
	}
	return b
}

// fail answers with the problem of err.
func (q *call) fail(err error) {
	p, m := problemOf(q.ctx, err)
	p.TraceID, p.RequestID = q.request.Trace, q.id
	q.problem = p.Type
	q.discard()
	h := q.gin.Writer.Header()
	if m.RetryAfter > 0 {
		h["Retry-After"] = []string{strconv.Itoa(m.RetryAfter)}
	}
	if m.Status == http.StatusUnauthorized {
		h["Www-Authenticate"] = []string{`Bearer realm="pdvault"`}
	}
	if p.AccessRecord != nil {
		h[api.HeaderAccessRecord] = []string{strconv.FormatInt(*p.AccessRecord, 10)}
	}
	if m.Status >= 500 && m.Status != http.StatusGatewayTimeout && !errors.Is(err, errBusy) {
		q.server.log.LogAttrs(q.ctx, levelOf(m.Status), "request failed", failureAttrs(q, p.Type, err)...)
	}
	q.write(m.Status, mediaProblem, encodeProblem(&p))
}
