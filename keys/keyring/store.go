package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

var (
	errCounter    = fmt.Errorf("key store has no valid generation counter: %w", kv.ErrIntegrity)
	errRolledBack = fmt.Errorf("key store is older than it was: %w", kv.ErrIntegrity)
)

func isOf(err, target error) bool { return errors.Is(err, target) }

// storeError makes a failure of the key store one of the sentinels of package keys: whatever it is,
// nothing is known about the subject.
func storeError(doing string, err error) error {
	return fmt.Errorf("%s the key store: %w: %w", doing, keys.ErrUnavailable, err)
}

// stored is what the key store holds for a subject: the row, or why there is none.
type stored struct {
	row []byte
	err error // keys.ErrDestroyed or keys.ErrNoKey
}

// lookup reads what the key store holds for subjects, all of one snapshot.
func (k *Keyring) lookup(ctx context.Context, subjects []uuid.UUID) ([]stored, error) {
	wanted := make([][]byte, 1, 1+2*len(subjects))
	wanted[0] = keyGeneration
	for _, s := range subjects {
		wanted = append(wanted, keyBundle(s), keyTombstone(s))
	}
	before := k.generation.Load()
	var values [][]byte
	err := k.store.View(ctx, func(r kv.Reader) (err error) {
		values, err = r.Get(wanted...)
		return err
	})
	if err != nil {
		return nil, storeError("reading", err)
	}
	generation, err := decodeGeneration(values[0])
	if err != nil {
		return nil, storeError("reading", err)
	}
	if generation < before {
		return nil, storeError("reading", errRolledBack)
	}
	raise(&k.generation, generation)
	found := make([]stored, len(subjects))
	for i := range subjects {
		// The tombstone is asked first: an engine that has lost a deletion must not bring a key back.
		switch row, tomb := values[1+2*i], values[2+2*i]; {
		case tomb != nil:
			found[i].err = keys.ErrDestroyed
		case row == nil:
			found[i].err = keys.ErrNoKey
		default:
			found[i].row = row
		}
	}
	return found, nil
}

// unlocked is a subject's bundle, or why there is none.
type unlocked struct {
	bundle *bundle
	err    error
}

// maxRounds bounds how often bundles starts again when rows change under it.
const maxRounds = 4

// bundles returns the bundles of subjects, from the cache where the key store still holds the row that
// they were unwrapped from, through the KEK where it does not. When the KEK was asked, the key store is
// read once more for all of them, since an erasure may have been acknowledged meanwhile.
func (k *Keyring) bundles(ctx context.Context, subjects []uuid.UUID) ([]unlocked, error) {
	out := make([]unlocked, len(subjects))
	live := make([]int, len(subjects)) // indices that may still get a bundle
	for i := range live {
		live[i] = i
	}
	var held map[uuid.UUID]cached // what this call has, whatever the cache evicts
	for round := range maxRounds {
		asked := subjects
		if round > 0 {
			asked = make([]uuid.UUID, len(live))
			for n, i := range live {
				asked[n] = subjects[i]
			}
		}
		found, err := k.lookup(ctx, asked)
		if err != nil {
			return nil, err
		}
		now := k.cfg.Now()
		var missing []int
		var jobs []*job
		left := live[:0]
		for n, i := range live {
			row := found[n].row
			if found[n].err != nil {
				k.cache.drop(subjects[i])
				out[i] = unlocked{err: found[n].err}
				continue
			}
			b := k.cache.get(subjects[i], row, now)
			if h, ok := held[subjects[i]]; ok && bytes.Equal(h.row, row) {
				b = h.bundle
			}
			if out[i].bundle = b; b == nil {
				r, err := k.checkRow(row)
				if err != nil {
					out[i] = unlocked{err: err}
					continue
				}
				missing = append(missing, i)
				jobs = append(jobs, &job{
					key:  jobKey{subjects[i], string(row)},
					item: KEKItem{bundleContext(k.cfg.Instance, subjects[i]), r.wrapped},
				})
			} else if held != nil {
				held[subjects[i]] = cached{row: row, bundle: b}
			}
			left = append(left, i)
		}
		if round == 0 && k.cfg.Observe.Cache != nil {
			k.cfg.Observe.Cache(len(subjects)-len(missing), len(missing))
		}
		if len(missing) == 0 {
			return out, nil
		}
		if jobs, err = k.unwraps.submit(jobs); err != nil {
			return nil, err
		}
		if err := k.unwraps.wait(ctx, jobs); err != nil {
			return nil, err
		}
		if held == nil {
			held = make(map[uuid.UUID]cached, len(missing))
		}
		for n, i := range missing {
			if err := jobs[n].result.Err; err != nil {
				if isOf(err, keys.ErrKEKRetired) && round < maxRounds-1 {
					continue // an epoch may have passed, and the row have been wrapped again: it is read once more
				}
				out[i] = unlocked{err: err}
				continue
			}
			held[subjects[i]] = cached{row: []byte(jobs[n].key.row), bundle: jobs[n].bundle}
		}
		live = left[:0]
		for _, i := range left {
			if out[i].err == nil {
				live = append(live, i)
			}
		}
	}
	for _, i := range live {
		out[i] = unlocked{err: fmt.Errorf("bundle keeps changing: %w", keys.ErrUnavailable)}
	}
	return out, nil
}

// unwrapped finishes a job of the unwrap batcher: it makes the bundle ready and puts it in the cache.
func (k *Keyring) unwrapped(j *job) {
	if j.result.Err != nil {
		return
	}
	b, err := parseBundle(j.result.Data)
	j.result.Data.Wipe()
	j.result.Data = nil
	if err != nil {
		j.result.Err = err
		return
	}
	j.bundle = b
	k.cache.put(j.key.subject, []byte(j.key.row), b)
}

// checkRow decodes a row and refuses one of another KEK or from the future.
func (k *Keyring) checkRow(b []byte) (row, error) {
	r, err := decodeRow(b)
	if err != nil {
		return row{}, err
	}
	if r.kek != k.cfg.KEK.Name() {
		return row{}, fmt.Errorf("row is wrapped by another kind of KEK: %w", keys.ErrKEKMissing)
	}
	if r.generation > k.generation.Load() {
		return row{}, fmt.Errorf("row is newer than its key store: %w: %w", keys.ErrUnavailable, kv.ErrIntegrity)
	}
	return r, nil
}
