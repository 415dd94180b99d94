package daemon

import (
	"context"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gaugeTimeout bounds what is looked up for one metric, so that a scrape ends whatever hangs.
const gaugeTimeout = time.Second

// showState registers metrics of the state of this instance. They are looked up whenever they are asked for; what
// cannot be found out is no number.
func (d *Daemon) showState() {
	gauge := func(name, help string, value func() float64) {
		d.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("pdvault_erasures_pending", "Erasures that are on record and whose key is not known to be destroyed.", func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), gaugeTimeout)
		defer cancel()
		n, err := d.broker.PendingErasures(ctx)
		if err != nil {
			return math.NaN()
		}
		return float64(n)
	})
	gauge("pdvault_ledger_size", "Entries in the ledger.", func() float64 { return float64(d.ledger.Checkpoint().Size) })
	gauge("pdvault_ledger_witnessed_size", "Entries in the newest checkpoint that the witness has cosigned.", func() float64 {
		return float64(d.ledger.Cosigned().Size)
	})
	gauge("pdvault_store_free_bytes", "Free space on the file system of the store.", func() float64 { return float64(d.store.Stats().FreeBytes) })
	gauge("pdvault_store_writable", "Whether ordinary writes are admitted.", func() float64 { return truth(d.store.Stats().Writable) })
	gauge("pdvault_store_reserve_ok", "Whether writes that may use the reserve are admitted: without them nothing is read.", func() float64 {
		return truth(d.store.Stats().ReserveOK)
	})
	gauge("pdvault_store_damaged_reads", "Reads of the store that met damage.", func() float64 { return float64(d.store.Stats().DamagedReads) })
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
