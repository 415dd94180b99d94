package badgerkv

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// fsInfo is what the guards need to know of a file system.
type fsInfo struct {
	magic       int64
	total, free int64 // bytes; free is what an unprivileged program may use
}

func statfs(dir string) (fsInfo, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fsInfo{}, fmt.Errorf("badgerkv: statfs of %s: %w", dir, err)
	}
	return fsInfo{
		magic: int64(st.Type) & 0xffffffff, // some are negative as int32
		total: int64(st.Blocks) * int64(st.Bsize),
		free:  int64(st.Bavail) * int64(st.Bsize),
	}, nil
}

// File systems on which a synced write through a mapping is known to last.
var soundFS = map[int64]bool{
	0xef53:     true, // ext4
	0x58465342: true, // XFS
}

// File systems where locks, mappings or syncs do not mean what the engine takes them to mean.
var refusedFS = map[int64]string{
	0x6969:     "NFS",
	0x517b:     "SMB",
	0xff534d42: "CIFS",
	0xfe534d42: "SMB2",
	0x65735546: "FUSE",
	0x01021997: "9p",
	0x00c36400: "Ceph",
	0x5346414f: "AFS",
	0x73757245: "Coda",
	0x0bd00bd0: "Lustre",
	0x47504653: "GPFS",
}

// allocate gives f size bytes that are really taken from the file system, not a hole.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = io.CopyN(f, zeros{}, size)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// allocated is the space that the file really takes, which for Badger's mapped logs is far below its size.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("badgerkv: stat of %s: %w", path, err)
	}
	return st.Blocks * 512, nil
}

// copySparse copies src to dst, which must not exist, with its holes, and syncs it.
func copySparse(src, dst string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	if err := copyData(in, out, info.Size()); err != nil {
		return err
	}
	return out.Sync()
}

func copyData(in, out *os.File, size int64) error {
	for end := int64(0); end < size; {
		start, err := unix.Seek(int(in.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		if end, err = unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		section := io.NewSectionReader(in, start, end-start)
		if _, err := io.Copy(io.NewOffsetWriter(out, start), section); err != nil {
			return err
		}
	}
	return nil
}
