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
