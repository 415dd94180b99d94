// Package archive is the form in which the rows of a store leave it for a backup: one stream that says at each
// point whether it is whole so far, and at its end that nothing is missing.
//
// It must never decide what a backup holds, never encrypt or sign, and never hold more than one block in memory.
// What it notices without a key is accident: a cut, a flipped bit, a file of another kind or version. Who wants
// to deceive can compute digests too, so the owner of the rows signs the digest (see [Writer.Close]), or
// encrypts all that follows the header.
package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
)

var (
	// ErrTruncated is returned when the stream ends before the archive does.
	ErrTruncated = errors.New("archive: cut short")
	// ErrDamaged is returned when what was read is not what was written.
	ErrDamaged = errors.New("archive: damaged")
	// ErrForeign is returned for what is no archive, or one of another kind.
	ErrForeign = errors.New("archive: not an archive of this kind")
	// ErrNewer is returned for an archive of a later version of the format.
	ErrNewer = errors.New("archive: made by a newer version")
)

// Kinds of archives.
const (
	KindData = "data" // of pdvault's store
	KindKeys = "keys" // of the sidecar's key store; encrypted behind the header
)

// Header says what an archive is. Layout, before everything else:
//
//	"pdvault/archive/v1\n" ‖ length (4 bytes, big endian) ‖ JSON ‖ SHA-256 of all before (32 bytes)
//
// Example of the JSON, whose members are in the order of this struct, without space:
//
//	{"kind":"data","instance":"main","id":"0199…","created":"2026-11-22T10:00:00.000Z","store":"5f1d…"}
type Header struct {
	Kind     string    `json:"kind"`
	Instance string    `json:"instance"`
	ID       uuid.UUID `json:"id"`
	Created  string    `json:"created"`        // TimeLayout
	Store    string    `json:"store,omitzero"` // id of the store, where it has one
	Key      *Key      `json:"key,omitzero"`   // KindKeys: of the encryption of what follows
}

// Key is a wrapped key.
type Key struct {
	KEK     string `json:"kek"`     // kind of what wrapped it
	Version uint64 `json:"version"` // of that
	Wrapped []byte `json:"wrapped"`
}

// TimeLayout is the layout of times in headers: RFC 3339, UTC, milliseconds.
const TimeLayout = "2006-01-02T15:04:05.000Z"

// NewHeader returns the header of an archive that is made at t.
func NewHeader(kind, instance string, t time.Time) Header {
	return Header{Kind: kind, Instance: instance, ID: uuid.Must(uuid.NewV7()), Created: t.UTC().Format(TimeLayout)}
}

const (
	magic     = "pdvault/archive/v1\n"
	magicStem = "pdvault/archive/v" // then the version in decimal and a line feed
	maxHeader = 64 << 10            // bytes of JSON
)

// WriteHeader writes h and returns the bytes that it wrote.
func WriteHeader(w io.Writer, h Header) ([]byte, error) {
	text, err := json.Marshal(&h)
	if err != nil {
		return nil, fmt.Errorf("encoding the header of an archive: %w", err)
	}
	if len(text) > maxHeader {
		return nil, fmt.Errorf("header of an archive: %w", kv.ErrTooLarge)
	}
	b := append(make([]byte, 0, len(magic)+4+len(text)+sha256.Size), magic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	sum := sha256.Sum256(b)
	b = append(b, sum[:]...)
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("writing an archive: %w", err)
	}
	return b, nil
}

// ReadHeader reads the header of an archive of the given kind, and nothing behind it. It also returns the bytes
// that it read, to which everything that follows is bound.
func ReadHeader(r io.Reader, kind string) (Header, []byte, error) {
	b := make([]byte, len(magic)+4, 1<<10)
	n, err := io.ReadFull(r, b[:len(magic)])
	switch got := string(b[:n]); {
	case got == magic:
	case got == magic[:n] && ended(err):
		return Header{}, nil, ErrTruncated
	case err != nil && !ended(err):
		return Header{}, nil, fmt.Errorf("reading an archive: %w", err)
	case newer(b[:n]):
		return Header{}, nil, ErrNewer
	default:
		return Header{}, nil, fmt.Errorf("it does not begin like an archive: %w", ErrForeign)
	}
	if err := readFull(r, b[len(magic):]); err != nil {
		return Header{}, nil, err
	}
	size := binary.BigEndian.Uint32(b[len(magic):])
	if size == 0 || size > maxHeader {
		return Header{}, nil, fmt.Errorf("length of the header: %w", ErrDamaged)
	}
	b = append(b, make([]byte, int(size)+sha256.Size)...)
	if err := readFull(r, b[len(magic)+4:]); err != nil {
		return Header{}, nil, err
	}
	end := len(b) - sha256.Size
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:], b[end:]) {
		return Header{}, nil, fmt.Errorf("header: %w", ErrDamaged)
	}
	var h Header
	text := b[len(magic)+4 : end]
	if err := json.Unmarshal(text, &h, json.RejectUnknownMembers(true)); err != nil {
		return Header{}, nil, fmt.Errorf("header is not strict JSON: %w", ErrDamaged)
	}
	if again, err := json.Marshal(&h); err != nil || !bytes.Equal(again, text) {
		return Header{}, nil, fmt.Errorf("header is not in its only form: %w", ErrDamaged)
	}
	if t, err := time.Parse(TimeLayout, h.Created); err != nil || t.Format(TimeLayout) != h.Created {
		return Header{}, nil, fmt.Errorf("time in the header: %w", ErrDamaged)
	}
	if h.Kind != kind {
		return Header{}, nil, fmt.Errorf("it is a backup of kind %q, not %q: %w", h.Kind, kind, ErrForeign)
	}
	return h, b, nil
}

// newer reports whether b begins like an archive of a later version.
func newer(b []byte) bool {
	rest, ok := bytes.CutPrefix(b, []byte(magicStem))
	if !ok || len(rest) == 0 || rest[0] < '1' || rest[0] > '9' {
		return false
	}
	digits := bytes.TrimRight(rest, "\n")
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// readFull fills b; an end before that is ErrTruncated.
func readFull(r io.Reader, b []byte) error {
	if _, err := io.ReadFull(r, b); ended(err) {
		return ErrTruncated
	} else if err != nil {
		return fmt.Errorf("reading an archive: %w", err)
	}
	return nil
}

// Summary is what an archive comes to. Digest covers the header, every pair and the count.
type Summary struct {
	Count  int64 // pairs
	Bytes  int64 // of keys and values
	Digest [sha256.Size]byte
}

// Blocks follow the header. Layout of each:
//
//	type (1 byte) ‖ length (4 bytes, big endian) ‖ content ‖ digest (32 bytes)
//
// where digest is the SHA-256 of the digest before, type, length and content; before the first block stands the
// SHA-256 of the header as it was written. So a block says that it and all before it are whole. In order:
//
//	0x01  any number of times: pairs, each uvarint length ‖ key ‖ uvarint length ‖ value. Keys ascend strictly,
//	      through all blocks
//	0x02  once: number of pairs (8 bytes, big endian). Its digest is that of the archive
//	0x03  once: the seal, which is the owner's own, at most 16 KiB. Nothing follows
const (
	blockPairs = 0x01
	blockEnd   = 0x02
	blockSeal  = 0x03

	blockHead = 5
	blockFill = 256 << 10 // a block is written when it has reached this
	maxSeal   = 16 << 10
	maxBlock  = blockFill + kv.MaxKeySize + kv.MaxValueSize + 2*binary.MaxVarintLen32
)

// Writer writes what follows a header. It keeps its first error.
type Writer struct {
	w     io.Writer
	chain [sha256.Size]byte
	block []byte // being filled, with room for its head
	last  []byte // key
	sum   Summary
	err   error
}

// NewWriter returns a Writer behind header, the bytes that WriteHeader returned.
func NewWriter(w io.Writer, header []byte) *Writer {
	return &Writer{w: w, chain: sha256.Sum256(header), block: make([]byte, blockHead, blockFill+(64<<10))}
}

// Add appends a pair, whose key must be above that of the last one.
func (w *Writer) Add(key, value []byte) error {
	switch {
	case w.err != nil:
		return w.err
	case len(key) == 0 || len(key) > kv.MaxKeySize || len(value) > kv.MaxValueSize:
		w.err = fmt.Errorf("adding to an archive: %w", kv.ErrTooLarge)
		return w.err
	case bytes.Compare(key, w.last) <= 0:
		w.err = errors.New("archive: keys are not in ascending order")
		return w.err
	}
	w.last = append(w.last[:0], key...)
	w.block = binary.AppendUvarint(w.block, uint64(len(key)))
	w.block = append(w.block, key...)
	w.block = binary.AppendUvarint(w.block, uint64(len(value)))
	w.block = append(w.block, value...)
	w.sum.Count++
	w.sum.Bytes += int64(len(key) + len(value))
	if len(w.block) >= blockHead+blockFill {
		w.flush(blockPairs)
	}
	return w.err
}

// flush writes the block being filled and begins another.
func (w *Writer) flush(kind byte) {
	if w.err != nil {
		return
	}
	w.block[0] = kind
	binary.BigEndian.PutUint32(w.block[1:], uint32(len(w.block)-blockHead))
	w.chain = chained(w.chain, w.block)
	w.block = append(w.block, w.chain[:]...)
	if _, err := w.w.Write(w.block); err != nil {
		w.err = fmt.Errorf("writing an archive: %w", err)
	}
	w.block = w.block[:blockHead]
}

func chained(before [sha256.Size]byte, block []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(before[:])
	h.Write(block)
	h.Sum(sum[:0])
	return sum
}

// Close ends the archive; it does not close what it wrote to. seal makes what stands at the very end, of what
// the archive came to; nil: nothing does.
func (w *Writer) Close(seal func(Summary) ([]byte, error)) (Summary, error) {
	if len(w.block) > blockHead {
		w.flush(blockPairs)
	}
	w.block = binary.BigEndian.AppendUint64(w.block, uint64(w.sum.Count))
	w.flush(blockEnd)
	if w.err != nil {
		return Summary{}, w.err
	}
	w.sum.Digest = w.chain
	if seal != nil {
		b, err := seal(w.sum)
		if err == nil && len(b) > maxSeal {
			err = fmt.Errorf("seal of an archive: %w", kv.ErrTooLarge)
		}
		if err != nil {
			w.err = err
			return Summary{}, err
		}
		w.block = append(w.block, b...)
	}
	w.flush(blockSeal)
	if w.err != nil {
		return Summary{}, w.err
	}
	w.err = errors.New("archive: Writer is closed")
	return w.sum, nil
}

// Reader reads what follows a header. It keeps its first error, and gives no pair of a block that is not whole.
type Reader struct {
	r     io.Reader
	chain [sha256.Size]byte
	buf   []byte // the block read last, with its head
	pairs []byte // of it, not yet given
	last  []byte // key
	sum   Summary
	seal  []byte
	err   error
}

// NewReader returns a Reader behind header, the bytes that ReadHeader returned.
func NewReader(r io.Reader, header []byte) *Reader {
	return &Reader{r: r, chain: sha256.Sum256(header)}
}

// Next returns the next pair, which is the caller's. It returns io.EOF once the whole archive was read, found
// whole, and nothing follows it.
func (r *Reader) Next() (kv.Pair, error) {
	for r.err == nil {
		if len(r.pairs) > 0 {
			p, err := r.pair()
			if err != nil {
				r.err = err
				break
			}
			return p, nil
		}
		r.err = r.advance()
	}
	return kv.Pair{}, r.err
}

// advance reads the next block; io.EOF after the last one.
func (r *Reader) advance() error {
	kind, content, err := r.readBlock()
	if err != nil {
		return err
	}
	switch {
	case kind == blockPairs && len(content) > 0:
		r.pairs = content
		return nil
	case kind != blockEnd || len(content) != 8 || binary.BigEndian.Uint64(content) != uint64(r.sum.Count):
		return fmt.Errorf("block of an archive: %w", ErrDamaged)
	}
	r.sum.Digest = r.chain
	if kind, content, err = r.readBlock(); err != nil {
		return err
	}
	if kind != blockSeal || len(content) > maxSeal {
		return fmt.Errorf("seal of an archive: %w", ErrDamaged)
	}
	r.seal = bytes.Clone(content)
	var more [1]byte
	switch _, err := io.ReadFull(r.r, more[:]); {
	case errors.Is(err, io.EOF):
		return io.EOF
	case err != nil:
		return fmt.Errorf("reading an archive: %w", err)
	}
	return fmt.Errorf("something follows its end: %w", ErrDamaged)
}

func (r *Reader) readBlock() (kind byte, content []byte, err error) {
	var head [blockHead]byte
	if err := readFull(r.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] < blockPairs || head[0] > blockSeal || n > maxBlock {
		return 0, nil, fmt.Errorf("block of an archive: %w", ErrDamaged)
	}
	end := blockHead + int(n)
	if cap(r.buf) < end+sha256.Size {
		r.buf = make([]byte, end+sha256.Size)
	}
	r.buf = r.buf[:end+sha256.Size]
	copy(r.buf, head[:])
	if err := readFull(r.r, r.buf[blockHead:]); err != nil {
		return 0, nil, err
	}
	sum := chained(r.chain, r.buf[:end])
	if !bytes.Equal(sum[:], r.buf[end:]) {
		return 0, nil, fmt.Errorf("block of an archive: %w", ErrDamaged)
	}
	r.chain = sum
	return head[0], r.buf[blockHead:end:end], nil
}

// pair takes the next pair out of the block.
func (r *Reader) pair() (kv.Pair, error) {
	key, rest, ok := cut(r.pairs, kv.MaxKeySize)
	value, rest, ok2 := cut(rest, kv.MaxValueSize)
	if !ok || !ok2 || len(key) == 0 || bytes.Compare(key, r.last) <= 0 {
		return kv.Pair{}, fmt.Errorf("pair of an archive: %w", ErrDamaged)
	}
	r.pairs = rest
	r.last = append(r.last[:0], key...)
	r.sum.Count++
	r.sum.Bytes += int64(len(key) + len(value))
	return kv.Pair{Key: append(make([]byte, 0, len(key)), key...), Value: append(make([]byte, 0, len(value)), value...)}, nil
}

// cut takes a length, in its shortest form and at most limit, and so many bytes from b.
func cut(b []byte, limit uint64) (v, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || size > 1 && b[size-1] == 0 || n > limit || n > uint64(len(b)-size) {
		return nil, nil, false
	}
	return b[size : size+int(n)], b[size+int(n):], true
}

// Summary is what the archive came to. It is complete once Next has returned io.EOF.
func (r *Reader) Summary() Summary { return r.sum }

// Seal is what the owner put at the end; empty before Next has returned io.EOF.
func (r *Reader) Seal() []byte { return r.seal }
