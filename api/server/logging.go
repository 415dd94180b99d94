package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prototypster/pdvault/api"
)

// finish recovers from a panic of the handler, then counts and logs the request.
func (s *Server) finish(q *call, start time.Time) {
	if v := recover(); v != nil {
		if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(v)
		}
		// The value may hold anything, so only where it happened is said.
		s.log.LogAttrs(q.ctx, slog.LevelError, "handler panicked",
			slog.String("request", q.id), slog.String("route", q.route.Path), slog.String("at", panicSite()))
		if !q.gin.Writer.Written() {
			q.fail(errPanic)
		}
	}
	status := q.gin.Writer.Status()
	took := s.config.Now().Sub(start)
	q.route.metrics.observe(status, q.request.Caller.Role, took)
	if s.access == nil {
		return
	}
	level := levelOf(status)
	if !s.access.Enabled(q.ctx, level) {
		return
	}
	attrs := [...]slog.Attr{
		slog.String("method", q.route.Method),
		slog.String("route", q.route.Path),
		slog.Int("status", status),
		slog.String("caller", q.request.Caller.ID),
		slog.Duration("took", took),
		slog.String("request", q.id),
		slog.String("trace", q.request.Trace),
		slog.String("problem", strings.TrimPrefix(q.problem, api.ProblemPrefix)),
	}
	s.access.LogAttrs(q.ctx, level, "request", attrs[:]...)
}

func levelOf(status int) slog.Level {
	switch {
	case status >= 500:
		return slog.LevelError
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// failureAttrs describes a failure to the operator. The text of an error that the table knows is of our
// own making and names nobody; of any other only the types are said.
func failureAttrs(q *call, problem string, err error) []slog.Attr {
	text := err.Error()
	if problem == api.ProblemInternal {
		text = typesOf(err)
	}
	return []slog.Attr{
		slog.String("request", q.id), slog.String("route", q.route.Path),
		slog.String("problem", strings.TrimPrefix(problem, api.ProblemPrefix)), slog.String("error", text),
	}
}

// panicSite names the functions and lines above the panic.
func panicSite() string {
	pcs := make([]uintptr, 12)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs)])
	var b strings.Builder
	for {
		f, more := frames.Next()
		b.WriteString(f.Function)
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(f.Line))
		if !more {
			return b.String()
		}
		b.WriteByte(' ')
	}
}

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
