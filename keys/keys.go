// Package keys is the vocabulary that the sidecar and its client share: sentinels, their codes on the wire,
// and the one encoding of associated data. It holds no key and does no cryptography.
//
// The hierarchy below it: a key-encryption key (KEK) in HashiCorp Vault, or in a root-key file, wraps one
// bundle per subject and a few keysets of the instance. A bundle is a Tink AEAD keyset that seals the
// subject's fields, and a 32-byte secret from which the subject's reference in the ledger is made. The KEK
// is asked when a bundle is made and when it is not in the sidecar's cache; never for a single field.
//
// The package must never import package vault or anything that speaks HTTP.
package keys

import (
	"encoding/binary"
	"errors"

	"github.com/prototypster/pdvault/keys/keyspb"
)

// AdminSuffix is what the path of the socket for those who look after the keys has behind that of the other one.
const AdminSuffix = ".admin"

var (
	// ErrUnavailable is returned when the sidecar or its KEK cannot answer now: down, hanging, refusing
	// connections. The request may be tried again later; nothing is known about the data.
	ErrUnavailable = errors.New("keys: key service unavailable")
	// ErrSealed is returned when HashiCorp Vault answers that it is sealed. It wraps ErrUnavailable.
	ErrSealed = wrap("keys: HashiCorp Vault is sealed", ErrUnavailable)
	// ErrForbidden is returned when HashiCorp Vault's policy refuses the sidecar. It wraps ErrUnavailable:
	// an operator must mend it, nothing is wrong with the data.
	ErrForbidden = wrap("keys: key service refuses the sidecar", ErrUnavailable)
	// ErrDamaged is returned when the key store contradicts itself, as after damage to its files. It wraps ErrUnavailable:
	// nothing is known about the subject. It does not pass: the key store has to be restored.
	ErrDamaged = wrap("keys: key store is damaged", ErrUnavailable)
	// ErrKEKMissing is returned when the KEK itself does not exist. It is never read as "no such subject".
	ErrKEKMissing = errors.New("keys: key-encryption key is missing")
	// ErrKEKRetired is returned when a bundle is wrapped under a KEK version that is no longer allowed.
	ErrKEKRetired = errors.New("keys: key-encryption key version is retired")
	// ErrNoKey is returned when the key store has no bundle of the subject and no tombstone either.
	ErrNoKey = errors.New("keys: subject has no key")
	// ErrKeyExists is returned when a bundle is to be created for a subject that has or had one.
	ErrKeyExists = errors.New("keys: subject already has a key")
	// ErrDestroyed is returned when the subject's bundle was destroyed.
	ErrDestroyed = errors.New("keys: subject's key was destroyed")
	// ErrTampered is returned when a ciphertext or a wrapped bundle does not authenticate: it was changed,
	// or moved from another subject, collection, field or version.
	ErrTampered = errors.New("keys: ciphertext does not authenticate")
	// ErrProofRefused is returned when the proofs shown with an open do not satisfy the sidecar.
	ErrProofRefused = errors.New("keys: access proof refused")
	// ErrClock is returned when the time of an access entry is not that of the sidecar's clock: one of the two is wrong, or
	// the clock was set. It wraps ErrProofRefused. A new entry is taken when the clock is right, and past the time of the
	// newest entry.
	ErrClock = wrap("keys: clock and access log disagree", ErrProofRefused)
	// ErrReplayed is returned when an access entry was served before. It wraps ErrProofRefused.
	ErrReplayed = wrap("keys: access entry was already served", ErrProofRefused)
	// ErrInvalid is returned when a message is malformed or over a limit.
	ErrInvalid = errors.New("keys: invalid message")
	// ErrBudget is returned when a caller, or all together, have opened as much as the sidecar lets them in
	// the time. What is refused was not opened; it may be asked for again when the budget has recovered.
	ErrBudget = errors.New("keys: budget of opens is used up")
	// ErrJobRunning is returned when a rotation is to be started that another one under way excludes.
	ErrJobRunning = errors.New("keys: a rotation is under way")
	// ErrTooManyKeys is returned when a rotation would put more keys of a kind beside one another than may be in use. It
	// may be tried again when the oldest have gone.
	ErrTooManyKeys = errors.New("keys: too many keys are in use beside one another")
	// ErrNoJob is returned when no rotation has the id.
	ErrNoJob = errors.New("keys: no such rotation")
	// ErrRolledBack is returned by the client when the sidecar's key store, or its memory of the ledger, is
	// older than what the client has seen.
	ErrRolledBack = errors.New("keys: sidecar has been rolled back")
)

// wrapped is a sentinel that belongs to a family.
type wrapped struct {
	text   string
	family error
}

func wrap(text string, family error) error { return &wrapped{text, family} }

func (w *wrapped) Error() string { return w.text }
func (w *wrapped) Unwrap() error { return w.family }

// codes pairs the outcomes on the wire with their sentinels, the most specific first.
var codes = [...]struct {
	code keyspb.Code
	err  error
}{
	{keyspb.Code_SEALED, ErrSealed},
	{keyspb.Code_FORBIDDEN, ErrForbidden},
	{keyspb.Code_DAMAGED, ErrDamaged},
	{keyspb.Code_UNAVAILABLE, ErrUnavailable},
	{keyspb.Code_NO_KEY, ErrNoKey},
	{keyspb.Code_KEY_EXISTS, ErrKeyExists},
	{keyspb.Code_DESTROYED, ErrDestroyed},
	{keyspb.Code_TAMPERED, ErrTampered},
	{keyspb.Code_KEK_MISSING, ErrKEKMissing},
	{keyspb.Code_KEK_RETIRED, ErrKEKRetired},
	{keyspb.Code_REPLAYED, ErrReplayed},
	{keyspb.Code_CLOCK, ErrClock},
	{keyspb.Code_PROOF_REFUSED, ErrProofRefused},
	{keyspb.Code_INVALID, ErrInvalid},
	{keyspb.Code_BUDGET, ErrBudget},
	{keyspb.Code_JOB_RUNNING, ErrJobRunning},
	{keyspb.Code_NO_JOB, ErrNoJob},
	{keyspb.Code_TOO_MANY_KEYS, ErrTooManyKeys},
}

// CodeOf returns the code of err; what is not in the table is UNAVAILABLE, so that an unknown failure is
// never taken for an answer about the data.
func CodeOf(err error) keyspb.Code {
	if err == nil {
		return keyspb.Code_OK
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return keyspb.Code_UNAVAILABLE
}

// ErrorOf is the inverse of CodeOf. It returns nil for OK and ErrUnavailable for an unknown code.
func ErrorOf(code keyspb.Code) error {
	if code == keyspb.Code_OK {
		return nil
	}
	for _, c := range codes {
		if c.code == code {
			return c.err
		}
	}
	return ErrUnavailable
}

// Tuple encodes parts injectively: each part as its length in bytes (uint32, big endian) and itself.
// It is the encoding of all associated data and KEK contexts; the first part names format and version.
func Tuple(parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += 4 + len(p)
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}
