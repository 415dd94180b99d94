package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
)

// Media types of responses.
const (
	mediaProblem = api.ProblemMediaType
	mediaText    = "text/plain; charset=utf-8"
	mediaBytes   = "application/octet-stream"
	mediaHTML    = "text/html; charset=utf-8"
)

// Route is one call of the API.
type Route struct {
	Method string
	Path   string // gin's template

	query    []string // parameters that it knows
	body     int64    // bytes that its body may have; 0: it takes none
	media    string   // of the body; empty: application/json
	optional bool     // the body may be absent
	open     bool     // needs no authentication
	roles    []string // that may call it, when that is not the broker's to say
	large    bool     // the answer may take much memory

	run     func(*call) (reply, error)
	metrics routeMetrics
}

// call is one request on its way. It lives on the stack of one goroutine and never outlives the request.
type call struct {
	server  *Server
	gin     *gin.Context
	ctx     context.Context
	route   *Route
	id      string
	request access.Request
	query   parameters
	body    []byte
	read    bool   // the body was read to its end
	large   bool   // counts among what takes much memory
	share   *share // of the caller; nil until it is known
	problem string // type of the problem that it was answered with; empty: none
}

// reply is what a handler answers.
type reply struct {
	status   int
	media    string // empty: application/json
	version  uint64 // ETag; 0: none
	records  string // Access-Record; empty: none
	location string
	digest   string // Repr-Digest; empty: none
	body     []byte
	wipe     bool // the body holds plaintext: overwrite it when it is written
	// stream writes a body of unknown length instead; see backup.go. It may take longer than a request.
	stream func(ctx context.Context, w io.Writer) error
}

// endpoint makes a handler of f, which gets the strictly decoded body.
func endpoint[B any](f func(*call, *B) (reply, error)) func(*call) (reply, error) {
	return func(q *call) (reply, error) {
		var b B
		if len(q.body) > 0 {
			if err := decode(q.body, &b); err != nil {
				return reply{}, err
			}
		}
		return f(q, &b)
	}
}

// ok answers with v as JSON.
func ok(status int, v any) (reply, error) { return reply{status: status, body: encodeJSON(v)}, nil }

// encodeJSON encodes a struct of package api.
func encodeJSON(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		panic("server: answer cannot be encoded: " + err.Error()) // plain structs: a bug here, not input
	}
	return b
}

// handle is the one way a request takes: identify, authenticate, read the body, run, answer.
func (s *Server) handle(route *Route) gin.HandlerFunc {
	return func(c *gin.Context) {
		start := s.config.Now()
		ctx, cancel := context.WithTimeout(c.Request.Context(), s.config.RequestTimeout)
		defer cancel()
		q := call{server: s, gin: c, ctx: ctx, route: route, id: newRequestID()}
		defer s.finish(&q, start)
		q.identify()
		q.begin()
		defer q.leave()
		r, err := q.serve()
		if err != nil {
			q.fail(err)
			return
		}
		q.answer(r)
	}
}

// always reports whether a call is answered whatever else is under way: it costs little, and tells how things are.
func (r *Route) always() bool { return r.open || len(r.roles) > 0 }

func (q *call) serve() (reply, error) {
	if err := q.enter(); err != nil {
		return reply{}, err
	}
	if err := q.authenticate(); err != nil {
		return reply{}, err
	}
	if !q.route.open {
		q.share = q.server.load.join(q.request.Caller.ID)
	}
	r, route := q.gin.Request, q.route
	var err error
	if q.query, err = parseQuery(r.URL.RawQuery, route.query); err != nil {
		return reply{}, err
	}
	if route.body > 0 {
		media := route.media
		if media == "" {
			media = mediaJSON
		}
		if q.body, err = readBody(q.gin.Writer, r, media, route.body, route.optional, q.takeLarge); err != nil {
			return reply{}, err
		}
		q.read = true
		if len(q.body) == 0 && !route.optional {
			return reply{}, invalid("", "a body is required")
		}
	} else if r.ContentLength != 0 {
		return reply{}, invalid("", "this call takes no body")
	}
	if route.always() {
		return route.run(q)
	}
	if route.large {
		if err := q.takeLarge(); err != nil {
			return reply{}, err
		}
	}
	weight := q.server.load.weightOf(len(q.body))
	if err := q.server.load.begin(q.ctx, q.share, weight); err != nil {
		return reply{}, err
	}
	defer q.server.load.done(q.share, weight)
	return route.run(q)
}

// identify notes where the request comes from and which trace it belongs to.
func (q *call) identify() {
	r := q.gin.Request
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		q.request.Client = host
	}
	if values := r.Header["Traceparent"]; len(values) == 1 {
		q.ctx = propagation.TraceContext{}.Extract(q.ctx, propagation.HeaderCarrier(r.Header))
		if sc := trace.SpanContextFromContext(q.ctx); sc.HasTraceID() {
			q.request.Trace = sc.TraceID().String()
		}
	}
}

func (q *call) authenticate() error {
	if q.route.open {
		return nil
	}
	caller, err := q.server.auth.Authenticate(q.gin.Request)
	if err != nil {
		if errors.Is(err, ErrBadCredentials) {
			q.server.broker.LoginDenied(q.ctx, q.request, "bad-credentials")
		}
		return err
	}
	q.request.Caller = caller
	if len(q.route.roles) == 0 {
		return nil
	}
	for _, role := range q.route.roles {
		if caller.Role == role {
			return nil
		}
	}
	return errRoleMissing
}

// newRequestID returns 128 random bits in hex. It names a request in logs and answers, nothing depends on
// its being secret.
func newRequestID() string {
	const digits = "0123456789abcdef"
	var b [32]byte
	for i := 0; i < len(b); i += 16 {
		for j, v := 0, rand.Uint64(); j < 16; j, v = j+1, v>>4 {
			b[i+j] = digits[v&15]
		}
	}
	return string(b[:])
}

// Values of headers that every answer has. They are shared: appending to one would copy it.
var (
	headerNoStore    = []string{"no-store"}
	headerNoSniff    = []string{"nosniff"}
	headerCSP        = []string{"default-src 'none'; frame-ancestors 'none'"}
	headerCSPPage    = []string{"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	headerNoReferrer = []string{"no-referrer"}
	headerHSTS       = []string{"max-age=31536000"}
	headerJSON       = []string{mediaJSON}
	headerClose      = []string{"close"}
)

// begin sets the headers that every answer has.
func (q *call) begin() {
	r, h := q.gin.Request, q.gin.Writer.Header()
	setHeaders(h, q.id, r.TLS != nil)
	// A request with a length and chunks has chunks, says RFC 9112, and its answer the end of the connection: who reads
	// it by the length takes the rest for something else. net/http has thrown the length away by now, and goes on.
	if len(r.TransferEncoding) > 0 || onSpare(q.ctx) {
		h["Connection"] = headerClose
	}
}

func setHeaders(h http.Header, requestID string, secure bool) {
	h["Cache-Control"] = headerNoStore
	h["X-Content-Type-Options"] = headerNoSniff
	h["Content-Security-Policy"] = headerCSP
	h["Referrer-Policy"] = headerNoReferrer
	h[api.HeaderRequestID] = []string{requestID}
	if secure {
		h["Strict-Transport-Security"] = headerHSTS
	}
}

func (q *call) answer(r reply) {
	h := q.gin.Writer.Header()
	if r.version > 0 {
		h["Etag"] = []string{etag(r.version)}
	}
	if r.records != "" {
		h[api.HeaderAccessRecord] = []string{r.records}
	}
	if r.location != "" {
		h["Location"] = []string{r.location}
	}
	if r.digest != "" {
		h["Repr-Digest"] = []string{r.digest}
	}
	media := r.media
	switch media {
	case "":
		media = mediaJSON
	case mediaHTML:
		h["Content-Security-Policy"] = headerCSPPage // a page of ours has its style in itself, and nothing else
	}
	if r.stream != nil {
		q.stream(r.status, media, r.stream)
		return
	}
	q.write(r.status, media, r.body)
	if r.wipe {
		release(r.body)
	}
}

// write sends the head and the whole body. That the client may not get it changes nothing: what happened
// is on record.
func (q *call) write(status int, media string, body []byte) {
	h := q.gin.Writer.Header()
	if status != http.StatusNoContent {
		if media == mediaJSON {
			h["Content-Type"] = headerJSON
		} else {
			h["Content-Type"] = []string{media}
		}
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	q.gin.Writer.WriteHeader(status)
	if len(body) > 0 {
		_, _ = q.gin.Writer.Write(body)
	} else {
		q.gin.Writer.WriteHeaderNow()
	}
}

func etag(version uint64) string {
	b := make([]byte, 0, 22)
	b = append(b, '"')
	b = strconv.AppendUint(b, version, 10)
	return string(append(b, '"'))
}

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

// Helpers of handlers.

func (q *call) param(name string) string { return q.gin.Params.ByName(name) }

func (q *call) subject() (uuid.UUID, error) { return parseID("id", q.param("id")) }

func (q *call) collection() (string, error) { return parseName("collection", q.param("collection")) }

// reasons returns what Access-Reference and Access-Justification say.
func (q *call) reasons() (reference, justification string, err error) {
	h := q.gin.Request.Header
	if reference, err = freeText(h, api.HeaderReference, api.MaxReference); err != nil {
		return "", "", err
	}
	justification, err = freeText(h, api.HeaderJustification, api.MaxJustification)
	return reference, justification, err
}

func recordHeader(index int64) string { return strconv.FormatInt(index, 10) }

// operators are the roles that may see metrics on the main listener.
var operators = []string{policy.RoleSecurity, policy.RoleAuditor}
