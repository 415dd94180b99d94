package verify

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// MaxAccessAge is how long after its time an access record may be served.
	MaxAccessAge = 60 * time.Second
	// MaxAccessSkew is how far ahead of the sidecar's clock the time of an access record may be.
	MaxAccessSkew = 5 * time.Second
)

// ErrRefused is the family of all reasons for which an access record does not allow an opening.
var ErrRefused = errors.New("verify: access record does not allow this")

// The reasons, each wrapping [ErrRefused]. [RefusalCode] gives their codes.
var (
	// ErrNotAccess is returned when the entry is of another kind than access.
	ErrNotAccess error = &refusal{"not-access", "entry is not an access record"}
	// ErrNotAllowed is returned when the record's decision is not allow.
	ErrNotAllowed error = &refusal{"not-allowed", "access was not allowed"}
	// ErrNoGround is returned when the record names no ground that exists, or no evidence for it.
	ErrNoGround error = &refusal{"no-ground", "access record names no valid ground"}
	// ErrTooOld is returned when the record is older than [MaxAccessAge].
	ErrTooOld error = &refusal{"too-old", "access record is too old"}
	// ErrFromFuture is returned when the record is more than [MaxAccessSkew] ahead of the clock.
	ErrFromFuture error = &refusal{"from-future", "access record is from the future"}
	// ErrOtherSidecar is returned when the record is meant for another sidecar.
	ErrOtherSidecar error = &refusal{"other-sidecar", "access record is for another sidecar"}
	// ErrOtherSubject is returned when the record names another subject, or none.
	ErrOtherSubject error = &refusal{"other-subject", "access record is about another subject"}
	// ErrOtherCollection is returned when the record names another collection.
	ErrOtherCollection error = &refusal{"other-collection", "access record is about another collection"}
	// ErrFieldNotListed is returned when a field is wanted that the record does not list, or none at all.
	ErrFieldNotListed error = &refusal{"field-not-listed", "field is not listed in the access record"}
	// ErrNotOpenable is returned when nothing may be opened in the record's mode: lookups, unknown modes.
	ErrNotOpenable error = &refusal{"not-openable", "nothing may be opened in this mode"}
	// ErrCompareOnly is returned when a value is wanted that the record's mode only allows to compare.
	ErrCompareOnly error = &refusal{"compare-only", "values may only be compared in this mode"}
)

type refusal struct{ code, text string }

func (r *refusal) Error() string { return "verify: " + r.text }
func (r *refusal) Unwrap() error { return ErrRefused }

// RefusalCode returns the stable code of a refusal, or "" when err is none.
func RefusalCode(err error) string {
	var r *refusal
	if errors.As(err, &r) {
		return r.code
	}
	return ""
}

// AccessRequest is what somebody wants to open, as known to the sidecar that is asked to.
type AccessRequest struct {
	Now        time.Time // the sidecar's clock
	Sidecar    string    // its own id
	SubjectRef []byte    // of the bundle that would open, 32 bytes
	Collection string
	Fields     []string
	Compare    bool // every value is only compared with one that is supplied
}

// Check returns nil when the entry is an access record that allows r, and otherwise one of the reasons
// above, wrapped. That the entry is in the log, and was not served before, is for the caller to check.
func (r AccessRequest) Check(e Entry) error {
	switch {
	case e.Kind != KindAccess:
		return ErrNotAccess
	case e.Decision != Allow:
		return ErrNotAllowed
	case e.Evidence == nil || !slices.Contains([]string{GroundConsent, GroundService, GroundLaw}, e.Ground):
		return ErrNoGround
	}
	if err := r.checkTime(e); err != nil {
		return err
	}
	switch {
	case r.Sidecar == "" || e.Sidecar != r.Sidecar:
		return ErrOtherSidecar
	case len(r.SubjectRef) != RefSize || e.SubjectRef != FormatRef(r.SubjectRef):
		return ErrOtherSubject
	case r.Collection == "" || e.Collection != r.Collection:
		return ErrOtherCollection
	case len(r.Fields) == 0:
		return ErrFieldNotListed
	}
	for _, f := range r.Fields {
		if !slices.Contains(e.Fields, f) {
			return ErrFieldNotListed
		}
	}
	switch e.Mode {
	case ModeReveal, ModeMask:
		return nil
	case ModeVerify:
		if !r.Compare {
			return ErrCompareOnly
		}
		return nil
	default:
		return ErrNotOpenable
	}
}

func (r AccessRequest) checkTime(e Entry) error {
	t, err := time.Parse(TimeLayout, e.Time)
	if err != nil {
		return fmt.Errorf("%w: time", ErrEntry)
	}
	switch age := r.Now.Sub(t); {
	case age > MaxAccessAge:
		return ErrTooOld
	case age < -MaxAccessSkew:
		return ErrFromFuture
	default:
		return nil
	}
}

// RefSize is the size of a subject reference in bytes.
const RefSize = 32

// FormatRef returns a subject reference as entries carry it: base64url without padding.
func FormatRef(ref []byte) string { return base64.RawURLEncoding.EncodeToString(ref) }

// ParseRef decodes a subject reference strictly.
func ParseRef(s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) != RefSize || FormatRef(b) != s {
		return nil, fmt.Errorf("%w: bad subject reference", ErrEntry)
	}
	return b, nil
}
