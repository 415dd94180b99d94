package server

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"github.com/prototypster/pdvault/access/policy"
)

// Metrics counts what the server answers; what the broker decides is counted where the broker is wired.
// Labels are templates, codes and roles, never values; each set of labels is bounded.
type Metrics struct {
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	registry *prometheus.Registry

	inFlight    prometheus.Gauge
	shed        *prometheus.CounterVec
	connections prometheus.Gauge
	evicted     prometheus.Counter
}

// NewMetrics registers the collectors on registry, which is also what /metrics shows.
func NewMetrics(registry *prometheus.Registry) (*Metrics, error) {
	m := &Metrics{
		registry: registry,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_http_requests_total", Help: "Requests by route, status and role of the caller.",
		}, []string{"method", "route", "status", "role"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pdvault_http_request_duration_seconds", Help: "Time to answer, from the parsed head to the written body.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pdvault_http_in_flight", Help: "What is used of limits.in_flight.",
		}),
		shed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_http_shed_total", Help: "Requests and connections that were refused since too much was under way, by the limit that was met.",
		}, []string{"limit"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pdvault_http_connections", Help: "Open connections.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pdvault_http_connections_evicted_total", Help: "Connections without a request that were closed to make room.",
		}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.latency, m.inFlight, m.shed, m.connections, m.evicted} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

// routeMetrics are the metrics of one route, looked up once.
type routeMetrics struct {
	method, route string
	requests      *prometheus.CounterVec
	latency       prometheus.Observer
	kept          *sync.Map // outcome to prometheus.Counter
}

type outcome struct {
	status int
	role   string
}

func (m *Metrics) route(method, route string) routeMetrics {
	return routeMetrics{method, route, m.requests, m.latency.WithLabelValues(method, route), new(sync.Map)}
}

var roles = []string{policy.RoleService, policy.RolePartner, policy.RolePrivacyOfficer, policy.RoleLegal, policy.RoleSecurity, policy.RoleAuditor}

func (m routeMetrics) observe(status int, role string, took time.Duration) {
	m.latency.Observe(took.Seconds())
	key := outcome{status, role}
	if c, ok := m.kept.Load(key); ok {
		c.(prometheus.Counter).Inc()
		return
	}
	if role != "" && !slices.Contains(roles, role) {
		key.role = "other"
	}
	c := m.requests.WithLabelValues(m.method, m.route, strconv.Itoa(status), key.role)
	m.kept.Store(key, c)
	c.Inc()
}

// gather writes the registry in the text format.
func (m *Metrics) gather() ([]byte, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("gathering metrics: %w", err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, fmt.Errorf("writing metrics: %w", err)
		}
	}
	return b.Bytes(), nil
}

func metricsPage(q *call) (reply, error) {
	b, err := q.server.metrics.gather()
	return reply{status: http.StatusOK, media: "text/plain; version=0.0.4; charset=utf-8", body: b}, err
}

// opsHandler serves the second listener.
func (s *Server) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, health(nil, nil)) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { writeHealth(w, s.ready.check(r.Context())) })
	return mux
}
