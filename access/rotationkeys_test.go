package access_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault"
)

// ringKeys is a sidecar whose keys are numbers: a ciphertext is the number of its key, what it is bound to, and the
// plaintext. It does what the sidecar promises about keys, checks nothing of the ledger, and is fast enough to make
// thousands of races. Before it answers it waits a random moment, so that what it answers is old when it arrives.
type ringKeys struct {
	t     *testing.T
	delay time.Duration

	mu sync.Mutex // guards all below
	// before, when set, is called before each call is carried out, outside of the lock; an error of it is the
	// call's. after is the same when it was carried out.
	before, after func(call string) error

	bundles  map[uuid.UUID]*bundle
	rotation uint32
	index    []uint32
	jobs     []access.RotationJob // the newest first
	served   map[int64]bool
	opened   int
}

// bundle is the keys of a subject.
type bundle struct {
	ref       []byte
	keys      []int // the newest last
	rotation  uint32
	destroyed bool
}

func newRingKeys(t *testing.T) *ringKeys {
	return &ringKeys{t: t, bundles: make(map[uuid.UUID]*bundle), index: []uint32{1}, served: make(map[int64]bool)}
}

// do carries out one call.
func (k *ringKeys) do(ctx context.Context, call string, f func() error) error {
	k.mu.Lock()
	before, after := k.before, k.after
	k.mu.Unlock()
	if before != nil {
		if err := before(call); err != nil {
			return err
		}
	}
	k.mu.Lock()
	err := f()
	k.mu.Unlock()
	if err == nil && after != nil {
		err = after(call)
	}
	if k.delay > 0 {
		time.Sleep(mathrand.N(k.delay))
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// hook sets what is called before and after each call.
func (k *ringKeys) hook(before, after func(call string) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.before, k.after = before, after
}

func (k *ringKeys) bundle(subject uuid.UUID) (*bundle, error) {
	b := k.bundles[subject]
	switch {
	case b == nil:
		return nil, keys.ErrNoKey
	case b.destroyed:
		return nil, keys.ErrDestroyed
	}
	return b, nil
}

func (b *bundle) newest() int { return b.keys[len(b.keys)-1] }

func (b *bundle) seal(binding string, plain []byte) []byte {
	return fmt.Appendf(nil, "%d|%x|%s|%s", b.newest(), b.ref, binding, plain)
}

func (b *bundle) open(binding string, sealed []byte) (plain []byte, newest bool, err error) {
	for _, key := range b.keys {
		if plain, ok := bytes.CutPrefix(sealed, fmt.Appendf(nil, "%d|%x|%s|", key, b.ref, binding)); ok {
			return plain, key == b.newest(), nil
		}
	}
	return nil, false, keys.ErrTampered
}

func fieldBinding(collection, field string, version uint64) string {
	return fmt.Sprintf("%s/%s/%d", collection, field, version)
}

func indexBinding(collection, field string, normaliser uint32) string {
	return fmt.Sprintf("index/%s/%s/%d", collection, field, normaliser)
}

const detailBinding = "detail"

func (k *ringKeys) tokens(collection, field string, normaliser uint32, value string) []vault.IndexToken {
	var out []vault.IndexToken
	for _, key := range k.index {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d/%s/%s/%d/%s", key, collection, field, normaliser, value))
		out = append(out, vault.IndexToken{Key: key, Token: sum[:16]})
	}
	return out
}

func (k *ringKeys) Seal(ctx context.Context, subject uuid.UUID, create bool, fields []vault.SealField) (ref []byte, sealed []vault.SealedField, err error) {
	err = k.do(ctx, "Seal", func() error {
		if create {
			if k.bundles[subject] != nil {
				return keys.ErrKeyExists
			}
			b := &bundle{ref: make([]byte, 32), keys: []int{1}, rotation: k.rotation}
			rand.Read(b.ref)
			k.bundles[subject] = b
		}
		b, err := k.bundle(subject)
		if err != nil {
			return err
		}
		ref = b.ref
		sealed = make([]vault.SealedField, len(fields))
		for i, f := range fields {
			plain := f.Plaintext
			if f.Carry != nil {
				if plain, _, err = b.open(fieldBinding(f.Collection, f.Field, f.CarryVersion), f.Carry); err != nil {
					return err
				}
			}
			sealed[i].Ciphertext = b.seal(fieldBinding(f.Collection, f.Field, f.Version), plain)
			for _, v := range f.Index {
				value := []byte(v.Value)
				binding := indexBinding(f.Collection, f.Field, v.Normaliser)
				if v.Sealed != nil {
					if value, _, err = b.open(binding, v.Sealed); err != nil {
						return err
					}
				}
				sealed[i].Index = append(sealed[i].Index, vault.IndexedValue{
					Sealed: b.seal(binding, value), Tokens: k.tokens(f.Collection, f.Field, v.Normaliser, string(value)),
				})
			}
		}
		return nil
	})
	return ref, sealed, err
}

func (k *ringKeys) Prepare(ctx context.Context, subject uuid.UUID, detail []byte) (ref, sealed []byte, err error) {
	err = k.do(ctx, "Prepare", func() error {
		b, err := k.bundle(subject)
		if err != nil {
			return err
		}
		ref = b.ref
		if len(detail) > 0 {
			sealed = b.seal(detailBinding, detail)
		}
		return nil
	})
	return ref, sealed, err
}

func (k *ringKeys) IndexTokens(ctx context.Context, collection, field string, normaliser uint32, value string) (tokens []vault.IndexToken, err error) {
	err = k.do(ctx, "IndexTokens", func() error {
		tokens = k.tokens(collection, field, normaliser, value)
		return nil
	})
	return tokens, err
}

func (k *ringKeys) Open(ctx context.Context, index int64, _ []byte, subject uuid.UUID, collection string, version uint64, fields []access.OpenField) (opened []access.OpenedField, err error) {
	err = k.do(ctx, "Open", func() error {
		if k.served[index] {
			return keys.ErrReplayed
		}
		b, err := k.bundle(subject)
		if err != nil {
			return err
		}
		opened = make([]access.OpenedField, len(fields))
		for i, f := range fields {
			plain, _, err := b.open(fieldBinding(collection, f.Field, version), f.Ciphertext)
			if err != nil {
				return err
			}
			if f.Expect != nil {
				opened[i].Match = bytes.Equal(plain, f.Expect)
			} else {
				opened[i].Plaintext = plain
			}
		}
		k.served[index] = true
		k.opened++
		return nil
	})
	return opened, err
}

func (k *ringKeys) OpenAll(ctx context.Context, calls []access.OpenCall) []access.OpenOutcome {
	out := make([]access.OpenOutcome, len(calls))
	for i, q := range calls {
		out[i].Fields, out[i].Err = k.Open(ctx, q.Index, q.Entry, q.Subject, q.Collection, q.Version, q.Fields)
	}
	return out
}

// checkCall fails the test for a call that the sidecar would refuse.
func (k *ringKeys) checkCall(call string, subjects int) {
	if subjects == 0 || subjects > 1000 {
		k.t.Errorf("%s of %d subjects", call, subjects)
	}
}

func (k *ringKeys) Reseal(ctx context.Context, rotation uint32, subjects []access.ResealSubject) (out []access.ResealedSubject, err error) {
	err = k.do(ctx, "Reseal", func() error {
		k.checkCall("Reseal", len(subjects))
		out = make([]access.ResealedSubject, len(subjects))
		for i, s := range subjects {
			b, err := k.bundle(s.Subject)
			if err != nil {
				out[i].Err = err
				continue
			}
			if b.rotation < rotation {
				b.keys, b.rotation = append(b.keys, b.newest()+1), rotation
			}
			out[i].Ref = b.ref
			out[i].Ciphertexts = make([][]byte, len(s.Items))
			for j, item := range s.Items {
				binding := detailBinding
				switch item.Kind {
				case 0:
					binding = fieldBinding(item.Collection, item.Field, item.Version)
				case 1:
					binding = indexBinding(item.Collection, item.Field, item.Normaliser)
				}
				plain, newest, err := b.open(binding, item.Ciphertext)
				if err != nil {
					out[i] = access.ResealedSubject{Err: err}
					break
				}
				if !newest {
					out[i].Ciphertexts[j] = b.seal(binding, plain)
				}
			}
		}
		return nil
	})
	return out, err
}

func (k *ringKeys) Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) (out []error, err error) {
	err = k.do(ctx, "Retire", func() error {
		k.checkCall("Retire", len(subjects))
		out = make([]error, len(subjects))
		for i, id := range subjects {
			b, err := k.bundle(id)
			switch {
			case err != nil:
				out[i] = err
			case b.rotation < rotation:
				out[i] = keys.ErrInvalid
			default:
				b.keys = b.keys[len(b.keys)-1:]
			}
		}
		return nil
	})
	return out, err
}

func (k *ringKeys) Reindex(ctx context.Context, subjects []access.ReindexSubject) (out []access.ReindexedSubject, err error) {
	err = k.do(ctx, "Reindex", func() error {
		k.checkCall("Reindex", len(subjects))
		out = make([]access.ReindexedSubject, len(subjects))
		for i, s := range subjects {
			b, err := k.bundle(s.Subject)
			if err != nil {
				out[i].Err = err
				continue
			}
			out[i].Ref = b.ref
			for _, v := range s.Values {
				value, _, err := b.open(indexBinding(v.Collection, v.Field, v.Normaliser), v.Sealed)
				if err != nil {
					out[i] = access.ReindexedSubject{Err: err}
					break
				}
				out[i].Tokens = append(out[i].Tokens, k.tokens(v.Collection, v.Field, v.Normaliser, string(value)))
			}
		}
		return nil
	})
	return out, err
}

// start begins a job.
func (k *ringKeys) start(scope string, subject uuid.UUID) access.RotationJob {
	k.mu.Lock()
	defer k.mu.Unlock()
	job := access.RotationJob{
		ID: uuid.Must(uuid.NewV7()).String(), Scope: scope, Subject: subject, By: "test", State: "running",
		Started: time.Now(), Recorded: -1,
	}
	switch scope {
	case "subject", "all-subjects":
		k.rotation++
		job.Target = uint64(k.rotation)
	case "index":
		next := k.index[len(k.index)-1] + 1
		k.index = append(slices.Clone(k.index), next)
		job.Target = uint64(next)
	default:
		job.Target = 2
	}
	k.jobs = append([]access.RotationJob{job}, k.jobs...)
	return job
}

func (k *ringKeys) Jobs(ctx context.Context) (jobs []access.RotationJob, err error) {
	err = k.do(ctx, "Jobs", func() error {
		jobs = slices.Clone(k.jobs)
		return nil
	})
	return jobs, err
}

func (k *ringKeys) AdvanceJob(ctx context.Context, id string, p access.RotationProgress) (job access.RotationJob, err error) {
	err = k.do(ctx, "AdvanceJob", func() error {
		i := slices.IndexFunc(k.jobs, func(j access.RotationJob) bool { return j.ID == id })
		if i < 0 {
			return keys.ErrNoJob
		}
		j := &k.jobs[i]
		j.Done, j.Total = p.Done, p.Total
		if p.Phase != "" {
			j.Phase = p.Phase
		}
		if p.Recorded >= 0 {
			if j.Recorded >= 0 && j.Recorded != p.Recorded {
				k.t.Errorf("job recorded at %d and at %d", j.Recorded, p.Recorded)
			}
			j.Recorded = p.Recorded
		}
		if p.Failure != "" {
			j.State, j.Failure = "failed", p.Failure
		}
		if p.Finish {
			k.finishLocked(j)
		}
		job = *j
		return nil
	})
	return job, err
}

func (k *ringKeys) finishLocked(j *access.RotationJob) {
	switch j.Scope {
	case "all-subjects":
		if j.Phase != "orphans" {
			k.t.Errorf("finished in phase %q", j.Phase)
		}
		for _, b := range k.bundles { // keys of subjects that never came to be
			if b.rotation < uint32(j.Target) {
				b.keys, b.rotation = []int{b.newest() + 1}, uint32(j.Target)
			}
		}
	case "index":
		k.index = []uint32{uint32(j.Target)}
	}
	j.State, j.Finished, j.Evidence = "done", time.Now(), "evidence of "+j.ID
}

func (k *ringKeys) job(id string) access.RotationJob {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, j := range k.jobs {
		if j.ID == id {
			return j
		}
	}
	k.t.Fatal("no such job")
	return access.RotationJob{}
}

// Destroy destroys a bundle, on whatever proof.
func (k *ringKeys) Destroy(ctx context.Context, _ int64, _ []byte, subject uuid.UUID) (out access.Destroyed, err error) {
	err = k.do(ctx, "Destroy", func() error {
		out = access.Destroyed{Generation: 1, KEKVersion: 1, Already: k.bundles[subject].destroyed}
		k.bundles[subject].destroyed = true
		return nil
	})
	return out, err
}
