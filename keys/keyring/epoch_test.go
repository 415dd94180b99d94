package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// epochKEK is a testKEK with the part that an epoch needs. It fails the test when a version is retired that a row
// of the store is still wrapped under.
type epochKEK struct {
	*testKEK
	file  *localkek.KEK
	store *testStore

	mu      sync.Mutex // guards the rest
	held    bool       // rights are taken
	retired uint64
	lie     func(items []keyring.KEKItem, results []keyring.KEKResult) // changes what Rewrap gives
}

func (k *epochKEK) hooks() (before, after func(string) error) {
	k.testKEK.mu.Lock()
	defer k.testKEK.mu.Unlock()
	nothing := func(string) error { return nil }
	before, after = k.before, k.after
	if before == nil {
		before = nothing
	}
	if after == nil {
		after = nothing
	}
	return before, after
}

func (k *epochKEK) Rewrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	before, after := k.hooks()
	if err := before("rewrap"); err != nil {
		return nil, err
	}
	out, err := k.file.Rewrap(ctx, items)
	if err == nil {
		err = after("rewrap")
	}
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	lie := k.lie
	k.mu.Unlock()
	if lie != nil {
		lie(items, out)
	}
	return out, nil
}

func (k *epochKEK) take() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = true
}

func (k *epochKEK) Versions(ctx context.Context) (keyring.KEKVersions, error) {
	k.take()
	return k.file.Versions(ctx)
}

func (k *epochKEK) Rotate(ctx context.Context, from uint64) (uint64, error) {
	k.take()
	before, after := k.hooks()
	if err := before("rotate"); err != nil {
		return 0, err
	}
	newest, err := k.file.Rotate(ctx, from)
	if err == nil {
		err = after("rotate")
	}
	return newest, err
}

func (k *epochKEK) Retire(ctx context.Context, oldest uint64) error {
	k.take()
	before, after := k.hooks()
	if err := before("retire"); err != nil {
		return err
	}
	if n := below(k.t, k.store.Store, k.file, oldest); n > 0 {
		k.t.Errorf("versions before %d are retired, and %d rows need them", oldest, n)
	}
	if err := k.file.Retire(ctx, oldest); err != nil {
		return err
	}
	k.mu.Lock()
	k.retired = max(k.retired, oldest)
	k.mu.Unlock()
	return after("retire")
}

func (k *epochKEK) End(context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = false
}

// state tells whether rights are held, which they may be for a moment after the end, and what was retired.
func (k *epochKEK) state() (held bool, retired uint64) {
	for range 1000 {
		k.mu.Lock()
		held, retired = k.held, k.retired
		k.mu.Unlock()
		if !held {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return held, retired
}

// rows reads what is wrapped, by key.
func rows(t testing.TB, store kv.Store) map[string][]byte {
	t.Helper()
	all := make(map[string][]byte)
	err := store.View(context.Background(), func(r kv.Reader) error {
		for _, prefix := range []string{"b/", "k/"} {
			var after []byte
			for {
				page, err := r.Scan([]byte(prefix), after, 1000)
				if err != nil {
					return err
				}
				for _, p := range page {
					all[string(p.Key)] = p.Value
					after = p.Key
				}
				if len(page) < 1000 {
					break
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// below counts the rows that are wrapped under a version before oldest.
func below(t testing.TB, store kv.Store, kek keyring.KEK, oldest uint64) (n int) {
	t.Helper()
	for key, row := range rows(t, store) {
		version, err := kek.Version(keyring.WrappedOf(row))
		if err != nil {
			t.Errorf("row %q: %v", key, err)
		}
		if version < oldest {
			n++
		}
	}
	return n
}

// epochRing is a keyring that carries out epochs.
type epochRing struct {
	*ring
	epoch *epochKEK
	clock *clock
}

func newEpochRing(t testing.TB, change func(*keyring.Config)) *epochRing {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root-key")
	if err := localkek.Create(path); err != nil {
		t.Fatal(err)
	}
	file, err := localkek.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &epochRing{ring: &ring{t: t, kek: &testKEK{KEK: file, t: t}, store: &testStore{Store: memkv.New()}}, clock: newClock()}
	r.epoch = &epochKEK{testKEK: r.kek, file: file, store: r.store}
	r.cfg = keyring.Config{Instance: "test", KEK: r.epoch, Epochs: r.epoch, Store: r.store, Now: r.clock.Now}
	if change != nil {
		change(&r.cfg)
	}
	if r.Keyring, err = keyring.Create(context.Background(), r.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// restart closes the keyring, as a crash would, and opens the next on the same key store.
func (r *epochRing) restart() {
	r.t.Helper()
	_ = r.Close()
	r.ring = r.reopen()
}

// job returns the newest job.
func (r *epochRing) job() (keyring.Job, bool) {
	r.t.Helper()
	jobs, err := r.Jobs(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	if len(jobs) == 0 {
		return keyring.Job{}, false
	}
	return jobs[0], true
}

// ends waits until the newest job has ended, and returns it.
func (r *epochRing) ends() keyring.Job {
	r.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		j, ok := r.job()
		if ok && j.State != keyring.JobRunning {
			return j
		}
		if time.Now().After(end) {
			r.t.Fatalf("the job does not end: %+v", j)
		}
	}
}

func (r *epochRing) start() keyring.Job {
	r.t.Helper()
	j, err := r.StartJob(context.Background(), keyring.ScopeKEK, uuid.Nil, "test")
	if err != nil {
		r.t.Fatal(err)
	}
	return j
}

// done runs an epoch to its end.
func (r *epochRing) done() keyring.Job {
	r.t.Helper()
	r.start()
	j := r.ends()
	if j.State != keyring.JobDone {
		r.t.Fatalf("the epoch failed: %+v", j)
	}
	return j
}

func TestEpochWrapsEverythingAgainAndRetires(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, func(c *keyring.Config) { c.EpochBatch = 7 })
	sealed := make(map[uuid.UUID][]byte)
	for i := range 40 {
		s, c := r.mustCreate(fmt.Sprint("value ", i))
		sealed[s] = c
	}
	gone, lost := r.mustCreate("gone")
	before := rows(t, r.store.Store)
	if err := r.Destroy(ctx, gone, "x"); err != nil {
		t.Fatal(err)
	}
	r.epoch.take() // as a look at the versions does
	j := r.done()
	if j.Target != 2 || j.Total != 44 || j.Done != 44 || j.Phase != "done" || j.Recorded != -1 || j.Finished.IsZero() {
		t.Errorf("job is %+v", j)
	}
	if held, retired := r.epoch.state(); held || retired != 2 {
		t.Errorf("rights are held: %v; retired before %d", held, retired)
	}
	if n := below(t, r.store.Store, r.epoch, 2); n > 0 {
		t.Errorf("%d rows are on the old version", n)
	}
	r.restart()
	i := 0
	for s, c := range sealed {
		if _, err := r.open(ctx, s, c); err != nil {
			t.Errorf("subject %d: %v", i, err)
		}
		i++
	}
	r.wantOpenErr(gone, lost, keys.ErrDestroyed)

	// A copy of the key store that was made before is worth nothing now: also for the erased.
	r.rawSet(keyring.KeyBundle(gone), before[string(keyring.KeyBundle(gone))])
	r.raw(func(w kv.Writer) error { w.Delete(keyring.KeyTombstone(gone)); return nil })
	r.wantOpenErr(gone, lost, keys.ErrKEKRetired)

	inv, err := r.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range inv.Versions {
		// The one that was put back by hand is counted where it is.
		if v.Kind == "kek" && (v.Version == 2) != (v.Count == 44) {
			t.Errorf("inventory has %+v", v)
		}
	}
}

// The n-th call of KEK or key store fails, before or after its effect, and the process ends; the next goes on.
// Everything opens, and nothing is retired that is needed (epochKEK).
func TestEpochResumesAfterAnyFault(t *testing.T) {
	ctx := context.Background()
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied=%v", applied), func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				r := newEpochRing(t, func(c *keyring.Config) { c.EpochBatch = 2 })
				sealed := make(map[uuid.UUID][]byte)
				for range 5 {
					s, c := r.mustCreate("value")
					sealed[s] = c
				}
				fired := make(chan string, 1)
				f := &sharedFaults{n: int64(n), applied: applied, fired: fired}
				f.place(r.ring)
				_, err := r.StartJob(ctx, keyring.ScopeKEK, uuid.Nil, "test")
				deadline := time.After(30 * time.Second)
				fault := ""
			waiting:
				for err == nil {
					select {
					case fault = <-fired:
						break waiting
					case <-deadline:
						t.Fatalf("call %d: neither a fault nor an end", n)
					case <-time.After(time.Millisecond):
						if j, jerr := r.Jobs(ctx); jerr == nil && len(j) > 0 && j[0].State != keyring.JobRunning {
							break waiting
						}
					}
				}
				late := r.store.Store
				f.remove(r.ring)
				r.restart()
				created, value := r.mustCreate("created after the crash")
				sealed[created] = value
				if _, ok := r.job(); !ok {
					r.start() // the fault came before there was a job
				}
				if j := r.ends(); j.State != keyring.JobDone {
					t.Fatalf("call %d (%s): the epoch failed: %+v", n, fault, j)
				}
				if n := below(t, late, r.epoch, 2); n > 0 {
					t.Errorf("call %d (%s): %d rows are on the old version", n, fault, n)
				}
				if v, err := r.epoch.Versions(ctx); err != nil || v.Oldest < 2 {
					t.Errorf("call %d (%s): versions are %+v, %v", n, fault, v, err)
				}
				for s, c := range sealed {
					if _, err := r.open(ctx, s, c); err != nil {
						t.Errorf("call %d (%s): %v", n, fault, err)
					}
				}
				_ = r.Close()
				if fault == "" && err == nil {
					if n < 15 {
						t.Fatalf("an epoch made %d calls only", n)
					}
					t.Logf("%d calls", n-1)
					return
				}
			}
		})
	}
}

// sharedFaults is faults for calls from several goroutines.
type sharedFaults struct {
	n       int64
	applied bool
	seen    atomic.Int64
	fired   chan<- string
	dead    atomic.Bool
}

func (f *sharedFaults) place(r *ring) {
	before := func(op string) error {
		if f.dead.Load() {
			return errInjected // the process has ended
		}
		if f.applied && op == "view" {
			return nil // has no effect
		}
		if f.seen.Add(1) == f.n && !f.applied {
			f.dead.Store(true)
			f.fired <- op
			return errInjected
		}
		return nil
	}
	after := func(op string) error {
		if f.applied && f.seen.Load() >= f.n && f.dead.CompareAndSwap(false, true) {
			f.fired <- op
		}
		if f.dead.Load() {
			return errInjected
		}
		return nil
	}
	r.kek.set(func() { r.kek.before, r.kek.after = before, after })
	r.store.mu.Lock()
	r.store.before, r.store.after = before, after
	r.store.mu.Unlock()
}

func (f *sharedFaults) remove(r *ring) {
	r.kek.set(func() { r.kek.before, r.kek.after = nil, nil })
	r.store.mu.Lock()
	r.store.before, r.store.after = nil, nil
	r.store.mu.Unlock()
}

func TestEpochLeavesCreatesOpensAndErasuresRight(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, func(c *keyring.Config) {
		c.EpochBatch, c.EpochPause, c.CacheTTL, c.Now = 200, 1, 20*time.Millisecond, nil
	})
	for range 200 {
		r.mustCreate("value")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var made atomic.Int64
	for range 4 {
		wg.Go(func() {
			type one struct {
				subject uuid.UUID
				sealed  []byte
			}
			var mine []one
			for i := 0; ; i++ {
				select {
				case <-stop:
					for _, o := range mine {
						r.wantOpen(o.subject, o.sealed, "mine")
					}
					return
				default:
				}
				time.Sleep(time.Millisecond)
				s := uuid.New()
				c, err := r.seal(s, true, "mine")
				if err != nil {
					t.Errorf("creating: %v", err)
					return
				}
				made.Add(1)
				mine = append(mine, one{s, c})
				old := mine[i*7919%len(mine)]
				r.wantOpen(old.subject, old.sealed, "mine")
				if i%5 == 4 {
					gone := mine[len(mine)-1]
					mine = mine[:len(mine)-1]
					if err := r.Destroy(ctx, gone.subject, "x"); err != nil {
						t.Errorf("erasing: %v", err)
					}
					r.wantOpenErr(gone.subject, gone.sealed, keys.ErrDestroyed)
					i++
				}
			}
		})
	}
	for range 4 {
		j := r.done()
		if n := below(t, r.store.Store, r.epoch, j.Target); n > 0 {
			t.Errorf("%d rows are below %d", n, j.Target)
		}
	}
	close(stop)
	wg.Wait()
	if made.Load() == 0 {
		t.Error("nothing was made meanwhile")
	}
}

// A bundle that was wrapped before an epoch, and comes to be written after it, is made anew.
func TestEpochOvertakesACreate(t *testing.T) {
	r := newEpochRing(t, nil)
	r.mustCreate("value")
	hold, held := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	r.kek.set(func() {
		r.kek.after = func(op string) error {
			if op == "wrap" && first.CompareAndSwap(false, true) {
				close(held)
				<-hold
			}
			return nil
		}
	})
	var sealed []byte
	var err error
	subject := uuid.New()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		sealed, err = r.seal(subject, true, "late")
	}()
	<-held
	r.done()
	close(hold)
	<-finished
	if err != nil {
		t.Fatal(err)
	}
	if n := below(t, r.store.Store, r.epoch, 2); n > 0 {
		t.Errorf("%d rows are on the old version", n)
	}
	r.restart()
	r.wantOpen(subject, sealed, "late")
}

// A reader that saw a row before an epoch, and asks the KEK after it, reads the row again.
func TestEpochOvertakesAnOpen(t *testing.T) {
	r := newEpochRing(t, nil)
	subject, sealed := r.mustCreate("value")
	r.restart() // nothing is in the cache
	asked, gate := make(chan struct{}), make(chan struct{})
	var later atomic.Bool
	r.kek.set(func() {
		r.kek.before = func(op string) error {
			if op == "unwrap" && !later.Swap(true) { // later ones are the epoch's own
				close(asked)
				<-gate
			}
			return nil
		}
	})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		r.wantOpen(subject, sealed, "value")
	}()
	<-asked
	r.done()
	close(gate)
	<-finished
}

// What is in the cache stays there: the KEK is not asked for everybody's bundle after an epoch.
func TestEpochKeepsTheCache(t *testing.T) {
	r := newEpochRing(t, func(c *keyring.Config) { c.EpochBatch = 10 })
	sealed := make(map[uuid.UUID][]byte)
	for range 50 {
		s, c := r.mustCreate("value")
		sealed[s] = c
	}
	before := r.kek.unwraps.Load()
	for range 2 {
		r.done()
		for s, c := range sealed {
			r.wantOpen(s, c, "value")
		}
	}
	const proofs = 2 * 6 * 2                              // of each epoch, batch by batch, one row before and after
	if n := r.kek.unwraps.Load() - before; n > proofs+8 { // the sweeper may take over the keysets of the instance
		t.Errorf("%d bundles were unwrapped again", n-proofs)
	}
	// The entries still end with their time.
	r.clock.add(time.Minute)
	for s, c := range sealed {
		r.wantOpen(s, c, "value")
	}
	if n := r.kek.unwraps.Load() - before; n < 50 {
		t.Errorf("%d bundles were unwrapped after their time was over", n)
	}
}

// What may pass is waited for, and the job runs on; nothing needs a restart. A key that was deleted may be put back.
func TestEpochWaitsForTheKEK(t *testing.T) {
	for _, op := range []string{"rotate", "rewrap", "retire"} {
		for _, failure := range []error{keys.ErrSealed, keys.ErrForbidden, keys.ErrKEKMissing} {
			t.Run(op+" "+keys.CodeOf(failure).String(), func(t *testing.T) {
				t.Parallel()
				var seen atomic.Int64
				held := make(chan error, 100)
				r := newEpochRing(t, func(c *keyring.Config) {
					c.Observe.Epoch = func(_ string, _, _ int64, err error) {
						if err != nil {
							held <- err
						}
					}
				})
				r.mustCreate("value")
				r.kek.set(func() {
					r.kek.before = func(o string) error {
						if o == op && seen.Add(1) < 3 {
							return failure
						}
						return nil
					}
				})
				r.start()
				wantErr(t, <-held, failure)
				if j, _ := r.job(); j.State != keyring.JobRunning || j.Failure != "" {
					t.Errorf("while the KEK is away: %+v", j)
				}
				if j := r.ends(); j.State != keyring.JobDone {
					t.Errorf("in the end: %+v", j)
				}
			})
		}
	}
}

// A row that cannot be wrapped again would be lost with its version: the epoch fails, and nothing is retired.
func TestEpochDoesNotRetireWhatADamagedRowNeeds(t *testing.T) {
	r := newEpochRing(t, nil)
	good, sealed := r.mustCreate("good")
	bad, _ := r.mustCreate("bad")
	row := r.rawGet(keyring.KeyBundle(bad))
	row[len(row)-1] ^= 1
	r.rawSet(keyring.KeyBundle(bad), row)
	r.start()
	j := r.ends()
	if j.State != keyring.JobFailed || j.Failure != "tampered" {
		t.Errorf("job is %+v", j)
	}
	held, retired := r.epoch.state()
	if held || retired != 0 {
		t.Errorf("rights are held: %v; retired before %d", held, retired)
	}
	r.restart()
	r.wantOpen(good, sealed, "good")
	// Once it is gone, the next epoch does it.
	if err := r.Destroy(context.Background(), bad, "damaged"); err != nil {
		t.Fatal(err)
	}
	if j := r.done(); j.Target != 3 {
		t.Errorf("job is %+v", j)
	}
	r.restart()
	r.wantOpen(good, sealed, "good")
}

// F30: a KEK that was put back to an older state is refused at the start, whether an epoch had come to its end or
// the key was just rotated.
func TestOpenRefusesAnOlderKEK(t *testing.T) {
	for name, advance := range map[string]func(*epochRing){
		"after an epoch": func(r *epochRing) { r.done() },
		"after a rotation": func(r *epochRing) {
			if _, err := r.epoch.Rotate(context.Background(), 1); err != nil {
				r.t.Fatal(err)
			}
			r.mustCreate("newer")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "root-key")
			if err := localkek.Create(path); err != nil {
				t.Fatal(err)
			}
			old, err := localkek.Open(path) // which keeps in memory what a snapshot would
			if err != nil {
				t.Fatal(err)
			}
			current, err := localkek.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			r := newEpochRing(t, func(c *keyring.Config) {
				e := c.KEK.(*epochKEK)
				e.testKEK.KEK, e.file = current, current
			})
			r.mustCreate("value")
			advance(r)
			_ = r.Close()
			r.kek.KEK = old
			_, err = keyring.Open(context.Background(), r.cfg)
			wantErr(t, err, keys.ErrKEKMissing)
			r.kek.KEK = current
			r.ring = r.reopen()
		})
	}
}

// A KEK that works, and yet does not unwrap what is there, is not ready: it was put back to an older state, or older
// versions were destroyed by somebody else. When it is put right, it is ready again.
func TestReadyNoticesWhatTheKEKDoesNotUnwrap(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		spoil func(*epochRing) error
		want  error
	}{
		"put back to before an epoch": {func(r *epochRing) error { r.done(); return nil }, keys.ErrKEKMissing},
		"put back to before a rotation": {func(r *epochRing) error {
			_, err := r.epoch.Rotate(ctx, 1)
			r.mustCreate("newer")
			return err
		}, keys.ErrKEKMissing},
		"trimmed": {func(r *epochRing) error {
			_, err := r.epoch.file.Rotate(ctx, 1)
			r.mustCreate("newer, and it can be read")
			return errors.Join(err, r.epoch.file.Retire(ctx, 2))
		}, keys.ErrKEKRetired},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root-key")
			if err := localkek.Create(path); err != nil {
				t.Fatal(err)
			}
			old, err := localkek.Open(path) // which keeps in memory what a snapshot would
			if err != nil {
				t.Fatal(err)
			}
			current, err := localkek.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			r := newEpochRing(t, func(c *keyring.Config) {
				e := c.KEK.(*epochKEK)
				e.testKEK.KEK, e.file = current, current
			})
			r.mustCreate("value")
			if err := r.Ready(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(r); err != nil {
				t.Fatal(err)
			}
			if errors.Is(c.want, keys.ErrKEKRetired) {
				wantErr(t, r.Ready(ctx), c.want) // and destroyed is destroyed
				return
			}
			r.kek.KEK = old
			wantErr(t, r.Ready(ctx), c.want)
			_, err = r.StartJob(ctx, keyring.ScopeKEK, uuid.Nil, "test")
			wantErr(t, err, c.want)
			r.kek.KEK = current
			if err := r.Ready(ctx); err != nil {
				t.Errorf("put right: %v", err)
			}
		})
	}
}

func TestEpochsComeOnSchedule(t *testing.T) {
	ctx := context.Background()
	const week = 7 * 24 * time.Hour
	r := newEpochRing(t, func(c *keyring.Config) { c.EpochInterval = week })
	waitPlan := func() time.Time {
		t.Helper()
		for range 1000 {
			if inv, err := r.Inventory(ctx); err == nil && r.rawGet(keyring.KeyLastEpoch) != nil {
				if inv.EpochInterval != week {
					t.Errorf("interval is %v", inv.EpochInterval)
				}
				return inv.NextEpoch
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatal("no epoch is planned")
		return time.Time{}
	}
	first := waitPlan()
	if want := r.clock.Now().Add(week); !first.Equal(want) {
		t.Errorf("the first epoch is planned for %v, want %v", first, want)
	}
	r.clock.add(week - time.Hour)
	r.restart()
	time.Sleep(20 * time.Millisecond)
	if _, ok := r.job(); ok {
		t.Error("an epoch came too early")
	}
	if again := waitPlan(); !again.Equal(first) {
		t.Errorf("a restart put the epoch off, to %v", again)
	}
	_ = r.Close()
	r.clock.add(3 * week) // missed while the process was down: made up for once, at the start
	r.ring = r.reopen()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, ok := r.job(); ok {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no epoch came")
		}
	}
	j := r.ends()
	if j.State != keyring.JobDone || j.By != "schedule" {
		t.Errorf("job is %+v", j)
	}
	if next := waitPlan(); !next.Equal(j.Finished.Add(week)) {
		t.Errorf("the next one is planned for %v", next)
	}
	r.clock.add(week + time.Minute) // while it runs
	r.Poke()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if k, _ := r.job(); k.ID != j.ID {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the second epoch did not come")
		}
	}
	r.ends()

	for _, d := range []time.Duration{-1, 30*24*time.Hour + 1} {
		cfg := r.cfg
		cfg.EpochInterval = d
		_, err := keyring.Open(ctx, cfg)
		wantErr(t, err, keys.ErrInvalid)
	}
}

// A clock that is set back while an epoch runs does not let it end before it began, for which there could be no evidence; and
// one that was ahead when it ended does not put the next one off for as long.
func TestAnEpochOutlastsAClockThatIsSet(t *testing.T) {
	const week, year = 7 * 24 * time.Hour, 365 * 24 * time.Hour
	r := newEpochRing(t, func(c *keyring.Config) { c.EpochInterval = week })
	r.mustCreate("value")
	back := sync.OnceFunc(func() { r.clock.add(-time.Hour) })
	r.kek.set(func() { r.kek.before = func(string) error { back(); return nil } })
	if j := r.done(); j.Finished.Before(j.Started) {
		t.Errorf("begun at %v, it has ended at %v", j.Started, j.Finished)
	}
	r.clock.add(year)
	r.done()
	r.clock.add(-year)
	r.Poke()
	var next time.Time
	for range 1000 {
		inv, err := r.Inventory(t.Context())
		if next = inv.NextEpoch; err == nil && !next.After(r.clock.Now().Add(week)) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("at %v, the next epoch is planned for %v", r.clock.Now(), next)
}

// A scheduled epoch that fails for good is not begun again at once.
func TestFailedEpochIsNotBegunAgainAtOnce(t *testing.T) {
	r := newEpochRing(t, func(c *keyring.Config) { c.EpochInterval = time.Hour })
	for r.rawGet(keyring.KeyLastEpoch) == nil { // from which the next is planned
		time.Sleep(time.Millisecond)
	}
	bad, _ := r.mustCreate("bad")
	row := r.rawGet(keyring.KeyBundle(bad))
	row[len(row)-1] ^= 1
	r.rawSet(keyring.KeyBundle(bad), row)
	r.start()
	failed := r.ends()
	r.clock.add(59 * time.Minute)
	r.Poke()
	time.Sleep(20 * time.Millisecond)
	if j, _ := r.job(); j.ID != failed.ID {
		t.Error("it was begun again at once")
	}
	r.clock.add(10 * time.Minute)
	r.Poke()
	for range 10000 {
		if j, _ := r.job(); j.ID != failed.ID {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("it was not begun again")
}

// A second process on the same key store does the same epoch beside the first, and harms nothing.
func TestEpochOnTwoNodes(t *testing.T) {
	r := newEpochRing(t, func(c *keyring.Config) { c.EpochBatch = 3 })
	sealed := make(map[uuid.UUID][]byte)
	for range 60 {
		s, c := r.mustCreate("value")
		sealed[s] = c
	}
	other := r.reopen()
	for range 3 {
		j := r.start()
		other.Poke() // it finds the job when it looks
		if done := r.ends(); done.ID != j.ID || done.State != keyring.JobDone {
			t.Errorf("job is %+v", done)
		}
		for s, c := range sealed {
			r.wantOpen(s, c, "value")
			other.wantOpen(s, c, "value")
		}
	}
}

func TestInventory(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, nil)
	var last uuid.UUID
	for range 5 {
		last, _ = r.mustCreate("value")
	}
	if err := r.Destroy(ctx, last, "x"); err != nil {
		t.Fatal(err)
	}
	count := func() map[string]int64 {
		t.Helper()
		inv, err := r.Inventory(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int64{"subjects": inv.Subjects, "destroyed": inv.Destroyed}
		for _, v := range inv.Versions {
			name := fmt.Sprint(v.Kind, " ", v.Version)
			if v.Newest {
				name += " newest"
			}
			got[name] = v.Count
		}
		return got
	}
	want := map[string]int64{"subjects": 4, "destroyed": 1, "kek 1 newest": 8, "subject 0 newest": 4,
		"index 1 newest": 1, "token 1 newest": 1, "service 1 newest": 1, "witness 1 newest": 1}
	if got := count(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("inventory is %v, want %v", got, want)
	}
	// It says at once what has become of them.
	j := r.done()
	delete(want, "kek 1 newest")
	want["kek 2 newest"] = 8
	if got := count(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("inventory is %v, want %v", got, want)
	}
	inv, err := r.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range inv.Versions {
		if v.Kind == "kek" && !v.Made.Equal(j.Started) {
			t.Errorf("version 2 was made at %v, and the job was started at %v", v.Made, j.Started)
		}
	}
	if !inv.NextEpoch.IsZero() || inv.EpochInterval != 0 {
		t.Error("an epoch is planned")
	}
}

func TestEpochEndsWithTheKeyring(t *testing.T) {
	r := newEpochRing(t, func(c *keyring.Config) { c.EpochBatch = 2 })
	for range 20 {
		r.mustCreate("value")
	}
	r.kek.set(func() {
		r.kek.before = func(op string) error {
			if op == "rewrap" {
				return errors.New("down")
			}
			return nil
		}
	})
	r.start()
	start := time.Now()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	if held, _ := r.epoch.state(); held {
		t.Error("rights are held after Close")
	}
	_, err := r.StartJob(context.Background(), keyring.ScopeKEK, uuid.Nil, "x")
	wantErr(t, err, keyring.ErrClosed)
}
