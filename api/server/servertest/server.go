package servertest

import (
	"testing"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api/server"
)

// Token returns the bearer token of a caller of Tokens.
func Token(caller string) string { return caller + "-token-of-a-test" }

// Callers are those of the default policy.
var Callers = map[string]verify.Caller{
	"shop":     {ID: "shop", Kind: "service", Role: policy.RoleService},
	"courier":  {ID: "courier", Kind: "service", Role: policy.RolePartner},
	"privacy":  {ID: "privacy", Kind: "person", Role: policy.RolePrivacyOfficer},
	"legal":    {ID: "legal", Kind: "person", Role: policy.RoleLegal},
	"security": {ID: "security", Kind: "person", Role: policy.RoleSecurity},
	"auditor":  {ID: "auditor", Kind: "person", Role: policy.RoleAuditor},
}

// MustTokens returns an Authenticator that knows each of Callers by Token.
func MustTokens(tb testing.TB) *server.Tokens {
	tb.Helper()
	var hashes []server.TokenHash
	for id := range Callers {
		hashes = append(hashes, server.TokenHash{CallerID: id, SHA256: server.HashToken(Token(id))})
	}
	tokens, err := server.NewTokens(hashes, func(id string) (verify.Caller, bool) { c, ok := Callers[id]; return c, ok })
	if err != nil {
		tb.Fatal(err)
	}
	return tokens
}

// MustServer returns a server over b and, unless config has another, MustTokens.
func MustServer(tb testing.TB, b server.Broker, config server.Config) *server.Server {
	tb.Helper()
	config.Broker = b
	if config.Authenticator == nil {
		config.Authenticator = MustTokens(tb)
	}
	s, err := server.New(config)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}
