// Package erasure is the certificate that a person's data was destroyed: its format, its offline verification
// and the printable act.
//
// A certificate is signed by no key of its own. It carries the ledger's entries about the erasure, each with
// the proof that it is in the ledger, so it is as good as the checkpoints in those proofs: signed by the
// ledger key and cosigned by the witness. What it says beside the entries only repeats them for people, and
// verification demands that it does.
//
// The package works on bytes and public keys alone. It must never need the network or the operator's word,
// and a certificate must never hold a value that was erased.
package erasure

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Type is the first member of every certificate: the format and its version.
const Type = "pdvault/erasure-certificate/v1"

// States of a certificate.
const (
	Provisional = "provisional" // the key is destroyed; copies of it may be in backups of the key store
	Final       = "final"       // an epoch has ended since, so that such copies are dead too
)

// maxSize bounds a certificate: three entries of the largest size, escaped, and their proofs.
const maxSize = 1 << 20

var (
	// ErrCertificate is returned for bytes that are not one well-formed certificate.
	ErrCertificate = errors.New("erasure: malformed certificate")
	// ErrContradiction is returned when the entries of a certificate contradict each other, or what it says
	// beside them contradicts them.
	ErrContradiction = errors.New("erasure: certificate contradicts itself")
)

// Certificate says that a person's data was destroyed, and proves it.
//
// It is JSON with the members in the order of this struct, absent ones left out; space between them means
// nothing. Subject and Salt are in the first answer only, since nobody keeps them: with both, the certificate
// shows whom it is about.
type Certificate struct {
	Type     string `json:"t"`
	Status   string `json:"status"` // Provisional or Final
	ID       string `json:"id"`
	Operator string `json:"operator"`         // who erased
	System   string `json:"system"`           // origin of the ledger: the name of the information system
	Subject  string `json:"subject,omitzero"` // id of the person, UUID
	Salt     string `json:"salt,omitzero"`    // base64url of 32 bytes

	// For people; each repeats what an entry says.
	Reason        string   `json:"reason"`               // one of Reasons
	Categories    []string `json:"categories,omitempty"` // of the data
	Fields        []string `json:"fields,omitempty"`     // collection.field
	Consents      int      `json:"consents"`
	Details       int      `json:"details"` // sealed details of access records
	Method        string   `json:"method"`
	Time          string   `json:"time"`         // of the erasure: no access is allowed from here on
	DestroyedAt   string   `json:"destroyed_at"` // of the destruction of the key: nothing opens from here on
	KeyGeneration uint64   `json:"key_generation"`
	KEKVersion    uint64   `json:"kek_version"`              // older copies of the key are wrapped under this version, or below
	BackupsDeadBy string   `json:"backups_dead_by,omitzero"` // when an epoch is due; absent: none is planned
	BackupsDead   string   `json:"backups_dead,omitzero"`    // when that epoch was recorded; Final only

	Erased    Attested  `json:"erased"`         // subject.erased
	Destroyed Attested  `json:"destroyed"`      // key.destroyed
	Epoch     *Attested `json:"epoch,omitzero"` // key.epoch; Final only
}

// Attested is an entry of the ledger with the proof that it is there.
type Attested struct {
	Index int64  `json:"index"`
	Entry string `json:"entry"` // the exact bytes
	Proof string `json:"proof"` // C2SP tlog-proof
}

// New makes the certificate of an erasure from the ledger's entries about it. Without epoch it is provisional.
// It fails with ErrContradiction when they are not about one erasure, and verifies no proof.
func New(erased, destroyed Attested, epoch *Attested) (Certificate, error) {
	e, err := readEntries(erased, destroyed, epoch)
	if err != nil {
		return Certificate{}, err
	}
	c := Certificate{
		Type: Type, Status: Provisional, ID: e.erased.Erasure.ID, Operator: e.erased.Erasure.Operator,
		System: originOf(erased.Proof),
		Reason: e.erased.Reason, Categories: e.erased.Erasure.Categories, Fields: e.erased.Erasure.Fields,
		Consents: e.erased.Erasure.Consents, Details: e.erased.Erasure.Details, Method: e.erased.Erasure.Method,
		Time: e.erased.Time, DestroyedAt: e.destroyed.Time, KeyGeneration: e.destroyed.Erasure.Generation,
		KEKVersion: e.destroyed.Erasure.KEKVersion, BackupsDeadBy: e.destroyed.Erasure.DeadBy,
		Erased: erased, Destroyed: destroyed,
	}
	if epoch != nil {
		at := *epoch
		c.Status, c.Epoch, c.BackupsDead = Final, &at, e.epoch.Time
	}
	return c, nil
}

// Encode returns the JSON of c.
func (c Certificate) Encode() []byte {
	b, err := json.Marshal(&c)
	if err != nil {
		panic("erasure: certificate cannot be encoded: " + err.Error()) // plain struct: a bug here, not input
	}
	return b
}

// Parse decodes a certificate strictly and checks that it does not contradict itself. It verifies no proof.
func Parse(b []byte) (Certificate, error) {
	c, _, err := parse(b)
	return c, err
}

func parse(b []byte) (Certificate, entries, error) {
	var c Certificate
	if len(b) > maxSize {
		return Certificate{}, entries{}, fmt.Errorf("%w: too large", ErrCertificate)
	}
	if err := json.Unmarshal(b, &c, json.RejectUnknownMembers(true)); err != nil {
		return Certificate{}, entries{}, fmt.Errorf("%w: not strict JSON", ErrCertificate)
	}
	if c.Type != Type {
		return Certificate{}, entries{}, fmt.Errorf("%w: unknown type", ErrCertificate)
	}
	// What is accepted has one form, but for space: two texts never mean the same certificate.
	compact := jsontext.Value(bytes.Clone(b))
	if err := compact.Compact(); err != nil || !bytes.Equal(compact, c.Encode()) {
		return Certificate{}, entries{}, fmt.Errorf("%w: not in canonical form", ErrCertificate)
	}
	e, err := c.check()
	if err != nil {
		return Certificate{}, entries{}, err
	}
	return c, e, nil
}

// check demands that what c says beside its entries is what they say.
func (c Certificate) check() (entries, error) {
	e, err := readEntries(c.Erased, c.Destroyed, c.Epoch)
	if err != nil {
		return entries{}, err
	}
	want, err := New(c.Erased, c.Destroyed, c.Epoch)
	if err != nil {
		return entries{}, err
	}
	for _, m := range []struct {
		name string
		same bool
	}{
		{"status", c.Status == want.Status},
		{"id", c.ID == want.ID},
		{"operator", c.Operator == want.Operator},
		{"system", c.System == want.System},
		{"reason", c.Reason == want.Reason},
		{"categories", slices.Equal(c.Categories, want.Categories)},
		{"fields", slices.Equal(c.Fields, want.Fields)},
		{"consents", c.Consents == want.Consents},
		{"details", c.Details == want.Details},
		{"method", c.Method == want.Method},
		{"time", c.Time == want.Time},
		{"destroyed_at", c.DestroyedAt == want.DestroyedAt},
		{"key_generation", c.KeyGeneration == want.KeyGeneration},
		{"kek_version", c.KEKVersion == want.KEKVersion},
		{"backups_dead_by", c.BackupsDeadBy == want.BackupsDeadBy},
		{"backups_dead", c.BackupsDead == want.BackupsDead},
	} {
		if !m.same {
			return entries{}, fmt.Errorf("%w: %s is not what the entries say", ErrContradiction, m.name)
		}
	}
	switch {
	case (c.Subject == "") != (c.Salt == ""):
		return entries{}, fmt.Errorf("%w: subject and salt are of use together only", ErrCertificate)
	case c.Subject != "" && !opens(e.erased.DetailCommit, c.Subject, c.Salt):
		return entries{}, fmt.Errorf("%w: it is about another subject", ErrContradiction)
	}
	return e, nil
}

// saltSize is the size in bytes of the salt of a commitment to a subject.
const saltSize = 32

// Commit returns a new salt and the commitment to subject under it, SHA-256(salt ‖ subject), both as base64url.
// The commitment goes into the entry; the salt goes to whom the certificate is given, and nowhere else.
func Commit(subject string) (salt, commit string) {
	raw := make([]byte, saltSize)
	_, _ = rand.Read(raw) // never fails
	return base64.RawURLEncoding.EncodeToString(raw), commitment(raw, subject)
}

func commitment(salt []byte, subject string) string {
	sum := sha256.Sum256(append(slices.Clone(salt), subject...))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func opens(commit, subject, salt string) bool {
	raw, err := base64.RawURLEncoding.DecodeString(salt)
	return err == nil && len(raw) == saltSize && base64.RawURLEncoding.EncodeToString(raw) == salt &&
		commitment(raw, subject) == commit
}

// entries are those of a certificate, decoded.
type entries struct {
	erased, destroyed verify.Entry
	epoch             verify.Entry // zero when the certificate is provisional
}

// readEntries decodes the entries and demands that they are about one erasure, in the right order.
func readEntries(erased, destroyed Attested, epoch *Attested) (e entries, err error) {
	if e.erased, err = erased.read(verify.KindSubjectErased); err != nil {
		return entries{}, err
	}
	if e.destroyed, err = destroyed.read(verify.KindKeyDestroyed); err != nil {
		return entries{}, err
	}
	was, is := e.erased.Erasure, e.destroyed.Erasure
	switch {
	case was == nil || was.ID == "" || was.Method == "" || e.erased.Reason == "" || e.erased.SubjectRef == "" || e.erased.DetailCommit == "":
		return entries{}, fmt.Errorf("%w: %s lacks what it is about", ErrCertificate, verify.KindSubjectErased)
	case is == nil || e.destroyed.Of == nil:
		return entries{}, fmt.Errorf("%w: %s lacks what it is about", ErrCertificate, verify.KindKeyDestroyed)
	case *e.destroyed.Of != erased.Index || is.ID != was.ID || e.destroyed.SubjectRef != e.erased.SubjectRef:
		return entries{}, fmt.Errorf("%w: the key that was destroyed is of another erasure", ErrContradiction)
	case erased.Index >= destroyed.Index || e.erased.Time > e.destroyed.Time: // the layout of times sorts as text
		return entries{}, fmt.Errorf("%w: the key was destroyed before the erasure", ErrContradiction)
	case originOf(erased.Proof) != originOf(destroyed.Proof):
		return entries{}, fmt.Errorf("%w: its proofs are from different ledgers", ErrContradiction)
	}
	if epoch == nil {
		return e, nil
	}
	if e.epoch, err = epoch.read(verify.KindKeyEpoch); err != nil {
		return entries{}, err
	}
	switch {
	case e.epoch.Keys == nil:
		return entries{}, fmt.Errorf("%w: %s lacks what it is about", ErrCertificate, verify.KindKeyEpoch)
	case !Kills(*e.epoch.Keys, is.KEKVersion):
		return entries{}, fmt.Errorf("%w: the epoch does not retire the version that wrapped the key", ErrContradiction)
	case destroyed.Index >= epoch.Index || e.destroyed.Time > e.epoch.Time:
		return entries{}, fmt.Errorf("%w: the epoch ended before the key was destroyed", ErrContradiction)
	case originOf(erased.Proof) != originOf(epoch.Proof):
		return entries{}, fmt.Errorf("%w: its proofs are from different ledgers", ErrContradiction)
	}
	return e, nil
}

// Kills reports whether an epoch is one after which nothing wrapped under a version of the KEK can be unwrapped
// any more.
func Kills(epoch verify.KeyChange, version uint64) bool {
	return epoch.Scope == "kek" && epoch.Phase == "" && epoch.Left == 0 && epoch.Version > version
}

// read decodes the entry.
func (a Attested) read(kind string) (verify.Entry, error) {
	e, err := verify.ParseEntry([]byte(a.Entry))
	switch {
	case err != nil:
		return verify.Entry{}, fmt.Errorf("%w: entry of %s: %w", ErrCertificate, kind, err)
	case e.Kind != kind:
		return verify.Entry{}, fmt.Errorf("%w: an entry is of kind %q instead of %s", ErrCertificate, e.Kind, kind)
	}
	p, err := verify.ParseProof([]byte(a.Proof))
	switch {
	case err != nil:
		return verify.Entry{}, fmt.Errorf("%w: proof of %s: %w", ErrCertificate, kind, err)
	case p.Index != a.Index:
		return verify.Entry{}, fmt.Errorf("%w: index of %s is not that of its proof", ErrContradiction, kind)
	case p.Extra != nil:
		return verify.Entry{}, fmt.Errorf("%w: proof of %s has data that nobody signed", ErrCertificate, kind)
	}
	return e, nil
}

// originOf returns the origin that the checkpoint of a proof names, which nothing has been verified of; "" when
// there is none.
func originOf(proof string) string {
	p, err := verify.ParseProof([]byte(proof))
	if err != nil {
		return ""
	}
	origin, _, _ := bytes.Cut(p.Checkpoint, []byte("\n"))
	return string(origin)
}
