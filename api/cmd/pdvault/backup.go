package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api/client"
	"github.com/prototypster/pdvault/api/daemon"
	"github.com/prototypster/pdvault/vault/kv/archive"
)

// taken is what is said of a backup.
type taken struct {
	ID         string `json:"id"`
	Instance   string `json:"instance"`
	Created    string `json:"created"`
	Rows       int64  `json:"rows"`
	LedgerSize int64  `json:"ledger_size"`
	LedgerRoot string `json:"ledger_root"`
}

func backupCommand(c *connection) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "backup --out FILE|-",
		Short: "Download a backup of the data store: ciphertexts and the log, no key",
		Long: `Download an archive of the data store from the running server. It is read through as it comes: FILE appears
only when the archive is whole. The signature of its manifest is verified by restore, with the key that pdkeys knows.
The keys are not in it; they are backed up by pdkeys backup.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			if out == "-" {
				manifest, err := download(cmd.Context(), api, cmd.OutOrStdout())
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.ErrOrStderr(), "backup %s: %d rows, log of %d entries\n", manifest.ID, manifest.Count, manifest.Ledger.Size)
				return err
			}
			manifest, err := downloadFile(cmd.Context(), api, out)
			return printed(cmd, taken{
				manifest.ID, manifest.Instance, manifest.Created, manifest.Count, manifest.Ledger.Size, manifest.Ledger.Root.String(),
			}, err)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write, which must not exist; - for standard output (required)")
	_ = cmd.MarkFlagRequired("out") // the flag is defined above
	return cmd
}

// downloadFile writes a backup to path, which appears whole or not at all.
func downloadFile(ctx context.Context, api *client.Client, path string) (m verify.Backup, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".backup-*") // mode 0600
	if err != nil {
		return m, fmt.Errorf("making a file for the backup: %w", err)
	}
	defer func() {
		if e := os.Remove(f.Name()); e != nil && err == nil {
			err = fmt.Errorf("keeping the backup: %w", e)
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	if m, err = download(ctx, api, buffered); err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return m, err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, never replaces
		return m, fmt.Errorf("keeping the backup: %w", err)
	}
	return m, nil
}

// download copies a backup to w and reads it through on the way.
func download(ctx context.Context, api *client.Client, w io.Writer) (verify.Backup, error) {
	pipe, feed := io.Pipe()
	fetched := make(chan error, 1)
	go func() {
		err := api.Backup(ctx, feed)
		feed.CloseWithError(err) // nil is io.EOF
		fetched <- err
	}()
	m, err := readThrough(io.TeeReader(pipe, w))
	pipe.CloseWithError(err) // ends the download, if it has not ended
	if err := errors.Join(<-fetched, err); err != nil {
		return verify.Backup{}, fmt.Errorf("downloading the backup: %w", err)
	}
	return m, nil
}

// readThrough reads an archive to its end and returns its manifest, whose signature it does not verify.
func readThrough(r io.Reader) (verify.Backup, error) {
	_, raw, err := archive.ReadHeader(r, archive.KindData)
	if err != nil {
		return verify.Backup{}, err
	}
	rows := archive.NewReader(r, raw)
	for {
		if _, err := rows.Next(); errors.Is(err, io.EOF) {
			return verify.ReadBackup(rows.Seal())
		} else if err != nil {
			return verify.Backup{}, err
		}
	}
}

func restoreCommand() *cobra.Command {
	var config string
	var o daemon.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore --config FILE --from ARCHIVE [--log DIR]",
		Short: "Make the data store from a backup; pdkeys must be running, pdvault must not",
		Long: `Make the data store from an archive of pdvault backup. The directory of the data store must be absent or empty.
The archive is verified to its last byte before anything is written. Erasures since the backup are carried out
again, since pdkeys knows whose keys were destroyed; withdrawals of consent, restrictions and the certificates of
erasures since the backup are carried out again from --log, an export of the log made after it (pdvault records export).

A backup dies with the keys that it was sealed under: take one after each rotation of all subjects' keys. Data that
no key opens any more is counted, and the restore refused, unless --accept-unreadable is given.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := daemon.LoadConfig(config)
			if err != nil {
				return usage(err)
			}
			log, err := daemon.NewLogger(c.Log.Level)
			if err != nil {
				return err
			}
			for i, arg := range o.LedgerKeys {
				if o.LedgerKeys[i], err = publicKey(arg); err != nil {
					return usage(err)
				}
			}
			report, err := daemon.Restore(cmd.Context(), c, o, log)
			if errors.Is(err, access.ErrUnreadable) {
				return fmt.Errorf("nothing was touched: %d subjects have no key and the data of %d was sealed under keys that are gone, of %d: "+
					"restore another backup, of the data or of the keys, or say --accept-unreadable: %w",
					report.Keyless, report.Unreadable, report.Keyless+report.Unreadable+report.Subjects, err)
			}
			if err != nil {
				return err
			}
			return printRestore(cmd.OutOrStdout(), report, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "configuration file (required)")
	f.StringVar(&o.Archive, "from", "", "archive (required)")
	f.StringVar(&o.LogDir, "log", "", "export of the log that was made after the backup")
	f.StringArrayVar(&o.LedgerKeys, "ledger-key", nil, "older public key of the ledger, or a file that holds it, when the backup was signed with one that has been dropped since")
	f.BoolVar(&o.AcceptUnreadable, "accept-unreadable", false, "restore also what no key opens any more")
	_ = cmd.MarkFlagRequired("config") // the flags are defined above
	_ = cmd.MarkFlagRequired("from")
	return cmd
}

// printRestore says what was restored, what is lost, and what to do next.
func printRestore(w io.Writer, r daemon.RestoreReport, o daemon.RestoreOptions) error {
	b := bufio.NewWriter(w)
	m := r.Manifest
	fmt.Fprintf(b, "restored backup %s of %s: %d rows, log of %d entries\n", m.ID, m.Created, m.Count, m.Ledger.Size)
	fmt.Fprintf(b, "subjects: %d live, %d erased again\n", r.Subjects, r.Erased)
	if lost := r.Lost - r.Size; lost > 0 {
		fmt.Fprintf(b, "lost: %d entries of the log that pdkeys has witnessed\n", lost)
	}
	if r.Log != nil {
		fmt.Fprintf(b, "carried out again: %d withdrawals of consent, %d restrictions set, %d lifted\n", r.Withdrawn, r.Restrict, r.Lifted)
		if r.Log.Size < r.Lost {
			fmt.Fprintf(b, "WARNING: the exported log ends at %d, %d entries before what pdkeys has witnessed: what they say is not known\n", r.Log.Size, r.Lost-r.Log.Size)
		}
		kinds := make([]string, 0, len(r.Since))
		for kind := range r.Since {
			kinds = append(kinds, kind)
		}
		slices.Sort(kinds)
		for _, kind := range kinds {
			fmt.Fprintf(b, "  after the backup: %6d %s\n", r.Since[kind], kind)
		}
	} else {
		fmt.Fprintln(b, "WARNING: no --log was given: consents withdrawn and restrictions set after the backup are not known and NOT in force")
	}
	if r.Pending > 0 {
		fmt.Fprintf(b, "erasures that the start of pdvault finishes: %d\n", r.Pending)
	}
	if r.Policy > 0 {
		fmt.Fprintf(b, "WARNING: a later policy was published after the backup; version %d IS IN FORCE AGAIN: publish the later one anew\n", r.Policy)
	}
	if r.Keyless > 0 {
		fmt.Fprintf(b, "WARNING: %d subjects have no key: the key store is older than this backup, their data CANNOT BE OPENED\n", r.Keyless)
	}
	if r.Unreadable > 0 {
		fmt.Fprintf(b, "WARNING: the data of %d subjects was sealed under keys that are gone: it CANNOT BE OPENED\n", r.Unreadable)
	}
	if r.Reindex {
		fmt.Fprintln(b, "the index keys of this backup are gone: the start of pdvault makes the index anew, which takes a while")
	}
	if r.Rewind {
		fmt.Fprintf(b, "next: the security team stops pdkeys, runs  pdkeys rewind --config FILE --backup %s%s  and starts it again; then start pdvault\n",
			o.Archive, vouched(o.LedgerKeys))
	} else {
		fmt.Fprintln(b, "next: start pdvault")
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("printing the outcome: %w", err)
	}
	return nil
}

// vouched are the flags of pdkeys rewind for ledger keys that it does not know any more.
func vouched(keys []string) string {
	var b strings.Builder
	for _, key := range keys {
		b.WriteString(" --ledger-key " + key)
	}
	return b.String()
}

// publicKey returns a public key, from the argument or from the file that it names. A key has plus signs in it.
func publicKey(arg string) (string, error) {
	if strings.Contains(arg, "+") {
		return arg, nil
	}
	b, err := os.ReadFile(arg)
	if err != nil {
		return "", fmt.Errorf("reading a key: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
