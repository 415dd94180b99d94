package verify

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// BackupType is the first line of every manifest of a backup: the format and its version.
const BackupType = "pdvault/backup/v1"

// ErrBackup is returned for bytes that are not one well-formed manifest, or not one that a known ledger key has
// signed.
var ErrBackup = errors.New("verify: malformed or foreign manifest of a backup")

// Backup is the manifest of a backup of the data store: what the archive holds, and how far the ledger in it goes.
// It is signed with the ledger key as a note:
//
//	pdvault/backup/v1
//	instance main
//	id 0199f3a0-…
//	created 2026-11-22T10:00:00.000Z
//	count 12345
//	digest CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//	origin main.pdvault/ledger
//	size 20852163
//	root mP1+…=
//	generation 17
//
// The key also signs checkpoints, whose text has three lines, the first of which is the origin. A manifest has ten,
// the first of which can be no origin that its own sixth demands, so neither passes for the other.
type Backup struct {
	Instance   string
	ID         string // of the archive
	Created    string // TimeLayout
	Count      int64  // pairs in the archive
	Digest     tlog.Hash
	Ledger     Checkpoint // of the ledger in the archive
	Generation uint64     // of the key store, newest that was known
}

// Format returns the text of b. It does not validate b.
func (b Backup) Format() string {
	return fmt.Sprintf("%s\ninstance %s\nid %s\ncreated %s\ncount %d\ndigest %s\norigin %s\nsize %d\nroot %s\ngeneration %d\n",
		BackupType, b.Instance, b.ID, b.Created, b.Count, b.Digest, b.Ledger.Origin, b.Ledger.Size, b.Ledger.Root, b.Generation)
}

// ParseBackup decodes the text of a manifest strictly: what it accepts formats to the same bytes again.
func ParseBackup(text string) (Backup, error) {
	names := [...]string{"instance", "id", "created", "count", "digest", "origin", "size", "root", "generation"}
	values, err := parseLines(text, BackupType, names[:])
	if err != nil {
		return Backup{}, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	b := Backup{Instance: values[0], ID: values[1], Created: values[2]}
	if t, err := time.Parse(TimeLayout, b.Created); err != nil || FormatTime(t) != b.Created {
		return Backup{}, fmt.Errorf("%w: time", ErrBackup)
	}
	var errs [4]error
	b.Count, errs[0] = parseDecimal(values[3])
	b.Digest, errs[1] = parseHash(values[4])
	b.Ledger, errs[2] = ParseCheckpoint([]byte(values[5] + "\n" + values[6] + "\n" + values[7] + "\n"))
	b.Generation, errs[3] = strconv.ParseUint(values[8], 10, 64)
	if errors.Join(errs[:]...) != nil || b.Format() != text {
		return Backup{}, fmt.Errorf("%w: value of a line", ErrBackup)
	}
	return b, nil
}

// OpenBackup verifies a signed manifest: one of keys, which are those of the ledger that it names, must have
// signed it.
func OpenBackup(signed []byte, keys ...note.Verifier) (Backup, error) {
	n, err := note.Open(signed, note.VerifierList(keys...))
	if err != nil {
		return Backup{}, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	b, err := ParseBackup(n.Text)
	if err != nil {
		return Backup{}, err
	}
	for _, sig := range n.Sigs { // of known keys only
		if sig.Name == b.Ledger.Origin {
			return b, nil
		}
	}
	return Backup{}, fmt.Errorf("%w: not signed by the key of its ledger", ErrBackup)
}

// ReadBackup parses a signed manifest without verifying its signatures, for who only wants to know what it says.
func ReadBackup(signed []byte) (Backup, error) {
	text, _, ok := strings.Cut(string(signed), "\n\n")
	if !ok {
		return Backup{}, fmt.Errorf("%w: not a signed note", ErrBackup)
	}
	return ParseBackup(text + "\n")
}
