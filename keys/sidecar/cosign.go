package sidecar

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// algCosignature is the key type of Ed25519 cosignatures (C2SP signed-note).
const algCosignature = 0x04

var errNoWitnessKey = errors.New("sidecar: keyring has no witness key")

// cosigner makes cosignatures like verify.Cosigner, with keys that it does not hold itself. While the witness
// key is being changed there are several, and each of them signs.
type cosigner struct {
	name string
	ring Keyring
}

// witnessName names the witness keys of a sidecar.
func witnessName(instance, sidecar string) string { return instance + "/witness/" + sidecar }

func newCosigner(name string, ring Keyring) (*cosigner, error) {
	c := &cosigner{name: name, ring: ring}
	vkeys := c.vkeys()
	if len(vkeys) == 0 {
		return nil, errNoWitnessKey
	}
	for _, vkey := range vkeys {
		if _, err := verify.NewCosignatureVerifier(vkey); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// vkeys are the verifier keys of all keys that sign now, the newest first.
func (c *cosigner) vkeys() []string {
	var out []string
	for _, pub := range c.ring.WitnessKeys() {
		out = append(out, c.vkey(pub))
	}
	return out
}

func (c *cosigner) vkey(pub ed25519.PublicKey) string {
	key := append([]byte{algCosignature}, pub...)
	return fmt.Sprintf("%s+%08x+%s", c.name, c.hash(key), base64.StdEncoding.EncodeToString(key))
}

func (c *cosigner) hash(key []byte) uint32 {
	sum := sha256.Sum256(append([]byte(c.name+"\n"), key...))
	return binary.BigEndian.Uint32(sum[:])
}

// lines returns the note signature lines over cp with the time t, one for each of the keys: C2SP cosignature/v1.
func (c *cosigner) lines(cp verify.Checkpoint, t time.Time) (lines []byte, by []ed25519.PublicKey, err error) {
	unix := t.Unix()
	if unix < 0 {
		return nil, nil, fmt.Errorf("%w: time before 1970", verify.ErrCosignature)
	}
	message := append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", unix), cp.Format()...)
	sigs, by, err := c.sign(message, 0)
	if err != nil {
		return nil, nil, err
	}
	for i, sig := range sigs {
		raw := binary.BigEndian.AppendUint32(nil, c.hash(append([]byte{algCosignature}, by[i]...)))
		raw = binary.BigEndian.AppendUint64(raw, uint64(unix))
		lines = fmt.Appendf(lines, "— %s %s\n", c.name, base64.StdEncoding.EncodeToString(append(raw, sig...)))
	}
	return lines, by, nil
}

// sign signs message with the newest keys, at most most of them, or all when that is 0. The keys may change
// between asking which there are and signing with one; then all is done again.
func (c *cosigner) sign(message []byte, most int) (sigs [][]byte, by []ed25519.PublicKey, err error) {
	for range 3 {
		all := c.ring.WitnessKeys()
		if len(all) == 0 {
			return nil, nil, fmt.Errorf("cosigning: %w", errNoWitnessKey)
		}
		by, sigs = all, nil
		if most > 0 && most < len(by) {
			by = by[:most]
		}
		for i := range by {
			sig, e := c.ring.WitnessSignWith(i, message)
			if err = e; err != nil {
				break
			}
			sigs = append(sigs, sig)
		}
		if sameKeys(all, c.ring.WitnessKeys()) {
			break
		}
		err = errors.New("witness keys keep changing")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cosigning: %w", err)
	}
	return sigs, by, nil
}

func sameKeys(a, b []ed25519.PublicKey) bool {
	return slices.EqualFunc(a, b, func(x, y ed25519.PublicKey) bool { return bytes.Equal(x, y) })
}
