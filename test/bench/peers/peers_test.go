package peers

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/traffic"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// run makes 40 requests and wants all of them to be answered well.
func run(t *testing.T, kind string, open func(int) (load.Worker, error)) {
	t.Helper()
	r, err := load.Do(load.Plan{Connections: 4, Duration: time.Minute, Count: 40}, open)
	if err != nil || r.Requests != 40 || r.Failed != 0 {
		t.Errorf("%s: %d good, %d failed, error %v", kind, r.Requests, r.Failed, err)
	}
}

func TestRawBadgerKeepsWhatItsKindsWrite(t *testing.T) {
	dir := t.TempDir()
	b, err := OpenBadger(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{BadgerWrite, BadgerGrouped, BadgerRead} {
		open, err := b.Open(kind)
		if err != nil {
			t.Fatal(err)
		}
		run(t, kind, open)
	}
	if _, err := b.Open("other"); err == nil {
		t.Error("a kind that there is not is accepted")
	}
	if !b.db.Opts().SyncWrites {
		t.Error("writes are not synced")
	}
	written := b.next.Load()
	if written != readable+80 {
		t.Errorf("%d records, want %d", written, readable+80)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(txn *badger.Txn) error {
		for n := range written {
			key := id(n)
			item, err := txn.Get(key[:])
			if err != nil {
				return err
			}
			if err := item.Value(func(v []byte) error {
				if string(v) != string(traffic.Profile(n)) {
					return errors.New("another record")
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestHashiCorpVaultGivesBackWhatItWasGiven(t *testing.T) {
	if testing.Short() {
		t.Skip("starts HashiCorp Vault")
	}
	h, err := StartHashiCorp(t.Context(), t.TempDir())
	if errors.Is(err, hcserver.ErrNoBinary) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, kind := range []string{KVPut, KVGet, TransitEncrypt, TransitDecrypt} {
		c, err := h.Load(kind)
		if err != nil {
			t.Fatal(err)
		}
		var wrong atomic.Int64
		c.Answered = func(_ int64, _ int, body []byte) {
			want := map[string]string{KVPut: `"version":1`, KVGet: `"postalCode":"10001"`, TransitEncrypt: `vault:v1:`, TransitDecrypt: `"plaintext":"`}[kind]
			if !strings.Contains(string(body), want) {
				wrong.Add(1)
			}
		}
		c.Connections, c.Duration, c.Count = 4, time.Minute, 40
		r, err := load.Run(c)
		if err != nil || r.Requests != 40 || wrong.Load() != 0 {
			t.Errorf("%s: %d good, %d failed, %d of another shape, error %v", kind, r.Requests, r.Failed, wrong.Load(), err)
		}
	}
}

func TestPostgresAuditsEachReadAndDecryptsIt(t *testing.T) {
	if testing.Short() {
		t.Skip("starts PostgreSQL")
	}
	p, err := StartPostgres(t.Context())
	if errors.Is(err, ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, kind := range []string{PostgresWrite, PostgresRead} {
		open, err := p.Open(t.Context(), kind)
		if err != nil {
			t.Fatal(err)
		}
		run(t, kind, open)
	}
	c, err := p.server.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	got, err := p.read(t.Context(), c, 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range got {
		if !strings.Contains(string(traffic.Profile(7)), field) || field == "" {
			t.Errorf("read %q, which person 7 has not", field)
		}
	}
	if _, err := p.read(t.Context(), c, 1_000_000); err == nil {
		t.Error("somebody was read who is not there")
	}
	var reads, writes, clear int
	if err := c.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE action = 'read'), count(*) FILTER (WHERE action = 'write'),
		(SELECT count(*) FROM profile WHERE position('example.org' IN encode(email, 'escape')) > 0) FROM access_audit`).Scan(&reads, &writes, &clear); err != nil {
		t.Fatal(err)
	}
	if reads != 41 || writes != prepared+40 || clear != 0 {
		t.Errorf("the audit has %d reads and %d writes, want 41 and %d; %d rows are in clear", reads, writes, prepared+40, clear)
	}
	for setting, want := range map[string]string{"synchronous_commit": "on", "fsync": "on", "full_page_writes": "on", "listen_addresses": "", "data_checksums": "on"} {
		var value string
		if err := c.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&value); err != nil || value != want {
			t.Errorf("%s = %q, want %q, error %v", setting, value, want, err)
		}
	}
}
