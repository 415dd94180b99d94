package keyring

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/prototypster/pdvault/vault/kv"
)

// maxVersions bounds how many versions of one kind are counted apart. There are some two at a time; who writes to
// the key store could make it millions.
const maxVersions = 1_000

// Inventory counts every version in use: of the KEK by what is wrapped under it, of subjects' keys by rotation, of
// the keysets of the instance by key. It reads the whole key store; what is written meanwhile is counted or not, and rows
// that do not parse are not.
func (k *Keyring) Inventory(ctx context.Context) (Inventory, error) {
	if _, err := k.current(); err != nil {
		return Inventory{}, err
	}
	inv, err := k.count(ctx)
	if err != nil {
		return Inventory{}, err
	}
	if inv.NextEpoch, inv.EpochInterval, err = k.NextEpoch(ctx); err != nil {
		return Inventory{}, err
	}
	return inv, nil
}

// NextEpoch tells by when the next epoch is due, and how long after that the one that follows; zero when none is planned.
func (k *Keyring) NextEpoch(ctx context.Context) (due time.Time, interval time.Duration, err error) {
	if _, err := k.current(); err != nil {
		return time.Time{}, 0, err
	}
	if k.cfg.Epochs == nil || k.cfg.EpochInterval == 0 {
		return time.Time{}, 0, nil
	}
	last, err := k.lastEpoch(ctx)
	if err != nil {
		return time.Time{}, 0, err
	}
	if now := k.cfg.Now(); last.IsZero() || last.After(now) {
		last = now
	}
	return last.Add(k.cfg.EpochInterval).UTC(), k.cfg.EpochInterval, nil
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
