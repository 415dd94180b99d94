package ledger_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

const origin = "pdvault.example.org/ledger"

var epoch = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

type keys struct {
	signer   note.Signer
	ledger   note.Verifier
	cosigner *verify.Cosigner
	witness  note.Verifier
}

func newKeys(t testing.TB) keys {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	must(t, err)
	signer, err := note.NewSigner(skey)
	must(t, err)
	v, err := note.NewVerifier(vkey)
	must(t, err)
	seed, wkey, err := verify.GenerateCosignerKey(rand.Reader, "witness.example.org/w1")
	must(t, err)
	cosigner, err := verify.NewCosigner("witness.example.org/w1", seed)
	must(t, err)
	witness, err := verify.NewCosignatureVerifier(wkey)
	must(t, err)
	return keys{signer, v, cosigner, witness}
}

func (k keys) config(store kv.Store) ledger.Config {
	return ledger.Config{Store: store, Origin: origin, Signer: k.signer, Verifier: k.ledger, Witnesses: []note.Verifier{k.witness}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func mustCreate(t testing.TB, cfg ledger.Config) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Create(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func mustOpen(t testing.TB, cfg ledger.Config) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func mustAppend(t testing.TB, l *ledger.Ledger, e verify.Entry) ledger.Receipt {
	t.Helper()
	r, err := l.Append(context.Background(), e, nil)
	must(t, err)
	return r
}

// appendN appends n entries at once, so that they share transactions.
func appendN(t testing.TB, l *ledger.Ledger, n int) {
	t.Helper()
	size := l.Checkpoint().Size
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { mustAppend(t, l, entry(int(size)+i)) })
	}
	wg.Wait()
}

func ref(who int) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(who)))
	return sum[:]
}

var (
	kinds   = []string{verify.KindAccess, verify.KindRecordWritten, verify.KindAccess, verify.KindLoginDenied}
	callers = []string{"shop", "courier", "privacy"}
)

func entry(i int) verify.Entry {
	e := verify.Entry{
		ID: fmt.Sprintf("0199-%d", i), Kind: kinds[i%len(kinds)],
		Caller: &verify.Caller{ID: callers[i%len(callers)], Kind: "service", Role: "service", Authn: "token"},
	}
	if e.Kind == verify.KindAccess {
		e.Collection, e.Fields, e.Mode, e.Purpose = "profile", []string{"email", "name"}, verify.ModeReveal, "support"
		e.Ground, e.Decision = verify.GroundService, verify.Allow
		e.Evidence = &verify.Evidence{Type: verify.EvidencePurpose, ID: "support"}
		if i%8 == 0 {
			e.Decision, e.Reason = verify.Deny, "fields"
		}
	}
	if e.Kind != verify.KindLoginDenied {
		e.SubjectRef = verify.FormatRef(ref(i % 5))
	}
	return e
}

// reference is a tree kept by the tlog package alone.
type reference struct {
	size   int64
	hashes []tlog.Hash
}

func (r *reference) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = r.hashes[x]
	}
	return out, nil
}

func (r *reference) add(t testing.TB, entry []byte) {
	t.Helper()
	hs, err := tlog.StoredHashes(r.size, entry, r)
	must(t, err)
	r.size, r.hashes = r.size+1, append(r.hashes, hs...)
}

func (r *reference) root(t testing.TB, size int64) tlog.Hash {
	t.Helper()
	h, err := tlog.TreeHash(size, r)
	must(t, err)
	return h
}

// scanAll returns all rows below a prefix.
func scanAll(t testing.TB, s kv.Store, prefix string) (all []kv.Pair) {
	t.Helper()
	must(t, s.View(context.Background(), func(r kv.Reader) error {
		var after []byte
		for {
			found, err := r.Scan([]byte(prefix), after, 1000)
			if err != nil || len(found) == 0 {
				return err
			}
			all, after = append(all, found...), found[len(found)-1].Key
		}
	}))
	return all
}

// checkRows is the invariant: what is stored is one complete tree and nothing else, recomputed from the
// entries by the tlog package, with the index by subject, non-decreasing times and a signed root.
func checkRows(t testing.TB, s kv.Store, k keys) *reference {
	t.Helper()
	tree := &reference{}
	want := map[string][]byte{}
	last := ""
	for _, p := range scanAll(t, s, "l/e/") {
		if !bytes.Equal(p.Key, append([]byte("l/e/"), be64(tree.size)...)) {
			t.Fatalf("entry %d is missing", tree.size)
		}
		e, err := verify.ParseEntry(p.Value)
		must(t, err)
		if e.Time < last {
			t.Fatalf("entry %d: time went back from %s to %s", tree.size, last, e.Time)
		}
		last = e.Time
		if e.SubjectRef != "" {
			r, err := verify.ParseRef(e.SubjectRef)
			must(t, err)
			want["l/s/"+string(r)+string(be64(tree.size))] = []byte{}
		}
		want[string(p.Key)] = p.Value
		tree.add(t, p.Value)
	}
	for level := 0; ; level++ {
		full := tree.size >> (8 * (level + 1))
		if full == 0 {
			break
		}
		for n := range full {
			var data []byte
			for i := range int64(256) {
				h := tree.hashes[tlog.StoredHashIndex(8*level, n*256+i)]
				data = append(data, h[:]...)
			}
			want["l/t/"+string([]byte{byte(level)})+string(be64(n))] = data
		}
	}
	rows := scanAll(t, s, "l/")
	for _, p := range rows {
		if string(p.Key) == "l/c" {
			cp, _, err := verify.OpenCheckpoint(p.Value, origin, k.ledger)
			must(t, err)
			if cp.Size != tree.size || cp.Root != tree.root(t, tree.size) {
				t.Fatalf("the checkpoint is of size %d and not that of the %d entries", cp.Size, tree.size)
			}
			continue
		}
		if v, ok := want[string(p.Key)]; !ok || !bytes.Equal(v, p.Value) {
			t.Fatalf("row %q is not as it should be (wanted: %v)", p.Key, ok)
		}
	}
	if len(rows) != len(want)+1 {
		t.Fatalf("%d rows, want %d", len(rows), len(want)+1)
	}
	return tree
}

// checkPublished: what readers see is a part of what is stored.
func checkPublished(t testing.TB, l *ledger.Ledger, tree *reference, k keys) {
	t.Helper()
	cp := l.Checkpoint()
	opened, _, err := verify.OpenCheckpoint(cp.Note, origin, k.ledger)
	must(t, err)
	if opened != cp.Checkpoint || cp.Size > tree.size || cp.Root != tree.root(t, cp.Size) {
		t.Fatalf("published %v is not of the stored log", cp.Checkpoint)
	}
}

func be64(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// export writes the log as the HTTP layer serves it.
func export(t testing.TB, l *ledger.Ledger) fstest.MapFS {
	t.Helper()
	cp := l.Checkpoint()
	dir := fstest.MapFS{verify.CheckpointPath: {Data: cp.Note}}
	for tile := range verify.TilesOf(cp.Size) {
		var data []byte
		var err error
		if tile.Level == verify.EntriesLevel {
			data, err = l.EntryBundle(t.Context(), tile.N, tile.Width)
		} else {
			data, err = l.Tile(t.Context(), tile.Level, tile.N, tile.Width)
		}
		must(t, err)
		dir[tile.Path()] = &fstest.MapFile{Data: data}
	}
	return dir
}

// faultStore decides for each Update whether it is made and what it returns, and can hold it up.
type faultStore struct {
	kv.Store
	mu    sync.Mutex
	plan  func(ctx context.Context) (apply bool, err error) // guarded by mu; nil: no fault
	enter chan struct{}                                     // guarded by mu; when set, receives at each Update ...
	leave chan struct{}                                     // ... which then waits for this
}

func (s *faultStore) set(plan func(context.Context) (bool, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan = plan
}

func (s *faultStore) hold() (enter <-chan struct{}, release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in, out := make(chan struct{}, 1000), make(chan struct{})
	s.enter, s.leave = in, out
	return in, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.enter, s.leave = nil, nil
		close(out)
	})
}

func (s *faultStore) Update(ctx context.Context, fn func(kv.Writer) error) error {
	s.mu.Lock()
	plan, enter, leave := s.plan, s.enter, s.leave
	s.mu.Unlock()
	if enter != nil {
		enter <- struct{}{}
		<-leave
	}
	if plan == nil {
		return s.Store.Update(ctx, fn)
	}
	apply, err := plan(ctx)
	if apply {
		if err := s.Store.Update(ctx, fn); err != nil {
			return err
		}
	}
	return err
}
