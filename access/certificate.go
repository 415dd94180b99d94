package access

import (
	"context"
	"fmt"
	"time"

	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

// certificate makes the certificate of a finished erasure from what the ledger holds now.
func (b *Broker) certificate(ctx context.Context, done finishedErasure) (erasure.Certificate, error) {
	erased, err := b.attestation(ctx, done.Erased)
	if err != nil {
		return erasure.Certificate{}, err
	}
	destroyed, err := b.attestation(ctx, done.Destroyed)
	if err != nil {
		return erasure.Certificate{}, err
	}
	e, err := verify.ParseEntry([]byte(destroyed.Entry))
	if err != nil || e.Erasure == nil {
		return erasure.Certificate{}, wrapf(ErrIntegrity, "entry of a destroyed key")
	}
	var epoch *erasure.Attested
	index, found, err := b.epochAfter(ctx, done.Destroyed, e.Erasure.KEKVersion)
	if err != nil {
		return erasure.Certificate{}, err
	}
	if found {
		attested, err := b.attestation(ctx, index)
		if err != nil {
			return erasure.Certificate{}, err
		}
		epoch = &attested
	}
	c, err := erasure.New(erased, destroyed, epoch)
	if err != nil {
		return erasure.Certificate{}, fmt.Errorf("%w: certificate of an erasure: %w", ErrIntegrity, err)
	}
	return c, nil
}

// attestation returns an entry with its proof, against a checkpoint that the witness has cosigned if it
// follows in time.
func (b *Broker) attestation(ctx context.Context, index int64) (erasure.Attested, error) {
	if err := b.awaitWitness(ctx, index+1); err != nil {
		return erasure.Attested{}, err
	}
	entry, err := b.ledger.Entry(ctx, index)
	if err != nil {
		return erasure.Attested{}, wrapf(err, "reading an entry of an erasure")
	}
	proof, err := b.ledger.ProofFile(ctx, index)
	if err != nil {
		return erasure.Attested{}, wrapf(err, "proving an entry of an erasure")
	}
	return erasure.Attested{Index: index, Entry: string(entry), Proof: string(proof)}, nil
}

// awaitWitness waits until the witness has cosigned a checkpoint of at least size entries, for as long as it may
// be expected to take. Where there has been no witness yet it does not wait for one.
func (b *Broker) awaitWitness(ctx context.Context, size int64) error {
	wait, cancel := context.WithTimeout(ctx, witnessPatience)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		cosigned := b.ledger.Cosigned()
		if cosigned.Note == nil || cosigned.Size >= size {
			return ctx.Err()
		}
		select {
		case <-ticker.C:
		case <-wait.Done():
			return ctx.Err()
		}
	}
}

// epochAfter finds an epoch behind the entry at index that retires everything wrapped under version. The newest will
// do: versions only grow, so when it does not retire it, none does.
func (b *Broker) epochAfter(ctx context.Context, index int64, version uint64) (at int64, found bool, err error) {
	var newest Epoch
	err = b.store.View(ctx, func(r kv.Reader) error {
		newest, err = LoadEpoch(r)
		return err
	})
	if err != nil {
		return 0, false, err
	}
	return newest.Index, newest.Index > index && newest.Version > version, nil
}
