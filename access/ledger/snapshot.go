package ledger

import (
	"bytes"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// defaultPrefix is that of a Config without one.
const defaultPrefix = "l/"

// CheckpointKey is the key of the newest checkpoint's row, for who copies a store whose ledger has no prefix of
// its own.
func CheckpointKey() []byte { return rows{[]byte(defaultPrefix)}.checkpoint() }

// StoredCheckpoint decodes the row under CheckpointKey. Its signature is not verified; Open does that.
func StoredCheckpoint(row []byte) (Signed, error) {
	if row == nil {
		return Signed{}, ErrNoLedger
	}
	body, _, ok := bytes.Cut(row, []byte("\n\n"))
	cp, err := verify.ParseCheckpoint(append(bytes.Clone(body), '\n'))
	if !ok || err != nil {
		return Signed{}, damaged("the stored checkpoint is malformed")
	}
	return Signed{Note: row, Checkpoint: cp}, nil
}
