package badgerkv

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/prototypster/pdvault/vault/kv"
)

// checkLogs makes sure that the write-ahead logs go on where the tables end, and each where the one before it ends.
// Badger gives commits consecutive numbers and keeps the number with the data. It opens a store all the same when a log,
// or the end of one, is missing in the middle, or a table that the MANIFEST has forgotten: what is lost is then "not
// found", or an older value, while everything written later is there, the newest checkpoint too, so that nobody could
// tell. What is missing at the end of the last log is for the store's owner to detect.
//
// It returns the logs that must not be replayed. Logs become tables in their order, so one that ends before the tables do
// is in them. Badger deletes such logs, the oldest first; where a later one went before it, a compaction may have dropped
// a deletion with what it deleted, and the older log would bring that back.
func checkLogs(o Options, newest uint64) (superseded []string, err error) {
	paths, err := memLogs(o.Dir)
	if err != nil {
		return nil, err
	}
	inTables := newest
	slices.SortFunc(paths, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }) // they are numbers
	for _, path := range paths {
		first, last, err := commitsOf(path)
		if err != nil {
			return nil, fmt.Errorf("badgerkv: reading %s: %w", filepath.Base(path), err)
		}
		if first == 0 {
			continue // nothing was committed to it, or it was cut off where it begins; then the next one tells
		}
		if first > newest+1 {
			return nil, fmt.Errorf("badgerkv: commits %d to %d are missing before %s; nothing was touched; restore the directory from a backup: %w",
				newest+1, first-1, filepath.Base(path), kv.ErrIntegrity)
		}
		if last < inTables {
			superseded = append(superseded, path)
		}
		newest = max(newest, last)
	}
	return superseded, nil
}

// Of Badger's log format: a header of the file, then entries of a header, key, value and checksum. The last eight bytes
// of a key hold the number of its commit; an entry of its own ends each commit.
const (
	logHeader   = 20
	maxLogKey   = 1 << 16
	inCommit    = 1 << 6
	endOfCommit = 1 << 7
)

// errLogEnd is where a log ends, whole or not: like Badger, we take whatever is no entry for its end.
var errLogEnd = errors.New("end of log")

// commitsOf returns the numbers of the first and the last whole commit in a log, 0 when there is none.
func commitsOf(path string) (first, last uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	r := &logReader{r: bufio.NewReaderSize(f, 1<<16), sum: crc32.New(crc32.MakeTable(crc32.Castagnoli)), size: info.Size()}
	if _, err := r.r.Discard(logHeader); err != nil {
		return 0, 0, ignoreEnd(err)
	}
	var open uint64 // the commit whose entries are being read
	for {
		meta, key, value, err := r.entry()
		if err != nil {
			return first, last, ignoreEnd(err)
		}
		switch number := math.MaxUint64 - binary.BigEndian.Uint64(key[len(key)-8:]); {
		case meta&inCommit != 0 && (open == 0 || open == number):
			open = number
		case meta&endOfCommit != 0 && string(value) == strconv.FormatUint(open, 10):
			if first == 0 {
				first = open
			}
			last, open = open, 0
		default:
			return first, last, nil
		}
	}
}

func ignoreEnd(err error) error {
	if errors.Is(err, errLogEnd) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// logReader reads entries and sums what it reads.
type logReader struct {
	r    *bufio.Reader
	sum  hash.Hash32
	size int64 // of the file: nothing in it is larger
	kv   []byte
}

// ReadByte is for the numbers in the header.
func (r *logReader) ReadByte() (byte, error) {
	b, err := r.r.ReadByte()
	if err == nil {
		_, err = r.sum.Write([]byte{b})
	}
	return b, err
}

func (r *logReader) entry() (meta byte, key, value []byte, err error) {
	r.sum.Reset()
	if meta, err = r.ReadByte(); err != nil {
		return 0, nil, nil, err
	}
	if _, err = r.ReadByte(); err != nil { // of the user
		return 0, nil, nil, err
	}
	var sizes [3]uint64 // of key and value; and when it expires
	for i := range sizes {
		if sizes[i], err = binary.ReadUvarint(r); err != nil {
			return 0, nil, nil, errors.Join(errLogEnd, err)
		}
	}
	if sizes[0] < 8 || sizes[0] > maxLogKey || sizes[1] > uint64(r.size) {
		return 0, nil, nil, errLogEnd
	}
	r.kv = slices.Grow(r.kv[:0], int(sizes[0]+sizes[1]))[:sizes[0]+sizes[1]]
	var sum [crc32.Size]byte
	if _, err = io.ReadFull(r.r, r.kv); err != nil {
		return 0, nil, nil, err
	}
	if _, err = io.ReadFull(r.r, sum[:]); err != nil {
		return 0, nil, nil, err
	}
	if _, err = r.sum.Write(r.kv); err != nil {
		return 0, nil, nil, err
	}
	if binary.BigEndian.Uint32(sum[:]) != r.sum.Sum32() {
		return 0, nil, nil, errLogEnd
	}
	return meta, r.kv[:sizes[0]], r.kv[sizes[0]:], nil
}
