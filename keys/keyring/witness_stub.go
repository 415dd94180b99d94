package keyring

import (
	"crypto/ed25519"

	"github.com/prototypster/pdvault/keys"
)

// WitnessKeys are the public halves of the witness keys, the newest first.
func (k *Keyring) WitnessKeys() []ed25519.PublicKey {
	if key := k.WitnessPublic(); key != nil {
		return []ed25519.PublicKey{key}
	}
	return nil
}

// WitnessSignWith signs message with the witness key that is the i-th in WitnessKeys.
func (k *Keyring) WitnessSignWith(i int, message []byte) ([]byte, error) {
	if i != 0 {
		return nil, keys.ErrInvalid
	}
	return k.WitnessSign(message)
}
