package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

func TestAStartRefusedForDamageSaysHowToRecover(t *testing.T) {
	for _, damage := range []error{kv.ErrIntegrity, vault.ErrIntegrity, keys.ErrRolledBack, errNotInitialised} {
		err := toRecover(fmt.Errorf("opening: %w", damage))
		if !errors.Is(err, damage) || !strings.Contains(err.Error(), "pdvault restore") {
			t.Errorf("%v", err)
		}
	}
	for _, other := range []error{kv.ErrStorageFull, keys.ErrUnavailable, errors.New("address in use")} {
		if err := toRecover(other); err != other {
			t.Errorf("%v", err)
		}
	}
}
