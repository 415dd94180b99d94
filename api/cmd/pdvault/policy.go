package main

import (
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/api"
)

func policyCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Show, publish and list policy bundles", Args: args(cobra.NoArgs), RunE: helpOnly}
	var version int64
	show := &cobra.Command{
		Use:   "show",
		Short: "Print a bundle, byte for byte as it was published",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			if version > 0 {
				bundle, err := client.PolicyVersion(cmd.Context(), version)
				return raw(cmd, bundle, err)
			}
			_, bundle, err := client.Policy(cmd.Context())
			return raw(cmd, bundle, err)
		},
	}
	show.Flags().Int64Var(&version, "version", 0, "version; default: the one in force")
	publish := &cobra.Command{
		Use:   "publish [FILE|-]",
		Short: "Publish a bundle as a new version",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			bundle, err := input(cmd, a, 0)
			if err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			published, err := client.PublishPolicy(cmd.Context(), bundle)
			return printed(cmd, published, err)
		},
	}
	versions := &cobra.Command{
		Use:   "versions",
		Short: "List the published versions, oldest first",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			list, err := client.PolicyVersions(cmd.Context())
			return printed(cmd, api.PolicyVersions{Versions: list}, err)
		},
	}
	cmd.AddCommand(show, publish, versions)
	return cmd
}
