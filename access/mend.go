package access

import (
	"context"
	"encoding/hex"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// phaseMend is the phase of entries about an index that is made anew, of a job that no sidecar knows.
const phaseMend = "mend"

// Rows beside the state of the index: "mk" holds a token of a fixed value under each index key in use, as JSON from
// version to hex, by which another key of the same version is told; "mr" is there while the index is being made anew.
var (
	indexChecksKey = []byte("mk")
	indexMendKey   = []byte("mr")
)

// indexKeys are the index keys of the sidecar: by version, a token of a fixed value.
type indexKeys map[uint32]string

func (b *Broker) indexKeys(ctx context.Context) (indexKeys, error) {
	tokens, err := b.opener.IndexTokens(ctx, "#index", "check", 0, "check") // no collection has this name
	if err != nil {
		return nil, wrapf(err, "asking for the keys of the index")
	}
	have := make(indexKeys, len(tokens))
	for _, t := range tokens {
		have[t.Key] = hex.EncodeToString(t.Token)
	}
	return have, nil
}

// of returns those that state names.
func (k indexKeys) of(state vault.IndexState) indexKeys {
	used := make(indexKeys, len(state.Keys))
	for _, key := range state.Keys {
		used[key] = k[key]
	}
	return used
}

func (k indexKeys) encode() []byte {
	row, err := json.Marshal(k, json.Deterministic(true))
	if err != nil {
		panic("access: index keys cannot be encoded: " + err.Error()) // a plain map: a bug here, not input
	}
	return row
}

// indexUse is what the store says of the index.
type indexUse struct {
	state   vault.IndexState
	checks  indexKeys // empty before they were ever kept
	raw     []byte    // the row of checks
	mending bool
}

func (b *Broker) indexUse(ctx context.Context) (use indexUse, err error) {
	err = b.store.View(ctx, func(r kv.Reader) error {
		if use.state, err = vault.LoadIndexState(r); err != nil {
			return err
		}
		rows, err := r.Get(indexChecksKey, indexMendKey)
		if err != nil {
			return err
		}
		use.checks, use.raw, use.mending = nil, rows[0], rows[1] != nil
		if rows[0] != nil && json.Unmarshal(rows[0], &use.checks) != nil {
			return wrapf(ErrIntegrity, "row of the index keys")
		}
		return nil
	})
	return use, err
}

// fits reports whether the sidecar still has the very keys that the tokens in the store were made with.
func (use indexUse) fits(have indexKeys) bool {
	for _, key := range use.state.Keys {
		token, ok := have[key]
		if check := use.checks[key]; !ok || check != "" && check != token {
			return false
		}
	}
	return true
}

// IndexFits reports whether the index can be used with the index keys of the sidecar. If not, MendIndex makes it anew.
func (b *Broker) IndexFits(ctx context.Context) (bool, error) {
	have, err := b.indexKeys(ctx)
	if err != nil {
		return false, err
	}
	use, err := b.indexUse(ctx)
	return err == nil && !use.mending && use.fits(have), err
}

// keepIndexChecks keeps what tells the index keys in use from others.
func (b *Broker) keepIndexChecks(ctx context.Context) error {
	have, err := b.indexKeys(ctx)
	if err != nil {
		return err
	}
	use, err := b.indexUse(ctx)
	if err != nil || !use.fits(have) || slices.Equal(use.raw, have.of(use.state).encode()) {
		return err
	}
	return wrapNotNil(b.store.Update(kv.UseReserve(ctx), func(w kv.Writer) error {
		w.Set(indexChecksKey, have.of(use.state).encode())
		return nil
	}), "keeping what tells the keys of the index")
}

// MendIndex makes the whole index anew when the sidecar no longer has the keys that it was made with: of the two stores,
// one was restored from a backup that is older than a rotation of the index. Otherwise lookups would find nothing, and
// two subjects could get one value that is unique. It must be called before anything is served, and nothing may be
// written meanwhile. Interrupted, it is begun anew by the next call.
//
// It goes by the values that are sealed beside the tokens. A subject whose values do not open is left out of the index,
// and counted.
func (r *Rotator) MendIndex(ctx context.Context) (mended bool, lost int, err error) {
	b := r.broker
	have, err := b.indexKeys(ctx)
	if err != nil {
		return false, 0, err
	}
	use, err := b.indexUse(ctx)
	if err != nil {
		return false, 0, err
	}
	if use.fits(have) && !use.mending {
		return false, 0, b.keepIndexChecks(ctx)
	}
	total, err := r.countSubjects(ctx)
	if err != nil {
		return false, 0, err
	}
	b.log.Warn("the sidecar no longer has the keys of the index: it is made anew", "subjects", total)
	job := RotationJob{ID: uuid.Must(uuid.NewV7()).String(), Scope: ScopeIndex, Started: b.now()}
	entry := r.entry(verify.KindKeyRotated, job)
	entry.Keys.Phase, entry.Keys.Total, entry.Keys.Left = phaseMend, total, total
	next := vault.IndexState{}
	for key := range have {
		next.Keys = append(next.Keys, key)
	}
	slices.Sort(next.Keys)
	next.Read = next.Keys[len(next.Keys)-1]
	become, err := use.state.Become(next)
	if err != nil {
		return false, 0, err
	}
	_, err = b.ledger.Append(ctx, entry, func(ledger.Position) kv.Change {
		become.Set(indexChecksKey, have.of(next).encode())
		become.Set(indexMendKey, []byte(job.ID))
		return become
	})
	if err != nil {
		return false, 0, wrapf(err, "announcing that the index is made anew")
	}
	if err := b.clearIndex(ctx); err != nil {
		return false, 0, err
	}
	pass := &reindexing{Rotator: r, phase: phaseMend, schemas: b.schemas(ctx), anew: true}
	p := &progress{rotator: r, job: job, phase: phaseMend}
	if err := pass.all(ctx, p); err != nil {
		return false, 0, wrapf(err, "making the index anew")
	}
	lost = int(pass.lost.Load())
	entry = r.entry(verify.KindKeyRotated, job)
	entry.Keys.Phase, entry.Keys.Total, entry.Keys.Left = phaseMend, total, int64(lost)
	_, err = b.ledger.Append(ctx, entry, func(ledger.Position) kv.Change {
		var change kv.Change
		change.Delete(indexMendKey)
		return change
	})
	if err != nil {
		return false, lost, wrapf(err, "recording that the index was made anew")
	}
	return true, lost, nil
}

// clearIndex removes every row of the index.
func (b *Broker) clearIndex(ctx context.Context) error {
	for {
		var keys [][]byte
		err := b.store.View(ctx, func(r kv.Reader) (err error) {
			keys, err = vault.IndexRowKeys(r, 1000)
			return err
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		err = b.store.Update(kv.UseReserve(ctx), func(w kv.Writer) error {
			for _, key := range keys {
				w.Delete(key)
			}
			return nil
		})
		if err != nil {
			return wrapf(err, "removing rows of the index")
		}
	}
}
