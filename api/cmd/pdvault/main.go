// Command pdvault is the vault's API process, and the client of those who use it: backend services, privacy
// officers, auditors. It holds ciphertexts, the ledger and the policy; it never holds a key, and no code in
// it can decrypt.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api/client"
	"github.com/prototypster/pdvault/api/daemon"
)

// Exit codes. The store's engine ends the process with 74 by itself when the disk does not take a write.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRejected    = 3 // import: some lines were rejected
	exitDenied      = 4
	exitNotFound    = 5
	exitUnavailable = 6 // trying again later may help
)

const exitHelp = `Exit codes:
  0  success
  1  failure
  2  wrong arguments
  3  import: some lines were rejected
  4  denied, or not authenticated
  5  no such subject, record, consent, entry, erasure or rotation
  6  the server cannot answer now, or is still at it; trying again later may help
  74 the disk did not take a write (serve, dev)`

// Errors that choose an exit code.
var (
	errUsage    = errors.New("wrong usage")
	errRejected = errors.New("some lines were rejected")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd := newCommand()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "pdvault:", err)
	return exitCode(err)
}

func exitCode(err error) int {
	var rotating *access.RotationError
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, errRejected):
		return exitRejected
	case errors.Is(err, access.ErrDenied), errors.Is(err, client.ErrUnauthenticated):
		return exitDenied
	case errors.Is(err, access.ErrNotFound):
		return exitNotFound
	case errors.Is(err, access.ErrUnavailable), errors.Is(err, access.ErrBusy), errors.Is(err, access.ErrLimited),
		errors.Is(err, access.ErrErasurePending), errors.As(err, &rotating),
		errors.Is(err, client.ErrTimeout), errors.Is(err, client.ErrStorageFull), errors.Is(err, syscall.ECONNREFUSED):
		return exitUnavailable
	}
	return exitFailed
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "pdvault",
		Short:         "Encrypted vault for personal data: every read is for a purpose, on a ground, and on record",
		Long:          "Encrypted vault for personal data: every read is for a purpose, on a ground, and on record.\n\n" + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd: true,
		},
		Args: args(cobra.NoArgs),
		// Cobra asks this again later, but its error would not be one of usage.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.ValidateRequiredFlags(); err != nil {
				return usage(err)
			}
			return nil
		},
		RunE: helpOnly,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddGroup(&cobra.Group{ID: "server", Title: "Server:"}, &cobra.Group{ID: "client", Title: "Client:"})

	for _, cmd := range []*cobra.Command{daemon.ServeCommand(), daemon.DevCommand(), daemon.InitCommand(), restoreCommand()} {
		cmd.GroupID = "server"
		root.AddCommand(cmd)
	}
	for _, cmd := range clientCommands() {
		cmd.GroupID = "client"
		root.AddCommand(cmd)
	}
	return root
}

func clientCommands() []*cobra.Command {
	c := new(connection)
	commands := []*cobra.Command{
		putCommand(c), getCommand(c), patchCommand(c), deleteCommand(c), subjectCommand(c),
		restrictCommand(c), unrestrictCommand(c), eraseCommand(c), erasureCommand(c),
		lookupCommand(c), verifyCommand(c), checkCommand(c),
		consentCommand(c), recordsCommand(c), policyCommand(c), keysCommand(c), importCommand(c), backupCommand(c),
	}
	for _, cmd := range commands {
		c.flags(cmd)
	}
	return append(commands, tokenCommand())
}

func usage(err error) error { return fmt.Errorf("%w: %w", errUsage, err) }

func usagef(format string, a ...any) error { return usage(fmt.Errorf(format, a...)) }

// args makes the errors of a check of arguments usage errors.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return usage(err)
		}
		return nil
	}
}
