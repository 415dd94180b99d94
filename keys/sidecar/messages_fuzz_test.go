package sidecar_test

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

// FuzzPrepare: no bytes make the sidecar panic, and each item has one outcome.
func FuzzPrepare(f *testing.F) {
	w := sidecartest.Bound(f)
	id, _, _ := w.Subject("email")
	fuzz(f, []*keyspb.PrepareRequest{
		{Items: []*keyspb.PrepareItem{{Subject: id[:]}, {Subject: id[:], Detail: []byte("x")}, {Subject: make([]byte, 16)}}}, {Items: []*keyspb.PrepareItem{{}}}, {},
	}, func(t *testing.T, req *keyspb.PrepareRequest) {
		sent := proto.CloneOf(req)
		resp, err := w.Server.Prepare(t.Context(), req)
		if err != nil {
			return
		}
		if len(resp.Items) != len(sent.Items) {
			t.Fatalf("%d outcomes for %d items", len(resp.Items), len(sent.Items))
		}
		for i, item := range resp.Items {
			if item.Code == keyspb.Code_OK && (uuid.UUID(sent.Items[i].Subject) != id || len(item.Ref) != 32) || item.Code != keyspb.Code_OK && item.Ref != nil {
				t.Errorf("outcome %v", item)
			}
		}
	})
}

// FuzzIndex: no bytes make the sidecar panic, and each value has its tokens.
func FuzzIndex(f *testing.F) {
	w := sidecartest.Bound(f)
	fuzz(f, []*keyspb.IndexRequest{
		{Values: []*keyspb.IndexValue{{Collection: "profile", Field: "email", Normaliser: 1, Value: "x"}}}, {Values: []*keyspb.IndexValue{{}}}, {},
	}, func(t *testing.T, req *keyspb.IndexRequest) {
		values := len(req.Values)
		if resp, err := w.Server.Index(t.Context(), req); err == nil && len(resp.Values) != values {
			t.Fatalf("%d outcomes for %d values", len(resp.Values), values)
		}
	})
}

// FuzzProtect: what was protected is given back under its label alone, and no bytes that were not are opened.
func FuzzProtect(f *testing.F) {
	w := sidecartest.Bound(f)
	good, err := w.Server.Protect(f.Context(), &keyspb.ProtectRequest{Label: "ledger-key", Data: []byte("secret")})
	if err != nil {
		f.Fatal(err)
	}
	fuzz(f, []*keyspb.ProtectRequest{
		{Label: "ledger-key", Data: good.Data}, {Label: "other", Data: good.Data}, {Label: "ledger-key", Data: good.Data[1:]}, {},
	}, func(t *testing.T, req *keyspb.ProtectRequest) {
		sent := proto.CloneOf(req)
		if resp, err := w.Server.Unprotect(t.Context(), req); err == nil && (sent.Label != "ledger-key" || !bytes.Equal(sent.Data, good.Data)) {
			t.Errorf("opened %d bytes", len(resp.Data))
		}
		wrapped, err := w.Server.Protect(t.Context(), proto.CloneOf(sent))
		if err != nil {
			return
		}
		back, err := w.Server.Unprotect(t.Context(), &keyspb.ProtectRequest{Label: sent.Label, Data: wrapped.Data})
		if err != nil || !bytes.Equal(back.Data, sent.Data) {
			t.Errorf("what was protected does not come back: %v", err)
		}
	})
}

// FuzzBind: no bytes make the sidecar panic, or bind it to another ledger than the one that it is bound to.
func FuzzBind(f *testing.F) {
	w := sidecartest.Bound(f)
	fuzz(f, []*keyspb.BindRequest{
		{Origin: w.Log.Origin, LedgerKey: w.Log.Key}, {Origin: w.Log.Origin, LedgerKey: sidecartest.NewLogKey(f, w.Log.Origin).Text},
		{Origin: "other", LedgerKey: sidecartest.NewLogKey(f, "other").Text}, {},
	}, func(t *testing.T, req *keyspb.BindRequest) {
		sent := proto.CloneOf(req)
		_, err := w.Server.Bind(t.Context(), req)
		if err == nil && (sent.Origin != w.Log.Origin || sent.LedgerKey != w.Log.Key) {
			t.Error("bound to another")
		}
		if st, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{}); err != nil || st.LedgerKey != w.Log.Key || st.Origin != w.Log.Origin {
			t.Fatalf("bound to %q, %v", st.GetOrigin(), err)
		}
	})
}

// FuzzWitness: no bytes make the sidecar panic, or remember a checkpoint that the ledger key did not sign.
func FuzzWitness(f *testing.F) {
	w := sidecartest.Bound(f)
	w.Log.Grow(3)
	open := w.Request(w.Log)
	good := &keyspb.WitnessRequest{Checkpoint: open.Checkpoint, From: open.From, Consistency: open.Consistency}
	fuzz(f, []*keyspb.WitnessRequest{
		good, {Checkpoint: good.Checkpoint, From: 2}, {Checkpoint: good.Checkpoint, From: -1}, {Checkpoint: good.Checkpoint[1:]}, {},
	}, func(t *testing.T, req *keyspb.WitnessRequest) {
		_, _ = w.Server.Witness(t.Context(), req)
		if st, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{}); err != nil || st.WitnessedSize > 3 {
			t.Fatalf("witnessed %d, %v", st.GetWitnessedSize(), err)
		}
	})
}

// FuzzJobs: no bytes make the sidecar panic, retire a key, or start a rotation of no known scope.
func FuzzJobs(f *testing.F) {
	w := sidecartest.Bound(f)
	w.FakeKeys()
	fuzz(f, []*keyspb.StartJobRequest{{Scope: "index", By: "x"}, {Scope: "subject", Subject: make([]byte, 16), By: "x"}, {Scope: "x"}, {}},
		func(t *testing.T, req *keyspb.StartJobRequest) {
			sent := proto.CloneOf(req)
			resp, err := w.Server.StartJob(t.Context(), req)
			if err != nil {
				return
			}
			switch resp.Job.GetScope() {
			case "kek", "subject", "all-subjects", "index", "token", "ledger", "witness":
			default:
				t.Errorf("scope %q", resp.Job.GetScope())
			}
			if resp.Job.GetScope() != sent.Scope {
				t.Errorf("scope %q for %q", resp.Job.GetScope(), sent.Scope)
			}
		})
}

// FuzzRetire is FuzzReindex for keys that are to be dropped.
func FuzzRetire(f *testing.F) {
	w := sidecartest.Bound(f)
	w.FakeKeys().RotateSubjects(1)
	id := uuid.New()
	fuzz(f, []*keyspb.RetireRequest{{Rotation: 1, Subjects: [][]byte{id[:]}}, {}}, func(t *testing.T, req *keyspb.RetireRequest) {
		subjects := len(req.Subjects)
		if resp, err := w.Server.Retire(t.Context(), req); err == nil && len(resp.Codes) != subjects {
			t.Fatalf("%d outcomes for %d subjects", len(resp.Codes), subjects)
		}
	})
}
