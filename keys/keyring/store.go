package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

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
	if isOf(err, kv.ErrIntegrity) && !isOf(err, keys.ErrUnavailable) {
		return fmt.Errorf("%s the key store: %w: %w", doing, keys.ErrDamaged, err)
	}
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

// maxRounds bounds how often something starts again when rows change under it. A rotation changes a row twice, an
// epoch once.
const maxRounds = 8

// bundles returns the bundles of subjects, from the cache where the key store still holds the row that
// they were unwrapped from, through the KEK where it does not. When the KEK was asked, the key store is
// read once more for all of them, since an erasure may have been acknowledged meanwhile.
func (k *Keyring) bundles(ctx context.Context, subjects []uuid.UUID) ([]unlocked, error) {
	return k.gather(ctx, subjects, false)
}

// bundlesInPassing is bundles for who goes through everybody: what was not in the cache does not go there, where it
// would drive out those who are asked for.
func (k *Keyring) bundlesInPassing(ctx context.Context, subjects []uuid.UUID) ([]unlocked, error) {
	return k.gather(ctx, subjects, true)
}

func (k *Keyring) gather(ctx context.Context, subjects []uuid.UUID, passing bool) ([]unlocked, error) {
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
					key:     jobKey{subjects[i], string(row)},
					item:    KEKItem{bundleContext(k.cfg.Instance, subjects[i]), r.wrapped},
					passing: passing,
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

// unwrapped finishes a job of the unwrap batcher: it makes the bundle ready and, unless it is wanted in passing, puts
// it in the cache.
func (k *Keyring) unwrapped(j *job) {
	if j.result.Err != nil {
		return
	}
	r, err := decodeRow([]byte(j.key.row))
	var b *bundle
	if err == nil {
		b, err = parseBundle(j.result.Data, r.older, olderAD(k.cfg.Instance, j.key.subject))
	}
	j.result.Data.Wipe()
	j.result.Data = nil
	if err == nil && len(b.keys) != int(r.keys) {
		err = errKeyCount
	}
	if err != nil {
		j.result.Err = err
		return
	}
	b.rotation = r.rotation
	j.bundle = b
	if !j.passing {
		k.cache.put(j.key.subject, []byte(j.key.row), b)
	}
}

// checkRow decodes a row and refuses one of another KEK or from the future.
func (k *Keyring) checkRow(b []byte) (row, error) { return k.checkRowAt(b, k.generation.Load()) }

// checkRowAt is checkRow in a transaction, whose rows are of generation.
func (k *Keyring) checkRowAt(b []byte, generation uint64) (row, error) {
	r, err := decodeRow(b)
	if err != nil {
		return row{}, err
	}
	if r.kek != k.cfg.KEK.Name() {
		return row{}, fmt.Errorf("row is wrapped by another kind of KEK: %w", keys.ErrKEKMissing)
	}
	if r.generation > generation {
		return row{}, fmt.Errorf("row is newer than its key store: %w: %w", keys.ErrUnavailable, kv.ErrIntegrity)
	}
	return r, nil
}

var (
	errRowChanged = errors.New("keyring: row was changed meanwhile")
	errBelowFloor = errors.New("keyring: wrapped under a version of the KEK that is being retired")
)

// rowChange is a row on its way into the key store: a subject's bundle, or a keyset of the instance.
type rowChange struct {
	subject  uuid.UUID
	keyset   string // when set, it is that keyset's row and no subject's
	was      []byte // the row that it replaces; nil: the subject must never have had one
	wrapped  []byte
	older    []byte
	rotation uint32
	keys     int
	spare    bool
}

// rowOutcome is what became of a rowChange: the row as it is stored now, or why it is not.
type rowOutcome struct {
	row []byte
	err error
}

// commitRows writes rows; all changes of bundles and keysets go through it. Outcomes are in the order of changes,
// each for itself. A change is refused with errRowChanged when the row is not what it was, with errBelowFloor
// when an epoch has begun that its wrap is too old for (the caller wraps again), with keys.ErrKeyExists when a
// subject that is to be made has or had a bundle, and with keys.ErrDestroyed when the bundle was destroyed.
func (k *Keyring) commitRows(ctx context.Context, changes []rowChange) []rowOutcome {
	out := make([]rowOutcome, 0, len(changes))
	size := 1
	for i := range changes {
		size = max(size, len(changes[i].wrapped)+len(changes[i].older))
	}
	// In parts that a transaction takes. Each part is durable or not as one.
	for part := range slices.Chunk(changes, max(1, min(maxCommitChanges, maxCommitBytes/size))) {
		out = append(out, k.commitPart(ctx, part)...)
	}
	return out
}

func (k *Keyring) commitPart(ctx context.Context, part []rowChange) []rowOutcome {
	out := make([]rowOutcome, len(part))
	asked := make([][]byte, 1, 1+2*len(part))
	asked[0] = keyFloor
	size := 0
	for i := range part {
		if c := &part[i]; c.keyset != "" {
			asked = append(asked, keyKeyset(c.keyset), keyTombstone(uuid.Nil)) // which nobody has
		} else {
			asked = append(asked, keyBundle(c.subject), keyTombstone(c.subject))
		}
		size += len(part[i].wrapped) + len(part[i].older)
	}
	err := k.writes.do(ctx, &change{items: len(part), bytes: size,
		apply: func(w kv.Writer, generation uint64) (bool, error) {
			values, err := w.Get(asked...)
			if err != nil {
				return false, err
			}
			floor, err := decodeFloor(values[0])
			if err != nil {
				return false, err
			}
			raised := false
			for i := range part {
				c := &part[i]
				out[i] = rowOutcome{err: k.refusal(c, values[1+2*i], values[2+2*i], floor)}
				if out[i].err != nil {
					continue
				}
				out[i].row = row{generation, c.rotation, uint8(c.keys), c.spare, k.cfg.KEK.Name(), c.older, c.wrapped}.encode()
				w.Set(asked[1+2*i], out[i].row)
				if c.keyset == "" {
					w.Set(keyNewest, c.subject[:])
				}
				raised = true
			}
			return raised, nil
		}})
	if err != nil {
		// The transaction may still be under way, when ctx has ended. Out is its own then, the variable as well.
		failed := make([]rowOutcome, len(part))
		for i := range failed {
			failed[i].err = err
		}
		return failed
	}
	return out
}

// refusal tells why c must not be written over current, nil if it may.
func (k *Keyring) refusal(c *rowChange, current, tomb []byte, floor uint64) error {
	switch {
	case c.was == nil && (current != nil || tomb != nil):
		return keys.ErrKeyExists
	case tomb != nil:
		return keys.ErrDestroyed
	case c.was != nil && !bytes.Equal(current, c.was):
		return errRowChanged
	case floor == 0:
		return nil
	}
	switch version, err := k.cfg.KEK.Version(c.wrapped); {
	case err != nil:
		return fmt.Errorf("KEK gave something of an unknown form: %w: %w", keys.ErrUnavailable, err)
	case version < floor:
		return errBelowFloor
	}
	return nil
}

// wrapBundles has the KEK wrap serialised bundles of subjects, in one batch, which takes them over and wipes them.
// The error is for the call as a whole.
func (k *Keyring) wrapBundles(ctx context.Context, subjects []uuid.UUID, bundles []Secret) ([]KEKResult, error) {
	jobs := make([]*job, len(bundles))
	for i := range bundles {
		jobs[i] = &job{item: KEKItem{bundleContext(k.cfg.Instance, subjects[i]), bundles[i]}}
	}
	if _, err := k.wraps.submit(jobs); err != nil {
		wipeAll(bundles)
		return nil, err
	}
	if err := k.wraps.wait(ctx, jobs); err != nil {
		return nil, err
	}
	out := make([]KEKResult, len(jobs))
	for i := range jobs {
		if out[i] = jobs[i].result; len(out[i].Data) > maxWrappedBytes {
			out[i] = KEKResult{Err: fmt.Errorf("KEK gave too much: %w", keys.ErrUnavailable)}
		}
	}
	return out, nil
}
