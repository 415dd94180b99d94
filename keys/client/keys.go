package client

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
)

// The shapes of what concerns the keys themselves. Like those above they are aliases, so that another package
// may declare the same.
type (
	// ResealSubject is what to seal again for one subject.
	ResealSubject = struct {
		Subject uuid.UUID
		Items   []ResealItem
	}
	// ResealItem is one ciphertext of the subject. Kind is 0 for a field, 1 for an index value, 2 for a detail
	// or a capture.
	ResealItem = struct {
		Kind              int
		Collection, Field string
		Version           uint64
		Normaliser        uint32
		Ciphertext        []byte
	}
	// ResealedSubject is the outcome: Ref and Ciphertexts, nil where nothing changed, or Err.
	ResealedSubject = struct {
		Err         error
		Ref         []byte
		Ciphertexts [][]byte
	}
	// ReindexSubject is sealed index values of one subject.
	ReindexSubject = struct {
		Subject uuid.UUID
		Values  []ReindexValue
	}
	// ReindexValue is one sealed index value.
	ReindexValue = struct {
		Collection, Field string
		Normaliser        uint32
		Sealed            []byte
	}
	// ReindexedSubject is the outcome: Ref and the tokens of each value, or Err.
	ReindexedSubject = struct {
		Err    error
		Ref    []byte
		Tokens [][]IndexToken
	}
	// Destroyed is what became of a subject's bundle.
	Destroyed = struct {
		Generation uint64
		KEKVersion uint64
		DeadBy     time.Time // by which the epoch is due that kills older copies; zero: none is planned
		Already    bool      // it was destroyed before
	}
	// Job is a rotation.
	Job = struct {
		ID, Scope                  string
		Subject                    uuid.UUID // zero: none
		By, State, Phase           string
		Done, Total                int64
		Started, Updated, Finished time.Time
		Target                     uint64
		Failure                    string
		Evidence                   string
		Recorded                   int64
	}
	// JobProgress is what the driver of a job reports. Recorded is -1 when unchanged.
	JobProgress = struct {
		Phase       string
		Done, Total int64
		Finish      bool
		Failure     string
		Recorded    int64
	}
	// KeyVersion counts what is on one version of one kind of key.
	KeyVersion = struct {
		Kind    string
		Version uint64
		Newest  bool
		Count   int64
		Made    time.Time
	}
	// Inventory is every version in use.
	Inventory = struct {
		KEK                 string
		Generation          uint64
		Versions            []KeyVersion
		Subjects, Destroyed int64
		Counted             time.Time
		NextEpoch           time.Time
		EpochInterval       time.Duration
	}
)

var errNotBuilt = errors.New("client: not built")

// Destroy destroys the bundle of subject on the strength of the subject.erased entry at index.
func (c *Client) Destroy(ctx context.Context, index int64, entry []byte, subject uuid.UUID) (Destroyed, error) {
	return Destroyed{}, errNotBuilt
}

// Reseal gives subjects keys of at least the rotation and seals what they have again.
func (c *Client) Reseal(ctx context.Context, rotation uint32, subjects []ResealSubject) ([]ResealedSubject, error) {
	return nil, errNotBuilt
}

// Retire drops the keys of subjects that a rotation has replaced.
func (c *Client) Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error) {
	return nil, errNotBuilt
}

// Reindex computes tokens of sealed index values, under each index key in use.
func (c *Client) Reindex(ctx context.Context, subjects []ReindexSubject) ([]ReindexedSubject, error) {
	return nil, errNotBuilt
}

// Inventory counts every version in use.
func (c *Client) Inventory(ctx context.Context) (Inventory, error) { return Inventory{}, errNotBuilt }

// StartJob begins a rotation.
func (c *Client) StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (Job, error) {
	return Job{}, errNotBuilt
}

// Jobs lists rotations, the newest first.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) { return nil, errNotBuilt }

// AdvanceJob reports what was done of a job that the caller drives.
func (c *Client) AdvanceJob(ctx context.Context, id string, p JobProgress) (Job, error) {
	return Job{}, errNotBuilt
}

// RotateLedger makes the sidecar take newKey as the ledger's newest key, and drop the key drop if it is not
// empty. note is the newest checkpoint, signed by the bound key and by newKey.
func (c *Client) RotateLedger(ctx context.Context, note []byte, size int64, newKey, drop string) error {
	return errNotBuilt
}
