package daemon

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api/server"
)

// dev is the embedded default: the same two programs as in production, with a root key in a local file and
// everything under one directory:
//
//	tokens.json   the callers' tokens, in clear (0600)
//	tokens        the same as hashes, as pdvault serve reads them
//	pdvault.yaml  data/    configuration and store of pdvault
//	pdkeys.yaml   keys/    configuration, key store and root key of pdkeys
type dev struct {
	dir    string
	listen string
	pdkeys string // path of the program
	level  string
	out    io.Writer
}

// devInstance is the instance name of every development installation.
const devInstance = "dev"

// DevCommand runs a development instance with a pdkeys child.
func DevCommand() *cobra.Command {
	d := dev{}
	cmd := &cobra.Command{
		Use:   "dev [--data DIR] [--listen ADDRESS]",
		Short: "Run the vault with a pdkeys child and a local root key: not for production",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return d.run(ctx)
		},
	}
	cmd.Flags().StringVar(&d.dir, "data", "data", "directory for everything that is kept")
	cmd.Flags().StringVar(&d.listen, "listen", "127.0.0.1:8080", "loopback address of the API")
	cmd.Flags().StringVar(&d.pdkeys, "pdkeys", "", "pdkeys program (default: beside this one, then PATH)")
	cmd.Flags().StringVar(&d.level, "log", "warn", "log level: debug, info, warn, error")
	return cmd
}

func (d *dev) run(ctx context.Context) error {
	if err := d.locate(); err != nil {
		return err
	}
	raw, err := bundleOf(Config{})
	if err != nil {
		return err
	}
	if err := d.prepare(ctx, raw); err != nil {
		return err
	}
	sidecar := &child{program: d.pdkeys, args: []string{"serve", "--config", d.path("pdkeys.yaml")}}
	stopChild := sidecar.keepRunning(ctx)
	defer stopChild()

	c, err := LoadConfig(d.path("pdvault.yaml"))
	if err != nil {
		return err
	}
	log, err := NewLogger(c.Log.Level)
	if err != nil {
		return err
	}
	if err := Init(ctx, c, log); err != nil && !errors.Is(err, ErrInitialised) {
		return err
	}
	return Serve(ctx, c, d.greet)
}

func (d *dev) path(name string) string { return filepath.Join(d.dir, name) }

// locate makes paths absolute and finds the pdkeys program.
func (d *dev) locate() error {
	if !loopback(d.listen) {
		return errors.New("dev listens on loopback addresses only")
	}
	dir, err := filepath.Abs(d.dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	d.dir = dir
	if d.pdkeys != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), "pdkeys")
	if _, err := os.Stat(beside); err == nil {
		d.pdkeys = beside
		return nil
	}
	if d.pdkeys, err = exec.LookPath("pdkeys"); err != nil {
		return fmt.Errorf("pdkeys is neither beside %s nor on PATH; build it or name it with --pdkeys", self)
	}
	return nil
}

// prepare writes what is missing: configurations, tokens, and the sidecar's stores.
func (d *dev) prepare(ctx context.Context, bundle []byte) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	socket, err := d.socket()
	if err != nil {
		return err
	}
	pdvault := fmt.Sprintf(`# Written by pdvault dev. Not for production.
instance: %s
listen: %s
store: {dir: data}
sidecar: {socket: %q}
tokens_file: tokens
log: {level: %s}
`, devInstance, d.listen, socket, d.level)
	if err := writePrivate(d.path("pdvault.yaml"), []byte(pdvault)); err != nil {
		return err
	}
	pdkeys := fmt.Sprintf(`# Written by pdvault dev. Not for production: the root key lies in a file beside the data.
instance: %s
socket: {path: %q}
store: {dir: keys/store}
kek: {type: local, local: {path: keys/root.key}}
log: {level: %s}
parent_watch: true
`, devInstance, socket, d.level)
	if err := writePrivate(d.path("pdkeys.yaml"), []byte(pdkeys)); err != nil {
		return err
	}
	if err := d.tokens(bundle); err != nil {
		return err
	}
	if _, err := os.Stat(d.path("keys")); err == nil {
		return nil
	}
	// The key directory appears under its name only when it is complete, so that an interrupted first
	// start is simply begun again.
	if err := os.RemoveAll(d.path("keys.new")); err != nil {
		return fmt.Errorf("removing an unfinished key directory: %w", err)
	}
	if err := os.Mkdir(d.path("keys.new"), 0o700); err != nil {
		return fmt.Errorf("making the key directory: %w", err)
	}
	fresh := strings.ReplaceAll(pdkeys, "keys/", "keys.new/")
	if err := writePrivate(d.path("pdkeys.new.yaml"), []byte(fresh)); err != nil {
		return err
	}
	defer os.Remove(d.path("pdkeys.new.yaml"))
	init := exec.CommandContext(ctx, d.pdkeys, "init", "--config", d.path("pdkeys.new.yaml"))
	if output, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("pdkeys init: %w: %s", err, strings.TrimSpace(string(output)))
	}
	if err := os.Rename(d.path("keys.new"), d.path("keys")); err != nil {
		return fmt.Errorf("naming the key directory: %w", err)
	}
	return nil
}

// socket returns a path that is short enough for a Unix socket address (108 bytes with its end).
func (d *dev) socket() (string, error) {
	path := d.path("pdkeys.sock")
	if len(path) < 100 {
		return path, nil
	}
	return "", fmt.Errorf("the path %s is too long for a Unix socket; choose a shorter --data", path)
}

// tokens makes one token for each caller of the bundle, unless they exist.
func (d *dev) tokens(bundle []byte) error {
	if _, err := os.Stat(d.path("tokens.json")); err == nil {
		return nil
	}
	b, err := policy.Parse(bundle)
	if err != nil {
		return err
	}
	tokens := make(map[string]string)
	var hashes strings.Builder
	for _, c := range b.Callers() {
		secret := make([]byte, 32)
		rand.Read(secret)
		tokens[c.ID] = "pdv_" + base64.RawURLEncoding.EncodeToString(secret)
		hashes.WriteString(server.FormatToken(server.TokenHash{CallerID: c.ID, SHA256: server.HashToken(tokens[c.ID])}) + "\n")
	}
	clear, err := json.Marshal(tokens, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return fmt.Errorf("encoding tokens: %w", err)
	}
	// The hashes first: tokens.json is the sign that both are complete.
	if err := writePrivate(d.path("tokens"), []byte(hashes.String())); err != nil {
		return err
	}
	return writePrivate(d.path("tokens.json"), append(clear, '\n'))
}

// writePrivate replaces a file of mode 0600 as a whole.
func writePrivate(path string, data []byte) error {
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	return nil
}

// greet prints what to do next.
func (d *dev) greet(address string) {
	fmt.Fprintf(d.out, `pdvault dev listens on http://%[1]s, data in %[2]s
not for production: the root key lies in a file beside the data

A first request, ready to paste: create a person, then read the name for a purpose, on record.

  TOKEN=$(sed -n 's/.*"shop": "\(.*\)".*/\1/p' %[2]s/tokens.json)
  ID=$(curl -s http://%[1]s/v1/subjects -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
    -d '{"records":{"profile":{"email":"someone'$RANDOM'@example.org","name":{"givenName":"Some","familyName":"One"}}}}' | sed 's/.*"id":"\([^"]*\)".*/\1/')
  curl -s "http://%[1]s/v1/subjects/$ID/records/profile?purpose=order-fulfilment" -H "Authorization: Bearer $TOKEN"

`, address, d.dir)
}

// child keeps a program running until it is told to stop.
type child struct {
	program string
	args    []string
}

// keepRunning starts the program and restarts it when it ends. The returned function ends it and waits.
func (c *child) keepRunning(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, c.program, c.args...)
			cmd.Stderr = os.Stderr
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = 10 * time.Second
			// A terminal's interrupt goes to the whole group; the sidecar must outlive our own shutdown.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Run(); err != nil && ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "pdkeys ended: %v; starting it again\n", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
