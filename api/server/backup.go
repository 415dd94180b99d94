package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// backup streams an archive of the data store.
func backup(q *call) (reply, error) {
	if err := q.server.broker.PermitBackup(q.ctx, q.request); err != nil {
		return reply{}, err
	}
	if q.server.config.Backup == nil {
		return reply{}, errNoRoute
	}
	q.server.log.LogAttrs(q.ctx, slog.LevelInfo, "backup is being taken",
		slog.String("request", q.id), slog.String("caller", q.request.Caller.ID))
	return reply{status: http.StatusOK, media: mediaBytes, stream: q.server.config.Backup}, nil
}

// streamIdle bounds how long a client may take to accept one piece of a stream, whatever the whole takes.
const streamIdle = 30 * time.Second

// stream answers with what write writes, as it comes. A failure before the first byte is answered like any other;
// after it the connection is cut, so that the client cannot take what it got for the whole.
func (q *call) stream(status int, media string, write func(context.Context, io.Writer) error) {
	// The request's own context, not that of an ordinary call: a stream may take longer than RequestTimeout.
	s := &streamWriter{call: q, control: http.NewResponseController(q.gin.Writer), status: status, media: media}
	err := s.extend()
	if err == nil {
		err = write(q.gin.Request.Context(), s)
	}
	switch {
	case err == nil && !s.begun:
		q.write(status, media, nil)
	case err == nil:
	case !s.begun:
		q.fail(err)
	default:
		p, _ := problemOf(q.gin.Request.Context(), err)
		q.problem = p.Type
		q.server.log.LogAttrs(q.ctx, slog.LevelError, "stream was cut off", failureAttrs(q, p.Type, err)...)
		panic(http.ErrAbortHandler)
	}
}

// streamWriter writes the head before the first piece, and gives each piece its own deadline.
type streamWriter struct {
	call    *call
	control *http.ResponseController
	status  int
	media   string
	begun   bool
}

func (s *streamWriter) Write(b []byte) (int, error) {
	if err := s.extend(); err != nil {
		return 0, err
	}
	if !s.begun {
		s.begun = true
		s.call.gin.Writer.Header()["Content-Type"] = []string{s.media}
		s.call.gin.Writer.WriteHeader(s.status)
	}
	n, err := s.call.gin.Writer.Write(b)
	if err != nil {
		err = fmt.Errorf("writing to the client: %w", err)
	}
	return n, err
}

// extend moves the deadlines of the connection. The one for reading matters too: net/http reads ahead, and takes
// its end for that of the client.
func (s *streamWriter) extend() error {
	deadline := time.Now().Add(streamIdle) // of the connection, which knows no other clock
	for _, set := range []func(time.Time) error{s.control.SetWriteDeadline, s.control.SetReadDeadline} {
		if err := set(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return fmt.Errorf("extending the deadline of a stream: %w", err)
		}
	}
	return nil
}
