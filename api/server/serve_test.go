package server_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// serve runs s until the test ends.
func serve(t *testing.T, s *server.Server) {
	t.Helper()
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestServe(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("tcp and metrics", func(t *testing.T) {
		s := servertest.MustServer(t, servertest.NewBroker(t), server.Config{Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0"})
		serve(t, s)
		for url, want := range map[string]int{
			"http://" + s.Addr().String() + "/livez":             200,
			"http://" + s.Addr().String() + "/metrics":           401,
			"http://" + s.MetricsAddr().String() + "/metrics":    200,
			"http://" + s.MetricsAddr().String() + "/readyz":     200,
			"http://" + s.MetricsAddr().String() + "/v1/policy":  404,
			"http://" + s.MetricsAddr().String() + "/log/tile/0": 404,
		} {
			if got := status(t, http.DefaultTransport.(*http.Transport).Clone(), url); got != want {
				t.Errorf("%s: %d, want %d", url, got, want)
			}
		}
		if err := s.Open(); err == nil {
			t.Error("Open twice")
		}
	})
	t.Run("unix", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		s := servertest.MustServer(t, servertest.NewBroker(t), server.Config{Listen: "unix:" + path})
		serve(t, s)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("socket: %v, %v", info.Mode(), err)
		}
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		if got := status(t, transport, "http://pdvault/livez"); got != 200 {
			t.Error(got)
		}
	})
	t.Run("tls", func(t *testing.T) {
		certificate, pool := mustCertificate(t)
		s := servertest.MustServer(t, servertest.NewBroker(t), server.Config{
			Listen: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{certificate}},
		})
		serve(t, s)
		url := "https://" + s.Addr().String() + "/livez"
		if got := status(t, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}, url); got != 200 {
			t.Error(got)
		}
		old := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS12}}
		if _, err := (&http.Client{Transport: old}).Get(url); err == nil {
			t.Error("TLS 1.2 was taken")
		}
	})
}

func status(t *testing.T, transport *http.Transport, url string) int {
	t.Helper()
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	return r.StatusCode
}

func mustCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestRaw sends bytes that no client library would.
func TestRaw(t *testing.T) {
	b := servertest.NewBroker(t)
	s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0"})
	serve(t, s)
	auth := "Host: x\r\nConnection: close\r\nAuthorization: Bearer " + servertest.Token("shop") + "\r\n"
	body := `{"records":{"profile":{}}}`
	for name, c := range map[string]struct{ request, status string }{
		"length and chunks": {fmt.Sprintf("POST /v1/subjects HTTP/1.1\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", auth, len(body)), "400"},
		"two lengths":       {"POST /v1/subjects HTTP/1.1\r\n" + auth + "Content-Type: application/json\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", "400"},
		"huge head":         {"GET /v1/policy HTTP/1.1\r\n" + auth + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431"},
		"override":          {"POST /v1/policy/versions HTTP/1.1\r\n" + auth + "X-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n\r\n", "405"},
		"short body":        {"POST /v1/subjects HTTP/1.1\r\n" + auth + "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n" + body, ""},
		"declared huge":     {"POST /v1/subjects HTTP/1.1\r\n" + auth + "Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n", "413"},
		"encoded slash":     {"GET /log/tile/..%2f..%2fv1 HTTP/1.1\r\n" + auth + "\r\n", "404"},
		"space in path":     {"GET /log/ checkpoint HTTP/1.1\r\n" + auth + "\r\n", "400"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Write([]byte(c.request)); err != nil {
				t.Fatal(err)
			}
			if c.status == "" { // the client gives up: nothing may have happened
				return
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+c.status) {
				t.Errorf("%q, %v, want %s", line, err, c.status)
			}
		})
	}
	// A body in chunks without end is cut off at the limit.
	t.Run("endless chunks", func(t *testing.T) {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			fmt.Fprintf(conn, "POST /v1/lookups HTTP/1.1\r\n%sContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", auth)
			chunk := fmt.Sprintf("%x\r\n%s\r\n", 4096, strings.Repeat(" ", 4096))
			for {
				if _, err := conn.Write([]byte(chunk)); err != nil {
					return
				}
			}
		}()
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 413") {
			t.Errorf("%q, %v", line, err)
		}
	})
	if n := b.Calls(); n != 1 { // the path of a tile, which is the broker's to refuse
		t.Errorf("%d calls reached the broker", n)
	}
}

func TestTokens(t *testing.T) {
	hash := server.TokenHash{CallerID: "shop", SHA256: server.HashToken("secret")}
	resolve := func(id string) (verify.Caller, bool) { c, ok := servertest.Callers[id]; return c, ok }
	line := server.FormatToken(hash)
	parsed, err := server.ParseTokens(strings.NewReader("# tokens\n\n" + line + "\n"))
	if err != nil || len(parsed) != 1 || parsed[0] != hash {
		t.Fatalf("%s: %v, %v", line, parsed, err)
	}
	for _, bad := range []string{"{}", line + line, strings.ToUpper(line), `{"caller":"a b","sha256":"` + strings.Repeat("ab", 32) + `"}`, `{"caller":"shop","sha256":"ab"}`, line[:len(line)-1] + `,"x":1}`} {
		if _, err := server.ParseTokens(strings.NewReader(bad)); err == nil || strings.Contains(err.Error(), "abab") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := server.NewTokens([]server.TokenHash{hash, {CallerID: "courier", SHA256: hash.SHA256}}, resolve); err == nil {
		t.Error("one token of two callers")
	}
	if _, err := server.NewTokens(parsed, nil); err == nil {
		t.Error("no resolve function")
	}
	tokens, err := server.NewTokens([]server.TokenHash{hash, {CallerID: "gone", SHA256: server.HashToken("other")}}, resolve)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "bearer secret")
	if c, err := tokens.Authenticate(r); err != nil || c != (verify.Caller{ID: "shop", Kind: "service", Role: "service", Authn: "token"}) {
		t.Errorf("%+v, %v", c, err)
	}
	r.Header.Set("Authorization", "Bearer other")
	if _, err := tokens.Authenticate(r); err == nil {
		t.Error("a caller that the policy does not name")
	}
}
