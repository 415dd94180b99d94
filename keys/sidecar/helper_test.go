package sidecar_test

import (
	"context"
	"log/slog"
	"testing"
)

func contextFor(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
