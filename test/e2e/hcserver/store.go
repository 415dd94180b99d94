package hcserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// SetupStore makes a KV engine of version 2 at mount, if there is none, and lets the role keep a key store
// at path below it, as deploy/hcvault/store.hcl says. Tokens get the right at their next login, and the
// policies that the role had stay.
func (s *Server) SetupStore(ctx context.Context, role *AppRole, mount, path string) error {
	err := s.call(ctx, "POST", "sys/mounts/"+mount, map[string]any{"type": "kv", "options": map[string]any{"version": "2"}}, nil)
	if err != nil && !strings.Contains(err.Error(), "path is already in use") {
		return err
	}
	// A new engine refuses requests for a moment, until it has been made ready.
	err = s.until(ctx, "has the KV engine ready", func() bool {
		return s.call(ctx, "POST", mount+"/config", map[string]any{"max_versions": 1, "delete_version_after": "0s"}, nil) == nil
	})
	if err != nil {
		return err
	}
	text, err := StorePolicy(mount, path)
	if err != nil {
		return err
	}
	name := mount + "-" + strings.NewReplacer("/", "-", "+", "any").Replace(path)
	if err := s.call(ctx, "POST", "sys/policies/acl/"+name, map[string]any{"policy": text}, nil); err != nil {
		return err
	}
	var has struct {
		Policies []string `json:"token_policies"`
	}
	if err := s.Request(ctx, "GET", "auth/approle/role/"+role.Role, nil, &has); err != nil {
		return err
	}
	return s.call(ctx, "POST", "auth/approle/role/"+role.Role, map[string]any{"token_policies": append(has.Policies, name)}, nil)
}

// StorePolicy returns the text of deploy/hcvault/store.hcl for a mount and a path.
func StorePolicy(mount, path string) (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("hcserver: the source tree is not known")
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(file), "..", "..", "..", "deploy", "hcvault", "store.hcl"))
	if err != nil {
		return "", err
	}
	return strings.NewReplacer(`"pdvault-keys/data/main/`, `"`+mount+"/data/"+path+"/",
		`"pdvault-keys/metadata/main/`, `"`+mount+"/metadata/"+path+"/").Replace(string(text)), nil
}
