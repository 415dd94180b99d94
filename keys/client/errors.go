package client

import (
	"context"
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// rpcError turns the failure of a whole call into a sentinel: the one that the sidecar attached, the
// caller's own context (ctx may be nil), and otherwise keys.ErrUnavailable.
func rpcError(ctx context.Context, op string, err error) error {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if item, ok := d.(*keyspb.OpenedItem); ok && item.Code != keyspb.Code_OK {
			return fmt.Errorf("%s: %w", op, refusal(item.Code, item.Why))
		}
	}
	if ctx != nil && ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	if st.Code() == codes.DeadlineExceeded {
		return fmt.Errorf("%s: no answer in time: %w", op, keys.ErrUnavailable)
	}
	// The text of st is not taken over: it may come from the other side.
	return fmt.Errorf("%s: %v: %w", op, st.Code(), keys.ErrUnavailable)
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
