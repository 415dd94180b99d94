package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// answering is a sidecar that answers every call with the same bytes.
type answering struct {
	keyspb.SidecarClient
	b []byte
}

func answered[M proto.Message](a answering, m M) (M, error) { return m, proto.Unmarshal(a.b, m) }

func (a answering) Seal(context.Context, *keyspb.SealRequest, ...grpc.CallOption) (*keyspb.SealResponse, error) {
	return answered(a, &keyspb.SealResponse{})
}

func (a answering) Prepare(context.Context, *keyspb.PrepareRequest, ...grpc.CallOption) (*keyspb.PrepareResponse, error) {
	return answered(a, &keyspb.PrepareResponse{})
}

func (a answering) Index(context.Context, *keyspb.IndexRequest, ...grpc.CallOption) (*keyspb.IndexResponse, error) {
	return answered(a, &keyspb.IndexResponse{})
}

func (a answering) Reseal(context.Context, *keyspb.ResealRequest, ...grpc.CallOption) (*keyspb.ResealResponse, error) {
	return answered(a, &keyspb.ResealResponse{})
}

func (a answering) Retire(context.Context, *keyspb.RetireRequest, ...grpc.CallOption) (*keyspb.RetireResponse, error) {
	return answered(a, &keyspb.RetireResponse{})
}

func (a answering) Reindex(context.Context, *keyspb.ReindexRequest, ...grpc.CallOption) (*keyspb.ReindexResponse, error) {
	return answered(a, &keyspb.ReindexResponse{})
}

func (a answering) Jobs(context.Context, *keyspb.JobsRequest, ...grpc.CallOption) (*keyspb.JobsResponse, error) {
	return answered(a, &keyspb.JobsResponse{})
}

func (a answering) Inventory(context.Context, *keyspb.InventoryRequest, ...grpc.CallOption) (*keyspb.InventoryResponse, error) {
	return answered(a, &keyspb.InventoryResponse{})
}

func (a answering) Status(context.Context, *keyspb.StatusRequest, ...grpc.CallOption) (*keyspb.StatusResponse, error) {
	return answered(a, &keyspb.StatusResponse{})
}

// FuzzAnswers: whatever bytes the sidecar answers, the client does not panic; a call fails with an error of package
// keys, or has one result of the right shape for each thing that it asked for.
func FuzzAnswers(f *testing.F) {
	id := uuid.MustParse("6f1c0a52-7f6b-4a3e-9d57-0d2f5a9b1c11")
	ref, token := make([]byte, refSize), &keyspb.IndexToken{Key: 1, Token: make([]byte, tokenSize)}
	for kind, m := range []proto.Message{
		&keyspb.SealResponse{Subjects: []*keyspb.SealedSubject{{Ref: ref, Fields: []*keyspb.SealedField{{Ciphertext: []byte("c"), Index: []*keyspb.IndexedValue{{Sealed: []byte("s"), Tokens: []*keyspb.IndexToken{token}}}}}}}},
		&keyspb.PrepareResponse{Items: []*keyspb.PreparedItem{{Ref: ref, SealedDetail: []byte("d")}}},
		&keyspb.IndexResponse{Values: []*keyspb.IndexTokens{{Tokens: []*keyspb.IndexToken{token}}}},
		&keyspb.OpenedItem{Fields: []*keyspb.OpenedField{{Plaintext: []byte("p")}}},
		&keyspb.ResealResponse{Subjects: []*keyspb.ResealedSubject{{Ref: ref, Ciphertexts: [][]byte{[]byte("c")}}}},
		&keyspb.RetireResponse{Codes: []keyspb.Code{keyspb.Code_OK}},
		&keyspb.ReindexResponse{Subjects: []*keyspb.ReindexedSubject{{Values: []*keyspb.IndexTokens{{Tokens: []*keyspb.IndexToken{token}}}}}},
		&keyspb.JobsResponse{Jobs: []*keyspb.Job{{Id: "x", Scope: "index", State: "running"}}},
		&keyspb.InventoryResponse{}, &keyspb.StatusResponse{Instance: "main"},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(kind), b)
		f.Add(uint8(kind), []byte{})
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		c := &Client{cfg: Config{Timeout: time.Second}, rpc: answering{b: b}}
		ctx := t.Context()
		fail := func(err error) bool {
			if err == nil {
				return false
			}
			if keys.CodeOf(err) == keyspb.Code_UNAVAILABLE && !errors.Is(err, keys.ErrUnavailable) && !errors.Is(err, keys.ErrRolledBack) {
				t.Errorf("an error that nobody knows: %v", err)
			}
			return true
		}
		switch kind % 10 {
		case 0:
			q, err := newSealCall(id, true, []SealField{{Collection: "a", Field: "b", Version: 1, Plaintext: []byte("x"), Index: []IndexValue{{Value: "x"}}}})
			if err != nil {
				t.Fatal(err)
			}
			out, err := c.sendSeal(ctx, []sealCall{q})
			if !fail(err) && !fail(out[0].Err) && (len(out[0].Value.ref) != refSize || len(out[0].Value.fields) != 1 || len(out[0].Value.fields[0].Index) != 1) {
				t.Errorf("%+v", out[0].Value)
			}
		case 1:
			out, err := c.sendPrepare(ctx, []prepareCall{{subject: id, detail: []byte("d")}})
			if !fail(err) && !fail(out[0].Err) && (len(out[0].Value.ref) != refSize || len(out[0].Value.detail) == 0) {
				t.Errorf("%+v", out[0].Value)
			}
		case 2:
			out, err := c.sendIndex(ctx, []*keyspb.IndexValue{{Collection: "a", Field: "b", Value: "x"}})
			if !fail(err) && !fail(out[0].Err) && len(out[0].Value) == 0 {
				t.Error("no tokens")
			}
		case 3:
			var got keyspb.OpenedItem
			if proto.Unmarshal(b, &got) != nil {
				return
			}
			asked := &keyspb.OpenItem{Fields: []*keyspb.OpenField{{Field: "a", Ciphertext: []byte("c")}}}
			if fields, err := openedOf(asked, &got); !fail(err) && (len(fields) != 1 || len(fields[0].Plaintext) == 0) {
				t.Errorf("%d fields", len(fields))
			}
		case 4:
			out, err := c.Reseal(ctx, 1, []ResealSubject{{Subject: id, Items: []ResealItem{{Collection: "a", Field: "b", Version: 1, Ciphertext: []byte("c")}}}})
			if !fail(err) && (len(out) != 1 || out[0].Err == nil && len(out[0].Ciphertexts) != 1) {
				t.Errorf("%+v", out)
			}
		case 5:
			if out, err := c.Retire(ctx, 1, []uuid.UUID{id}); !fail(err) && len(out) != 1 {
				t.Errorf("%d outcomes", len(out))
			}
		case 6:
			out, err := c.Reindex(ctx, []ReindexSubject{{Subject: id, Values: []ReindexValue{{Collection: "a", Field: "b", Sealed: []byte("s")}}}})
			if !fail(err) && (len(out) != 1 || out[0].Err == nil && len(out[0].Tokens) != 1) {
				t.Errorf("%+v", out)
			}
		case 7:
			_, err := c.Jobs(ctx)
			fail(err)
		case 8:
			_, err := c.Inventory(ctx)
			fail(err)
		case 9:
			if _, err := c.Status(ctx); err != nil && !errors.Is(err, keys.ErrUnavailable) && !errors.Is(err, keys.ErrRolledBack) {
				t.Error(err)
			}
		}
	})
}
