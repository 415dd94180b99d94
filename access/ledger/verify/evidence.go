package verify

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

var (
	// ErrEvidence is returned for bytes that are not one well-formed statement about a rotation, signed with the
	// witness key that is given.
	ErrEvidence = errors.New("verify: malformed or foreign evidence of a rotation")
	// ErrEvidenceKey is returned for evidence that none of the witness keys given can have made: it is not known
	// to be true or false.
	ErrEvidenceKey = errors.New("verify: evidence of a rotation is by a witness key that was not given")
)

// KeyEvidence is what a sidecar states about a rotation that is finished: that everything is on version Target
// or newer, and how much is not. Its text is
//
//	pdvault/key-evidence/v1
//	instance main
//	sidecar 6f1ed002ab5595859014ebf0951522d9
//	job 0199b0c2-5f3e-7a51-9d0e-3b7c5a1f2e4d
//	scope kek
//	target 12
//	total 1048576
//	left 0
//	started 2026-11-22T10:00:00.000Z
//	finished 2026-11-22T10:04:31.120Z
//
// as a signed note with one signature, of the witness key as a plain Ed25519 note key (0x01) of the name
// <instance>/evidence/<sidecar>. A cosignature can never be taken for it: key type, key name and the first line
// of what is signed differ.
type KeyEvidence struct {
	Instance string
	Sidecar  string
	Job      string
	Scope    string // kek, subject, all-subjects, index, token, ledger, witness
	Target   uint64 // version that everything was brought to
	Total    int64  // things on it, as the sidecar counted them; for index and ledger as pdvault did
	Left     int64  // things on older versions
	Started  time.Time
	Finished time.Time
}

const (
	evidenceHead = "pdvault/key-evidence/v1"

	algEd25519 = 0x01 // key type of plain signatures in C2SP signed-note

	maxEvidenceName = 256 // bytes in a name
	maxEvidence     = 4 << 10
)

// evidenceScopes are the scopes of rotations.
var evidenceScopes = []string{"kek", "subject", "all-subjects", "index", "token", "ledger", "witness"}

// FormatEvidence returns the text of e, which is what is signed. Times are cut to milliseconds. It fails with
// ErrEvidence when OpenEvidence would refuse the text.
func FormatEvidence(e KeyEvidence) ([]byte, error) {
	text := formatEvidence(e)
	if _, err := parseEvidence(text); err != nil {
		return nil, err
	}
	return text, nil
}

func formatEvidence(e KeyEvidence) []byte {
	return fmt.Appendf(nil, "%s\ninstance %s\nsidecar %s\njob %s\nscope %s\ntarget %d\ntotal %d\nleft %d\nstarted %s\nfinished %s\n",
		evidenceHead, e.Instance, e.Sidecar, e.Job, e.Scope, e.Target, e.Total, e.Left, FormatTime(e.Started), FormatTime(e.Finished))
}

// parseEvidence decodes strictly: what it accepts formats to the same bytes again.
func parseEvidence(text []byte) (KeyEvidence, error) {
	names := [...]string{"instance", "sidecar", "job", "scope", "target", "total", "left", "started", "finished"}
	values, err := parseLines(string(text), evidenceHead, names[:])
	if err != nil {
		return KeyEvidence{}, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	e := KeyEvidence{Instance: values[0], Sidecar: values[1], Job: values[2], Scope: values[3]}
	for _, name := range values[:3] {
		if !isEvidenceName(name) {
			return KeyEvidence{}, fmt.Errorf("%w: bad name", ErrEvidence)
		}
	}
	if !slices.Contains(evidenceScopes, e.Scope) {
		return KeyEvidence{}, fmt.Errorf("%w: unknown scope", ErrEvidence)
	}
	var errs [5]error
	e.Target, errs[0] = strconv.ParseUint(values[4], 10, 64)
	e.Total, errs[1] = parseDecimal(values[5])
	e.Left, errs[2] = parseDecimal(values[6])
	e.Started, errs[3] = time.Parse(TimeLayout, values[7])
	e.Finished, errs[4] = time.Parse(TimeLayout, values[8])
	if err := errors.Join(errs[:]...); err != nil || e.Finished.Before(e.Started) {
		return KeyEvidence{}, fmt.Errorf("%w: bad number or time", ErrEvidence)
	}
	if string(formatEvidence(e)) != string(text) {
		return KeyEvidence{}, fmt.Errorf("%w: not in canonical form", ErrEvidence)
	}
	return e, nil
}

func isEvidenceName(s string) bool {
	return s != "" && len(s) <= maxEvidenceName && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// EvidenceKey returns the note verifier key of evidence that belongs to a witness key as cosignatures have it.
// Both are the same Ed25519 key, under another name and type.
func EvidenceKey(witnessKey string) (string, error) {
	instance, sidecar, pub, err := evidenceSigner(witnessKey)
	if err != nil {
		return "", err
	}
	name, key := evidenceName(instance, sidecar), evidencePublic(pub)
	return fmt.Sprintf("%s+%08x+%s", name, keyHash(name, key), base64.StdEncoding.EncodeToString(key)), nil
}

func evidenceName(instance, sidecar string) string { return instance + "/evidence/" + sidecar }

func evidencePublic(pub ed25519.PublicKey) []byte { return append([]byte{algEd25519}, pub...) }

// evidenceSigner takes a witness key apart, whose name is <instance>/witness/<sidecar>.
func evidenceSigner(witnessKey string) (instance, sidecar string, pub ed25519.PublicKey, err error) {
	v, err := NewCosignatureVerifier(witnessKey)
	if err != nil {
		return "", "", nil, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	i := strings.LastIndex(v.Name(), witnessRole)
	if i < 0 {
		return "", "", nil, fmt.Errorf("%w: the key is not named as a sidecar's", ErrEvidence)
	}
	return v.Name()[:i], v.Name()[i+len(witnessRole):], v.(*cosignatureVerifier).key, nil
}

// OpenEvidence verifies evidence against the witness key of the sidecar that must have made it, as checkpoints
// are cosigned with it. It is strict: what it accepts is the only encoding of what it returns. Everything that
// it refuses gives ErrEvidence.
func OpenEvidence(signed []byte, witnessKey string) (KeyEvidence, error) {
	if len(signed) > maxEvidence {
		return KeyEvidence{}, fmt.Errorf("%w: too large", ErrEvidence)
	}
	instance, sidecar, _, err := evidenceSigner(witnessKey)
	if err != nil {
		return KeyEvidence{}, err
	}
	vkey, err := EvidenceKey(witnessKey)
	if err != nil {
		return KeyEvidence{}, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return KeyEvidence{}, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return KeyEvidence{}, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	if len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 0 {
		return KeyEvidence{}, fmt.Errorf("%w: it must have one signature", ErrEvidence)
	}
	raw, err := decodeBase64(n.Sigs[0].Base64)
	if err != nil || len(raw) != 4+ed25519.SignatureSize ||
		string(signed) != n.Text+"\n— "+n.Sigs[0].Name+" "+n.Sigs[0].Base64+"\n" {
		return KeyEvidence{}, fmt.Errorf("%w: not in canonical form", ErrEvidence)
	}
	e, err := parseEvidence([]byte(n.Text))
	if err != nil {
		return KeyEvidence{}, err
	}
	if e.Instance != instance || e.Sidecar != sidecar {
		return KeyEvidence{}, fmt.Errorf("%w: it is of another sidecar than its key", ErrEvidence)
	}
	return e, nil
}

// CheckEvidence verifies the evidence of the rotation that k ends: that one of witnesses, which are keys of a sidecar,
// has made it and that it says what k says. Errors are ErrEvidenceKey and ErrEvidence, which absence is too.
func (k KeyChange) CheckEvidence(witnesses ...note.Verifier) (KeyEvidence, error) {
	if k.Evidence == "" {
		return KeyEvidence{}, fmt.Errorf("%w: there is none", ErrEvidence)
	}
	witnessKey, err := evidenceBy(k.Evidence, witnesses)
	if err != nil {
		return KeyEvidence{}, err
	}
	e, err := OpenEvidence([]byte(k.Evidence), witnessKey)
	switch {
	case err != nil:
		return KeyEvidence{}, err
	case e.Job != k.Job, e.Scope != k.Scope, e.Target != k.Version, e.Total != k.Total, e.Left != k.Left,
		FormatTime(e.Started) != k.Started, FormatTime(e.Finished) != k.Finished:
		return KeyEvidence{}, fmt.Errorf("%w: it is about another rotation, or says something else of it", ErrEvidence)
	}
	return e, nil
}

// evidenceBy returns the one of witnesses that evidence names as its signer.
func evidenceBy(signed string, witnesses []note.Verifier) (witnessKey string, err error) {
	_, err = note.Open([]byte(signed), note.VerifierList())
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return "", fmt.Errorf("%w: not a signed note", ErrEvidence)
	}
	for _, w := range SidecarWitnesses(witnesses...) {
		key := w.(*cosignatureVerifier)
		witnessKey = cosignatureVerifierKey(key.name, key.key)
		instance, sidecar, pub, err := evidenceSigner(witnessKey)
		if err != nil {
			return "", err
		}
		name := evidenceName(instance, sidecar)
		for _, sig := range unverified.Note.UnverifiedSigs {
			if sig.Name == name && sig.Hash == keyHash(name, evidencePublic(pub)) {
				return witnessKey, nil
			}
		}
	}
	return "", ErrEvidenceKey
}

// SidecarWitnesses returns those of witnesses that are keys of a sidecar, by their names. Only they make evidence.
func SidecarWitnesses(witnesses ...note.Verifier) []note.Verifier {
	var out []note.Verifier
	for _, w := range witnesses {
		if key, ok := w.(*cosignatureVerifier); ok && strings.Contains(key.name, witnessRole) {
			out = append(out, w)
		}
	}
	return out
}

// witnessRole stands between instance and sidecar in the name of a sidecar's witness key.
const witnessRole = "/witness/"

// SignEvidence makes evidence of e with the key whose verifier key, as a witness key, is given. sign returns the
// Ed25519 signature over what it is given.
func SignEvidence(e KeyEvidence, witnessKey string, sign func(message []byte) ([]byte, error)) ([]byte, error) {
	instance, sidecar, pub, err := evidenceSigner(witnessKey)
	if err != nil {
		return nil, err
	}
	if e.Instance != instance || e.Sidecar != sidecar {
		return nil, fmt.Errorf("%w: it is of another sidecar than its key", ErrEvidence)
	}
	text, err := FormatEvidence(e)
	if err != nil {
		return nil, err
	}
	n, err := note.Sign(&note.Note{Text: string(text)}, evidenceNoteSigner{evidenceName(instance, sidecar), pub, sign})
	if err != nil {
		return nil, fmt.Errorf("signing evidence: %w", err)
	}
	return n, nil
}

// evidenceNoteSigner signs with a key that somebody else holds.
type evidenceNoteSigner struct {
	name string
	pub  ed25519.PublicKey
	sign func([]byte) ([]byte, error)
}

var _ note.Signer = evidenceNoteSigner{}

func (s evidenceNoteSigner) Name() string                    { return s.name }
func (s evidenceNoteSigner) KeyHash() uint32                 { return keyHash(s.name, evidencePublic(s.pub)) }
func (s evidenceNoteSigner) Sign(msg []byte) ([]byte, error) { return s.sign(msg) }
