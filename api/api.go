// Package api is the HTTP contract of pdvault as Go types: the bodies of requests and responses and the
// problem types. Server and client both import it, and it imports nothing of pdvault, so that the contract
// can be read, and used, without the rest. openapi.yaml beside it says the same for every language.
//
// Names of members are snake_case. Ids are lower-case UUIDs. Times are RFC 3339. Personal data appears in
// bodies only, never in a path, a query or a header.
package api

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Names of headers of our own.
const (
	HeaderAccessRecord  = "Access-Record"        // response: index of the ledger entry, or several, separated by ", "
	HeaderReference     = "Access-Reference"     // request: order or ticket number; sealed, at most MaxReference bytes
	HeaderJustification = "Access-Justification" // request: free text; sealed, at most MaxJustification bytes
	HeaderRequestID     = "Request-Id"           // response: made by the server for each request
)

// Limits of the contract. The server refuses what is above them, the client does not send it.
const (
	MaxBody           = 64 << 10 // bytes in the body of a request that neither writes records nor reads in batches
	MaxRecordBody     = 1 << 20  // bytes in a body that writes records, reads in batches or publishes a policy
	MaxBatch          = 1000     // reads in one batch
	MaxPage           = 1000     // access records in one page
	DefaultPage       = 100      // access records in one page when limit is absent
	MaxReference      = 256      // bytes
	MaxJustification  = 1000     // bytes
	MaxIdempotencyKey = 255      // characters
	MaxDepth          = 32       // nested objects and arrays in a body
	MaxMembers        = 1000     // members of one object
	MaxString         = 64 << 10 // bytes in one string
	MaxNumber         = 1 << 53  // magnitude of a number; larger ones are sent as strings
)

// CreateSubject is the body of POST /v1/subjects.
type CreateSubject struct {
	Records map[string]jsontext.Value `json:"records"` // collection to record, a JSON object; at least one
}

// SubjectCreated answers POST /v1/subjects.
type SubjectCreated struct {
	ID      string `json:"id"`
	Version uint64 `json:"version"` // of the subject, 1; each record begins with version 1 too
	Record  int64  `json:"record"`  // index of the ledger entry
}

// RecordWritten answers PUT and PATCH of a record.
type RecordWritten struct {
	Subject    string `json:"subject"`
	Collection string `json:"collection"`
	Version    uint64 `json:"version"` // of the record
	Created    bool   `json:"created"` // false: it existed and was changed
	Record     int64  `json:"record"`  // index of the ledger entry
}

// Subject answers GET /v1/subjects/{id}: metadata, no personal data.
type Subject struct {
	ID         string                `json:"id"`
	Version    uint64                `json:"version"` // counts every change of the subject
	CreatedAt  time.Time             `json:"created_at"`
	Restricted bool                  `json:"restricted"` // true: processing is restricted
	Records    map[string]RecordInfo `json:"records"`    // by collection; empty: none
	Consents   []Consent             `json:"consents"`   // in the order in which they were given; empty: none
}

// RecordInfo is the metadata of one record.
type RecordInfo struct {
	Version uint64 `json:"version"`
	Entry   int64  `json:"entry"` // index of the ledger entry that wrote it
}

// Access says on what a read was served.
type Access struct {
	Record int64  `json:"record"` // index of the access record
	Ground string `json:"ground"` // consent, service or law
}

// Record answers GET of a record, and is one result of POST /v1/reads.
type Record struct {
	Subject    string                    `json:"subject"`
	Collection string                    `json:"collection"`
	Version    uint64                    `json:"version"`
	Fields     map[string]jsontext.Value `json:"fields"` // fields that the record lacks are absent
	Access     Access                    `json:"access"`
}

// Reads is the body of POST /v1/reads.
type Reads struct {
	Purpose string `json:"purpose"`
	Mode    string `json:"mode,omitzero"` // reveal or mask; empty: reveal
	Reads   []Read `json:"reads"`         // 1 to MaxBatch
}

// Read is one read of a batch.
type Read struct {
	Subject    string   `json:"subject"`
	Collection string   `json:"collection"`
	Fields     []string `json:"fields,omitempty"` // empty: all that the purpose covers
}

// ReadResults answers POST /v1/reads, in the order of the request.
type ReadResults struct {
	Results []ReadResult `json:"results"`
}

// ReadResult is the outcome of one read of a batch. Exactly one member is set.
type ReadResult struct {
	Read    *Record  `json:"read,omitzero"`
	Problem *Problem `json:"problem,omitzero"`
}

// Lookup is the body of POST /v1/lookups.
type Lookup struct {
	Purpose    string `json:"purpose"`
	Collection string `json:"collection"`
	Field      string `json:"field"`
	Value      string `json:"value"` // normalised by the server as the field's index demands
}

// LookupResult answers POST /v1/lookups.
type LookupResult struct {
	Subjects []string `json:"subjects"` // at most 100, in the order of their ids; empty: none
	Records  []int64  `json:"records"`  // indices of the access records: one for each subject, or one for a miss
}

// Verification is the body of POST /v1/verifications.
type Verification struct {
	Purpose    string         `json:"purpose"`
	Subject    string         `json:"subject"`
	Collection string         `json:"collection"`
	Field      string         `json:"field"`
	Value      jsontext.Value `json:"value"` // any JSON value but null
}

// VerificationResult answers POST /v1/verifications.
type VerificationResult struct {
	Match  bool  `json:"match"`
	Record int64 `json:"record"` // index of the access record
}

// AccessCheck is the body of POST /v1/access-checks: what a read would ask.
type AccessCheck struct {
	Subject    string   `json:"subject"`
	Collection string   `json:"collection"`
	Fields     []string `json:"fields,omitempty"` // empty: all that the purpose covers
	Purpose    string   `json:"purpose"`
	Mode       string   `json:"mode,omitzero"` // reveal or mask; empty: reveal
}

// AccessCheckResult answers POST /v1/access-checks.
type AccessCheckResult struct {
	Allow   bool      `json:"allow"`
	Ground  string    `json:"ground,omitzero"`   // of the purpose; empty: unknown purpose
	Reason  string    `json:"reason,omitzero"`   // code, when not allowed
	Missing []Missing `json:"missing,omitempty"` // what would have to be there, when not allowed
	Fields  []string  `json:"fields,omitempty"`  // that would be disclosed, when allowed
}

// GiveConsent is the body of POST /v1/subjects/{id}/consents.
type GiveConsent struct {
	Purpose          string         `json:"purpose"`
	Policy           int64          `json:"policy,omitzero"`            // version of the policy shown to the person; 0: the current one
	Language         string         `json:"language,omitzero"`          // BCP 47, of the notice; empty: not known
	NotAfter         time.Time      `json:"not_after,omitzero"`         // zero: until withdrawn
	SeparateDocument bool           `json:"separate_document,omitzero"` // false: given together with other terms
	NoticeSHA256     string         `json:"notice_sha256,omitzero"`     // hex, of the notice that the person saw; empty: not known
	Capture          jsontext.Value `json:"capture,omitzero"`           // JSON object: how it was given; sealed; absent: not known
}

// Consent is one consent with its present state.
type Consent struct {
	ID               string    `json:"id"`
	Subject          string    `json:"subject"`
	Purpose          string    `json:"purpose"`
	Policy           int64     `json:"policy"` // version under which it was given
	State            string    `json:"state"`  // DPV: ConsentGiven, RenewedConsentGiven, ConsentWithdrawn, ConsentExpired, ConsentInvalidated
	Fields           []string  `json:"fields"`
	Recipients       []string  `json:"recipients"` // ids of the callers that may rely on it
	GivenAt          time.Time `json:"given_at"`
	NotAfter         time.Time `json:"not_after,omitzero"`    // zero: until withdrawn
	WithdrawnAt      time.Time `json:"withdrawn_at,omitzero"` // zero: not withdrawn
	SeparateDocument bool      `json:"separate_document"`
	Language         string    `json:"language,omitzero"`        // empty: not known
	NoticeSHA256     string    `json:"notice_sha256,omitzero"`   // empty: not known
	Entry            int64     `json:"entry"`                    // index of consent.given
	WithdrawnEntry   *int64    `json:"withdrawn_entry,omitzero"` // index of consent.withdrawn; nil: not withdrawn
}

// Consents answers GET /v1/subjects/{id}/consents.
type Consents struct {
	Consents []Consent `json:"consents"` // in the order in which they were given; empty: none
}

// Receipt answers POST /v1/subjects/{id}/consents: a consent receipt with the names of
// ISO/IEC TS 27560:2023 (underscores for spaces), in the DPV-27560 profile.
type Receipt struct {
	SchemaVersion  string            `json:"schema_version"` // ReceiptSchema
	ReceiptID      string            `json:"receipt_id"`
	RecordID       string            `json:"record_id"`        // id of the consent
	PIIPrincipalID string            `json:"pii_principal_id"` // id of the subject
	Processing     ReceiptProcessing `json:"processing"`
	Events         []ReceiptEvent    `json:"events"` // the one of giving
	Consent        Consent           `json:"consent"`
}

// ReceiptSchema is the profile that a Receipt conforms to.
const ReceiptSchema = "https://w3id.org/dpv/schema/dpv-27560#receipt-record"

// ReceiptProcessing is the processing section of a Receipt.
type ReceiptProcessing struct {
	PrivacyNotice       string           `json:"privacy_notice"` // path of the policy version that was shown
	Language            string           `json:"language,omitzero"`
	Purpose             string           `json:"purpose"`
	LawfulBasis         string           `json:"lawful_basis"` // dpv:Consent
	PIIInformation      []ReceiptPII     `json:"pii_information"`
	PIIControllers      []ReceiptParty   `json:"pii_controllers"`
	StorageLocations    []string         `json:"storage_locations,omitempty"` // empty: the operator has not said
	RetentionPeriod     string           `json:"retention_period,omitzero"`   // ISO 8601 duration; empty: until withdrawn
	Jurisdiction        string           `json:"jurisdiction,omitzero"`       // empty: the operator has not said
	RecipientThirdParty []string         `json:"recipient_third_parties"`     // ids of the callers that may rely on it
	WithdrawalMethod    string           `json:"withdrawal_method"`           // the call that withdraws
	Document            *ReceiptDocument `json:"document,omitzero"`           // nil: no notice was named
}

// ReceiptPII is one kind of personal data in a Receipt.
type ReceiptPII struct {
	PIIType string `json:"pii_type"` // name of the field
}

// ReceiptParty is a party in a Receipt. Empty members: the operator has not said.
type ReceiptParty struct {
	PartyID      string `json:"party_id"`
	PartyName    string `json:"party_name,omitzero"`
	PartyAddress string `json:"party_address,omitzero"`
	PartyContact string `json:"party_contact,omitzero"`
	PartyType    string `json:"party_type,omitzero"`
}

// ReceiptDocument is what the person saw.
type ReceiptDocument struct {
	SHA256           string `json:"sha256,omitzero"`
	SeparateDocument bool   `json:"separate_document"`
	TextVersion      int64  `json:"text_version"` // version of the policy
}

// ReceiptEvent is one event of a consent.
type ReceiptEvent struct {
	EventTime  time.Time `json:"event_time"`
	EventType  string    `json:"event_type"`           // dpv:ExpressedConsent
	EventState string    `json:"event_state"`          // DPV status, such as dpv:ConsentGiven
	EntityID   string    `json:"entity_id"`            // the subject
	ValidUntil time.Time `json:"valid_until,omitzero"` // zero: until withdrawn
	Entry      int64     `json:"entry"`                // index in the ledger
}

// Restriction is the body of PUT and, optionally, DELETE /v1/subjects/{id}/restriction.
type Restriction struct {
	Reason string `json:"reason"` // at most MaxJustification bytes; sealed
}

// RestrictionChanged answers PUT and DELETE /v1/subjects/{id}/restriction.
type RestrictionChanged struct {
	Subject    string `json:"subject"`
	Restricted bool   `json:"restricted"`
	Version    uint64 `json:"version"` // of the subject
	Record     int64  `json:"record"`  // index of the ledger entry
}

// Erase is the body of DELETE /v1/subjects/{id}.
type Erase struct {
	Reason string `json:"reason"` // one of ErasureReasons
}

// Reasons of an erasure. They are codes, since they go into the ledger, where no text of anybody may be.
const (
	ReasonWithdrawnConsent = "withdrawn-consent" // the consent that all rested on was withdrawn
	ReasonPurposeReached   = "purpose-reached"   // the data is no longer needed for what it was collected for
	ReasonSubjectRequest   = "subject-request"   // the person asked for it
	ReasonUnlawful         = "unlawful"          // the data ought not to have been processed
	ReasonLegalObligation  = "legal-obligation"  // law or an authority demands it
	ReasonAccountClosed    = "account-closed"    // the contract with the person ended
)

// ErasureReasons are all reasons that an erasure can have.
var ErasureReasons = []string{
	ReasonWithdrawnConsent, ReasonPurposeReached, ReasonSubjectRequest, ReasonUnlawful, ReasonLegalObligation,
	ReasonAccountClosed,
}

// Keys answers GET /v1/keys: which versions of which keys are in use, and what becomes of them next.
type Keys struct {
	KEK                  string       `json:"kek"`               // kind of the key-encryption key
	Generation           uint64       `json:"generation,string"` // of the key store; a string, since it may be above MaxNumber
	Versions             []KeyVersion `json:"versions"`          // by kind, the newest version first
	Subjects             int64        `json:"subjects"`          // that have a key
	Destroyed            int64        `json:"destroyed"`         // whose key was destroyed
	CountedAt            time.Time    `json:"counted_at"`
	NextEpoch            time.Time    `json:"next_epoch,omitzero"`             // by which the next epoch is due; zero: none is planned
	EpochIntervalSeconds int64        `json:"epoch_interval_seconds,omitzero"` // 0: none is planned
	Running              *Rotation    `json:"running,omitzero"`                // nil: no rotation is running
}

// KeyVersion is one version of one kind of key.
type KeyVersion struct {
	Kind                string    `json:"kind"` // kek, subject, index, token, service, witness
	Version             uint64    `json:"version"`
	Newest              bool      `json:"newest"`
	Count               int64     `json:"count"`                           // things that are on it
	Made                time.Time `json:"made,omitzero"`                   // zero: not known
	AgeSeconds          int64     `json:"age_seconds,omitzero"`            // 0: not known
	PolicyMaxAgeSeconds int64     `json:"policy_max_age_seconds,omitzero"` // age at which it is to be rotated; 0: the policy has none
	Overdue             bool      `json:"overdue"`                         // it is in use past that age
}

// Scopes of rotations.
const (
	ScopeKEK         = "kek"          // an epoch: all keys are wrapped anew and the old wrapping is destroyed
	ScopeSubject     = "subject"      // the key of one person
	ScopeAllSubjects = "all-subjects" // the key of every person
	ScopeIndex       = "index"        // the key of the blind index
	ScopeToken       = "token"        // the key of links; older ones go on verifying
	ScopeLedger      = "ledger"       // the key that signs the log
	ScopeWitness     = "witness"      // the key that cosigns the log
)

// RotationScopes are all scopes that a rotation can have.
var RotationScopes = []string{
	ScopeKEK, ScopeSubject, ScopeAllSubjects, ScopeIndex, ScopeToken, ScopeLedger, ScopeWitness,
}

// StartRotation is the body of POST /v1/keys/rotations.
type StartRotation struct {
	Scope   string `json:"scope"`            // one of RotationScopes
	Subject string `json:"subject,omitzero"` // for ScopeSubject, and only for it
}

// Rotation is one rotation of keys. It goes on by itself, through restarts, until it is done or failed.
type Rotation struct {
	ID         string    `json:"id"`
	Scope      string    `json:"scope"`
	Subject    string    `json:"subject,omitzero"` // of ScopeSubject
	By         string    `json:"by"`               // id of the caller that asked, or who else did
	State      string    `json:"state"`            // running, done or failed
	Phase      string    `json:"phase,omitzero"`   // of a running one: what it is at
	Done       int64     `json:"done"`
	Total      int64     `json:"total"`                // 0: not known yet
	Percent    int       `json:"percent"`              // of a running one at most 99
	ETASeconds *int64    `json:"eta_seconds,omitzero"` // until it is done, at the pace so far; nil: not known, or not running
	Started    time.Time `json:"started"`
	Updated    time.Time `json:"updated"`
	Finished   time.Time `json:"finished,omitzero"` // zero: it is running
	Target     uint64    `json:"target,omitzero"`   // version that all is brought to; 0: not known yet
	Failure    string    `json:"failure,omitzero"`  // code, of a failed one
	Evidence   string    `json:"evidence,omitzero"` // signed note of the sidecar; empty: there is none yet
	Record     *int64    `json:"record,omitzero"`   // index of the ledger entry that holds the evidence; nil: none yet
}

// States of a Rotation.
const (
	RotationRunning = "running"
	RotationDone    = "done"
	RotationFailed  = "failed"
)

// Rotations answers GET /v1/keys/rotations, the newest first.
type Rotations struct {
	Rotations []Rotation `json:"rotations"` // empty: there was none
}

// PolicyVersion is one published policy bundle.
type PolicyVersion struct {
	Version     int64     `json:"version"`
	SHA256      string    `json:"sha256"`      // hex, of the bundle's bytes
	TextSHA256  string    `json:"text_sha256"` // hex, of the policy text
	PublishedAt time.Time `json:"published_at"`
	Entry       int64     `json:"entry"` // index of policy.published
}

// PolicyVersions answers GET /v1/policy/versions, oldest first.
type PolicyVersions struct {
	Versions []PolicyVersion `json:"versions"`
}

// AccessRecord is one ledger entry. Entry holds its bytes exactly as they were hashed.
type AccessRecord struct {
	Index int64          `json:"index"`
	Entry jsontext.Value `json:"entry"`
}

// AccessRecords answers GET /v1/access-records, oldest first.
type AccessRecords struct {
	Records []AccessRecord `json:"records"`
	Next    string         `json:"next,omitzero"` // cursor of the following page; empty: this is the last one
}

// Health answers /livez and /readyz.
type Health struct {
	Status  string   `json:"status"`            // ok or failing
	OK      []string `json:"ok,omitempty"`      // names of checks that passed
	Failing []string `json:"failing,omitempty"` // names of checks that failed
	FIPS140 string   `json:"fips140"`           // version of the FIPS 140-3 module in use, or off
}
