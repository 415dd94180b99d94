package keyring

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
)

// Scopes of rotations.
const (
	ScopeKEK         = "kek"          // an epoch: every bundle is wrapped under a new version of the KEK, older ones are destroyed
	ScopeSubject     = "subject"      // one subject's key
	ScopeAllSubjects = "all-subjects" // every subject's key
	ScopeIndex       = "index"        // the key of the blind index
	ScopeToken       = "token"        // the key of links; older ones go on verifying
	ScopeLedger      = "ledger"       // pdvault's signing key of the ledger
	ScopeWitness     = "witness"      // the sidecar's key; older ones go on cosigning for a while
)

// States of a job.
const (
	JobRunning = "running"
	JobDone    = "done"
	JobFailed  = "failed"
)

// Job is a rotation. Those of scope kek, token and witness are carried out by the keyring itself; the others by
// the process that holds what is to be sealed again, which reports with Advance.
type Job struct {
	ID       uuid.UUID // version 7
	Scope    string
	Subject  uuid.UUID // for ScopeSubject
	By       string    // who asked: id of a caller, "pdkeys", or "schedule"
	State    string
	Phase    string
	Done     int64
	Total    int64 // 0: not known yet
	Started  time.Time
	Updated  time.Time
	Finished time.Time // zero: not yet
	Target   uint64    // version that everything is brought to: of the KEK, a rotation, an index key, ...
	Failure  string    // code, when it failed
	Recorded int64     // index of the ledger entry that holds the evidence; -1: none yet
}

// Progress is what the driver of a job reports.
type Progress struct {
	Phase    string // empty: unchanged
	Done     int64
	Total    int64
	Finish   bool   // all is done: the keyring verifies what it can, or refuses with keys.ErrInvalid
	Failure  string // code of a failure that ends the job; empty: none
	Recorded int64  // -1: unchanged
}

// KeyVersion counts what is on one version of one kind of key.
type KeyVersion struct {
	Kind    string // kek, subject, index, token, service, witness
	Version uint64
	Newest  bool
	Count   int64
	Made    time.Time // zero: not known
}

// Inventory is every version in use.
type Inventory struct {
	Versions      []KeyVersion // by kind, the newest version first
	Subjects      int64        // bundles
	Destroyed     int64        // tombstones
	Counted       time.Time
	NextEpoch     time.Time     // by which the next epoch is due; zero: none is planned
	EpochInterval time.Duration // 0: none is planned
}

var errNotBuilt = errors.New("keyring: not built")

// StartJob begins a rotation.
func (k *Keyring) StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (Job, error) {
	return Job{}, errNotBuilt
}

// Jobs lists rotations, the newest first.
func (k *Keyring) Jobs(ctx context.Context) ([]Job, error) { return nil, errNotBuilt }

// AdvanceJob takes the report of a job's driver.
func (k *Keyring) AdvanceJob(ctx context.Context, id uuid.UUID, p Progress) (Job, error) {
	return Job{}, errNotBuilt
}

// Inventory counts every version in use.
func (k *Keyring) Inventory(ctx context.Context) (Inventory, error) { return Inventory{}, errNotBuilt }
