package sidecar

import (
	"context"
	"net"
	"os"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// maxChunk is the most bytes of a backup in one message.
const maxChunk = 256 << 10

// ListenAdmin makes the socket for those who look after the keys: beside cfg.Path, for this process's user alone
// whatever cfg says, with mode 0600. It is otherwise Listen.
func ListenAdmin(cfg SocketConfig) (net.Listener, error) {
	cfg.Path += keys.AdminSuffix
	cfg.GroupID, cfg.AllowUIDs = nil, []uint32{uint32(os.Getuid())}
	return listen(cfg, adminMode)
}

// ServeAdmin is Serve for the service Admin, on a listener from ListenAdmin. The service is served nowhere else.
func (s *Server) ServeAdmin(ctx context.Context, l net.Listener, drain time.Duration) error {
	g := s.grpcServer()
	keyspb.RegisterAdminServer(g, admin{s: s})
	return serve(ctx, g, l, drain)
}

// admin is the service Admin. Who is connected was asked of the kernel.
type admin struct {
	keyspb.UnimplementedAdminServer
	s *Server
}

// Inventory implements the call of this name.
func (a admin) Inventory(ctx context.Context, req *keyspb.InventoryRequest) (*keyspb.InventoryResponse, error) {
	return a.s.Inventory(ctx, req)
}

// StartJob implements the call of this name. By is not the caller's to say.
func (a admin) StartJob(ctx context.Context, req *keyspb.StartJobRequest) (*keyspb.JobResponse, error) {
	return a.s.StartJob(ctx, &keyspb.StartJobRequest{Scope: req.Scope, Subject: req.Subject, By: "pdkeys"})
}

// Jobs implements the call of this name.
func (a admin) Jobs(ctx context.Context, req *keyspb.JobsRequest) (*keyspb.JobsResponse, error) {
	return a.s.Jobs(ctx, req)
}

// Backup implements the call of this name.
func (a admin) Backup(_ *keyspb.BackupRequest, stream keyspb.Admin_BackupServer) error {
	if a.s.cfg.Backup == nil {
		return failure(keyspb.Code_UNAVAILABLE, whyNoBackup)
	}
	if err := a.s.cfg.Backup(stream.Context(), chunks{stream}); err != nil {
		return a.s.refuse("Backup", err)
	}
	return nil
}

// chunks sends what is written as messages of bounded size.
type chunks struct{ stream keyspb.Admin_BackupServer }

// Write implements io.Writer.
func (c chunks) Write(b []byte) (n int, err error) {
	for n < len(b) {
		chunk := b[n:min(n+maxChunk, len(b))]
		if err := c.stream.Send(&keyspb.BackupChunk{Data: chunk}); err != nil {
			return n, err
		}
		n += len(chunk)
	}
	return n, nil
}
