package sidecar_test

import (
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc/status"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

func detailsOf(err error) []any { return status.Convert(err).Details() }

// witness shows the current checkpoint of log, proven from the given size.
func witness(t *testing.T, w *sidecartest.World, log *sidecartest.Log, from int64) (*keyspb.WitnessResponse, error) {
	t.Helper()
	note, size := log.Checkpoint()
	req := &keyspb.WitnessRequest{Checkpoint: note, From: from}
	if from > 0 && from < size {
		proof, err := log.ProveConsistency(t.Context(), from, size)
		if err != nil {
			t.Fatal(err)
		}
		req.Consistency = sidecartest.Hashes(proof)
	}
	return w.Server.Witness(t.Context(), req)
}

func witnessKey(t *testing.T, w *sidecartest.World) note.Verifier {
	t.Helper()
	st, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.NewCosignatureVerifier(st.WitnessKey)
	if err != nil {
		t.Fatalf("witness key %q: %v", st.WitnessKey, err)
	}
	return v
}

func whyOf(err error) string {
	for _, d := range detailsOf(err) {
		if item, ok := d.(*keyspb.OpenedItem); ok {
			return item.Why
		}
	}
	return ""
}

func TestWitnessCosignsEachNewerCheckpoint(t *testing.T) {
	w := sidecartest.Bound(t)
	key := witnessKey(t, w)
	var from int64
	for _, grow := range []int{0, 1, 1, 7, 300, 0} {
		w.Log.Grow(grow)
		resp, err := witness(t, w, w.Log, from)
		if err != nil || resp.Stale {
			t.Fatalf("size %d: %v, %v", w.Log.Size(), resp, err)
		}
		from = w.Log.Size()
		if resp.WitnessedSize != from {
			t.Errorf("witnessed %d, want %d", resp.WitnessedSize, from)
		}
		sig, err := verify.VerifyCosignatureLine(resp.Cosignature, w.Log.CheckpointAt(from), key)
		if err != nil {
			t.Fatalf("cosignature: %v", err)
		}
		if age := time.Since(sig.Time); age < -time.Minute || age > time.Minute {
			t.Errorf("cosignature is of %v", sig.Time)
		}
		// Appended to the checkpoint it makes a cosigned note.
		signed, _ := w.Log.Checkpoint()
		ledger, err := note.NewVerifier(w.Log.Key)
		if err != nil {
			t.Fatal(err)
		}
		_, n, err := verify.OpenCheckpoint(append(append([]byte(nil), signed...), resp.Cosignature...), w.Log.Origin, ledger, key)
		if err != nil || len(verify.Cosignatures(n, key)) != 1 {
			t.Errorf("cosigned checkpoint: %v", err)
		}
	}
}

func TestWitnessKeyOutlivesARestart(t *testing.T) {
	w := sidecartest.Bound(t)
	before := witnessKey(t, w).KeyHash()
	w.Restart()
	if after := witnessKey(t, w).KeyHash(); after != before {
		t.Errorf("key hash %08x after a restart, %08x before", after, before)
	}
}

func TestForksAndCutsAreNoticed(t *testing.T) {
	grown := func(l *sidecartest.Log, n int) *sidecartest.Log {
		for range n {
			l.Append([]byte("forged"))
		}
		return l
	}
	for _, tt := range []struct {
		name  string
		fork  func(w *sidecartest.World) *sidecartest.Log
		from  int64
		why   string // refused, or
		stale int64  // stale, with this size
	}{
		{name: "fork of the same size", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(5), 5) }, from: 10, why: "forked"},
		{name: "fork of the same size, proven from elsewhere", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(5), 5) }, from: 3, why: "forked"},
		{name: "longer fork", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(5), 9) }, from: 10, why: "inconsistent"},
		{name: "longer fork, proven from before it", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(5), 9) }, from: 5, stale: 10},
		{name: "rewritten from the start", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(0), 20) }, from: 10, why: "inconsistent"},
		{name: "cut", fork: func(w *sidecartest.World) *sidecartest.Log { return w.Log.Fork(9) }, from: 9, stale: 10},
		{name: "empty", fork: func(w *sidecartest.World) *sidecartest.Log { return w.Log.Fork(0) }, stale: 10},
		{name: "cut and grown", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(9), 4) }, from: 9, stale: 10},
		{name: "from beyond what was witnessed", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(10), 4) }, from: 12, stale: 10},
		{name: "from beyond the checkpoint", fork: func(w *sidecartest.World) *sidecartest.Log { return grown(w.Log.Fork(10), 4) }, from: 1000, stale: 10},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				w := sidecartest.Bound(t)
				w.Log.Grow(10)
				if _, err := witness(t, w, w.Log, 0); err != nil {
					t.Fatal(err)
				}
				if restarted {
					w.Restart()
				}
				fork := tt.fork(w)
				resp, err := witness(t, w, fork, tt.from)
				if tt.why != "" && (codeOf(t, err) != keyspb.Code_PROOF_REFUSED || whyOf(err) != tt.why) {
					t.Errorf("got %v, %v, want %q", resp, err, tt.why)
				}
				if tt.why == "" && (err != nil || !resp.Stale || resp.WitnessedSize != tt.stale || len(resp.Cosignature) > 0) {
					t.Errorf("got %v, %v, want stale at %d", resp, err, tt.stale)
				}

				// The same through Open: nothing opens.
				id, ref, ciphertexts := w.Subject("email")
				entry := w.Entry(ref, []string{"email"}, nil)
				index := fork.Append(entry)
				signed, size := fork.Checkpoint()
				inclusion, err := fork.ProveInclusion(t.Context(), index, size)
				if err != nil {
					t.Fatal(err)
				}
				item := sidecartest.Item(index, entry, id, ciphertexts, "email")
				item.Inclusion = sidecartest.Hashes(inclusion)
				req := &keyspb.OpenRequest{Checkpoint: signed, From: min(tt.from, size), Items: []*keyspb.OpenItem{item}}
				if req.From > 0 && req.From < size {
					proof, err := fork.ProveConsistency(t.Context(), req.From, size)
					if err != nil {
						t.Fatal(err)
					}
					req.Consistency = sidecartest.Hashes(proof)
				}
				if _, got := open(t, w, req); got != nil && got.Code == keyspb.Code_OK && tt.why != "" {
					t.Error("a forked ledger opened something")
				}
				// The true ledger still goes on.
				w.Log.Grow(1)
				if resp, err := witness(t, w, w.Log, 10); tt.why != "" && (err != nil || resp.Stale) {
					t.Errorf("the true ledger: %v, %v", resp, err)
				}
			})
		}
	}
}

func TestAProofWaitsForTheOneBeforeIt(t *testing.T) {
	w := sidecartest.Bound(t)
	w.Log.Grow(5)
	first := w.Log.Fork(5)
	w.Log.Grow(5)
	second := make(chan *keyspb.WitnessResponse, 1)
	signed, _ := w.Log.Checkpoint()
	proof, err := w.Log.ProveConsistency(t.Context(), 5, 10)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		// Sent ahead of the one that brings the witness to 5. It waits or is told to try again; in no case
		// is it refused.
		for {
			resp, err := w.Server.Witness(t.Context(), &keyspb.WitnessRequest{Checkpoint: signed, From: 5, Consistency: sidecartest.Hashes(proof)})
			if err != nil {
				t.Errorf("Witness: %v", err)
			}
			if err != nil || !resp.Stale {
				second <- resp
				return
			}
		}
	}()
	if _, err := witness(t, w, first, 0); err != nil {
		t.Fatal(err)
	}
	if resp := <-second; resp.GetWitnessedSize() != 10 {
		t.Errorf("witnessed %d, want 10", resp.GetWitnessedSize())
	}
}

func TestBindHoldsForGood(t *testing.T) {
	w := sidecartest.New(t)
	bind := func(origin, key string) error {
		_, err := w.Server.Bind(t.Context(), &keyspb.BindRequest{Origin: origin, LedgerKey: key})
		return err
	}
	other := sidecartest.NewLog(t, sidecartest.Origin)
	elsewhere := sidecartest.NewLog(t, "other.example.org/ledger")
	for name, b := range map[string][2]string{
		"no origin":           {"", w.Log.Key},
		"no key":              {w.Log.Origin, ""},
		"bad key":             {w.Log.Origin, "key"},
		"key of another name": {w.Log.Origin, elsewhere.Key},
		"origin with a space": {"a b", w.Log.Key},
	} {
		if err := bind(b[0], b[1]); codeOf(t, err) != keyspb.Code_INVALID {
			t.Errorf("%s: %v, want INVALID", name, err)
		}
	}
	w.Bind()
	w.Bind()
	for _, restarted := range []bool{false, true} {
		if restarted {
			w.Restart()
		}
		for _, l := range []*sidecartest.Log{other, elsewhere} {
			if err := bind(l.Origin, l.Key); codeOf(t, err) != keyspb.Code_PROOF_REFUSED || whyOf(err) != "other-ledger" {
				t.Errorf("binding to another ledger: %v", err)
			}
		}
		w.Bind()
		st, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{})
		if err != nil || st.Origin != w.Log.Origin || st.LedgerKey != w.Log.Key {
			t.Errorf("status after binding: %v, %v", st, err)
		}
	}
}

func TestABindingThatWasKeptThoughItFailedHolds(t *testing.T) {
	w := sidecartest.New(t)
	other := sidecartest.NewLog(t, sidecartest.Origin)
	// Kept, but the answer was lost.
	if err := w.Ring.Keyring.SaveState(t.Context(), "sidecar/bound", []byte("pdvault/bound/v2\n"+w.Log.Origin+"\n"+w.Log.Key+"\n")); err != nil {
		t.Fatal(err)
	}
	_, err := w.Server.Bind(t.Context(), &keyspb.BindRequest{Origin: other.Origin, LedgerKey: other.Key})
	if codeOf(t, err) != keyspb.Code_PROOF_REFUSED {
		t.Errorf("Bind = %v, want PROOF_REFUSED", err)
	}
	w.Bind()
}

func TestDamagedStateIsRefused(t *testing.T) {
	bound := func(w *sidecartest.World) string {
		return "pdvault/bound/v2\n" + w.Log.Origin + "\n" + w.Log.Key + "\n"
	}
	for name, state := range map[string]func(w *sidecartest.World) (bound, witnessed string){
		"binding of another format": func(w *sidecartest.World) (string, string) { return "pdvault/bound/v2\n", "" },
		"binding cut":               func(w *sidecartest.World) (string, string) { b := bound(w); return b[:len(b)-9], "" },
		"checkpoint without a binding": func(w *sidecartest.World) (string, string) {
			return "", "pdvault/witnessed/v1\n" + string(w.Log.CheckpointAt(0).Format())
		},
		"checkpoint of another format": func(w *sidecartest.World) (string, string) { return bound(w), "pdvault/witnessed/v2\n" },
		"checkpoint cut":               func(w *sidecartest.World) (string, string) { return bound(w), "pdvault/witnessed/v1\n" + w.Log.Origin },
		"checkpoint of another ledger": func(w *sidecartest.World) (string, string) {
			return bound(w), "pdvault/witnessed/v1\n" + string(verify.EmptyCheckpoint("other").Format())
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := sidecartest.New(t)
			b, c := state(w)
			for name, value := range map[string]string{"sidecar/bound": b, "sidecar/witnessed": c} {
				if value == "" {
					continue
				}
				if err := w.Ring.Keyring.SaveState(t.Context(), name, []byte(value)); err != nil {
					t.Fatal(err)
				}
			}
			s, err := sidecar.New(t.Context(), sidecar.Config{Instance: sidecartest.Instance, Keyring: w.Ring})
			if err == nil || s != nil {
				t.Errorf("New = %v, %v, want an error", s, err)
			}
		})
	}
}

func TestStatusProbesTheKEKAtMostOncePerSecond(t *testing.T) {
	w := sidecartest.Bound(t)
	probes := func() (n int) {
		for _, c := range w.Ring.Calls() {
			if c == "Ready" {
				n++
			}
		}
		return n
	}
	begin := probes()
	frozen := func() { // the clock of the world runs, so only the count is sure: far fewer probes than calls
		for range 200 {
			if _, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	frozen()
	if n := probes() - begin; n > 20 {
		t.Errorf("200 status calls probed the KEK %d times", n)
	}
	w.Ring.FailOnce("Ready", sidecartest.ErrInjected)
	w.Clock.Advance(2 * time.Second)
	st, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{})
	if err != nil || st.KekState != keyspb.Code_UNAVAILABLE {
		t.Errorf("KEK state %v, %v, want UNAVAILABLE", st.GetKekState(), err)
	}
	w.Clock.Advance(2 * time.Second)
	st, err = w.Server.Status(t.Context(), &keyspb.StatusRequest{})
	if err != nil || st.KekState != keyspb.Code_OK || st.Kek != "localkek" || st.Instance != sidecartest.Instance || st.Sidecar != w.Ring.SidecarID() {
		t.Errorf("status %v, %v", st, err)
	}
}

// A request that rests on a checkpoint which was witnessed, and is overtaken on its way, is served without a new
// proof; the witness does not sign what is behind what it has seen, and a fork of that size is still a fork.
func TestARequestThatWasOvertakenIsServedAllTheSame(t *testing.T) {
	w := sidecartest.Bound(t)
	id, ref, ciphertexts := w.Subject("email")
	entry := w.Entry(ref, []string{"email"}, nil)
	late := w.Request(w.Log, sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email"))
	size := w.Log.Size()
	fork := w.Log.Fork(size - 1)
	fork.Append([]byte("another entry"))

	if _, err := witness(t, w, w.Log, 0); err != nil {
		t.Fatal(err)
	}
	w.Log.Grow(3)
	if _, err := witness(t, w, w.Log, size); err != nil {
		t.Fatal(err)
	}
	note, _ := fork.Checkpoint()
	forked := &keyspb.OpenRequest{Checkpoint: note, Items: late.Items}
	resp, err := w.Server.Open(t.Context(), forked)
	if err != nil || resp.Items[0].Code != keyspb.Code_PROOF_REFUSED || resp.Items[0].Why != "forked" {
		t.Errorf("a fork of a size that was seen: %v, %+v", err, resp)
	}
	resp, err = w.Server.Open(t.Context(), late)
	if err != nil || resp.Stale || resp.Items[0].Code != keyspb.Code_OK {
		t.Fatalf("overtaken: %v, stale %v, %+v", err, resp.GetStale(), resp.GetItems())
	}
	if len(resp.Cosignature) != 0 {
		t.Error("the witness signs what is behind what it has seen")
	}
}
