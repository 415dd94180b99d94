package keyring

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"
	"github.com/tink-crypto/tink-go/v2/prf"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// instance is the keys that belong to no subject, ready for use. It is never changed; a rotation puts another in
// its place.
type instance struct {
	rows     map[string][]byte       // rows of the key store that the rest was unwrapped from, by keyset
	versions map[string][]keyVersion // of index, token and service, ascending
	identity *identity
	index    []indexKey // blind index, ascending by version
	token    tink.MAC   // unsubscribe and confirmation links
	service  tink.AEAD  // small secrets of pdvault
}

// keysetNames are the wrapped keysets of an instance.
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

// add adds a key, the newest from then on. It fails with keys.ErrInvalid when there are too many.
func (s *versionedKeyset) add(name string, now time.Time) error {
	if len(s.versions) >= maxKeysetKeys {
		return fmt.Errorf("keyset %q has too many keys: %w", name, keys.ErrInvalid)
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
			id := newIdentity(cfg.Now())
			items[i].Data = id.encode()
			id.wipe()
			continue
		}
		s, err := newKeyset(name, cfg.Now())
		if err != nil {
			return nil, err
		}
		if items[i].Data, err = s.serialise(); err != nil {
			return nil, err
		}
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

// readyKeyset is one keyset of an instance, ready for use.
type readyKeyset struct {
	name     string
	keys     int
	versions []keyVersion
	identity *identity
	index    []indexKey
	token    tink.MAC
	service  tink.AEAD
}

// makeReady parses an unwrapped keyset. It keeps nothing of b.
func makeReady(name string, b []byte) (readyKeyset, error) {
	if name == "identity" {
		id, err := parseIdentity(b)
		if err != nil {
			return readyKeyset{}, err
		}
		return readyKeyset{name: name, keys: len(id.keys), identity: id}, nil
	}
	s, err := parseKeyset(name, b)
	if err != nil {
		return readyKeyset{}, err
	}
	p := readyKeyset{name: name, keys: len(s.versions), versions: s.versions}
	switch name {
	case "index":
		var set *prf.Set
		if set, err = prf.NewPRFSet(s.handle); err == nil {
			for _, v := range s.versions {
				p.index = append(p.index, indexKey{v.version, set.PRFs[v.id]})
			}
		}
	case "token":
		p.token, err = mac.New(s.handle)
	case "service":
		p.service, err = aead.New(s.handle)
	}
	if err != nil {
		return readyKeyset{}, fmt.Errorf("keyset %q is not usable: %w", name, keys.ErrTampered)
	}
	return p, nil
}

func (p readyKeyset) wipe() {
	if p.identity != nil {
		p.identity.wipe()
	}
}

// with returns the instance that has p, unwrapped from row, in the place of what it had.
func (in *instance) with(p readyKeyset, row []byte) *instance {
	out := *in
	out.rows, out.versions = maps.Clone(in.rows), maps.Clone(in.versions)
	out.rows[p.name] = row
	switch p.name {
	case "identity":
		out.identity = p.identity
	case "index":
		out.index, out.versions[p.name] = p.index, p.versions
	case "token":
		out.token, out.versions[p.name] = p.token, p.versions
	case "service":
		out.service, out.versions[p.name] = p.service, p.versions
	}
	return &out
}

// load reads and unwraps what belongs to the instance. That also shows that the KEK still has the key.
func (k *Keyring) load(ctx context.Context) error {
	rows, err := k.readKeysets(ctx)
	if err != nil {
		return err
	}
	items := make([]KEKItem, len(keysetNames))
	decoded := make([]row, len(keysetNames))
	for i, name := range keysetNames {
		if decoded[i], err = k.checkRow(rows[name]); err != nil {
			return fmt.Errorf("keyset %q: %w", name, err)
		}
		items[i] = KEKItem{keysetContext(k.cfg.Instance, name), decoded[i].wrapped}
	}
	clear, err := callKEK(ctx, k.cfg.KEK.Unwrap, items)
	if err != nil {
		return fmt.Errorf("unwrapping the instance's keysets: %w", explained(err))
	}
	defer wipeAll(clear)
	in := &instance{rows: make(map[string][]byte), versions: make(map[string][]keyVersion)}
	for i, name := range keysetNames {
		p, err := makeReady(name, clear[i])
		if err == nil && p.keys != int(decoded[i].keys) {
			err = fmt.Errorf("keyset %q: %w", name, errKeyCount)
		}
		if err != nil {
			return err
		}
		in = in.with(p, rows[name])
	}
	k.instance = in
	return nil
}

// readKeysets reads the rows of the instance's keysets, all of one snapshot.
func (k *Keyring) readKeysets(ctx context.Context) (map[string][]byte, error) {
	wanted := [][]byte{keyInstance, keyGeneration}
	for _, name := range keysetNames {
		wanted = append(wanted, keyKeyset(name))
	}
	before := k.generation.Load()
	var values [][]byte
	err := k.store.View(ctx, func(r kv.Reader) (err error) {
		values, err = r.Get(wanted...)
		return err
	})
	if err != nil {
		return nil, storeError("reading", err)
	}
	if values[0] == nil {
		return nil, ErrNotCreated
	}
	if !bytes.Equal(values[0], instanceRow(k.cfg.Instance, k.cfg.KEK.Name())) {
		return nil, ErrOtherInstance
	}
	generation, err := decodeGeneration(values[1])
	if err != nil {
		return nil, storeError("reading", err)
	}
	if generation < before {
		return nil, storeError("reading", errRolledBack)
	}
	raise(&k.generation, generation)
	rows := make(map[string][]byte, len(keysetNames))
	for i, name := range keysetNames {
		rows[name] = values[2+i]
	}
	return rows, nil
}

// changeKeyset puts what edit makes of a keyset of the instance in its place, durably, and then uses it. edit is
// given the keyset as the KEK unwraps it and returns it as it is to be wrapped, which is wiped afterwards; nil
// leaves it as it is. It may run more than once. After an error it is unknown whether the keyset was changed;
// what the key store holds then is used from the next change on, or when the sweeper sees it.
func (k *Keyring) changeKeyset(ctx context.Context, name string, edit func(Secret) (Secret, error)) error {
	if _, err := k.current(); err != nil {
		return err
	}
	select { // one change at a time, or an older keyset could take the place of a newer
	case k.changing <- struct{}{}:
		defer func() { <-k.changing }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for another change of the keysets: %w: %w", keys.ErrUnavailable, context.Cause(ctx))
	}
	for range maxRounds {
		err := k.tryKeyset(ctx, name, edit)
		if !isOf(err, errRowChanged) && !isOf(err, errBelowFloor) {
			return err
		}
	}
	return fmt.Errorf("keyset %q keeps changing: %w", name, keys.ErrUnavailable)
}

// tryKeyset is one attempt of changeKeyset. It fails with errRowChanged or errBelowFloor when another is due.
func (k *Keyring) tryKeyset(ctx context.Context, name string, edit func(Secret) (Secret, error)) error {
	rows, err := k.readKeysets(ctx)
	if err != nil {
		return err
	}
	was := rows[name]
	r, err := k.checkRow(was)
	if err != nil {
		return fmt.Errorf("keyset %q: %w", name, err)
	}
	binding := keysetContext(k.cfg.Instance, name)
	unwrapped, err := k.unwraps.one(ctx, KEKItem{binding, r.wrapped})
	if err != nil {
		return fmt.Errorf("unwrapping keyset %q: %w", name, err)
	}
	defer unwrapped.Wipe()
	before, err := makeReady(name, unwrapped)
	if err != nil {
		return err
	}
	defer before.wipe()
	if before.keys != int(r.keys) {
		return fmt.Errorf("keyset %q: %w", name, errKeyCount)
	}
	next, err := edit(unwrapped)
	if err != nil {
		return err
	}
	if next == nil {
		return k.publish(name, unwrapped, was)
	}
	defer next.Wipe()
	after, err := makeReady(name, next)
	if err != nil {
		return err
	}
	defer after.wipe()
	wrapped, err := k.wraps.one(ctx, KEKItem{binding, next})
	if err != nil {
		return fmt.Errorf("wrapping keyset %q: %w", name, err)
	}
	if len(wrapped) > maxWrappedBytes {
		return fmt.Errorf("KEK gave too much: %w", keys.ErrUnavailable)
	}
	outcome := k.commitRows(ctx, []rowChange{{keyset: name, was: was, wrapped: wrapped, keys: after.keys}})[0]
	if outcome.err != nil {
		return outcome.err
	}
	return k.publish(name, next, outcome.row)
}

// publish uses a keyset, which the key store holds as row, from now on.
func (k *Keyring) publish(name string, clear Secret, row []byte) error {
	p, err := makeReady(name, clear)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.instance == nil || bytes.Equal(k.instance.rows[name], row) {
		p.wipe()
		return nil
	}
	if p.identity != nil {
		k.instance.identity.wipe()
	}
	k.instance = k.instance.with(p, row)
	return nil
}

// refresh takes over keysets that were changed by another keyring on the same key store, or by a call of this one
// whose outcome was lost, and drops witness keys whose time is over.
func (k *Keyring) refresh(ctx context.Context) error {
	rows, err := k.readKeysets(ctx)
	if err != nil {
		return err
	}
	in, err := k.current()
	if err != nil {
		return err
	}
	for _, name := range keysetNames {
		if bytes.Equal(rows[name], in.rows[name]) {
			continue
		}
		if err := k.changeKeyset(ctx, name, func(Secret) (Secret, error) { return nil, nil }); err != nil {
			return err
		}
	}
	return k.dropWitness(ctx)
}

// addKeyset adds a key to the token or the service keyset, durably, and returns its version. From then on it is the
// one that computes tags or seals; the older ones go on verifying and opening.
func (k *Keyring) addKeyset(ctx context.Context, name string) (version uint64, err error) {
	if name != "token" && name != "service" {
		return 0, fmt.Errorf("no keyset %q of which older keys go on: %w", name, keys.ErrInvalid)
	}
	err = k.changeKeyset(ctx, name, func(b Secret) (Secret, error) {
		s, err := parseKeyset(name, b)
		if err != nil {
			return nil, err
		}
		if err := s.add(name, k.cfg.Now()); err != nil {
			return nil, err
		}
		version = uint64(s.newest())
		return s.serialise()
	})
	if err != nil {
		return 0, fmt.Errorf("adding a key to keyset %q: %w", name, err)
	}
	return version, nil
}

// keyVersions lists the keys of the instance: index, token, service, witness, each kind with the newest first.
func (in *instance) keyVersions() []KeyVersion {
	var out []KeyVersion
	for _, name := range []string{"index", "token", "service"} {
		for i, v := range slices.Backward(in.versions[name]) {
			out = append(out, KeyVersion{Kind: name, Version: uint64(v.version), Newest: i == len(in.versions[name])-1,
				Count: 1, Made: time.Unix(v.made, 0)})
		}
	}
	for i, w := range in.identity.keys {
		out = append(out, KeyVersion{Kind: "witness", Version: uint64(w.version), Newest: i == 0, Count: 1, Made: time.Unix(w.made, 0)})
	}
	return out
}
