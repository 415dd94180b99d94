package sidecar

import (
	"context"
	"sync"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// How old a count of the key store may be that is answered with. Counting reads all of it.
const (
	inventoryAge = time.Second
	statusAge    = 10 * time.Second
	metricsAge   = time.Minute
)

// inventory is the last count of the key store.
type inventory struct {
	mu   sync.Mutex // held while counting; guards all below
	at   time.Time
	last *keyring.Inventory
}

// inventory returns a count that is at most age old, from a count that may serve several callers.
func (s *Server) inventory(ctx context.Context, age time.Duration) (keyring.Inventory, error) {
	s.count.mu.Lock()
	defer s.count.mu.Unlock()
	now := s.cfg.Now()
	if since := now.Sub(s.count.at); s.count.last != nil && since >= 0 && since < age {
		return *s.count.last, nil
	}
	in, err := s.ring.Inventory(ctx)
	if err != nil {
		return keyring.Inventory{}, err
	}
	s.count.last, s.count.at = &in, now
	return in, nil
}

// recount makes the next caller count anew: something has changed what is counted.
func (s *Server) recount() {
	s.count.mu.Lock()
	defer s.count.mu.Unlock()
	s.count.last = nil
}

// Inventory implements the call of this name.
func (s *Server) Inventory(ctx context.Context, _ *keyspb.InventoryRequest) (*keyspb.InventoryResponse, error) {
	in, err := s.inventory(ctx, inventoryAge)
	if err != nil {
		return nil, failure(keys.CodeOf(err), "")
	}
	resp := &keyspb.InventoryResponse{
		Subjects: in.Subjects, Destroyed: in.Destroyed, Counted: unixMilli(in.Counted),
		NextEpoch: unixMilli(in.NextEpoch), EpochInterval: int64(in.EpochInterval / time.Second),
		Generation: s.ring.Generation(), Kek: s.ring.KEKName(),
	}
	for _, v := range in.Versions {
		resp.Versions = append(resp.Versions, &keyspb.KeyVersion{
			Kind: v.Kind, Version: v.Version, Newest: v.Newest, Count: v.Count, Made: unixMilli(v.Made),
		})
	}
	return resp, nil
}

// unixMilli is 0 for the zero time.
func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
