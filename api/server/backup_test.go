package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api/client"
	"github.com/prototypster/pdvault/api/contract"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// backupServer serves write as the backup.
func backupServer(t *testing.T, write func(context.Context, io.Writer) error) string {
	t.Helper()
	s := servertest.MustServer(t, servertest.NewBroker(t), server.Config{Backup: write, RequestTimeout: 50 * time.Millisecond})
	h := httptest.NewServer(s.Handler())
	t.Cleanup(h.Close)
	return h.URL
}

func backupClient(t *testing.T, url, caller string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Server: url, Token: servertest.Token(caller), Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// A backup is streamed as it comes, for longer than any request or call may take, and arrives as it was written.
func TestABackupIsStreamedForAsLongAsItTakes(t *testing.T) {
	want := bytes.Repeat([]byte("piece "), 20_000)
	url := backupServer(t, func(ctx context.Context, w io.Writer) error {
		for rest := want; len(rest) > 0; {
			n, err := w.Write(rest[:min(20_000, len(rest))])
			if err != nil {
				return err
			}
			rest = rest[n:]
			time.Sleep(20 * time.Millisecond)
		}
		return ctx.Err()
	})
	var got bytes.Buffer
	if err := backupClient(t, url, "security").Backup(t.Context(), &got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes of %d, %v", got.Len(), len(want), err)
	}
}

// What fails after the first byte cannot be taken for the whole.
func TestABackupThatFailsIsNoBackup(t *testing.T) {
	failed := errors.New("disk")
	for name, begun := range map[string]bool{"before the first byte": false, "after it": true} {
		url := backupServer(t, func(_ context.Context, w io.Writer) error {
			if begun {
				if _, err := w.Write(make([]byte, 100_000)); err != nil {
					return err
				}
			}
			return failed
		})
		err := backupClient(t, url, "security").Backup(t.Context(), io.Discard)
		if err == nil || strings.Contains(err.Error(), "disk") {
			t.Errorf("%s: %v", name, err)
		}
		if !begun && !errors.Is(err, client.ErrInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	url := backupServer(t, func(context.Context, io.Writer) error { return access.ErrBusy })
	if err := backupClient(t, url, "security").Backup(t.Context(), io.Discard); !errors.Is(err, access.ErrBusy) {
		t.Errorf("busy: %v", err)
	}
}

// A client that goes away ends the backup.
func TestABackupEndsWhenItsClientGoesAway(t *testing.T) {
	ended := make(chan error, 1)
	url := backupServer(t, func(ctx context.Context, w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 100_000)); err != nil || ctx.Err() != nil {
				ended <- errors.Join(err, ctx.Err())
				return errors.Join(err, ctx.Err())
			}
		}
	})
	gone := errors.New("gone")
	err := backupClient(t, url, "security").Backup(t.Context(), goneWriter{gone})
	if !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it ended by itself")
		}
	case <-time.After(5 * time.Second):
		t.Error("it goes on")
	}
}

type goneWriter struct{ err error }

func (w goneWriter) Write([]byte) (int, error) { return 0, w.err }

func TestABackupIsForSecurityAlone(t *testing.T) {
	url := backupServer(t, func(_ context.Context, w io.Writer) error { _, err := w.Write([]byte("archive")); return err })
	for caller := range servertest.Callers {
		err := backupClient(t, url, caller).Backup(t.Context(), io.Discard)
		if (err == nil) != (caller == "security") || err != nil && !errors.Is(err, access.ErrDenied) {
			t.Errorf("%s: %v", caller, err)
		}
	}
	req, err := http.NewRequest(http.MethodGet, url+"/v1/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+servertest.Token("security"))
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := contract.Check(http.MethodGet, "/v1/backup", answer.StatusCode, answer.Header, body); err != nil {
		t.Error(err)
	}
}

// Without anything to back up there is no such call.
func TestWithoutAStoreThereIsNoBackup(t *testing.T) {
	url := backupServer(t, nil)
	if err := backupClient(t, url, "security").Backup(t.Context(), io.Discard); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("%v", err)
	}
}
