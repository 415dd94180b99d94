// Package server is pdvault's HTTP server: it authenticates, decodes strictly, asks the broker, and encodes
// what the broker answers. It is the one importer of gin.
//
// It decides nothing about access: who may read what is the broker's, and every read and denial is on record
// before an answer leaves. It keeps no state of its own but counters.
//
// The package must never log, count or repeat a value of a person, a token, a path or a query; write an
// answer that a cache may keep; or take a request that two readers could understand differently.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/api"
)

// Broker is what the server asks; *access.Broker is one. All methods may be called from any goroutine.
type Broker interface {
	Read(context.Context, access.ReadRequest) (access.ReadResult, error)
	ReadBatch(context.Context, access.BatchRequest) ([]access.BatchResult, error)
	Check(context.Context, access.ReadRequest) (access.CheckResult, error)
	Lookup(context.Context, access.LookupRequest) (access.LookupResult, error)
	Verify(context.Context, access.VerifyRequest) (access.VerifyResult, error)

	CreateSubject(context.Context, access.CreateRequest) (access.Written, error)
	PutRecord(context.Context, access.WriteRequest) (access.Written, error)
	PatchRecord(context.Context, access.WriteRequest) (access.Written, error)
	DeleteRecord(context.Context, access.WriteRequest) (access.Written, error)
	Describe(context.Context, access.Request, uuid.UUID) (access.SubjectInfo, error)
	SetRestriction(ctx context.Context, r access.Request, subject uuid.UUID, on bool, reason string) (access.Written, error)

	GiveConsent(context.Context, access.ConsentRequest) (access.Consent, error)
	WithdrawConsent(ctx context.Context, r access.Request, consent uuid.UUID) (access.Consent, error)
	Consents(ctx context.Context, r access.Request, subject uuid.UUID) ([]access.Consent, error)

	Entries(context.Context, access.Request, access.EntryFilter) (access.EntryPage, error)
	Entry(ctx context.Context, r access.Request, index int64) (access.Entry, error)
	Proof(ctx context.Context, r access.Request, index int64) ([]byte, error)
	LogCheckpoint(context.Context, access.Request) ([]byte, error)
	LogTile(ctx context.Context, r access.Request, path string) ([]byte, error)

	Policy(context.Context, access.Request) (access.PolicyVersion, []byte, error)
	PublishPolicy(ctx context.Context, r access.Request, raw []byte) (access.PolicyVersion, error)
	PolicyVersions(context.Context, access.Request) ([]access.PolicyVersion, error)
	PolicyVersion(ctx context.Context, r access.Request, version int64) (access.PolicyVersion, []byte, error)

	Erase(context.Context, access.EraseRequest) (erasure.Certificate, error)
	Erasure(ctx context.Context, r access.Request, id uuid.UUID) (erasure.Certificate, error)

	Keys(context.Context, access.Request) (access.KeysInfo, error)
	StartRotation(ctx context.Context, r access.Request, scope string, subject uuid.UUID) (access.Rotation, error)
	Rotations(context.Context, access.Request) ([]access.Rotation, error)
	Rotation(ctx context.Context, r access.Request, id uuid.UUID) (access.Rotation, error)

	// PermitBackup tells whether the caller may take a backup.
	PermitBackup(context.Context, access.Request) error

	LoginDenied(ctx context.Context, r access.Request, reason string)
}

var _ Broker = (*access.Broker)(nil)

// Check is one condition of readiness.
type Check struct {
	Name string // shown to anybody: it must say nothing but which part is meant
	Run  func(context.Context) error
}

// Config is what a Server is made of.
type Config struct {
	Broker        Broker        // required
	Authenticator Authenticator // required

	// Listen is the address to serve on: host:port, or unix:/path for a socket that only this user and its
	// group can reach. Required by Open.
	Listen string
	// TLS is required for every Listen that is neither loopback nor a Unix socket, unless PlainHTTP is set.
	// TLS 1.3 is demanded whatever it says.
	TLS *tls.Config
	// PlainHTTP allows Listen on any address without TLS. It is for a TLS-terminating proxy on a network that
	// nobody else can reach.
	PlainHTTP bool
	// MetricsListen is the address of a second listener that serves /metrics, /livez and /readyz alone, to
	// anybody who reaches it. Empty: none. With or without it, /metrics on Listen is for the roles security
	// and auditor.
	MetricsListen string

	Metrics *Metrics // nil: made on Registry
	// Registry collects what /metrics shows; other parts add their collectors to it. Nil: a new one.
	Registry *prometheus.Registry
	Checks   []Check // of /readyz; none: always ready

	Logger    *slog.Logger // of failures. Nil: none
	AccessLog *slog.Logger // one line for each request. Nil: none

	// Backup streams an archive of the data store, for who may take one. Nil: there is nothing to back up.
	Backup func(ctx context.Context, w io.Writer) error

	Issuer Issuer // for consent receipts; zero: they name the operator as "operator"

	MaxConnections  int           // 0: 1,024
	MaxInFlight     int           // requests that the broker works on at once, weighed by their bodies, of which one caller gets three quarters. 0: 512
	RequestTimeout  time.Duration // of one request. 0: 10 s
	ShutdownTimeout time.Duration // for requests in flight when Serve ends. 0: 10 s
	Now             func() time.Time
}

// Issuer is what consent receipts say about the operator.
type Issuer struct {
	Controller       api.ReceiptParty
	Jurisdiction     string
	StorageLocations []string
	RetentionPeriod  string // ISO 8601 duration
}

// Server serves the API. New is cheap; Open takes the listeners; Serve blocks.
type Server struct {
	broker  Broker
	auth    Authenticator
	config  Config
	log     *slog.Logger
	access  *slog.Logger
	metrics *Metrics
	ready   readiness
	load    *load
	engine  *gin.Engine
	routes  []Route

	http, ops         *http.Server
	listener, opsLsnr net.Listener // set by Open, before Serve
}

// ginMode sets gin's process-wide mode once; there is no mode per engine.
var ginMode = sync.OnceFunc(func() { gin.SetMode(gin.ReleaseMode) })

// New checks c and returns a Server that is not listening yet.
func New(c Config) (*Server, error) {
	switch {
	case c.Broker == nil:
		return nil, errors.New("server: a Broker is required")
	case c.Authenticator == nil:
		return nil, errors.New("server: an Authenticator is required")
	case c.MaxConnections < 0 || c.MaxInFlight < 0:
		return nil, errors.New("server: limits must not be negative")
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Metrics == nil {
		m, err := NewMetrics(c.Registry)
		if err != nil {
			return nil, err
		}
		c.Metrics = m
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 1024
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = maxInFlight
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 10 * time.Second
	}
	if c.ShutdownTimeout == 0 {
		c.ShutdownTimeout = 10 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Issuer.Controller.PartyID == "" {
		c.Issuer.Controller.PartyID = "operator"
	}
	s := &Server{
		broker: c.Broker, auth: c.Authenticator, config: c, log: c.Logger, access: c.AccessLog,
		metrics: c.Metrics, ready: readiness{checks: c.Checks, now: c.Now}, load: newLoad(c),
	}
	s.engine = s.newEngine()
	s.http = s.newHTTP(s.engine)
	if c.TLS != nil {
		s.http.TLSConfig = c.TLS.Clone()
		s.http.TLSConfig.MinVersion = tls.VersionTLS13
	}
	s.ops = s.newHTTP(s.opsHandler())
	return s, nil
}

// newEngine builds gin by hand: nothing of what it does by default is left on.
func (s *Server) newEngine() *gin.Engine {
	ginMode()
	r := gin.New()
	if err := r.SetTrustedProxies(nil); err != nil {
		panic("server: gin refuses to trust nobody: " + err.Error())
	}
	r.ForwardedByClientIP = false
	r.RemoteIPHeaders = nil
	r.RedirectTrailingSlash, r.RedirectFixedPath, r.RemoveExtraSlash = false, false, false
	r.HandleMethodNotAllowed = true
	r.UseRawPath, r.UnescapePathValues = true, false
	s.register(r)
	return r
}

func (s *Server) newHTTP(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100, MaxReadFrameSize: 64 << 10},
		// OPTIONS * is refused like any other call that there is not.
		DisableGeneralOptionsHandler: true,
		// net/http quotes addresses, and sometimes bytes of a request, in its own messages.
		ErrorLog: slog.NewLogLogger(redacting{s.log.Handler()}, slog.LevelDebug),
	}
}

// Handler returns the API without listeners, for tests and for embedding.
func (s *Server) Handler() http.Handler { return s.engine }

// Routes lists what the server answers, as registered.
func (s *Server) Routes() []Route { return append([]Route(nil), s.routes...) }

// Open takes the listeners, so that the addresses are known and a taken port is an error before anything
// is served.
func (s *Server) Open() error {
	if s.listener != nil {
		return errors.New("server: is open")
	}
	if s.config.TLS == nil && !s.config.PlainHTTP && !isLocal(s.config.Listen) {
		return errors.New("server: an address beyond this host needs TLS, or PlainHTTP behind a proxy")
	}
	l, err := listen(s.config.Listen)
	if err != nil {
		return err
	}
	if s.config.MetricsListen != "" {
		ops, err := listen(s.config.MetricsListen)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		s.opsLsnr = netutil.LimitListener(ops, 64)
	}
	c := newConnections(l, s.config.MaxConnections, s.metrics)
	s.listener, s.http.ConnState, s.http.ConnContext = c, c.state, c.context
	return nil
}

// Addr is the address that is served on; nil before Open.
func (s *Server) Addr() net.Addr { return addrOf(s.listener) }

// MetricsAddr is the address of the second listener; nil before Open and when there is none.
func (s *Server) MetricsAddr() net.Addr { return addrOf(s.opsLsnr) }

func addrOf(l net.Listener) net.Addr {
	if l == nil {
		return nil
	}
	return l.Addr()
}

// Serve answers until ctx ends or a listener fails, then lets the requests in flight finish, for at most
// ShutdownTimeout. The listeners are closed when it returns. A ctx that ended is not an error.
func (s *Server) Serve(ctx context.Context) error {
	if s.listener == nil {
		return errors.New("server: is not open")
	}
	failed := make(chan error, 2)
	running := 1
	go func() {
		if s.http.TLSConfig != nil {
			failed <- s.http.ServeTLS(s.listener, "", "")
			return
		}
		failed <- s.http.Serve(s.listener)
	}()
	if s.opsLsnr != nil {
		running++
		go func() { failed <- s.ops.Serve(s.opsLsnr) }()
	}
	var cause error
	select {
	case <-ctx.Done():
	case cause = <-failed:
		running--
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.ShutdownTimeout)
	defer cancel()
	err := errors.Join(s.http.Shutdown(stop), s.ops.Shutdown(stop))
	if err != nil {
		err = errors.Join(err, s.http.Close(), s.ops.Close())
	}
	for range running {
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
			cause = errors.Join(cause, e)
		}
	}
	if cause != nil {
		return fmt.Errorf("serving: %w", errors.Join(cause, err))
	}
	return err
}

func listen(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("removing the old socket: %w", err)
			}
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return nil, fmt.Errorf("listening: %w", err)
		}
		if err := os.Chmod(path, 0o660); err != nil {
			return nil, errors.Join(fmt.Errorf("listening: %w", err), l.Close())
		}
		return l, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return l, nil
}

// isLocal reports whether address can be reached from this host only.
func isLocal(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
