package sidecar_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
	"github.com/prototypster/pdvault/keys/sidecar/sidecartest"
)

// budgeted is a world whose sidecar has this budget.
func budgeted(t *testing.T, b sidecar.Budget, log *slog.Logger) *sidecartest.World {
	t.Helper()
	w := sidecartest.New(t)
	w.Configure = func(c *sidecar.Config) { c.Budget, c.Logger = b, log }
	w.Restart()
	w.Bind()
	return w
}

// TestABudgetIsNotExceededByConcurrentReaders: 64 at once, each under a record of its own, get what the budget
// holds. Comparing counts like reading.
func TestABudgetIsNotExceededByConcurrentReaders(t *testing.T) {
	var logged bytes.Buffer
	w := budgeted(t, sidecar.Budget{SubjectsPerHour: 20}, slog.New(slog.NewTextHandler(&logged, nil)))
	var reads []*keyspb.OpenItem
	var entries [][]byte
	for range 64 {
		id, ref, ciphertexts := w.Subject("email")
		entry := w.Entry(ref, []string{"email"}, func(e *verify.Entry) { e.Mode = verify.ModeVerify })
		item := sidecartest.Item(int64(len(entries)), entry, id, ciphertexts, "email")
		item.Fields[0].Expect = sidecartest.Value("email")
		reads, entries = append(reads, item), append(entries, entry)
	}
	w.Log.AppendAll(entries)
	reqs := make([]*keyspb.OpenRequest, len(reads))
	for i, item := range reads {
		reqs[i] = w.Request(w.Log, item)
	}
	outcomes := make([]*keyspb.OpenedItem, len(reads))
	var wg sync.WaitGroup
	for i, req := range reqs {
		wg.Go(func() {
			if resp, err := w.Server.Open(t.Context(), req); err == nil && len(resp.Items) == 1 {
				outcomes[i] = resp.Items[0]
			}
		})
	}
	wg.Wait()
	served, refused := 0, -1
	for i, o := range outcomes {
		switch {
		case o.GetCode() == keyspb.Code_BUDGET && o.Why == "budget" && len(o.Fields) == 0:
			refused = i
		case o != nil && o.Code == keyspb.Code_OK:
			served++
		default:
			t.Errorf("read %d: %v", i, o)
		}
	}
	if served != 20 || refused < 0 {
		t.Fatalf("%d were served, want 20", served)
	}
	if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d alarms in a minute, want 1:\n%s", n, logged.String())
	}
	// Another caller has a budget of its own.
	id, ref, ciphertexts := w.Subject("email")
	entry := w.Entry(ref, []string{"email"}, func(e *verify.Entry) { e.Caller.ID = "other-caller" })
	item := sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email")
	if _, got := open(t, w, w.Request(w.Log, item)); got.GetCode() != keyspb.Code_OK {
		t.Errorf("another caller: %v", got)
	}
}

func TestARecordIsNotUsedUpByTheBudget(t *testing.T) {
	w := budgeted(t, sidecar.Budget{OpensPerSecond: 1}, nil)
	var items []*keyspb.OpenItem
	for range 2 {
		id, ref, ciphertexts := w.Subject("email")
		entry := w.Entry(ref, []string{"email"}, nil)
		items = append(items, sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email"))
	}
	_, first := open(t, w, w.Request(w.Log, items[0]))
	wantOpened(t, first, "email")
	_, second := open(t, w, w.Request(w.Log, items[1]))
	wantRefusal(t, second, keyspb.Code_BUDGET, "budget")
	w.Clock.Advance(2 * time.Second)
	_, second = open(t, w, w.Request(w.Log, items[1]))
	wantOpened(t, second, "email")
}

// TestInventedCallersDoNotWidenTheBudget.
func TestInventedCallersDoNotWidenTheBudget(t *testing.T) {
	w := budgeted(t, sidecar.Budget{SubjectsPerHour: 3}, nil)
	served := 0
	for i := range 20 {
		id, ref, ciphertexts := w.Subject("email")
		entry := w.Entry(ref, []string{"email"}, func(e *verify.Entry) { e.Caller.ID = "invented-" + strings.Repeat("x", i) })
		_, got := open(t, w, w.Request(w.Log, sidecartest.Item(w.Log.Append(entry), entry, id, ciphertexts, "email")))
		if got.GetCode() == keyspb.Code_OK {
			served++
		}
	}
	if served != 9 {
		t.Errorf("%d were served, want three times 3", served)
	}
}
