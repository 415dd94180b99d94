package policy

import (
	"errors"
	"fmt"
)

var (
	// ErrBundle is returned by Parse and LoadDir for a bundle that is not taken. Every such error is a
	// *BundleError.
	ErrBundle = errors.New("policy: invalid bundle")
	// ErrNotCovered is returned by Covers for an access that the bundle would not have permitted.
	ErrNotCovered = errors.New("policy: access is not covered by the bundle")
)

// BundleError says which member of a bundle is wrong, and why.
type BundleError struct {
	Path   string // such as purposes[2].fields.profile; empty for the whole
	Reason string
	Err    error // the cause, when another package found it
}

func (e *BundleError) Error() string {
	at := e.Path
	if at == "" {
		at = "bundle"
	}
	if e.Err != nil {
		return fmt.Sprintf("%v: %s: %s: %v", ErrBundle, at, e.Reason, e.Err)
	}
	return fmt.Sprintf("%v: %s: %s", ErrBundle, at, e.Reason)
}

// Is makes every BundleError an ErrBundle.
func (e *BundleError) Is(target error) bool { return target == ErrBundle }

// Unwrap returns the cause.
func (e *BundleError) Unwrap() error { return e.Err }

// bad makes a BundleError. The path is a format of literals, indices and names from the bundle.
func bad(reason, path string, args ...any) error {
	return &BundleError{Path: fmt.Sprintf(path, args...), Reason: reason}
}
