package sidecar

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// algCosignature is the key type of Ed25519 cosignatures (C2SP signed-note).
const algCosignature = 0x04

// cosigner makes cosignatures like verify.Cosigner, with a key that it does not hold itself.
type cosigner struct {
	name string
	hash uint32
	vkey string
	ring Keyring
}

// witnessName names the witness key of a sidecar.
func witnessName(instance, sidecar string) string { return instance + "/witness/" + sidecar }

func newCosigner(name string, ring Keyring) (*cosigner, error) {
	key := append([]byte{algCosignature}, ring.WitnessPublic()...)
	sum := sha256.Sum256(append([]byte(name+"\n"), key...))
	c := &cosigner{name: name, hash: binary.BigEndian.Uint32(sum[:]), ring: ring}
	c.vkey = fmt.Sprintf("%s+%08x+%s", name, c.hash, base64.StdEncoding.EncodeToString(key))
	if _, err := verify.NewCosignatureVerifier(c.vkey); err != nil {
		return nil, err
	}
	return c, nil
}

// line returns the note signature line over cp with the time t: C2SP cosignature/v1.
func (c *cosigner) line(cp verify.Checkpoint, t time.Time) ([]byte, error) {
	unix := t.Unix()
	if unix < 0 {
		return nil, fmt.Errorf("%w: time before 1970", verify.ErrCosignature)
	}
	sig, err := c.ring.WitnessSign(append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", unix), cp.Format()...))
	if err != nil {
		return nil, fmt.Errorf("cosigning: %w", err)
	}
	raw := binary.BigEndian.AppendUint32(nil, c.hash)
	raw = binary.BigEndian.AppendUint64(raw, uint64(unix))
	return fmt.Appendf(nil, "— %s %s\n", c.name, base64.StdEncoding.EncodeToString(append(raw, sig...))), nil
}
