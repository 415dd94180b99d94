package badgerkv

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/prototypster/pdvault/vault/kv"
)

// Of Badger's MANIFEST: a header, then sets of changes, each behind its length and its checksum. A set is in force as a
// whole or not at all.
const (
	manifestHeader = 8
	setHeader      = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// listed is one table of a MANIFEST.
type listed struct {
	Level       uint32 `json:"level"`
	KeyID       uint64 `json:"key,omitempty"`
	Compression uint32 `json:"compression,omitempty"`
}

// change is one set of changes. Whatever deletes tables is a compaction; a table that was flushed comes alone.
type change struct {
	created map[uint64]listed
	deleted []uint64
}

// decodeChanges returns the whole sets in data and how many bytes they take. What follows is a set that is being written.
func decodeChanges(data []byte) (sets []change, size int64, err error) {
	for len(data) >= setHeader {
		n := uint64(binary.BigEndian.Uint32(data))
		if n > uint64(len(data)-setHeader) {
			break
		}
		body := data[setHeader : setHeader+n]
		if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(data[4:]) {
			return nil, 0, fmt.Errorf("badgerkv: %s: checksum of a set of changes: %w", badger.ManifestFilename, kv.ErrIntegrity)
		}
		var raw pb.ManifestChangeSet
		if err := proto.Unmarshal(body, &raw); err != nil {
			return nil, 0, fmt.Errorf("badgerkv: %s: set of changes (%w): %w", badger.ManifestFilename, err, kv.ErrIntegrity)
		}
		set := change{created: map[uint64]listed{}}
		for _, c := range raw.Changes {
			switch c.Op {
			case pb.ManifestChange_CREATE:
				set.created[c.Id] = listed{Level: c.Level, KeyID: c.KeyId, Compression: c.Compression}
			case pb.ManifestChange_DELETE:
				set.deleted = append(set.deleted, c.Id)
			default:
				return nil, 0, fmt.Errorf("badgerkv: %s: unknown change: %w", badger.ManifestFilename, kv.ErrIntegrity)
			}
		}
		sets = append(sets, set)
		size += setHeader + int64(n)
		data = data[setHeader+n:]
	}
	return sets, size, nil
}

// apply makes the changes in tables.
func (c change) apply(tables map[uint64]listed) {
	maps.Copy(tables, c.created)
	for _, id := range c.deleted {
		delete(tables, id)
	}
}

// readManifest returns the tables that a MANIFEST lists.
func readManifest(data []byte) (map[uint64]listed, error) {
	tables := map[uint64]listed{}
	if len(data) < manifestHeader {
		return nil, fmt.Errorf("badgerkv: %s is too short: %w", badger.ManifestFilename, kv.ErrIntegrity)
	}
	sets, _, err := decodeChanges(data[manifestHeader:])
	for _, set := range sets {
		set.apply(tables)
	}
	return tables, err
}

// writeManifest puts a MANIFEST that lists tables in the place of the one in dir. It is checked by the engine's own
// reader before.
func writeManifest(o Options, header []byte, tables map[uint64]listed) error {
	var set pb.ManifestChangeSet
	for id, t := range tables {
		set.Changes = append(set.Changes, &pb.ManifestChange{
			Id: id, Op: pb.ManifestChange_CREATE, Level: t.Level, KeyId: t.KeyID,
			EncryptionAlgo: pb.EncryptionAlgo_aes, Compression: t.Compression, // the only one there is, also without a key
		})
	}
	body, err := proto.Marshal(&set)
	if err != nil {
		return fmt.Errorf("badgerkv: encoding %s: %w", badger.ManifestFilename, err)
	}
	data := append([]byte(nil), header...)
	data = binary.BigEndian.AppendUint32(data, uint32(len(body)))
	data = binary.BigEndian.AppendUint32(data, crc32.Checksum(body, castagnoli))
	return replaceDurably(o.Dir, badger.ManifestFilename, append(data, body...), func(f *os.File) error {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		got, _, err := badger.ReplayManifestFile(f, formatVersion, o.engine())
		if err != nil {
			return err
		}
		same := len(got.Tables) == len(tables)
		for id, t := range got.Tables {
			same = same && tables[id] == listed{Level: uint32(t.Level), KeyID: t.KeyID, Compression: uint32(t.Compression)}
		}
		if !same {
			return errors.New("it lists other tables than it should")
		}
		return nil
	})
}

// manifestView is the MANIFEST of an open store as it was at one moment.
type manifestView struct {
	path   string
	ino    uint64
	size   int64     // of the whole sets
	sum    hash.Hash // SHA-256 of that part
	tables map[uint64]listed
	// flushed is the table of the last flush. The MANIFEST lists it before a reader, or a pin, can get at it.
	flushed uint64
}

func viewManifest(dir string) (*manifestView, error) {
	v := &manifestView{path: filepath.Join(dir, badger.ManifestFilename), sum: sha256.New()}
	s, raw, err := v.look()
	if err == nil {
		v.follow(s, raw)
	}
	return v, err
}

// stamp is what tells without reading that a MANIFEST is as it was: Badger appends to it, or puts a new file in its place.
type stamp struct {
	ino  uint64
	size int64
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{}, fmt.Errorf("badgerkv: stat of %s: %w", filepath.Base(path), err)
	}
	return stamp{st.Ino, st.Size}, nil
}

// since is what has become of a MANIFEST since a view of it.
type since struct {
	sets      []change // appended, in their order
	rewritten bool     // then only what it lists now is known
	tables    map[uint64]listed
	stamp     stamp
}

// look reads what has changed since the view. The engine may be appending meanwhile.
func (v *manifestView) look() (s since, raw []byte, err error) {
	f, err := os.Open(v.path)
	if err != nil {
		return s, nil, fmt.Errorf("badgerkv: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return s, nil, fmt.Errorf("badgerkv: stat of %s: %w", badger.ManifestFilename, err)
	}
	s.stamp.ino = st.Ino
	s.rewritten = st.Ino != v.ino || st.Size < v.size
	from := v.size
	if s.rewritten {
		from = 0
	}
	raw = make([]byte, st.Size-from)
	if _, err := io.ReadFull(io.NewSectionReader(f, from, st.Size-from), raw); err != nil {
		return s, nil, fmt.Errorf("badgerkv: reading %s: %w", badger.ManifestFilename, err)
	}
	var size int64
	if s.rewritten {
		if len(raw) < manifestHeader {
			return s, nil, fmt.Errorf("badgerkv: %s is too short: %w", badger.ManifestFilename, kv.ErrIntegrity)
		}
		s.tables = map[uint64]listed{}
		s.sets, size, err = decodeChanges(raw[manifestHeader:])
		size += manifestHeader
	} else {
		s.tables = maps.Clone(v.tables)
		s.sets, size, err = decodeChanges(raw)
	}
	if err != nil {
		return s, nil, err
	}
	for _, set := range s.sets {
		set.apply(s.tables)
	}
	if s.rewritten {
		s.sets = nil
	}
	s.stamp.size = from + size
	return s, raw[:size], nil
}

// follow makes the view one of now.
func (v *manifestView) follow(s since, raw []byte) {
	if s.rewritten {
		v.sum.Reset()
		v.flushed = 0
		for id, t := range s.tables {
			if t.Level == 0 {
				v.flushed = max(v.flushed, id)
			}
		}
	}
	for _, set := range s.sets {
		for id := range set.created {
			if len(set.deleted) == 0 {
				v.flushed = id
			}
		}
	}
	v.sum.Write(raw)
	v.ino, v.size, v.tables = s.stamp.ino, s.stamp.size, s.tables
}
