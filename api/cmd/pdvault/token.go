package main

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/api/server"
)

var callerID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make bearer tokens", Args: args(cobra.NoArgs), RunE: helpOnly}
	var caller string
	fresh := &cobra.Command{
		Use:   "new --caller ID",
		Short: "Make a token for a caller of the policy",
		Long: `Make a random 256-bit token for a caller of the policy. The first line printed is the token: give it to
the caller, it is not kept anywhere. The second is the line for the server's tokens file; it holds the
token's SHA-256 only.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !callerID.MatchString(caller) {
				return usagef("--caller must be the id of a caller of the policy")
			}
			secret := make([]byte, 32)
			rand.Read(secret) // never fails
			token := "pdv_" + base64.RawURLEncoding.EncodeToString(secret)
			line := server.FormatToken(server.TokenHash{CallerID: caller, SHA256: server.HashToken(token)})
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s\n", token, line); err != nil {
				return fmt.Errorf("writing the token: %w", err)
			}
			return nil
		},
	}
	fresh.Flags().StringVar(&caller, "caller", "", "id of the caller (required)")
	_ = fresh.MarkFlagRequired("caller") // the flag is defined above
	cmd.AddCommand(fresh)
	return cmd
}
