package stack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// HashiCorpKEK sets up transit and AppRole on hc with the deployed policy and returns the kek member of a
// sidecar's configuration that logs in there. Files are made in dir.
func HashiCorpKEK(ctx context.Context, hc *hcserver.Server, dir string) (string, error) {
	role, err := hc.SetupTransit(ctx, hcserver.Setup{})
	if err != nil {
		return "", fmt.Errorf("setting up transit: %w", err)
	}
	roleID := filepath.Join(dir, "role-id")
	if err := os.WriteFile(roleID, []byte(role.RoleID+"\n"), 0o600); err != nil {
		return "", err
	}
	epochID := filepath.Join(dir, "epoch-role-id")
	if err := os.WriteFile(epochID, []byte(role.EpochRoleID+"\n"), 0o600); err != nil {
		return "", err
	}
	return fmt.Sprintf("{type: hcvault, hcvault: {address: %q, key: %s, allow_plain_http_on_loopback: true, "+
		"approle: {role_id_file: %q, secret_id_file: %q}, epoch: {role_id_file: %q, secret_id_file: %q}}}",
		hc.Address(), role.Key, roleID, role.SecretIDFile, epochID, role.EpochSecretIDFile), nil
}
