package daemon

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/keys"
)

// metrics counts what the parts report. Labels are codes and kinds; never a value or an id.
type metrics struct {
	decisions *prometheus.CounterVec
	served    prometheus.Counter
	fields    prometheus.Counter
	failed    *prometheus.CounterVec

	batchItems *prometheus.CounterVec
	batchTime  prometheus.Histogram

	rotationDone     *prometheus.GaugeVec
	rotationTotal    *prometheus.GaugeVec
	rotationFailed   *prometheus.CounterVec
	rotationResealed prometheus.Counter

	rpcItems  *prometheus.CounterVec
	rpcTime   *prometheus.HistogramVec
	rpcErrors *prometheus.CounterVec
}

func newMetrics(r *prometheus.Registry) *metrics {
	latency := prometheus.ExponentialBuckets(0.0001, 2, 16)
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_decisions_total", Help: "Decisions by action, ground, outcome and reason.",
		}, []string{"action", "ground", "decision", "reason"}),
		served: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pdvault_reads_served_total", Help: "Recorded reads that were served.",
		}),
		fields: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pdvault_fields_opened_total", Help: "Fields disclosed by served reads.",
		}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_reads_failed_total", Help: "Recorded reads that were not served, by reason.",
		}, []string{"reason"}),
		batchItems: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_ledger_entries_total", Help: "Ledger entries by outcome.",
		}, []string{"outcome"}),
		batchTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pdvault_ledger_commit_seconds", Help: "Time of one durable commit.", Buckets: latency,
		}),
		rotationDone: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pdvault_rotation_done", Help: "Subjects that the rotation under way has passed in its phase.",
		}, []string{"scope"}),
		rotationTotal: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pdvault_rotation_total", Help: "Subjects that the rotation under way has to pass in its phase.",
		}, []string{"scope"}),
		rotationFailed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_rotation_failed_total", Help: "Rotations that ended in a failure.",
		}, []string{"scope"}),
		rotationResealed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pdvault_rotation_resealed_total", Help: "Subjects whose records were sealed or indexed again.",
		}),
		rpcItems: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_sidecar_items_total", Help: "Items sent to the sidecar by kind of call.",
		}, []string{"kind"}),
		rpcTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pdvault_sidecar_call_seconds", Help: "Time of one call to the sidecar.", Buckets: latency,
		}, []string{"kind"}),
		rpcErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pdvault_sidecar_errors_total", Help: "Failed calls to the sidecar by kind and code.",
		}, []string{"kind", "code"}),
	}
	r.MustRegister(m.decisions, m.served, m.fields, m.failed, m.batchItems, m.batchTime,
		m.rotationDone, m.rotationTotal, m.rotationFailed, m.rotationResealed, m.rpcItems, m.rpcTime, m.rpcErrors,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Decided counts a decision.
func (m *metrics) Decided(action, ground, decision, reason string) {
	m.decisions.WithLabelValues(action, ground, decision, reason).Inc()
}

// Served counts a served read.
func (m *metrics) Served(fields int) {
	m.served.Inc()
	m.fields.Add(float64(fields))
}

// Failed counts a recorded read that was not served.
func (m *metrics) Failed(reason string) { m.failed.WithLabelValues(reason).Inc() }

// RotationProgress shows how far the rotation under way is.
func (m *metrics) RotationProgress(scope string, done, total int64) {
	m.rotationDone.WithLabelValues(scope).Set(float64(done))
	m.rotationTotal.WithLabelValues(scope).Set(float64(total))
}

// RotationResealed counts subjects that were sealed or indexed again.
func (m *metrics) RotationResealed(subjects int) { m.rotationResealed.Add(float64(subjects)) }

// RotationFailed counts a rotation that ended in a failure.
func (m *metrics) RotationFailed(scope string) { m.rotationFailed.WithLabelValues(scope).Inc() }

// Batch counts a call to the sidecar.
func (m *metrics) Batch(kind string, items int, took time.Duration, err error) {
	m.rpcItems.WithLabelValues(kind).Add(float64(items))
	m.rpcTime.WithLabelValues(kind).Observe(took.Seconds())
	if err != nil {
		m.rpcErrors.WithLabelValues(kind, keys.CodeOf(err).String()).Inc()
	}
}

// batch counts a commit of the ledger.
func (m *metrics) batch(s ledger.BatchStats) {
	m.batchItems.WithLabelValues("committed").Add(float64(s.Committed))
	m.batchItems.WithLabelValues("rejected").Add(float64(s.Rejected))
	m.batchItems.WithLabelValues("failed").Add(float64(s.Failed))
	m.batchTime.Observe(s.Took.Seconds())
}
