package access

import (
	"context"
	"errors"

	"github.com/google/uuid"
)

// ErrErasurePending is returned when an erasure is on record and its key is not destroyed yet. It will be
// finished without being asked for again. The error may be an *ErasurePendingError.
var ErrErasurePending = errors.New("access: erasure is recorded and will be finished")

// ErasurePendingError names the erasure that is to be finished. It wraps ErrErasurePending.
type ErasurePendingError struct {
	ID     uuid.UUID // of the certificate that there will be
	Record int64     // index of the subject.erased entry
}

func (e *ErasurePendingError) Error() string { return ErrErasurePending.Error() }

// Unwrap returns ErrErasurePending.
func (e *ErasurePendingError) Unwrap() error { return ErrErasurePending }

// EraseRequest erases a subject.
type EraseRequest struct {
	Request
	Subject uuid.UUID
	Reason  string // code, one of a closed set; it goes into the ledger
}

// Erased is a finished erasure.
type Erased struct {
	ID          uuid.UUID // of the certificate
	Record      int64     // index of the subject.erased entry
	Final       bool      // false: copies in backups are not dead yet
	Certificate []byte    // JSON document
	Act         []byte    // printable HTML
}

var errNotBuilt = errors.New("access: not built")

// Erase erases a subject.
func (b *Broker) Erase(context.Context, EraseRequest) (Erased, error) { return Erased{}, errNotBuilt }

// Erasure returns a finished erasure by the id of its certificate.
func (b *Broker) Erasure(context.Context, Request, uuid.UUID) (Erased, error) {
	return Erased{}, errNotBuilt
}
