package keyring

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"
	"github.com/tink-crypto/tink-go/v2/prf"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
)

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

// maxKeysetKeys bounds the keys of one keyset. A token keyset keeps all that it ever had.
const maxKeysetKeys = 200

// versionedKeyset is the index, token or service keyset. Serialised, as the KEK wraps it, it is
//
//	offset  size  what
//	0       1     format, 0x02
//	1       1     number n of keys, never 0
//	2       16·n  the keys, ascending by version, each:
//	                4  version, big endian, never 0
//	                4  Tink's id of the key, big endian
//	                8  Unix time in seconds at which it was made, big endian
//	2+16·n  rest  Tink keyset of exactly these keys, the newest of them primary, binary proto, in clear
//
// Example, the first key: 02 01 | 00000001 3d5a8f21 000000006553f100 | 08 <primary key id> 12 ...
//
// Tink's ids are random and tell nothing about an order; versions are what everybody else speaks of, and what the
// data store notes beside each token. So the pair is wrapped with the keys, where nobody can exchange it.
type versionedKeyset struct {
	versions []keyVersion
	handle   *keyset.Handle
}

// keyVersion is one key of a keyset.
type keyVersion struct {
	version uint32
	id      uint32 // Tink's
	made    int64  // Unix time in seconds
}

const (
	keysetFormat    = 0x02
	keyVersionBytes = 16
)

// newKeyset makes the first version of a keyset.
func newKeyset(name string, now time.Time) (*versionedKeyset, error) {
	handle, err := keyset.NewHandle(keysetKinds[name].template())
	if err != nil {
		return nil, fmt.Errorf("making keyset %q: %w", name, err)
	}
	primary, err := handle.Primary()
	if err != nil {
		return nil, fmt.Errorf("making keyset %q: %w", name, err)
	}
	return &versionedKeyset{[]keyVersion{{1, primary.KeyID(), now.Unix()}}, handle}, nil
}

// serialise returns the keyset as the KEK wraps it. The caller wipes it.
func (s *versionedKeyset) serialise() (Secret, error) {
	buf := bytes.NewBuffer(make([]byte, 0, 2+len(s.versions)*(keyVersionBytes+192)+128)) // not to be copied when it grows
	buf.Write(encodeVersions(s.versions))
	if err := insecurecleartextkeyset.Write(s.handle, keyset.NewBinaryWriter(buf)); err != nil {
		clear(buf.Bytes())
		return nil, fmt.Errorf("serialising a keyset: %w: %w", keys.ErrUnavailable, err)
	}
	return buf.Bytes(), nil
}

func encodeVersions(versions []keyVersion) []byte {
	b := append(make([]byte, 0, 2+keyVersionBytes*len(versions)), keysetFormat, byte(len(versions)))
	for _, v := range versions {
		b = binary.BigEndian.AppendUint32(b, v.version)
		b = binary.BigEndian.AppendUint32(b, v.id)
		b = binary.BigEndian.AppendUint64(b, uint64(v.made))
	}
	return b
}

// decodeVersions parses the list in front of a keyset, and returns what follows it.
func decodeVersions(b []byte) (versions []keyVersion, rest []byte, err error) {
	if len(b) < 2 || b[0] != keysetFormat || b[1] == 0 || b[1] > maxKeysetKeys {
		return nil, nil, fmt.Errorf("keyset of an unknown format: %w", keys.ErrTampered)
	}
	n := int(b[1])
	if b = b[2:]; len(b) < n*keyVersionBytes {
		return nil, nil, fmt.Errorf("keyset is cut short: %w", keys.ErrTampered)
	}
	versions = make([]keyVersion, n)
	ids := make(map[uint32]bool, n)
	last := uint32(0)
	for i := range versions {
		v := keyVersion{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), int64(binary.BigEndian.Uint64(b[8:]))}
		if v.version <= last || ids[v.id] {
			return nil, nil, fmt.Errorf("keyset with versions out of order: %w", keys.ErrTampered)
		}
		versions[i], last, ids[v.id] = v, v.version, true
		b = b[keyVersionBytes:]
	}
	return versions, b, nil
}

// parseKeyset is the inverse of serialise. It refuses keys of another type or output prefix, and a list of
// versions that is not that of the keys. It keeps nothing of b.
func parseKeyset(name string, b []byte) (*versionedKeyset, error) {
	versions, rest, err := decodeVersions(b)
	if err != nil {
		return nil, err
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(rest)))
	if err != nil {
		return nil, fmt.Errorf("keyset %q does not parse: %w", name, keys.ErrTampered)
	}
	info, kind := handle.KeysetInfo(), keysetKinds[name]
	listed := func(id uint32) bool {
		return slices.ContainsFunc(versions, func(v keyVersion) bool { return v.id == id })
	}
	ok := len(info.GetKeyInfo()) == len(versions) && info.GetPrimaryKeyId() == versions[len(versions)-1].id
	for _, key := range info.GetKeyInfo() {
		ok = ok && key.GetTypeUrl() == kind.template().GetTypeUrl() && key.GetOutputPrefixType() == kind.prefix &&
			key.GetStatus() == tinkpb.KeyStatusType_ENABLED && listed(key.GetKeyId())
	}
	if !ok {
		return nil, fmt.Errorf("keyset %q is not what it should be: %w", name, keys.ErrTampered)
	}
	return &versionedKeyset{versions, handle}, nil
}

// newest is the version of the newest key.
func (s *versionedKeyset) newest() uint32 { return s.versions[len(s.versions)-1].version }

// add adds a key, the newest from then on. It fails with keys.ErrTooManyKeys when there are too many.
func (s *versionedKeyset) add(name string, now time.Time) error {
	if len(s.versions) >= maxKeysetKeys {
		return fmt.Errorf("keyset %q has %d keys: %w", name, maxKeysetKeys, keys.ErrTooManyKeys)
	}
	m := keyset.NewManagerFromHandle(s.handle)
	id, err := m.Add(keysetKinds[name].template())
	if err == nil {
		err = m.SetPrimary(id)
	}
	var handle *keyset.Handle
	if err == nil {
		handle, err = m.Handle()
	}
	if err != nil {
		return fmt.Errorf("adding a key to keyset %q: %w: %w", name, keys.ErrUnavailable, err)
	}
	s.versions, s.handle = append(s.versions, keyVersion{s.newest() + 1, id, now.Unix()}), handle
	return nil
}

// dropBefore drops the keys before version and reports whether there were any.
func (s *versionedKeyset) dropBefore(version uint32) (bool, error) {
	i := slices.IndexFunc(s.versions, func(v keyVersion) bool { return v.version == version })
	if i < 0 {
		return false, fmt.Errorf("keyset has no such version: %w", keys.ErrInvalid)
	}
	if i == 0 {
		return false, nil
	}
	m := keyset.NewManagerFromHandle(s.handle)
	for _, v := range s.versions[:i] {
		if err := m.Delete(v.id); err != nil {
			return false, fmt.Errorf("dropping a key of a keyset: %w: %w", keys.ErrUnavailable, err)
		}
	}
	handle, err := m.Handle()
	if err != nil {
		return false, fmt.Errorf("dropping a key of a keyset: %w: %w", keys.ErrUnavailable, err)
	}
	s.versions, s.handle = s.versions[i:], handle
	return true, nil
}
