package server

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
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

// operators are the roles that may see metrics on the main listener.
var operators = []string{policy.RoleSecurity, policy.RoleAuditor}
