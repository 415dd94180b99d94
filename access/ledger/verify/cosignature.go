package verify

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// algCosignature is the key type of Ed25519 cosignatures in C2SP signed-note: keys of a witness can never
// be taken for those of a ledger (0x01), even under the same name.
const algCosignature = 0x04

// A cosignature is 8 bytes of Unix time, big endian, and the Ed25519 signature.
const cosignatureSize = 8 + ed25519.SignatureSize

// ErrCosignature is returned for a witness key or a cosignature that is malformed.
var ErrCosignature = errors.New("verify: malformed witness key or cosignature")

// Cosigner makes cosignatures of checkpoints (C2SP tlog-cosignature v1). Each says: as of this time, this
// is the largest consistent tree of this origin that the witness has seen.
type Cosigner struct {
	name string
	key  ed25519.PrivateKey
}

// GenerateCosignerKey makes a new witness key: the seed to keep secret and the verifier key to hand out.
func GenerateCosignerKey(rand io.Reader, name string) (seed []byte, vkey string, err error) {
	seed = make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, "", fmt.Errorf("generating a witness key: %w", err)
	}
	c, err := NewCosigner(name, seed)
	if err != nil {
		return nil, "", err
	}
	return seed, c.VerifierKey(), nil
}

// NewCosigner returns the cosigner of the given name and Ed25519 seed (32 bytes).
func NewCosigner(name string, seed []byte) (*Cosigner, error) {
	if checkOrigin(name) != nil {
		return nil, fmt.Errorf("%w: bad name", ErrCosignature)
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: bad seed", ErrCosignature)
	}
	return &Cosigner{name: name, key: ed25519.NewKeyFromSeed(seed)}, nil
}

// Name returns the name of the key.
func (c *Cosigner) Name() string { return c.name }

// VerifierKey returns the public key in vkey form, for [NewCosignatureVerifier].
func (c *Cosigner) VerifierKey() string {
	return cosignatureVerifierKey(c.name, c.key.Public().(ed25519.PublicKey))
}

func cosignatureVerifierKey(name string, pub ed25519.PublicKey) string {
	key := cosignatureKey(pub)
	return fmt.Sprintf("%s+%08x+%s", name, keyHash(name, key), base64.StdEncoding.EncodeToString(key))
}

// At returns a signer whose cosignatures carry the time t.
func (c *Cosigner) At(t time.Time) note.Signer { return cosignerAt{c, t.Unix()} }

// Line returns the note signature line of c over a checkpoint, ending in a newline. Appended to the signed
// checkpoint it makes the cosigned one.
func (c *Cosigner) Line(cp Checkpoint, t time.Time) ([]byte, error) {
	s := c.At(t)
	sig, err := s.Sign(cp.Format())
	if err != nil {
		return nil, err
	}
	raw := binary.BigEndian.AppendUint32(nil, s.KeyHash())
	return fmt.Appendf(nil, "— %s %s\n", c.name, base64.StdEncoding.EncodeToString(append(raw, sig...))), nil
}

type cosignerAt struct {
	*Cosigner
	unix int64
}

var _ note.Signer = cosignerAt{}

func (c cosignerAt) KeyHash() uint32 {
	return keyHash(c.name, cosignatureKey(c.key.Public().(ed25519.PublicKey)))
}

func (c cosignerAt) Sign(msg []byte) ([]byte, error) {
	if c.unix < 0 {
		return nil, fmt.Errorf("%w: time before 1970", ErrCosignature)
	}
	sig := binary.BigEndian.AppendUint64(nil, uint64(c.unix))
	return append(sig, ed25519.Sign(c.key, cosignedMessage(c.unix, msg))...), nil
}

type cosignatureVerifier struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

var _ note.Verifier = (*cosignatureVerifier)(nil)

// NewCosignatureVerifier returns the verifier of a witness key: <name>+<hash>+<base64 of 0x04 and the key>.
func NewCosignatureVerifier(vkey string) (note.Verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash16, key64, _ := strings.Cut(rest, "+")
	hash, err1 := strconv.ParseUint(hash16, 16, 32)
	key, err2 := decodeBase64(key64)
	if err1 != nil || err2 != nil || len(hash16) != 8 || checkOrigin(name) != nil {
		return nil, fmt.Errorf("%w: not a verifier key", ErrCosignature)
	}
	if len(key) != 1+ed25519.PublicKeySize || key[0] != algCosignature {
		return nil, fmt.Errorf("%w: not an Ed25519 cosignature key", ErrCosignature)
	}
	if uint32(hash) != keyHash(name, key) {
		return nil, fmt.Errorf("%w: hash does not match the key", ErrCosignature)
	}
	return &cosignatureVerifier{name: name, hash: uint32(hash), key: ed25519.PublicKey(key[1:])}, nil
}

func (v *cosignatureVerifier) Name() string    { return v.name }
func (v *cosignatureVerifier) KeyHash() uint32 { return v.hash }

func (v *cosignatureVerifier) Verify(msg, sig []byte) bool {
	if len(sig) != cosignatureSize {
		return false
	}
	unix := binary.BigEndian.Uint64(sig)
	if unix > math.MaxInt64 {
		return false
	}
	return ed25519.Verify(v.key, cosignedMessage(int64(unix), msg), sig[8:])
}

// Cosignature is a verified cosignature: who and when.
type Cosignature struct {
	Name string    `json:"name"`
	Time time.Time `json:"time"`
	Key  uint32    `json:"-"` // id of the key: a witness that is changing its key signs with each of two
}

// Cosignatures returns the cosignatures on n, as opened by [OpenCheckpoint], by different ones of the
// witnesses given. Its length is what a quorum counts. A witness is known by its name: several keys of one name
// are those that it has had, and count once.
func Cosignatures(n *note.Note, witnesses ...note.Verifier) []Cosignature {
	var out []Cosignature
	seen := make(map[string]bool)
	for _, w := range witnesses {
		for _, sig := range n.Sigs {
			if sig.Name != w.Name() || sig.Hash != w.KeyHash() || seen[sig.Name] {
				continue
			}
			t, err := CosignatureTime(sig)
			if err != nil {
				continue // a key of another type signed; it is no cosignature
			}
			seen[sig.Name] = true
			out = append(out, Cosignature{Name: sig.Name, Time: t, Key: sig.Hash})
		}
	}
	return out
}

// CosignatureTime returns the time that a cosignature carries. It does not verify the signature.
func CosignatureTime(sig note.Signature) (time.Time, error) {
	raw, err := decodeBase64(sig.Base64)
	if err != nil || len(raw) != 4+cosignatureSize {
		return time.Time{}, fmt.Errorf("%w: not a cosignature", ErrCosignature)
	}
	unix := binary.BigEndian.Uint64(raw[4:])
	if unix > math.MaxInt64 {
		return time.Time{}, fmt.Errorf("%w: time out of range", ErrCosignature)
	}
	return time.Unix(int64(unix), 0).UTC(), nil
}

// VerifyCosignatureLine checks one signature line over cp, as [Cosigner.Line] makes it, by one of the
// witnesses, and returns which one it was.
func VerifyCosignatureLine(line []byte, cp Checkpoint, witnesses ...note.Verifier) (Cosignature, error) {
	// The line alone after the body is a complete note, so the one strict parser there is reads it.
	if bytes.Count(line, []byte("\n")) != 1 {
		return Cosignature{}, fmt.Errorf("%w: not one line", ErrCosignature)
	}
	signed := append(append(cp.Format(), '\n'), line...)
	n, err := note.Open(signed, note.VerifierList(witnesses...))
	if err != nil {
		return Cosignature{}, fmt.Errorf("%w: %w", ErrCosignature, err)
	}
	cosigs := Cosignatures(n, witnesses...)
	if n.Text != string(cp.Format()) || len(cosigs) != 1 {
		return Cosignature{}, fmt.Errorf("%w: not of a known witness", ErrCosignature)
	}
	return cosigs[0], nil
}

func cosignatureKey(pub ed25519.PublicKey) []byte { return append([]byte{algCosignature}, pub...) }

func cosignedMessage(unix int64, body []byte) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", unix), body...)
}

// keyHash is the key id of C2SP signed-note.
func keyHash(name string, key []byte) uint32 {
	sum := sha256.Sum256(append([]byte(name+"\n"), key...))
	return binary.BigEndian.Uint32(sum[:])
}
