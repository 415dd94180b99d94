// Command pdkeys is the sidecar that holds the keys of one instance of pdvault, and the tool of those who
// look after them. It holds wrapped keysets, and unwrapped ones in memory; it never holds a record, and it
// speaks no HTTP but to HashiCorp Vault.
package main

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/prototypster/pdvault/vault/kv/badgerkv"
)

// Exit codes. The key store's engine ends the process with badgerkv.ExitCode (74) by itself when the disk
// does not take a write.
const (
	exitOK     = 0
	exitFailed = 1 // anything else, also: status found the sidecar or its KEK unusable, a rotation that was followed failed
	exitUsage  = 2 // wrong arguments or configuration
	exitStore  = 3 // the key store is not there, is there already, or is not sound
	exitKEK    = 4 // the key-encryption key cannot be used now; a later start may succeed
	exitSocket = 5 // the socket cannot be made as it must be
	exitBusy   = 6 // another rotation is under way
)

const exitHelp = `Exit codes:
  0  success
  1  failure; for status: the sidecar cannot be reached, or its KEK cannot be used;
     for jobs --follow: the rotation failed
  2  wrong arguments or configuration
  3  key store absent, present already, of another instance, or not sound
  4  key-encryption key cannot be used now; a later start may succeed
  5  socket cannot be made as it must be
  6  another rotation is under way
  74 the disk did not take a write of the key store`

// errUsage marks errors in arguments and configuration.
var errUsage = errors.New("wrong usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := newCommand(stdout, stderr)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "pdkeys:", err)
	return exitCode(err)
}

func exitCode(err error) int {
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, sidecar.ErrSocket):
		return exitSocket
	case errors.Is(err, keys.ErrJobRunning):
		return exitBusy
	case errors.Is(err, keyring.ErrNotCreated), errors.Is(err, keyring.ErrNotEmpty), errors.Is(err, keyring.ErrOtherInstance),
		errors.Is(err, keyring.ErrRestoring),
		errors.Is(err, localkek.ErrExists), errors.Is(err, sidecar.ErrState), errors.Is(err, badgerkv.ErrInUse),
		errors.Is(err, kv.ErrIntegrity), errors.Is(err, kv.ErrStorageFull), errors.Is(err, errStore):
		return exitStore
	case errors.Is(err, keys.ErrUnavailable), errors.Is(err, keys.ErrKEKMissing), errors.Is(err, keys.ErrKEKRetired),
		errors.Is(err, keyring.ErrNotBound), errors.Is(err, localkek.ErrFile), errors.Is(err, errKEK):
		return exitKEK
	}
	return exitFailed
}

func newCommand(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "pdkeys",
		Short:         "The key sidecar of pdvault",
		Long:          "pdkeys holds the keys of one instance of pdvault and opens ciphertexts for it,\neach against a proof that the read is on record.\n\n" + exitHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usageArgs(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.AddCommand(
		withConfig("serve", "Serve the keys on a Unix socket until SIGTERM", func(cmd *cobra.Command, c Config) error {
			return toRecover(serve(cmd.Context(), c, stderr))
		}),
		withConfig("init", "Create the key store, and the root-key file when the KEK is a local one", func(cmd *cobra.Command, c Config) error {
			return initialise(cmd.Context(), c, stdout, stderr)
		}),
		withConfig("status", "Ask the running sidecar how it does", func(cmd *cobra.Command, c Config) error {
			return status(cmd.Context(), c, stdout)
		}),
		rotateCommand(stdout),
		withConfig("epoch", "Begin an epoch: a new version of the key-encryption key, everything wrapped under it, older versions destroyed",
			func(cmd *cobra.Command, c Config) error {
				return startJob(cmd.Context(), c, keyring.ScopeKEK, uuid.Nil, stdout)
			}),
		jobsCommand(stdout, stderr),
		backupCommand(stdout, stderr), restoreCommand(stdout, stderr), rewindCommand(stdout, stderr),
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: usageArgs(cobra.NoArgs),
			RunE: func(*cobra.Command, []string) error {
				_, err := io.WriteString(stdout, version())
				return err
			},
		},
	)
	return root
}

// withConfig makes a command that takes --config.
func withConfig(use, short string, run func(*cobra.Command, Config) error) *cobra.Command {
	return withArgs(use, short, cobra.NoArgs, func(cmd *cobra.Command, _ []string, c Config) error { return run(cmd, c) })
}

// withArgs makes a command that takes --config and arguments.
func withArgs(use, short string, args cobra.PositionalArgs, run func(*cobra.Command, []string, Config) error) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: use + " --config FILE", Short: short, Args: usageArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			if path == "" {
				return fmt.Errorf("%w: --config is missing", errUsage)
			}
			c, err := loadConfig(path)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return run(cmd, args, c)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (YAML)")
	return cmd
}

func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		return nil
	}
}

func version() string {
	build := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		build = info.Main.Version
	}
	mode := "off"
	if fips140.Enabled() {
		mode = "on"
	}
	return fmt.Sprintf("pdkeys %s\n%s %s/%s\nfips140 %s, module %s\n", build, runtime.Version(), runtime.GOOS, runtime.GOARCH, mode, fips140.Version())
}

// notExist reports whether err says that a file is absent.
func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
