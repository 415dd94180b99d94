package api

// ProblemMediaType is the Content-Type of a Problem.
const ProblemMediaType = "application/problem+json"

// ProblemPrefix begins every problem type.
const ProblemPrefix = "urn:pdvault:problem:"

// Problem types. They are stable. Those of denials name the ground, the consent or the field that is missing;
// a denial without a type of its own is ProblemAccessDenied, and its reason says why.
const (
	ProblemAccessDenied         = ProblemPrefix + "access-denied"           // 403
	ProblemAgreementMissing     = ProblemPrefix + "agreement-missing"       // 403: none in force covers the read
	ProblemConsentMissing       = ProblemPrefix + "consent-missing"         // 403
	ProblemConsentWithdrawn     = ProblemPrefix + "consent-withdrawn"       // 403
	ProblemConsentExpired       = ProblemPrefix + "consent-expired"         // 403
	ProblemPurposeUnknown       = ProblemPrefix + "purpose-unknown"         // 403
	ProblemPurposeNotConsented  = ProblemPrefix + "purpose-not-consented"   // 403
	ProblemFieldNotCovered      = ProblemPrefix + "field-not-covered"       // 403
	ProblemSubjectRestricted    = ProblemPrefix + "subject-restricted"      // 403
	ProblemUnauthenticated      = ProblemPrefix + "unauthenticated"         // 401
	ProblemNotFound             = ProblemPrefix + "not-found"               // 404
	ProblemMethodNotAllowed     = ProblemPrefix + "method-not-allowed"      // 405
	ProblemNotUnique            = ProblemPrefix + "not-unique"              // 409
	ProblemRotationRunning      = ProblemPrefix + "rotation-running"        // 409: rotation says which
	ProblemLimitReached         = ProblemPrefix + "limit-reached"           // 409
	ProblemVersionMismatch      = ProblemPrefix + "version-mismatch"        // 412
	ProblemTooLarge             = ProblemPrefix + "too-large"               // 413
	ProblemBatchTooLarge        = ProblemPrefix + "batch-too-large"         // 413, of an item of a batch
	ProblemUnsupportedMediaType = ProblemPrefix + "unsupported-media-type"  // 415
	ProblemInvalidRequest       = ProblemPrefix + "invalid-request"         // 400
	ProblemSchemaViolation      = ProblemPrefix + "schema-violation"        // 422: violations says where
	ProblemIdempotencyMismatch  = ProblemPrefix + "idempotency-mismatch"    // 422
	ProblemVersionRequired      = ProblemPrefix + "version-required"        // 428
	ProblemRateLimited          = ProblemPrefix + "rate-limited"            // 429
	ProblemDecryptBudget        = ProblemPrefix + "decrypt-budget"          // 429: of the sidecar; nothing was opened
	ProblemClientClosed         = ProblemPrefix + "client-closed"           // 499: seen in logs and metrics only
	ProblemInternal             = ProblemPrefix + "internal"                // 500
	ProblemIntegrity            = ProblemPrefix + "integrity"               // 500: stored data contradicts itself; never "not found"
	ProblemBusy                 = ProblemPrefix + "busy"                    // 503: nothing happened, try again
	ProblemKeyService           = ProblemPrefix + "key-service-unavailable" // 503: no plaintext has left
	ProblemClock                = ProblemPrefix + "clock-suspect"           // 503: the clock was set, or two differ; no plaintext has left
	ProblemLog                  = ProblemPrefix + "log-unavailable"         // 503: no plaintext has left
	ProblemErasurePending       = ProblemPrefix + "erasure-pending"         // 503: recorded, and will be finished; erasure says which
	ProblemTimeout              = ProblemPrefix + "timeout"                 // 504: the outcome is not known
	ProblemStorageFull          = ProblemPrefix + "storage-full"            // 507: reads go on, writes do not
)

// Problem is the body of every response that is not a success (RFC 9457). It never repeats a value of the
// request. Bodies of denials and of "not found" are padded with spaces to a multiple of PadProblems bytes,
// so that their length does not tell one from the other.
type Problem struct {
	Type         string      `json:"type"`
	Title        string      `json:"title"`
	Status       int         `json:"status"`
	Detail       string      `json:"detail,omitzero"`        // for people; empty: the title says it all
	Reason       string      `json:"reason,omitzero"`        // of a denial: its code; empty: not a denial
	Missing      []Missing   `json:"missing,omitempty"`      // of a denial: what would have to be there
	Violations   []Violation `json:"violations,omitempty"`   // of an invalid request: where
	Rotation     string      `json:"rotation,omitzero"`      // of rotation-running: id of the one that is
	Erasure      string      `json:"erasure,omitzero"`       // of an erasure that is recorded and not finished: id of the certificate that there will be
	ErasureSalt  string      `json:"erasure_salt,omitzero"`  // the same, for who erased: proves whom the entry is about
	AccessRecord *int64      `json:"access_record,omitzero"` // index of the access record; nil: none was written
	TraceID      string      `json:"trace_id,omitzero"`      // W3C trace-id of the request; empty: it had none
	RequestID    string      `json:"request_id,omitzero"`
}

// PadProblems is the bucket to which bodies of denials and of "not found" are padded.
const PadProblems = 512

// Missing is one thing that a denied request lacks.
type Missing struct {
	Kind string `json:"kind"` // ground, consent, agreement, field, role, purpose, mode
	Name string `json:"name"`
}

// Violation is one place where a request is not valid.
type Violation struct {
	Pointer string `json:"pointer"` // JSON pointer into the body, or name of a parameter or header
	Rule    string `json:"rule"`    // what is demanded there; never the value
}
