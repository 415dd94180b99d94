package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault"
)

var (
	_ vault.Sealer  = (*client.Client)(nil)
	_ access.Opener = (*client.Client)(nil)
	_ access.Keys   = (*client.Client)(nil)
)

// ledgerConfig has the keys of the ledger of id unwrapped, all that sign.
func (d *Daemon) ledgerConfig(ctx context.Context, id identity, status client.Status) (config ledger.Config, err error) {
	config = ledger.Config{Store: d.store, Origin: id.Origin, Logger: d.log, Observe: d.metrics.batch}
	if config.Signer, config.Verifier, err = id.ledgerKey(ctx, d.sidecar); err != nil {
		return ledger.Config{}, err
	}
	if config.Older, err = id.olderKeys(ctx, d.sidecar); err != nil {
		return ledger.Config{}, err
	}
	if config.Witnesses, err = witnessesOf(status); err != nil {
		d.log.Error("the sidecar's witness keys cannot be used", "error", err)
	}
	return config, nil
}

func brokerConfig(d *Daemon, v *vault.Vault, sidecar string) access.Config {
	return access.Config{
		Store: d.store, Ledger: d.ledger, Vault: v, Opener: d.sidecar, Sidecar: sidecar,
		FailureCode: failureCode, Stale: func(err error) bool { return errors.Is(err, keys.ErrTampered) }, Keys: d.sidecar,
		Observer: d.metrics, Logger: d.log,
	}
}

// failureCodes names why an open failed, the most specific first.
var failureCodes = [...]struct {
	err  error
	code string
}{
	{keys.ErrSealed, "key-service-sealed"},
	{keys.ErrForbidden, "key-service-forbidden"},
	{keys.ErrDamaged, "key-store-damaged"},
	{keys.ErrBudget, "decrypt-budget"},
	{keys.ErrUnavailable, "key-service-unavailable"},
	{keys.ErrKEKMissing, "kek-missing"},
	{keys.ErrKEKRetired, "kek-retired"},
	{keys.ErrDestroyed, "key-destroyed"},
	{keys.ErrNoKey, "key-absent"},
	{keys.ErrTampered, "ciphertext-tampered"},
	{keys.ErrReplayed, "proof-replayed"},
	{keys.ErrClock, "clock-suspect"},
	{keys.ErrProofRefused, "proof-refused"},
	{keys.ErrRolledBack, "rolled-back"},
	{access.ErrIntegrity, "integrity"},
	{vault.ErrStale, "changed-meanwhile"},
	{context.DeadlineExceeded, "timeout"},
	{context.Canceled, "cancelled"},
}

func failureCode(err error) string {
	for _, f := range failureCodes {
		if errors.Is(err, f.err) {
			return f.code
		}
	}
	return "internal"
}

// background owns goroutines that run until stop.
type background struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (b *background) start(jobs ...func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	for _, job := range jobs {
		b.wg.Go(func() { job(ctx) })
	}
}

func (b *background) stop() {
	if b.cancel != nil {
		b.cancel()
	}
	b.wg.Wait()
}

// every calls f at the interval until ctx ends.
func every(ctx context.Context, interval time.Duration, f func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f()
		}
	}
}

// keepGeneration keeps the newest generation of the key store that was seen.
func (d *Daemon) keepGeneration(ctx context.Context) {
	var kept uint64
	every(ctx, time.Second, func() {
		g := d.sidecar.Generation()
		if g <= kept {
			return
		}
		if err := saveGeneration(ctx, d.store, g); err != nil {
			d.log.Error("generation of the key store was not kept", "error", err)
			return
		}
		kept = g
	})
}

// sweep removes expired idempotency keys.
func (d *Daemon) sweep(ctx context.Context) {
	every(ctx, time.Hour, func() {
		if _, err := d.broker.Sweep(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("expired idempotency keys were not removed", "error", err)
		}
	})
}

// finishErasures destroys the keys of erasures that a crash, or a sidecar that could not answer, left half done.
func (d *Daemon) finishErasures(ctx context.Context) {
	failing := false
	every(ctx, time.Second, func() {
		n, err := d.broker.FinishErasures(ctx)
		if n > 0 {
			d.log.Info("erasures were finished", "count", n)
		}
		if err != nil && !failing && ctx.Err() == nil {
			d.log.Error("erasures are on record and not finished", "error", err)
		}
		failing = err != nil
	})
}
