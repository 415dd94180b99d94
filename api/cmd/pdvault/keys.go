package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/client"
)

func keysCommand(c *connection) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Keys for the security team: versions in use with their ages, rotations",
		Long: `Show which versions of which keys are in use, how old they are against the policy, and when the next epoch is
due. No key is ever shown, and nobody's name.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			keys, err := client.Keys(cmd.Context())
			if err != nil || asJSON {
				return printed(cmd, keys, err)
			}
			return printKeys(cmd.OutOrStdout(), &keys)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(rotateCommand(c), rotationsCommand(c))
	return cmd
}

func rotateCommand(c *connection) *cobra.Command {
	var subject string
	var wait bool
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "rotate SCOPE",
		Short: "Start a rotation of keys, and with --wait follow it to its end",
		Long: `Start a rotation of keys. It goes on by itself, through restarts of both programs; reads and writes go on
meanwhile. One runs at a time.

Scopes:
  kek            an epoch: all keys are wrapped anew and the old wrapping is destroyed, so that keys erased
                 before are dead in backups too
  subject        the key of one subject, named by --subject
  all-subjects   the key of every subject
  index          the key of the blind index
  token          the key of links; older ones go on verifying
  ledger         the key that signs the log; the older one signs beside it for a while
  witness        the key that cosigns the log

--wait ends with the rotation: exit code 0 when it is done and its evidence is in the log, 1 when it failed.
Interrupting it does not stop the rotation. Exit code 6: another rotation is running.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if !slices.Contains(api.RotationScopes, a[0]) {
				return usagef("SCOPE must be one of %s", strings.Join(api.RotationScopes, ", "))
			}
			if (a[0] == api.ScopeSubject) != (subject != "") {
				return usagef("--subject is for the scope subject, and only for it")
			}
			var id uuid.UUID
			var err error
			if subject != "" {
				if id, err = subjectID(subject); err != nil {
					return err
				}
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			r, err := client.StartRotation(cmd.Context(), a[0], id)
			var running *access.RotationError
			if errors.As(err, &running) {
				return fmt.Errorf("%w; it is %s", err, running.Running)
			}
			if err == nil && wait {
				r, err = follow(cmd.Context(), client, r, newRotationProgress(cmd.ErrOrStderr()), patience)
			}
			return printed(cmd, r, err)
		},
	}
	cmd.Flags().StringVar(&subject, "subject", "", "whose key, for the scope subject")
	cmd.Flags().BoolVar(&wait, "wait", false, "show how far it is, until it is done or failed")
	cmd.Flags().DurationVar(&patience, "patience", 2*time.Minute, "with --wait: how long to keep asking while the server cannot answer")
	return cmd
}

// followEvery is how often a rotation is asked for.
const followEvery = time.Second

// follow shows r until it has failed, or is done and its evidence is in the log. A server that cannot answer is asked
// again for the time of patience: a rotation goes on through restarts.
func follow(ctx context.Context, c *client.Client, r api.Rotation, p *rotationProgress, patience time.Duration) (api.Rotation, error) {
	defer p.close()
	id, err := uuid.Parse(r.ID)
	if err != nil {
		return r, fmt.Errorf("the rotation has no id: %w", client.ErrProtocol)
	}
	moved := time.Now() // or was running, and could
	for r.State == api.RotationRunning || r.State == api.RotationDone && r.Record == nil {
		p.show(&r)
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("the rotation %s goes on: %w", r.ID, ctx.Err())
		case <-time.After(followEvery):
		}
		next, err := c.Rotation(ctx, id)
		switch {
		case err != nil && (exitCode(err) != exitUnavailable || time.Since(moved) > patience):
			return r, fmt.Errorf("following the rotation %s, which goes on: %w", r.ID, err)
		case err != nil:
		case next.State == api.RotationDone && next.Record == nil && time.Since(moved) > patience:
			return next, fmt.Errorf("the rotation %s is done, but its evidence is not on record yet", r.ID)
		case next.State != r.State || next.State == api.RotationRunning:
			r, moved = next, time.Now()
		default:
			r = next
		}
	}
	if r.State != api.RotationDone {
		return r, fmt.Errorf("the rotation %s failed: %s", r.ID, r.Failure)
	}
	return r, nil
}

func rotationsCommand(c *connection) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotations [ROTATION]",
		Short: "List the rotations, the newest first, or show one with its evidence",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			var id uuid.UUID
			var err error
			if len(a) > 0 {
				if id, err = uuid.Parse(a[0]); err != nil {
					return usagef("the id must be a UUID")
				}
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			if id != uuid.Nil {
				r, err := client.Rotation(cmd.Context(), id)
				return printed(cmd, r, err)
			}
			list, err := client.Rotations(cmd.Context())
			if err != nil || asJSON {
				return printed(cmd, api.Rotations{Rotations: list}, err)
			}
			return printRotations(cmd.OutOrStdout(), list)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printKeys(w io.Writer, k *api.Keys) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tVERSION\tCOUNT\tAGE\tPOLICY\tNOTE")
	for _, v := range k.Versions {
		version := fmt.Sprint(v.Version)
		if v.Newest {
			version += " (newest)"
		}
		age, policy, note := "-", "-", ""
		if v.AgeSeconds > 0 {
			age = days(v.AgeSeconds)
		}
		if v.PolicyMaxAgeSeconds > 0 {
			policy = days(v.PolicyMaxAgeSeconds)
		}
		if v.Overdue {
			note = "OVERDUE"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\n", v.Kind, version, v.Count, age, policy, note)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	epoch := "none is planned"
	if !k.NextEpoch.IsZero() {
		epoch = "by " + k.NextEpoch.Format(time.RFC3339) + ", every " + days(k.EpochIntervalSeconds)
	}
	running := "none"
	if k.Running != nil {
		running = fmt.Sprintf("%s (%d %%)", describeRotation(k.Running), k.Running.Percent)
	}
	_, err := fmt.Fprintf(w, "\nkey-encryption key: %s, generation %d\nsubjects:           %d, and %d destroyed\ncounted:            %s\nnext epoch:         %s\nrotation:           %s\n",
		k.KEK, k.Generation, k.Subjects, k.Destroyed, k.CountedAt.Format(time.RFC3339), epoch, running)
	if err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

func printRotations(w io.Writer, list []api.Rotation) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROTATION\tSCOPE\tSTATE\tDONE\tBY\tSTARTED\tRECORD")
	for i := range list {
		r := &list[i]
		record, done, state := "-", fmt.Sprintf("%d of %d", r.Done, r.Total), r.State
		if r.Record != nil {
			record = fmt.Sprint(*r.Record)
		}
		switch {
		case r.State == api.RotationRunning:
			done = fmt.Sprintf("%s, %d %%", done, r.Percent)
		case r.Failure != "":
			state += ": " + r.Failure
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Scope, state, done, r.By, r.Started.Format(time.RFC3339), record)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

// days says a time in the unit that keys age in.
func days(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}
