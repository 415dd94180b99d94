// Package access is the broker: the one door through which records are written and read. For every read it
// decides on a verified ground, puts the access record into the ledger, and only then asks the sidecar to
// open. For every write it decides, seals, and commits the ciphertexts together with the ledger entry.
//
// Data is protected by the subject's own key, which this package never sees; HashiCorp Vault is needed
// (by the sidecar) whenever a subject's key is not in the sidecar's cache. The ledger is needed always:
// there is no unaudited mode, and the constructor refuses to work without one.
//
// The package must never hand out a plaintext whose access record is not durable, never allow what Cedar did
// not allow, and never put a value of a person into an error.
package access

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
)

var (
	// ErrDenied is returned when the decision was a denial; the error is a *DeniedError.
	ErrDenied = errors.New("access: denied")
	// ErrNotFound is returned for a subject or record that is absent or erased, to a caller that may know.
	ErrNotFound = errors.New("access: no such subject or record")
	// ErrInvalid is returned when a request is malformed in a way that its text explains.
	ErrInvalid = errors.New("access: invalid request")
	// ErrVersion is returned when If-Match names another version than the current one.
	ErrVersion = errors.New("access: record has another version")
	// ErrVersionRequired is returned when an existing record is written without naming its version.
	ErrVersionRequired = errors.New("access: version of the record is required")
	// ErrNotUnique is returned when a unique field has a value that another subject has.
	ErrNotUnique = errors.New("access: value of a unique field is taken")
	// ErrIdempotencyMismatch is returned when an idempotency key comes again with another request.
	ErrIdempotencyMismatch = errors.New("access: idempotency key was used for another request")
	// ErrBusy is returned when the state kept changing while the request was decided. Try again.
	ErrBusy = errors.New("access: state changed repeatedly, try again")
	// ErrUnavailable is returned when the access record cannot be written, or the sidecar cannot answer.
	// No plaintext has left.
	ErrUnavailable = errors.New("access: temporarily unavailable")
	// ErrBatchTooLarge is returned for the items of a batch that no longer fit into its answer. They were
	// not recorded; read them in another batch.
	ErrBatchTooLarge = errors.New("access: answer of the batch would be too large")
	// ErrLimited is returned when a caller is over its budget.
	ErrLimited = errors.New("access: budget of the caller is used up")
	// ErrErasurePending is returned when an erasure is on record and its data is gone, but the key is not yet
	// known to be destroyed. It will be; the error is a *PendingErasureError.
	ErrErasurePending = errors.New("access: erasure is recorded and will be finished")
	// ErrIntegrity is returned when stored state contradicts itself, the ledger or its own authentication.
	// It is never to be read as "not found".
	ErrIntegrity = errors.New("access: stored data violates integrity")
)

// DeniedError is a denial with what would have to be true. It wraps ErrDenied.
type DeniedError struct {
	Reason  string           // stable code, such as consent-missing
	Missing []policy.Missing // what is missing, for the caller
	Record  int64            // index of the access record of the denial; -1: none was written
}

func (e *DeniedError) Error() string { return fmt.Sprintf("access: denied: %s", e.Reason) }

// Unwrap returns ErrDenied.
func (e *DeniedError) Unwrap() error { return ErrDenied }

// FieldError is a request that a field of it makes invalid. It wraps ErrInvalid.
type FieldError struct {
	Field string // JSON pointer or parameter name
	Why   string // how to mend it, without the value
}

func (e *FieldError) Error() string { return fmt.Sprintf("access: invalid %s: %s", e.Field, e.Why) }

// Unwrap returns ErrInvalid.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// NotUniqueError names the fields whose values are taken. It wraps ErrNotUnique.
type NotUniqueError struct{ Collection, Field string }

func (e *NotUniqueError) Error() string {
	return fmt.Sprintf("access: value of %s/%s is taken", e.Collection, e.Field)
}

// Unwrap returns ErrNotUnique.
func (e *NotUniqueError) Unwrap() error { return ErrNotUnique }

// RotationError is why a rotation was not started while another one was running. It wraps Err.
type RotationError struct {
	Running uuid.UUID // the one that was running
	Err     error     // of the sidecar
}

func (e *RotationError) Error() string { return "access: starting a rotation: " + e.Err.Error() }

// Unwrap returns Err.
func (e *RotationError) Unwrap() error { return e.Err }

// PendingErasureError is an erasure that is not finished yet. It wraps ErrErasurePending and the cause.
type PendingErasureError struct {
	ID    uuid.UUID // of the certificate that there will be
	Entry int64     // index of subject.erased
	Salt  string    // with which the certificate names the subject; empty for who did not erase
	Cause error     // why; nil when it is merely under way
}

func (e *PendingErasureError) Error() string {
	if e.Cause == nil {
		return ErrErasurePending.Error()
	}
	return fmt.Sprintf("%v: %v", ErrErasurePending, e.Cause)
}

// Unwrap returns ErrErasurePending and the cause.
func (e *PendingErasureError) Unwrap() []error {
	if e.Cause == nil {
		return []error{ErrErasurePending}
	}
	return []error{ErrErasurePending, e.Cause}
}

// Request is what every call carries about who calls and how.
type Request struct {
	Caller verify.Caller // as authenticated
	Trace  string        // W3C trace-id, or empty
	Client string        // address of the client, or empty; goes into the sealed detail
}

// ReadRequest asks for fields of one record.
type ReadRequest struct {
	Request
	Subject       uuid.UUID
	Collection    string
	Fields        []string // empty: all that the purpose covers
	Purpose       string
	Mode          string // verify.ModeReveal (also when empty) or verify.ModeMask
	Reference     string // order or ticket number, sealed
	Justification string // free text, sealed

	batch *atomic.Int64 // of a batch: bytes admitted so far
}

// ReadResult is a served read.
type ReadResult struct {
	Subject    uuid.UUID
	Collection string
	Version    uint64
	Fields     map[string][]byte // field name to JSON value; fields that the record lacks are absent
	Record     int64             // index of the access record
	Ground     string
}

// BatchItem is one read of a batch.
type BatchItem struct {
	Subject    uuid.UUID
	Collection string
	Fields     []string
}

// BatchRequest asks for many reads for one purpose, at most MaxBatch.
type BatchRequest struct {
	Request
	Purpose, Mode            string
	Reference, Justification string
	Reads                    []BatchItem
}

// MaxBatch is the largest number of reads in a BatchRequest.
const MaxBatch = 1000

// MaxBatchBytes bounds the values that one batch discloses.
const MaxBatchBytes = 16 << 20

// BatchResult is the outcome of one item; exactly one of Read and Err is set.
type BatchResult struct {
	Read *ReadResult
	Err  error
}

// CheckResult is the answer of a dry run.
type CheckResult struct {
	Allow   bool
	Ground  string
	Reason  string
	Missing []policy.Missing
	Fields  []string // that would be disclosed
}

// LookupRequest asks for subjects by the value of an indexed field.
type LookupRequest struct {
	Request
	Purpose, Collection, Field, Value string
	Reference, Justification          string
}

// LookupResult lists the subjects found, at most MaxLookup, in the order of their ids.
type LookupResult struct {
	Subjects []uuid.UUID
	Records  []int64 // indices of the access records: one for each subject found, or one for a miss
}

// MaxLookup bounds the subjects that one lookup returns.
const MaxLookup = 100

// VerifyRequest asks whether a field has a value, without disclosing it.
type VerifyRequest struct {
	Request
	Purpose                  string
	Subject                  uuid.UUID
	Collection, Field        string
	Value                    []byte // JSON value
	Reference, Justification string
}

// VerifyResult is the outcome of a comparison inside the sidecar.
type VerifyResult struct {
	Match  bool
	Record int64
}

// Idempotency identifies a POST that may be sent again. The zero value means none was asked for.
type Idempotency struct {
	Key         string   // as the client sent it
	Route       string   // template of the route, part of the scope together with the caller
	Fingerprint [32]byte // SHA-256 of the body
}

// CreateRequest makes a subject with its first records.
type CreateRequest struct {
	Request
	Idempotency
	Records map[string][]byte // collection to JSON object
}

// WriteRequest puts, patches or deletes one record.
type WriteRequest struct {
	Request
	Subject    uuid.UUID
	Collection string
	Body       []byte  // JSON object, or merge patch (RFC 7386, top level); nil for a delete
	IfMatch    *uint64 // version that the caller saw
	IfAbsent   bool    // If-None-Match: *
}

// Written is a committed write.
type Written struct {
	Subject uuid.UUID
	Version uint64 // of the record; for a created subject, of the subject (1)
	Created bool
	Record  int64 // index of the ledger entry
}

// EraseRequest erases a subject. Repeating it while the erasure is pending goes on with it.
type EraseRequest struct {
	Request
	Subject uuid.UUID
	Reason  string // a code of erasure.Reasons
}

// RecordInfo is the metadata of a record.
type RecordInfo struct {
	Version uint64
	Entry   int64 // index of the entry that wrote it
}

// SubjectInfo is the metadata of a subject: no personal data.
type SubjectInfo struct {
	ID         uuid.UUID
	Version    uint64
	Created    time.Time
	Restricted bool
	Records    map[string]RecordInfo
	Consents   []Consent
}

// Consent is one consent of a subject, with its present state.
type Consent = consent.Consent

// ConsentRequest gives a consent.
type ConsentRequest struct {
	Request
	Idempotency
	Subject          uuid.UUID
	Purpose          string
	Policy           int64 // 0: the current version
	Language         string
	NotAfter         time.Time
	SeparateDocument bool
	NoticeSHA256     string
	Capture          []byte // JSON object: how it was given; sealed under the subject's key
}

// EntryFilter selects ledger entries for an auditor.
type EntryFilter struct {
	Subject                                 uuid.UUID // zero: any
	Caller, Purpose, Ground, Decision, Kind string
	From, To                                time.Time
	Cursor                                  int64
	Limit                                   int
}

// Entry is one ledger entry with its index.
type Entry struct {
	Index int64
	Bytes []byte
}

// EntryPage is a page of entries, oldest first. Next is the cursor of the following page, -1 at the end.
type EntryPage struct {
	Entries []Entry
	Next    int64
}

// PolicyVersion is one published policy bundle.
type PolicyVersion struct {
	Version    int64     `json:"version"`
	SHA256     string    `json:"sha256"`      // of the bundle's bytes, hex
	TextSHA256 string    `json:"text_sha256"` // of the policy text, hex
	Published  time.Time `json:"published"`
	Entry      int64     `json:"entry"` // index of policy.published
}
