package verify

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxLogSize bounds the size that a checkpoint may claim. The tree arithmetic beneath works on int64 and
// does not end for sizes near its limit, so a forged size must be refused before any proof is looked at.
const MaxLogSize = 1 << 48

var (
	// ErrCheckpoint is returned for bytes that are not one well-formed checkpoint of the expected origin.
	ErrCheckpoint = errors.New("verify: malformed or foreign checkpoint")
	// ErrSignature is returned when a checkpoint lacks a valid signature of the ledger key, or when a
	// signature of a known key on it is wrong.
	ErrSignature = errors.New("verify: checkpoint signature is missing or wrong")
)

// Checkpoint is the size and root of a ledger at one moment.
//
// Its body is that of C2SP tlog-checkpoint without extension lines:
//
//	pdvault.example.org/ledger
//	20852163
//	CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// Format returns the body of c, the text that is signed. It does not validate c.
func (c Checkpoint) Format() []byte {
	return fmt.Appendf(nil, "%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
}

// EmptyCheckpoint is the checkpoint of a ledger without entries.
func EmptyCheckpoint(origin string) Checkpoint {
	root, err := tlog.TreeHash(0, nil)
	if err != nil {
		panic("verify: the empty tree has no hash: " + err.Error())
	}
	return Checkpoint{Origin: origin, Root: root}
}

// ParseCheckpoint decodes a checkpoint body strictly: what it accepts formats to the same bytes again.
func ParseCheckpoint(body []byte) (Checkpoint, error) {
	lines := strings.Split(string(body), "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, fmt.Errorf("%w: it must have three lines", ErrCheckpoint)
	}
	if err := checkOrigin(lines[0]); err != nil {
		return Checkpoint{}, err
	}
	size, err := parseDecimal(lines[1])
	if err != nil || size > MaxLogSize {
		return Checkpoint{}, fmt.Errorf("%w: bad size", ErrCheckpoint)
	}
	root, err := parseHash(lines[2])
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: bad root", ErrCheckpoint)
	}
	c := Checkpoint{Origin: lines[0], Size: size, Root: root}
	if size == 0 && root != EmptyCheckpoint(c.Origin).Root {
		return Checkpoint{}, fmt.Errorf("%w: the root of an empty log is not that of an empty tree", ErrCheckpoint)
	}
	return c, nil
}

// OpenCheckpoint verifies a signed checkpoint of the given origin. The signature of the ledger key is
// demanded: that of a witness does not replace it. Signatures of the witnesses given are verified where
// present and are among the Sigs of the returned note; how many are enough is for the caller to decide
// (see [Cosignatures]). A wrong signature of any key given here is an error.
func OpenCheckpoint(signed []byte, origin string, ledger note.Verifier, witnesses ...note.Verifier) (Checkpoint, *note.Note, error) {
	if ledger == nil {
		return Checkpoint{}, nil, fmt.Errorf("%w: no ledger key to check it with", ErrSignature)
	}
	keys := []note.Verifier{ledger}
	if several, ok := ledger.(anyKey); ok {
		keys = several.keys
	}
	n, err := note.Open(signed, verifierList(keys, witnesses))
	var invalid *note.InvalidSignatureError
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &invalid), errors.As(err, &unverified):
		return Checkpoint{}, nil, fmt.Errorf("%w: %w", ErrSignature, err)
	case err != nil:
		return Checkpoint{}, nil, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	if !slices.ContainsFunc(keys, func(k note.Verifier) bool { return signedBy(n, k) }) {
		return Checkpoint{}, nil, fmt.Errorf("%w: not signed by the ledger key", ErrSignature)
	}
	c, err := ParseCheckpoint([]byte(n.Text))
	if err != nil {
		return Checkpoint{}, nil, err
	}
	if c.Origin != origin {
		return Checkpoint{}, nil, fmt.Errorf("%w: it is of another origin", ErrCheckpoint)
	}
	return c, n, nil
}

// AnyKey returns the keys of one ledger, the newest first, as what OpenCheckpoint takes for the ledger key: the
// signature of any one of them is enough. A ledger whose key was replaced has checkpoints of each.
func AnyKey(newest note.Verifier, older ...note.Verifier) note.Verifier {
	return anyKey{newest, append([]note.Verifier{newest}, older...)}
}

// anyKey is the newest key to who does not know better.
type anyKey struct {
	note.Verifier
	keys []note.Verifier
}

// verifierList makes a list of the keys, each once: twice the same would count as ambiguous.
func verifierList(ledger, witnesses []note.Verifier) note.Verifiers {
	var keys []note.Verifier
	for _, w := range slices.Concat(ledger, witnesses) {
		same := func(k note.Verifier) bool { return k.Name() == w.Name() && k.KeyHash() == w.KeyHash() }
		if !slices.ContainsFunc(keys, same) {
			keys = append(keys, w)
		}
	}
	return note.VerifierList(keys...)
}

func signedBy(n *note.Note, v note.Verifier) bool {
	for _, sig := range n.Sigs {
		if sig.Name == v.Name() && sig.Hash == v.KeyHash() {
			return true
		}
	}
	return false
}

// checkOrigin demands what a note key name demands, since the ledger key is named after the origin.
func checkOrigin(origin string) error {
	if origin == "" || !utf8.ValidString(origin) || strings.Contains(origin, "+") ||
		strings.ContainsFunc(origin, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return fmt.Errorf("%w: bad origin", ErrCheckpoint)
	}
	return nil
}

// parseLines takes apart a text of lines: head, then "<name> <value>" for each of names, in their order.
func parseLines(text, head string, names []string) ([]string, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != len(names)+2 || lines[0] != head || lines[len(lines)-1] != "" {
		return nil, errors.New("type or number of lines")
	}
	values := make([]string, len(names))
	for i, name := range names {
		value, ok := strings.CutPrefix(lines[i+1], name+" ")
		if !ok {
			return nil, fmt.Errorf("no %s", name)
		}
		values[i] = value
	}
	return values, nil
}

// parseDecimal accepts a non-negative int64 in its only decimal form.
func parseDecimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, errors.New("not a canonical decimal number")
	}
	return n, nil
}

// parseHash accepts a hash in its only base64 form. The decoder alone would let line breaks and stray
// trailing bits through, which is why the result is encoded again.
func parseHash(s string) (tlog.Hash, error) {
	b, err := decodeBase64(s)
	if err != nil || len(b) != tlog.HashSize {
		return tlog.Hash{}, errors.New("not a base64 hash")
	}
	return tlog.Hash(b), nil
}

func decodeBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || base64.StdEncoding.EncodeToString(b) != s {
		return nil, errors.New("not canonical base64")
	}
	return b, nil
}
