package hcvault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	hcapi "github.com/hashicorp/vault/api"

	"github.com/prototypster/pdvault/keys"
)

const (
	minBackoff    = 1 * time.Second // also the least time between two logins
	maxBackoff    = 30 * time.Second
	maxSecretFile = 4 << 10
)

// session keeps a valid token in the client. One goroutine logs in, renews, and logs in again whenever
// renewal ends for whatever reason, or a caller has found the token dead. It never logs in more than once
// a second. After a failure it waits from 1 s up to 30 s, unless a caller needs the token and the failure
// was an outage: then it tries again within a second, so that an end of the outage is not missed.
type session struct {
	cfg    Config
	client *hcapi.Client // carries the token; everybody's
	bare   *hcapi.Client // for logins, so that a dead token is not sent along; owned by run
	wake   chan struct{} // a caller needs a token; capacity 1

	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}

	watchers sync.WaitGroup

	unwrapped *unwrapped // owned by run

	mu    sync.Mutex // guards state
	state sessionState
}

// unwrapped is what a wrapping token gave. It outlives a session, since the token cannot be used again.
type unwrapped struct{ wrappingToken, secretID string }

// sessionState is the outcome of the newest login.
type sessionState struct {
	login   uint64 // logins that succeeded so far; the number of the token in use
	dead    uint64 // the token with this number, and all before, are not valid
	err     error  // why there is no token; nil before the first login
	expires time.Time
	changed chan struct{} // closed when the state changes
}

func newSession(cfg Config, client, bare *hcapi.Client, u *unwrapped) *session {
	s := &session{cfg: cfg, client: client, bare: bare, wake: make(chan struct{}, 1), ended: make(chan struct{}), unwrapped: u}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.state.changed = make(chan struct{})
	go s.run()
	return s
}

// token waits until the client has a token that is not the one with number dead (0: any), and returns its
// number. It returns the failure of a login that happens while it waits, and at once when the last one was
// refused.
func (s *session) token(ctx context.Context, dead uint64) (uint64, error) {
	if s.ctx.Err() != nil {
		return 0, fmt.Errorf("session has ended: %w", keys.ErrUnavailable)
	}
	s.mu.Lock()
	s.state.dead = max(s.state.dead, dead)
	for {
		st := s.state
		if st.login > st.dead {
			s.mu.Unlock()
			return st.login, nil
		}
		s.mu.Unlock()
		if errors.Is(st.err, keys.ErrForbidden) {
			return 0, st.err
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting for a token: %w: %w", keys.ErrUnavailable, context.Cause(ctx))
		case <-s.ctx.Done():
			return 0, fmt.Errorf("session has ended: %w", keys.ErrUnavailable)
		}
		s.mu.Lock()
		if s.state.err != nil {
			err := s.state.err
			s.mu.Unlock()
			return 0, err
		}
	}
}

// valid is how long the token is valid still.
func (s *session) valid() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.login <= s.state.dead {
		return 0
	}
	return max(0, time.Until(s.state.expires))
}

// set changes the state and wakes who waits for that.
func (s *session) set(change func(*sessionState)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.state)
	close(s.state.changed)
	s.state.changed = make(chan struct{})
}

// run is the session's goroutine.
func (s *session) run() {
	defer close(s.ended)
	backoff := minBackoff
	for {
		started := time.Now()
		secret, err := s.login()
		if s.ctx.Err() != nil {
			return
		}
		if err != nil {
			s.cfg.Logger.Warn("login to HashiCorp Vault failed", "error", err, "retry", backoff)
			s.set(func(st *sessionState) { st.err = err })
			if !s.pause(started, backoff/2+rand.N(backoff/2+1), !errors.Is(err, keys.ErrForbidden)) {
				return
			}
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		backoff = minBackoff
		s.client.SetToken(secret.Auth.ClientToken)
		s.set(func(st *sessionState) {
			st.login++
			st.err = nil
			st.expires = time.Now().Add(time.Duration(secret.Auth.LeaseDuration) * time.Second)
		})
		s.cfg.Logger.Info("logged in to HashiCorp Vault", "seconds", secret.Auth.LeaseDuration)
		if !s.keep(secret) || !s.pause(started, 0, false) {
			return
		}
	}
}

// pause waits for d, but at least until a second after started; shorter than d when impatient and a
// caller needs a token. It returns false when the session ends.
func (s *session) pause(started time.Time, d time.Duration, impatient bool) bool {
	least := time.NewTimer(time.Until(started.Add(minBackoff)))
	defer least.Stop()
	select {
	case <-least.C:
	case <-s.ctx.Done():
		return false
	}
	rest := time.NewTimer(time.Until(started.Add(d)))
	defer rest.Stop()
	wake := s.wake
	if !impatient {
		wake = nil
	}
	select {
	case <-rest.C:
	case <-wake:
	case <-s.ctx.Done():
		return false
	}
	return true
}

// keep renews the token until that ends or a caller has found it dead. It returns false when the session
// ends.
func (s *session) keep(secret *hcapi.Secret) bool {
	watcher, err := s.client.NewLifetimeWatcher(&hcapi.LifetimeWatcherInput{Secret: secret})
	if err != nil {
		s.cfg.Logger.Error("token cannot be watched", "error", err)
		return true
	}
	// After Stop it may be in a request still, until the HTTP client's timeout; only close waits for that.
	s.watchers.Go(watcher.Start)
	defer watcher.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return false
		case err := <-watcher.DoneCh():
			// Nil as well: it is what comes for "permission denied" and for the end of the maximum TTL.
			s.cfg.Logger.Info("renewal of the token has ended", "error", err != nil)
			return true
		case r := <-watcher.RenewCh():
			s.set(func(st *sessionState) {
				if r.Secret != nil && r.Secret.Auth != nil {
					st.expires = time.Now().Add(time.Duration(r.Secret.Auth.LeaseDuration) * time.Second)
				}
			})
		case <-s.wake:
			s.mu.Lock()
			dead := s.state.login <= s.state.dead
			s.mu.Unlock()
			if dead {
				s.cfg.Logger.Warn("token is not valid any more")
				return true
			}
		}
	}
}

// login makes one attempt.
func (s *session) login() (*hcapi.Secret, error) {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	secretID, err := s.readSecretID(ctx)
	if err != nil {
		return nil, err
	}
	s.bare.SetToken("")
	secret, err := s.bare.Logical().WriteWithContext(ctx, "auth/"+s.cfg.AppRoleMount+"/login",
		map[string]any{"role_id": s.cfg.RoleID, "secret_id": secretID})
	if err != nil {
		var answer *hcapi.ResponseError
		if errors.As(err, &answer) && answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests {
			return nil, fmt.Errorf("login refused: %w", keys.ErrForbidden)
		}
		return nil, callError(err)
	}
	if secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "" {
		return nil, fmt.Errorf("login gave no token: %w", keys.ErrUnavailable)
	}
	return secret, nil
}

// readSecretID reads the secret id, which may be new since the last login. A wrapping token is used once;
// what it gave is remembered until the file holds another.
func (s *session) readSecretID(ctx context.Context) (string, error) {
	f, err := os.Open(s.cfg.SecretIDFile)
	if err != nil {
		return "", fmt.Errorf("file of the secret id cannot be opened: %w", keys.ErrForbidden)
	}
	defer f.Close()
	b := make([]byte, maxSecretFile)
	n, _ := f.Read(b)
	text := strings.TrimSpace(string(b[:n]))
	clear(b)
	if text == "" {
		return "", fmt.Errorf("file of the secret id is empty: %w", keys.ErrForbidden)
	}
	if !s.cfg.Wrapped {
		return text, nil
	}
	if text == s.unwrapped.wrappingToken {
		return s.unwrapped.secretID, nil
	}
	s.bare.SetToken(text)
	secret, err := s.bare.Logical().WriteWithContext(ctx, "sys/wrapping/unwrap", nil)
	if err != nil {
		var answer *hcapi.ResponseError
		if errors.As(err, &answer) && answer.StatusCode < 500 {
			s.cfg.Logger.Error("wrapping token of the secret id was used before or has expired: if nobody here used it, somebody else did")
			return "", fmt.Errorf("wrapping token refused: %w", keys.ErrForbidden)
		}
		return "", callError(err)
	}
	if secret == nil {
		return "", fmt.Errorf("unwrapping gave nothing: %w", keys.ErrUnavailable)
	}
	id, ok := secret.Data["secret_id"].(string)
	if !ok || id == "" {
		return "", fmt.Errorf("unwrapping gave no secret id: %w", keys.ErrForbidden)
	}
	*s.unwrapped = unwrapped{text, id}
	return id, nil
}

// close ends the session and revokes its token.
func (s *session) close() {
	s.cancel()
	<-s.ended
	s.watchers.Wait()
	if s.client.Token() != "" {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		_, _ = s.client.Logical().WriteWithContext(ctx, "auth/token/revoke-self", nil) // it expires anyway
		s.client.SetToken("")
	}
}
