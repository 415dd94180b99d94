package kv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// maxRetries is how often Retry repeats a transaction; then the caller decides.
const maxRetries = 5

// Retry is how an engine carries out Update: it calls try until that meets no conflict, with random pauses between,
// the first shorter than pause and each bound twice the one before. What try returned last is returned, or after the
// last try an error that names the engine and wraps [ErrConflict], or that of ctx when it ended during a pause.
func Retry(ctx context.Context, engine string, pause time.Duration, try func() (conflict bool, err error)) error {
	for attempt := 0; ; attempt++ {
		conflict, err := try()
		if !conflict {
			return err
		}
		if attempt == maxRetries {
			return fmt.Errorf("%s: gave up after %d attempts: %w", engine, attempt+1, ErrConflict)
		}
		t := time.NewTimer(rand.N(pause << attempt))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}
