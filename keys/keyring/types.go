package keyring

import (
	"fmt"
	"log/slog"

	"github.com/google/uuid"
)

// Limits of one call. What is over them is refused with keys.ErrInvalid.
const (
	MaxItems      = 10_000   // subjects, items or values in a call
	MaxFields     = 1_000    // fields of one subject in a call
	MaxReseal     = 10_000   // items of one subject to be sealed again in a call
	MaxValue      = 64 << 10 // bytes in a field's value, a detail or a protected secret
	MaxName       = 128      // bytes in the name of a collection, field, label or state, none may be empty
	MaxIndexValue = 4 << 10  // bytes in a normalised value to be indexed
	MaxState      = 256 << 10

	MaxIndexValues = 32  // of one field
	MaxReason      = 256 // bytes in the reason of a destruction
)

// Secret is bytes that must not be printed: fmt, slog and encoding/json show "[redacted]". It converts
// to and from []byte by assignment.
type Secret []byte

const redacted = "[redacted]"

// String hides the bytes.
func (Secret) String() string { return redacted }

// GoString hides the bytes.
func (Secret) GoString() string { return redacted }

// Format hides the bytes whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the bytes.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the bytes.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Wipe overwrites the bytes with zeros.
func (s Secret) Wipe() { clear(s) }

// SealSubject is what to seal for one subject.
type SealSubject struct {
	Subject uuid.UUID
	Create  bool // make the bundle; the subject must never have had one
	Fields  []SealField
}

// SealField is one value to seal: either Plaintext, or Carry with CarryVersion.
type SealField struct {
	Collection   string
	Field        string
	Version      uint64 // record version that the ciphertext is bound to
	Plaintext    Secret // the JSON value; never empty
	Carry        []byte // a ciphertext of the same field, sealed at CarryVersion, to be resealed
	CarryVersion uint64
	// Index are values to make tokens of, each with Value, or with Sealed as an earlier call gave it.
	Index []IndexValue
}

// SealedSubject is the outcome for one subject: Ref and Fields, or Err.
type SealedSubject struct {
	Err    error
	Ref    []byte // subject_ref, 32 bytes
	Fields []SealedField
}

// SealedField is the outcome for one field, in the order of the request.
type SealedField struct {
	Ciphertext []byte
	Index      []IndexedValue // in the order of SealField.Index
}

// IndexedValue is what an IndexValue came to: the value sealed under the subject's key, so that tokens under
// a later index key can be made of it here, and a token under each index key in use, ascending by key.
type IndexedValue struct {
	Sealed []byte
	Tokens []IndexToken
}

// IndexToken is a token of the blind index, 16 bytes, and the version of the index key that it was made with.
type IndexToken struct {
	Key   uint32
	Token []byte
}

// PrepareItem asks for a subject's reference and for a detail to be sealed.
type PrepareItem struct {
	Subject uuid.UUID
	Detail  Secret // may be empty, then nothing is sealed
}

// PreparedItem is the outcome for one item: Ref and SealedDetail, or Err.
type PreparedItem struct {
	Err          error
	Ref          []byte
	SealedDetail []byte
}

// RefResult is a subject's reference in the ledger, or Err.
type RefResult struct {
	Err error
	Ref []byte
}

// IndexValue is a normalised value to be turned into a blind-index token. It prints without its value.
type IndexValue struct {
	Collection string
	Field      string
	Normaliser uint32 // version of the normaliser
	Value      string // or, in Seal and Reindex,
	Sealed     []byte // the value as IndexedValue.Sealed holds it
}

// Format hides the value whatever the verb.
func (v IndexValue) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{%s %s %d %s}", v.Collection, v.Field, v.Normaliser, redacted)
}

// MarshalText hides the value.
func (v IndexValue) MarshalText() ([]byte, error) { return fmt.Append(nil, v), nil }

// LogValue hides the value.
func (v IndexValue) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(v)) }

// OpenSubject is what to open of one record.
type OpenSubject struct {
	Subject    uuid.UUID
	Ref        []byte // when set, it must be the subject's reference; otherwise keys.ErrProofRefused
	Collection string
	Version    uint64
	Fields     []OpenField
}

// OpenField is one ciphertext to open.
type OpenField struct {
	Field      string
	Ciphertext []byte
	// Expect, when not nil, is compared with the value in constant time; the plaintext is not returned.
	Expect Secret
}

// OpenedSubject is the outcome for one record: all its Fields, or Err and none.
type OpenedSubject struct {
	Err    error
	Fields []OpenedField
}

// OpenedField is the outcome for one field: Plaintext, or Match when Expect was given.
type OpenedField struct {
	Plaintext Secret
	Match     bool
}
