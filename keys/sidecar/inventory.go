package sidecar

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// How old a count of the key store may be that is answered with. Counting reads all of it.
const (
	inventoryAge = time.Second
	metricsAge   = time.Minute
)

// inventory is the last count of the key store.
type inventory struct {
	changes atomic.Uint64 // of what is counted, as far as they are known here
	turn    chan struct{} // of one place: taken by who looks at the rest or counts
	at      time.Time
	of      uint64 // changes that last is of
	last    *keyring.Inventory
}

// inventory returns a count that is at most age old, from a count that may serve several callers. Each waits
// for it no longer than its context.
func (s *Server) inventory(ctx context.Context, age time.Duration) (keyring.Inventory, error) {
	c := &s.count
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return keyring.Inventory{}, fmt.Errorf("waiting for a count: %w: %w", keys.ErrUnavailable, context.Cause(ctx))
	}
	now, changes := s.cfg.Now(), c.changes.Load()
	if since := now.Sub(c.at); c.last != nil && c.of == changes && since >= 0 && since < age {
		return *c.last, nil
	}
	in, err := s.ring.Inventory(ctx)
	if err != nil {
		return keyring.Inventory{}, err
	}
	c.last, c.of, c.at = &in, changes, now
	return in, nil
}

// recount makes the next caller count anew: something has changed what is counted. It waits for nobody.
func (s *Server) recount() { s.count.changes.Add(1) }

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
