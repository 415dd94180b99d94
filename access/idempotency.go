package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
)

// idempotencyTTL is how long a repeated POST finds its first outcome.
const idempotencyTTL = 24 * time.Hour

// outcome is what a POST with an idempotency key did. It refers to the result and holds no plaintext.
//
// Stored as JSON under 'i' ‖ SHA-256(caller ‖ 0 ‖ route ‖ 0 ‖ key), in the transaction of the effect. Beside it,
// 'y' ‖ subject ‖ the same hash is empty: it leads from a subject to the outcomes that an erasure has to forget.
// Of those nothing is kept but that there was one.
//
// The fingerprint of the body is kept under each index key in use. When every one of them has been dropped since, what
// was asked for then cannot be compared with what is asked for now: the key is refused like one that comes with another
// request, for neither a second effect nor the outcome of another request may come of it.
type outcome struct {
	Fingerprints []fingerprint `json:"f,omitempty"`
	Subject      uuid.UUID     `json:"s,omitzero"`
	Consent      uuid.UUID     `json:"c,omitzero"`
	Version      uint64        `json:"v,omitzero"`
	Entry        int64         `json:"e"`
	At           time.Time     `json:"t"`
	Erased       bool          `json:"x,omitzero"` // the subject was erased, and this is all that is left
}

// fingerprint is a PRF, by the sidecar, of the SHA-256 of a body.
type fingerprint struct {
	Key uint32 `json:"k"` // version of the index key
	PRF string `json:"p"` // hex
}

// earlier is what is known of a request's idempotency key before it runs.
type earlier struct {
	outcome
	key          []byte // nil: the request has no key
	raw          []byte // the row as it was seen: nil, or one that has expired
	fingerprints []fingerprint
}

// replay looks for the outcome of an earlier request with the same key. done says that there is one.
func (b *Broker) replay(ctx context.Context, r Request, id Idempotency) (e earlier, done bool, err error) {
	if id.Key == "" {
		return earlier{}, false, nil
	}
	scope := sha256.Sum256(bytes.Join([][]byte{[]byte(r.Caller.ID), []byte(id.Route), []byte(id.Key)}, []byte{0}))
	// A digest of a body is as good as its personal data to who can guess that: it is kept only under a key
	// of the sidecar. No collection has this name.
	tokens, err := b.opener.IndexTokens(ctx, "#idempotency", "body", 0, hex.EncodeToString(id.Fingerprint[:]))
	if err != nil {
		return earlier{}, false, wrapf(err, "computing the fingerprint")
	}
	e = earlier{key: append([]byte{'i'}, scope[:]...)}
	for _, t := range tokens {
		e.fingerprints = append(e.fingerprints, fingerprint{t.Key, hex.EncodeToString(t.Token)})
	}
	err = b.store.View(ctx, func(reader kv.Reader) error {
		rows, err := reader.Get(e.key)
		if err != nil {
			return err
		}
		e.raw = rows[0]
		return nil
	})
	if err != nil || e.raw == nil {
		return e, false, err
	}
	if err := json.Unmarshal(e.raw, &e.outcome, json.RejectUnknownMembers(true)); err != nil {
		return e, false, wrapf(ErrIntegrity, "row of an idempotency key")
	}
	if b.now().Sub(e.At) > idempotencyTTL {
		return e, false, nil
	}
	if e.Erased {
		return earlier{}, false, ErrNotFound
	}
	if !slices.ContainsFunc(e.fingerprints, func(f fingerprint) bool { return slices.Contains(e.Fingerprints, f) }) {
		return e, false, ErrIdempotencyMismatch
	}
	return e, true, nil
}

// keep adds the outcome to change, on the condition that no other request with the key came first; the
// loser of such a race tries again and finds the winner's outcome.
func (e earlier) keep(change *kv.Change, o outcome) {
	if e.key == nil {
		return
	}
	o.Fingerprints = e.fingerprints
	row, err := json.Marshal(&o)
	if err != nil {
		panic("access: outcome cannot be encoded: " + err.Error()) // plain struct: a bug here, not input
	}
	change.Expect(e.key, e.raw, errAgain)
	if e.raw != nil {
		change.Delete(outcomeOfKey(e.Subject, e.key)) // of the outcome that has expired
	}
	change.Set(e.key, row)
	change.Set(outcomeOfKey(o.Subject, e.key), []byte{})
}

// outcomeOfKey is the row that leads from a subject to an outcome.
func outcomeOfKey(subject uuid.UUID, key []byte) []byte {
	return slices.Concat([]byte{'y'}, subject[:], key[1:])
}

// forgetOutcomes returns the change that leaves nothing of the subject in the outcomes of idempotency keys. A
// request that comes again is not carried out again: the person would be back.
func forgetOutcomes(r kv.Reader, subject uuid.UUID) (kv.Change, error) {
	var change kv.Change
	prefix := append([]byte{'y'}, subject[:]...)
	var after []byte
	for {
		pairs, err := r.Scan(prefix, after, 500)
		if err != nil {
			return kv.Change{}, wrapf(err, "looking for outcomes")
		}
		for _, p := range pairs {
			change.Delete(p.Key)
			after = p.Key
			key := append([]byte{'i'}, p.Key[len(prefix):]...)
			rows, err := r.Get(key)
			if err != nil {
				return kv.Change{}, wrapf(err, "reading an outcome")
			}
			if rows[0] == nil {
				continue
			}
			var o outcome
			if err := json.Unmarshal(rows[0], &o, json.RejectUnknownMembers(true)); err != nil {
				return kv.Change{}, wrapf(ErrIntegrity, "row of an idempotency key")
			}
			if o.Subject == subject {
				change.Expect(key, rows[0], errAgain) // one that has expired may become another subject's
				change.Set(key, encodeRow(&outcome{At: o.At, Erased: true}))
			}
		}
		if len(pairs) < 500 {
			return change, nil
		}
	}
}

// Sweep deletes the outcomes of idempotency keys that have expired. It is run from time to time by the
// owner of the broker; nothing depends on it but the size of the store.
func (b *Broker) Sweep(ctx context.Context) (deleted int, err error) {
	var after []byte
	for {
		var expired [][]byte
		var last []byte
		err := b.store.View(ctx, func(r kv.Reader) error {
			expired, last = nil, nil
			pairs, err := r.Scan([]byte{'i'}, after, 500)
			if err != nil {
				return err
			}
			for _, p := range pairs {
				var o outcome
				if json.Unmarshal(p.Value, &o) == nil && b.now().Sub(o.At) > idempotencyTTL {
					expired = append(expired, p.Key)
				}
				last = p.Key
			}
			return nil
		})
		if err != nil || last == nil {
			return deleted, err
		}
		after = last
		if len(expired) == 0 {
			continue
		}
		err = b.store.Update(ctx, func(w kv.Writer) error {
			for _, key := range expired {
				// A key may have been used again since it was seen.
				rows, err := w.Get(key)
				if err != nil {
					return err
				}
				var o outcome
				if rows[0] != nil && json.Unmarshal(rows[0], &o) == nil && b.now().Sub(o.At) > idempotencyTTL {
					w.Delete(key)
					w.Delete(outcomeOfKey(o.Subject, key))
				}
			}
			return nil
		})
		if errors.Is(err, kv.ErrConflict) {
			continue
		}
		if err != nil {
			return deleted, err
		}
		deleted += len(expired)
	}
}
