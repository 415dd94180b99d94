package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Admin calls the sidecar on the socket that is for pdkeys' own user alone. Its methods may be called from any
// goroutine.
type Admin struct {
	conn *grpc.ClientConn
	rpc  keyspb.AdminClient
}

// DialAdmin connects to the socket beside cfg.Socket. It returns keys.ErrUnavailable when the socket is not as it
// must be; whether the sidecar lets this user in is found out by the first call.
func DialAdmin(cfg Config) (*Admin, error) {
	if cfg.Socket == "" {
		return nil, errors.New("client: Config.Socket is empty")
	}
	cfg.Socket += keys.AdminSuffix
	if err := checkSocket(cfg.Socket, cfg.serverUID()); err != nil {
		return nil, fmt.Errorf("checking socket: %w: %w", err, keys.ErrUnavailable)
	}
	conn, err := connect(cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to sidecar: %w: %w", err, keys.ErrUnavailable)
	}
	return &Admin{conn: conn, rpc: keyspb.NewAdminClient(conn)}, nil
}

// Close disconnects.
func (a *Admin) Close() error { return a.conn.Close() }

// Inventory counts every version in use.
func (a *Admin) Inventory(ctx context.Context) (Inventory, error) {
	limited, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	resp, err := a.rpc.Inventory(limited, &keyspb.InventoryRequest{})
	if err != nil {
		return Inventory{}, rpcError(ctx, "counting keys", err)
	}
	return inventoryOf(resp), nil
}

// StartJob begins a rotation in the name of pdkeys. It gives keys.ErrJobRunning while another one excludes it.
func (a *Admin) StartJob(ctx context.Context, scope string, subject uuid.UUID) (Job, error) {
	const op = "starting a rotation"
	limited, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	resp, err := a.rpc.StartJob(limited, startRequest(scope, subject, ""))
	if err != nil {
		return Job{}, rpcError(ctx, op, err)
	}
	return jobOf(op, resp.GetJob())
}

// Jobs lists rotations, the newest first.
func (a *Admin) Jobs(ctx context.Context) ([]Job, error) {
	const op = "listing rotations"
	limited, cancel := context.WithTimeout(ctx, MaxTimeout)
	defer cancel()
	resp, err := a.rpc.Jobs(limited, &keyspb.JobsRequest{})
	if err != nil {
		return nil, rpcError(ctx, op, err)
	}
	return jobsOf(op, resp)
}

// Backup writes the sidecar's encrypted archive of its key store to w. It has no deadline but that of ctx. After an
// error what was written is of no use.
func (a *Admin) Backup(ctx context.Context, w io.Writer) error {
	const op = "backing up the key store"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream when w fails
	stream, err := a.rpc.Backup(ctx, &keyspb.BackupRequest{})
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
