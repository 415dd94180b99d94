package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

func newBadger(t testing.TB) kv.Store {
	t.Helper()
	s, err := badgerkv.Create(t.Context(), badgerkv.Options{
		Dir: t.TempDir() + "/data", Space: badgerkv.Space{ReadOnly: -1, Reserve: -1, Ballast: -1},
	})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func engines(t *testing.T, run func(t *testing.T, s kv.Store)) {
	t.Run("memkv", func(t *testing.T) { run(t, memkv.New()) })
	t.Run("badgerkv", func(t *testing.T) { run(t, newBadger(t)) })
}

func TestConfig(t *testing.T) {
	k := newKeys(t)
	for name, change := range map[string]func(*ledger.Config){
		"no store":        func(c *ledger.Config) { c.Store = nil },
		"no signer":       func(c *ledger.Config) { c.Signer = nil },
		"no verifier":     func(c *ledger.Config) { c.Verifier = nil },
		"no origin":       func(c *ledger.Config) { c.Origin = "" },
		"other origin":    func(c *ledger.Config) { c.Origin = "elsewhere.example.org" },
		"other key":       func(c *ledger.Config) { c.Verifier = newKeys(t).ledger },
		"negative batch":  func(c *ledger.Config) { c.MaxBatch = -1 },
		"witness's key":   func(c *ledger.Config) { c.Verifier = k.witness },
		"cosigner's sign": func(c *ledger.Config) { c.Signer = k.cosigner.At(epoch) },
	} {
		cfg := k.config(memkv.New())
		change(&cfg)
		if _, err := ledger.Create(t.Context(), cfg); err == nil {
			t.Errorf("%s: created", name)
		}
		if _, err := ledger.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestCreateAndOpenDiffer(t *testing.T) {
	engines(t, func(t *testing.T, s kv.Store) {
		k := newKeys(t)
		_, err := ledger.Open(t.Context(), k.config(s))
		wantErr(t, err, ledger.ErrNoLedger)
		if len(scanAll(t, s, "")) != 0 {
			t.Fatal("Open has written")
		}
		l := mustCreate(t, k.config(s))
		_, err = ledger.Create(t.Context(), k.config(s))
		wantErr(t, err, ledger.ErrExists)
		checkPublished(t, l, checkRows(t, s, k), k)
		mustAppend(t, l, entry(0))
		must(t, l.Close())
		must(t, l.Close())
		before := scanAll(t, s, "")
		l = mustOpen(t, k.config(s))
		if l.Checkpoint().Size != 1 || len(scanAll(t, s, "")) != len(before) {
			t.Fatal("reopened as another log")
		}
	})
}

// TestGroupCommit lets 64 callers race for a few rows. Each entry counts a row up from the value that it was
// decided on; whoever was too late is refused and leaves no trace.
func TestGroupCommit(t *testing.T) {
	engines(t, func(t *testing.T, s kv.Store) {
		k := newKeys(t)
		cfg := k.config(s)
		var batches, items atomic.Int64
		cfg.Observe = func(b ledger.BatchStats) {
			batches.Add(1)
			items.Add(int64(b.Committed + b.Rejected))
			if b.Failed != 0 {
				t.Errorf("failed: %+v", b)
			}
		}
		l := mustCreate(t, cfg)
		late := errors.New("too late")
		const callers, each = 64, 20
		var mu sync.Mutex
		indexes := map[int64]bool{}
		counts := map[string]int{}
		var rejected int
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(c)))
				for i := range each {
					row := fmt.Sprintf("count/%d", r.IntN(8))
					old := mustGet(t, s, row)
					receipt, err := l.Append(t.Context(), entry(c*each+i), func(p ledger.Position) kv.Change {
						var ch kv.Change
						ch.Expect([]byte(row), old, late)
						ch.Set([]byte(row), append(slices.Clone(old), 'x'))
						ch.Set(fmt.Appendf(nil, "at/%d", p.Index), []byte(row))
						return ch
					})
					mu.Lock()
					switch {
					case err == nil:
						if indexes[receipt.Index] {
							t.Errorf("index %d twice", receipt.Index)
						}
						indexes[receipt.Index] = true
						counts[row]++
						if got := mustGet(t, s, fmt.Sprintf("at/%d", receipt.Index)); string(got) != row {
							t.Errorf("effects of %d: %q", receipt.Index, got)
						}
						if l.Checkpoint().Size <= receipt.Index {
							t.Error("answered before it was published")
						}
					case errors.Is(err, late):
						rejected++
					default:
						t.Error(err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		tree := checkRows(t, s, k)
		checkPublished(t, l, tree, k)
		if int(tree.size) != len(indexes) || len(indexes)+rejected != callers*each || rejected == 0 {
			t.Fatalf("%d entries, %d acknowledged, %d refused", tree.size, len(indexes), rejected)
		}
		if int64(callers*each) != items.Load() || batches.Load() >= items.Load() {
			t.Errorf("%d batches of %d items", batches.Load(), items.Load())
		}
		for row, n := range counts {
			if got := len(mustGet(t, s, row)); got != n {
				t.Errorf("%s: %d, want %d", row, got, n)
			}
		}
	})
}

func mustGet(t testing.TB, s kv.Store, key string) (value []byte) {
	t.Helper()
	must(t, s.View(context.Background(), func(r kv.Reader) error {
		got, err := r.Get([]byte(key))
		if err == nil {
			value = got[0]
		}
		return err
	}))
	return value
}

// together queues entries while the store is held up by a first one, so that they are one batch.
func together(t *testing.T, s *faultStore, l *ledger.Ledger, appends ...func() error) []error {
	t.Helper()
	enter, release := s.hold()
	defer release()
	first := make(chan error, 1)
	go func() {
		_, err := l.Append(context.Background(), entry(2), nil)
		first <- err
	}()
	<-enter
	errs := make([]error, len(appends))
	var wg sync.WaitGroup
	for i, a := range appends {
		wg.Go(func() { errs[i] = a() })
		waitQueued(t, l, i+1)
	}
	release()
	wg.Wait()
	must(t, <-first)
	return errs
}

func waitQueued(t *testing.T, l *ledger.Ledger, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ledger.Queued(l) < n; time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("%d queued, want %d", ledger.Queued(l), n)
		}
	}
}

func TestRejectedItemsBurnNoIndex(t *testing.T) {
	k := newKeys(t)
	s := &faultStore{Store: memkv.New()}
	l := mustCreate(t, k.config(s))
	taken := errors.New("taken")
	claim := func(i int) func() error {
		return func() error {
			_, err := l.Append(context.Background(), entry(i), func(ledger.Position) kv.Change {
				var c kv.Change
				c.Expect([]byte("claimed"), nil, taken)
				c.Set([]byte("claimed"), []byte{byte(i)})
				return c
			})
			return err
		}
	}
	intrude := func() error {
		_, err := l.Append(context.Background(), entry(8), func(ledger.Position) kv.Change {
			var c kv.Change
			c.Set([]byte("l/c"), nil)
			return c
		})
		return err
	}
	huge := func() error {
		_, err := l.Append(context.Background(), entry(9), func(ledger.Position) kv.Change {
			var c kv.Change
			c.Set([]byte("big"), make([]byte, kv.MaxValueSize+1))
			return c
		})
		return err
	}
	errs := together(t, s, l, claim(1), claim(2), huge, intrude, claim(3), func() error { _, err := l.Append(context.Background(), entry(4), nil); return err })
	must(t, errs[0])
	wantErr(t, errs[1], taken)
	wantErr(t, errs[2], kv.ErrTooLarge)
	wantErr(t, errs[3], ledger.ErrInvalidEntry)
	wantErr(t, errs[4], taken)
	must(t, errs[5])
	tree := checkRows(t, s, k)
	checkPublished(t, l, tree, k)
	if tree.size != 3 {
		t.Fatalf("%d entries, want 3", tree.size)
	}
	// A batch of refusals only changes nothing.
	before := l.Checkpoint()
	wantErr(t, claim(5)(), taken)
	if after := l.Checkpoint(); string(after.Note) != string(before.Note) {
		t.Fatal("a refusal made a checkpoint")
	}
}

// Entries that are appended together have outcomes of their own, and indices in their order.
func TestEntriesAppendedTogetherAreKeptApart(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	l := mustCreate(t, k.config(s))
	taken := errors.New("taken")
	claim := func(ledger.Position) kv.Change {
		var c kv.Change
		c.Expect([]byte("claimed"), nil, taken)
		c.Set([]byte("claimed"), []byte{1})
		return c
	}
	bad := entry(3)
	bad.ID = ""
	drafts := []ledger.Draft{{Entry: entry(1), Effects: claim}, {Entry: entry(2), Effects: claim}, {Entry: bad}, {Entry: entry(4)}}
	out := l.AppendAll(t.Context(), drafts)
	must(t, out[0].Err)
	wantErr(t, out[1].Err, taken)
	wantErr(t, out[2].Err, ledger.ErrInvalidEntry)
	must(t, out[3].Err)
	if out[0].Receipt.Index != 0 || out[3].Receipt.Index != 1 {
		t.Errorf("indices %d and %d", out[0].Receipt.Index, out[3].Receipt.Index)
	}
	if got := l.AppendAll(t.Context(), nil); len(got) != 0 {
		t.Errorf("%d outcomes of nothing", len(got))
	}
	ended, end := context.WithCancel(t.Context())
	end()
	wantErr(t, l.AppendAll(ended, drafts[3:])[0].Err, context.Canceled)
	must(t, l.Close())
	for _, o := range l.AppendAll(t.Context(), drafts[:2]) {
		wantErr(t, o.Err, ledger.ErrClosed)
	}
	if tree := checkRows(t, s, k); tree.size != 2 {
		t.Fatalf("%d entries, want 2", tree.size)
	}
}

func TestAppendRefusesBadEntries(t *testing.T) {
	l := mustCreate(t, newKeys(t).config(memkv.New()))
	for name, c := range map[string]struct {
		change func(*verify.Entry)
		want   error
	}{
		"no id":      {func(e *verify.Entry) { e.ID = "" }, ledger.ErrInvalidEntry},
		"no kind":    {func(e *verify.Entry) { e.Kind = "" }, ledger.ErrInvalidEntry},
		"bad ref":    {func(e *verify.Entry) { e.SubjectRef = "ada" }, ledger.ErrInvalidEntry},
		"not UTF-8":  {func(e *verify.Entry) { e.Purpose = "\xff" }, ledger.ErrInvalidEntry},
		"too large":  {func(e *verify.Entry) { e.Trace = strings.Repeat("x", verify.MaxEntrySize) }, ledger.ErrEntryTooLarge},
		"sly id":     {func(e *verify.Entry) { e.ID = `","time":"0000-01-01T00:00:00.000Z"` }, nil},
		"odd fields": {func(e *verify.Entry) { e.Fields = []string{"<é\u2028>", ""} }, nil},
	} {
		e := entry(0)
		c.change(&e)
		r, err := l.Append(t.Context(), e, nil)
		if c.want != nil {
			wantErr(t, err, c.want)
			continue
		}
		must(t, err)
		got, err := verify.ParseEntry(r.Entry)
		if err != nil || got.ID != e.ID || got.Time != verify.FormatTime(r.Time) {
			t.Errorf("%s: %v %+v", name, err, got)
		}
	}
}

func TestLargeBatchesAreSplit(t *testing.T) {
	k := newKeys(t)
	s := &faultStore{Store: memkv.New()}
	cfg := k.config(s)
	var sizes []int
	cfg.Observe = func(b ledger.BatchStats) { sizes = append(sizes, b.Committed) }
	l := mustCreate(t, cfg)
	var appends []func() error
	for i := range 7 {
		appends = append(appends, func() error {
			_, err := l.Append(context.Background(), entry(i), func(ledger.Position) kv.Change {
				var c kv.Change
				for j := range 2 { // nearly 1 MiB for each entry
					c.Set(fmt.Appendf(nil, "big/%d/%d", i, j), make([]byte, kv.MaxValueSize-1000))
				}
				return c
			})
			return err
		})
	}
	for _, err := range together(t, s, l, appends...) {
		must(t, err)
	}
	must(t, l.Close())
	if got := slices.Max(sizes); got != 2 {
		t.Errorf("batches of %v", sizes)
	}
	checkRows(t, s, k)
}

// TestTransactionTooLarge: one entry whose effects no transaction takes does not hurt its neighbours.
func TestTransactionTooLarge(t *testing.T) {
	k := newKeys(t)
	s := &faultStore{Store: memkv.New()}
	l := mustCreate(t, k.config(s))
	plain := func(i int) func() error {
		return func() error { _, err := l.Append(context.Background(), entry(i), nil); return err }
	}
	monster := func() error {
		_, err := l.Append(context.Background(), entry(9), func(ledger.Position) kv.Change {
			var c kv.Change
			for j := range 60000 {
				c.Set(fmt.Appendf(nil, "m/%d", j), []byte("x"))
			}
			return c
		})
		return err
	}
	errs := together(t, s, l, plain(1), monster, plain(2), plain(3))
	for i, err := range errs {
		if i == 1 {
			wantErr(t, err, kv.ErrTooLarge)
		} else {
			must(t, err)
		}
	}
	if tree := checkRows(t, s, k); tree.size != 4 {
		t.Fatal(tree.size)
	}
}

// TestDamage: one entry whose conditions rest on a damaged row does not hurt its neighbours.
func TestDamage(t *testing.T) {
	k := newKeys(t)
	row := []byte("c/damaged")
	s := &faultStore{Store: damagedRow{memkv.New(), row}}
	l := mustCreate(t, k.config(s))
	plain := func(i int) func() error {
		return func() error { _, err := l.Append(context.Background(), entry(i), nil); return err }
	}
	hurt := func() error {
		_, err := l.Append(context.Background(), entry(9), func(ledger.Position) (c kv.Change) {
			c.Expect(row, nil, kv.ErrConflict)
			return c
		})
		return err
	}
	for i, err := range together(t, s, l, plain(1), hurt, plain(2), plain(3)) {
		if i == 1 {
			wantErr(t, err, kv.ErrIntegrity)
		} else {
			must(t, err)
		}
	}
	if tree := checkRows(t, s, k); tree.size != 4 {
		t.Fatal(tree.size)
	}
}

// damagedRow is a store in which a row cannot be read, and no transaction succeeds that has tried.
type damagedRow struct {
	kv.Store
	key []byte
}

func (s damagedRow) Update(ctx context.Context, fn func(kv.Writer) error) error {
	return s.Store.Update(ctx, func(w kv.Writer) error { return fn(damagedWriter{w, s.key}) })
}

type damagedWriter struct {
	kv.Writer
	key []byte
}

func (w damagedWriter) Get(keys ...[]byte) ([][]byte, error) {
	for _, key := range keys {
		if string(key) == string(w.key) {
			return nil, kv.ErrIntegrity
		}
	}
	return w.Writer.Get(keys...)
}

// TestFaults: every outcome of Update × applied or not. After each step the invariant holds for the rows and
// for what is published; the next append works; so does the log when reopened.
func TestFaults(t *testing.T) {
	broken := errors.New("device lost")
	for _, c := range []struct {
		name    string
		err     error
		applied bool
	}{
		{"error, not applied", broken, false},
		{"error, applied", broken, true},
		{"conflict, not applied", kv.ErrConflict, false},
		{"full, not applied", kv.ErrStorageFull, false},
		{"closed", kv.ErrClosed, false},
		{"cancelled, applied", context.Canceled, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{0, 1, 254, 255, 256, 511} {
				k := newKeys(t)
				s := &faultStore{Store: memkv.New()}
				l := mustCreate(t, k.config(s))
				appendN(t, l, size)
				for range 3 {
					before := l.Checkpoint()
					s.set(func(context.Context) (bool, error) { return c.applied, c.err })
					_, err := l.Append(t.Context(), entry(6), func(ledger.Position) kv.Change {
						var ch kv.Change
						ch.Set([]byte("state"), []byte("changed"))
						return ch
					})
					wantErr(t, err, ledger.ErrUnavailable)
					wantErr(t, err, c.err)
					if now := l.Checkpoint(); string(now.Note) != string(before.Note) {
						t.Fatal("advanced in memory")
					}
					s.set(nil)
					tree := checkRows(t, s, k)
					checkPublished(t, l, tree, k)
					if c.applied != (mustGet(t, s, "state") != nil) || c.applied != (tree.size > before.Size) {
						t.Fatal("the test's store does not do as planned")
					}
					r := mustAppend(t, l, entry(8))
					if r.Index != tree.size {
						t.Fatalf("index %d, want %d", r.Index, tree.size)
					}
					checkPublished(t, l, checkRows(t, s, k), k)
				}
				s.set(func(context.Context) (bool, error) { return c.applied, c.err })
				_, err := l.Append(t.Context(), entry(6), nil)
				wantErr(t, err, ledger.ErrUnavailable)
				s.set(nil)
				must(t, l.Close())
				l = mustOpen(t, k.config(s))
				mustAppend(t, l, entry(9))
				tree := checkRows(t, s, k)
				checkPublished(t, l, tree, k)
				if l.Checkpoint().Size != tree.size {
					t.Fatal("reopened with fewer entries than are stored")
				}
			}
		})
	}
}

func TestTwoWriters(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	a := mustCreate(t, k.config(s))
	b := mustOpen(t, k.config(s))
	var wg sync.WaitGroup
	for i := range 150 {
		wg.Go(func() { mustAppend(t, a, entry(i)) })
		wg.Go(func() { mustAppend(t, b, entry(i)) })
	}
	wg.Wait()
	tree := checkRows(t, s, k)
	checkPublished(t, a, tree, k)
	checkPublished(t, b, tree, k)
	if tree.size != 300 {
		t.Fatal(tree.size)
	}
}

// TestRolledBackStore: a store that has become older under an open ledger is refused, and stays refused.
func TestRolledBackStore(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	l := mustCreate(t, k.config(s))
	appendN(t, l, 10)
	old := scanAll(t, s, "l/")
	appendN(t, l, 10)
	must(t, s.Update(t.Context(), func(w kv.Writer) error {
		for _, p := range scanAll(t, s, "l/") {
			w.Delete(p.Key)
		}
		for _, p := range old {
			w.Set(p.Key, p.Value)
		}
		return nil
	}))
	for range 2 {
		_, err := l.Append(t.Context(), entry(0), nil)
		wantErr(t, err, ledger.ErrUnavailable)
		wantErr(t, err, kv.ErrIntegrity)
	}
}

// TestForkedStore: another log under an open ledger, longer and signed by the right key, is not taken over.
func TestForkedStore(t *testing.T) {
	k := newKeys(t)
	s, other := memkv.New(), memkv.New()
	l := mustCreate(t, k.config(s))
	appendN(t, l, 10)
	fork := mustCreate(t, k.config(other))
	appendN(t, fork, 20)
	must(t, s.Update(t.Context(), func(w kv.Writer) error {
		for _, p := range scanAll(t, s, "l/") {
			w.Delete(p.Key)
		}
		for _, p := range scanAll(t, other, "l/") {
			w.Set(p.Key, p.Value)
		}
		return nil
	}))
	before := l.Checkpoint()
	_, err := l.Append(t.Context(), entry(0), nil)
	wantErr(t, err, ledger.ErrUnavailable)
	wantErr(t, err, kv.ErrIntegrity)
	if now := l.Checkpoint(); now.Checkpoint != before.Checkpoint {
		t.Fatal("took over a fork")
	}
}

func TestStorageFull(t *testing.T) {
	k := newKeys(t)
	s := &faultStore{Store: memkv.New()}
	l := mustCreate(t, k.config(s))
	s.set(func(ctx context.Context) (bool, error) {
		if kv.ReserveAllowed(ctx) {
			return true, nil
		}
		return false, kv.ErrStorageFull
	})
	allowed := []string{
		verify.KindAccess, verify.KindAccessFailed, verify.KindConsentWithdrawn,
		verify.KindSubjectErased, verify.KindRestrictionSet,
	}
	all := append(slices.Clone(allowed), verify.KindSubjectCreated, verify.KindRecordWritten, verify.KindRecordDeleted,
		verify.KindConsentGiven, verify.KindRestrictionLift, verify.KindPolicyPublished, verify.KindLoginDenied, "order.approved")
	var appends []func() error
	for i, kind := range all {
		appends = append(appends, func() error {
			_, err := l.Append(context.Background(), verify.Entry{ID: fmt.Sprint(i), Kind: kind}, nil)
			return err
		})
	}
	for i, err := range together(t, s, l, appends...) { // the first one there is of kind access
		if slices.Contains(allowed, all[i]) {
			must(t, err)
			continue
		}
		wantErr(t, err, kv.ErrStorageFull)
		if errors.Is(err, ledger.ErrUnavailable) {
			t.Errorf("%s: %v", all[i], err)
		}
	}
	if tree := checkRows(t, s, k); int(tree.size) != len(allowed)+1 {
		t.Fatal(tree.size)
	}
}

func TestCancelAndClose(t *testing.T) {
	k := newKeys(t)
	s := &faultStore{Store: memkv.New()}
	l := mustCreate(t, k.config(s))
	done, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := l.Append(done, entry(0), nil)
	wantErr(t, err, context.Canceled)

	enter, release := s.hold()
	results := make(chan error, 3)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, err := l.Append(ctx, entry(1), nil); results <- err }()
	<-enter // picked: its outcome is awaited, whatever becomes of ctx
	queued, give := context.WithCancel(t.Context())
	go func() { _, err := l.Append(queued, entry(2), nil); results <- err }()
	waitQueued(t, l, 1)
	cancel()
	give()
	wantErr(t, <-results, context.Canceled) // the queued one

	go func() { _, err := l.Append(t.Context(), entry(3), nil); results <- err }()
	waitQueued(t, l, 2)
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	for {
		if _, err := l.Append(done, entry(4), nil); err != nil {
			break // already cancelled: only to let Close go ahead
		}
	}
	for {
		c, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := l.Append(c, entry(4), nil)
		cancel()
		if errors.Is(err, ledger.ErrClosed) {
			break
		}
		wantErr(t, err, context.DeadlineExceeded)
	}
	release()
	must(t, <-closed)
	must(t, <-results)
	must(t, <-results)
	tree := checkRows(t, s, k)
	if tree.size != 2 {
		t.Fatalf("%d entries: the dropped ones must not be there, the queued one must", tree.size)
	}
	if _, err := l.Entry(t.Context(), 1); err != nil {
		t.Fatal("reading after Close:", err)
	}
}

func TestTimeNeverDecreases(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	cfg := k.config(s)
	now := epoch
	cfg.Now = func() time.Time { return now }
	l := mustCreate(t, cfg)
	for i, step := range []time.Duration{0, time.Second, -time.Hour, time.Minute, 2 * time.Hour, -10 * 365 * 24 * time.Hour} {
		now = now.Add(step)
		r := mustAppend(t, l, entry(i))
		if r.Time.Before(epoch) {
			t.Fatal(r.Time)
		}
	}
	must(t, l.Close())
	last := checkRows(t, s, k).size - 1
	l = mustOpen(t, cfg) // the clock is still behind
	r := mustAppend(t, l, entry(0))
	if r.Index != last+1 || r.Time.Before(epoch.Add(time.Hour)) {
		t.Fatal(r)
	}
	checkRows(t, s, k)
}

func TestOpenFindsDamage(t *testing.T) {
	k := newKeys(t)
	const size = 600
	for name, damage := range map[string]func(w kv.Writer, get func(string) []byte){
		"no checkpoint":     func(w kv.Writer, _ func(string) []byte) { w.Delete([]byte("l/c")) },
		"last entry gone":   func(w kv.Writer, _ func(string) []byte) { w.Delete([]byte("l/e/" + string(be64(size-1)))) },
		"entry too many":    func(w kv.Writer, _ func(string) []byte) { w.Set([]byte("l/e/"+string(be64(size))), []byte("x")) },
		"entry far beyond":  func(w kv.Writer, _ func(string) []byte) { w.Set([]byte("l/e/"+string(be64(1<<40))), []byte("x")) },
		"edge entry gone":   func(w kv.Writer, _ func(string) []byte) { w.Delete([]byte("l/e/" + string(be64(520)))) },
		"edge entry edited": func(w kv.Writer, _ func(string) []byte) { w.Set([]byte("l/e/"+string(be64(520))), []byte("x")) },
		"tile gone":         func(w kv.Writer, _ func(string) []byte) { w.Delete([]byte("l/t/\x00" + string(be64(1)))) },
		"tile edited": func(w kv.Writer, get func(string) []byte) {
			key := "l/t/\x00" + string(be64(0))
			b := get(key)
			b[77] ^= 1
			w.Set([]byte(key), b)
		},
		"tile cut": func(w kv.Writer, get func(string) []byte) {
			key := "l/t/\x00" + string(be64(0))
			w.Set([]byte(key), get(key)[:32])
		},
		"checkpoint edited": func(w kv.Writer, get func(string) []byte) {
			w.Set([]byte("l/c"), []byte(strings.Replace(string(get("l/c")), "600", "599", 1)))
		},
		"older checkpoint": func(w kv.Writer, get func(string) []byte) { w.Set([]byte("l/c"), get("old")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := memkv.New()
			l := mustCreate(t, k.config(s))
			appendN(t, l, size-1)
			old := l.Checkpoint().Note
			appendN(t, l, 1)
			must(t, l.Close())
			must(t, s.Update(t.Context(), func(w kv.Writer) error {
				damage(w, func(key string) []byte {
					if key == "old" {
						return old
					}
					return mustGet(t, s, key)
				})
				return nil
			}))
			_, err := ledger.Open(t.Context(), k.config(s))
			wantErr(t, err, kv.ErrIntegrity)
		})
	}
	for _, size := range []int64{0, 1, 256, 512} { // where the edge tile is empty, too
		s := memkv.New()
		l := mustCreate(t, k.config(s))
		appendN(t, l, int(size))
		must(t, l.Close())
		set := func(key, value []byte) {
			must(t, s.Update(t.Context(), func(w kv.Writer) error {
				if value == nil {
					w.Delete(key)
				} else {
					w.Set(key, value)
				}
				return nil
			}))
			_, err := ledger.Open(t.Context(), k.config(s))
			wantErr(t, err, kv.ErrIntegrity)
		}
		beyond := append([]byte("l/e/"), be64(size)...)
		set(beyond, []byte("x"))
		if size > 0 {
			must(t, s.Update(t.Context(), func(w kv.Writer) error { w.Delete(beyond); return nil }))
			last := append([]byte("l/e/"), be64(size-1)...)
			set(last, []byte("x"))
			set(last, nil)
		}
	}
	s := memkv.New()
	l := mustCreate(t, k.config(s))
	appendN(t, l, 3)
	must(t, l.Close())
	_, err := ledger.Open(t.Context(), newKeys(t).config(s))
	wantErr(t, err, kv.ErrIntegrity)
	must(t, s.Update(t.Context(), func(w kv.Writer) error { w.Delete([]byte("l/c")); return nil }))
	_, err = ledger.Create(t.Context(), k.config(s))
	wantErr(t, err, ledger.ErrExists)
}

func TestCosignatures(t *testing.T) {
	k := newKeys(t)
	l := mustCreate(t, k.config(memkv.New()))
	if l.Cosigned().Note != nil {
		t.Fatal("cosigned by nobody")
	}
	cosign := func(cp ledger.Signed) []byte {
		line, err := k.cosigner.Line(cp.Checkpoint, epoch)
		must(t, err)
		return line
	}
	count := func(signed []byte) int {
		_, n, err := verify.OpenCheckpoint(signed, origin, k.ledger, k.witness)
		must(t, err)
		return len(verify.Cosignatures(n, k.witness))
	}
	appendN(t, l, 3)
	three := l.Checkpoint()
	appendN(t, l, 1)
	four := l.Checkpoint()
	// The witness is one checkpoint behind.
	must(t, l.AddCosignature(three.Size, cosign(three)))
	if count(l.Checkpoint().Note) != 0 || count(l.Cosigned().Note) != 1 || l.Cosigned().Size != 3 {
		t.Fatal("a cosignature of an older checkpoint is on the newest one")
	}
	for i, want := range []int64{3, 3, 3, 4} {
		file, err := l.ProofFile(t.Context(), int64(i))
		must(t, err)
		p, err := verify.ParseProof(file)
		must(t, err)
		e, err := l.Entry(t.Context(), int64(i))
		must(t, err)
		cp, _, err := p.Verify(e, k.ledger, 0, k.witness)
		if err != nil || cp.Size != want {
			t.Fatalf("proof of %d: %v, size %d", i, err, cp.Size)
		}
	}
	wantErr(t, l.AddCosignature(four.Size, cosign(three)), ledger.ErrCosignature)
	wantErr(t, l.AddCosignature(99, cosign(three)), ledger.ErrCosignature)
	wantErr(t, l.AddCosignature(four.Size, []byte("— x y\n")), ledger.ErrCosignature)
	other, err := newKeys(t).cosigner.Line(four.Checkpoint, epoch)
	must(t, err)
	wantErr(t, l.AddCosignature(four.Size, other), ledger.ErrCosignature)
	for range 2 {
		must(t, l.AddCosignature(four.Size, cosign(four)))
	}
	if c := l.Checkpoint(); count(c.Note) != 1 || strings.Count(string(c.Note), "\n— ") != 2 {
		t.Fatalf("%s", c.Note)
	}
	must(t, l.AddCosignature(three.Size, cosign(three))) // of no use any more
	if l.Cosigned().Size != 4 {
		t.Fatal("went back")
	}
	appendN(t, l, 1)
	if count(l.Checkpoint().Note) != 0 {
		t.Fatal("the next checkpoint is cosigned by nobody yet")
	}
}

// A witness that is changing its key signs with both, under one name. Who knows either key can verify, and both
// together are one witness.
func TestCosignaturesOfAWitnessThatChangesItsKey(t *testing.T) {
	older, newer := newKeys(t), newKeys(t)
	l := mustCreate(t, older.config(memkv.New()))
	appendN(t, l, 1)
	cosign := func() (lines []byte) {
		for _, k := range []keys{newer, older} {
			line, err := k.cosigner.Line(l.Checkpoint().Checkpoint, epoch)
			must(t, err)
			lines = append(lines, line...)
		}
		return lines
	}
	by := func(witnesses ...note.Verifier) int {
		_, n, err := verify.OpenCheckpoint(l.Checkpoint().Note, origin, older.ledger, witnesses...)
		must(t, err)
		return len(verify.Cosignatures(n, witnesses...))
	}

	// The newer key is not known yet: its line is refused, that of the older one is taken.
	wantErr(t, l.AddCosignature(1, cosign()), ledger.ErrCosignature)
	if by(older.witness) != 1 || by(newer.witness) != 0 {
		t.Fatalf("%s", l.Checkpoint().Note)
	}
	l.SetWitnesses(newer.witness, older.witness)
	for range 2 { // the same lines again are no other
		must(t, l.AddCosignature(1, cosign()))
		if by(older.witness) != 1 || by(newer.witness) != 1 || by(newer.witness, older.witness) != 1 {
			t.Fatalf("%s", l.Checkpoint().Note)
		}
		if n := strings.Count(string(l.Checkpoint().Note), "\n— "); n != 3 {
			t.Fatalf("%d signatures", n)
		}
	}
	appendN(t, l, 1)
	must(t, l.AddCosignature(2, cosign()))
	if by(older.witness) != 1 || by(newer.witness) != 1 {
		t.Fatalf("%s", l.Checkpoint().Note)
	}
	l.SetWitnesses(newer.witness)
	appendN(t, l, 1)
	wantErr(t, l.AddCosignature(3, nil), ledger.ErrCosignature)
	line, err := newer.cosigner.Line(l.Checkpoint().Checkpoint, epoch)
	must(t, err)
	must(t, l.AddCosignature(3, line))
	if by(older.witness) != 0 || by(newer.witness) != 1 {
		t.Fatalf("%s", l.Checkpoint().Note)
	}
}
