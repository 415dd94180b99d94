package verify

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
)

// EntryType is the first member of every entry: the format and its version.
const EntryType = "pdvault/entry/v1"

// MaxEntrySize is the largest entry in bytes: entry bundles of C2SP tlog-tiles carry a uint16 length.
const MaxEntrySize = 65535

// Kinds of entries.
const (
	KindAccess           = "access"        // a read, allowed or denied
	KindAccessFailed     = "access.failed" // an allowed read that was recorded and then not served; names it in Of
	KindSubjectCreated   = "subject.created"
	KindRecordWritten    = "record.written"
	KindRecordDeleted    = "record.deleted"
	KindSubjectErased    = "subject.erased"
	KindConsentGiven     = "consent.given"
	KindConsentWithdrawn = "consent.withdrawn"
	KindRestrictionSet   = "restriction.set"
	KindRestrictionLift  = "restriction.lifted"
	KindPolicyPublished  = "policy.published"
	KindLoginDenied      = "login.denied"
	KindKeyRotated       = "key.rotated"     // a rotation has begun, moved on or ended; see KeyChange
	KindKeyEpoch         = "key.epoch"       // every bundle is wrapped under a new KEK version, older ones are gone
	KindKeyDestroyed     = "key.destroyed"   // the key of the subject that the entry in Of erased is destroyed
	KindRecordResealed   = "record.resealed" // records sealed again, or indexed again, under newer keys
	KindLedgerRestored   = "ledger.restored" // the data store was restored from a backup; what followed is lost
)

// Decisions, grounds, modes and types of evidence.
const (
	Allow = "allow"
	Deny  = "deny"

	GroundConsent = "consent"
	GroundService = "service"
	GroundLaw     = "law"

	ModeReveal = "reveal" // the values are disclosed
	ModeMask   = "mask"   // masked values are disclosed
	ModeVerify = "verify" // a supplied value is compared in the sidecar; nothing is disclosed but the outcome
	ModeLookup = "lookup" // subjects are found by a value; nothing is opened

	EvidenceConsent   = "consent"
	EvidenceAgreement = "agreement"
	EvidencePurpose   = "purpose" // a purpose of our own, registered in the policy
)

// ErrEntry is returned for bytes that are not one well-formed entry in its only encoding.
var ErrEntry = errors.New("verify: malformed ledger entry")

// Entry is one accountable act. Its encoding is one line of JSON with the members in the order of this
// struct, absent ones left out, no insignificant space; these bytes are stored and hashed as they are.
// It must hold no personal data: people appear as SubjectRef only, free text as DetailCommit only.
//
// Example:
//
//	{"t":"pdvault/entry/v1","id":"0199…","time":"2026-11-22T10:00:00.000Z","kind":"access","caller":{"id":"shop",…},…}
type Entry struct {
	Type string `json:"t"`
	ID   string `json:"id"`   // UUIDv7, independent of the index
	Time string `json:"time"` // TimeLayout, UTC; never decreases along the log
	Kind string `json:"kind"`

	Caller     *Caller    `json:"caller,omitzero"`
	Recipient  *Recipient `json:"recipient,omitzero"`
	SubjectRef string     `json:"subject_ref,omitzero"` // base64url of 32 bytes; absent when no such subject is known
	Collection string     `json:"collection,omitzero"`
	Fields     []string   `json:"fields,omitempty"` // names, sorted
	Mode       string     `json:"mode,omitzero"`
	Purpose    string     `json:"purpose,omitzero"`
	Ground     string     `json:"ground,omitzero"`
	Evidence   *Evidence  `json:"evidence,omitzero"`
	Policy     int64      `json:"policy,omitzero"`   // version of the bundle that decided
	Sidecar    string     `json:"sidecar,omitzero"`  // the one sidecar that may serve it
	Decision   string     `json:"decision,omitzero"` // Allow or Deny
	Reason     string     `json:"reason,omitzero"`   // code, when denied or failed
	Rules      []string   `json:"rules,omitempty"`   // ids of the Cedar policies that decided

	DetailCommit string `json:"detail_commit,omitzero"` // base64url SHA-256(salt32 ‖ detail)
	Trace        string `json:"trace,omitzero"`         // W3C trace-id, 32 hex digits

	Of      *int64         `json:"of,omitzero"`       // access.failed: index of the access entry
	Records []RecordChange `json:"records,omitempty"` // subject.created, record.written, record.deleted
	Consent *ConsentChange `json:"consent,omitzero"`  // consent.given, consent.withdrawn
	Bundle  *BundleChange  `json:"bundle,omitzero"`   // policy.published

	Erasure  *Erasure   `json:"erasure,omitzero"`   // subject.erased, key.destroyed
	Keys     *KeyChange `json:"keys,omitzero"`      // key.rotated, key.epoch
	Resealed []Resealed `json:"resealed,omitempty"` // record.resealed
	Restored *Restored  `json:"restored,omitzero"`  // ledger.restored
}

// Erasure is what an erasure destroyed. In subject.erased the members up to Operator are set, in key.destroyed
// ID and the members from Generation on. The entry's Reason is the code of the reason, and its DetailCommit is
// over the subject's id, so that who holds the certificate, and nobody else, can show whom it is about.
type Erasure struct {
	ID         string   `json:"id"`                   // of the certificate, UUIDv4, tied to nothing else
	Categories []string `json:"categories,omitempty"` // of the data, as the policy names them, sorted
	Fields     []string `json:"fields,omitempty"`     // collection.field, sorted; names, never values
	Consents   int      `json:"consents,omitzero"`    // number of consents whose records were deleted
	Details    int      `json:"details,omitzero"`     // number of sealed details that were deleted
	Method     string   `json:"method,omitzero"`      // MethodCryptographicErase
	Operator   string   `json:"operator,omitzero"`    // who erased: its name, as the policy in force has it

	Generation uint64 `json:"generation,omitzero"`  // of the key store, that the tombstone was written at
	KEKVersion uint64 `json:"kek_version,omitzero"` // that wrapped the bundle; older copies are dead once it is retired
	DeadBy     string `json:"dead_by,omitzero"`     // TimeLayout: when the epoch that retires it is due; absent: none is planned
}

// MethodCryptographicErase is how erasures destroy: the key is destroyed and the rows are deleted
// (NIST SP 800-88 Rev. 2, cryptographic erase).
const MethodCryptographicErase = "cryptographic-erase"

// KeyChange is what a rotation came to. Evidence is the sidecar's own statement, signed with its witness key.
type KeyChange struct {
	Scope    string `json:"scope"` // kek, subject, all-subjects, index, token, ledger, witness
	Job      string `json:"job"`
	Phase    string `json:"phase,omitzero"`    // of a rotation that is not finished
	Version  uint64 `json:"version,omitzero"`  // that everything was brought to
	Total    int64  `json:"total"`             // things on it
	Left     int64  `json:"left"`              // things on older versions: 0 when it is finished
	Started  string `json:"started,omitzero"`  // TimeLayout
	Finished string `json:"finished,omitzero"` // TimeLayout
	Key      string `json:"key,omitzero"`      // note verifier key: scope ledger, the newest from here on
	Dropped  string `json:"dropped,omitzero"`  // note verifier key that signs no more from here on
	Evidence string `json:"evidence,omitzero"` // signed note, see OpenEvidence
}

// Resealed is the new state of the records of one subject whose content did not change.
type Resealed struct {
	SubjectRef string         `json:"subject_ref"`
	Records    []RecordChange `json:"records"`
}

// Restored says what a restore put back and what is lost.
type Restored struct {
	Backup    string `json:"backup"`              // id of the archive
	Size      int64  `json:"size"`                // of the ledger in the archive: this entry's index
	Lost      int64  `json:"lost"`                // size that the witness had seen; entries from Size on are lost
	LostRoot  string `json:"lost_root,omitzero"`  // its root, base64
	Erased    int    `json:"erased,omitzero"`     // subjects whose erasure was carried out again
	Withdrawn int    `json:"withdrawn,omitzero"`  // consents whose withdrawal was carried out again
	Restrict  int    `json:"restricted,omitzero"` // restrictions that were set again
}

// Caller is who acted, as authenticated.
type Caller struct {
	ID    string `json:"id"`
	Kind  string `json:"kind"` // person, service, subject, system
	Role  string `json:"role"`
	Authn string `json:"authn"` // token, mtls, …
}

// Recipient is for whom the data was read.
type Recipient struct {
	ID           string `json:"id"`
	Role         string `json:"role"` // controller, processor, third_party, authority, data_subject
	Jurisdiction string `json:"jurisdiction,omitzero"`
}

// Evidence names what made the ground true, and the entry that made it so.
type Evidence struct {
	Type  string `json:"type"`
	ID    string `json:"id"`
	Entry int64  `json:"entry"` // index
}

// RecordChange is the new state of one record.
type RecordChange struct {
	Collection string   `json:"collection"`
	Version    uint64   `json:"version"` // 0: deleted
	Fields     []string `json:"fields,omitempty"`
	Digest     string   `json:"digest,omitzero"` // base64url SHA-256 of the stored ciphertext row
}

// ConsentChange is a consent given or withdrawn.
type ConsentChange struct {
	ID               string   `json:"id"`
	Purpose          string   `json:"purpose"`
	Policy           int64    `json:"policy"`               // version of the policy under which it was given
	State            string   `json:"state"`                // DPV status: ConsentGiven, ConsentWithdrawn
	Fields           []string `json:"fields,omitempty"`     // across collections: profile.email
	Recipients       []string `json:"recipients,omitempty"` // caller ids
	NotAfter         string   `json:"not_after,omitzero"`
	SeparateDocument bool     `json:"separate_document,omitzero"`
	NoticeSHA256     string   `json:"notice_sha256,omitzero"`
}

// BundleChange is a published policy bundle.
type BundleChange struct {
	Version    int64  `json:"version"`
	SHA256     string `json:"sha256"`      // of the bundle's bytes, hex
	TextSHA256 string `json:"text_sha256"` // of the policy text, hex
}

// TimeLayout is the layout of all times in entries: RFC 3339, UTC, milliseconds.
const TimeLayout = "2006-01-02T15:04:05.000Z"

// FormatTime formats t in TimeLayout.
func FormatTime(t time.Time) string { return t.UTC().Format(TimeLayout) }

// Encode returns the one encoding of e. It sets Type.
func Encode(e Entry) ([]byte, error) {
	e.Type = EntryType
	b, err := json.Marshal(&e)
	if err != nil {
		return nil, fmt.Errorf("encoding entry: %w", err)
	}
	if len(b) > MaxEntrySize {
		return nil, fmt.Errorf("%w: %d bytes", ErrEntry, len(b))
	}
	return b, nil
}

// ParseEntry decodes b strictly: unknown or repeated members, another order, other spacing, an unknown
// version, an invalid time all give ErrEntry. What it accepts encodes to the same bytes again.
func ParseEntry(b []byte) (Entry, error) {
	var e Entry
	if len(b) > MaxEntrySize {
		return Entry{}, fmt.Errorf("%w: %d bytes", ErrEntry, len(b))
	}
	if err := json.Unmarshal(b, &e, json.RejectUnknownMembers(true)); err != nil {
		return Entry{}, fmt.Errorf("%w: not strict JSON", ErrEntry)
	}
	if e.Type != EntryType {
		return Entry{}, fmt.Errorf("%w: unknown type", ErrEntry)
	}
	if t, err := time.Parse(TimeLayout, e.Time); err != nil || FormatTime(t) != e.Time {
		return Entry{}, fmt.Errorf("%w: time is not in the entry layout", ErrEntry)
	}
	again, err := Encode(e)
	if err != nil || !bytes.Equal(again, b) {
		return Entry{}, fmt.Errorf("%w: not in canonical form", ErrEntry)
	}
	return e, nil
}
