package ledger_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// TestProofsOfAllPairs checks the proof of each entry in each tree up to 600, and between all trees, against
// those that the tlog package makes from its own hashes.
func TestProofsOfAllPairs(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	l := mustCreate(t, k.config(s))
	size := int64(600)
	if raceEnabled {
		size = 300
	}
	appendN(t, l, int(size))
	tree := checkRows(t, s, k)
	leaves := make([][]byte, size)
	for i := range leaves {
		var err error
		leaves[i], err = l.Entry(t.Context(), int64(i))
		must(t, err)
	}
	for n := range size + 1 {
		cp := verify.Checkpoint{Origin: origin, Size: n, Root: tree.root(t, n)}
		for i := range n {
			got, err := l.ProveInclusion(t.Context(), i, n)
			must(t, err)
			want, err := tlog.ProveRecord(n, i, tree)
			must(t, err)
			if !slices.Equal(got, want) {
				t.Fatalf("inclusion of %d in %d", i, n)
			}
			cons, err := l.ProveConsistency(t.Context(), i, n)
			must(t, err)
			if i > 0 {
				if want, err := tlog.ProveTree(n, i, tree); err != nil || !slices.Equal(cons, want) {
					t.Fatalf("consistency from %d to %d: %v", i, n, err)
				}
			} else if cons != nil {
				t.Fatal("a proof from nothing has hashes")
			}
			// The sidecar's own checks, on a part of them for the sake of time.
			if i%7 == n%7 || n-i < 3 {
				must(t, verify.CheckInclusion(leaves[i], i, got, cp))
				must(t, verify.CheckConsistency(verify.Checkpoint{Origin: origin, Size: i, Root: tree.root(t, i)}, cp, cons))
			}
		}
	}
	for _, c := range [][2]int64{{-1, 5}, {5, 5}, {0, size + 1}, {size, size}, {0, 0}} {
		_, err := l.ProveInclusion(t.Context(), c[0], c[1])
		wantErr(t, err, ledger.ErrNotFound)
	}
	for _, c := range [][2]int64{{-1, 5}, {6, 5}, {0, size + 1}} {
		_, err := l.ProveConsistency(t.Context(), c[0], c[1])
		wantErr(t, err, ledger.ErrNotFound)
	}
	_, err := l.Entry(t.Context(), size)
	wantErr(t, err, ledger.ErrNotFound)
	_, err = l.Entry(t.Context(), -1)
	wantErr(t, err, ledger.ErrNotFound)
}

// TestBoundarySizes grows a log over the edges of its tiles, reopens it at each and checks all of it.
func TestBoundarySizes(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	l := mustCreate(t, k.config(s))
	tree := &reference{}
	sizes := []int64{1, 2, 255, 256, 257, 511, 512, 513, 65535, 65536, 65537, 65792, 65793}
	if raceEnabled {
		sizes = sizes[:8]
	}
	for _, size := range sizes {
		for have := l.Checkpoint().Size; have < size; have = l.Checkpoint().Size {
			appendN(t, l, int(min(size-have, 2048)))
		}
		for _, p := range scanFrom(t, s, tree.size) {
			tree.add(t, p.Value)
		}
		for range 2 { // as grown, and as opened
			cp := l.Checkpoint()
			if cp.Size != size || cp.Root != tree.root(t, size) {
				t.Fatalf("size %d: %v", size, cp.Checkpoint)
			}
			for _, i := range []int64{0, 1, size / 2, size - 2, size - 1} {
				if i < 0 || i >= size {
					continue
				}
				e, err := l.Entry(t.Context(), i)
				must(t, err)
				p, err := l.ProveInclusion(t.Context(), i, size)
				must(t, err)
				must(t, verify.CheckInclusion(e, i, p, cp.Checkpoint))
				cons, err := l.ProveConsistency(t.Context(), i, size)
				must(t, err)
				must(t, verify.CheckConsistency(verify.Checkpoint{Origin: origin, Size: i, Root: tree.root(t, i)}, cp.Checkpoint, cons))
			}
			must(t, l.Close())
			l = mustOpen(t, k.config(s))
		}
	}
	checkRows(t, s, k)
	dir := export(t, l)
	r, err := verify.VerifyLog(t.Context(), dir, verify.LogCheck{Ledger: k.ledger})
	must(t, err)
	// The entries of this test have no policy behind them; the log itself must be in order.
	if r.Entries != tree.size || r.Problems[0].Code != verify.CodePolicyVersion {
		t.Fatal(r.Entries, r.Problems[0])
	}
}

func scanFrom(t testing.TB, s kv.Store, index int64) (all []kv.Pair) {
	t.Helper()
	must(t, s.View(context.Background(), func(r kv.Reader) error {
		after := []byte("l/e/")
		if index > 0 {
			after = append(after, be64(index-1)...)
		}
		var err error
		all, err = r.Scan([]byte("l/e/"), after, 1<<20)
		return err
	}))
	return all
}

// TestExportRoundTrip: what the log serves is what the auditor's check accepts, and a checkpoint taken on the
// way there is extended.
func TestExportRoundTrip(t *testing.T) {
	engines(t, func(t *testing.T, s kv.Store) {
		k := newKeys(t)
		l := mustCreate(t, k.config(s))
		var earlier []byte
		rounds := 0
		for _, n := range []int{1, 254, 1, 1, 300} {
			appendLogins(t, l, n)
			r, err := verify.VerifyLog(t.Context(), export(t, l), verify.LogCheck{Ledger: k.ledger, Earlier: earlier})
			must(t, err)
			if !r.OK() || r.Entries != l.Checkpoint().Size {
				t.Fatalf("%+v", r.Problems)
			}
			earlier = l.Checkpoint().Note
			rounds++
		}
		for _, c := range []struct {
			level int
			n     int64
			width int
		}{{0, 2, 46}, {0, 3, 1}, {1, 0, 3}, {2, 0, 1}, {0, 0, 0}, {0, 0, 257}, {0, -1, 1}, {-1, 0, 1}, {99, 0, 1}, {0, 1 << 60, 1}} {
			_, err := l.Tile(t.Context(), c.level, c.n, c.width)
			wantErr(t, err, ledger.ErrNotFound)
		}
		_, err := l.EntryBundle(t.Context(), 2, 46)
		wantErr(t, err, ledger.ErrNotFound)
	})
}

func appendLogins(t testing.TB, l *ledger.Ledger, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { mustAppend(t, l, verify.Entry{ID: "x", Kind: verify.KindLoginDenied}) })
	}
	wg.Wait()
}

// TestReadersDuringAppends: at any moment the published checkpoint can be proven from and into, by any
// number of readers, while the tree grows. Run it with -race.
func TestReadersDuringAppends(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	l := mustCreate(t, k.config(s))
	var stop atomic.Bool
	var readers, writers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			seen := verify.EmptyCheckpoint(origin)
			for !stop.Load() {
				cp := l.Checkpoint()
				cons, err := l.ProveConsistency(context.Background(), seen.Size, cp.Size)
				if err == nil {
					err = verify.CheckConsistency(seen, cp.Checkpoint, cons)
				}
				if err != nil {
					t.Error(err)
					return
				}
				seen = cp.Checkpoint
				for _, i := range []int64{0, seen.Size / 2, seen.Size - 1} {
					if i < 0 || i >= seen.Size {
						continue
					}
					e, err := l.Entry(context.Background(), i)
					must(t, err)
					p, err := l.ProveInclusion(context.Background(), i, seen.Size)
					must(t, err)
					if err := verify.CheckInclusion(e, i, p, seen); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 8 {
		writers.Go(func() {
			for i := range 150 {
				mustAppend(t, l, entry(i))
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	checkPublished(t, l, checkRows(t, s, k), k)
}

// TestRandomHistories interleaves appends, faults and reopenings, and checks the invariant after each.
func TestRandomHistories(t *testing.T) {
	k := newKeys(t)
	rapid.Check(t, func(rt *rapid.T) {
		s := &faultStore{Store: memkv.New()}
		l := mustCreate(t, k.config(s))
		defer func() { l.Close() }()
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0:
				appendN(t, l, rapid.IntRange(1, 300).Draw(rt, "n"))
			case 1, 2:
				applied := rapid.Bool().Draw(rt, "applied")
				s.set(func(context.Context) (bool, error) { return applied, context.DeadlineExceeded })
				if _, err := l.Append(context.Background(), entry(1), nil); err == nil {
					rt.Fatal("acknowledged")
				}
				s.set(nil)
			case 3:
				must(t, l.Close())
				l = mustOpen(t, k.config(s))
			}
			checkPublished(t, l, checkRows(t, s, k), k)
		}
	})
}

// TestQuery compares with looking at every entry.
func TestQuery(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	cfg := k.config(s)
	var tick atomic.Int64
	cfg.Now = func() time.Time { return epoch.Add(time.Duration(tick.Add(1)) * 10 * time.Millisecond) }
	cfg.MaxBatch = 3
	l := mustCreate(t, cfg)
	const size = 400
	appendN(t, l, size)
	all := make([]verify.Entry, size)
	for i := range all {
		b, err := l.Entry(t.Context(), int64(i))
		must(t, err)
		all[i], err = verify.ParseEntry(b)
		must(t, err)
	}
	pick := func(rt *rapid.T, name string, values ...string) string {
		return rapid.SampledFrom(append(values, "")).Draw(rt, name)
	}
	rapid.Check(t, func(rt *rapid.T) {
		f := ledger.Filter{
			Caller: pick(rt, "caller", callers...), Purpose: pick(rt, "purpose", "support", "none"),
			Ground: pick(rt, "ground", verify.GroundService), Decision: pick(rt, "decision", verify.Allow, verify.Deny),
			Limit: rapid.IntRange(0, 50).Draw(rt, "limit"), Cursor: rapid.Int64Range(0, size+5).Draw(rt, "cursor"),
		}
		if rapid.Bool().Draw(rt, "by subject") {
			f.SubjectRef = ref(rapid.IntRange(0, 6).Draw(rt, "subject"))
		}
		if rapid.Bool().Draw(rt, "by kind") {
			f.Kinds = rapid.SliceOfN(rapid.SampledFrom(kinds), 1, 2).Draw(rt, "kinds")
		}
		span := rapid.IntRange(0, 2500)
		if rapid.Bool().Draw(rt, "from") {
			f.From = epoch.Add(time.Duration(span.Draw(rt, "from ms")) * time.Millisecond)
		}
		if rapid.Bool().Draw(rt, "to") {
			f.To = epoch.Add(time.Duration(span.Draw(rt, "to ms")) * time.Millisecond)
		}
		var want, got []int64
		for i, e := range all {
			at, err := time.Parse(verify.TimeLayout, e.Time)
			must(t, err)
			if int64(i) < f.Cursor ||
				f.SubjectRef != nil && e.SubjectRef != verify.FormatRef(f.SubjectRef) ||
				f.Caller != "" && e.Caller.ID != f.Caller || f.Purpose != "" && e.Purpose != f.Purpose ||
				f.Ground != "" && e.Ground != f.Ground || f.Decision != "" && e.Decision != f.Decision ||
				len(f.Kinds) > 0 && !slices.Contains(f.Kinds, e.Kind) ||
				!f.From.IsZero() && at.Before(f.From) || !f.To.IsZero() && !at.Before(f.To) {
				continue
			}
			want = append(want, int64(i))
		}
		for pages := 0; ; pages++ {
			p, err := l.Query(context.Background(), f)
			if err != nil {
				rt.Fatal(err)
			}
			for _, rec := range p.Records {
				if b, err := verify.Encode(rec.Value); err != nil || !bytes.Equal(b, rec.Entry) {
					rt.Fatal("record and bytes differ")
				}
				got = append(got, rec.Index)
			}
			if f.Limit > 0 && len(p.Records) > f.Limit {
				rt.Fatalf("%d on a page of %d", len(p.Records), f.Limit)
			}
			if !p.More {
				break
			}
			if p.Next <= f.Cursor || pages > size {
				rt.Fatal("no progress")
			}
			f.Cursor = p.Next
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("got %v, want %v", got, want)
		}
	})
	for _, f := range []ledger.Filter{{Cursor: -1}, {Limit: -1}, {SubjectRef: []byte("ada")}} {
		_, err := l.Query(t.Context(), f)
		wantErr(t, err, ledger.ErrQuery)
	}
}

// TestQueryIsBounded: a call does not look at the whole log for something that is not there.
func TestQueryIsBounded(t *testing.T) {
	if raceEnabled {
		t.Skip("there is nothing concurrent in it")
	}
	l := mustCreate(t, newKeys(t).config(memkv.New()))
	appendN(t, l, 5000)
	p, err := l.Query(t.Context(), ledger.Filter{Caller: "nobody"})
	must(t, err)
	if !p.More || len(p.Records) != 0 || p.Next != 4096 {
		t.Fatalf("%+v", p)
	}
	p, err = l.Query(t.Context(), ledger.Filter{Caller: "nobody", Cursor: p.Next})
	must(t, err)
	if p.More || p.Next != 5000 {
		t.Fatalf("%+v", p)
	}
	// A reader that follows the log goes on from where it ended.
	appendN(t, l, 1)
	p, err = l.Query(t.Context(), ledger.Filter{Cursor: p.Next})
	must(t, err)
	if len(p.Records) != 1 || p.Records[0].Index != 5000 || p.Next != 5001 {
		t.Fatalf("%+v", p)
	}
}

// TestErasureUnindexes: the effects of an erasure may delete rows of the index by subject, and no others.
func TestErasureUnindexes(t *testing.T) {
	k := newKeys(t)
	s := memkv.New()
	l := mustCreate(t, k.config(s))
	appendN(t, l, 40)
	keys, err := l.SubjectRows(t.Context(), ref(1), nil, 1000)
	must(t, err)
	if len(keys) == 0 {
		t.Fatal("no rows")
	}
	erase := verify.Entry{ID: "x", Kind: verify.KindSubjectErased, SubjectRef: verify.FormatRef(ref(1))}
	_, err = l.Append(t.Context(), erase, func(ledger.Position) kv.Change { return kv.Change{Deletes: keys} })
	must(t, err)
	p, err := l.Query(t.Context(), ledger.Filter{SubjectRef: ref(1)})
	must(t, err)
	if len(p.Records) != 0 { // the erasure's own entry is not indexed either
		t.Fatalf("%+v", p.Records)
	}
	_, err = l.Append(t.Context(), erase, func(ledger.Position) kv.Change {
		return kv.Change{Deletes: [][]byte{append([]byte("l/e/"), be64(0)...)}}
	})
	wantErr(t, err, ledger.ErrInvalidEntry)
	_, err = l.SubjectRows(t.Context(), nil, nil, 1)
	wantErr(t, err, ledger.ErrQuery)
	must(t, l.Close())
	mustOpen(t, k.config(s))
}
