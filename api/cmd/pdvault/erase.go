package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

func eraseCommand(c *connection) *cobra.Command {
	var reason, out, act string
	cmd := &cobra.Command{
		Use:   "erase SUBJECT --reason REASON",
		Short: "Erase a subject for good; the answer is a certificate",
		Long: `Erase a subject: its records, consents and sealed details are deleted and its key is destroyed, at once and
for good. Nobody can undo it.

The answer is a certificate, on standard output or in the file of --out. Keep it: it alone names the subject and
holds what proves whom the entry in the log is about. It is provisional until the next key epoch has killed what
backups could still open; "pdvault erasure" then gives the final one. "pdaudit verify-erasure" checks both offline.

Reasons: ` + strings.Join(api.ErasureReasons, ", ") + `.

Exit code 6 with erasure-pending: the erasure is on record, nothing can be read any more, and the server will
finish it; fetch the certificate with "pdvault erasure".`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if !slices.Contains(api.ErasureReasons, reason) {
				return usagef("--reason must be one of %s", strings.Join(api.ErasureReasons, ", "))
			}
			return erase(cmd, c, a, reason, out, act)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why: a code (required)")
	_ = cmd.MarkFlagRequired("reason") // the flag is defined above
	cmd.Flags().StringVar(&out, "out", "", "new file for the certificate; default: standard output")
	cmd.Flags().StringVar(&act, "act", "", "new file for the act, an HTML page for printing")
	return cmd
}

// erase makes its files before it asks for anything: a certificate that cannot be written down is lost.
func erase(cmd *cobra.Command, c *connection, a []string, reason, out, act string) (err error) {
	id, client, err := target(c, a)
	if err != nil {
		return err
	}
	var certificateFile, actFile *newFile
	if certificateFile, err = create(out); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, certificateFile.close()) }()
	if actFile, err = create(act); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, actFile.close()) }()

	erased, err := client.Erase(cmd.Context(), id, reason)
	var pending *access.ErasurePendingError
	if errors.As(err, &pending) {
		return fmt.Errorf("%w; for its certificate: pdvault erasure %s", err, pending.ID)
	}
	if err != nil {
		return err
	}
	if certificateFile == nil {
		err = raw(cmd, erased.Certificate, nil)
	} else if err = certificateFile.write(erased.Certificate); err != nil {
		// It comes once, so it goes where it still can.
		return errors.Join(err, raw(cmd, erased.Certificate, nil))
	} else {
		err = printJSON(cmd, struct {
			Erasure string `json:"erasure"`
		}{erased.ID.String()})
	}
	if err != nil || actFile == nil {
		return err
	}
	page, err := client.ErasureAct(cmd.Context(), erased.ID)
	if err != nil {
		return fmt.Errorf("the subject is erased; its act: %w", err)
	}
	return actFile.write(page)
}

func erasureCommand(c *connection) *cobra.Command {
	var act bool
	cmd := &cobra.Command{
		Use:   "erasure CERTIFICATE",
		Short: "Fetch the certificate of an erasure by its id, as it is now, or its act",
		Long: `Fetch the certificate of an erasure by its id, byte for byte as "pdaudit verify-erasure" checks it. After the
next key epoch it is final. It does not name the subject: only the first one, of "pdvault erase", does.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, err := uuid.Parse(a[0])
			if err != nil {
				return usagef("the id must be a UUID")
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			get := client.Erasure
			if act {
				get = client.ErasureAct
			}
			b, err := get(cmd.Context(), id)
			return raw(cmd, b, err)
		},
	}
	cmd.Flags().BoolVar(&act, "act", false, "the act instead: an HTML page for printing")
	return cmd
}

// newFile is a file that is made for one answer, and gone if that does not come. A nil newFile is not wanted.
type newFile struct {
	f       *os.File
	written bool
}

// create makes the file at path, which must not exist; no path is no file.
func create(path string) (*newFile, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, usage(err)
	}
	return &newFile{f: f}, nil
}

func (n *newFile) write(b []byte) error {
	_, err := n.f.Write(b)
	if err == nil {
		err = n.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", n.f.Name(), err)
	}
	n.written = true
	return nil
}

func (n *newFile) close() error {
	if n == nil {
		return nil
	}
	err := n.f.Close()
	if !n.written {
		err = errors.Join(err, os.Remove(n.f.Name()))
	}
	return err
}
