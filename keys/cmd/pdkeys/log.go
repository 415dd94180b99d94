package main

import (
	"io"
	"log/slog"
)

// logged are the attributes that may be logged. None of them can hold a key, a value of a field, or what
// identifies a person; an attribute that is not here is left out, whoever logs it.
var logged = map[string]bool{
	slog.TimeKey: true, slog.LevelKey: true, slog.MessageKey: true,

	"addr": true, "after": true, "attempt": true, "backoff": true, "bytes": true, "call": true, "caller": true, "changes": true,
	"code": true, "copy": true, "count": true, "dir": true, "error": true, "failure": true, "free": true, "generation": true,
	"hits": true, "id": true, "instance": true, "is": true, "items": true, "job": true, "kek": true, "kek_failures": true,
	"limit": true, "log": true, "magic": true, "misses": true, "op": true, "opens": true, "origin": true, "path": true, "phase": true,
	"pid": true, "retry": true, "role": true, "scope": true, "seconds": true, "sidecar": true, "signal": true, "size": true,
	"socket": true, "stack": true, "state": true, "status": true, "tables": true, "target": true, "took": true, "total": true, "ttl": true,
	"uid": true, "unwraps": true, "version": true, "wait": true, "was": true, "why": true, "witnessed": true,
}

// newLogger logs JSON lines to w.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if !logged[a.Key] {
				return slog.Attr{}
			}
			return a
		},
	}))
}
