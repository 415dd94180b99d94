package main

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/api/client"
)

// condition holds the flags that say which version a write expects.
type condition struct{ client.Condition }

func (c *condition) flags(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&c.Version, "if-version", 0, "version that the record must have; required when it exists")
}

func putCommand(c *connection) *cobra.Command {
	var fresh bool
	var key string
	var when condition
	cmd := &cobra.Command{
		Use:   "put {SUBJECT | --new} COLLECTION [FILE|-]",
		Short: "Write a record whole, for a subject or a new one",
		Args:  args(cobra.RangeArgs(1, 3)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if !fresh {
				if len(a) < 2 {
					return usagef("put needs SUBJECT and COLLECTION, or --new and COLLECTION")
				}
				if key != "" {
					return usagef("--key is for --new")
				}
				return put(cmd, c, a, when)
			}
			if len(a) > 2 || when.Version != 0 || when.Absent {
				return usagef("put --new takes COLLECTION and a file, and no version")
			}
			record, err := input(cmd, a, 1)
			if err != nil {
				return err
			}
			if !jsontext.Value(record).IsValid() {
				return usagef("the input is not one JSON object")
			}
			api, err := c.client()
			if err != nil {
				return err
			}
			created, err := api.CreateSubject(cmd.Context(), key, map[string]jsontext.Value{a[0]: record})
			return printed(cmd, created, err)
		},
	}
	when.flags(cmd)
	cmd.Flags().BoolVar(&when.Absent, "if-absent", false, "write only when there is no such record")
	cmd.Flags().BoolVar(&fresh, "new", false, "create a subject with this record")
	cmd.Flags().StringVar(&key, "key", "", "idempotency key of --new: the same key and record make one subject")
	return cmd
}

func put(cmd *cobra.Command, c *connection, a []string, when condition) error {
	id, api, err := target(c, a)
	if err != nil {
		return err
	}
	record, err := input(cmd, a, 2)
	if err != nil {
		return err
	}
	written, err := api.PutRecord(cmd.Context(), id, a[1], record, when.Condition)
	return printed(cmd, written, err)
}

// target parses the subject of a command and makes its client.
func target(c *connection, a []string) (uuid.UUID, *client.Client, error) {
	id, err := subjectID(a[0])
	if err != nil {
		return uuid.Nil, nil, err
	}
	api, err := c.client()
	return id, api, err
}

// reading holds the flags of a read.
type reading struct {
	purpose string
	fields  []string
	mode    string
	client.Reason
}

func (r *reading) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.purpose, "purpose", "", "purpose of the policy (required)")
	_ = cmd.MarkFlagRequired("purpose") // the flag is defined above
	cmd.Flags().StringVar(&r.Reference, "reference", "", "order or ticket number; sealed")
	cmd.Flags().StringVar(&r.Justification, "justification", "", "why, in words; sealed")
}

func (r *reading) fieldFlags(cmd *cobra.Command) {
	r.flags(cmd)
	cmd.Flags().StringSliceVar(&r.fields, "fields", nil, "fields, separated by commas; default: all that the purpose covers")
	cmd.Flags().StringVar(&r.mode, "mode", "", "reveal or mask; default: reveal")
}

func getCommand(c *connection) *cobra.Command {
	var r reading
	cmd := &cobra.Command{
		Use:   "get SUBJECT COLLECTION --purpose PURPOSE",
		Short: "Read fields of a record for a purpose, on record",
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, api, err := target(c, a)
			if err != nil {
				return err
			}
			record, err := api.Read(cmd.Context(), client.Read{
				Subject: id, Collection: a[1], Purpose: r.purpose, Fields: r.fields, Mode: r.mode, Reason: r.Reason,
			})
			return printed(cmd, record, err)
		},
	}
	r.fieldFlags(cmd)
	return cmd
}

func patchCommand(c *connection) *cobra.Command {
	var when condition
	cmd := &cobra.Command{
		Use:   "patch SUBJECT COLLECTION --if-version N [FILE|-]",
		Short: "Change fields of a record: a JSON merge patch, null removes",
		Args:  args(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, api, err := target(c, a)
			if err != nil {
				return err
			}
			patch, err := input(cmd, a, 2)
			if err != nil {
				return err
			}
			written, err := api.PatchRecord(cmd.Context(), id, a[1], patch, when.Condition)
			return printed(cmd, written, err)
		},
	}
	when.flags(cmd)
	return cmd
}

func deleteCommand(c *connection) *cobra.Command {
	var when condition
	cmd := &cobra.Command{
		Use:   "delete SUBJECT COLLECTION --if-version N",
		Short: "Delete a record",
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, api, err := target(c, a)
			if err != nil {
				return err
			}
			return api.DeleteRecord(cmd.Context(), id, a[1], when.Condition)
		},
	}
	when.flags(cmd)
	return cmd
}

func subjectCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use:   "subject SUBJECT",
		Short: "Show the metadata of a subject: no personal data",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, api, err := target(c, a)
			if err != nil {
				return err
			}
			subject, err := api.Subject(cmd.Context(), id)
			return printed(cmd, subject, err)
		},
	}
}

func restrictCommand(c *connection) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "restrict SUBJECT --reason TEXT",
		Short: "Restrict the processing of a subject's data",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, api, err := target(c, a)
			if err != nil {
				return err
			}
			changed, err := api.Restrict(cmd.Context(), id, reason)
			return printed(cmd, changed, err)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why (required); sealed")
	_ = cmd.MarkFlagRequired("reason") // the flag is defined above
	return cmd
}

func unrestrictCommand(c *connection) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "unrestrict SUBJECT",
		Short: "Lift the restriction",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, api, err := target(c, a)
			if err != nil {
				return err
			}
			changed, err := api.Unrestrict(cmd.Context(), id, reason)
			return printed(cmd, changed, err)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; sealed")
	return cmd
}

// raw writes bytes as they came.
func raw(cmd *cobra.Command, b []byte, err error) error {
	if err != nil {
		return err
	}
	if _, err := cmd.OutOrStdout().Write(b); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}
