package e2e

import (
	"errors"
	"net/http"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
)

// A patched API process that skips the record gets nothing: a client of the sidecar's own protocol, run by the
// very user that may connect, is refused for want of a proof. What each wrong proof does is shown in
// keys/sidecar; here it is the real program, on the real socket.
func TestTheSidecarOpensNothingForAClientThatSkipsTheRecord(t *testing.T) {
	i := start(t, stackOptions())
	subject := uuid.MustParse(i.create(person(1)))
	i.want(http.StatusOK, "shop", "GET", "/v1/subjects/"+subject.String()+"/records/profile?purpose=account", "")
	c, err := client.Dial(t.Context(), client.Config{Socket: i.Path("pdkeys.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, sealed, err := c.Seal(t.Context(), subject, false, []client.SealField{{Collection: "profile", Field: "email", Version: 9, Plaintext: []byte(`"x"`)}})
	if err != nil {
		t.Fatal(err)
	}
	fields := []client.OpenField{{Field: "email", Ciphertext: sealed[0].Ciphertext}}
	if got, err := c.Open(t.Context(), 1, []byte("{}"), subject, "profile", 9, fields); err == nil || got != nil {
		t.Errorf("opened without a ledger: %v", err)
	}
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Bind(t.Context(), status.Origin, "test+00000000+AAAA"); !errors.Is(err, keys.ErrProofRefused) && !errors.Is(err, keys.ErrInvalid) {
		t.Errorf("the sidecar may be bound to another ledger: %v", err)
	}
}
