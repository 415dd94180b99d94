package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/api/client"
)

// connection is where the server is and who calls.
type connection struct {
	server    string
	tokenFile string
	tokens    string
	as        string
	caFile    string
	plainHTTP bool
	timeout   time.Duration
}

// Environment variables that stand in for flags.
const (
	tokenVariable  = "PDVAULT_TOKEN"
	serverVariable = "PDVAULT_SERVER"

	defaultServer = "http://127.0.0.1:8080"
)

func (c *connection) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&c.server, "server", "", "http://host:port, https://host:port or unix:/path; default: the variable "+serverVariable+", or "+defaultServer)
	f.StringVar(&c.tokenFile, "token-file", "", "file with the bearer token; without it, the variable "+tokenVariable)
	f.StringVar(&c.tokens, "tokens", "", "tokens.json of dev mode; needs --as")
	f.StringVar(&c.as, "as", "", "caller to be, of --tokens")
	f.StringVar(&c.caFile, "ca-file", "", "PEM certificates to trust instead of the system's")
	f.BoolVar(&c.plainHTTP, "plain-http", false, "allow http:// to another host: token and data cross the network in the clear")
	f.DurationVar(&c.timeout, "timeout", 30*time.Second, "of one call with its retries")
}

// client makes the client that the flags ask for.
func (c *connection) client() (*client.Client, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	server := cmp.Or(c.server, os.Getenv(serverVariable), defaultServer)
	config := client.Config{Server: server, Token: token, PlainHTTP: c.plainHTTP, Timeout: c.timeout}
	if c.caFile != "" {
		pem, err := os.ReadFile(c.caFile)
		if err != nil {
			return nil, usagef("reading --ca-file: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, usagef("--ca-file holds no certificate")
		}
		config.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	}
	api, err := client.New(config)
	if err != nil {
		return nil, usage(err)
	}
	return api, nil
}

// token finds the bearer token. It is never taken from the command line, where others could see it.
func (c *connection) token() (string, error) {
	switch {
	case c.tokens != "" && c.tokenFile != "":
		return "", usagef("--tokens and --token-file exclude each other")
	case (c.tokens == "") != (c.as == ""):
		return "", usagef("--tokens and --as need each other")
	case c.tokens != "":
		raw, err := os.ReadFile(c.tokens)
		if err != nil {
			return "", usagef("reading --tokens: %w", err)
		}
		var all map[string]string
		if err := json.Unmarshal(raw, &all); err != nil {
			return "", usagef("--tokens is not the tokens.json of dev mode")
		}
		token, ok := all[c.as]
		if !ok {
			return "", usagef("--tokens has no caller %q", c.as)
		}
		return token, nil
	case c.tokenFile != "":
		raw, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return "", usagef("reading --token-file: %w", err)
		}
		return strings.TrimSpace(string(raw)), nil
	}
	return os.Getenv(tokenVariable), nil
}

// printJSON writes v as indented JSON.
func printJSON(cmd *cobra.Command, v any) error {
	err := json.MarshalWrite(cmd.OutOrStdout(), v, json.Deterministic(true), jsontext.WithIndent("  "))
	if err == nil {
		_, err = io.WriteString(cmd.OutOrStdout(), "\n")
	}
	if err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

// printed prints v unless there was an error.
func printed(cmd *cobra.Command, v any, err error) error {
	if err != nil {
		return err
	}
	return printJSON(cmd, v)
}

func subjectID(s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil {
		return uuid.Nil, usagef("the id must be a UUID")
	}
	return id, nil
}

const maxInput = 1 << 20 // bytes; the server takes no more

// input reads the file named by an argument; "-" and none are standard input.
func input(cmd *cobra.Command, a []string, i int) ([]byte, error) {
	if i >= len(a) || a[i] == "-" {
		return limited(cmd.InOrStdin())
	}
	f, err := os.Open(a[i])
	if err != nil {
		return nil, usage(err)
	}
	defer f.Close()
	return limited(f)
}

func limited(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the input: %w", err)
	case len(b) > maxInput:
		return nil, errors.New("the input is larger than 1 MiB")
	}
	return b, nil
}
