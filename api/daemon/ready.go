package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault/kv"
)

// checks are the conditions under which this instance can serve reads and writes.
func (d *Daemon) checks() []server.Check {
	status := &statusProbe{ask: d.sidecar.Status, keep: time.Second}
	return []server.Check{
		{Name: "store", Run: func(ctx context.Context) error {
			if !d.store.Stats().Writable {
				return kv.ErrStorageFull
			}
			return d.store.View(ctx, func(r kv.Reader) error {
				rows, err := r.Get(identityKey)
				if err == nil && rows[0] == nil {
					err = kv.ErrIntegrity
				}
				return err
			})
		}},
		{Name: "ledger", Run: func(ctx context.Context) error {
			// The newest entry must be readable; that it can append shows in the store's check.
			size := d.ledger.Checkpoint().Size
			if size == 0 {
				return nil
			}
			_, err := d.ledger.Entry(ctx, size-1)
			return err
		}},
		{Name: "sidecar", Run: func(ctx context.Context) error {
			_, err := status.get(ctx)
			return err
		}},
		{Name: "kek", Run: func(ctx context.Context) error {
			s, err := status.get(ctx)
			if err != nil {
				return err
			}
			return s.KEKState
		}},
		{Name: "witness", Run: func(ctx context.Context) error {
			s, err := status.get(ctx)
			if err != nil {
				return err
			}
			if s.WitnessedSize > d.ledger.Checkpoint().Size {
				return errors.New("the sidecar has witnessed more than the ledger holds")
			}
			return nil
		}},
	}
}

// statusProbe asks the sidecar at most once in a while, however often readiness is asked for.
type statusProbe struct {
	ask  func(context.Context) (client.Status, error)
	keep time.Duration

	mu     sync.Mutex // guards all below, and is held while asking
	at     time.Time
	status client.Status
	err    error
}

func (p *statusProbe) get(ctx context.Context) (client.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) > p.keep {
		p.status, p.err = p.ask(ctx)
		p.at = time.Now()
	}
	return p.status, p.err
}
