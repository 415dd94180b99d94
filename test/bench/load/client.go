package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// maxBody bounds an answer: no part of pdvault gives a longer one.
const maxBody = 16 << 20

// client is one connection.
type client struct {
	config *Config
	last   time.Time // after which nothing is waited for
	conn   net.Conn
	r      *bufio.Reader
	out    []byte
	body   []byte
	over   bool // the server closes the connection after this answer
}

// Close closes the connection, if there is one.
func (cl *client) Close() error {
	if cl.conn == nil {
		return nil
	}
	err := cl.conn.Close()
	cl.conn = nil
	return err
}

// exchange sends a request and reads its answer. After an error the next one takes a new connection.
func (cl *client) exchange(n int64) (status int, err error) {
	defer func() {
		if err != nil {
			_ = cl.Close() // err says more
		}
	}()
	if cl.conn == nil {
		conn, err := net.Dial("tcp", cl.config.Address)
		if err != nil {
			return 0, err
		}
		if err := conn.SetDeadline(cl.last); err != nil {
			_ = conn.Close() // err says more
			return 0, err
		}
		cl.conn, cl.r = conn, bufio.NewReaderSize(conn, 16<<10)
	}
	cl.out = cl.config.Request(n, cl.out[:0])
	if _, err := cl.conn.Write(cl.out); err != nil {
		return 0, err
	}
	if status, err = cl.answer(); err != nil {
		return 0, err
	}
	if cl.over {
		defer cl.Close()
	}
	if cl.config.Answered != nil {
		cl.config.Answered(n, status, cl.body)
	}
	return status, nil
}

// answer reads one answer: a status line, headers, and a body by length or in chunks.
func (cl *client) answer() (status int, err error) {
	line, err := cl.r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, errors.New("load: short status line")
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length, chunked := 0, false
	cl.over = false
	for {
		line, err := cl.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		if v, ok := header(line, "content-length:"); ok {
			if length, err = strconv.Atoi(string(v)); err != nil {
				return 0, err
			}
		} else if v, ok := header(line, "transfer-encoding:"); ok {
			chunked = bytes.EqualFold(v, []byte("chunked"))
		} else if v, ok := header(line, "connection:"); ok {
			cl.over = bytes.EqualFold(v, []byte("close"))
		}
	}
	cl.body = cl.body[:0]
	if !chunked {
		return status, cl.take(length)
	}
	for {
		line, err := cl.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return 0, err
		}
		if err := cl.take(int(size)); err != nil {
			return 0, err
		}
		if _, err := cl.r.Discard(2); err != nil {
			return 0, err
		}
		if size == 0 {
			return status, nil
		}
	}
}

// take appends n bytes to the body.
func (cl *client) take(n int) error {
	at := len(cl.body)
	if n < 0 || n > maxBody-at {
		return fmt.Errorf("load: an answer of %d bytes more after %d", n, at)
	}
	if cap(cl.body) < at+n {
		cl.body = append(make([]byte, 0, 2*(at+n)), cl.body...)
	}
	cl.body = cl.body[:at+n]
	_, err := io.ReadFull(cl.r, cl.body[at:])
	return err
}

func header(line []byte, name string) ([]byte, bool) {
	if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return nil, false
	}
	return bytes.TrimSpace(line[len(name):]), true
}
