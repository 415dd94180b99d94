package keyring

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

const defaultInventoryAge = 15 * time.Second

// maxVersions bounds how many versions of one kind are counted apart. There are some two at a time; who writes to
// the key store could make it millions.
const maxVersions = 1_000

// inventories keeps the newest count, so that asking often does not read the key store often.
type inventories struct {
	turn  chan struct{} // held, as its one element, by who counts
	last  Inventory     // guarded by turn
	ended int64         // jobs that had ended when last was begun; guarded by turn

	jobs atomic.Int64 // that have ended in this process
}

// Inventory counts every version in use: of the KEK by what is wrapped under it, of subjects' keys by rotation, of
// the keysets of the instance by key. The count may be as old as Config.InventoryAge, but not older than the end of a
// job here, and what was written while it was made is counted or not. Rows that do not parse are not counted.
func (k *Keyring) Inventory(ctx context.Context) (Inventory, error) {
	if _, err := k.current(); err != nil {
		return Inventory{}, err
	}
	select {
	case k.inventories.turn <- struct{}{}:
		defer func() { <-k.inventories.turn }()
	case <-ctx.Done():
		return Inventory{}, fmt.Errorf("waiting for a count: %w: %w", keys.ErrUnavailable, context.Cause(ctx))
	}
	inv, ended := k.inventories.last, k.inventories.jobs.Load()
	if age := k.cfg.Now().Sub(inv.Counted); inv.Counted.IsZero() || age < 0 || age >= k.cfg.InventoryAge || k.inventories.ended != ended {
		var err error
		if inv, err = k.count(ctx); err != nil {
			return Inventory{}, err
		}
		k.inventories.last, k.inventories.ended = inv, ended
	}
	inv.Versions = slices.Clone(inv.Versions)
	if k.cfg.Epochs != nil && k.cfg.EpochInterval > 0 {
		last, err := k.lastEpoch(ctx)
		if err != nil {
			return Inventory{}, err
		}
		inv.EpochInterval = k.cfg.EpochInterval
		if last.IsZero() {
			last = k.cfg.Now()
		}
		inv.NextEpoch = last.Add(k.cfg.EpochInterval).UTC()
	}
	return inv, nil
}

type versionKey struct {
	kind    string
	version uint64
}

func (k *Keyring) count(ctx context.Context) (Inventory, error) {
	inv := Inventory{Counted: k.cfg.Now().UTC()}
	records, err := k.jobRecords(ctx)
	if err != nil {
		return Inventory{}, err
	}
	counts := make(map[versionKey]int64)
	kinds := make(map[string]int)
	add := func(kind string, version uint64) {
		at := versionKey{kind, version}
		if _, ok := counts[at]; !ok {
			if kinds[kind] >= maxVersions {
				return
			}
			kinds[kind]++
		}
		counts[at]++
	}
	wrapped := func(p kv.Pair) (row, bool) {
		r, err := decodeRow(p.Value)
		if err != nil || r.kek != k.cfg.KEK.Name() {
			return row{}, false
		}
		if version, err := k.cfg.KEK.Version(r.wrapped); err == nil {
			add("kek", version)
		}
		return r, true
	}
	err = k.scan(ctx, prefixBundle, nil, func(p kv.Pair) error {
		inv.Subjects++
		if r, ok := wrapped(p); ok {
			add("subject", uint64(r.rotation))
		}
		return nil
	})
	if err != nil {
		return Inventory{}, err
	}
	err = k.scan(ctx, prefixKeyset, nil, func(p kv.Pair) error { wrapped(p); return nil })
	if err != nil {
		return Inventory{}, err
	}
	err = k.scan(ctx, prefixTomb, nil, func(kv.Pair) error { inv.Destroyed++; return nil })
	if err != nil {
		return Inventory{}, err
	}
	made := madeBy(records)
	for at, n := range counts {
		inv.Versions = append(inv.Versions, KeyVersion{Kind: at.kind, Version: at.version, Count: n, Made: made[at]})
	}
	in, err := k.current()
	if err != nil {
		return Inventory{}, err
	}
	for _, v := range in.keyVersions() {
		v.Made = v.Made.UTC()
		inv.Versions = append(inv.Versions, v)
	}
	slices.SortFunc(inv.Versions, func(a, b KeyVersion) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(b.Version, a.Version))
	})
	for i := range inv.Versions {
		inv.Versions[i].Newest = i == 0 || inv.Versions[i-1].Kind != inv.Versions[i].Kind
	}
	return inv, nil
}

// madeBy tells when the versions were made that jobs have made.
func madeBy(records []jobRecord) map[versionKey]time.Time {
	made := make(map[versionKey]time.Time)
	for _, r := range records {
		switch at := time.UnixMilli(r.Started).UTC(); r.Scope {
		case ScopeKEK:
			made[versionKey{"kek", r.Target}] = at
		case ScopeSubject, ScopeAllSubjects:
			made[versionKey{"subject", r.Target}] = at
		}
	}
	return made
}
