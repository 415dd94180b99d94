package daemon

import (
	"errors"
	"fmt"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// toRecover adds to the error of a start that was refused, because of what is stored, what an operator does about it.
func toRecover(err error) error {
	for _, damage := range []error{
		kv.ErrIntegrity, access.ErrIntegrity, vault.ErrIntegrity, consent.ErrIntegrity, keys.ErrDamaged, keys.ErrTampered, keys.ErrRolledBack, errNotInitialised,
	} {
		if errors.Is(err, damage) {
			return fmt.Errorf("%w; to recover: change nothing, put the newest copy of the store in its place, or restore a backup "+
				"of it (pdvault restore for the data, pdkeys restore for the keys)", err)
		}
	}
	return err
}
