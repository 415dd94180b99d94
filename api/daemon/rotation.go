package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault/kv"
)

var _ access.RotationKeys = (*client.Client)(nil)

// newRotator makes what carries out rotations.
func (d *Daemon) newRotator() (*access.Rotator, error) {
	return access.NewRotator(access.RotatorConfig{
		Broker: d.broker, Keys: d.sidecar, Observer: d.metrics, RotateLedger: d.rotateLedger,
		Gone: func(err error) bool { return errors.Is(err, keys.ErrDestroyed) },
		Damaged: func(err error) bool {
			return errors.Is(err, keys.ErrTampered) || errors.Is(err, keys.ErrNoKey) || errors.Is(err, keys.ErrKEKRetired)
		},
	})
}

// bind binds the sidecar to the ledger: by the newest ledger key, or by one before when a rotation was interrupted
// before the sidecar had heard of the newest. The rotation goes on after the start.
func (d *Daemon) bind(ctx context.Context, id identity) error {
	err := d.sidecar.Bind(ctx, id.Origin, id.Verifier)
	for _, k := range id.Older {
		if err == nil || errors.Is(err, keys.ErrUnavailable) {
			return err
		}
		err = d.sidecar.Bind(ctx, id.Origin, k.Verifier)
	}
	return err
}

// defaultKeyOverlap is how long an older ledger key goes on signing, unless the configuration says otherwise.
const defaultKeyOverlap = 14 * 24 * time.Hour

// rotateLedger gives the ledger a new key. The steps, each of which is found done after an interruption: the key
// is made, wrapped, and becomes the newest in the row of the identity by the entry that announces it, under a
// checkpoint that both keys have signed; the sidecar is shown such a checkpoint and knows both keys from then on.
func (d *Daemon) rotateLedger(ctx context.Context, job access.RotationJob) error {
	d.ledgerKeys.Lock()
	defer d.ledgerKeys.Unlock()
	id, err := loadIdentity(ctx, d.store)
	if err != nil {
		return err
	}
	if id.Job != job.ID {
		if id, err = d.replaceLedgerKey(ctx, id, job); err != nil {
			return err
		}
	}
	cp := d.ledger.Checkpoint()
	if err := d.sidecar.RotateLedger(ctx, cp.Note, cp.Size, id.Verifier, ""); err != nil {
		return fmt.Errorf("showing the sidecar the new ledger key: %w", err)
	}
	return nil
}

// replaceLedgerKey makes a new ledger key the newest.
func (d *Daemon) replaceLedgerKey(ctx context.Context, before identity, job access.RotationJob) (identity, error) {
	overlap := d.config.Ledger.KeyOverlap
	if overlap == 0 {
		overlap = defaultKeyOverlap
	}
	vkey, protected, err := newLedgerKey(ctx, d.sidecar, before.Origin)
	if err != nil {
		return identity{}, err
	}
	signer, verifier, err := openLedgerKey(ctx, d.sidecar, vkey, protected)
	if err != nil {
		return identity{}, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	after := before
	after.Verifier, after.Protected, after.Made, after.Job = vkey, protected, now, job.ID
	older := ledgerKey{Verifier: before.Verifier, Protected: before.Protected, Retire: now.Add(overlap)}
	after.Older = append([]ledgerKey{older}, before.Older...)
	if after.raw, err = after.encode(); err != nil {
		return identity{}, err
	}
	// The key signs before it is announced, so that the checkpoint of its announcement carries both signatures.
	if err := d.ledger.AddSigner(ledger.Key{Signer: signer, Verifier: verifier}); err != nil {
		return identity{}, err
	}
	err = d.announce(ctx, before, after, verify.KeyChange{
		Job: job.ID, Phase: "overlap", Version: job.Target, Key: vkey, Started: verify.FormatTime(job.Started),
	})
	if err == nil {
		d.log.Info("the ledger has a new key", "key", vkey, "overlap", overlap)
		return after, nil
	}
	// It may have been committed all the same.
	if now, loadErr := loadIdentity(ctx, d.store); loadErr == nil && now.Verifier == vkey {
		return now, nil
	} else if loadErr == nil {
		err = errors.Join(err, d.ledger.DropSigner(verifier.KeyHash()))
	}
	return identity{}, fmt.Errorf("announcing the new ledger key: %w", err)
}

// errIdentityChanged is returned, through a condition, when the identity changed meanwhile.
var errIdentityChanged = errors.New("the identity changed meanwhile")

// announce appends what changes about the ledger's keys, together with the identity that says so.
func (d *Daemon) announce(ctx context.Context, before, after identity, change verify.KeyChange) error {
	change.Scope = "ledger"
	entry := verify.Entry{
		ID: uuid.Must(uuid.NewV7()).String(), Kind: verify.KindKeyRotated,
		Caller: &verify.Caller{ID: "system", Kind: "system", Role: "system", Authn: "local"}, Keys: &change,
	}
	_, err := d.ledger.Append(ctx, entry, func(ledger.Position) kv.Change {
		var effects kv.Change
		effects.Expect(identityKey, before.raw, errIdentityChanged)
		effects.Set(identityKey, after.raw)
		return effects
	})
	return err
}

// dropLedgerKeys has older ledger keys sign no more once their overlap is over.
func (d *Daemon) dropLedgerKeys(ctx context.Context) {
	drop := func() {
		if err := d.dropDueKeys(ctx, time.Now()); err != nil && ctx.Err() == nil {
			d.log.Error("an older ledger key was not dropped", "error", err)
		}
	}
	drop()
	every(ctx, time.Hour, drop)
}

func (d *Daemon) dropDueKeys(ctx context.Context, now time.Time) error {
	d.ledgerKeys.Lock()
	defer d.ledgerKeys.Unlock()
	id, err := loadIdentity(ctx, d.store)
	if err != nil {
		return err
	}
	for i := len(id.Older) - 1; i >= 0; i-- { // the oldest first
		old := id.Older[i]
		if now.Before(old.Retire) {
			continue
		}
		_, verifier, err := openLedgerKey(ctx, d.sidecar, old.Verifier, old.Protected)
		if err != nil {
			return err
		}
		// The sidecar first: when the key is forgotten here, the sidecar takes nothing that it signs.
		cp := d.ledger.Checkpoint()
		if err := d.sidecar.RotateLedger(ctx, cp.Note, cp.Size, id.Verifier, old.Verifier); err != nil {
			return fmt.Errorf("having the sidecar drop it: %w", err)
		}
		after := id
		after.Older = slices.Delete(slices.Clone(id.Older), i, i+1)
		if after.raw, err = after.encode(); err != nil {
			return err
		}
		if err := d.announce(ctx, id, after, verify.KeyChange{Job: id.Job, Phase: "drop", Dropped: old.Verifier}); err != nil {
			return err
		}
		if err := d.ledger.DropSigner(verifier.KeyHash()); err != nil {
			return err
		}
		d.log.Info("an older ledger key signs no more", "key", old.Verifier)
		id = after
	}
	return nil
}
