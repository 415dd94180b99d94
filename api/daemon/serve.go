package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/server"
)

// ServeCommand runs a production instance.
func ServeCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the vault beside a running pdkeys",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := LoadConfig(path)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return Serve(ctx, c, func(address string) {
				fmt.Fprintf(cmd.OutOrStdout(), "pdvault serves %s on %s\n", c.Instance, address)
			})
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (required)")
	_ = cmd.MarkFlagRequired("config") // the flag is defined above
	return cmd
}

// InitCommand makes a new production instance.
func InitCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "init --config FILE",
		Short: "Create the data store, the ledger and its key, and publish policy version 1",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := LoadConfig(path)
			if err != nil {
				return err
			}
			log, err := NewLogger(c.Log.Level)
			if err != nil {
				return err
			}
			if err := Init(cmd.Context(), c, log); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "instance %s is initialised\n", c.Instance)
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (required)")
	_ = cmd.MarkFlagRequired("config") // the flag is defined above
	return cmd
}

// Serve opens the instance of c and serves it until ctx ends. ready is called with the address once requests
// are accepted.
func Serve(ctx context.Context, c Config, ready func(address string)) (err error) {
	log, err := NewLogger(c.Log.Level)
	if err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	tuneMemory()
	d, err := Open(ctx, c, log)
	if err != nil {
		return toRecover(err)
	}
	defer func() {
		if closing := d.Close(); err == nil {
			err = closing
		}
	}()
	config, err := d.serverConfig()
	if err != nil {
		return err
	}
	s, err := server.New(config)
	if err != nil {
		return err
	}
	if err := s.Open(); err != nil {
		return err
	}
	ready(s.Addr().String())
	return s.Serve(ctx)
}

// harden keeps plaintext and the ledger key out of core dumps, and other processes of this user out of memory.
func harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	return nil
}

// tuneMemory trades memory for less work of the garbage collector: most of what is allocated lives for one
// request. GOGC and GOMEMLIMIT, when set, are the operator's word and stay.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(400 << 20)
	}
}

func (d *Daemon) serverConfig() (server.Config, error) {
	f, err := os.Open(d.config.TokensFile)
	if err != nil {
		return server.Config{}, fmt.Errorf("reading the tokens file: %w", err)
	}
	defer f.Close()
	hashes, err := server.ParseTokens(f)
	if err != nil {
		return server.Config{}, err
	}
	tokens, err := server.NewTokens(hashes, d.broker.CallerOf)
	if err != nil {
		return server.Config{}, err
	}
	operator := d.broker.Operator()
	config := server.Config{
		Issuer: server.Issuer{
			Controller:   api.ReceiptParty{PartyID: operator.ID, PartyName: operator.Name, PartyContact: operator.Contact, PartyType: "controller"},
			Jurisdiction: operator.Jurisdiction,
		},
		Broker: d.broker, Authenticator: tokens, Listen: d.config.Listen, MetricsListen: d.config.MetricsListen,
		Registry: d.registry, Checks: d.checks(), Logger: d.log, Backup: d.Backup,
		MaxConnections: d.config.Limits.Connections, MaxInFlight: d.config.Limits.InFlight,
	}
	if d.config.TLS.CertFile != "" {
		certificate, err := tls.LoadX509KeyPair(d.config.TLS.CertFile, d.config.TLS.KeyFile)
		if err != nil {
			return server.Config{}, fmt.Errorf("loading the TLS certificate: %w", err)
		}
		config.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	}
	if d.log.Enabled(context.Background(), -4) {
		config.AccessLog = d.log
	}
	return config, nil
}
