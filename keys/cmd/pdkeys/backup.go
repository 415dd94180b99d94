package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/vault/kv/archive"
)

func backupCommand(stdout, stderr io.Writer) *cobra.Command {
	var out string
	cmd := withConfig("backup", "Take an encrypted backup of the key store from the running sidecar", func(cmd *cobra.Command, c Config) error {
		if out == "" {
			return fmt.Errorf("%w: --out is missing", errUsage)
		}
		return backup(cmd.Context(), c, out, stdout, stderr)
	})
	cmd.Long = `Take an encrypted backup of the key store from the running sidecar, as its own user. Its key is wrapped by the
key-encryption key, so it is worth nothing without that, and nothing at all after the next epoch: keep none longer.
Keep it apart from the backups of the data, and from snapshots of HashiCorp Vault.`
	cmd.Flags().StringVar(&out, "out", "", "file to write, which must not exist; - for standard output")
	return cmd
}

// backup writes an archive to out, which appears whole or not at all.
func backup(ctx context.Context, c Config, out string, stdout, stderr io.Writer) (err error) {
	a, err := dialAdmin(c)
	if err != nil {
		return err
	}
	defer a.Close()
	if out == "-" {
		return a.Backup(ctx, stdout)
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".backup-*") // mode 0600
	if err != nil {
		return fmt.Errorf("making a file for the backup: %w", err)
	}
	defer func() {
		if e := os.Remove(f.Name()); e != nil && err == nil {
			err = fmt.Errorf("keeping the backup: %w", e)
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	if err = a.Backup(ctx, buffered); err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	var header archive.Header
	if err == nil {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			header, _, err = archive.ReadHeader(f, archive.KindKeys)
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), out); err != nil { // unlike a rename, never replaces
		return fmt.Errorf("keeping the backup: %w", err)
	}
	version := uint64(0)
	if header.Key != nil {
		version = header.Key.Version
	}
	fmt.Fprintf(stderr, "it dies with version %d of the key-encryption key, at the next epoch\n", version)
	_, err = fmt.Fprintf(stdout, "backup %s of instance %s in %s\n", header.ID, header.Instance, out)
	return err
}
