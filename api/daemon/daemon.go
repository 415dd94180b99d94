// Package daemon wires pdvault together and runs it: store, sidecar, ledger, broker, HTTP server, in this
// order, and takes them down in reverse. It is the only place that knows all the parts.
//
// It must never hold a rule of its own: what is allowed, recorded or opened is decided in the parts.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

// Daemon is a running pdvault.
type Daemon struct {
	config   Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *metrics

	store   *badgerkv.Store
	sidecar *client.Client
	ledger  *ledger.Ledger
	prover  *prover
	broker  *access.Broker

	ledgerKeys   *ledgerKeys
	cosignatures *cosignatures // used by keepWitnessed alone, once it runs

	background background // jobs that end before what they use is closed

	backingUp sync.Mutex // held while a backup is streamed
}

// sidecarTimeout bounds a call to the sidecar, so that a request that meets a hanging key service is answered
// within 3 s.
const sidecarTimeout = 2500 * time.Millisecond

// minMemtable is the smallest memtable whose transactions take a full batch of the ledger.
const minMemtable = 16 << 20

// storeKind is what the sentinel of the data store says that it is.
const storeKind = "pdvault-data"

func storeOptions(c Config, log *slog.Logger) badgerkv.Options {
	return badgerkv.Options{
		Dir: c.Store.Dir, Kind: storeKind, Logger: log, MemTableSize: c.Store.Memtable,
		Space: badgerkv.Space{ReadOnly: c.Store.ReadOnlyBelow, Reserve: c.Store.ReserveBelow, Ballast: c.Store.Ballast},
	}
}

// Open opens an initialised instance; see Init. It refuses to start when the sidecar has witnessed more of
// the ledger than the store holds, or the sidecar's key store is older than this instance has seen: one of
// the two was put back from an older copy.
func Open(ctx context.Context, c Config, log *slog.Logger) (*Daemon, error) {
	d := &Daemon{config: c, log: log, registry: prometheus.NewRegistry()}
	d.metrics = newMetrics(d.registry)
	if err := d.open(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// open opens the parts, one after the other. What it has opened when it fails is left to Close.
func (d *Daemon) open(ctx context.Context) (err error) {
	c, log := d.config, d.log

	if 0 < c.Store.Memtable && c.Store.Memtable < minMemtable {
		log.Warn("store.memtable is for tests: full batches of writes will be refused", "at_least", minMemtable)
	}

	// 1. The store, before anything that could be asked to decide on it.
	if d.store, err = badgerkv.Open(ctx, storeOptions(c, log)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("opening the data store: %w: %w", err, errNotInitialised)
		}
		return fmt.Errorf("opening the data store: %w", err)
	}
	id, err := loadIdentity(ctx, d.store)
	if err != nil {
		return err
	}
	if id.Instance != c.Instance {
		return fmt.Errorf("the data store belongs to instance %q, not to %q", id.Instance, c.Instance)
	}

	// 2. The sidecar, which holds the ledger key's wrapping and is the ledger's witness.
	if err := d.dial(ctx); err != nil {
		return err
	}
	status, err := d.sidecar.Status(ctx)
	if err != nil {
		return fmt.Errorf("asking the sidecar: %w", err)
	}
	if status.Instance != c.Instance {
		return fmt.Errorf("the sidecar serves instance %q, not %q", status.Instance, c.Instance)
	}

	// 3. The ledger, whose newest checkpoint the sidecar must be able to follow.
	config, err := d.ledgerConfig(ctx, id, status)
	if err != nil {
		return err
	}
	if d.ledger, err = ledger.Open(ctx, config); err != nil {
		return fmt.Errorf("opening the ledger: %w", err)
	}
	d.prover = &prover{ledger: d.ledger}
	d.sidecar.SetProver(d.prover)
	if err := d.bind(ctx, id); err != nil {
		return fmt.Errorf("binding the sidecar to the ledger: %w", err)
	}
	if status.WitnessedSize > d.ledger.Checkpoint().Size {
		return fmt.Errorf("the sidecar has witnessed %d entries and the ledger holds %d: "+
			"the data store is an older copy; restore the newest one: %w", status.WitnessedSize, d.ledger.Checkpoint().Size, keys.ErrRolledBack)
	}
	if _, err := d.sidecar.Witness(ctx); err != nil {
		return fmt.Errorf("having the ledger witnessed: %w", err)
	}
	d.cosignatures = &cosignatures{prover: d.prover, ledger: d.ledger, status: d.sidecar.Status, log: log}
	d.cosignatures.carry(ctx)

	// 4. The broker.
	v, err := vault.New(d.sidecar)
	if err != nil {
		return err
	}
	if d.broker, err = access.New(ctx, brokerConfig(d, v, status.Sidecar)); err != nil {
		return fmt.Errorf("starting the broker: %w", err)
	}
	if _, err := d.broker.FinishErasures(ctx); err != nil { // tried again every second
		log.Error("erasures are on record and not finished", "error", err)
	}
	d.ledgerKeys = newLedgerKeys(d)
	rotator, err := d.newRotator()
	if err != nil {
		return fmt.Errorf("starting the rotator: %w", err)
	}
	if _, lost, err := rotator.MendIndex(ctx); err != nil {
		return fmt.Errorf("mending the index: %w", err)
	} else if lost > 0 {
		log.Error("people cannot be found by the index, since their data does not open", "count", lost)
	}
	d.showState()
	d.background.start(d.keepGeneration, d.keepWitnessed, d.sweep, d.finishErasures, rotator.Run, d.dropLedgerKeys)
	return nil
}

// dial connects to the sidecar, waiting for it to come up.
func (d *Daemon) dial(ctx context.Context) error {
	generation, err := loadGeneration(ctx, d.store)
	if err != nil {
		return err
	}
	return d.connect(ctx, generation)
}

// connect is dial for a sidecar whose key store must be at generation at least.
func (d *Daemon) connect(ctx context.Context, generation uint64) (err error) {
	config := client.Config{Socket: d.config.Sidecar.Socket, MinGeneration: generation, Observer: d.metrics, Timeout: sidecarTimeout}
	if d.config.Sidecar.UID != nil {
		uid := uint32(*d.config.Sidecar.UID)
		config.ServerUID = &uid
	}
	wait := d.config.Sidecar.Wait
	if wait == 0 {
		wait = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		if d.sidecar, err = client.Dial(ctx, config); err == nil {
			return nil
		}
		if !errors.Is(err, keys.ErrUnavailable) || errors.Is(err, keys.ErrDamaged) {
			return fmt.Errorf("connecting to the sidecar: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connecting to the sidecar: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Close stops the parts in reverse order of Open. The first error is returned.
func (d *Daemon) Close() error {
	d.background.stop()
	var errs []error
	if d.ledger != nil {
		errs = append(errs, d.ledger.Close())
		if d.broker != nil {
			// What was acknowledged last is witnessed too. A sidecar that is gone learns it at the next start.
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			if _, err := d.sidecar.Witness(ctx); err != nil {
				d.log.Warn("the end of the ledger was not witnessed", "error", err)
			}
			cancel()
		}
	}
	if d.sidecar != nil {
		if d.store != nil {
			errs = append(errs, saveGeneration(context.Background(), d.store, d.sidecar.Generation()))
		}
		errs = append(errs, d.sidecar.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	return errors.Join(errs...)
}

// NewLogger returns the program's logger: JSON lines on standard error.
func NewLogger(level string) (*slog.Logger, error) {
	l, err := logLevel(level)
	if err != nil {
		return nil, err
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

func logLevel(s string) (slog.Level, error) {
	var l slog.Level
	if s == "" {
		return slog.LevelInfo, nil
	}
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return 0, errors.New("log.level must be debug, info, warn or error")
	}
	return l, nil
}
