package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// redacting passes on that net/http had something to say, but only the beginning of it, which is net/http's
// own; what follows may be bytes or addresses of a client.
type redacting struct{ slog.Handler }

func (r redacting) Handle(ctx context.Context, record slog.Record) error {
	kept := slog.NewRecord(record.Time, record.Level, "net/http: "+category(record.Message), record.PC)
	return r.Handler.Handle(ctx, kept)
}

func category(message string) string {
	for _, known := range []string{"http: TLS handshake error", "http: Accept error", "http: panic serving", "http2:", "http: superfluous response.WriteHeader"} {
		if strings.HasPrefix(message, known) {
			return strings.TrimPrefix(known, "http: ")
		}
	}
	return "other"
}

// typesOf names the types of an error's chain.
func typesOf(err error) string {
	var names []string
	for ; err != nil && len(names) < 8; err = errors.Unwrap(err) {
		names = append(names, fmt.Sprintf("%T", err))
	}
	return strings.Join(names, " ")
}
