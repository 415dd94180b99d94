// Pdaudit verifies what pdvault says about itself: proofs of single entries and whole exported ledgers.
// It is for auditors, and for anyone who holds the public keys.
//
// It must never need the network, a running pdvault, a secret, or the operator's word: it works on exported
// files and public keys alone, and links neither the storage nor the key handling of pdvault.
//
// It exits with 0 when everything holds, 1 when a verification failed, and 2 when it was called wrongly or
// a file could not be read.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
)

const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// errFailed is returned by a command whose verification failed. What failed has been printed.
var errFailed = errors.New("verification failed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	switch err := cmd.ExecuteContext(ctx); {
	case err == nil:
		return exitOK
	case errors.Is(err, errFailed):
		return exitFailed
	default:
		fmt.Fprintf(stderr, "pdaudit: %v\n", err)
		return exitUsage
	}
}
