package main

import (
	"errors"
	"fmt"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/vault/kv"
)

// toRecover adds to the error of a start that was refused, because of what is stored, what an operator does about it.
func toRecover(err error) error {
	for _, damage := range []error{
		kv.ErrIntegrity, sidecar.ErrState, keyring.ErrNotCreated, localkek.ErrFile, keys.ErrTampered, keys.ErrKEKMissing, keys.ErrKEKRetired,
	} {
		if errors.Is(err, damage) {
			return fmt.Errorf("%w; to recover: change nothing, put the newest copy of the key store, and of the root-key file if there "+
				"is one, in its place, or restore a backup with pdkeys restore", err)
		}
	}
	return err
}
