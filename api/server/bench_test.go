package server_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// instant answers reads at once, so that only the HTTP side is measured.
type instant struct {
	*servertest.Broker
	result access.ReadResult
}

func (i *instant) Read(_ context.Context, q access.ReadRequest) (access.ReadResult, error) {
	i.result.Subject = q.Subject
	return i.result, nil
}

func newInstant(b *testing.B) *instant {
	return &instant{servertest.NewBroker(b), access.ReadResult{
		Collection: "profile", Version: 3, Record: 123456, Ground: verify.GroundService,
		Fields: map[string][]byte{
			"email": []byte(`"ada@example.org"`), "phone": []byte(`"+35312345678"`), "name": []byte(`{"given":"Ada","family":"Example"}`),
			"address": []byte(`{"street":"1 Long Lane","locality":"Dublin","country":"IE"}`), "birthdate": []byte(`"1990-01-01"`), "locale": []byte(`"en-IE"`),
		},
	}}
}

// sink is a ResponseWriter that keeps nothing.
type sink struct{ h http.Header }

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
func (s *sink) WriteHeader(int)             {}

// BenchmarkRead is the whole HTTP side of a read of six fields but the network: routing, authentication,
// parsing, encoding, metrics, access log.
func BenchmarkRead(b *testing.B) {
	for _, c := range []struct {
		name string
		log  *slog.Logger
	}{{"no-log", nil}, {"log", slog.New(slog.NewJSONHandler(io.Discard, nil))}} {
		b.Run(c.name, func(b *testing.B) {
			h := servertest.MustServer(b, newInstant(b), server.Config{AccessLog: c.log}).Handler()
			r := httptest.NewRequestWithContext(b.Context(), "GET", "/v1/subjects/"+uuid.NewString()+"/records/profile?purpose=order-fulfilment&fields=name,phone,address", nil)
			r.Header.Set("Authorization", "Bearer "+servertest.Token("shop"))
			w := &sink{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.h)
				h.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkReadOverTCP adds net/http on both sides.
func BenchmarkReadOverTCP(b *testing.B) {
	s := httptest.NewServer(servertest.MustServer(b, newInstant(b), server.Config{}).Handler())
	defer s.Close()
	url := s.URL + "/v1/subjects/" + uuid.NewString() + "/records/profile?purpose=order-fulfilment&fields=name,phone,address"
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			r, _ := http.NewRequestWithContext(b.Context(), "GET", url, nil)
			r.Header.Set("Authorization", "Bearer "+servertest.Token("shop"))
			w, err := client.Do(r)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, w.Body)
			_ = w.Body.Close()
			if w.StatusCode != 200 {
				b.Error(w.Status)
				return
			}
		}
	})
}
