package policy

import (
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Actions. Read, verify and lookup need a purpose and a ground; the others follow from the caller's role.
const (
	ActionRead   = "read"
	ActionVerify = "verify" // compare a supplied value; nothing is disclosed but the outcome
	ActionLookup = "lookup" // find subjects by a value; nothing is opened

	ActionWrite           = "write"
	ActionDelete          = "delete"   // of a record
	ActionDescribe        = "describe" // metadata of a subject
	ActionErase           = "erase"
	ActionConsentGive     = "consent-give"
	ActionConsentWithdraw = "consent-withdraw"
	ActionConsentList     = "consent-list"
	ActionRestrict        = "restrict"
	ActionAccessRecords   = "access-records"
	ActionLedgerRead      = "ledger-read"
	ActionPolicyRead      = "policy-read"
	ActionPolicyPublish   = "policy-publish"
	ActionKeysRead        = "keys-read"
	ActionKeysRotate      = "keys-rotate"
)

// States of a consent that count (dpv:ConsentStatusValidForProcessing). Every other state but a pending
// request is an end, known to us or not.
const (
	ConsentGiven        = "ConsentGiven"
	RenewedConsentGiven = "RenewedConsentGiven"
)

// Request is one question. The caller of Decide fills it from one consistent snapshot.
type Request struct {
	Action string
	Caller string // id in the bundle
	Authn  string // how it authenticated: token, mtls, ...

	Collection    string
	Fields        []string // plain names, for read, verify, lookup and write; order and repetition do not matter
	Purpose       string
	Mode          string // reveal or mask for read; may be empty for verify and lookup
	Justification bool   // one was given; its text is sealed elsewhere and is no business of the rules

	Subject  Subject
	Consents []Consent // of this subject, in every state

	PolicyVersion int64 // of this bundle
	PolicyEntry   int64 // index of the policy.published entry of this bundle: evidence for ground service
	Now           time.Time
}

// Subject is the state of the person. The zero value is an unknown one.
type Subject struct {
	Exists     bool
	Restricted bool
	Erased     bool
}

// Consent is one consent of the subject as its last event left it.
type Consent struct {
	ID               string
	Purpose          string
	Policy           int64 // version of the policy under which it was given
	State            string
	Fields           []string  // qualified names, see Qualify; empty covers nothing
	Recipients       []string  // caller ids; empty covers nobody
	NotAfter         time.Time // exclusive; zero: until withdrawn
	SeparateDocument bool
	Entry            int64 // index of the entry of its last event
}

// Decision is the answer. The zero Decision is a denial.
type Decision struct {
	Allow     bool
	Rules     []string          // ids of the Cedar policies that decided, sorted
	Ground    string            // of the purpose; empty for actions without one
	Evidence  *verify.Evidence  // when allowed and the action has a purpose
	Recipient *verify.Recipient // when the caller and the purpose belong together
	Reason    string            // when denied
	Missing   []Missing         // when denied: what would have to be there
	Until     time.Time         // when allowed: the evidence ends at this time, exclusive; zero: it has no end
}

// Missing is one thing that a denied request lacks.
type Missing struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// Kinds of Missing.
const (
	MissingGround    = "ground"
	MissingConsent   = "consent"
	MissingAgreement = "agreement"
	MissingField     = "field"
	MissingRole      = "role"
	MissingPurpose   = "purpose"
	MissingMode      = "mode"
)

// Reasons of denials. They are stable: they are recorded in the ledger and answered to callers.
const (
	ReasonUnknownPurpose      = "unknown-purpose"
	ReasonPurposeNotYours     = "purpose-not-yours"
	ReasonLawNotAvailable     = "ground-law-not-available"
	ReasonConsentMissing      = "consent-missing"
	ReasonConsentWithdrawn    = "consent-withdrawn"
	ReasonConsentExpired      = "consent-expired"
	ReasonPurposeNotConsented = "purpose-not-consented"
	ReasonFieldNotInPurpose   = "field-not-in-purpose"
	ReasonFieldNotCovered     = "field-not-covered"
	ReasonFieldUnknown        = "field-unknown"
	ReasonCollectionUnknown   = "collection-unknown"
	ReasonAgreementMissing    = "agreement-missing"
	ReasonAgreementExpired    = "agreement-expired"
	ReasonAgreementNotYet     = "agreement-not-yet"
	ReasonModeNotAllowed      = "mode-not-allowed"
	ReasonRoleNotAllowed      = "role-not-allowed"
	ReasonSubjectRestricted   = "subject-restricted"
	ReasonSubjectErased       = "subject-erased"
	ReasonEmptyFields         = "empty-fields"
	ReasonForbiddenByRule     = "forbidden-by-rule" // a Cedar forbid, or no permit, beyond the reasons above
	ReasonPolicyError         = "policy-error"      // validating or evaluating failed: an alarm, never an allow
)

// Qualify returns the name of a field across collections: "profile.email".
func Qualify(collection, field string) string { return collection + "." + field }
