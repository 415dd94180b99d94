package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// What a caller may open is bounded where the keys are. Past it a read is refused with 429 and on record as failed,
// others go on, and the metrics tell.
func TestACallerPastTheDecryptBudgetIsRefusedAndOthersAreNot(t *testing.T) {
	t.Parallel()
	const people, allowed = 8, 5
	for _, tt := range []struct {
		name, budget, limit string
		recovers            bool
	}{
		{"subjects", fmt.Sprintf("subjects_per_hour: %d", allowed), "subjects", false},
		{"opens", "opens_per_second: 1", "opens", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := start(t, stack.Options{KeysExtra: "budget: {" + tt.budget + "}\nmetrics: {textfile: metrics, interval: 1s}\n"})
			var subjects []string
			for n := range people {
				subjects = append(subjects, i.create(person(n)))
			}
			before := i.ledgerSize()
			refused := func(n int) bool {
				t.Helper()
				a := i.read("shop", subjects[n], "order-fulfilment", "email")
				switch after, _ := strconv.Atoi(a.Header.Get("Retry-After")); {
				case a.Status == http.StatusOK:
					return false
				case a.Status != http.StatusTooManyRequests || problemType(a.Body) != decryptBudget || after < 1:
					t.Errorf("read %d: %d, Retry-After %d: %s", n, a.Status, after, a.Body)
				}
				return true
			}
			count, firstRefused := 0, -1
			for n := range people {
				if refused(n) {
					count++
					if firstRefused < 0 {
						firstRefused = n
					}
				}
			}
			if count == 0 || !tt.recovers && (firstRefused != allowed || count != people-allowed) {
				t.Fatalf("%d of %d reads were refused, the first was %d", count, people, firstRefused)
			}
			if !tt.recovers && refused(0) {
				t.Error("somebody who was read before is a new person")
			}
			// Another caller, another account.
			if a := i.read("courier", subjects[people-1], "partner-delivery", "name"); a.Status != http.StatusOK {
				t.Errorf("another caller: %d %s", a.Status, a.Body)
			}
			// What is no read goes on.
			i.create(person(people))
			failed := 0
			for _, e := range i.ledger(before) {
				if e.Kind == "access.failed" {
					failed++
				}
			}
			if failed != count {
				t.Errorf("%d reads were refused, %d are on record as failed", count, failed)
			}
			i.everyAllowedReadIsServedOrFailed(before)
			eventually(t, "the metrics tell", func() bool {
				return i.metric(fmt.Sprintf(`pdkeys_budget_refused_total{caller="shop",limit=%q}`, tt.limit)) == float64(count) &&
					i.metric(`pdvault_reads_failed_total{reason="decrypt-budget"}`) == float64(count)
			})
			if tt.recovers {
				time.Sleep(time.Second)
				if refused(0) {
					t.Error("the budget does not recover")
				}
			}
			i.verifyLedger()
		})
	}
}
