package keyring

import "context"

// KEK is a key-encryption key held outside this process, or at least outside this package.
//
// Implementations run the suite test/conformance.KEK. All methods may be called from any goroutine and
// return soon after ctx ends.
type KEK interface {
	// Name is the kind of the KEK, "hcvault" or "localkek": 1 to 255 bytes that never change, since they
	// are stored with every wrapped bundle.
	Name() string
	// Wrap encrypts each item under its context. Results are in the order of items; an item that fails
	// has its own error and does not harm the others. The error is for the call as a whole; then nothing
	// is known about any item. Both are of the sentinels of package keys; empty Data and an empty Context
	// fail with keys.ErrInvalid. Context and Data are not kept and not changed.
	Wrap(ctx context.Context, items []KEKItem) ([]KEKResult, error)
	// Unwrap is the inverse of Wrap. An item fails with keys.ErrTampered when its data was changed or was
	// wrapped under another context, keys.ErrKEKRetired when its version of the key is no longer allowed,
	// keys.ErrKEKMissing when the key, or that version of it, does not exist. The caller owns the results and wipes them.
	Unwrap(ctx context.Context, items []KEKItem) ([]KEKResult, error)
	// Rewrap wraps what Wrap gave again, under the newest version of the key and the same context; nothing is
	// unwrapped outside of the KEK. Items fail as those of Unwrap do.
	Rewrap(ctx context.Context, items []KEKItem) ([]KEKResult, error)
	// Version tells which version of the key has wrapped data, at least 1, from its form alone. It fails with
	// keys.ErrTampered.
	Version(wrapped []byte) (uint64, error)
	// Ready does a real wrap and unwrap, and reports why it cannot.
	Ready(ctx context.Context) error
}

// Epochs is the part of a KEK that begins and ends versions of its key. It is used during an epoch only, and
// may need more rights than the rest.
//
// Implementations run the suite test/conformance.Epochs. Errors are of the sentinels of package keys. Calls do
// not overlap, but for Versions.
type Epochs interface {
	// Versions tells which versions there are.
	Versions(ctx context.Context) (KEKVersions, error)
	// Rotate makes a new newest version, if the newest is from, and returns the newest. So it may be called again
	// after an error, which leaves open whether it was done. When the newest is before from, the key was put
	// back to an older state: that is keys.ErrKEKMissing.
	Rotate(ctx context.Context, from uint64) (newest uint64, err error)
	// Retire destroys every version before oldest, for good: nothing wrapped under one of them can be unwrapped
	// or rewrapped any more, whatever copy of it there is. It may be called again, and never brings a version
	// back. The newest version cannot be destroyed: an oldest after it is keys.ErrInvalid.
	Retire(ctx context.Context, oldest uint64) error
	// End gives up the rights that the other methods took, if any. They take them again when they are called.
	End(ctx context.Context)
}

// KEKVersions is the state of a KEK's key.
type KEKVersions struct {
	Newest  uint64 // wraps
	Oldest  uint64 // the oldest that can still unwrap
	Minimum uint64 // the oldest that is not destroyed; Oldest, unless a retirement was interrupted
}

// KEKItem is one thing to wrap or unwrap. The context is bound: the same must be given to unwrap.
type KEKItem struct {
	Context []byte
	Data    Secret
}

// KEKResult is the outcome of one item: Data, or Err and no data.
type KEKResult struct {
	Data Secret
	Err  error
}
