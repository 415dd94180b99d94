package badgerkv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/prototypster/pdvault/vault/kv"
)

// layers is an open store in whose tables newer values and deletions lie above older values. It returns what is there.
func layers(t *testing.T) (*Store, map[string]string) {
	t.Helper()
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	there := map[string]string{}
	var s *Store
	for layer := range 3 {
		if s == nil {
			s = mustCreate(t, o)
		} else {
			mustClose(t, s) // makes a table of the memtable
			s = mustOpen(t, o)
		}
		for i := range storeKeys {
			switch {
			case layer == 1 && i%3 == 0:
				there[key(i)] = fmt.Sprint("newer ", i)
				mustPut(t, s, key(i), there[key(i)])
			case layer == 2 && i%3 == 1:
				delete(there, key(i))
				if err := s.Update(t.Context(), func(w kv.Writer) error { w.Delete([]byte(key(i))); return nil }); err != nil {
					t.Fatal(err)
				}
			case layer == 0:
				there[key(i)] = value(i)
				mustPut(t, s, key(i), there[key(i)])
			}
		}
	}
	mustClose(t, s)
	return mustOpen(t, o), there
}

// answers reads every key one by one and all together. It returns how many answers were integrity errors; no other answer
// may be wrong.
func answers(s *Store, there map[string]string) (refused int, err error) {
	for i := range storeKeys {
		got, ok, e := get(s, key(i))
		want, isThere := there[key(i)]
		switch {
		case errors.Is(e, kv.ErrIntegrity):
			refused++
		case e != nil || ok != isThere || got != want:
			err = errors.Join(err, fmt.Errorf("%s is there: %t, right: %t, error: %v", key(i), ok, got == want, e))
		}
	}
	var pairs []kv.Pair
	e := s.View(context.Background(), func(r kv.Reader) (err error) {
		for page := []kv.Pair{{}}; err == nil && len(page) > 0; pairs = append(pairs, page...) {
			page, err = r.Scan([]byte("key/"), page[len(page)-1].Key, 7)
		}
		return err
	})
	if errors.Is(e, kv.ErrIntegrity) {
		return refused + 1, err
	}
	right := e == nil && len(pairs) == len(there)
	for _, p := range pairs {
		want, ok := there[string(p.Key)]
		right = right && ok && want == string(p.Value)
	}
	if !right {
		err = errors.Join(err, fmt.Errorf("a scan gives %d of %d keys, or others, error: %v", len(pairs), len(there), e))
	}
	return refused, err
}

const flipsFrom = "PDVAULT_TEST_FLIPS_FROM"

// Wherever a table is damaged while its store is open, an answer is the right one or an integrity error; or the engine, which
// trusts its indexes, ends the process, and the next start says what is damaged.
func TestADamagedTableOfAnOpenStoreNeverGivesAWrongAnswer(t *testing.T) {
	if from := os.Getenv(flipsFrom); from != "" {
		n, err := strconv.Atoi(from)
		if err != nil {
			t.Fatal(err)
		}
		flipFrom(t, n)
		return
	}
	ended, noticed := 0, 0
	for from := 0; ; {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
		cmd.Env = append(os.Environ(), fmt.Sprint(flipsFrom, "=", from), "TMPDIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		flips := bytes.Count(out, []byte("flipping "))
		noticed += bytes.Count(out, []byte("noticed\n"))
		if err == nil {
			break
		}
		if flips == 0 || !bytes.Contains(out, []byte("Assert failed\n")) || bytes.Contains(out, []byte("FAIL")) {
			t.Fatalf("from flip %d: %v: %s", from, err, out)
		}
		ended++
		from += flips
	}
	if noticed == 0 {
		t.Error("no flipped bit was noticed")
	}
	t.Logf("%d flipped bits were noticed, %d ended the process", noticed, ended)
}

func flipFrom(t *testing.T, from int) {
	s, there := layers(t)
	if refused, err := answers(s, there); refused > 0 || err != nil {
		t.Fatalf("before anything is damaged, %d answers are refused: %v", refused, err)
	}
	paths := tables(t, s.opts.Dir)
	if len(paths) < 3 {
		t.Fatalf("%d tables", len(paths))
	}
	n := 0
	for _, path := range paths {
		eachFlip(t, path, func(at int, bit byte) {
			if n++; n <= from {
				return
			}
			fmt.Println("flipping", n)
			refused, err := answers(s, there)
			if err != nil {
				t.Errorf("bit %#02x of byte %d of %s: %v", bit, at, filepath.Base(path), err)
			}
			if refused > 0 {
				fmt.Println("noticed")
			}
		})
	}
	if refused, err := answers(s, there); refused > 0 || err != nil {
		t.Errorf("as it was, %d answers are refused: %v", refused, err)
	}
}

// A version that has become greater does not make an older value the newest.
func TestADamagedVersionDoesNotBringBackAnOlderValue(t *testing.T) {
	const victim = "a key that no other begins like"
	o := testOptions(t, filepath.Join(t.TempDir(), "store"))
	s := mustCreate(t, o)
	mustPut(t, s, victim, "older")
	mustClose(t, s)
	s = mustOpen(t, o)
	for i := range 10 {
		mustPut(t, s, key(i), value(i))
	}
	mustPut(t, s, victim, "newer")
	mustClose(t, s)
	s = mustOpen(t, o)
	for i := range 100 {
		mustPut(t, s, key(i), value(i))
	}
	path := tables(t, o.Dir)[0]
	at := bytes.Index(mustRead(t, path), []byte(victim)) + len(victim) // its version follows
	noticed := 0
	for bit := range 64 {
		flipBit(t, path, at+bit/8, 1<<(bit%8))
		got, ok, err := get(s, victim)
		if errors.Is(err, kv.ErrIntegrity) {
			noticed++
		} else if err != nil || !ok || got != "newer" {
			t.Errorf("bit %d: %q is there: %t, error: %v", bit, got, ok, err)
		}
		flipBit(t, path, at+bit/8, 1<<(bit%8))
	}
	if noticed == 0 {
		t.Error("no flipped bit was noticed")
	}
}

// A table that is damaged before it was looked at for the first time is not left out: whatever it may hold is refused.
func TestATableThatCannotBeReadIsNotLeftOut(t *testing.T) {
	s, there := layers(t)
	path := tables(t, s.opts.Dir)[0]
	end := len(mustRead(t, path)) - 1
	s.verifier.forget()
	flipBit(t, path, end, 1)
	if _, err := s.verifier.refresh(); err != nil {
		t.Fatal(err)
	}
	if refused, err := answers(s, there); refused != storeKeys+1 || err != nil {
		t.Errorf("%d answers are refused: %v", refused, err)
	}
	flipBit(t, path, end, 1)
	s.verifier.forget()
	if _, err := s.verifier.refresh(); err != nil {
		t.Fatal(err)
	}
	if refused, err := answers(s, there); refused != 0 || err != nil {
		t.Errorf("as it was, %d answers are refused: %v", refused, err)
	}
}

// What a transaction has written itself is not compared with the tables.
func TestATransactionReadsItsOwnWritesAboveTheTables(t *testing.T) {
	s, there := layers(t)
	err := s.Update(t.Context(), func(w kv.Writer) error {
		w.Set([]byte(key(0)), []byte("mine"))
		w.Delete([]byte(key(2)))
		values, err := w.Get([]byte(key(0)), []byte(key(2)), []byte(key(5)))
		if err != nil {
			return err
		}
		if string(values[0]) != "mine" || values[1] != nil || string(values[2]) != there[key(5)] {
			t.Errorf("got %q", values)
		}
		pairs, err := w.Scan([]byte("key/"), nil, 3)
		if err == nil && (len(pairs) != 3 || string(pairs[0].Value) != "mine" || string(pairs[1].Key) != key(3)) {
			t.Errorf("scanned %q", pairs)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A compaction that has read damage gives it a right checksum, or leaves out what it could not read. Nobody gets what it
// made, the store ends, and no start takes it.
func TestACompactionThatReadsDamageEndsTheStore(t *testing.T) {
	damages := map[string]func(t *testing.T, path string){
		// In values, so that the compaction has no trouble with it, of many keys, some of which nobody writes again.
		"in values": func(t *testing.T, path string) {
			whole, run := mustRead(t, path), bytes.Repeat([]byte("v"), 4<<10)
			for at := 0; ; at += 8 << 10 {
				next := bytes.Index(whole[at:], run)
				if next < 0 {
					return
				}
				at += next
				flipBit(t, path, at+len(run)/2, 1)
			}
		},
		// Where the engine takes a table to end there.
		"in an index": func(t *testing.T, path string) {
			r, err := openSST(filepath.Dir(path), mustID(t, path))
			if err != nil {
				t.Fatal(err)
			}
			var at fb.BlockOffset
			r.index.Offsets(&at, r.index.OffsetsLength()/2)
			entry := at.Table()
			rest, _, _ := cutSized(mustRead(t, path))
			before, _, _ := cutSized(rest)
			length := len(before) + int(entry.Pos) + int(entry.Offset(8)) // the third field
			flipBit(t, path, length+3, 0x40)
		},
	}
	for name, damage := range damages {
		for _, crashes := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, crash before it is noticed %t", name, crashes), func(t *testing.T) {
				compactDamage(t, damage, crashes)
			})
		}
	}
}

func mustID(t *testing.T, path string) uint64 {
	t.Helper()
	id, ok := table.ParseFileID(path)
	if !ok {
		t.Fatalf("%s is not the name of a table", path)
	}
	return id
}

func compactDamage(t *testing.T, damage func(t *testing.T, path string), crashes bool) {
	o := compacting(t)
	ended := make(chan error, 1)
	o.Fatal = func(err error) {
		select {
		case ended <- err:
		default:
		}
	}
	var crashed Options
	var reads atomic.Int64
	o.hooks.compacting = func(point string) {
		if point != "done" {
			return
		}
		if crashes && crashed.Dir == "" {
			crashed = crash(t, o)
		}
		passed(&reads, 3000) // of each key, what it has become
	}
	s := mustCreate(t, o)
	c := newChurn(s)
	c.keys = 200
	for s.db.Levels()[0].NumTables < compactTables-1 {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.verifier.refresh(); err != nil {
		t.Fatal(err)
	}
	damage(t, tables(t, o.Dir)[0])
	defer c.readers(t, 3, &reads)()
	go func() { // never ends where a commit waits for the compaction
		for c.put() == nil {
		}
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, kv.ErrIntegrity) || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("the store ended for another reason: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the store has not ended")
	}
	if !crashes {
		quiet(t, o.Dir)
		crashed = crash(t, o)
	}
	crashed.hooks.compacting = nil
	before := hashDir(t, crashed.Dir)
	if _, err := Open(t.Context(), crashed); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("opening what is left: %v", err)
	}
	if hashDir(t, crashed.Dir) != before {
		t.Error("the refused start has changed the directory")
	}
}

// What a compaction has made is read back before its input goes. If it is not what should have been written, the store ends,
// and the next start has everything.
func TestACompactionThatWritesDamageIsUndone(t *testing.T) {
	damages := map[string]func(whole []byte) (at int){
		"in a block":   func([]byte) int { return 100 },
		"in the index": func(whole []byte) int { return len(whole) - 100 },
	}
	for name, at := range damages {
		t.Run(name, func(t *testing.T) {
			o := compacting(t)
			var e *ending
			ready := make(chan struct{})
			var once sync.Once
			var p points
			p.then = func(point string, times int) {
				<-ready
				if point != "done" || times < 2 {
					return
				}
				once.Do(func() { flipOutput(t, e.s, at) })
			}
			o.hooks.compacting = p.at
			e = newEnding(t, o)
			close(ready)
			e.await(t)
			if cause := *e.cause.Load(); !strings.Contains(cause.Error(), "the next start undoes it") {
				t.Errorf("the store ended with %v", cause)
			}
		})
	}
}

// flipOutput damages what the compaction that is under way has made, at a place that is told from the whole.
func flipOutput(t *testing.T, s *Store, at func(whole []byte) int) {
	s.compactions.mu.Lock()
	made, err := s.compactions.output()
	s.compactions.mu.Unlock()
	if err != nil || len(made) == 0 {
		t.Errorf("the compaction made %d tables, error: %v", len(made), err)
		return
	}
	path := filepath.Join(s.opts.Dir, table.IDToFilename(made[0]))
	flipBit(t, path, at(mustRead(t, path)), 1)
}

// The engine announces no compaction whose input it cannot read at all, and drops it all the same.
func TestACompactionThatWasNotAnnouncedEndsTheStore(t *testing.T) {
	o := compacting(t)
	ended := make(chan error, 1)
	o.Fatal = func(err error) { ended <- err }
	s := mustCreate(t, o)
	mustPut(t, s, key(1), value(1))
	go s.compactions.count() // does not return: the MANIFEST must not be changed
	if err := <-ended; !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("the store ended with %v", err)
	}
	if _, _, err := get(s, key(1)); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("View afterwards: %v", err)
	}
	o = crash(t, o)
	wantValue(t, mustOpen(t, o), key(1), value(1))
}

// A table of which nothing can be read is not dropped by the compaction that could not read it.
func TestACompactionThatCannotReadATableLosesNothing(t *testing.T) {
	o := compacting(t)
	ended := make(chan error, 10)
	o.Fatal = func(err error) { ended <- err }
	var p points
	o.hooks.compacting = p.at
	s := mustCreate(t, o)
	seq := func(n int) string { return fmt.Sprintf("seq/%08d", n) }
	var acked atomic.Int64
	write := func() error {
		n := int(acked.Load())
		err := put(context.Background(), s, seq(n), churnValue(seq(n), 1))
		if err == nil {
			acked.Add(1)
		}
		return err
	}
	for p.count("done") < 1 || s.db.Levels()[0].NumTables < compactTables-1 {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.compactions.sound()
	if err != nil {
		t.Fatal(err)
	}
	oldest := uint64(math.MaxUint64)
	for id, is := range list {
		if is.Level == 0 {
			oldest = min(oldest, id)
		}
	}
	path := filepath.Join(o.Dir, table.IDToFilename(oldest))
	r, err := openSST(o.Dir, oldest)
	if err != nil {
		t.Fatal(err)
	}
	var first fb.BlockOffset
	r.index.Offsets(&first, 0)
	at := int(first.Offset() + first.Len() - 4) // how long its checksum is
	flipBit(t, path, at, 0x40)
	go func() { // never ends where a commit waits for the compaction
		for write() == nil {
		}
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, kv.ErrIntegrity) {
			t.Errorf("the store ended for another reason: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the store has not ended")
	}
	quiet(t, o.Dir)
	crashed := crash(t, o)
	crashed.hooks.compacting = nil
	if _, err := Open(t.Context(), crashed); !errors.Is(err, kv.ErrIntegrity) {
		t.Errorf("opening what is left: %v", err)
	}
	flipBit(t, filepath.Join(crashed.Dir, filepath.Base(path)), at, 0x40) // so that it can be seen that all is there
	s2 := mustOpen(t, crashed)
	for n := range int(acked.Load()) {
		wantValue(t, s2, seq(n), churnValue(seq(n), 1))
	}
}

// Under writes, deletions and compactions among several levels, sound answers are not doubted.
func TestSoundAnswersAreNotDoubted(t *testing.T) {
	o := compacting(t)
	o.hooks.tune = manyLevels
	var p points
	o.hooks.compacting = p.at
	s := mustCreate(t, o)
	quit := make(chan struct{})
	var running sync.WaitGroup
	var reads atomic.Int64
	for n := range 3 {
		running.Go(func() {
			seed := rand.New(rand.NewPCG(uint64(n), 9))
			for {
				select {
				case <-quit:
					return
				default:
				}
				reads.Add(1)
				err := s.View(t.Context(), func(r kv.Reader) error {
					if _, err := r.Get([]byte(key(seed.IntN(churnKeys)))); err != nil {
						return err
					}
					_, err := r.Scan([]byte("key/"), []byte(key(seed.IntN(churnKeys))), 1+seed.IntN(20))
					return err
				})
				if err != nil {
					t.Errorf("a sound store is doubted: %v", err)
					return
				}
			}
		})
	}
	seed := rand.New(rand.NewPCG(4, 4))
	for p.count("done") < 30 {
		err := s.Update(t.Context(), func(w kv.Writer) error {
			k := key(seed.IntN(churnKeys))
			if seed.IntN(2) == 0 {
				w.Delete([]byte(k))
			} else {
				w.Set([]byte(k), []byte(churnValue(k, 1)))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	close(quit)
	running.Wait()
	t.Logf("%d reads, %d compactions", reads.Load(), p.count("done"))
}

// What the disk has lost is damage; what the machine lacks for a moment is not, and does not call for a backup.
func TestErrorsOfTheMachineAreNotDamage(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EIO: true, unix.EUCLEAN: true, unix.EBADMSG: true, unix.ENOENT: true,
		unix.EMFILE: false, unix.ENFILE: false, unix.ENOMEM: false, unix.EACCES: false,
	} {
		if got := isDamage(fmt.Errorf("reading: %w", &fs.PathError{Op: "open", Path: "x", Err: err})); got != want {
			t.Errorf("%v is damage: %t", err, got)
		}
	}
}

// FuzzTable: a table is read as Badger reads it, or refused; whatever is in the file.
func FuzzTable(f *testing.F) {
	o := testOptions(f, filepath.Join(f.TempDir(), "store"))
	s := mustCreate(f, o)
	for i := range storeKeys {
		mustPut(f, s, key(i), value(i))
	}
	mustClose(f, s)
	for _, path := range tables(f, o.Dir) {
		f.Add(mustRead(f, path))
	}
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, file []byte) {
		dir := t.TempDir()
		mustWrite(t, filepath.Join(dir, table.IDToFilename(1)), file)
		newest, err := checkTable(dir, 1)
		theirs, theirErr := checkTheirs(file)
		if (theirErr == nil) != (err == nil) || err == nil && newest != theirs {
			t.Errorf("Badger says %v, we say %v; the newest commit is %d, we say %d", theirErr, err, theirs, newest)
		}
	})
}

// checkTheirs is checkTable as Badger does it. It maps nothing: Badger leaves what it refuses mapped.
func checkTheirs(file []byte) (newest uint64, err error) {
	if len(file) == 0 {
		return 0, errors.New("empty file")
	}
	err = shielded(func() error {
		t, err := table.OpenInMemoryTable(bytes.Clone(file), 1, &table.Options{ChkMode: options.OnTableRead})
		if err != nil {
			return err
		}
		newest = t.MaxVersion()
		return t.VerifyChecksum()
	})
	return newest, err
}

// FuzzBlock: whatever stands in a block with a right checksum, it is read or refused.
func FuzzBlock(f *testing.F) {
	f.Add([]byte{0, 0, 9, 0, 'k', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 'v', 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := readBlock(signed(body))
		if err != nil {
			return
		}
		for n := range b.len() {
			c := cursor{b: b}
			if c.key, c.value, err = b.entry(n, nil); err == nil {
				if len(c.key) < 8 {
					t.Errorf("a key of %d bytes", len(c.key))
				}
				_, _ = c.written() // damage is not a panic
			}
		}
	})
}

// signed puts the checksum of a body behind it, and its length.
func signed(body []byte) []byte {
	sum := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), uint64(crc32.Checksum(body, castagnoli)))
	return binary.BigEndian.AppendUint32(append(bytes.Clone(body), sum...), uint32(len(sum)))
}
