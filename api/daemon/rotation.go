package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
)

var _ access.RotationKeys = (*client.Client)(nil)

// newRotator makes what carries out rotations.
func (d *Daemon) newRotator() (*access.Rotator, error) {
	return access.NewRotator(access.RotatorConfig{
		Broker: d.broker, Keys: d.sidecar, Observer: d.metrics, RotateLedger: d.ledgerKeys.rotate,
		Gone: func(err error) bool { return errors.Is(err, keys.ErrDestroyed) },
		Damaged: func(err error) bool {
			// ErrInvalid: it has collected so many keys, by rotations that failed for it, that it gets no more.
			return errors.Is(err, keys.ErrTampered) || errors.Is(err, keys.ErrNoKey) || errors.Is(err, keys.ErrKEKRetired) ||
				errors.Is(err, keys.ErrInvalid)
		},
	})
}

// bind binds the sidecar to the ledger: by the newest ledger key, or by one before when a rotation was interrupted
// before the sidecar had heard of the newest. The rotation goes on after the start.
func (d *Daemon) bind(ctx context.Context, id identity) error {
	var err error
	for _, key := range id.verifiers() {
		if err = d.sidecar.Bind(ctx, id.Origin, key); err == nil || errors.Is(err, keys.ErrUnavailable) {
			return err
		}
	}
	return err
}

// dropLedgerKeys has older ledger keys sign no more once their overlap is over.
func (d *Daemon) dropLedgerKeys(ctx context.Context) {
	drop := func() {
		if err := d.ledgerKeys.dropDue(ctx, time.Now()); err != nil && ctx.Err() == nil {
			d.log.Error("an older ledger key was not dropped", "error", err)
		}
	}
	drop()
	every(ctx, time.Hour, drop)
}
