package daemon

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault"
)

var (
	_ vault.Sealer  = (*client.Client)(nil)
	_ access.Opener = (*client.Client)(nil)
	_ access.Keys   = (*client.Client)(nil)
	_ client.Prover = (*prover)(nil)
)

// prover shows the ledger to the sidecar's client, and keeps the newest cosignature until keepWitnessed gives
// it to the ledger: verifying each one as it comes would cost more than a read.
type prover struct {
	ledger *ledger.Ledger
	newest atomic.Pointer[cosignature]
}

type cosignature struct {
	size int64
	line []byte
}

func (p *prover) Checkpoint() ([]byte, int64) {
	cp := p.ledger.Checkpoint()
	return cp.Note, cp.Size
}

func (p *prover) ProveInclusion(ctx context.Context, index, size int64) ([]tlog.Hash, error) {
	return p.ledger.ProveInclusion(ctx, index, size)
}

func (p *prover) ProveConsistency(ctx context.Context, from, to int64) ([]tlog.Hash, error) {
	return p.ledger.ProveConsistency(ctx, from, to)
}

func (p *prover) Cosigned(size int64, line []byte) { p.newest.Store(&cosignature{size, line}) }

func ledgerConfig(d *Daemon, c Config, id identity, signer note.Signer, verifier note.Verifier, status client.Status) ledger.Config {
	config := ledger.Config{
		Store: d.store, Origin: id.Origin, Signer: signer, Verifier: verifier, Logger: d.log,
		Observe: d.metrics.batch,
	}
	if witness, err := verify.NewCosignatureVerifier(status.WitnessKey); err == nil {
		config.Witnesses = []note.Verifier{witness}
	} else {
		d.log.Error("the sidecar's witness key cannot be used", "error", err)
	}
	return config
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
	{keys.ErrBudget, "decrypt-budget"},
	{keys.ErrUnavailable, "key-service-unavailable"},
	{keys.ErrKEKMissing, "kek-missing"},
	{keys.ErrKEKRetired, "kek-retired"},
	{keys.ErrDestroyed, "key-destroyed"},
	{keys.ErrNoKey, "key-absent"},
	{keys.ErrTampered, "ciphertext-tampered"},
	{keys.ErrReplayed, "proof-replayed"},
	{keys.ErrProofRefused, "proof-refused"},
	{keys.ErrRolledBack, "rolled-back"},
	{access.ErrIntegrity, "integrity"},
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

// witnessEvery bounds how long an acknowledged entry may be unknown to the witness. Until it is known there,
// its loss, by damage or by an older copy put back, would not be noticed.
const witnessEvery = 20 * time.Millisecond

// keepWitnessed has the witness follow the ledger when no read makes it do so, and gives its newest
// cosignature to the ledger.
func (d *Daemon) keepWitnessed(ctx context.Context) {
	failing := false
	every(ctx, witnessEvery, func() {
		size := d.ledger.Checkpoint().Size
		newest := d.prover.newest.Load()
		if newest == nil || newest.size < size {
			_, err := d.sidecar.Witness(ctx)
			if err != nil && !failing && ctx.Err() == nil {
				d.log.Error("the ledger is not being witnessed", "error", err)
			}
			failing = err != nil
		}
		d.keepCosignature()
	})
}

// keepCosignature gives the newest cosignature to the ledger.
func (d *Daemon) keepCosignature() {
	newest := d.prover.newest.Load()
	if newest == nil || newest.size <= d.ledger.Cosigned().Size {
		return
	}
	if err := d.ledger.AddCosignature(newest.size, newest.line); err != nil {
		d.log.Error("the sidecar's cosignature was refused", "size", newest.size, "error", err)
	}
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
