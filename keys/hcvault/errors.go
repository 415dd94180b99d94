package hcvault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	hcapi "github.com/hashicorp/vault/api"

	"github.com/prototypster/pdvault/keys"
)

// errDeadToken is what a call gets whose token is not valid any more. It does not leave the package.
var errDeadToken = fmt.Errorf("token is not valid: %w", keys.ErrForbidden)

// What HashiCorp Vault's texts mean. It has no codes, so its words are matched here and nowhere else; the
// tests against a real server notice when they change.
var meanings = []struct {
	text string
	err  error
}{
	{"cipher: message authentication failed", keys.ErrTampered},
	{"invalid ciphertext: version is too new", keys.ErrKEKMissing}, // the key was put back to an older state
	{"disallowed by policy (too old)", keys.ErrKEKRetired},
	{"encryption key not found", keys.ErrKEKMissing},
	{"invalid ciphertext", keys.ErrTampered},
}

// meaning turns a text of HashiCorp Vault into a sentinel. The text itself is not repeated: it may quote
// what was sent. What is not known is ErrUnavailable, never an answer about the data.
func meaning(text string) error {
	for _, m := range meanings {
		if strings.Contains(text, m.text) {
			return m.err
		}
	}
	return fmt.Errorf("HashiCorp Vault refused an item: %w", keys.ErrUnavailable)
}

// callError turns the failure of a whole request into a sentinel.
func callError(err error) error {
	var answer *hcapi.ResponseError
	if !errors.As(err, &answer) {
		switch {
		case errors.Is(err, context.Canceled):
			return fmt.Errorf("HashiCorp Vault: %w: %w", keys.ErrUnavailable, context.Canceled)
		case isTimeout(err):
			return fmt.Errorf("HashiCorp Vault does not answer: %w: %w", keys.ErrUnavailable, context.DeadlineExceeded)
		}
		return fmt.Errorf("HashiCorp Vault cannot be reached: %w", keys.ErrUnavailable)
	}
	said := func(text string) bool {
		for _, e := range answer.Errors {
			if strings.Contains(e, text) {
				return true
			}
		}
		return false
	}
	switch {
	case answer.StatusCode == http.StatusForbidden && said("invalid token"):
		return errDeadToken
	case answer.StatusCode == http.StatusForbidden:
		return keys.ErrForbidden
	case answer.StatusCode == http.StatusServiceUnavailable && said("Vault is sealed"):
		return keys.ErrSealed
	case answer.StatusCode == http.StatusNotFound:
		// No such mount, or no such key on a path that we may not create on.
		return keys.ErrKEKMissing
	case answer.StatusCode == http.StatusBadRequest:
		for _, e := range answer.Errors {
			if err := meaning(e); !errors.Is(err, keys.ErrUnavailable) {
				return err
			}
		}
	}
	return fmt.Errorf("HashiCorp Vault answered %d: %w", answer.StatusCode, keys.ErrUnavailable)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// isOutage reports whether no answer came at all: what the breaker counts.
func isOutage(err error) bool {
	var answer *hcapi.ResponseError
	return err != nil && !errors.As(err, &answer) && !errors.Is(err, context.Canceled)
}

// isOurs reports whether err is a sentinel already.
func isOurs(err error) bool {
	return errors.Is(err, keys.ErrUnavailable) || errors.Is(err, keys.ErrKEKMissing)
}
