package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/localkek"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/vault/kv"
)

func TestAStartRefusedForDamageSaysHowToRecover(t *testing.T) {
	for _, damage := range []error{kv.ErrIntegrity, sidecar.ErrState, localkek.ErrFile, keys.ErrKEKRetired} {
		err := toRecover(fmt.Errorf("opening: %w", damage))
		if !errors.Is(err, damage) || !strings.Contains(err.Error(), "pdkeys restore") {
			t.Errorf("%v", err)
		}
	}
	for _, other := range []error{kv.ErrStorageFull, keys.ErrUnavailable, sidecar.ErrSocket} {
		if err := toRecover(other); err != other {
			t.Errorf("%v", err)
		}
	}
}
