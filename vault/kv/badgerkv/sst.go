package badgerkv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"sort"

	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// errTable is what damage to a table looks like. It says nothing of the keys in it.
var errTable = errors.New("a table is not what was written")

// sst reads the file of one of Badger's tables, besides Badger. Its index is in memory, and was right when it was read; a
// block is verified each time that it is looked at. Badger verifies the index alone, when it opens a table, and reads both from
// a mapped file, which the kernel may have read from the disk once more.
//
// A table is blocks, then the index (a flatbuffer, see fb.TableIndex), its length, its checksum, and the length of that. A
// key ends in the number of its commit, subtracted from the greatest there is. Lengths have four bytes, big endian.
type sst struct {
	data              []byte // the mapped file; it may be cut off by the engine, and then a read faults
	index             *fb.TableIndex
	filter            y.Filter // of keys without their numbers
	smallest, biggest []byte   // keys
	newest            uint64   // number of the newest commit in it
	damaged           bool     // its index cannot be read, and nothing else is set
}

// openSST maps the table id in dir and reads its index.
func openSST(dir string, id uint64) (*sst, error) {
	f, err := os.Open(filepath.Join(dir, table.IDToFilename(id)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mapSST(f)
}

func mapSST(f *os.File) (*sst, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return nil, fmt.Errorf("%w: it is empty", errTable)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping it: %w", err)
	}
	t := &sst{data: data}
	// Who still reads an older set of tables holds on to this one.
	runtime.AddCleanup(t, func(data []byte) { _ = unix.Munmap(data) }, data)
	if err := t.readIndex(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *sst) readIndex() error {
	rest, sum, ok := cutSized(t.data)
	if !ok {
		return errTable
	}
	_, index, ok := cutSized(rest)
	if index = bytes.Clone(index); !ok || !isSum(sum, index) { // what is used is what was verified
		return errTable
	}
	t.index = fb.GetRootAsTableIndex(index, 0)
	t.filter, t.newest = t.index.BloomFilterBytes(), t.index.MaxVersion()
	n := t.index.OffsetsLength()
	if n == 0 {
		return errTable
	}
	t.smallest = t.base(0)
	last, err := t.block(n - 1)
	if err != nil {
		return err
	}
	key, _, err := last.entry(last.len()-1, nil)
	t.biggest = bytes.Clone(key)
	return err
}

// cutSized takes from the end of b a length, and what has that length and stands before it.
func cutSized(b []byte) (rest, sized []byte, ok bool) {
	at := len(b) - 4
	if at < 0 {
		return nil, nil, false
	}
	n := uint64(binary.BigEndian.Uint32(b[at:]))
	if n > uint64(at) {
		return nil, nil, false
	}
	return b[:at-int(n)], b[at-int(n) : at], true
}

// isSum reports whether sum is the CRC-32C of data as Badger writes it: a message of Protocol Buffers, in which field 2 is
// the sum and field 1, absent, the algorithm.
func isSum(sum, data []byte) bool {
	var buf [16]byte
	want := buf[:0]
	if n := crc32.Checksum(data, castagnoli); n != 0 {
		want = protowire.AppendVarint(protowire.AppendTag(want, 2, protowire.VarintType), uint64(n))
	}
	return bytes.Equal(sum, want)
}

// base is the first key of a block.
func (t *sst) base(block int) []byte {
	var at fb.BlockOffset
	t.index.Offsets(&at, block)
	return at.KeyBytes()
}

// block returns a block that is right at this moment.
func (t *sst) block(n int) (sstBlock, error) {
	from, to, err := t.span(n)
	if err != nil {
		return sstBlock{}, err
	}
	return readBlock(t.data[from:to])
}

// span is where a block lies in the file.
func (t *sst) span(block int) (from, to int64, err error) {
	var at fb.BlockOffset
	t.index.Offsets(&at, block)
	from, to = int64(at.Offset()), int64(at.Offset())+int64(at.Len())
	if to > int64(len(t.data)) {
		return 0, 0, errTable
	}
	return from, to, nil
}

// sstBlock is a verified block: entries, then where each of them begins, how many there are, the checksum of all that, and
// the length of the checksum. The numbers of where they begin, and those in an entry, have the byte order of the machine.
type sstBlock struct {
	entries []byte
	starts  []byte // four bytes each
}

func readBlock(data []byte) (b sstBlock, err error) {
	body, sum, ok := cutSized(data)
	if !ok || !isSum(sum, body) || len(body) < 4 {
		return b, errTable
	}
	at := len(body) - 4
	n := uint64(binary.BigEndian.Uint32(body[at:]))
	if n == 0 || n*4 > uint64(at) {
		return b, errTable
	}
	b.entries, b.starts = body[:at-int(n)*4], body[at-int(n)*4:at]
	return b, nil
}

func (b sstBlock) len() int { return len(b.starts) / 4 }

const entryHeader = 4 // how much of the block's first key this one begins with, and how long the rest is: two bytes each

// entry returns an entry: its key, in scratch if that is large enough, and its value as Badger encodes it.
func (b sstBlock) entry(n int, scratch []byte) (key, value []byte, err error) {
	base, _, _, ok := b.parts(0)
	diff, value, overlap, ok2 := b.parts(n)
	if !ok || !ok2 || overlap > len(base) || overlap+len(diff) < 8 {
		return nil, nil, errTable
	}
	return append(append(scratch[:0], base[:overlap]...), diff...), value, nil
}

func (b sstBlock) parts(n int) (diff, value []byte, overlap int, ok bool) {
	from, to := b.start(n), uint64(len(b.entries))
	if n+1 < b.len() {
		to = b.start(n + 1)
	}
	if from > to || to > uint64(len(b.entries)) || to-from < entryHeader {
		return nil, nil, 0, false
	}
	e := b.entries[from:to]
	end := entryHeader + int(binary.NativeEndian.Uint16(e[2:]))
	if end > len(e) {
		return nil, nil, 0, false
	}
	return e[entryHeader:end], e[end:], int(binary.NativeEndian.Uint16(e)), true
}

func (b sstBlock) start(n int) uint64 { return uint64(binary.NativeEndian.Uint32(b.starts[4*n:])) }

// written is an entry without its key.
type written struct {
	version uint64 // number of its commit; 0: nothing is written
	deleted bool
	value   []byte
}

const metaDelete = 1 // of Badger's first byte of a value

// blockOf returns the block in which key is, or would be: the last one whose first key is not greater.
func (t *sst) blockOf(key []byte) int {
	n := sort.Search(t.index.OffsetsLength(), func(n int) bool { return y.CompareKeys(t.base(n), key) > 0 })
	return max(n-1, 0)
}

// cursor stands at an entry of a table. What it shows is valid until it moves.
type cursor struct {
	t     *sst
	block int
	b     sstBlock
	n     int
	key   []byte
	value []byte // as Badger encodes it
	ok    bool   // there is an entry
}

// seek puts the cursor at the first entry whose key is not less than one.
func (c *cursor) seek(t *sst, key []byte) (err error) {
	c.t, c.block, c.n, c.ok = t, t.blockOf(key), 0, false
	if c.b, err = t.block(c.block); err != nil {
		return err
	}
	n := sort.Search(c.b.len(), func(n int) bool {
		var e error
		if c.key, _, e = c.b.entry(n, c.key); e != nil {
			err = e
			return false
		}
		return y.CompareKeys(c.key, key) >= 0
	})
	if err != nil {
		return err
	}
	return c.stand(n)
}

func (c *cursor) next() error { return c.stand(c.n + 1) }

// stand puts the cursor at entry n of its block, which may be the first one of the next block.
func (c *cursor) stand(n int) (err error) {
	c.ok = false
	if n == c.b.len() {
		if c.block+1 == c.t.index.OffsetsLength() {
			return nil
		}
		c.block, n = c.block+1, 0
		if c.b, err = c.t.block(c.block); err != nil {
			return err
		}
	}
	c.n = n
	if c.key, c.value, err = c.b.entry(n, c.key); err != nil {
		return err
	}
	c.ok = true
	return nil
}

// find returns the newest that is written under key up to the commit whose number it ends in.
func (c *cursor) find(t *sst, key []byte) (w written, err error) {
	if err := c.seek(t, key); err != nil || !c.ok || !y.SameKey(c.key, key) {
		return w, err
	}
	return c.written()
}

// written is what stands at the cursor.
func (c *cursor) written() (w written, err error) {
	if len(c.value) < 3 {
		return w, errTable
	}
	if _, n := binary.Uvarint(c.value[2:]); n <= 0 {
		return w, errTable
	}
	var v y.ValueStruct
	v.Decode(c.value)
	return written{version: y.ParseTs(c.key), deleted: v.Meta&metaDelete != 0, value: v.Value}, nil
}
