package main

import (
	"context"
	"path/filepath"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/report"
	"github.com/prototypster/pdvault/test/bench/traffic"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// coldPeople are more than the sidecar's cache holds, and enough for a measurement.
const coldPeople = 30_000

// startHashiCorp starts an instance in directories that begin with name, whose keys a real HashiCorp Vault wraps. end
// ends both.
func (b *bench) startHashiCorp(ctx context.Context, name string) (in *instance, hc *hcserver.Server, end func(), err error) {
	if hc, err = hcserver.Start(ctx, filepath.Join(b.dir, name+"c")); err != nil {
		return nil, nil, nil, err
	}
	kek, err := stack.HashiCorpKEK(ctx, hc, b.dir)
	if err == nil {
		in, err = b.start(ctx, filepath.Join(b.dir, name), kek)
	}
	if err != nil {
		hc.Close()
		return nil, nil, nil, err
	}
	return in, hc, func() { in.Close(); hc.Close() }, nil
}

// hashicorp measures reads whose keys have to be unwrapped by the real HashiCorp Vault.
func (b *bench) hashicorp(ctx context.Context) error {
	if _, err := hcserver.Binary(); err != nil {
		b.note("cold read, HashiCorp Vault", "skipped: %v", err)
		return nil
	}
	in, _, end, err := b.startHashiCorp(ctx, "h")
	if err != nil {
		return err
	}
	defer end()
	if err := in.fill(coldPeople); err != nil {
		return err
	}
	people := in.people.People()
	for _, conns := range b.conns {
		if err := in.restartKeys(ctx); err != nil {
			return err
		}
		// Everybody is read at most once, so that no key is there yet.
		row := report.Row{What: "cold read, HashiCorp Vault", Class: report.Read, Connections: conns, Subjects: in.subjects}
		in.measureLoad(row, load.Config{
			Address: in.people.Address, Connections: conns, Duration: b.duration, Count: int64(len(people)),
			Request: func(n int64, buf []byte) []byte { return in.people.Read(buf, people[n].ID, "purpose=account") },
		}, 1)
	}
	for _, conns := range b.conns {
		if _, err := in.measure(traffic.Write, ", HashiCorp Vault", conns, 0); err != nil {
			return err
		}
	}
	in.memory("HashiCorp Vault")
	return nil
}
