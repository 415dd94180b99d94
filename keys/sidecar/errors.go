package sidecar

import (
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that wipingCodec wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Reasons that the gate itself gives; those of the access record's own checks come from package verify
// (RefusalCode). They are stable, and the only words about a refusal that leave the process.
const (
	whyNotBound      = "not-bound"      // no ledger was bound yet
	whyOtherLedger   = "other-ledger"   // bound to another one
	whyCheckpoint    = "checkpoint"     // malformed, of another origin, or not signed by the ledger key
	whyForked        = "forked"         // another root at the witnessed size
	whyInconsistent  = "inconsistent"   // does not extend what was witnessed
	whyNotIncluded   = "not-included"   // entry is not in the ledger at its index
	whyEntry         = "bad-entry"      // not one well-formed entry
	whyFuture        = "from-future"    // record is ahead of the clock
	whySubject       = "other-subject"  // record names another subject
	whyServed        = "served-before"  // record was served
	whyBeforeRestart = "before-restart" // record may have been served before this process began
	whyMessage       = "bad-message"    // malformed or over a limit
	whyNotSaved      = "not-saved"      // the checkpoint could not be kept
	whyBudget        = "budget"         // caller, or all together, have opened enough
	whyNotErased     = "not-erased"     // entry is not of an erasure
	whySigners       = "signers"        // checkpoint lacks a signature that a change of ledger keys needs
	whyNotRotated    = "not-rotated"    // the ledger's key is what it was before the job
	whyNoRotation    = "no-rotation"    // no rotation of these keys is under way
	whyNoBackup      = "no-backup"      // this sidecar makes none
	whyInternal      = "internal"
)

var errShape = errors.New("sidecar: keyring gave another number of results")

// refused is an outcome with the check that gave it.
type refused struct {
	err error
	why string
}

func (r *refused) Error() string { return r.err.Error() + " (" + r.why + ")" }
func (r *refused) Unwrap() error { return r.err }

func refuse(err error, why string) error { return &refused{err, why} }

// whyOf returns the check that gave err, "unavailable" and the like when it was none of the gate's.
func whyOf(err error) string {
	var r *refused
	if errors.As(err, &r) {
		return r.why
	}
	return whyOfCode(keys.CodeOf(err))
}

// whyOfCode names the outcomes that need no further reason.
func whyOfCode(code keyspb.Code) string {
	switch code {
	case keyspb.Code_UNAVAILABLE:
		return "unavailable"
	case keyspb.Code_DAMAGED:
		return "damaged"
	case keyspb.Code_SEALED:
		return "sealed"
	case keyspb.Code_FORBIDDEN:
		return "forbidden"
	case keyspb.Code_NO_KEY:
		return "no-key"
	case keyspb.Code_DESTROYED:
		return "destroyed"
	case keyspb.Code_TAMPERED:
		return "tampered"
	case keyspb.Code_KEK_MISSING:
		return "kek-missing"
	case keyspb.Code_KEK_RETIRED:
		return "kek-retired"
	case keyspb.Code_PROOF_REFUSED:
		return "proof-refused"
	case keyspb.Code_REPLAYED:
		return whyServed
	case keyspb.Code_CLOCK:
		return "clock"
	case keyspb.Code_INVALID:
		return whyMessage
	case keyspb.Code_KEY_EXISTS:
		return "key-exists"
	case keyspb.Code_BUDGET:
		return whyBudget
	case keyspb.Code_JOB_RUNNING:
		return "job-running"
	case keyspb.Code_NO_JOB:
		return "no-job"
	case keyspb.Code_TOO_MANY_KEYS:
		return "too-many-keys"
	default:
		return whyInternal
	}
}

// failure is the error of a whole call: a status whose detail is an OpenedItem with code and reason, and
// whose text says no more than these.
func failure(code keyspb.Code, why string) error {
	if why == "" {
		why = whyOfCode(code)
	}
	class := codes.FailedPrecondition
	switch code {
	case keyspb.Code_UNAVAILABLE, keyspb.Code_SEALED, keyspb.Code_FORBIDDEN:
		class = codes.Unavailable
	case keyspb.Code_DAMAGED:
		class = codes.DataLoss
	case keyspb.Code_INVALID:
		class = codes.InvalidArgument
	case keyspb.Code_PROOF_REFUSED, keyspb.Code_REPLAYED, keyspb.Code_CLOCK:
		class = codes.PermissionDenied
	case keyspb.Code_BUDGET:
		class = codes.ResourceExhausted
	}
	st := status.New(class, why)
	if with, err := st.WithDetails(&keyspb.OpenedItem{Code: code, Why: why}); err == nil {
		st = with
	}
	return st.Err()
}

// wipingCodec is the usual codec, which also overwrites plaintext once it is encoded. The encoded form
// lives in the transport's buffers for as long as these do.
type wipingCodec struct{}

func (wipingCodec) Name() string { return "proto" }

func (wipingCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, err := encoding.GetCodecV2("proto").Marshal(v)
	if r, ok := v.(*keyspb.OpenResponse); ok {
		for _, item := range r.Items {
			for _, f := range item.GetFields() {
				clear(f.Plaintext)
			}
		}
	}
	return data, err
}

func (wipingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return encoding.GetCodecV2("proto").Unmarshal(data, v)
}
