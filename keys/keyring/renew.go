package keyring

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// shed drops the older keys, durably, of those of subjects whose row decide finds that it is needed for. The KEK is not
// asked: what it has wrapped stays as it is, so an epoch finds the row as it would have found the one before. Outcomes
// are in the order of subjects, each once.
func (k *Keyring) shed(ctx context.Context, subjects []uuid.UUID, decide func(row) (bool, error)) ([]error, error) {
	out := make([]error, 0, len(subjects))
	for len(out) < len(subjects) {
		part := subjects[len(out):]
		done, err := k.shedSome(ctx, part[:min(len(part), maxCommitChanges)], decide)
		if err != nil {
			return nil, err
		}
		out = append(out, done...)
	}
	return out, nil
}

// shedSome is shed in one transaction, for as many of subjects, one at least, as it takes.
func (k *Keyring) shedSome(ctx context.Context, subjects []uuid.UUID, decide func(row) (bool, error)) ([]error, error) {
	asked := make([][]byte, 0, 2*len(subjects))
	for _, s := range subjects {
		asked = append(asked, keyBundle(s), keyTombstone(s))
	}
	type replaced struct {
		subject  uuid.UUID
		was, now []byte
	}
	var out []error
	var changed []replaced
	err := k.writes.do(ctx, &change{items: len(subjects), bytes: maxCommitBytes,
		apply: func(w kv.Writer, generation uint64) (bool, error) {
			out, changed = nil, nil
			values, err := w.Get(asked...)
			if err != nil {
				return false, err
			}
			size := 0
			for i, s := range subjects {
				was, tomb := values[2*i], values[2*i+1]
				if size += len(was); i > 0 && size > maxCommitBytes {
					break
				}
				r, needed, err := k.sheds(was, tomb, generation, decide)
				out = append(out, err)
				if !needed {
					continue
				}
				now := row{generation, r.rotation, 1, false, r.kek, nil, r.wrapped}.encode()
				w.Set(asked[2*i], now)
				changed = append(changed, replaced{s, was, now})
			}
			return len(changed) > 0, nil
		}})
	if err != nil { // the transaction may still be under way, when ctx has ended, and with it out and changed
		return nil, err
	}
	for _, c := range changed {
		k.cache.shed(c.subject, c.was, c.now)
	}
	return out, nil
}

// sheds decides about a row and tombstone as they are stored when generation is written.
func (k *Keyring) sheds(was, tomb []byte, generation uint64, decide func(row) (bool, error)) (r row, needed bool, err error) {
	switch {
	case tomb != nil:
		return row{}, false, keys.ErrDestroyed
	case was == nil:
		return row{}, false, keys.ErrNoKey
	}
	if r, err = k.checkRowAt(was, generation); err != nil {
		return row{}, false, err
	}
	if (r.keys > 1) != (len(r.older) > 0) {
		return row{}, false, errKeyCount
	}
	needed, err = decide(r)
	return r, needed && err == nil, err
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
	todo := make([]int, len(subjects))
	for i := range todo {
		todo[i] = i
	}
	for range maxRounds {
		var again []int
		for part := range slices.Chunk(todo, maxBatch) {
			overtaken, err := k.renewSome(ctx, subjects, part, out, decide)
			if err != nil {
				return nil, err
			}
			again = append(again, overtaken...)
		}
		if todo = again; len(todo) == 0 {
			return out, nil
		}
	}
	for _, i := range todo {
		out[i] = unlocked{err: fmt.Errorf("bundle keeps changing: %w", keys.ErrUnavailable)}
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
	ids := make([]uuid.UUID, len(which))
	for n, i := range which {
		ids[n] = subjects[i]
	}
	found, err := k.lookup(ctx, ids)
	if err != nil {
		return nil, err
	}
	var work []renewed
	var items []KEKItem
	for n, i := range which {
		if found[n].err != nil {
			k.cache.drop(ids[n])
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
