package keyring

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"
	"github.com/tink-crypto/tink-go/v2/prf"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// instance is the keys that belong to no subject, ready for use.
type instance struct {
	sidecar       string             // the sidecar's id
	witness       ed25519.PrivateKey // guarded by Keyring.mu: Close overwrites it
	witnessPublic ed25519.PublicKey
	index         *prf.Set  // blind index
	token         tink.MAC  // unsubscribe and confirmation links
	service       tink.AEAD // small secrets of pdvault
}

// keysetNames are the wrapped keysets of an instance, in the order that parseInstance takes them.
var keysetNames = []string{"identity", "index", "token", "service"}

// keysetKinds says what a keyset may hold. A PRF has no output prefix, everything else must have one.
//
// The service keyset serves the whole instance for years, so it is XAES-256-GCM, whose random nonces do
// not run out; that a bundle is AES-GCM is fine, as one person's key sees few messages.
var keysetKinds = map[string]struct {
	template func() *tinkpb.KeyTemplate
	prefix   tinkpb.OutputPrefixType
}{
	"index":   {prf.HMACSHA256PRFKeyTemplate, tinkpb.OutputPrefixType_RAW},
	"token":   {mac.HMACSHA256Tag256KeyTemplate, tinkpb.OutputPrefixType_TINK},
	"service": {aead.XAES256GCM192BitNonceKeyTemplate, tinkpb.OutputPrefixType_TINK},
}

// The identity, as the KEK wraps it: format 0x01, 16 bytes sidecar id, 32 bytes Ed25519 seed.
const (
	identityFormat = 0x01
	identitySize   = 1 + 16 + ed25519.SeedSize
)

// newInstance makes the keysets of an instance and returns them wrapped, by name.
func newInstance(ctx context.Context, cfg Config) (map[string][]byte, error) {
	items := make([]KEKItem, len(keysetNames))
	defer func() {
		for _, it := range items {
			it.Data.Wipe()
		}
	}()
	for i, name := range keysetNames {
		items[i].Context = keysetContext(cfg.Instance, name)
		if name == "identity" {
			id := uuid.New()
			items[i].Data = make(Secret, identitySize)
			items[i].Data[0] = identityFormat
			copy(items[i].Data[1:], id[:])
			_, _ = rand.Read(items[i].Data[17:]) // never fails
			continue
		}
		handle, err := keyset.NewHandle(keysetKinds[name].template())
		if err != nil {
			return nil, fmt.Errorf("making keyset %q: %w", name, err)
		}
		buf := bytes.NewBuffer(make([]byte, 0, 256))
		if err := insecurecleartextkeyset.Write(handle, keyset.NewBinaryWriter(buf)); err != nil {
			return nil, fmt.Errorf("serialising keyset %q: %w", name, err)
		}
		items[i].Data = buf.Bytes()
	}
	results, err := callKEK(ctx, cfg.KEK.Wrap, items)
	if err != nil {
		return nil, fmt.Errorf("wrapping the instance's keysets: %w", err)
	}
	wrapped := make(map[string][]byte, len(results))
	for i, name := range keysetNames {
		wrapped[name] = results[i]
	}
	return wrapped, nil
}

// parseInstance makes the unwrapped keysets ready, which are in the order of keysetNames.
func parseInstance(clear []Secret) (*instance, error) {
	in := new(instance)
	for i, name := range keysetNames {
		if name == "identity" {
			b := clear[i]
			if len(b) != identitySize || b[0] != identityFormat {
				return nil, fmt.Errorf("identity of an unknown format: %w", keys.ErrTampered)
			}
			in.sidecar = uuid.UUID(b[1:17]).String()
			in.witness = ed25519.NewKeyFromSeed(b[17:])
			in.witnessPublic = in.witness.Public().(ed25519.PublicKey)
			continue
		}
		handle, err := readKeyset(name, clear[i])
		if err == nil {
			switch name {
			case "index":
				in.index, err = prf.NewPRFSet(handle)
			case "token":
				in.token, err = mac.New(handle)
			case "service":
				in.service, err = aead.New(handle)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("keyset %q is not what it should be: %w", name, keys.ErrTampered)
		}
	}
	return in, nil
}

// readKeyset parses a keyset of the instance and refuses keys of another type or output prefix.
func readKeyset(name string, b []byte) (*keyset.Handle, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(b)))
	if err != nil {
		return nil, err
	}
	kind := keysetKinds[name]
	for _, info := range handle.KeysetInfo().GetKeyInfo() {
		if info.GetTypeUrl() != kind.template().GetTypeUrl() || info.GetOutputPrefixType() != kind.prefix {
			return nil, keys.ErrTampered
		}
	}
	return handle, nil
}
