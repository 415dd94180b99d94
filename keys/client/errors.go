package client

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// rpcError is the error of a call that carries one caller's request: that caller's context if it ended, and
// otherwise that of sidecarError.
func rpcError(ctx context.Context, op string, err error) error {
	return callError(ctx, op, sidecarError(err))
}

// callError is rpcError of an error that is a sentinel already.
func callError(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil && errors.Is(err, keys.ErrUnavailable) {
		err = ctx.Err()
	}
	return fmt.Errorf("%s: %w", op, err)
}

// sidecarError turns the failure of a whole call into a sentinel: the one that the sidecar attached, and
// otherwise keys.ErrUnavailable.
func sidecarError(err error) error {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if item, ok := d.(*keyspb.OpenedItem); ok && item.Code != keyspb.Code_OK {
			return refusal(item.Code, item.Why)
		}
	}
	if st.Code() == codes.DeadlineExceeded {
		return fmt.Errorf("no answer in time: %w", keys.ErrUnavailable)
	}
	// The text of st is not taken over: it may come from the other side.
	return fmt.Errorf("%v: %w", st.Code(), keys.ErrUnavailable)
}

// refusal is the error of a code, with the check that refused when the sidecar named one.
func refusal(code keyspb.Code, why string) error {
	err := keys.ErrorOf(code)
	if err == nil || !isReason(why) {
		return err
	}
	return fmt.Errorf("%s: %w", why, err)
}

// malformed is the error for an answer of the wrong shape. Nothing is taken from such an answer.
func malformed(op string) error {
	return fmt.Errorf("%s: malformed answer: %w", op, keys.ErrUnavailable)
}

// isReason reports whether s is a code as sidecars give, fit for logs.
func isReason(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 40
}

func isName(s string) bool { return s != "" && len(s) <= maxName && isText(s) }

func isText(s string) bool { return utf8.ValidString(s) }
