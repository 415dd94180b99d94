package main

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/prototypster/pdvault/test/bench/traffic"
)

// shares are what of the most that it does an open run asks for.
var shares = []float64{0.25, 0.5, 0.75, 0.9}

// openConnections are as many as an open run has.
const openConnections = 32

// local measures the embedded default, each kind of request by connections.
func (b *bench) local(ctx context.Context) error {
	in, err := b.start(ctx, filepath.Join(b.dir, "l"), "")
	if err != nil {
		return err
	}
	defer in.Close()
	if err := in.fill(b.warm); err != nil {
		return err
	}
	if err := in.people.Ask(time.Minute); err != nil {
		return err
	}
	if _, err := in.once(traffic.WarmPeople); err != nil { // every key into the sidecar's cache
		return err
	}
	most := map[string]float64{} // that a kind does with openConnections
	for _, kind := range []string{traffic.Warm, traffic.Batch, traffic.Service, traffic.Consent, traffic.Lookup, traffic.Verify, traffic.Mixed, traffic.Write} {
		for _, conns := range b.conns {
			row, err := in.measure(kind, "", conns, 0)
			if err != nil {
				return err
			}
			if conns == openConnections {
				most[kind] = row.PerSecond
			}
		}
	}
	b.note("two fields, ground law", "not measured: pdvault does not serve it yet")
	if !slices.Contains(b.conns, openConnections) {
		b.note("open runs", "skipped: they ask for shares of what %d connections do, which was not measured", openConnections)
		return nil
	}
	for _, kind := range []string{traffic.Warm, traffic.Mixed, traffic.Write} {
		for _, share := range shares {
			if most[kind] < 1 {
				continue
			}
			if _, err := in.measure(kind, "", openConnections, share*most[kind]); err != nil {
				return err
			}
		}
	}
	in.memory("embedded default")
	return nil
}
