package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/peers"
	"github.com/prototypster/pdvault/test/bench/report"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// http measures the bare gin handler.
func (b *bench) http(ctx context.Context) error {
	program := filepath.Join(b.dir, "baseline")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./test/bench/cmd/baseline").CombinedOutput(); err != nil {
		return fmt.Errorf("building: %w: %s", err, out)
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, address)
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // it is ours and holds nothing
		_ = cmd.Wait()
	}()
	for range 200 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	request := []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	return b.baseline(report.Row{What: "bare gin handler", Class: report.Read, Baseline: report.Gin}, func(conns int) (load.Result, error) {
		return load.Run(load.Config{Address: address, Connections: conns, Duration: b.duration, Request: func(int64, []byte) []byte { return request }})
	})
}

// baseline measures one kind of work of a baseline by connections.
func (b *bench) baseline(row report.Row, run func(conns int) (load.Result, error)) error {
	for _, conns := range b.conns {
		r, err := run(conns)
		if err != nil {
			return fmt.Errorf("%s, %d connections: %w", row.What, conns, err)
		}
		row.Connections = conns
		b.add(row.Measured(r, 1))
	}
	return nil
}

// plan is a closed run.
func (b *bench) plan(conns int) load.Plan { return load.Plan{Connections: conns, Duration: b.duration} }

// badger measures Badger alone, in this process.
func (b *bench) badger(context.Context) (err error) {
	db, err := peers.OpenBadger(filepath.Join(b.dir, "badger"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, k := range []struct {
		kind, what string
		class      report.Class
	}{
		// The grouped one comes first: it is the one that rows are compared with.
		{peers.BadgerGrouped, "raw Badger, grouped writes", report.Write},
		{peers.BadgerWrite, "raw Badger, single writes", report.Write},
		{peers.BadgerRead, "raw Badger, reads", report.Read},
	} {
		open, err := db.Open(k.kind)
		if err != nil {
			return err
		}
		if err := b.baseline(report.Row{What: k.what, Class: k.class, Baseline: report.Badger}, func(conns int) (load.Result, error) {
			return load.Do(b.plan(conns), open)
		}); err != nil {
			return err
		}
	}
	return nil
}

// postgres measures PostgreSQL with pgcrypto.
func (b *bench) postgres(ctx context.Context) (err error) {
	p, err := peers.StartPostgres(ctx)
	if errors.Is(err, peers.ErrMissing) {
		b.note(report.Postgres, "skipped: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	b.note(report.Postgres, "version %s, checksums on, otherwise its defaults but for 256 MB of shared buffers", p.Version)
	for _, k := range []struct {
		kind, what string
		class      report.Class
	}{{peers.PostgresWrite, "PostgreSQL, audited writes", report.Write}, {peers.PostgresRead, "PostgreSQL, audited reads", report.Read}} {
		open, err := p.Open(ctx, k.kind)
		if err != nil {
			return err
		}
		if err := b.baseline(report.Row{What: k.what, Class: k.class, Baseline: report.Postgres}, func(conns int) (load.Result, error) {
			return load.Do(b.plan(conns), open)
		}); err != nil {
			return err
		}
	}
	return nil
}

// hashicorpBaselines measures HashiCorp Vault's own store and encryption.
func (b *bench) hashicorpBaselines(ctx context.Context) error {
	h, err := peers.StartHashiCorp(ctx, filepath.Join(b.dir, "hb"))
	if errors.Is(err, hcserver.ErrNoBinary) {
		b.note(report.KV+", "+report.Transit, "skipped: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	for _, k := range []struct {
		kind, what, baseline string
		class                report.Class
	}{
		{peers.KVPut, "HashiCorp KV v2, put", report.KV, report.Write},
		{peers.KVGet, "HashiCorp KV v2, get", report.KV, report.Read},
		{peers.TransitEncrypt, "HashiCorp transit, encrypt", report.Transit, report.Write},
		{peers.TransitDecrypt, "HashiCorp transit, decrypt", report.Transit, report.Read},
	} {
		c, err := h.Load(k.kind)
		if err != nil {
			return err
		}
		if err := b.baseline(report.Row{What: k.what, Class: k.class, Baseline: k.baseline}, func(conns int) (load.Result, error) {
			c.Connections, c.Duration = conns, b.duration
			return load.Run(c)
		}); err != nil {
			return err
		}
	}
	return nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
