package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/client"
)

// prover shows the ledger to the sidecar's client, and keeps the newest cosignature until it is carried to the
// ledger: verifying each one as it comes would cost more than a read.
type prover struct {
	ledger *ledger.Ledger
	newest atomic.Pointer[cosignature]
}

var _ client.Prover = (*prover)(nil)

type cosignature struct {
	size  int64
	lines []byte
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

func (p *prover) Cosigned(size int64, lines []byte) { p.newest.Store(&cosignature{size, lines}) }

// witnessesOf are the keys that the sidecar cosigns with: several while it is changing its key.
func witnessesOf(status client.Status) ([]note.Verifier, error) {
	var witnesses []note.Verifier
	for _, key := range status.WitnessKeys {
		v, err := verify.NewCosignatureVerifier(key)
		if err != nil {
			return nil, fmt.Errorf("witness key of the sidecar: %w", err)
		}
		witnesses = append(witnesses, v)
	}
	return witnesses, nil
}

// cosignatures carries the newest cosignature to the ledger. The sidecar may change its key at any time, so when a
// line is by none that the ledger knows, the sidecar is asked for its keys. It is used by one goroutine at a time.
type cosignatures struct {
	prover *prover
	ledger *ledger.Ledger
	status func(context.Context) (client.Status, error)
	log    *slog.Logger

	carried *cosignature // the last one that the ledger has taken
	asked   time.Time    // when the sidecar was asked for its keys
	failing bool         // to log once
}

// askAgain is how long the sidecar's keys are not asked for again.
const askAgain = time.Second

func (c *cosignatures) carry(ctx context.Context) {
	newest := c.prover.newest.Load()
	if newest == nil || newest == c.carried {
		return
	}
	err := c.ledger.AddCosignature(newest.size, newest.lines)
	if errors.Is(err, ledger.ErrCosignature) && time.Since(c.asked) >= askAgain {
		c.asked = time.Now()
		if err = c.learn(ctx); err == nil {
			err = c.ledger.AddCosignature(newest.size, newest.lines)
		}
	}
	if err == nil {
		c.carried = newest
	} else if !c.failing && ctx.Err() == nil {
		c.log.Error("the sidecar's cosignature was refused", "size", newest.size, "error", err)
	}
	c.failing = err != nil
}

// learn makes the ledger take cosignatures by the keys that the sidecar has now.
func (c *cosignatures) learn(ctx context.Context) error {
	status, err := c.status(ctx)
	if err != nil {
		return fmt.Errorf("asking the sidecar for its witness keys: %w", err)
	}
	witnesses, err := witnessesOf(status)
	if err == nil {
		c.ledger.SetWitnesses(witnesses...)
	}
	return err
}

// witnessEvery bounds how long an acknowledged entry may be unknown to the witness. Until it is known there,
// its loss, by damage or by an older copy put back, would not be noticed.
const witnessEvery = 20 * time.Millisecond

// keepWitnessed has the witness follow the ledger when no read makes it do so, and carries its newest cosignature to
// the ledger.
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
		d.cosignatures.carry(ctx)
	})
}
