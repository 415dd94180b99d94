package client

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Destroy destroys the bundle of subject on the strength of the subject.erased entry at index, whose bytes are
// entry. Once it has returned nil, nothing of the subject opens any more. It may be called again, also after an
// error that leaves open whether it was done. A sidecar that is not satisfied gives keys.ErrProofRefused.
func (c *Client) Destroy(ctx context.Context, index int64, entry []byte, subject uuid.UUID) (Destroyed, error) {
	const op = "destroying a key"
	if index < 0 || len(entry) == 0 || len(entry) > maxEntry {
		return Destroyed{}, fmt.Errorf("%s: %w", op, keys.ErrInvalid)
	}
	pp := c.prover.Load()
	if pp == nil {
		return Destroyed{}, fmt.Errorf("%s: client has no prover: %w", op, keys.ErrUnavailable)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	d, err := c.destroy(limited, *pp, &keyspb.DestroyItem{Index: index, Entry: entry, Subject: subject[:]})
	if err != nil {
		return Destroyed{}, callError(ctx, op, err)
	}
	return d, nil
}

// destroy settles the checkpoint with a message of its own first: erasures are few, and none may lose a race
// for its checkpoint.
func (c *Client) destroy(ctx context.Context, p Prover, item *keyspb.DestroyItem) (Destroyed, error) {
	for attempt := 0; ; attempt++ {
		s, _, err := c.settle(ctx, p)
		if err != nil {
			return Destroyed{}, err
		}
		if item.Index >= s.size {
			return Destroyed{}, fmt.Errorf("entry %d is not in the ledger of size %d: %w", item.Index, s.size, keys.ErrProofRefused)
		}
		hashes, err := p.ProveInclusion(ctx, item.Index, s.size)
		if err != nil {
			return Destroyed{}, fmt.Errorf("proving inclusion: %w: %w", err, keys.ErrUnavailable)
		}
		item.Inclusion = hashBytes(hashes)
		mark := c.generation.Load()
		resp, err := c.rpc.Destroy(ctx, &keyspb.DestroyRequest{Checkpoint: s.note, From: s.from, Items: []*keyspb.DestroyItem{item}})
		if err != nil {
			return Destroyed{}, sidecarError(err)
		}
		if err := c.checkGeneration(mark, resp.Generation); err != nil {
			return Destroyed{}, err
		}
		if resp.Stale {
			if err := c.stale(p, s, resp.WitnessedSize, attempt); err != nil {
				return Destroyed{}, err
			}
			continue
		}
		if len(resp.Items) != 1 {
			return Destroyed{}, malformed("sidecar")
		}
		got := resp.Items[0]
		switch {
		case got.GetCode() != keyspb.Code_OK:
			return Destroyed{}, refusal(got.Code, got.Why)
		case got.GetGeneration() == 0 || got.KekVersion == 0:
			return Destroyed{}, malformed("sidecar")
		}
		return Destroyed{
			Generation: got.Generation, KEKVersion: got.KekVersion, DeadBy: timeOf(got.DeadBy), Already: got.Already,
		}, nil
	}
}

// RotateLedger makes the sidecar take newKey as the ledger's newest key, and drop the key drop if it is not
// empty. note is the newest checkpoint, of the given size, signed by the newest bound key and by newKey, which
// may be the same, to drop an older one. Both keys are note verifier keys. It may be called again. A sidecar
// that misses a signature gives keys.ErrProofRefused.
func (c *Client) RotateLedger(ctx context.Context, note []byte, size int64, newKey, drop string) error {
	const op = "changing the ledger's keys"
	pp := c.prover.Load()
	if pp == nil {
		return fmt.Errorf("%s: client has no prover: %w", op, keys.ErrUnavailable)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	if err := c.rotateLedger(limited, *pp, note, size, newKey, drop); err != nil {
		return callError(ctx, op, err)
	}
	return nil
}

// rotateLedger proves the note by itself, beside the chain of the other calls, since its signatures are others.
// The ledger's checkpoint of that size must have been witnessed, or it is proven from what was.
func (c *Client) rotateLedger(ctx context.Context, p Prover, note []byte, size int64, newKey, drop string) error {
	c.mu.Lock()
	acked := c.acked
	c.mu.Unlock()
	from := min(acked, size)
	for attempt := 0; ; attempt++ {
		req := &keyspb.RotateLedgerRequest{Checkpoint: note, From: from, LedgerKey: newKey, Drop: drop}
		if from > 0 && from < size {
			hashes, err := p.ProveConsistency(ctx, from, size)
			if err != nil {
				return fmt.Errorf("proving consistency: %w: %w", err, keys.ErrUnavailable)
			}
			req.Consistency = hashBytes(hashes)
		}
		resp, err := c.rpc.RotateLedger(ctx, req)
		if err != nil {
			return sidecarError(err)
		}
		if !resp.Stale {
			return nil
		}
		if resp.WitnessedSize < acked {
			return fmt.Errorf("sidecar has witnessed size %d, after %d: %w", resp.WitnessedSize, acked, keys.ErrRolledBack)
		}
		// A note behind what is witnessed, and not among what was witnessed of late, is of no use: the caller
		// makes a newer one.
		if resp.WitnessedSize > size || attempt >= maxStale {
			return fmt.Errorf("the ledger has grown beyond size %d: %w", size, keys.ErrUnavailable)
		}
		from = resp.WitnessedSize
	}
}
