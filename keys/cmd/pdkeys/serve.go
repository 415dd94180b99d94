package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/sidecar"
)

const (
	drainTime    = 5 * time.Second
	parentEvery  = 250 * time.Millisecond
	softMemLimit = 224 << 20 // the Go heap; the engine's maps and buffers are beside it
	gcPercent    = 400
)

// serve runs the sidecar until ctx ends. The order is that of trust: the process is made opaque before
// anything secret is in it, and it listens only when everything behind the socket works.
func serve(ctx context.Context, c Config, stderr io.Writer) (err error) {
	// 1. Before any key is in memory.
	if err := sidecar.Harden(); err != nil {
		return err
	}
	// Below the limit there is room for the garbage of many requests. What the operator has set stays.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemLimit)
	}
	log := newLogger(stderr, c.level)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var background sync.WaitGroup
	defer background.Wait()
	defer stop() // before Wait
	if c.ParentWatch {
		parent := os.Getppid()
		background.Go(func() { watchParent(ctx, parent, log, stop) })
	}

	// 2. The KEK, then what it wraps.
	kek, closeKEK, err := openKEK(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeKEK()) }()
	store, err := openStore(ctx, c, kek, log)
	if err != nil {
		return storeError(c, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	stats := sidecar.NewStats()
	cfg := withEpochs(c, keyringConfig(c, kek, store, log))
	cfg.Observe = stats.Keyring()
	ring, err := keyring.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ring.Close()) }()

	// 3. What it remembers of the ledger.
	server, err := sidecar.New(ctx, sidecarConfig(c, ring, kek, stats, log))
	if err != nil {
		return err
	}
	if c.epochInterval() == 0 {
		log.Warn("no epoch is planned: older copies of the keys, and what was erased since, can be read for as long as they exist")
	}

	// 4. The sockets, last.
	socket := sidecar.SocketConfig{Path: c.Socket.Path, GroupID: c.group, AllowUIDs: allowed(c), Logger: log, Observer: stats}
	admin, err := sidecar.ListenAdmin(socket)
	if err != nil {
		return err
	}
	l, err := sidecar.Listen(socket)
	if err != nil {
		return errors.Join(err, admin.Close())
	}
	metricsEvery := cmp.Or(time.Duration(c.Metrics.Interval), defaultMetrics)
	background.Go(func() { stats.Run(ctx, log, c.Metrics.Textfile, metricsEvery, server.Gauges) })
	log.Info("ready", "socket", c.Socket.Path, "instance", c.Instance, "sidecar", ring.SidecarID(), "kek", c.kekName(),
		"generation", ring.Generation())
	err = serveBoth(ctx, stop, server, l, admin)
	log.Info("stopped")
	return err
}

// serveBoth serves the two sockets until ctx ends. When one fails, the other is stopped.
func serveBoth(ctx context.Context, stop func(), server *sidecar.Server, l, admin net.Listener) error {
	var adminErr error
	var other sync.WaitGroup
	other.Go(func() {
		defer stop()
		adminErr = server.ServeAdmin(ctx, admin, drainTime)
	})
	err := server.Serve(ctx, l, drainTime)
	stop()
	other.Wait()
	return errors.Join(err, adminErr)
}

func sidecarConfig(c Config, ring *keyring.Keyring, kek keyring.KEK, stats *sidecar.Stats, log *slog.Logger) sidecar.Config {
	cfg := sidecar.Config{
		Instance: c.Instance, Keyring: ring, Logger: log, Observer: stats, Backup: ring.Backup,
		Budget: sidecar.Budget{OpensPerSecond: c.Budget.OpensPerSecond, SubjectsPerHour: c.Budget.SubjectsPerHour},
	}
	if k, ok := kek.(interface{ TokenValid() time.Duration }); ok {
		cfg.TokenValid = k.TokenValid
	}
	return cfg
}

// allowed are the users who may connect: those of the configuration, and our own for pdkeys status.
func allowed(c Config) []uint32 {
	own := uint32(os.Getuid())
	if slices.Contains(c.Socket.AllowUIDs, own) {
		return c.Socket.AllowUIDs
	}
	return append(slices.Clone(c.Socket.AllowUIDs), own)
}

// watchParent calls stop when the parent is no longer the process it was. A signal tied to the parent's
// death would follow the thread that started us, which may end before its process does.
func watchParent(ctx context.Context, parent int, log *slog.Logger, stop func()) {
	t := time.NewTicker(parentEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if os.Getppid() != parent {
				log.Info("parent process has ended, stopping")
				stop()
				return
			}
		}
	}
}

// initialise creates what serve opens. It never replaces anything.
func initialise(ctx context.Context, c Config, stdout, stderr io.Writer) (err error) {
	if err := sidecar.Harden(); err != nil {
		return err
	}
	log := newLogger(stderr, max(c.level, slog.LevelWarn))
	made, err := createRootKey(c)
	if err != nil {
		return err
	}
	kek, closeKEK, err := openKEK(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeKEK()) }()
	store, err := createStore(ctx, c, kek, log)
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ring, err := keyring.Create(ctx, keyringConfig(c, kek, store, log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ring.Close()) }()
	if made {
		fmt.Fprintf(stdout, "created root key %s: who has it and the key store has all keys\n", c.KEK.Local.Path)
	}
	_, err = fmt.Fprintf(stdout, "created key store %s of instance %s, sidecar %s\n", c.storeName(), c.Instance, ring.SidecarID())
	return err
}
