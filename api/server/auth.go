package server

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

var (
	// ErrNoCredentials is returned by an Authenticator when the request carries none. It is answered with
	// 401 and not recorded.
	ErrNoCredentials = errors.New("server: request carries no credentials")
	// ErrBadCredentials is returned by an Authenticator when the credentials are malformed, unknown, expired
	// or revoked. It is answered with 401 and recorded.
	ErrBadCredentials = errors.New("server: credentials are not accepted")
)

// Authenticator says who sent a request. It may be called from any goroutine. An error that wraps neither
// ErrNoCredentials nor ErrBadCredentials means that it could not tell, and is answered with 500 or as the
// error table says.
type Authenticator interface {
	Authenticate(*http.Request) (verify.Caller, error)
}

// TokenHash is the right of a caller to authenticate with one token. Of the token only the hash is kept.
type TokenHash struct {
	CallerID string
	SHA256   [sha256.Size]byte // of the token as it is sent
}

// Tokens authenticates by static bearer tokens.
type Tokens struct {
	hashes  []TokenHash
	resolve func(callerID string) (verify.Caller, bool)
}

var _ Authenticator = (*Tokens)(nil)

// NewTokens returns an Authenticator of hashes. resolve gives kind and role of a caller, as the policy has
// them now; a caller that it does not know cannot authenticate. A caller may have several tokens; two callers
// cannot share one.
func NewTokens(hashes []TokenHash, resolve func(callerID string) (verify.Caller, bool)) (*Tokens, error) {
	if resolve == nil {
		return nil, errors.New("server: NewTokens needs a resolve function")
	}
	seen := make(map[[sha256.Size]byte]bool, len(hashes))
	for _, h := range hashes {
		if !isName(h.CallerID) {
			return nil, errors.New("server: a token has no valid caller id")
		}
		if seen[h.SHA256] {
			return nil, fmt.Errorf("server: a token of caller %s is listed twice", h.CallerID)
		}
		seen[h.SHA256] = true
	}
	return &Tokens{hashes: append([]TokenHash(nil), hashes...), resolve: resolve}, nil
}

const maxToken = 512 // characters

// Authenticate compares the hash of the presented token with every hash kept: the same work whether, and
// where, it matches.
func (t *Tokens) Authenticate(r *http.Request) (verify.Caller, error) {
	header := r.Header["Authorization"]
	if len(header) == 0 {
		return verify.Caller{}, ErrNoCredentials
	}
	scheme, token, _ := strings.Cut(header[0], " ")
	if len(header) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return verify.Caller{}, ErrBadCredentials
	}
	sum := sha256.Sum256([]byte(token))
	found := -1
	for i := range t.hashes {
		eq := subtle.ConstantTimeCompare(t.hashes[i].SHA256[:], sum[:])
		found = subtle.ConstantTimeSelect(eq, i, found)
	}
	if found < 0 {
		return verify.Caller{}, ErrBadCredentials
	}
	caller, ok := t.resolve(t.hashes[found].CallerID)
	if !ok {
		return verify.Caller{}, ErrBadCredentials
	}
	caller.ID, caller.Authn = t.hashes[found].CallerID, "token"
	return caller, nil
}

// HashToken returns the hash under which a token is kept.
func HashToken(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

// tokenLine is one line of a tokens file.
//
// Example:
//
//	{"caller":"shop","sha256":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
type tokenLine struct {
	Caller string `json:"caller"`
	SHA256 string `json:"sha256"`
}

// FormatToken returns the line of a tokens file for h, without a line break.
func FormatToken(h TokenHash) string {
	b, err := json.Marshal(tokenLine{h.CallerID, hex.EncodeToString(h.SHA256[:])})
	if err != nil {
		panic("server: token line cannot be encoded: " + err.Error()) // two strings: a bug here, not input
	}
	return string(b)
}

// ParseTokens reads a tokens file: one JSON object per line; empty lines and lines that begin with # are
// skipped.
func ParseTokens(r io.Reader) ([]TokenHash, error) {
	var hashes []TokenHash
	scanner := bufio.NewScanner(r)
	for n := 1; scanner.Scan(); n++ {
		text := strings.TrimSpace(scanner.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		var line tokenLine
		if err := json.Unmarshal([]byte(text), &line, json.RejectUnknownMembers(true)); err != nil {
			return nil, fmt.Errorf("server: tokens file, line %d: not {\"caller\":…,\"sha256\":…}", n)
		}
		sum, err := hex.DecodeString(line.SHA256)
		if err != nil || len(sum) != sha256.Size || !isName(line.Caller) {
			return nil, fmt.Errorf("server: tokens file, line %d: caller or hash is malformed", n)
		}
		hashes = append(hashes, TokenHash{line.Caller, [sha256.Size]byte(sum)})
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("reading the tokens file: %w", err)
	}
	return hashes, nil
}
