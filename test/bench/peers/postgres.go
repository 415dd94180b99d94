package peers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/traffic"
)

// Kinds of work on PostgreSQL.
const (
	PostgresWrite = "write"
	PostgresRead  = "read"
)

// schema is what a team would write by hand. Fields that are sought or unique have an HMAC, as one cannot seek in what
// is encrypted.
const schema = `
CREATE TABLE profile (
	subject   uuid PRIMARY KEY,
	version   int NOT NULL DEFAULT 1,
	email     bytea, phone bytea, name bytea, address bytea, birthdate bytea, locale bytea,
	email_mac bytea UNIQUE,
	phone_mac bytea UNIQUE
);
CREATE TABLE access_audit (
	id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at         timestamptz NOT NULL DEFAULT now(),
	action     text NOT NULL,
	caller     text NOT NULL,
	subject    uuid NOT NULL,
	collection text NOT NULL,
	fields     text[] NOT NULL,
	purpose    text NOT NULL,
	ground     text NOT NULL
);
CREATE INDEX ON access_audit (subject);
`

const (
	insertProfile = `INSERT INTO profile (subject, email, phone, name, address, birthdate, locale, email_mac, phone_mac) VALUES
		($1, pgp_sym_encrypt($2, $8), pgp_sym_encrypt($3, $8), pgp_sym_encrypt($4, $8), pgp_sym_encrypt($5, $8), pgp_sym_encrypt($6, $8), pgp_sym_encrypt($7, $8),
		hmac($2, $9, 'sha256'), hmac($3, $9, 'sha256'))`
	insertAudit = `INSERT INTO access_audit (action, caller, subject, collection, fields, purpose, ground) VALUES
		($1, 'shop', $2, 'profile', ARRAY['email','phone','name','address','birthdate','locale'], 'account', 'service')`
	selectProfile = `SELECT pgp_sym_decrypt(email, $2), pgp_sym_decrypt(phone, $2), pgp_sym_decrypt(name, $2),
		pgp_sym_decrypt(address, $2), pgp_sym_decrypt(birthdate, $2), pgp_sym_decrypt(locale, $2) FROM profile WHERE subject = $1`
)

// Postgres is a private PostgreSQL with pgcrypto.
type Postgres struct {
	server           *pgServer
	password, macKey string
	next             atomic.Int64
	Version          string
}

// StartPostgres starts one and fills it. It returns ErrMissing when PostgreSQL or pgcrypto is not installed.
func StartPostgres(ctx context.Context) (_ *Postgres, err error) {
	server, err := startPG(ctx)
	if err != nil {
		return nil, err
	}
	secret := make([]byte, 64)
	rand.Read(secret)
	p := &Postgres{server: server, password: hex.EncodeToString(secret[:32]), macKey: hex.EncodeToString(secret[32:])}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	c, err := server.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close(context.WithoutCancel(ctx))
	var there bool
	if err := c.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgcrypto')`).Scan(&there); err != nil {
		return nil, err
	}
	if !there {
		return nil, fmt.Errorf("%w: PostgreSQL's extension pgcrypto", ErrMissing)
	}
	if _, err := c.Exec(ctx, "CREATE EXTENSION pgcrypto"); err != nil {
		return nil, err
	}
	if _, err := c.Exec(ctx, schema); err != nil {
		return nil, err
	}
	if err := c.QueryRow(ctx, "SHOW server_version").Scan(&p.Version); err != nil {
		return nil, err
	}
	open, err := p.Open(ctx, PostgresWrite)
	if err != nil {
		return nil, err
	}
	r, err := load.Do(load.Plan{Connections: 4, Duration: 2 * time.Minute, Count: prepared}, open)
	if err == nil && r.Requests < prepared {
		err = errors.New("some writes failed")
	}
	if err != nil {
		return nil, fmt.Errorf("filling PostgreSQL: %w", err)
	}
	return p, nil
}

// Close stops PostgreSQL and removes its data.
func (p *Postgres) Close() error { return p.server.close() }

// Open makes a worker for each connection of a run of kind.
func (p *Postgres) Open(ctx context.Context, kind string) (func(int) (load.Worker, error), error) {
	var do func(context.Context, *pgx.Conn, int64) error
	switch kind {
	case PostgresWrite:
		do = func(ctx context.Context, c *pgx.Conn, _ int64) error { return p.write(ctx, c, p.next.Add(1)-1) }
	case PostgresRead:
		do = func(ctx context.Context, c *pgx.Conn, n int64) error {
			_, err := p.read(ctx, c, n*7919%prepared)
			return err
		}
	default:
		return nil, unknown(kind)
	}
	return func(int) (load.Worker, error) {
		c, err := p.server.connect(ctx)
		if err != nil {
			return nil, err
		}
		return worker{
			do: func(n int64) error {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				return do(ctx, c, n)
			},
			close: func() error { return c.Close(context.WithoutCancel(ctx)) },
		}, nil
	}, nil
}

// write inserts person n and the audit row.
func (p *Postgres) write(ctx context.Context, c *pgx.Conn, n int64) error {
	var fields struct {
		Email, Phone, Birthdate, Locale string
		Name, Address                   json.RawMessage
	}
	if err := json.Unmarshal(traffic.Profile(n), &fields); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insertProfile, id(n), fields.Email, fields.Phone, string(fields.Name), string(fields.Address),
			fields.Birthdate, fields.Locale, p.password, p.macKey); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, insertAudit, "write", id(n))
		return err
	})
}

// read inserts the audit row and decrypts person n, in one transaction.
func (p *Postgres) read(ctx context.Context, c *pgx.Conn, n int64) (fields [6]string, err error) {
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insertAudit, "read", id(n)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, selectProfile, id(n), p.password).Scan(&fields[0], &fields[1], &fields[2], &fields[3], &fields[4], &fields[5])
	})
	return fields, err
}
