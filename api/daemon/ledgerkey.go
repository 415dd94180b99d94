package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault/kv"
)

// defaultKeyOverlap is how long an older ledger key goes on signing, unless the configuration says otherwise.
const defaultKeyOverlap = 14 * 24 * time.Hour

// ledgerKeys replaces the ledger's key.
type ledgerKeys struct {
	store   kv.Store
	ledger  *ledger.Ledger
	sidecar ledgerKeeper
	overlap time.Duration
	log     *slog.Logger

	mu sync.Mutex // held while the keys are changed
}

// ledgerKeeper is the sidecar as the keeper of the ledger's keys and its witness.
type ledgerKeeper interface {
	protector
	// RotateLedger makes the sidecar take newKey for the ledger's newest key, on the strength of a checkpoint that a
	// key it knows and newKey have signed, and forget the key drop if it is not empty. It may be called again.
	RotateLedger(ctx context.Context, note []byte, size int64, newKey, drop string) error
}

var _ ledgerKeeper = (*client.Client)(nil)

func newLedgerKeys(d *Daemon) *ledgerKeys {
	k := &ledgerKeys{store: d.store, ledger: d.ledger, sidecar: d.sidecar, overlap: d.config.Ledger.KeyOverlap, log: d.log}
	if k.overlap == 0 {
		k.overlap = defaultKeyOverlap
	}
	return k
}

// rotate gives the ledger a new key. The steps, each of which is found done after an interruption: the key
// is made, wrapped, and becomes the newest in the row of the identity by the entry that announces it, under a
// checkpoint that both keys have signed; the sidecar is shown such a checkpoint and knows both keys from then on.
func (k *ledgerKeys) rotate(ctx context.Context, job access.RotationJob) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	id, err := loadIdentity(ctx, k.store)
	if err != nil {
		return err
	}
	if id.Job != job.ID {
		if id, err = k.replace(ctx, id, job); err != nil {
			return err
		}
	}
	cp := k.ledger.Checkpoint()
	if err := k.sidecar.RotateLedger(ctx, cp.Note, cp.Size, id.Verifier, ""); err != nil {
		return fmt.Errorf("showing the sidecar the new ledger key: %w", err)
	}
	return nil
}

// replace makes a new ledger key the newest.
func (k *ledgerKeys) replace(ctx context.Context, before identity, job access.RotationJob) (identity, error) {
	vkey, protected, err := newLedgerKey(ctx, k.sidecar, before.Origin)
	if err != nil {
		return identity{}, err
	}
	signer, verifier, err := openLedgerKey(ctx, k.sidecar, vkey, protected)
	if err != nil {
		return identity{}, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	after := before
	after.Verifier, after.Protected, after.Made, after.Job = vkey, protected, now, job.ID
	older := ledgerKey{Verifier: before.Verifier, Protected: before.Protected, Retire: now.Add(k.overlap)}
	after.Older = append([]ledgerKey{older}, before.Older...)
	if after.raw, err = after.encode(); err != nil {
		return identity{}, err
	}
	// The key signs before it is announced, so that the checkpoint of its announcement carries both signatures.
	if err := k.ledger.AddSigner(ledger.Key{Signer: signer, Verifier: verifier}); err != nil {
		return identity{}, err
	}
	err = k.announce(ctx, before, after, verify.KeyChange{
		Job: job.ID, Phase: "overlap", Version: job.Target, Key: vkey, Started: verify.FormatTime(job.Started),
	})
	if err == nil {
		k.log.Info("the ledger has a new key", "key", vkey, "overlap", k.overlap)
		return after, nil
	}
	// It may have been committed all the same.
	if now, loadErr := loadIdentity(context.WithoutCancel(ctx), k.store); loadErr == nil && now.Verifier == vkey {
		return now, nil
	} else if loadErr == nil {
		err = errors.Join(err, k.ledger.DropSigner(verifier.KeyHash()))
	}
	return identity{}, fmt.Errorf("announcing the new ledger key: %w", err)
}

// errIdentityChanged is returned, through a condition, when the identity changed meanwhile.
var errIdentityChanged = errors.New("the identity changed meanwhile")

// announce appends what changes about the ledger's keys, together with the identity that says so.
func (k *ledgerKeys) announce(ctx context.Context, before, after identity, change verify.KeyChange) error {
	change.Scope = "ledger"
	entry := verify.Entry{
		ID: uuid.Must(uuid.NewV7()).String(), Kind: verify.KindKeyRotated,
		Caller: &verify.Caller{ID: "system", Kind: "system", Role: "system", Authn: "local"}, Keys: &change,
	}
	_, err := k.ledger.Append(ctx, entry, func(ledger.Position) kv.Change {
		var effects kv.Change
		effects.Expect(identityKey, before.raw, errIdentityChanged)
		effects.Set(identityKey, after.raw)
		return effects
	})
	return err
}

// dropDue has the keys whose overlap is over at now sign no more.
func (k *ledgerKeys) dropDue(ctx context.Context, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	id, err := loadIdentity(ctx, k.store)
	if err != nil {
		return err
	}
	for i := len(id.Older) - 1; i >= 0; i-- { // the oldest first
		old := id.Older[i]
		if now.Before(old.Retire) {
			continue
		}
		_, verifier, err := openLedgerKey(ctx, k.sidecar, old.Verifier, old.Protected)
		if err != nil {
			return err
		}
		// The sidecar first: when the key is forgotten here, the sidecar takes nothing that it signs.
		cp := k.ledger.Checkpoint()
		if err := k.sidecar.RotateLedger(ctx, cp.Note, cp.Size, id.Verifier, old.Verifier); err != nil {
			return fmt.Errorf("having the sidecar drop it: %w", err)
		}
		after := id
		after.Older = slices.Delete(slices.Clone(id.Older), i, i+1)
		if after.raw, err = after.encode(); err != nil {
			return err
		}
		if err := k.ledger.DropSigner(verifier.KeyHash()); err != nil {
			return err
		}
		if err := k.announce(ctx, id, after, verify.KeyChange{Job: id.Job, Phase: "drop", Dropped: old.Verifier}); err != nil {
			return err
		}
		k.log.Info("an older ledger key signs no more", "key", old.Verifier)
		id = after
	}
	return nil
}
