package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// Backup writes an archive of the data store to w as it comes, however long it takes: Config.Timeout does not
// bound it, ctx does. An error means that what was written is not whole. Nil does not mean that it is: who keeps
// the archive reads it through first.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	q := request{method: http.MethodGet, path: "/v1/backup"}
	answer, err := c.send(ctx, q)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 {
		raw, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
		if err != nil {
			return fmt.Errorf("%s %s: reading the answer: %w", q.method, q.path, err)
		}
		return problemOf(answer, raw)
	}
	if _, err := io.Copy(w, answer.Body); err != nil {
		return fmt.Errorf("%s %s: reading the answer: %w", q.method, q.path, err)
	}
	return nil
}
