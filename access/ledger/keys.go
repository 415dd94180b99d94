package ledger

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Key is a key of the ledger. Its name is the origin.
type Key struct {
	Signer   note.Signer
	Verifier note.Verifier // of the same key
}

// validate signs the empty checkpoint: it is consistent with every log, so that shows that the two halves belong
// together and commits us to nothing.
func (k Key) validate(origin string) error {
	if k.Signer == nil || k.Verifier == nil {
		return errors.New("a key needs its signer and its verifier")
	}
	if k.Signer.Name() != origin {
		return errors.New("the ledger key must be named after the origin")
	}
	signed, err := sign([]Key{k}, verify.EmptyCheckpoint(origin))
	if err == nil {
		_, _, err = verify.OpenCheckpoint(signed, origin, k.Verifier)
	}
	return err
}

// sign returns the signed note of cp, with a signature by each of keys. The witness verifies it before anything
// rests on it.
func sign(keys []Key, cp verify.Checkpoint) ([]byte, error) {
	signed, err := signText(keys, string(cp.Format()))
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	return signed, nil
}

func signText(keys []Key, text string) ([]byte, error) {
	signers := make([]note.Signer, len(keys))
	for i, k := range keys {
		signers[i] = k.Signer
	}
	return note.Sign(&note.Note{Text: text}, signers...)
}

// Sign returns the signed note of text, with a signature by each key that signs checkpoints now. It is for what the
// ledger vouches for beside its entries, such as the manifest of a backup; a text that is a checkpoint is refused.
func (l *Ledger) Sign(text string) ([]byte, error) {
	if _, err := verify.ParseCheckpoint([]byte(text)); err == nil {
		return nil, errors.New("ledger: signing a note: it is a checkpoint")
	}
	signed, err := signText(*l.keys.Load(), text)
	if err != nil {
		return nil, fmt.Errorf("ledger: signing a note: %w", err)
	}
	return signed, nil
}

// openCheckpoint verifies a signed checkpoint by any one of keys.
func openCheckpoint(keys []Key, signed []byte, origin string) (cp verify.Checkpoint, err error) {
	for _, k := range keys {
		if cp, _, err = verify.OpenCheckpoint(signed, origin, k.Verifier); err == nil {
			return cp, nil
		}
	}
	return cp, err
}

// AddSigner makes every checkpoint from the next on carry a signature by k too, above those by the keys before. A
// key that signs already stays where it is.
func (l *Ledger) AddSigner(k Key) error {
	if err := k.validate(l.cfg.Origin); err != nil {
		return fmt.Errorf("ledger: adding a key: %w", err)
	}
	for {
		before := l.keys.Load()
		if slices.ContainsFunc(*before, func(have Key) bool { return have.Verifier.KeyHash() == k.Verifier.KeyHash() }) {
			return nil
		}
		after := append([]Key{k}, *before...)
		if l.keys.CompareAndSwap(before, &after) {
			return nil
		}
	}
}

// DropSigner makes checkpoints from the next on carry no signature by the key with the given hash any more. The last
// key is refused; a key that does not sign gives nil.
func (l *Ledger) DropSigner(hash uint32) error {
	for {
		before := l.keys.Load()
		after := slices.DeleteFunc(slices.Clone(*before), func(k Key) bool { return k.Verifier.KeyHash() == hash })
		if len(after) == 0 {
			return errors.New("ledger: dropping a key: it is the only one")
		}
		if l.keys.CompareAndSwap(before, &after) {
			return nil
		}
	}
}
