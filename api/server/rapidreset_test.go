package server_test

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// Streams of HTTP/2 that are opened and reset at once, by the thousand: the server ends the connection or puts up with
// it, never works on more than it does otherwise, and goes on serving others.
func TestStreamsThatAreResetAtOnceCostLittle(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	certificate, pool := mustCertificate(t)
	registry := prometheus.NewRegistry()
	b := servertest.NewBroker(t)
	s := servertest.MustServer(t, b, server.Config{
		Listen: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}, MaxInFlight: 8, Registry: registry,
	})
	t.Run("load", func(t *testing.T) {
		serve(t, s)
		unblock := b.Block()
		defer unblock()
		conn, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
			t.Fatalf("protocol %q", p)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
			t.Fatal(err)
		}
		framer := http2.NewFramer(conn, conn)
		if err := framer.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		var head bytes.Buffer
		encoder := hpack.NewEncoder(&head)
		sent := 0
		for ; sent < 20_000; sent++ {
			head.Reset()
			for _, f := range [][2]string{
				{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/v1/policy"}, {"authorization", "Bearer " + servertest.Token("shop")},
			} {
				if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
					t.Fatal(err)
				}
			}
			id := uint32(2*sent + 1)
			err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true})
			if err == nil {
				err = framer.WriteRSTStream(id, http2.ErrCodeCancel)
			}
			if err != nil {
				break // the server has had enough
			}
			if sent%1000 == 0 {
				if n := value(t, registry, "pdvault_http_in_flight"); n > 8 {
					t.Fatalf("%v in flight", n)
				}
			}
		}
		unblock()
		conn.Close()
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
		if got := status(t, transport, "https://"+s.Addr().String()+"/livez"); got != http.StatusOK {
			t.Errorf("another client: %d", got)
		}
		await(t, "nothing is left of it", func() bool { return value(t, registry, "pdvault_http_in_flight") == 0 })
		t.Logf("%d streams were sent, %d calls reached the broker", sent, b.Calls())
	})
}
