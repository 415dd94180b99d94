package keyring

import (
	"bytes"
	"context"
	"encoding/binary"
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

	maxCalls    = 2               // to the KEK at once
	busyPart    = 4               // while others ask for keys, a batch is the busyPart-th of EpochBatch
	maxPause    = time.Second     // after a batch
	saveEvery   = time.Second     // of the progress
	scanPage    = 1_000           // rows read at a time
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
	var row []byte
	var subject uuid.UUID
	err := k.store.View(ctx, func(r kv.Reader) error {
		values, err := r.Get(keyNewest)
		if err != nil || len(values[0]) != len(subject) {
			return err
		}
		copy(subject[:], values[0])
		values, err = r.Get(keyBundle(subject))
		if err == nil {
			row = values[0]
		}
		return err
	})
	if err != nil {
		return storeError("reading", err)
	}
	if row == nil {
		return nil // none was made yet, or it was erased
	}
	r, err := k.checkRow(row)
	if err == nil {
		var clear []Secret
		if clear, err = callKEK(ctx, k.cfg.KEK.Unwrap, []KEKItem{{bundleContext(k.cfg.Instance, subject), r.wrapped}}); err == nil {
			wipeAll(clear)
			return nil
		}
	}
	switch {
	case isOf(err, keys.ErrKEKMissing):
		return fmt.Errorf("key-encryption key is older than the key store, which holds bundles of a later version (was it restored from a snapshot?): %w", err)
	case isOf(err, keys.ErrUnavailable):
		return fmt.Errorf("unwrapping the newest bundle: %w", err)
	}
	// One damaged bundle must not keep everybody's shut.
	k.cfg.Logger.Error("the newest bundle does not unwrap", "error", err)
	return nil
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
	if last.IsZero() {
		last = e.k.cfg.Now()
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
			if again := time.UnixMilli(r.Finished).Add(afterFailed); again.After(due) {
				due = again
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
		if permanent(err) {
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
			return r, fmt.Errorf("a row cannot be wrapped again: %w", found.broken)
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
	if err := e.k.cfg.Epochs.Retire(calling, r.Target); err != nil {
		return r, kekError(err)
	}
	return e.advance(ctx, r, func(_ kv.Writer, r *jobRecord) error { r.end(e.k.cfg.Now(), ""); return nil })
}

// passed is what a pass found.
type passed struct {
	rows    int64 // seen
	below   int64 // of those, wrapped under an older version when they were seen
	wrapped int64 // of those, wrapped again and committed
	broken  error // the first reason why one could not be, and cannot; nil: none
}

func (p *passed) breaks(err error) {
	if p.broken == nil {
		p.broken = err
	}
}

// pass goes through everything wrapped, from r.Cursor on, and wraps again what is below the target. While nobody asks
// for keys, maxCalls batches are with the KEK while the one before is committed: each of them is worked on by one
// thread at a time, there or here. While somebody does, there is one, a smaller one, and a rest after it: its commit
// holds up those of the witness, without which nothing opens.
func (e *epochs) pass(ctx context.Context, r jobRecord) (found passed, _ jobRecord, err error) {
	k := e.k
	calls, cancel := context.WithCancel(ctx)
	saved := k.cfg.Now()
	done := r.Done
	var calling []*call // the oldest first
	var committing *commit
	settle := func() error {
		if committing == nil {
			return nil
		}
		c := committing
		committing = nil
		if err := c.wait(); err != nil {
			return err
		}
		found.wrapped += int64(c.written)
		r.Cursor = c.last
		if r.Phase == phaseRewrap {
			r.Done = min(done+c.seen, r.Total)
		}
		e.observe(r, nil)
		if now := k.cfg.Now(); now.Sub(saved) >= saveEvery {
			saved = now
			cursor, progress := r.Cursor, r.Done
			if r.Phase != phaseRewrap {
				cursor = nil
			}
			_, err := e.advance(ctx, r, func(_ kv.Writer, r *jobRecord) error { r.Cursor, r.Done = cursor, progress; return nil })
			return err
		}
		return nil
	}
	// answered waits for the oldest call, and commits what it gave when what the one before gave is committed.
	answered := func() error {
		c := calling[0]
		calling = calling[1:]
		<-c.done
		if c.err != nil {
			return c.err
		}
		found.breaks(c.broken)
		if err := settle(); err != nil {
			return err
		}
		committing = k.beginCommit(ctx, c.batch, c.last, c.seen)
		return nil
	}
	all := func() error {
		for len(calling) > 0 {
			if err := answered(); err != nil {
				return err
			}
		}
		return settle()
	}
	defer func() {
		cancel()
		for _, c := range calling {
			<-c.done
		}
		_ = settle() // after an error, which is told; what was committed is found so
	}()
	used, limit := k.cache.used.Load(), k.cfg.EpochBatch
	for _, prefix := range wrappedBundle {
		after := r.Cursor
		if !bytes.HasPrefix(after, prefix) {
			if bytes.Compare(after, prefix) > 0 {
				continue // seen before the process ended
			}
			after = nil
		}
		for {
			start := time.Now()
			page, err := k.page(ctx, prefix, after, limit)
			if err != nil {
				return found, r, err
			}
			if len(page) > 0 {
				after = page[len(page)-1].Key
			}
			batch := e.batch(page, r.Target, &found)
			last := len(page) < limit
			if len(batch) > 0 {
				calling = append(calling, e.begin(calls, batch, r.Target, after, found.rows))
			}
			now := k.cache.used.Load()
			if limit = k.cfg.EpochBatch; now != used {
				limit = max(1, limit/busyPart)
			}
			if now != used && len(batch) > 0 {
				// Others are asking for keys, or did while this slept: they come first.
				used = now
				if err := all(); err != nil {
					return found, r, err
				}
				e.sleep(ctx, min(time.Duration(k.cfg.EpochPause)*time.Since(start), maxPause), nil)
			}
			if len(calling) == maxCalls {
				if err := answered(); err != nil {
					return found, r, err
				}
			}
			if ctx.Err() != nil {
				return found, r, context.Cause(ctx)
			}
			if last {
				break
			}
		}
	}
	err = all()
	return found, r, err
}

// lifted is a row on its way to a newer version of the KEK.
type lifted struct {
	key, old []byte
	row      row
	context  []byte
	version  uint64 // of the KEK, that has wrapped it now
}

// batch gives the rows of page that are below target.
func (e *epochs) batch(page []kv.Pair, target uint64, found *passed) []lifted {
	k := e.k
	var batch []lifted
	for _, p := range page {
		found.rows++
		l := lifted{key: p.Key, old: p.Value}
		var err error
		if l.row, err = decodeRow(p.Value); err == nil && l.row.kek != k.cfg.KEK.Name() {
			err = fmt.Errorf("row is wrapped by another kind of KEK: %w", keys.ErrKEKMissing)
		}
		if err == nil {
			l.context, err = k.contextOf(p.Key)
		}
		var version uint64
		if err == nil {
			version, err = k.cfg.KEK.Version(l.row.wrapped)
		}
		if err != nil {
			found.below++
			found.breaks(err)
			continue
		}
		if version < target {
			found.below++
			batch = append(batch, l)
		}
	}
	return batch
}

// contextOf is what a row at key is bound to.
func (k *Keyring) contextOf(key []byte) ([]byte, error) {
	if name, ok := bytes.CutPrefix(key, prefixKeyset); ok {
		return keysetContext(k.cfg.Instance, string(name)), nil
	}
	id, err := uuid.FromBytes(bytes.TrimPrefix(key, prefixBundle))
	if err != nil {
		return nil, fmt.Errorf("row in a place of no subject: %w", keys.ErrTampered)
	}
	return bundleContext(k.cfg.Instance, id), nil
}

// call is a batch that the KEK was asked to wrap again.
type call struct {
	last []byte // key of the row that was seen last when the call was begun
	seen int64  // rows seen by then

	done   chan struct{} // closed when the rest is set
	batch  []lifted      // what was wrapped again
	broken error         // why one of the others cannot be; nil: they all were
	err    error         // why nothing is known of the batch
}

// begin begins a call. Who takes it waits for it.
func (e *epochs) begin(ctx context.Context, batch []lifted, target uint64, last []byte, seen int64) *call {
	c := &call{last: last, seen: seen, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.batch, c.broken, c.err = e.rewrapped(ctx, batch, target)
	}()
	return c
}

// rewrapped has the KEK wrap batch again and returns those that it did, and why it cannot do one of the others.
func (e *epochs) rewrapped(ctx context.Context, batch []lifted, target uint64) (out []lifted, broken, err error) {
	k := e.k
	items := make([]KEKItem, len(batch))
	for i, l := range batch {
		items[i] = KEKItem{l.context, l.row.wrapped}
	}
	calling, cancel := context.WithTimeout(ctx, k.cfg.KEKTimeout)
	defer cancel()
	start := k.cfg.Now()
	results, err := k.cfg.KEK.Rewrap(calling, items)
	if err == nil && len(results) != len(items) {
		err = fmt.Errorf("KEK gave %d results for %d items: %w", len(results), len(items), keys.ErrUnavailable)
	}
	if k.cfg.Observe.KEK != nil {
		k.cfg.Observe.KEK("rewrap", len(items), k.cfg.Now().Sub(start), err)
	}
	if err != nil {
		return nil, nil, kekError(err)
	}
	out = batch[:0]
	for i, r := range results {
		switch err := r.Err; {
		case err != nil && permanent(kekError(err)):
			if broken == nil {
				broken = kekError(err)
			}
			continue
		case err != nil:
			return nil, nil, kekError(err)
		}
		version, err := k.cfg.KEK.Version(r.Data)
		if err != nil || version < target || len(r.Data) > maxWrappedBytes {
			return nil, nil, fmt.Errorf("KEK wrapped under an older version, or gave nothing: %w", keys.ErrUnavailable)
		}
		l := batch[i]
		l.row.wrapped, l.version = r.Data, version
		out = append(out, l)
	}
	return out, broken, nil
}

// commit is rows on their way into the key store.
type commit struct {
	parts   []*commitPart
	last    []byte // key that was seen last
	seen    int64  // rows seen by then
	written int    // valid after wait
}

type commitPart struct {
	written int
	done    chan error
}

// beginCommit writes batch, each row if it is still what was wrapped again: one that was erased or changed
// meanwhile stays as it is.
func (k *Keyring) beginCommit(ctx context.Context, batch []lifted, last []byte, seen int64) *commit {
	c := &commit{last: last, seen: seen}
	for len(batch) > 0 {
		n, size := 0, 0
		for n < len(batch) && n < maxCommitChanges && (n == 0 || size < maxCommitBytes/2) {
			size += len(batch[n].old)
			n++
		}
		part := batch[:n]
		batch = batch[n:]
		p := &commitPart{done: make(chan error, 1)}
		c.parts = append(c.parts, p)
		ch := k.lift(part, size, &p.written)
		go func() { p.done <- k.writes.do(ctx, ch) }()
	}
	return c
}

// wait returns when all is committed, or the first error.
func (c *commit) wait() (err error) {
	for _, p := range c.parts {
		if e := <-p.done; e != nil {
			err = e
			continue
		}
		c.written += p.written
	}
	return err
}

func (k *Keyring) lift(part []lifted, size int, written *int) *change {
	asked := make([][]byte, len(part))
	for i, l := range part {
		asked[i] = l.key
	}
	return &change{items: len(part), bytes: size, reserve: true,
		apply: func(w kv.Writer, generation uint64) (bool, error) {
			*written = 0
			floor, err := floorOf(w)
			if err != nil {
				return false, err
			}
			values, err := w.Get(asked...)
			if err != nil {
				return false, err
			}
			for i, l := range part {
				if !bytes.Equal(values[i], l.old) || l.version < floor {
					continue
				}
				*written++
				l.row.generation = generation
				b := l.row.encode()
				w.Set(l.key, b)
				if id, ok := bytes.CutPrefix(l.key, prefixBundle); ok {
					w.Set(keyNewest, id)
					k.cache.move(uuid.UUID(id), l.old, b)
				}
			}
			return *written > 0, nil
		}}
}
