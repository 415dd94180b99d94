package hcvault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// ErrStoreInUse is returned by [OpenStore] and [CreateStore] when another process has the store open, and by
// every call on a store that another process has taken over.
var ErrStoreInUse = errors.New("hcvault: key store is in use by another process")

// lease is the right to use a store, which one process has at a time. It is renewed every fifth of its time;
// its holder stops using the store, reading included, when four fifths have passed since it asked for the
// last renewal that succeeded. Whoever wants the store must have watched it, by a clock of its own, for all
// of that time without a renewal. A holder whose lease ran out in an outage goes on when nobody has taken it.
type lease struct {
	secrets *secrets
	time    time.Duration

	content owner  // owned by who acquires, then by the goroutine that renews
	version uint64 // of the secret; likewise

	mu      sync.Mutex // guards the rest
	renewed time.Time  // when the last renewal that succeeded was asked for
	lost    error
}

// acquire takes the lease. It returns ErrStoreInUse as soon as the holder shows that it lives.
func (l *lease) acquire(ctx context.Context, create bool) error {
	var watched uint64
	var since time.Time
	for {
		sec, err := l.secrets.read(ctx, nameOwner)
		if err != nil {
			return err
		}
		if sec == nil {
			if !create {
				return fmt.Errorf("the key store's owner is not there: %w", kv.ErrIntegrity)
			}
			return l.take(ctx, 0, 1)
		}
		o, err := decodeOwner(sec)
		if err != nil {
			return err
		}
		switch {
		case o.Released:
			return l.take(ctx, sec.version, o.Fence+1)
		case watched == 0:
			watched, since = sec.version, time.Now()
		case watched != sec.version:
			return ErrStoreInUse
		case time.Since(since) > time.Duration(o.LeaseMS)*time.Millisecond:
			return l.take(ctx, sec.version, o.Fence+1)
		}
		select {
		case <-time.After(min(l.time/20, 250*time.Millisecond)):
		case <-ctx.Done():
			return fmt.Errorf("waiting until the key store's last owner is surely gone: %w: %w", keys.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// take makes the lease ours if the secret is still at version.
func (l *lease) take(ctx context.Context, version, fence uint64) error {
	l.content = owner{F: storeFormat, ID: newID(), Fence: fence, LeaseMS: l.time.Milliseconds()}
	l.version = version
	for range 2 { // twice, so that keepsOneVersion sees what the engine does with older versions
		if err := l.renew(ctx); err != nil {
			return err
		}
	}
	return l.secrets.keepsOneVersion(ctx, nameOwner)
}

// renew writes the secret once more. When it is not known whether that succeeded, it looks.
func (l *lease) renew(ctx context.Context) error {
	l.content.Renewed++
	asked := time.Now()
	version, err := l.secrets.write(ctx, nameOwner, l.version, l.content)
	if err != nil {
		if errors.Is(err, errNotSent) {
			return err
		}
		sec, e := l.secrets.read(ctx, nameOwner)
		if e != nil {
			return e
		}
		if sec == nil {
			return l.lose(fmt.Errorf("the key store's owner is not there any more: %w", kv.ErrIntegrity))
		}
		o, e := decodeOwner(sec)
		if e != nil {
			return l.lose(e)
		}
		if o.ID != l.content.ID {
			if sec.version > l.version {
				return l.lose(fmt.Errorf("another process has taken the key store over: %w", ErrStoreInUse))
			}
			return err // not written, and not by anybody else either
		}
		// Ours: this renewal or one whose outcome was not known.
		version = sec.version
		if o.Renewed != l.content.Renewed {
			l.version = version
			return err
		}
	}
	l.version = version
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed = asked
	return nil
}

func (l *lease) lose(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost == nil {
		l.lost = err
	}
	return err
}

// check returns nil while the store may be used. It goes by both clocks: the monotonic one does not run
// while a machine sleeps, the other one may be set.
func (l *lease) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return l.lost
	}
	now, limit := time.Now(), l.time*4/5
	if now.Sub(l.renewed) >= limit || now.Round(0).Sub(l.renewed.Round(0)) >= limit {
		return fmt.Errorf("the lease of the key store could not be renewed: %w", keys.ErrUnavailable)
	}
	return nil
}

// keep renews until ctx ends or the lease is lost.
func (l *lease) keep(ctx context.Context, log func(error)) {
	ticker := time.NewTicker(l.time / 5)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := l.renew(ctx)
		if err != nil && ctx.Err() == nil {
			log(err)
		}
		l.mu.Lock()
		lost := l.lost
		l.mu.Unlock()
		if lost != nil {
			return
		}
	}
}

// release lets the next process in at once. Without it that one waits until the lease has run out.
func (l *lease) release(ctx context.Context) error {
	if l.version == 0 {
		return nil
	}
	l.content.Released = true
	return l.renew(ctx)
}
