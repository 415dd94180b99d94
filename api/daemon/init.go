package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/policy"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

// ErrInitialised is returned by Init when the instance exists already.
var ErrInitialised = errors.New("daemon: the instance is initialised already")

// Init makes a new instance: the data store, the ledger and its key, and policy version 1. The sidecar must
// be running. An Init that was interrupted is taken up where it stopped; one that was completed is refused
// with ErrInitialised.
func Init(ctx context.Context, c Config, log *slog.Logger) (err error) {
	raw, err := bundleOf(c)
	if err != nil {
		return err
	}
	d := &Daemon{config: c, log: log, registry: prometheus.NewRegistry()}
	d.metrics = newMetrics(d.registry)
	defer func() { err = errors.Join(err, d.Close()) }()

	if d.store, err = createOrOpen(ctx, c, log); err != nil {
		return err
	}
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
	// The identity is durable before the sidecar is bound to it: the other way round, a crash in between
	// would leave the sidecar bound to a key that nobody has.
	id, err := loadIdentity(ctx, d.store)
	if errors.Is(err, errNotInitialised) {
		id, err = createIdentity(ctx, d.store, d.sidecar, c)
	}
	if err != nil {
		return err
	}
	if id.Instance != c.Instance {
		return fmt.Errorf("the data store belongs to instance %q, not to %q", id.Instance, c.Instance)
	}
	if err := d.sidecar.Bind(ctx, id.Origin, id.Verifier); err != nil {
		return fmt.Errorf("binding the sidecar to the ledger: %w", err)
	}
	config, err := d.ledgerConfig(ctx, id, status)
	if err != nil {
		return err
	}
	d.ledger, err = ledger.Create(ctx, config)
	if errors.Is(err, ledger.ErrExists) {
		d.ledger, err = ledger.Open(ctx, config)
	}
	if err != nil {
		return fmt.Errorf("creating the ledger: %w", err)
	}
	d.prover = &prover{ledger: d.ledger}
	d.sidecar.SetProver(d.prover)
	v, err := vault.New(d.sidecar)
	if err != nil {
		return err
	}
	_, err = access.Bootstrap(ctx, brokerConfig(d, v, status.Sidecar), raw)
	if errors.Is(err, access.ErrInvalid) {
		return ErrInitialised
	}
	return err
}

func bundleOf(c Config) ([]byte, error) {
	if c.PolicyDir == "" {
		return policy.LoadDir(defaultpolicy.FS)
	}
	raw, err := policy.LoadDir(os.DirFS(c.PolicyDir))
	if err != nil {
		return nil, fmt.Errorf("loading the policy of %s: %w", c.PolicyDir, err)
	}
	return raw, nil
}

// createOrOpen creates the data store, or opens the one that an interrupted Init has left.
func createOrOpen(ctx context.Context, c Config, log *slog.Logger) (*badgerkv.Store, error) {
	options := storeOptions(c, log)
	if entries, err := os.ReadDir(c.Store.Dir); err == nil && len(entries) > 0 {
		store, err := badgerkv.Open(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("opening the data store: %w", err)
		}
		return store, nil
	}
	if err := os.MkdirAll(filepath.Dir(c.Store.Dir), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the data store: %w", err)
	}
	store, err := badgerkv.Create(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("creating the data store: %w", err)
	}
	return store, nil
}
