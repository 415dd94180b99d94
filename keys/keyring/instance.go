package keyring

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/mac"
	"github.com/tink-crypto/tink-go/v2/prf"
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
	wanted := [][]byte{keyInstance, keyGeneration, keyRestoring}
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
	if values[2] != nil && !k.restoring {
		return nil, ErrRestoring
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
		rows[name] = values[3+i]
	}
	return rows, nil
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
