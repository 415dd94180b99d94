package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Backup writes an encrypted archive of the key store to w, from the socket for those who look after the keys, which
// must belong to uid. An error means that what was written is not whole. ctx alone bounds how long it takes.
func Backup(ctx context.Context, adminSocket string, uid uint32, w io.Writer) error {
	const op = "backing up the key store"
	if err := checkSocket(adminSocket, uid); err != nil {
		return fmt.Errorf("checking socket: %w: %w", err, keys.ErrUnavailable)
	}
	conn, err := connect(Config{Socket: adminSocket, ServerUID: &uid})
	if err != nil {
		return fmt.Errorf("connecting to sidecar: %w: %w", err, keys.ErrUnavailable)
	}
	defer conn.Close() // nothing is in flight any more
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := keyspb.NewAdminClient(conn).Backup(ctx, &keyspb.BackupRequest{})
	if err != nil {
		return rpcError(ctx, op, err)
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rpcError(ctx, op, err)
		}
		if _, err := w.Write(chunk.Data); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
}
