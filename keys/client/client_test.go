package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ client.Prover = (*sidecartest.Log)(nil)

// The interfaces that other packages declare, by shape: unnamed structs are the same type everywhere.
var _ interface {
	Seal(ctx context.Context, subject uuid.UUID, create bool, fields []struct {
		Collection, Field string
		Version           uint64
		Plaintext, Carry  []byte
		CarryVersion      uint64
		Index             []struct {
			Normaliser uint32
			Value      string
			Sealed     []byte
		}
	}) (ref []byte, sealed []struct {
		Ciphertext []byte
		Index      []struct {
			Sealed []byte
			Tokens []struct {
				Key   uint32
				Token []byte
			}
		}
	}, err error)
	Prepare(ctx context.Context, subject uuid.UUID, detail []byte) (ref, sealedDetail []byte, err error)
	IndexTokens(ctx context.Context, collection, field string, normaliser uint32, value string) ([]struct {
		Key   uint32
		Token []byte
	}, error)
	Open(ctx context.Context, index int64, entry []byte, subject uuid.UUID, collection string, version uint64, fields []struct {
		Field              string
		Ciphertext, Expect []byte
	}) ([]struct {
		Plaintext []byte
		Match     bool
	}, error)
	Protect(ctx context.Context, label string, data []byte) ([]byte, error)
	Unprotect(ctx context.Context, label string, data []byte) ([]byte, error)
	Bind(ctx context.Context, origin, ledgerKey string) error
	Witness(ctx context.Context) ([]byte, error)
	Destroy(ctx context.Context, index int64, entry []byte, subject uuid.UUID) (struct {
		Generation uint64
		KEKVersion uint64
		DeadBy     time.Time
		Already    bool
	}, error)
	Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error)
	RotateLedger(ctx context.Context, note []byte, size int64, newKey, drop string) error
} = (*client.Client)(nil)

// dial connects to the world's sidecar, which it serves and binds.
func dial(t testing.TB, w *sidecartest.World, change func(*client.Config)) *client.Client {
	t.Helper()
	w.Serve()
	w.Bind()
	cfg := client.Config{Socket: w.Socket, Prover: w.Log}
	if change != nil {
		change(&cfg)
	}
	c, err := client.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// record is one stored field and who it belongs to.
type record struct {
	id         uuid.UUID
	ref        []byte
	ciphertext []byte
}

func newRecord(w *sidecartest.World) record {
	id, ref, ciphertexts := w.Subject("email")
	return record{id, ref, ciphertexts["email"]}
}

// read appends an access record for r and opens it through c.
func (r record) read(ctx context.Context, w *sidecartest.World, c *client.Client) error {
	entry := w.Entry(r.ref, []string{"email"}, nil)
	return r.open(ctx, c, w.Log.Append(entry), entry)
}

func (r record) open(ctx context.Context, c *client.Client, index int64, entry []byte) error {
	got, err := c.Open(ctx, index, entry, r.id, "profile", 1, []client.OpenField{{Field: "email", Ciphertext: r.ciphertext}})
	if err == nil && (len(got) != 1 || !bytes.Equal(got[0].Plaintext, sidecartest.Value("email"))) {
		return errors.New("another value")
	}
	if err != nil && got != nil {
		return errors.New("an error and fields")
	}
	return err
}

func TestLifeOfARecord(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	ctx := t.Context()
	subject := uuid.New()
	plain := []byte(`"anna@example.org"`)
	ref, sealed, err := c.Seal(ctx, subject, true, []client.SealField{
		{Collection: "profile", Field: "email", Version: 1, Plaintext: bytes.Clone(plain), Index: []client.IndexValue{{Normaliser: 1, Value: "anna@example.org"}}},
		{Collection: "profile", Field: "phone", Version: 1, Plaintext: []byte(`"1"`)},
	})
	if err != nil || len(ref) != 32 || len(sealed) != 2 || len(sealed[0].Index) != 1 || len(sealed[1].Index) != 0 {
		t.Fatalf("Seal = %x, %v, %v", ref, sealed, err)
	}
	if _, _, err := c.Seal(ctx, subject, true, nil); !errors.Is(err, keys.ErrKeyExists) {
		t.Errorf("Seal again = %v, want ErrKeyExists", err)
	}
	tokens, err := c.IndexTokens(ctx, "profile", "email", 1, "anna@example.org")
	if err != nil || !reflect.DeepEqual(tokens, sealed[0].Index[0].Tokens) {
		t.Errorf("IndexTokens = %v, %v, want %v", tokens, err, sealed[0].Index[0].Tokens)
	}
	again, detail, err := c.Prepare(ctx, subject, []byte("order 7"))
	if err != nil || !bytes.Equal(again, ref) || len(detail) == 0 || bytes.Contains(detail, []byte("order")) {
		t.Errorf("Prepare = %x, %q, %v", again, detail, err)
	}
	if again, detail, err = c.Prepare(ctx, subject, nil); err != nil || !bytes.Equal(again, ref) || detail != nil {
		t.Errorf("Prepare without a detail = %x, %q, %v", again, detail, err)
	}

	// Carried to the next version.
	_, carried, err := c.Seal(ctx, subject, false, []client.SealField{{Collection: "profile", Field: "email", Version: 2, Carry: sealed[0].Ciphertext, CarryVersion: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for version, ciphertext := range map[uint64][]byte{1: sealed[0].Ciphertext, 2: carried[0].Ciphertext} {
		entry := w.Entry(ref, []string{"email"}, nil)
		got, err := c.Open(ctx, w.Log.Append(entry), entry, subject, "profile", version, []client.OpenField{{Field: "email", Ciphertext: ciphertext}})
		if err != nil || !bytes.Equal(got[0].Plaintext, plain) {
			t.Errorf("version %d: %v, %v", version, got, err)
		}
	}
	entry := w.Entry(ref, []string{"email"}, func(e *verify.Entry) { e.Mode = verify.ModeVerify })
	got, err := c.Open(ctx, w.Log.Append(entry), entry, subject, "profile", 1, []client.OpenField{{Field: "email", Ciphertext: sealed[0].Ciphertext, Expect: plain}})
	if err != nil || !got[0].Match || got[0].Plaintext != nil {
		t.Errorf("comparing: %v, %v", got, err)
	}
	if err := w.Ring.Destroy(ctx, subject, "erasure"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Prepare(ctx, subject, nil); !errors.Is(err, keys.ErrDestroyed) {
		t.Errorf("Prepare after the erasure = %v, want ErrDestroyed", err)
	}
}

func TestRefusalsReachTheCaller(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	r := newRecord(w)
	entry := w.Entry(r.ref, []string{"email"}, nil)
	index := w.Log.Append(entry)
	if err := r.open(t.Context(), c, index, entry); err != nil {
		t.Fatal(err)
	}
	err := r.open(t.Context(), c, index, entry)
	if !errors.Is(err, keys.ErrReplayed) || !errors.Is(err, keys.ErrProofRefused) || !strings.Contains(err.Error(), "served-before") {
		t.Errorf("the same record twice: %v, want ErrReplayed", err)
	}
	denied := w.Entry(r.ref, []string{"email"}, func(e *verify.Entry) { e.Decision = verify.Deny })
	err = r.open(t.Context(), c, w.Log.Append(denied), denied)
	if !errors.Is(err, keys.ErrProofRefused) || errors.Is(err, keys.ErrReplayed) || !strings.Contains(err.Error(), "not-allowed") {
		t.Errorf("a denied record: %v, want ErrProofRefused", err)
	}
	if err := r.open(t.Context(), c, w.Log.Size()+5, entry); !errors.Is(err, keys.ErrProofRefused) {
		t.Errorf("an index beyond the log: %v, want ErrProofRefused", err)
	}
	if err := r.read(t.Context(), w, c); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestErrorsCrossTheWire: each sentinel that the keyring may give comes out as itself, through each call.
func TestRecordsOpenedTogetherAreKeptApart(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	call := func(r record) client.OpenCall {
		entry := w.Entry(r.ref, []string{"email"}, nil)
		return client.OpenCall{
			Index: w.Log.Append(entry), Entry: entry, Subject: r.id, Collection: "profile", Version: 1,
			Fields: []client.OpenField{{Field: "email", Ciphertext: r.ciphertext}},
		}
	}
	a, b := newRecord(w), newRecord(w)
	good, swapped, empty := call(a), call(a), call(b)
	swapped.Subject = b.id
	empty.Fields = nil
	calls := []client.OpenCall{good, swapped, empty, call(b), good}
	out := c.OpenAll(t.Context(), calls)
	for i, want := range []error{nil, keys.ErrProofRefused, keys.ErrInvalid, nil, keys.ErrReplayed} {
		got := out[i]
		if !errors.Is(got.Err, want) || (got.Err == nil) != (want == nil) {
			t.Errorf("record %d: %v, want %v", i, got.Err, want)
		}
		if got.Err == nil && (len(got.Fields) != 1 || !bytes.Equal(got.Fields[0].Plaintext, sidecartest.Value("email"))) {
			t.Errorf("record %d has another value", i)
		}
		if got.Err != nil && got.Fields != nil {
			t.Errorf("record %d: an error and fields", i)
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if out := c.OpenAll(ended, []client.OpenCall{call(a)}); !errors.Is(out[0].Err, context.Canceled) {
		t.Errorf("after the end of the context: %v", out[0].Err)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	ctx := t.Context()
	for _, sentinel := range []error{
		keys.ErrUnavailable, keys.ErrSealed, keys.ErrForbidden, keys.ErrKEKMissing, keys.ErrKEKRetired, keys.ErrNoKey,
		keys.ErrKeyExists, keys.ErrDestroyed, keys.ErrTampered, keys.ErrProofRefused, keys.ErrReplayed, keys.ErrInvalid,
	} {
		for op, call := range map[string]func() error{
			"Seal": func() error {
				_, _, err := c.Seal(ctx, uuid.New(), false, nil)
				return err
			},
			"Prepare": func() error {
				_, _, err := c.Prepare(ctx, uuid.New(), nil)
				return err
			},
			"Index": func() error {
				_, err := c.IndexTokens(ctx, "profile", "email", 1, "x")
				return err
			},
			"Open": func() error { return newRecord(w).read(ctx, w, c) },
		} {
			w.Ring.FailOnce(op, fmt.Errorf("canary: %w", sentinel))
			want := sentinel
			if op == "Open" && errors.Is(sentinel, keys.ErrProofRefused) {
				want = keys.ErrProofRefused // the keyring says so for one reason only: another subject's record
			}
			err := call()
			if !errors.Is(err, want) || keys.CodeOf(err) != keys.CodeOf(want) {
				t.Errorf("%s with %v = %v", op, sentinel, err)
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: the keyring's text crossed the wire: %v", op, err)
			}
		}
	}
}

func TestAPanicIsAnUnavailableService(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	w.Ring.Before(func(op string) error {
		if op == "Index" {
			panic("canary")
		}
		return nil
	})
	_, err := c.IndexTokens(t.Context(), "profile", "email", 1, "x")
	if !errors.Is(err, keys.ErrUnavailable) || strings.Contains(err.Error(), "canary") {
		t.Errorf("IndexTokens = %v, want ErrUnavailable", err)
	}
	w.Ring.Before(nil)
	if _, err := c.IndexTokens(t.Context(), "profile", "email", 1, "x"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestManyReadersAtOnce(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	records := make([]record, 16)
	for i := range records {
		records[i] = newRecord(w)
	}
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for n := range 20 {
				if err := records[(i+n)%len(records)].read(t.Context(), w, c); err != nil {
					t.Errorf("reader %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if text := string(w.Stats.Text(nil)); !strings.Contains(text, "pdkeys_opens_total 640\n") {
		t.Errorf("opens do not match reads:\n%s", text)
	}
	// The prover was told about cosignatures, and they are good.
	if _, err := c.Witness(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.WitnessedSize != w.Log.Size() {
		t.Fatalf("status %+v, %v", st, err)
	}
	key, err := verify.NewCosignatureVerifier(st.WitnessKey)
	if err != nil {
		t.Fatal(err)
	}
	line := w.Log.Cosignature(st.WitnessedSize)
	if _, err := verify.VerifyCosignatureLine([]byte(line), w.Log.CheckpointAt(st.WitnessedSize), key); err != nil {
		t.Errorf("cosignature %q: %v", line, err)
	}
}

func TestTwoClientsShareAWitness(t *testing.T) {
	w := sidecartest.New(t)
	first := dial(t, w, nil)
	second, err := client.Dial(t.Context(), client.Config{Socket: w.Socket, Prover: w.Log})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	r := newRecord(w)
	for i := range 20 {
		c := []*client.Client{first, second}[i%2]
		if err := r.read(t.Context(), w, c); err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
	}
}

func TestAShorterLedgerIsRolledBack(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	r := newRecord(w)
	w.Log.Grow(10)
	if err := r.read(t.Context(), w, c); err != nil {
		t.Fatal(err)
	}
	restored := w.Log.Fork(8)
	for _, restart := range []bool{false, true} {
		if restart {
			w.Restart()
		}
		c2, err := client.Dial(t.Context(), client.Config{Socket: w.Socket, Prover: restored})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c2.Witness(t.Context()); !errors.Is(err, keys.ErrRolledBack) {
			t.Errorf("Witness = %v, want ErrRolledBack", err)
		}
		entry := w.Entry(r.ref, []string{"email"}, nil)
		if err := r.open(t.Context(), c2, restored.Append(entry), entry); !errors.Is(err, keys.ErrRolledBack) {
			t.Errorf("Open = %v, want ErrRolledBack", err)
		}
		if err := c2.Close(); err != nil {
			t.Error(err)
		}
	}
	// Grown beyond what was witnessed, it is a fork.
	c2, err := client.Dial(t.Context(), client.Config{Socket: w.Socket, Prover: restored})
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	restored.Grow(20)
	entry := w.Entry(r.ref, []string{"email"}, nil)
	if err := r.open(t.Context(), c2, restored.Append(entry), entry); !errors.Is(err, keys.ErrProofRefused) {
		t.Errorf("Open with a forked ledger = %v, want ErrProofRefused", err)
	}
}

func TestAnOlderKeyStoreIsRolledBack(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	if _, _, err := c.Seal(t.Context(), uuid.New(), true, nil); err != nil {
		t.Fatal(err)
	}
	seen := c.Generation()
	if seen < 2 {
		t.Fatalf("generation %d after a new bundle", seen)
	}
	if _, err := client.Dial(t.Context(), client.Config{Socket: w.Socket, MinGeneration: seen + 1}); !errors.Is(err, keys.ErrRolledBack) {
		t.Errorf("Dial = %v, want ErrRolledBack", err)
	}
	c2, err := client.Dial(t.Context(), client.Config{Socket: w.Socket, MinGeneration: seen})
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	if c2.Generation() != seen {
		t.Errorf("generation %d, want %d", c2.Generation(), seen)
	}
}

func TestARestartedSidecarIsFoundAgain(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	r := newRecord(w)
	for range 3 {
		if err := r.read(t.Context(), w, c); err != nil {
			t.Fatal(err)
		}
		w.Stop()
		if err := r.read(t.Context(), w, c); !errors.Is(err, keys.ErrUnavailable) {
			t.Errorf("read without a sidecar = %v, want ErrUnavailable", err)
		}
		w.Restart()
		w.Serve()
		await(t, func() error { return r.read(t.Context(), w, c) })
	}
}

// await calls f until it succeeds. Anything but ErrUnavailable on the way is an error.
func await(t *testing.T, f func() error) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if !errors.Is(err, keys.ErrUnavailable) || time.Since(begin) > 20*time.Second {
			t.Fatalf("waiting for the sidecar: %v", err)
		}
	}
}

func TestReadersSurviveRestartsUnderLoad(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	r := newRecord(w)
	var served, lost atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// An entry that was witnessed just before the restart may be refused after it.
				switch err := r.read(t.Context(), w, c); {
				case err == nil:
					served.Add(1)
				case errors.Is(err, keys.ErrUnavailable), errors.Is(err, keys.ErrReplayed):
					lost.Add(1)
				default:
					t.Errorf("read: %v", err)
				}
			}
		})
	}
	for range 5 {
		before := served.Load()
		await(t, func() error {
			if served.Load() < before+20 {
				return keys.ErrUnavailable
			}
			return nil
		})
		w.Restart()
	}
	close(stop)
	wg.Wait()
	t.Logf("%d served, %d not", served.Load(), lost.Load())
}

func TestAHangingSidecarIsUnavailableWithinTheDeadline(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, func(cfg *client.Config) { cfg.Timeout = 100 * time.Millisecond })
	r := newRecord(w)
	release := make(chan struct{})
	w.Ring.Before(func(string) error {
		<-release
		return nil
	})
	defer close(release)
	for name, call := range map[string]func() error{
		"Open":  func() error { return r.read(t.Context(), w, c) },
		"Index": func() error { _, err := c.IndexTokens(t.Context(), "profile", "email", 1, "x"); return err },
		"Seal":  func() error { _, _, err := c.Seal(t.Context(), uuid.New(), true, nil); return err },
		"Status": func() error {
			w.Clock.Advance(2 * time.Second) // so that the KEK is asked
			_, err := c.Status(t.Context())
			return err
		},
	} {
		if err := call(); !errors.Is(err, keys.ErrUnavailable) {
			t.Errorf("%s = %v, want ErrUnavailable", name, err)
		}
	}
}

func TestAListenerThatDoesNotAnswerIsUnavailable(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := client.Dial(t.Context(), client.Config{Socket: path}); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("Dial = %v, %v, want ErrUnavailable", c, err)
	}
}

func TestTheCallersContextIsObeyed(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	release := make(chan struct{})
	w.Ring.Before(func(string) error {
		<-release
		return nil
	})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() {
		_, err := c.IndexTokens(ctx, "profile", "email", 1, "x")
		done <- err
	}()
	go func() {
		_, err := c.Protect(ctx, "label", []byte("x"))
		done <- err
	}()
	cancel()
	for range 2 {
		// Protect has no hook and may win.
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	}
}

func TestDialRefusesASocketThatIsNotAsItMustBe(t *testing.T) {
	other := uint32(os.Getuid() + 1)
	for _, tt := range []struct {
		name string
		make func(t *testing.T, dir, path string)
		uid  *uint32
	}{
		{name: "nothing", make: func(*testing.T, string, string) {}},
		{name: "file", make: func(t *testing.T, _, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "symbolic link to the socket", make: func(t *testing.T, dir, path string) {
			listen(t, filepath.Join(dir, "real"), 0o600)
			if err := os.Symlink(filepath.Join(dir, "real"), path); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "writable by all", make: func(t *testing.T, _, path string) { listen(t, path, 0o666) }},
		{name: "readable by all", make: func(t *testing.T, _, path string) { listen(t, path, 0o664) }},
		{name: "of another user", make: func(t *testing.T, _, path string) { listen(t, path, 0o600) }, uid: &other},
		{name: "served by another user", make: func(t *testing.T, _, path string) {
			if os.Getuid() != 0 {
				t.Skip("needs root, to change the owner")
			}
			listen(t, path, 0o600)
			if err := os.Chown(path, int(other), -1); err != nil {
				t.Fatal(err)
			}
		}, uid: &other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := shortDir(t)
			path := filepath.Join(dir, "s")
			tt.make(t, dir, path)
			c, err := client.Dial(t.Context(), client.Config{Socket: path, ServerUID: tt.uid})
			if c != nil || !errors.Is(err, keys.ErrUnavailable) {
				t.Errorf("Dial = %v, %v, want ErrUnavailable", c, err)
			}
		})
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pdk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// listen answers Status like a sidecar, on a socket of this mode.
func listen(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	listenWith(t, path, mode, func(g *grpc.Server) { keyspb.RegisterSidecarServer(g, liar{}) })
}

// listenWith serves what register registers.
func listenWith(t *testing.T, path string, mode os.FileMode, register func(*grpc.Server)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
}

// liar answers everything with nothing.
type liar struct {
	keyspb.UnimplementedSidecarServer
}

func (liar) Status(context.Context, *keyspb.StatusRequest) (*keyspb.StatusResponse, error) {
	return &keyspb.StatusResponse{}, nil
}

func (liar) Seal(_ context.Context, r *keyspb.SealRequest) (*keyspb.SealResponse, error) {
	return &keyspb.SealResponse{Subjects: []*keyspb.SealedSubject{{}}}, nil
}

func (liar) Prepare(context.Context, *keyspb.PrepareRequest) (*keyspb.PrepareResponse, error) {
	return &keyspb.PrepareResponse{Items: []*keyspb.PreparedItem{{Ref: make([]byte, 31)}}}, nil
}

func (liar) Index(context.Context, *keyspb.IndexRequest) (*keyspb.IndexResponse, error) {
	return &keyspb.IndexResponse{Values: []*keyspb.IndexTokens{nil}}, nil
}

func (liar) Open(_ context.Context, r *keyspb.OpenRequest) (*keyspb.OpenResponse, error) {
	return &keyspb.OpenResponse{WitnessedSize: 1, Cosignature: []byte("x"), Items: []*keyspb.OpenedItem{{Fields: []*keyspb.OpenedField{{}}}}}, nil
}

func (liar) Witness(context.Context, *keyspb.WitnessRequest) (*keyspb.WitnessResponse, error) {
	return &keyspb.WitnessResponse{}, nil
}

func (liar) Protect(context.Context, *keyspb.ProtectRequest) (*keyspb.ProtectResponse, error) {
	return &keyspb.ProtectResponse{}, nil
}

// TestEmptyAnswersAreNoAnswers: a sidecar that says OK and gives nothing is unavailable; nothing empty is
// ever handed on as a value.
func TestEmptyAnswersAreNoAnswers(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	listen(t, path, 0o660)
	log := sidecartest.NewLog(t, sidecartest.Origin)
	log.Grow(1)
	c, err := client.Dial(t.Context(), client.Config{Socket: path, Prover: log})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	field := []client.SealField{{Collection: "profile", Field: "email", Plaintext: []byte("1")}}
	for name, call := range map[string]func() error{
		"Seal":    func() error { _, _, err := c.Seal(ctx, uuid.New(), true, field); return err },
		"Prepare": func() error { _, _, err := c.Prepare(ctx, uuid.New(), nil); return err },
		"Index":   func() error { _, err := c.IndexTokens(ctx, "profile", "email", 1, "x"); return err },
		"Protect": func() error { _, err := c.Protect(ctx, "label", []byte("x")); return err },
		"Witness": func() error { _, err := c.Witness(ctx); return err },
		"Open": func() error {
			_, err := c.Open(ctx, 0, []byte("filler"), uuid.New(), "profile", 1, []client.OpenField{{Field: "email", Ciphertext: []byte("x")}})
			return err
		},
	} {
		if err := call(); !errors.Is(err, keys.ErrUnavailable) {
			t.Errorf("%s = %v, want ErrUnavailable", name, err)
		}
	}
}

// TestLimitsAreTheSidecars: what the client lets through, the sidecar takes, and the other way round; so
// that no call can spoil the batch it travels in.
func TestLimitsAreTheSidecars(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	ctx := t.Context()
	name := func(n int) string { return strings.Repeat("n", n) }
	seal := func(f client.SealField) error {
		_, _, err := c.Seal(ctx, uuid.New(), true, []client.SealField{f})
		return err
	}
	for _, tt := range []struct {
		what string
		ok   bool
		call func() error
	}{
		{"longest name", true, func() error {
			return seal(client.SealField{Collection: name(sidecar.MaxName), Field: name(sidecar.MaxName), Plaintext: []byte("1")})
		}},
		{"name too long", false, func() error {
			return seal(client.SealField{Collection: name(sidecar.MaxName + 1), Field: "x", Plaintext: []byte("1")})
		}},
		{"empty name", false, func() error { return seal(client.SealField{Collection: "x", Plaintext: []byte("1")}) }},
		{"name that is no text", false, func() error { return seal(client.SealField{Collection: "x", Field: "\xff", Plaintext: []byte("1")}) }},
		{"longest plaintext", true, func() error {
			return seal(client.SealField{Collection: "x", Field: "y", Plaintext: make([]byte, sidecar.MaxPlaintext)})
		}},
		{"plaintext too long", false, func() error {
			return seal(client.SealField{Collection: "x", Field: "y", Plaintext: make([]byte, sidecar.MaxPlaintext+1)})
		}},
		{"neither plaintext nor carry", false, func() error { return seal(client.SealField{Collection: "x", Field: "y"}) }},
		{"both plaintext and carry", false, func() error {
			return seal(client.SealField{Collection: "x", Field: "y", Plaintext: []byte("1"), Carry: []byte("1")})
		}},
		{"empty index value", false, func() error {
			return seal(client.SealField{Collection: "x", Field: "y", Plaintext: []byte("1"), Index: []client.IndexValue{{}}})
		}},
		{"longest index value", true, func() error { _, err := c.IndexTokens(ctx, "x", "y", 1, name(sidecar.MaxIndexValue)); return err }},
		{"index value too long", false, func() error { _, err := c.IndexTokens(ctx, "x", "y", 1, name(sidecar.MaxIndexValue+1)); return err }},
		{"most fields", true, func() error {
			fields := make([]client.SealField, sidecar.MaxFields)
			for i := range fields {
				fields[i] = client.SealField{Collection: "x", Field: fmt.Sprint(i), Plaintext: []byte("1")}
			}
			_, _, err := c.Seal(ctx, uuid.New(), true, fields)
			return err
		}},
		{"too many fields", false, func() error {
			_, _, err := c.Seal(ctx, uuid.New(), true, make([]client.SealField, sidecar.MaxFields+1))
			return err
		}},
		{"call too large", false, func() error {
			fields := make([]client.SealField, sidecar.MaxFields)
			for i := range fields {
				fields[i] = client.SealField{Collection: "x", Field: fmt.Sprint(i), Plaintext: make([]byte, sidecar.MaxPlaintext)}
			}
			_, _, err := c.Seal(ctx, uuid.New(), true, fields)
			return err
		}},
		{"detail too long", false, func() error { _, _, err := c.Prepare(ctx, uuid.New(), make([]byte, sidecar.MaxDetail+1)); return err }},
		{"secret too long", false, func() error { _, err := c.Protect(ctx, "x", make([]byte, sidecar.MaxProtected+1)); return err }},
		{"longest secret", true, func() error {
			p, err := c.Protect(ctx, "x", make([]byte, sidecar.MaxProtected))
			if err == nil {
				_, err = c.Unprotect(ctx, "x", p)
			}
			return err
		}},
	} {
		if err := tt.call(); (err == nil) != tt.ok || (err != nil && !errors.Is(err, keys.ErrInvalid)) {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
	longest := client.SealField{Collection: "x", Field: "y", Version: 1, Plaintext: make([]byte, sidecar.MaxPlaintext)}
	id := uuid.New()
	_, sealed, err := c.Seal(ctx, id, true, []client.SealField{longest})
	if err != nil || len(sealed[0].Ciphertext) > sidecar.MaxCiphertext {
		t.Fatalf("the longest ciphertext has %d bytes, %v", len(sealed[0].Ciphertext), err)
	}
}

func TestAfterClose(t *testing.T) {
	w := sidecartest.New(t)
	w.Serve()
	w.Bind()
	c, err := client.Dial(t.Context(), client.Config{Socket: w.Socket})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(t.Context(), 0, []byte("x"), uuid.New(), "profile", 1, []client.OpenField{{Field: "x", Ciphertext: []byte("x")}}); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("Open without a prover = %v, want ErrUnavailable", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.IndexTokens(t.Context(), "profile", "email", 1, "x"); !errors.Is(err, keys.ErrUnavailable) {
		t.Errorf("IndexTokens after Close = %v, want ErrUnavailable", err)
	}
}

func TestBindIsRefusedForAnotherLedger(t *testing.T) {
	w := sidecartest.New(t)
	c := dial(t, w, nil)
	if err := c.Bind(t.Context(), w.Log.Origin, w.Log.Key); err != nil {
		t.Errorf("Bind again: %v", err)
	}
	_, key, err := note.GenerateKey(nil, w.Log.Origin)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Bind(t.Context(), w.Log.Origin, key); !errors.Is(err, keys.ErrProofRefused) {
		t.Errorf("Bind to another key = %v, want ErrProofRefused", err)
	}
	if _, err := c.Unprotect(t.Context(), "label", []byte("garbage that was never protected")); !errors.Is(err, keys.ErrTampered) {
		t.Errorf("Unprotect of garbage = %v, want ErrTampered", err)
	}
}
