package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/api"
)

// value holds the flags that say where a value comes from: by default standard input, so that it is neither
// in the shell's history nor in the list of processes.
type value struct{ file, text string }

func (v *value) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&v.file, "value-file", "-", "file with the value; - is standard input; one line break at the end is dropped")
	cmd.Flags().StringVar(&v.text, "value", "", "the value itself. WARNING: it stays in the shell's history and every user of this host can see it")
}

func (v *value) read(cmd *cobra.Command) (string, error) {
	if cmd.Flags().Changed("value") {
		return v.text, nil
	}
	raw, err := input(cmd, []string{v.file}, 0)
	if err != nil {
		return "", err
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	if s == "" {
		return "", usagef("the value is empty")
	}
	return s, nil
}

func lookupCommand(c *connection) *cobra.Command {
	var r reading
	var v value
	var collection, field string
	cmd := &cobra.Command{
		Use:   "lookup --purpose PURPOSE --collection COLLECTION --field FIELD < VALUE",
		Short: "Find subjects by the value of an indexed field; the value comes from standard input",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := v.read(cmd)
			if err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			found, err := client.Lookup(cmd.Context(), api.Lookup{
				Purpose: r.purpose, Collection: collection, Field: field, Value: text,
			}, r.Reason)
			return printed(cmd, found, err)
		},
	}
	r.flags(cmd)
	v.flags(cmd)
	cmd.Flags().StringVar(&collection, "collection", "profile", "collection of the field")
	cmd.Flags().StringVar(&field, "field", "", "indexed field (required)")
	_ = cmd.MarkFlagRequired("field") // the flag is defined above
	return cmd
}

func verifyCommand(c *connection) *cobra.Command {
	var r reading
	var v value
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify-value SUBJECT COLLECTION FIELD --purpose PURPOSE < VALUE",
		Short: "Ask whether a field has a value, without seeing it; the value comes from standard input",
		Args:  args(cobra.ExactArgs(3)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, err := subjectID(a[0])
			if err != nil {
				return err
			}
			text, err := v.read(cmd)
			if err != nil {
				return err
			}
			want := jsontext.Value(text)
			if !asJSON {
				if want, err = jsontext.AppendQuote(nil, text); err != nil {
					return usagef("the value is not UTF-8")
				}
			} else if !want.IsValid() {
				return usagef("the value is not JSON")
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			result, err := client.Verify(cmd.Context(), api.Verification{
				Purpose: r.purpose, Subject: id.String(), Collection: a[1], Field: a[2], Value: want,
			}, r.Reason)
			return printed(cmd, result, err)
		},
	}
	r.flags(cmd)
	v.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "the value is JSON; default: it is a string")
	return cmd
}

func checkCommand(c *connection) *cobra.Command {
	var r reading
	cmd := &cobra.Command{
		Use:   "check SUBJECT COLLECTION --purpose PURPOSE",
		Short: "Ask whether a read would be allowed, and if not what is missing",
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, client, err := target(c, a)
			if err != nil {
				return err
			}
			result, err := client.Check(cmd.Context(), api.AccessCheck{
				Subject: id.String(), Collection: a[1], Fields: r.fields, Purpose: r.purpose, Mode: r.mode,
			}, r.Reason)
			return printed(cmd, result, err)
		},
	}
	r.fieldFlags(cmd)
	return cmd
}

// readFile is os.ReadFile for a flag.
func readFile(flag, path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usage(fmt.Errorf("reading --%s: %w", flag, err))
	}
	return b, nil
}
