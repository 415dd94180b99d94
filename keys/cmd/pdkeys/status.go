package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"syscall"
	"text/tabwriter"

	"github.com/prototypster/pdvault/keys/client"
)

// status asks the sidecar behind the configured socket. The sidecar runs as the user whose key store it is,
// so that is whom the socket must belong to.
func status(ctx context.Context, c Config, stdout io.Writer) error {
	info, err := os.Stat(c.ownedPath())
	if err != nil {
		return storeError(c, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%w: its owner is not known", errStore)
	}
	cl, err := client.Dial(ctx, client.Config{Socket: c.Socket.Path, ServerUID: &st.Uid})
	if err != nil {
		return fmt.Errorf("asking the sidecar (is it running, and may this user connect?): %v", err)
	}
	defer cl.Close()
	s, err := cl.Status(ctx)
	if err != nil {
		return fmt.Errorf("asking the sidecar: %v", err)
	}
	kek := "usable"
	if s.KEKState != nil {
		kek = s.KEKState.Error()
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"instance", s.Instance},
		{"sidecar", s.Sidecar},
		{"kek", s.KEK},
		{"kek state", kek},
		{"key store generation", fmt.Sprint(s.Generation)},
		{"ledger", orNone(s.Origin)},
		{"ledger key", orNone(s.LedgerKey)},
		{"witness key", s.WitnessKey},
		{"witnessed size", fmt.Sprint(s.WitnessedSize)},
		{"witnessed root", orNone(base64.StdEncoding.EncodeToString(s.WitnessedRoot))},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if s.KEKState != nil {
		return fmt.Errorf("the key-encryption key cannot be used: %v", s.KEKState)
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
