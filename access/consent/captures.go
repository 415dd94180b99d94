package consent

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
)

// Capture is how a consent was captured, sealed under its subject's key.
type Capture struct {
	Consent uuid.UUID
	Sealed  []byte
}

// Captures reads the sealed captures of the list's consents, in its order. Consents without one are left out.
func (l *List) Captures(r kv.Reader) ([]Capture, error) {
	if len(l.Consents) == 0 {
		return nil, nil
	}
	keys := make([][]byte, len(l.Consents))
	for i, c := range l.Consents {
		keys[i] = captureKey(c.ID)
	}
	values, err := r.Get(keys...)
	if err != nil {
		return nil, fmt.Errorf("reading captures: %w", err)
	}
	var captures []Capture
	for i, v := range values {
		if v != nil {
			captures = append(captures, Capture{l.Consents[i].ID, v})
		}
	}
	return captures, nil
}

// Replace adds to change that sealed, the same capture sealed again, takes the place of c.
func (c Capture) Replace(change *kv.Change, sealed []byte) {
	change.Expect(captureKey(c.Consent), c.Sealed, ErrStale)
	change.Set(captureKey(c.Consent), sealed)
}
