package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/report"
	"github.com/prototypster/pdvault/test/bench/traffic"
)

// sizeConnections are as many as there are where sizes are compared.
const sizeConnections = 32

// bySize measures instances of different sizes: rates, memory, disk, and how long a start takes.
func (b *bench) bySize(ctx context.Context) error {
	for _, n := range b.sizes {
		dir := filepath.Join(b.dir, fmt.Sprintf("s%d", n))
		size, err := b.size(ctx, dir, n)
		if err != nil {
			return fmt.Errorf("%d subjects: %w", n, err)
		}
		b.results.Sizes = append(b.results.Sizes, size)
		fmt.Fprintf(os.Stderr, "%d subjects: %+v\n", n, size)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) size(ctx context.Context, dir string, n int) (size report.Size, err error) {
	size.Subjects = n
	in, err := b.start(ctx, dir, "")
	if err != nil {
		return size, err
	}
	defer in.Close()
	begin := time.Now()
	if err := in.fill(n); err != nil {
		return size, err
	}
	size.FillRate = float64(n) / time.Since(begin).Seconds()
	in.ownMemory(&size)
	if err := in.stop(); err != nil {
		return size, err
	}
	before, err := in.diskUse(&size)
	if err != nil {
		return size, err
	}
	took, err := in.startAgain(ctx)
	if err != nil {
		return size, err
	}
	size.CleanReady = took.Seconds()

	if size.Reads, err = in.readBySize(); err != nil {
		return size, err
	}
	in.ownMemory(&size)
	if err := in.stop(); err != nil {
		return size, err
	}
	after, err := diskUse(in.Path("data"))
	if err != nil {
		return size, err
	}
	size.ReadDisk = float64(after-before) / float64(max(size.Reads, 1))
	if _, err := in.startAgain(ctx); err != nil {
		return size, err
	}
	if _, err := in.measure(traffic.Write, "", sizeConnections, 0); err != nil {
		return size, err
	}
	in.ownMemory(&size)
	took, err = in.killedInWrites(ctx)
	size.KillReady = took.Seconds()
	return size, err
}

// diskUse fills in what both stores take, and returns what the data store does. The programs are stopped.
func (in *instance) diskUse(size *report.Size) (data int64, err error) {
	if data, err = diskUse(in.Path("data")); err != nil {
		return 0, err
	}
	keys, err := diskUse(in.Path("keys"))
	size.VaultDisk, size.KeysDisk = float64(data)/float64(size.Subjects), float64(keys)/float64(size.Subjects)
	return data, err
}

// ownMemory keeps the most that was seen.
func (in *instance) ownMemory(size *report.Size) {
	vault, _ := in.Vault.Memory()
	keys, _ := in.Keys.Memory()
	size.VaultMB, size.KeysMB = max(size.VaultMB, float64(vault)/(1<<20)), max(size.KeysMB, float64(keys)/(1<<20))
}

// readBySize measures reads and returns how many there were.
func (in *instance) readBySize() (reads int64, err error) {
	warmed, err := in.once(traffic.WarmPeople)
	if err != nil {
		return 0, err
	}
	reads = warmed.Requests
	for _, kind := range []string{traffic.Warm, traffic.Cold} {
		row, err := in.measure(kind, "", sizeConnections, 0)
		if err != nil {
			return 0, err
		}
		reads += row.Requests
	}
	return reads, nil
}

// killedInWrites kills both programs while they write and returns how long they need until ready.
func (in *instance) killedInWrites(ctx context.Context) (time.Duration, error) {
	c, err := in.people.Load(traffic.Write)
	if err != nil {
		return 0, err
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	c.Connections, c.Duration, c.Stop = sizeConnections, 30*time.Second, stop
	go func() {
		defer close(done)
		_, _ = load.Run(c) // most of it fails, as it is meant to
	}()
	time.Sleep(time.Second)
	in.Vault.Kill()
	in.Keys.Kill()
	close(stop)
	<-done
	return in.startAgain(ctx)
}
