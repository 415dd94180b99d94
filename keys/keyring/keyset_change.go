package keyring

import (
	"bytes"
	"context"
	"fmt"

	"github.com/prototypster/pdvault/keys"
)

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
	proof, err := k.unwraps.one(ctx, KEKItem{binding, wrapped})
	if err != nil {
		return fmt.Errorf("wrapping keyset %q: %w: %v", name, errUnproven, err)
	}
	defer proof.Wipe()
	if !bytes.Equal(proof, next) {
		return fmt.Errorf("wrapping keyset %q: %w", name, errUnproven)
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
