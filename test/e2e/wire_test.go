package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// onTheWire bounds how long anything on a connection may take; no promise about one is as long.
const onTheWire = 45 * time.Second

// dialRaw connects to the vault without an HTTP client.
func (i *instance) dialRaw() *net.TCPConn {
	i.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(i.URL, "http://"))
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(onTheWire))
	return conn.(*net.TCPConn)
}

// authorised is the head of a request of caller; lines are further ones, each with its end.
func (i *instance) authorised(caller, line, lines string) string {
	return line + " HTTP/1.1\r\nHost: pdvault\r\nAuthorization: Bearer " + i.Token(caller) + "\r\n" + lines + "\r\n"
}

// exchange is all that was answered on one connection.
type exchange struct {
	answers []stack.Answer
	raw     []byte
	closed  bool // by the server, within onTheWire
}

// exchange sends what pieces yields on a connection of its own, until the server closes it or want answers have come,
// and returns what it said. A server that closes while it is being sent to has answered nonetheless.
func (i *instance) exchange(want int, pieces ...string) exchange {
	i.t.Helper()
	conn := i.dialRaw()
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, p := range pieces {
			if p == halfClose {
				_ = conn.CloseWrite()
			} else if _, err := io.WriteString(conn, p); err != nil {
				return
			}
		}
	}()
	var x exchange
	var raw bytes.Buffer
	r := bufio.NewReader(io.TeeReader(conn, &raw))
	for len(x.answers) < want {
		resp, err := http.ReadResponse(r, &http.Request{Method: strings.SplitN(pieces[0], " ", 2)[0]})
		if err != nil {
			x.closed = !errors.Is(err, os.ErrDeadlineExceeded)
			break
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			x.closed = !errors.Is(err, os.ErrDeadlineExceeded)
			break
		}
		x.answers = append(x.answers, stack.Answer{Status: resp.StatusCode, Header: resp.Header, Body: body})
		x.closed = resp.Close
		if resp.Close {
			break
		}
	}
	conn.Close()
	<-sent
	x.raw = raw.Bytes()
	return x
}

// halfClose as a piece of exchange ends the sending side.
const halfClose = "\x00half-close"

// descriptors counts the open descriptors of a process; ok is false where this user may not know.
func descriptors(p *stack.Process) (n int, ok bool) {
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	return len(d), err == nil
}

// clean fails the test when the log of a program tells of a panic, or holds what a client sent.
func (i *instance) clean(t *testing.T, canary string) {
	t.Helper()
	for name, log := range map[string]string{"pdvault": i.Vault.Log(), "pdkeys": i.Keys.Log()} {
		if strings.Contains(log, "panic") {
			t.Errorf("%s has panicked", name)
		}
		if strings.Contains(log, canary) {
			t.Errorf("the log of %s holds what a client sent", name)
		}
	}
	for name, p := range map[string]*stack.Process{"pdvault": i.Vault, "pdkeys": i.Keys} {
		select {
		case <-p.Done():
			t.Fatalf("%s has ended", name)
		default:
		}
	}
}
