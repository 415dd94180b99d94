package access_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prototypster/pdvault/access"
)

// Requests keep four fifths of their throughput, whatever a burst of work costs them, and where it costs them little
// the rotation takes half of the time.
func TestARotationLeavesRequestsTheirThroughput(t *testing.T) {
	for _, c := range []struct {
		loss  float64 // of throughput, during a burst
		least float64 // of the time, for the rotation
	}{{0, 0.45}, {0.1, 0.45}, {0.3, 0.3}, {0.5, 0.18}, {0.8, 0.11}, {1, 0.11}} {
		for _, rate := range []float64{50, 3000} {
			t.Run(fmt.Sprintf("loss %.1f at %.0f a second", c.loss, rate), func(t *testing.T) {
				var pace access.Pace
				random := rand.New(rand.NewPCG(1, uint64(rate)))
				requests := func(rate float64, d time.Duration) int64 { // within the time, give or take
					mean := rate * d.Seconds()
					return int64(mean*(0.7+0.6*random.Float64()) + random.Float64())
				}
				var begun, worked, all float64
				for range 2000 {
					burst := time.Duration(20+random.IntN(60)) * time.Millisecond
					during := requests(rate*(1-c.loss), burst)
					rest := pace.Burst(during, burst)
					after := requests(rate, rest)
					pace.Rested(after, rest)
					begun += float64(during + after)
					worked, all = worked+burst.Seconds(), all+(burst+rest).Seconds()
				}
				if left := begun / all / rate; left < 0.85 {
					t.Errorf("requests keep %.0f %% of their throughput", 100*left)
				}
				if share := worked / all; share < c.least {
					t.Errorf("the rotation takes %.0f %% of the time", 100*share)
				}
			})
		}
	}
}
