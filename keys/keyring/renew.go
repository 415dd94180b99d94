package keyring

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
)

// again calls round with indices of subjects, at most maxBatch at once, and once more with those that it returns,
// whose rows have changed meanwhile. Those of which that does not end are left to keeps.
func again(n int, round func(which []int) (overtaken []int, err error), keeps func(i int, err error)) error {
	todo := make([]int, n)
	for i := range todo {
		todo[i] = i
	}
	for range maxRounds {
		var left []int
		for part := range slices.Chunk(todo, maxBatch) {
			overtaken, err := round(part)
			if err != nil {
				return err
			}
			left = append(left, overtaken...)
		}
		if todo = left; len(todo) == 0 {
			return nil
		}
	}
	for _, i := range todo {
		keeps(i, fmt.Errorf("bundle keeps changing: %w", keys.ErrUnavailable))
	}
	return nil
}

// lookupSome is lookup for subjects[which...].
func (k *Keyring) lookupSome(ctx context.Context, subjects []uuid.UUID, which []int) ([]stored, error) {
	ids := make([]uuid.UUID, len(which))
	for n, i := range which {
		ids[n] = subjects[i]
	}
	found, err := k.lookup(ctx, ids)
	for n := range found {
		if found[n].err != nil {
			k.cache.drop(ids[n])
		}
	}
	return found, err
}

// shed drops the older keys, durably, of those of subjects whose row decide finds that it is needed for. The KEK is not
// asked. Outcomes are in the order of subjects, each once.
func (k *Keyring) shed(ctx context.Context, subjects []uuid.UUID, decide func(row) (bool, error)) ([]error, error) {
	out := make([]error, len(subjects))
	round := func(which []int) (overtaken []int, err error) {
		found, err := k.lookupSome(ctx, subjects, which)
		if err != nil {
			return nil, err
		}
		var changes []rowChange
		var of []int // each of changes
		for n, i := range which {
			if out[i] = found[n].err; out[i] != nil {
				continue
			}
			r, err := k.checkRow(found[n].row)
			if err == nil && (r.keys > 1) != (len(r.older) > 0) {
				err = errKeyCount
			}
			needed := false
			if err == nil {
				needed, err = decide(r)
			}
			if out[i] = err; err != nil || !needed {
				continue
			}
			changes = append(changes, rowChange{subject: subjects[i], was: found[n].row, wrapped: r.wrapped, kept: true, rotation: r.rotation, keys: 1})
			of = append(of, i)
		}
		for n, o := range k.commitRows(ctx, changes) {
			if isOf(o.err, errRowChanged) {
				overtaken = append(overtaken, of[n])
			} else if out[of[n]] = o.err; o.err == nil {
				k.cache.shed(changes[n].subject, changes[n].was, o.row)
			}
		}
		return overtaken, nil
	}
	err := again(len(subjects), round, func(i int, err error) { out[i] = err })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// plan is what renew is to do with a row: nothing unless needed; rotation and spare are what the new row says.
type plan struct {
	needed   bool
	rotation uint32
	spare    bool
}

// renew gives a new key, durably, to those of subjects whose row decide finds that it is needed for. Outcomes are in the
// order of subjects, each once: the new bundle, an error, or neither where nothing was needed.
//
// Between reading a row and replacing it nothing is locked: the transaction writes only over the very row that was
// read, else the round is begun again. After an error it may have been done; the repetition finds out.
func (k *Keyring) renew(ctx context.Context, subjects []uuid.UUID, decide func(row) (plan, error)) ([]unlocked, error) {
	out := make([]unlocked, len(subjects))
	round := func(which []int) ([]int, error) { return k.renewSome(ctx, subjects, which, out, decide) }
	if err := again(len(subjects), round, func(i int, err error) { out[i].err = err }); err != nil {
		return nil, err
	}
	return out, nil
}

// renewed is a bundle on its way through renewSome.
type renewed struct {
	index  int // in the outcomes of renew
	was    []byte
	row    row
	plan   plan
	bundle *bundle
	older  []byte            // its older keys, sealed
	sum    [sha256.Size]byte // of its newest key as the KEK wraps it
}

// renewSome does one round for subjects[which...] and returns those of which whose rows changed meanwhile.
func (k *Keyring) renewSome(ctx context.Context, subjects []uuid.UUID, which []int, out []unlocked, decide func(row) (plan, error)) (overtaken []int, err error) {
	found, err := k.lookupSome(ctx, subjects, which)
	if err != nil {
		return nil, err
	}
	var work []renewed
	var items []KEKItem
	for n, i := range which {
		if found[n].err != nil {
			out[i].err = found[n].err
			continue
		}
		r, err := k.checkRow(found[n].row)
		var p plan
		if err == nil {
			p, err = decide(r)
		}
		if out[i].err = err; err != nil || !p.needed {
			continue
		}
		work = append(work, renewed{index: i, was: found[n].row, row: r, plan: p})
		items = append(items, KEKItem{bundleContext(k.cfg.Instance, subjects[i]), r.wrapped})
	}
	if len(work) == 0 {
		return nil, nil
	}
	results, err := k.unwraps.direct(ctx, items)
	if err != nil {
		return nil, err
	}
	made := work[:0]
	var owners []uuid.UUID
	var serialised []Secret
	for n, w := range work {
		err := results[n].Err
		var s Secret
		if err == nil {
			w.bundle, s, w.older, err = renewBundle(results[n].Data, w.row.older, olderAD(k.cfg.Instance, subjects[w.index]), w.row.keys)
			results[n].Data.Wipe()
		}
		if err != nil {
			out[w.index].err = err
			continue
		}
		w.bundle.rotation = w.plan.rotation
		w.sum = sha256.Sum256(s)
		made, owners, serialised = append(made, w), append(owners, subjects[w.index]), append(serialised, s)
	}
	wrapped, err := k.wrapBundles(ctx, owners, serialised)
	if err != nil {
		return nil, err
	}
	proving := made[:0]
	items = items[:0]
	for n, w := range made {
		if err := wrapped[n].Err; err != nil {
			out[w.index].err = err
			continue
		}
		w.row.wrapped = wrapped[n].Data
		proving = append(proving, w)
		items = append(items, KEKItem{bundleContext(k.cfg.Instance, subjects[w.index]), w.row.wrapped})
	}
	if len(proving) == 0 {
		return nil, nil
	}
	// What is about to be replaced is the only copy there is, so the KEK shows first that it gives the new one back.
	if results, err = k.unwraps.direct(ctx, items); err != nil {
		return nil, err
	}
	ready := proving[:0]
	var changes []rowChange
	for n, w := range proving {
		proven := results[n].Err == nil && sha256.Sum256(results[n].Data) == w.sum
		results[n].Data.Wipe()
		if !proven {
			out[w.index].err = errUnproven
			continue
		}
		ready = append(ready, w)
		changes = append(changes, rowChange{subject: subjects[w.index], was: w.was, wrapped: w.row.wrapped, older: w.older,
			rotation: w.plan.rotation, keys: len(w.bundle.keys), spare: w.plan.spare})
	}
	for n, o := range k.commitRows(ctx, changes) {
		switch w := ready[n]; {
		case isOf(o.err, errRowChanged), isOf(o.err, errBelowFloor):
			overtaken = append(overtaken, w.index)
		case o.err != nil:
			out[w.index].err = o.err
		default:
			k.cache.replace(subjects[w.index], o.row, w.bundle)
			out[w.index].bundle = w.bundle
		}
	}
	return overtaken, nil
}
