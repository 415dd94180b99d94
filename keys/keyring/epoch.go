package keyring

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// More of the key store's keys, which epochs need beside the floor:
//
//	e   when the last epoch ended, or the schedule began: Unix milliseconds, 8 bytes, big endian
//	n   the subject of a bundle that was wrapped last, 16 bytes: what Open tries the KEK on
//	r   numbers of rotations, see keyRotations
//
// The floor is raised before everything is looked at for the last time, and each transaction that writes a row reads
// it. So a row that was wrapped before the KEK was rotated, and written after its part of the store was looked at,
// is refused and wrapped again by its writer; none can be missed.
var (
	keyLastEpoch = []byte("e")
	keyNewest    = []byte("n")

	prefixBundle  = []byte("b/")
	prefixKeyset  = []byte("k/")
	prefixTomb    = []byte("t/")
	wrappedBundle = [][]byte{prefixBundle, prefixKeyset} // where there is something wrapped
)

const (
	maxEpochInterval  = 30 * 24 * time.Hour
	defaultEpochPause = 6

	maxCalls    = 2           // to the KEK at once
	busyPart    = 4           // while others ask for keys, a batch is the busyPart-th of EpochBatch
	maxPause    = time.Second // after a batch
	saveEvery   = time.Second // of the progress
	scanPage    = 1_000       // rows read at a time
	minRetry    = time.Second
	maxRetry    = time.Minute
	maxJitter   = 10 * time.Second
	idleCheck   = time.Minute // how often the schedule is looked at
	afterFailed = time.Hour   // until a scheduled epoch that failed is begun again
	retireCalls = 4           // times KEKTimeout for a call of Epochs, which is several requests
)

// floorOf reads the floor.
func floorOf(r kv.Reader) (uint64, error) {
	values, err := r.Get(keyFloor)
	if err != nil {
		return 0, err
	}
	return decodeFloor(values[0])
}

// newestVersion asks the KEK which version wraps now.
func (k *Keyring) newestVersion(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.KEKTimeout)
	defer cancel()
	wrapped, err := callKEK(ctx, k.cfg.KEK.Wrap, []KEKItem{{selfTestContext(k.cfg.Instance, 'v'), []byte("version")}})
	if err != nil {
		return 0, err
	}
	return k.cfg.KEK.Version(wrapped[0])
}

// canary unwraps the bundle that was wrapped last. When HashiCorp Vault, or the root-key file, was put back to an
// older state, the instance's keysets may still unwrap and newer bundles not: better to find out before serving.
func (k *Keyring) canary(ctx context.Context) error {
	switch err := k.unwrapsNewest(ctx); {
	case err == nil:
		return nil
	case isOf(err, keys.ErrKEKMissing), isOf(err, keys.ErrUnavailable):
		return err
	default:
		// One damaged bundle must not keep everybody's shut.
		k.cfg.Logger.Error("the newest bundle does not unwrap", "error", err)
		return nil
	}
}

// unwrapsStored unwraps the oldest and the newest that there is, and reports why that cannot be done: a keyset of the
// instance, which only an epoch wraps again, and the bundle that was wrapped last. It misses a single row.
func (k *Keyring) unwrapsStored(ctx context.Context) error {
	err := k.unwrapsRow(ctx, func(r kv.Reader) (row, context []byte, err error) {
		values, err := r.Get(keyKeyset("service"))
		if err != nil {
			return nil, nil, err
		}
		return values[0], keysetContext(k.cfg.Instance, "service"), nil
	})
	if err != nil {
		return err
	}
	if err := k.unwrapsNewest(ctx); err != nil && !isOf(err, keys.ErrTampered) { // which is one person's trouble
		return err
	}
	return nil
}

// unwrapsNewest unwraps the bundle that was wrapped last, and reports why that cannot be done.
func (k *Keyring) unwrapsNewest(ctx context.Context) error {
	var subject uuid.UUID
	return k.unwrapsRow(ctx, func(r kv.Reader) (row, context []byte, err error) {
		values, err := r.Get(keyNewest)
		if err != nil || len(values[0]) != len(subject) {
			return nil, nil, err // none was made yet
		}
		copy(subject[:], values[0])
		values, err = r.Get(keyBundle(subject))
		if err != nil {
			return nil, nil, err
		}
		return values[0], bundleContext(k.cfg.Instance, subject), nil // no row: it was erased
	})
}

// unwrapsRow unwraps the row that find finds, if there is one, and reports why that cannot be done. A row that an
// epoch wraps again meanwhile is looked at once more.
func (k *Keyring) unwrapsRow(ctx context.Context, find func(kv.Reader) (row, context []byte, err error)) error {
	var before []byte
	for {
		var b, about []byte
		err := k.store.View(ctx, func(r kv.Reader) (err error) {
			b, about, err = find(r)
			return err
		})
		if err != nil {
			return storeError("reading", err)
		}
		if b == nil {
			return nil
		}
		r, err := k.checkRow(b)
		if err == nil {
			calling, cancel := context.WithTimeout(ctx, k.cfg.KEKTimeout)
			var clear []Secret
			clear, err = callKEK(calling, k.cfg.KEK.Unwrap, []KEKItem{{about, r.wrapped}})
			cancel()
			if err == nil {
				wipeAll(clear)
				return nil
			}
		}
		switch {
		case isOf(err, keys.ErrKEKRetired) && !bytes.Equal(b, before):
			before = b
		default:
			return fmt.Errorf("unwrapping from the key store: %w", explained(err))
		}
	}
}

// explained adds to an error of unwrapping what is stored what an operator would look for.
func explained(err error) error {
	switch {
	case isOf(err, keys.ErrKEKMissing):
		return fmt.Errorf("the version of the key-encryption key is not there (was the key deleted, or restored from an older snapshot?): %w", err)
	case isOf(err, keys.ErrKEKRetired):
		return fmt.Errorf("the version of the key-encryption key was retired, and not by an epoch (is the key store an older copy?): %w", err)
	}
	return err
}

// scan calls each for every pair whose key begins with prefix, in pages, each of a snapshot of its own.
func (k *Keyring) scan(ctx context.Context, prefix, after []byte, each func(kv.Pair) error) error {
	for {
		page, err := k.page(ctx, prefix, after, scanPage)
		if err != nil {
			return err
		}
		for _, p := range page {
			if err := each(p); err != nil {
				return err
			}
		}
		if len(page) < scanPage {
			return nil
		}
		after = page[len(page)-1].Key
	}
}

func (k *Keyring) page(ctx context.Context, prefix, after []byte, limit int) (page []kv.Pair, err error) {
	err = k.store.View(ctx, func(r kv.Reader) error {
		page, err = r.Scan(prefix, after, limit)
		return err
	})
	if err != nil {
		return nil, storeError("reading", err)
	}
	return page, nil
}

// epochs carries out the jobs of scope kek, one at a time, and begins them when they are due. It is one goroutine.
//
// An epoch goes through its phases in order, and each is durable before the next begins. Whatever ends the process,
// the next one goes on from the phase that is in the key store; every step may be done twice.
type epochs struct {
	k     *Keyring
	wake  chan struct{} // a job was begun; capacity 1
	ended chan struct{} // closed when run has returned
}

func newEpochs(k *Keyring) *epochs {
	return &epochs{k: k, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// poke makes run look for a job.
func (e *epochs) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// run is the goroutine. What fails for a reason that may pass is tried again, for as long as it takes.
func (e *epochs) run(ctx context.Context) {
	defer close(e.ended)
	retry := minRetry
	for ctx.Err() == nil {
		wait, err := e.next(ctx)
		if err == nil {
			retry = minRetry
		} else if ctx.Err() == nil {
			wait = retry/2 + rand.N(retry/2+1)
			retry = min(2*retry, maxRetry)
			e.k.cfg.Logger.Warn("epoch is held up", "error", err, "retry", wait)
		}
		e.sleep(ctx, wait, e.wake)
	}
	ending, cancel := context.WithTimeout(context.Background(), e.k.cfg.KEKTimeout)
	defer cancel()
	e.k.cfg.Epochs.End(ending)
}

func (e *epochs) sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
}

// next carries out the job that runs, if there is one, or begins one that is due. It returns how long to wait then.
func (e *epochs) next(ctx context.Context) (time.Duration, error) {
	records, err := e.k.jobRecords(ctx)
	if err != nil {
		return 0, err
	}
	for _, r := range records {
		if r.Scope == ScopeKEK && r.State == JobRunning {
			return 0, e.carryOut(ctx, r)
		}
	}
	due, err := e.due(ctx, records)
	if err != nil || due.IsZero() {
		return idleCheck, err
	}
	if wait := due.Sub(e.k.cfg.Now()); wait > 0 {
		// A little later than due, so that many instances do not meet at one HashiCorp Vault.
		return min(wait+rand.N(maxJitter), idleCheck), nil
	}
	if _, err = e.k.StartJob(ctx, ScopeKEK, uuid.Nil, "schedule"); isOf(err, keys.ErrJobRunning) {
		return idleCheck, nil // after the other
	}
	return 0, err
}

// due tells when the next epoch is to begin: an interval after the last, zero if none is planned. The first time
// it notes when the schedule began, so that restarts do not put it off.
func (e *epochs) due(ctx context.Context, records []jobRecord) (time.Time, error) {
	if e.k.cfg.EpochInterval == 0 {
		return time.Time{}, nil
	}
	last, err := e.k.lastEpoch(ctx)
	if err != nil {
		return time.Time{}, err
	}
	now := e.k.cfg.Now()
	if last.IsZero() || last.After(now) { // the clock was ahead, and an epoch must not be put off for as long
		last = now
		begun := binary.BigEndian.AppendUint64(nil, uint64(last.UnixMilli()))
		err := e.k.writes.do(ctx, &change{items: 1, bytes: 16, reserve: true, apply: func(w kv.Writer, _ uint64) (bool, error) {
			w.Set(keyLastEpoch, begun)
			return false, nil
		}})
		if err != nil {
			return time.Time{}, err
		}
	}
	due := last.Add(e.k.cfg.EpochInterval)
	for _, r := range records {
		if r.Scope == ScopeKEK && r.State == JobFailed {
			if failed := time.UnixMilli(r.Finished); !failed.After(now) && failed.Add(afterFailed).After(due) {
				due = failed.Add(afterFailed)
			}
		}
	}
	return due, nil
}

// lastEpoch is when the last epoch ended, or the schedule began; zero if neither.
func (k *Keyring) lastEpoch(ctx context.Context) (time.Time, error) {
	var ms uint64
	err := k.store.View(ctx, func(r kv.Reader) error {
		values, err := r.Get(keyLastEpoch)
		if err == nil && len(values[0]) == 8 {
			ms = binary.BigEndian.Uint64(values[0])
		}
		return err
	})
	if err != nil {
		return time.Time{}, storeError("reading", err)
	}
	if ms == 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(int64(ms)), nil
}

// carryOut takes an epoch to its end. An error is one that may pass; the job runs on.
func (e *epochs) carryOut(ctx context.Context, r jobRecord) (err error) {
	if r.Phase == phaseRetire {
		// It was verified, by a process that is gone. Once more costs little.
		r.Phase = phaseVerify
	}
	for r.State == JobRunning && err == nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch r.Phase {
		case phaseRotate:
			r, err = e.rotate(ctx, r)
		case phaseRewrap:
			r, err = e.rewrap(ctx, r)
		case phaseVerify:
			r, err = e.verify(ctx, r)
		case phaseRetire:
			r, err = e.retire(ctx, r)
		default:
			err = fmt.Errorf("epoch in an unknown phase: %w", keys.ErrInvalid)
		}
		if isOf(err, keys.ErrNoJob) {
			return err
		}
		if hopeless(err) {
			code := failureCode(err)
			e.k.cfg.Logger.Error("epoch failed", "phase", r.Phase, "error", err)
			var failed jobRecord
			if failed, err = e.advance(ctx, r, func(_ kv.Writer, r *jobRecord) error { r.end(e.k.cfg.Now(), code); return nil }); err == nil {
				r = failed
			}
		}
	}
	e.observe(r, err)
	if r.State != JobRunning {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.k.cfg.KEKTimeout)
		defer cancel()
		e.k.cfg.Epochs.End(ending)
	}
	return err
}

// brokenRow is a row that cannot be wrapped again.
type brokenRow struct{ err error }

func (b *brokenRow) Error() string { return "a row cannot be wrapped again: " + b.err.Error() }
func (b *brokenRow) Unwrap() error { return b.err }

// hopeless reports whether an epoch that met err must end. A key that is missing altogether is not reason enough:
// whoever deleted it, or put it back to an older state, has a snapshot to put it right with, and the epoch goes on.
func hopeless(err error) bool {
	var broken *brokenRow
	return errors.As(err, &broken) || permanent(err) && !isOf(err, keys.ErrKEKMissing)
}

// permanent reports whether waiting does not help against err: the KEK, or what it wrapped, is not what it was.
func permanent(err error) bool {
	if err == nil || isOf(err, keys.ErrUnavailable) {
		return false
	}
	return isOf(err, keys.ErrKEKMissing) || isOf(err, keys.ErrKEKRetired) || isOf(err, keys.ErrTampered) || isOf(err, keys.ErrInvalid)
}

func (e *epochs) observe(r jobRecord, err error) {
	if e.k.cfg.Observe.Epoch != nil {
		e.k.cfg.Observe.Epoch(r.Phase, r.Done, r.Total, err)
	}
}

// advance saves a step of r, unless another process has taken the job elsewhere meanwhile; then it returns the job
// as that one left it.
func (e *epochs) advance(ctx context.Context, r jobRecord, step func(kv.Writer, *jobRecord) error) (jobRecord, error) {
	phase := r.Phase
	out, err := e.k.editJob(ctx, r.ID, func(w kv.Writer, now *jobRecord) (error, error) {
		if now.State != JobRunning || now.Phase != phase && !(phase == phaseVerify && now.Phase == phaseRetire) {
			return nil, nil
		}
		return nil, step(w, now)
	})
	if err != nil {
		return r, err
	}
	e.observe(out, nil)
	return out, nil
}

// rotate makes a new version of the KEK. After a crash the newest version is the target already.
func (e *epochs) rotate(ctx context.Context, r jobRecord) (jobRecord, error) {
	calling, cancel := context.WithTimeout(ctx, retireCalls*e.k.cfg.KEKTimeout)
	defer cancel()
	newest, err := e.k.cfg.Epochs.Rotate(calling, r.Target-1)
	if err != nil {
		return r, kekError(err)
	}
	var total int64
	for _, prefix := range wrappedBundle {
		if err := e.k.scan(ctx, prefix, nil, func(kv.Pair) error { total++; return nil }); err != nil {
			return r, err
		}
	}
	return e.advance(ctx, r, func(_ kv.Writer, r *jobRecord) error {
		r.Phase, r.Done, r.Total, r.Cursor = phaseRewrap, 0, total, nil
		r.Target = max(r.Target, newest) // somebody may have rotated by hand
		return nil
	})
}

// rewrap wraps everything under the new version. What changes while it passes is left to verify.
func (e *epochs) rewrap(ctx context.Context, r jobRecord) (jobRecord, error) {
	found, r, err := e.pass(ctx, r)
	if err != nil {
		return r, err
	}
	return e.advance(ctx, r, func(w kv.Writer, r *jobRecord) error {
		r.Phase, r.Done, r.Cursor = phaseVerify, min(found.rows-found.below+found.wrapped, r.Total), nil
		return e.raiseFloor(w, r.Target)
	})
}

func (e *epochs) raiseFloor(w kv.Writer, target uint64) error {
	floor, err := floorOf(w)
	if err == nil && floor < target {
		w.Set(keyFloor, binary.BigEndian.AppendUint64(nil, target))
	}
	return err
}

// verify looks at everything, until it has found nothing below the target from the beginning to the end. The floor
// is durable by then.
func (e *epochs) verify(ctx context.Context, r jobRecord) (jobRecord, error) {
	for {
		r.Cursor = nil
		found, next, err := e.pass(ctx, r)
		if err != nil {
			return r, err
		}
		r = next
		if found.broken != nil && found.wrapped == 0 {
			// All the others are done. The one that is not would be lost with its version of the KEK.
			return r, &brokenRow{found.broken}
		}
		if found.below > 0 {
			continue
		}
		return e.advance(ctx, r, func(w kv.Writer, r *jobRecord) error {
			r.Phase, r.Done, r.Total, r.Cursor = phaseRetire, found.rows, found.rows, nil
			return e.raiseFloor(w, r.Target)
		})
	}
}

// retire destroys the versions before the target.
func (e *epochs) retire(ctx context.Context, r jobRecord) (jobRecord, error) {
	calling, cancel := context.WithTimeout(ctx, retireCalls*e.k.cfg.KEKTimeout)
	defer cancel()
	if err := e.k.cfg.Epochs.Retire(calling, r.Target); isOf(err, keys.ErrInvalid) {
		return r, fmt.Errorf("the version that everything is wrapped under is gone: %w", keys.ErrKEKMissing)
	} else if err != nil {
		return r, kekError(err)
	}
	return e.advance(ctx, r, func(_ kv.Writer, r *jobRecord) error { r.end(e.k.cfg.Now(), ""); return nil })
}
