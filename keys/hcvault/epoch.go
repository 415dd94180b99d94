package hcvault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	hcapi "github.com/hashicorp/vault/api"
	"golang.org/x/time/rate"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// Epochs begins and ends versions of the transit key, under a role of its own (deploy/hcvault/epoch.hcl), which
// cannot encrypt or decrypt. It logs in when it is first used and its token is revoked by End, so that outside of
// an epoch there is none.
//
// No request of it is ever repeated by itself: an answer that says 500 may come from an audit device that failed
// after the key was changed. What came of a request that failed is read back from the key.
type Epochs struct {
	kek          *KEK
	cfg          Config // with the role's login
	client, bare *hcapi.Client

	mu        sync.Mutex // guards the rest; held while a session ends, as the next has its clients
	session   *session   // nil: none
	closed    bool
	unwrapped unwrapped // the session's, while there is one
}

var _ keyring.Epochs = (*Epochs)(nil)

// Epochs is what rotates and retires versions of the key, nil if Config.Epoch is not set.
func (k *KEK) Epochs() *Epochs { return k.epochs }

func newEpochs(k *KEK, limiter *rate.Limiter) (*Epochs, error) {
	e := &Epochs{kek: k, cfg: k.cfg}
	e.cfg.RoleID, e.cfg.SecretIDFile, e.cfg.Wrapped = k.cfg.Epoch.RoleID, k.cfg.Epoch.SecretIDFile, k.cfg.Epoch.Wrapped
	e.cfg.Logger = k.cfg.Logger.With("role", "epoch")
	var err error
	if e.client, err = newClient(k.cfg, k.transport, limiter); err != nil {
		return nil, err
	}
	e.client.SetCheckRetry(func(context.Context, *http.Response, error) (bool, error) { return false, nil })
	if e.bare, err = newClient(k.cfg, k.transport, limiter); err != nil {
		return nil, err
	}
	return e, nil
}

// keyState is what transit tells of a key, and no key material.
type keyState struct {
	Latest       uint64 `json:"latest_version"`
	MinDecrypt   uint64 `json:"min_decryption_version"`
	MinEncrypt   uint64 `json:"min_encryption_version"` // 0: the latest
	MinAvailable uint64 `json:"min_available_version"`  // 0: never trimmed
}

// Versions implements keyring.Epochs. Versions before min_decryption_version are in transit's archive until they
// are trimmed: raising it back would bring them to life again.
func (e *Epochs) Versions(ctx context.Context) (keyring.KEKVersions, error) {
	s, err := e.read(ctx)
	if err != nil {
		return keyring.KEKVersions{}, err
	}
	return keyring.KEKVersions{Newest: s.Latest, Oldest: max(s.MinDecrypt, 1), Minimum: max(s.MinAvailable, 1)}, nil
}

// Rotate implements keyring.Epochs.
func (e *Epochs) Rotate(ctx context.Context, from uint64) (uint64, error) {
	s, err := e.read(ctx)
	switch {
	case err != nil:
		return 0, err
	case s.Latest < from:
		return 0, fmt.Errorf("transit key is older than it was: %w", keys.ErrKEKMissing)
	case s.Latest > from:
		return s.Latest, nil
	}
	failed := e.write(ctx, "/rotate", nil)
	if s, err = e.read(ctx); err != nil {
		return 0, errors.Join(failed, err)
	}
	if s.Latest > from {
		return s.Latest, nil
	}
	return 0, undone(failed)
}

// Retire implements keyring.Epochs: it raises both minimum versions, which ends their use, and trims, which
// destroys them.
func (e *Epochs) Retire(ctx context.Context, oldest uint64) error {
	s, err := e.read(ctx)
	if err != nil {
		return err
	}
	if oldest > s.Latest {
		return fmt.Errorf("the newest version would be retired: %w", keys.ErrInvalid)
	}
	if s.MinDecrypt < oldest || s.MinEncrypt < oldest {
		failed := e.write(ctx, "/config", map[string]any{
			"min_decryption_version": max(s.MinDecrypt, oldest), "min_encryption_version": max(s.MinEncrypt, s.MinDecrypt, oldest),
		})
		if s, err = e.read(ctx); err != nil {
			return errors.Join(failed, err)
		}
		if s.MinDecrypt < oldest || s.MinEncrypt < oldest {
			return undone(failed)
		}
	}
	if s.MinAvailable < oldest {
		failed := e.write(ctx, "/trim", map[string]any{"min_available_version": oldest})
		if s, err = e.read(ctx); err != nil {
			return errors.Join(failed, err)
		}
		if s.MinAvailable < oldest {
			return undone(failed)
		}
	}
	return nil
}

// undone is the error of a request after which the key is as it was.
func undone(failed error) error {
	if failed != nil {
		return failed
	}
	return fmt.Errorf("HashiCorp Vault said that it was done, and it was not: %w", keys.ErrUnavailable)
}

// End implements keyring.Epochs: it revokes the token.
func (e *Epochs) End(context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.endLocked()
}

func (e *Epochs) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.endLocked()
}

func (e *Epochs) endLocked() {
	if e.session != nil {
		e.session.close()
		e.session = nil
	}
}

// current returns the session, and begins one if there is none.
func (e *Epochs) current() (*session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("session has ended: %w", keys.ErrUnavailable)
	}
	if e.session == nil {
		e.session = newSession(e.cfg, e.client, e.bare, &e.unwrapped)
	}
	return e.session, nil
}

func (e *Epochs) read(ctx context.Context) (s keyState, err error) {
	err = e.do(ctx, func(ctx context.Context, path string) error {
		answer, err := e.client.Logical().ReadWithContext(ctx, path)
		if err != nil {
			return err
		}
		if answer == nil {
			return fmt.Errorf("no such key: %w", keys.ErrKEKMissing)
		}
		text, err := json.Marshal(answer.Data) // numbers are json.Number
		if err == nil {
			err = json.Unmarshal(text, &s)
		}
		if err != nil || s.Latest == 0 || s.MinDecrypt > s.Latest {
			return fmt.Errorf("HashiCorp Vault described the key in another way: %w", keys.ErrUnavailable)
		}
		return nil
	})
	return s, err
}

// write makes one attempt. When it fails, it is open whether the key was changed.
func (e *Epochs) write(ctx context.Context, what string, body map[string]any) error {
	return e.do(ctx, func(ctx context.Context, path string) error {
		_, err := e.client.Logical().WriteWithContext(ctx, path+what, body)
		return err
	})
}

// do runs a request on the key's path, with one new login if the token has died: then nothing was done.
func (e *Epochs) do(ctx context.Context, request func(ctx context.Context, path string) error) error {
	session, err := e.current()
	if err != nil {
		return err
	}
	token, err := session.token(ctx, 0)
	if err != nil {
		return err
	}
	err = e.once(ctx, request)
	if !errors.Is(err, errDeadToken) {
		return err
	}
	if _, err = session.token(ctx, token); err != nil {
		return err
	}
	return e.once(ctx, request)
}

func (e *Epochs) once(ctx context.Context, request func(ctx context.Context, path string) error) error {
	if !e.kek.breaker.allows() {
		return fmt.Errorf("HashiCorp Vault gives no answer: %w", keys.ErrUnavailable)
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := request(ctx, e.cfg.Mount+"/keys/"+e.cfg.Key)
	var refusal *hcapi.ResponseError
	if outage := isOutage(err) && !isOurs(err); caller.Err() == nil || !outage {
		e.kek.breaker.record(outage)
	}
	if err == nil || isOurs(err) && !errors.As(err, &refusal) {
		return err
	}
	return callError(err)
}
