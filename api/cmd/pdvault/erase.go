package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/client"
)

func eraseCommand(c *connection) *cobra.Command {
	var o eraseOptions
	cmd := &cobra.Command{
		Use:   "erase SUBJECT --reason REASON",
		Short: "Erase a subject for good; the answer is a certificate",
		Long: `Erase a subject: its records, consents and sealed details are deleted and its key is destroyed, at once and
for good. Nobody can undo it.

The answer is a certificate, on standard output or in the file of --out. Keep it: it alone names the subject and
holds what proves whom the entry in the log is about. It is provisional until the next key epoch has killed what
backups of the keys could still open; "pdvault erasure" then gives the final one. "pdaudit verify erasure" checks
both offline.

When the key cannot be destroyed at once the erasure is on record, nothing can be read any more, and the server
finishes it by itself. The command waits for that, and otherwise ends with exit code 6 and says how to fetch the
certificate.

Reasons: ` + strings.Join(api.ErasureReasons, ", ") + `.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if !slices.Contains(api.ErasureReasons, o.reason) {
				return usagef("--reason must be one of %s", strings.Join(api.ErasureReasons, ", "))
			}
			return runErase(cmd, c, a, o)
		},
	}
	cmd.Flags().StringVar(&o.reason, "reason", "", "why: a code (required)")
	_ = cmd.MarkFlagRequired("reason") // the flag is defined above
	cmd.Flags().StringVar(&o.out, "out", "", "new file for the certificate; default: standard output")
	cmd.Flags().StringVar(&o.act, "act", "", "new file for the act, an HTML page for printing")
	cmd.Flags().DurationVar(&o.patience, "patience", 2*time.Minute, "how long to wait for the key to be destroyed")
	return cmd
}

type eraseOptions struct {
	reason, out, act string
	patience         time.Duration
}

// runErase makes its files before it asks for anything: a certificate that cannot be written down is lost.
func runErase(cmd *cobra.Command, c *connection, a []string, o eraseOptions) (err error) {
	id, api, err := target(c, a)
	if err != nil {
		return err
	}
	out, err := create(o.out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.close()) }()
	act, err := create(o.act)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, act.close()) }()

	certificate, err := api.Erase(cmd.Context(), id, o.reason)
	var pending *access.PendingErasureError
	if errors.As(err, &pending) {
		certificate, err = finished(cmd.Context(), api, id, pending, o.patience)
	}
	if err != nil {
		return err
	}
	text := append(certificate.Encode(), '\n')
	if out == nil {
		err = raw(cmd, text, nil)
	} else if err = out.write(text); err != nil {
		return errors.Join(err, raw(cmd, text, nil)) // it comes once, so it goes where it still can
	} else {
		err = printJSON(cmd, struct {
			Erasure string `json:"erasure"`
			Status  string `json:"status"`
		}{certificate.ID, certificate.Status})
	}
	if err != nil || act == nil {
		return err
	}
	page, err := erasure.Act(text)
	if err != nil {
		return err
	}
	return act.write(page)
}

// erasureEvery is how often a pending erasure is asked for.
const erasureEvery = time.Second

// finished waits for the certificate of a pending erasure, and names the subject in it.
func finished(ctx context.Context, api *client.Client, subject uuid.UUID, pending *access.PendingErasureError, patience time.Duration) (erasure.Certificate, error) {
	for end := time.Now().Add(patience); ; {
		certificate, err := api.Erasure(ctx, pending.ID)
		switch {
		case err == nil:
			return named(certificate, subject.String(), pending.Salt)
		case exitCode(err) != exitUnavailable || time.Now().After(end):
			return erasure.Certificate{}, fmt.Errorf("the erasure is on record, its certificate is not there yet: %w; fetch it with: pdvault erasure %s --subject %s --salt %s",
				err, pending.ID, subject, pending.Salt)
		}
		select {
		case <-ctx.Done():
		case <-time.After(erasureEvery):
		}
	}
}

// named adds to a certificate whom it is about, if its entry says so.
func named(c erasure.Certificate, subject, salt string) (erasure.Certificate, error) {
	c.Subject, c.Salt = subject, salt
	if _, err := erasure.Parse(c.Encode()); err != nil {
		return erasure.Certificate{}, err
	}
	return c, nil
}

func erasureCommand(c *connection) *cobra.Command {
	var act bool
	var subject, salt string
	cmd := &cobra.Command{
		Use:   "erasure CERTIFICATE",
		Short: "Fetch the certificate of an erasure by its id, as it is now, or its act",
		Long: `Fetch the certificate of an erasure by its id, as "pdaudit verify erasure" checks it. After the next key epoch
it is final. The server does not know whom it is about; who has the subject and the salt of the first certificate
can have them put into this one.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, err := uuid.Parse(a[0])
			if err != nil {
				return usagef("the id must be a UUID")
			}
			if (subject == "") != (salt == "") {
				return usagef("--subject and --salt need each other")
			}
			api, err := c.client()
			if err != nil {
				return err
			}
			certificate, err := api.Erasure(cmd.Context(), id)
			if err == nil && subject != "" {
				certificate, err = named(certificate, subject, salt)
			}
			if err != nil {
				return err
			}
			text := append(certificate.Encode(), '\n')
			if act {
				page, err := erasure.Act(text)
				return raw(cmd, page, err)
			}
			return raw(cmd, text, nil)
		},
	}
	cmd.Flags().BoolVar(&act, "act", false, "the act instead: an HTML page for printing")
	cmd.Flags().StringVar(&subject, "subject", "", "id of the subject, to be named; needs --salt")
	cmd.Flags().StringVar(&salt, "salt", "", "salt of the first certificate; needs --subject")
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
