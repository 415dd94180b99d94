// Package report keeps what a benchmark has measured and shows it: tables as text and in Markdown, a JSON file, plots,
// and the page that holds all of them with the command, the machine and the date.
//
// It must never leave out a failure, nor compare figures of different runs or of different numbers of connections.
package report

import (
	"encoding/json"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
)

// Results are one run of the benchmarks.
type Results struct {
	Date    time.Time `json:"date"`
	Took    float64   `json:"took_seconds"`
	Command string    `json:"command"`
	Machine string    `json:"machine"`
	Load    string    `json:"load_average"`     // at the start, when nothing of this run was under way
	Caveat  string    `json:"caveat,omitempty"` // what makes these figures less than they seem
	Rows    []Row     `json:"rows"`
	Sizes   []Size    `json:"sizes"`
	Notes   []Note    `json:"notes"`
}

// Class says what may be compared with what.
type Class string

// Classes of rows.
const (
	Read  Class = "read"
	Write Class = "write"
	Other Class = "other" // compared with bare HTTP only
)

// Baselines, in the order in which they are shown.
const (
	Gin      = "bare gin"
	Badger   = "raw Badger"
	KV       = "HashiCorp KV v2"
	Transit  = "HashiCorp transit"
	Postgres = "PostgreSQL"
)

var baselines = []string{Gin, Badger, KV, Transit, Postgres}

// Row is one measurement.
type Row struct {
	What        string  `json:"what"`
	Class       Class   `json:"class"`
	Baseline    string  `json:"baseline,omitempty"` // which one it is the figure of; empty: pdvault was measured
	Subjects    int     `json:"subjects,omitempty"`
	Connections int     `json:"connections"`
	Offered     float64 `json:"offered,omitempty"` // requests due per second in an open run; 0: a closed run
	Requests    int64   `json:"requests"`
	Failed      int64   `json:"failed"`
	Unsent      int64   `json:"unsent"`
	PerSecond   float64 `json:"per_second"` // records, not requests
	P50         float64 `json:"p50_ms"`
	P99         float64 `json:"p99_ms"`
	P999        float64 `json:"p999_ms"`
	Max         float64 `json:"max_ms"`
	VaultCPU    float64 `json:"vault_cpu_us,omitempty"` // processor time of pdvault per record
	KeysCPU     float64 `json:"keys_cpu_us,omitempty"`  // and of pdkeys
	Commits     string  `json:"commits,omitempty"`      // how many entries shared a commit of the ledger, and its time
	Calls       string  `json:"calls,omitempty"`        // how many items shared a call to the sidecar, and its time
}

// Measured fills in what a run of requests about records each has shown.
func (r Row) Measured(l load.Result, records int) Row {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r.Requests, r.Failed, r.Unsent = l.Requests, l.Failed, l.Unsent
	r.PerSecond = l.Rate() * float64(records)
	r.P50, r.P99, r.P999, r.Max = ms(l.P50), ms(l.P99), ms(l.P999), ms(l.Max)
	return r
}

// Size is what an instance with so many subjects takes and how long it needs to start.
type Size struct {
	Subjects   int     `json:"subjects"`
	FillRate   float64 `json:"fill_per_second"` // creates, while it was filled
	VaultMB    float64 `json:"vault_memory_mb"` // the most of its own memory, after filling, reads, and writes after a start
	KeysMB     float64 `json:"keys_memory_mb"`
	VaultDisk  float64 `json:"vault_disk_bytes"` // per subject, after an orderly stop
	KeysDisk   float64 `json:"keys_disk_bytes"`
	ReadDisk   float64 `json:"read_disk_bytes"` // by which the data store grew per read
	Reads      int64   `json:"reads"`           // that this is the mean of
	CleanReady float64 `json:"clean_ready_s"`   // from the start of both programs until ready, after an orderly stop
	KillReady  float64 `json:"kill_ready_s"`    // after kill -9 of both, in the middle of writes
}

// Note is what is no rate: something left out with its reason, or a figure of another kind.
type Note struct {
	What string `json:"what"`
	Text string `json:"text"`
}

// JSON is r for programs.
func (r *Results) JSON() ([]byte, error) { return json.MarshalIndent(r, "", "\t") }

// Parse is the inverse of JSON.
func Parse(b []byte) (*Results, error) {
	r := new(Results)
	return r, json.Unmarshal(b, r)
}

// against is how many times as much as the baseline a row does in the same run with as many connections.
func (r *Results) against(row Row, baseline string) (ratio float64, ok bool) {
	for _, b := range r.Rows {
		if b.Baseline != baseline || b.Connections != row.Connections || b.Offered > 0 || b.PerSecond <= 0 {
			continue
		}
		if b.Class == row.Class || baseline == Gin {
			return row.PerSecond / b.PerSecond, true
		}
	}
	return 0, false
}
