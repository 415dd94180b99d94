package conformance

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// Epochs runs one subtest for each sentence of the contract of keyring.Epochs. open gives a KEK that is ready, of a
// key of its own, and what begins and ends versions of it.
func Epochs(t *testing.T, open func(t testing.TB) (keyring.KEK, keyring.Epochs)) {
	for _, c := range epochCases {
		t.Run(c.sentence, func(t *testing.T) {
			kek, epochs := open(t)
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			c.run(&testedEpochs{&testedKEK{t, kek}, epochs, ctx})
		})
	}
}

// testedEpochs adds to a KEK and its Epochs what the cases share.
type testedEpochs struct {
	*testedKEK
	keyring.Epochs
	ctx context.Context
}

// version is that which has wrapped item.
func (e *testedEpochs) version(item keyring.KEKItem) uint64 {
	e.t.Helper()
	v, err := e.Version(item.Data)
	if err != nil {
		e.t.Error(err)
	}
	return v
}

func (e *testedEpochs) rotate(from, want uint64) {
	e.t.Helper()
	if newest, err := e.Rotate(e.ctx, from); err != nil || newest != want {
		e.t.Fatalf("rotating from %d gave %d, %v, want %d", from, newest, err, want)
	}
}

func (e *testedEpochs) retire(oldest uint64) {
	e.t.Helper()
	if err := e.Retire(e.ctx, oldest); err != nil {
		e.t.Fatalf("retiring before %d: %v", oldest, err)
	}
}

func (e *testedEpochs) wantVersions(newest, oldest, minimum uint64) {
	e.t.Helper()
	if v, err := e.Versions(e.ctx); err != nil || v != (keyring.KEKVersions{Newest: newest, Oldest: oldest, Minimum: minimum}) {
		e.t.Errorf("versions are %+v, %v", v, err)
	}
}

func (e *testedEpochs) wantRewrapError(item keyring.KEKItem, want error) {
	e.t.Helper()
	if r := e.call(e.Rewrap, item)[0]; !errors.Is(r.Err, want) {
		e.t.Errorf("wrapping again gave error %v, want %v", r.Err, want)
	}
}

type epochCase struct {
	sentence string
	run      func(e *testedEpochs)
}

var epochCases = []epochCase{
	{"Versions tells which versions there are", func(e *testedEpochs) {
		e.wantVersions(1, 1, 1)
		e.rotate(1, 2)
		e.wantVersions(2, 1, 1)
		e.retire(2)
		e.wantVersions(2, 2, 2)
	}},
	{"Rotate makes a new newest version, which wraps", func(e *testedEpochs) {
		old := e.mustWrap("a", "old")
		e.rotate(1, 2)
		recent := e.mustWrap("a", "recent")
		if o, r := e.version(old), e.version(recent); o != 1 || r != 2 {
			e.t.Errorf("versions are %d and %d", o, r)
		}
		e.wantUnwrapped(old, "old")
		e.wantUnwrapped(recent, "recent")
	}},
	{"Rotate may be called again and rotates once", func(e *testedEpochs) {
		e.rotate(1, 2)
		e.rotate(1, 2)
		e.wantVersions(2, 1, 1)
	}},
	{"Rotate fails with ErrKEKMissing when the newest is before from", func(e *testedEpochs) {
		if newest, err := e.Rotate(e.ctx, 2); !errors.Is(err, keys.ErrKEKMissing) || newest != 0 {
			e.t.Errorf("it gave %d, %v", newest, err)
		}
		e.wantVersions(1, 1, 1)
	}},
	{"Rewrap wraps under the newest version", func(e *testedEpochs) {
		old := e.mustWrap("a", "data")
		e.rotate(1, 2)
		again := e.mustRewrap(old)
		if v := e.version(again); v != 2 {
			e.t.Errorf("version is %d", v)
		}
		e.wantUnwrapped(again, "data")
	}},
	{"Retire destroys every version before oldest", func(e *testedEpochs) {
		first := e.mustWrap("a", "first")
		e.rotate(1, 2)
		second := e.mustWrap("a", "second")
		again := e.mustRewrap(first)
		e.rotate(2, 3)
		third := e.mustWrap("a", "third")
		e.retire(2)
		e.wantUnwrapError(first, keys.ErrKEKRetired)
		e.wantRewrapError(first, keys.ErrKEKRetired)
		e.wantUnwrapped(second, "second")
		e.wantUnwrapped(again, "first")
		e.wantUnwrapped(third, "third")
		e.retire(3)
		e.wantUnwrapError(second, keys.ErrKEKRetired)
		e.wantUnwrapped(third, "third")
		e.wantVersions(3, 3, 3)
	}},
	{"Retire may be called again and brings no version back", func(e *testedEpochs) {
		e.rotate(1, 2)
		old := e.mustWrap("a", "data")
		e.rotate(2, 3)
		for _, oldest := range []uint64{3, 3, 2, 1} {
			e.retire(oldest)
			e.wantVersions(3, 3, 3)
		}
		e.wantUnwrapError(old, keys.ErrKEKRetired)
	}},
	{"The newest version cannot be destroyed", func(e *testedEpochs) {
		item := e.mustWrap("a", "data")
		if err := e.Retire(e.ctx, 2); !errors.Is(err, keys.ErrInvalid) {
			e.t.Errorf("it gave %v", err)
		}
		e.wantUnwrapped(item, "data")
		e.wantVersions(1, 1, 1)
	}},
	{"After End the methods go on as before", func(e *testedEpochs) {
		e.End(e.ctx)
		e.rotate(1, 2)
		e.End(e.ctx)
		e.End(e.ctx)
		e.retire(2)
		e.End(e.ctx)
	}},
	{"Calls return soon after ctx ends, with ErrUnavailable, and may be repeated", func(e *testedEpochs) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := e.Versions(ctx); !errors.Is(err, keys.ErrUnavailable) {
			e.t.Errorf("Versions gave %v", err)
		}
		if _, err := e.Rotate(ctx, 1); !errors.Is(err, keys.ErrUnavailable) {
			e.t.Errorf("Rotate gave %v", err)
		}
		if err := e.Retire(ctx, 1); !errors.Is(err, keys.ErrUnavailable) {
			e.t.Errorf("Retire gave %v", err)
		}
		e.rotate(1, 2)
		e.retire(2)
	}},
}
