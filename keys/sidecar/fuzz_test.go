package sidecar_test

import (
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

// FuzzOpen: no bytes that decode as a request make the sidecar panic, or open anything: the record they
// carry is not in its ledger, or names another sidecar.
func FuzzOpen(f *testing.F) {
	w := sidecartest.Bound(f)
	id, ref, ciphertexts := w.Subject("email")
	entry := w.Entry(ref, []string{"email"}, nil)
	good := w.Request(w.Log, sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email"))
	good.Items[0].Version++ // one thing wrong, so that nothing that the fuzzer repeats is served
	for _, req := range []*keyspb.OpenRequest{good, {}, {Items: []*keyspb.OpenItem{{}}}} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req keyspb.OpenRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		sent := proto.CloneOf(&req)
		resp, err := w.Server.Open(t.Context(), &req)
		if err != nil {
			return
		}
		if !resp.Stale && len(resp.Items) != len(sent.Items) {
			t.Fatalf("%d outcomes for %d items", len(resp.Items), len(sent.Items))
		}
		for i, item := range resp.Items {
			if item.Code != keyspb.Code_OK {
				if len(item.Fields) > 0 || item.Why == "" {
					t.Errorf("refusal with fields or without a reason: %v", item)
				}
				continue
			}
			// The one record of the ledger may be served for the true version, once, and for nothing else.
			if sent.Items[i].Version != 1 || uuid.UUID(sent.Items[i].Subject) != id {
				t.Errorf("opened for %v", sent.Items[i])
			}
		}
	})
}

// FuzzSeal: no bytes that decode as a request make the sidecar panic, and each subject has one outcome.
func FuzzSeal(f *testing.F) {
	w := sidecartest.Bound(f)
	id := uuid.New()
	b, err := proto.Marshal(&keyspb.SealRequest{Subjects: []*keyspb.SealSubject{{Subject: id[:], Create: true, Fields: []*keyspb.SealField{
		{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte(`"x"`), Index: []*keyspb.IndexValue{{Collection: "profile", Field: "email", Value: "x"}}},
	}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req keyspb.SealRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		subjects := len(req.Subjects)
		resp, err := w.Server.Seal(t.Context(), &req)
		if err != nil {
			return
		}
		if len(resp.Subjects) != subjects {
			t.Fatalf("%d outcomes for %d subjects", len(resp.Subjects), subjects)
		}
		for _, s := range resp.Subjects {
			if s == nil || (s.Code == keyspb.Code_OK) != (len(s.Ref) == 32) {
				t.Errorf("outcome %v", s)
			}
		}
	})
}

// fuzz adds the requests to the corpus and runs call with whatever decodes as a request of their type.
func fuzz[M proto.Message](f *testing.F, seeds []M, call func(*testing.T, M)) {
	for _, m := range seeds {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := seeds[0].ProtoReflect().New().Interface().(M)
		if proto.Unmarshal(b, m) == nil {
			call(t, m)
		}
	})
}

// FuzzDestroy: no bytes that decode as a request make the sidecar panic, or destroy a subject whose erasure is not
// in its ledger.
func FuzzDestroy(f *testing.F) {
	w := sidecartest.Bound(f)
	w.FakeKeys()
	erased, ref, _ := w.Subject("email")
	living, livingRef, _ := w.Subject("email")
	access := w.Entry(livingRef, []string{"email"}, nil)
	w.Log.Append(access)
	entry := w.Erasure(ref, nil)
	index := w.Log.Append(entry)
	fuzz(f, []*keyspb.DestroyRequest{
		w.DestroyRequest(w.Log, index, entry, erased), w.DestroyRequest(w.Log, index, entry, living), w.DestroyRequest(w.Log, 0, access, living), {},
	}, func(t *testing.T, req *keyspb.DestroyRequest) {
		sent := proto.CloneOf(req)
		resp, err := w.Server.Destroy(t.Context(), req)
		if err != nil {
			return
		}
		if !resp.Stale && len(resp.Items) != len(sent.Items) {
			t.Fatalf("%d outcomes for %d items", len(resp.Items), len(sent.Items))
		}
		for i, item := range resp.Items {
			if item.Code == keyspb.Code_OK && uuid.UUID(sent.Items[i].Subject) != erased || item.Code != keyspb.Code_OK && item.Why == "" {
				t.Errorf("outcome %v of %v", item, sent.Items[i])
			}
		}
	})
}

// FuzzReseal: no bytes make the sidecar panic, and each subject has one outcome.
func FuzzReseal(f *testing.F) {
	w := sidecartest.Bound(f)
	w.FakeKeys().RotateSubjects(1)
	id := uuid.New()
	fuzz(f, []*keyspb.ResealRequest{
		{Rotation: 1, Subjects: []*keyspb.ResealSubject{{Subject: id[:], Items: []*keyspb.ResealItem{
			{Collection: "profile", Field: "email", Version: 1, Ciphertext: []byte("x")},
			{Kind: keyspb.ResealItem_INDEX, Collection: "profile", Field: "email", Normaliser: 1, Ciphertext: []byte("x")},
			{Kind: keyspb.ResealItem_DETAIL, Ciphertext: []byte("x")},
		}}}}, {},
	}, func(t *testing.T, req *keyspb.ResealRequest) {
		sent := proto.CloneOf(req)
		resp, err := w.Server.Reseal(t.Context(), req)
		if err != nil {
			return
		}
		if len(resp.Subjects) != len(sent.Subjects) {
			t.Fatalf("%d outcomes for %d subjects", len(resp.Subjects), len(sent.Subjects))
		}
		for i, s := range resp.Subjects {
			if s.Code == keyspb.Code_OK && len(s.Ciphertexts) != len(sent.Subjects[i].Items) || s.Code != keyspb.Code_OK && s.Ref != nil {
				t.Errorf("outcome %v", s)
			}
		}
	})
}

// FuzzReindex is FuzzReseal for index values.
func FuzzReindex(f *testing.F) {
	w := sidecartest.Bound(f)
	w.FakeKeys()
	id := uuid.New()
	fuzz(f, []*keyspb.ReindexRequest{
		{Subjects: []*keyspb.ReindexSubject{{Subject: id[:], Values: []*keyspb.IndexValue{{Collection: "profile", Field: "email", Sealed: []byte("x")}}}}}, {},
	}, func(t *testing.T, req *keyspb.ReindexRequest) {
		subjects := len(req.Subjects)
		if resp, err := w.Server.Reindex(t.Context(), req); err == nil && len(resp.Subjects) != subjects {
			t.Fatalf("%d outcomes for %d subjects", len(resp.Subjects), subjects)
		}
	})
}

// FuzzAdvanceJob: no bytes make the sidecar panic, or give a job a phase that is no word.
func FuzzAdvanceJob(f *testing.F) {
	w := sidecartest.Bound(f)
	w.FakeKeys()
	started, err := w.Server.StartJob(f.Context(), &keyspb.StartJobRequest{Scope: "index", By: "x"})
	if err != nil {
		f.Fatal(err)
	}
	fuzz(f, []*keyspb.AdvanceJobRequest{
		{Id: started.Job.Id, Phase: "backfill", Done: 1, Total: 2, Recorded: -1}, {Id: started.Job.Id, Finish: true}, {},
	}, func(t *testing.T, req *keyspb.AdvanceJobRequest) {
		resp, err := w.Server.AdvanceJob(t.Context(), req)
		if err != nil {
			return
		}
		for _, c := range resp.Job.Phase + resp.Job.Failure {
			if c < '-' || c > 'z' {
				t.Errorf("phase %q, failure %q", resp.Job.Phase, resp.Job.Failure)
			}
		}
	})
}

// FuzzRotateLedger: no bytes make the sidecar panic, or bind it to another key: none of them is signed.
func FuzzRotateLedger(f *testing.F) {
	w := sidecartest.Bound(f)
	w.Log.Grow(3)
	req := w.Request(w.Log)
	fuzz(f, []*keyspb.RotateLedgerRequest{
		{Checkpoint: req.Checkpoint, LedgerKey: w.Log.Key}, {Checkpoint: req.Checkpoint, LedgerKey: w.Log.Key, Drop: "x"},
		{Checkpoint: req.Checkpoint, LedgerKey: sidecartest.NewLogKey(f, w.Log.Origin).Text}, {},
	}, func(t *testing.T, req *keyspb.RotateLedgerRequest) {
		_, _ = w.Server.RotateLedger(t.Context(), req)
		st, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{})
		if err != nil || len(st.LedgerKeys) != 1 || st.LedgerKey != w.Log.Key {
			t.Fatalf("bound to %q, %v", st.GetLedgerKeys(), err)
		}
	})
}
