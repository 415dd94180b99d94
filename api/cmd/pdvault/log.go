package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api/client"
)

func recordsCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "records", Short: "Access records: list, show, prove, export", Args: args(cobra.NoArgs), RunE: helpOnly}
	cmd.AddCommand(recordsListCommand(c), recordsShowCommand(c), recordsProofCommand(c), recordsExportCommand(c))
	return cmd
}

func recordsListCommand(c *connection) *cobra.Command {
	var f client.Filter
	var subject, from, to string
	var all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List entries of the log, oldest first, one JSON object per line",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if subject != "" {
				if f.Subject, err = subjectID(subject); err != nil {
					return err
				}
			}
			if f.From, err = parseTime("from", from); err != nil {
				return err
			}
			if f.To, err = parseTime("to", to); err != nil {
				return err
			}
			api, err := c.client()
			if err != nil {
				return err
			}
			for {
				page, err := api.AccessRecords(cmd.Context(), f)
				if err != nil {
					return err
				}
				for _, record := range page.Records {
					line, err := json.Marshal(record)
					if err := raw(cmd, append(line, '\n'), err); err != nil {
						return err
					}
				}
				if page.Next == "" {
					return nil
				}
				if !all {
					fmt.Fprintf(cmd.ErrOrStderr(), "more: --cursor %s\n", page.Next)
					return nil
				}
				f.Cursor = page.Next
			}
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&subject, "subject", "", "id of a subject")
	flags.StringVar(&f.Caller, "caller", "", "id of a caller")
	flags.StringVar(&f.Purpose, "purpose", "", "purpose")
	flags.StringVar(&f.Ground, "ground", "", "consent, service or law")
	flags.StringVar(&f.Decision, "decision", "", "allow or deny")
	flags.StringVar(&f.Kind, "kind", "", "kind of entries, such as access")
	flags.StringVar(&from, "from", "", "earliest time, RFC 3339")
	flags.StringVar(&to, "to", "", "time before which entries lie, RFC 3339")
	flags.StringVar(&f.Cursor, "cursor", "", "where the page before ended")
	flags.IntVar(&f.Limit, "limit", 0, "entries in a page; default 100")
	flags.BoolVar(&all, "all", false, "all pages")
	return cmd
}

func parseTime(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, usagef("--%s must be an RFC 3339 time", flag)
	}
	return t, nil
}

func parseIndex(s string) (int64, error) {
	index, err := strconv.ParseInt(s, 10, 64)
	if err != nil || index < 0 {
		return 0, usagef("the index must be a number")
	}
	return index, nil
}

func recordsShowCommand(c *connection) *cobra.Command {
	var entry bool
	cmd := &cobra.Command{
		Use:   "show INDEX",
		Short: "Show one entry",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			index, err := parseIndex(a[0])
			if err != nil {
				return err
			}
			api, err := c.client()
			if err != nil {
				return err
			}
			record, err := api.AccessRecord(cmd.Context(), index)
			if entry {
				return raw(cmd, append(record.Entry, '\n'), err)
			}
			return printed(cmd, record, err)
		},
	}
	cmd.Flags().BoolVar(&entry, "entry", false, "the entry alone, byte for byte as it is in the log, for pdaudit verify proof")
	return cmd
}

func recordsProofCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use:   "proof INDEX",
		Short: "Print the proof that an entry is in the log (C2SP tlog-proof)",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			index, err := parseIndex(a[0])
			if err != nil {
				return err
			}
			api, err := c.client()
			if err != nil {
				return err
			}
			proof, err := api.Proof(cmd.Context(), index)
			return raw(cmd, proof, err)
		},
	}
}

func recordsExportCommand(c *connection) *cobra.Command {
	var workers int
	cmd := &cobra.Command{
		Use:   "export DIR",
		Short: "Download the log and the policies into DIR, for pdaudit verify ledger",
		Long: `Download the newest checkpoint, every tile and entry bundle below it, and the published policies into DIR,
as C2SP tlog-tiles lays them out. Full tiles that DIR has already are kept, so that a later export into the
same DIR fetches only what is new. The checkpoint is written last: a DIR with a checkpoint is complete.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			size, fetched, err := export(cmd.Context(), api, a[0], workers)
			if err != nil {
				return err
			}
			return printJSON(cmd, struct {
				Dir     string `json:"dir"`
				Entries int64  `json:"entries"`
				Fetched int64  `json:"files_fetched"`
			}{a[0], size, fetched})
		},
	}
	cmd.Flags().IntVar(&workers, "workers", 8, "downloads at the same time")
	return cmd
}

// export downloads everything below the newest checkpoint. Nothing is believed here: pdaudit verifies it.
func export(ctx context.Context, api *client.Client, dir string, workers int) (size, fetched int64, err error) {
	signed, err := api.Checkpoint(ctx)
	if err != nil {
		return 0, 0, err
	}
	body, _, ok := bytes.Cut(signed, []byte("\n\n"))
	checkpoint, err := verify.ParseCheckpoint(append(bytes.Clone(body), '\n'))
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("the checkpoint is malformed: %w", access.ErrIntegrity)
	}
	versions, err := api.PolicyVersions(ctx)
	if err != nil {
		return 0, 0, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return 0, 0, fmt.Errorf("making the directory: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(workers, 1))
	get := func(path string, fetch func() ([]byte, error)) {
		fetched++
		group.Go(func() error {
			data, err := fetch()
			if err != nil {
				return fmt.Errorf("fetching %s: %w", path, err)
			}
			return replaceFile(filepath.Join(dir, filepath.FromSlash(path)), data)
		})
	}
	for tile := range verify.TilesOf(checkpoint.Size) {
		path := tile.Path()
		if tile.Width == verify.TileWidth {
			if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(path))); err == nil {
				continue
			}
		}
		get(path, func() ([]byte, error) { return api.Tile(ctx, path) })
	}
	for _, v := range versions {
		if v.Entry >= checkpoint.Size {
			continue // published after the checkpoint
		}
		get(verify.BundlePath(v.Version), func() ([]byte, error) { return api.PolicyVersion(ctx, v.Version) })
	}
	if err := group.Wait(); err != nil {
		return 0, 0, err
	}
	return checkpoint.Size, fetched + 1, replaceFile(filepath.Join(dir, verify.CheckpointPath), signed)
}

// replaceFile writes a file whole: an interrupted export leaves no half of one under its name.
func replaceFile(path string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	temporary := path + ".tmp-" + uuid.NewString()
	if err := os.WriteFile(temporary, data, 0o640); err != nil {
		return errors.Join(fmt.Errorf("writing: %w", err), os.Remove(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}
