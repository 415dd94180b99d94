package sidecartest

import (
	"context"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/keys/keyspb"
)

// Bind binds the sidecar to the world's ledger.
func (w *World) Bind() {
	w.T.Helper()
	if _, err := w.Server.Bind(context.Background(), &keyspb.BindRequest{Origin: w.Log.Origin, LedgerKey: w.Log.Key}); err != nil {
		w.T.Fatalf("binding: %v", err)
	}
}

// Item returns an item to open, without its inclusion proof.
func Item(index int64, entry []byte, subject uuid.UUID, ciphertexts map[string][]byte, fields ...string) *keyspb.OpenItem {
	item := &keyspb.OpenItem{Index: index, Entry: entry, Subject: subject[:], Collection: "profile", Version: 1}
	for _, f := range fields {
		item.Fields = append(item.Fields, &keyspb.OpenField{Field: f, Ciphertext: ciphertexts[f]})
	}
	return item
}

// Request returns a request to open items, proven by log from the size that the sidecar has witnessed.
func (w *World) Request(log *Log, items ...*keyspb.OpenItem) *keyspb.OpenRequest {
	w.T.Helper()
	st, err := w.Server.Status(context.Background(), &keyspb.StatusRequest{})
	if err != nil {
		w.T.Fatalf("asking status: %v", err)
	}
	note, size := log.Checkpoint()
	req := &keyspb.OpenRequest{Checkpoint: note, From: st.WitnessedSize, Items: items}
	if st.WitnessedSize > 0 && st.WitnessedSize < size {
		proof, err := log.ProveConsistency(context.Background(), st.WitnessedSize, size)
		if err != nil {
			w.T.Fatalf("proving consistency: %v", err)
		}
		req.Consistency = Hashes(proof)
	}
	for _, item := range items {
		proof, err := log.ProveInclusion(context.Background(), item.Index, size)
		if err != nil {
			w.T.Fatalf("proving inclusion: %v", err)
		}
		item.Inclusion = Hashes(proof)
	}
	return req
}

// Hashes encodes a proof.
func Hashes(proof []tlog.Hash) [][]byte {
	out := make([][]byte, len(proof))
	for i := range proof {
		out[i] = proof[i][:]
	}
	return out
}

// DestroyRequest returns a request to destroy subject on the strength of the entry at index, proven by log.
func (w *World) DestroyRequest(log *Log, index int64, entry []byte, subject uuid.UUID) *keyspb.DestroyRequest {
	w.T.Helper()
	item := &keyspb.OpenItem{Index: index}
	req := w.Request(log, item)
	return &keyspb.DestroyRequest{
		Checkpoint: req.Checkpoint, From: req.From, Consistency: req.Consistency,
		Items: []*keyspb.DestroyItem{{Index: index, Entry: entry, Inclusion: item.Inclusion, Subject: subject[:]}},
	}
}
