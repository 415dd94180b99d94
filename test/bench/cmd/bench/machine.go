package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unicode"
)

// command is what was called with args, by the name by which anybody can call it again.
func command(args []string) string {
	line := "go run ./test/bench/cmd/bench"
	for _, arg := range args {
		if arg == "" || strings.ContainsFunc(arg, func(r rune) bool {
			return !strings.ContainsRune("-=.,/:_", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		}) {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		line += " " + arg
	}
	return line
}

// loadAverage says how busy the machine is, over one, five and fifteen minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(len(f), 3)], ", ")
}

// machine is what matters of this machine; data lies in dir.
func machine(dir string) string {
	return fmt.Sprintf("%s/%s, %d cores, %s, %d GB, %s, %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cpu(), memoryGB(), fileSystem(dir), runtime.Version())
}

func cpu() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t: "))
		}
	}
	return "unknown processor"
}

func memoryGB() uint64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0
	}
	return (info.Totalram*uint64(info.Unit) + 1<<29) >> 30
}

// fileSystem names the file system of dir, by the magic numbers of statfs(2).
func fileSystem(dir string) string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "unknown file system"
	}
	for magic, name := range map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x01021994: "tmpfs", 0x9123683e: "btrfs", 0x794c7630: "overlayfs"} {
		if int64(st.Type) == magic {
			return name
		}
	}
	return fmt.Sprintf("file system %#x", st.Type)
}

// ballast is the file that a store keeps to give up when the disk is full. Its size is configured.
const ballast = "BALLAST"

// diskUse is how many bytes a store takes on the disk, without its ballast; files may be longer than what of them is
// there.
func diskUse(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == ballast {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}
