package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// What a newcomer meets: an empty directory, a first request to paste, another start on what is there then.
func TestDevPrintsAFirstRequestThatWorks(t *testing.T) {
	dir := shortDir(t)
	data := filepath.Join(dir, "data")
	args := []string{"dev", "--data", data, "--listen", freeAddress(t)}
	d := startDev(t, dir, args...)
	greeting := d.output(t)
	if !strings.Contains(greeting, "not for production") {
		t.Errorf("it does not say that it is not for production:\n%s", greeting)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "tokens.json": 0o600, "tokens": 0o600, "pdkeys.yaml": 0o600, "pdvault.yaml": 0o600, "keys": 0o700, "data": 0o700} {
		info, err := os.Stat(filepath.Join(data, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != mode {
			t.Errorf("%q has mode %04o, want %04o", name, info.Mode().Perm(), mode)
		}
	}
	// The request is what is indented, as printed, with what a shell has.
	var request strings.Builder
	for line := range strings.Lines(greeting) {
		if strings.HasPrefix(line, "  ") {
			request.WriteString(line)
		}
	}
	answer, err := exec.CommandContext(t.Context(), "bash", "-c", request.String()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, answer)
	}
	id := nameOf(t, answer)
	tokens := readAll(t, filepath.Join(data, "tokens.json"))
	d.stop(t)
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("SIGTERM ends it with %d\n%s", code, d.log(t))
	}

	again := startDev(t, dir, args...)
	if tokens != readAll(t, filepath.Join(data, "tokens.json")) {
		t.Error("a second start makes other tokens")
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "pdvault"), "get", id, "profile", "--purpose", "order-fulfilment",
		"--tokens", filepath.Join(data, "tokens.json"), "--as", "shop")
	cmd.Env = append(os.Environ(), "PDVAULT_SERVER=http://"+again.address)
	answer, err = cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("after a second start: %v\n%s", err, answer)
	}
	if nameOf(t, answer) != id {
		t.Error("after a second start: another person")
	}
}

// nameOf checks the name in the answer to a read and returns the subject.
func nameOf(t *testing.T, answer []byte) (subject string) {
	t.Helper()
	var read struct {
		Subject string
		Fields  struct {
			Name struct{ GivenName, FamilyName string }
		}
	}
	if err := json.Unmarshal(answer, &read); err != nil || read.Fields.Name.GivenName != "Some" || read.Fields.Name.FamilyName != "One" {
		t.Fatalf("the answer has no name: %v\n%s", err, answer)
	}
	return read.Subject
}

// Neither program outlives the other for long, however one ends.
func TestDevLooksAfterItsSidecar(t *testing.T) {
	dir := shortDir(t)
	d := startDev(t, dir, "dev", "--data", filepath.Join(dir, "data"), "--listen", freeAddress(t))
	first := sidecarOf(d)
	if first == 0 {
		t.Fatal("there is no sidecar")
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the sidecar is started again", func() bool {
		pid := sidecarOf(d)
		return pid != 0 && pid != first && d.ready(t.Context())
	})
	if !strings.Contains(d.log(t), "starting it again") {
		t.Errorf("nobody is told that the sidecar has ended:\n%s", d.log(t))
	}
	second := sidecarOf(d)
	d.stop(t)
	if running(second) {
		t.Error("SIGTERM leaves the sidecar behind")
	}

	// Killed, it cannot end its child; the child sees to it itself.
	d = startDev(t, dir, "dev", "--data", filepath.Join(dir, "data"), "--listen", d.address)
	third := sidecarOf(d)
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.done
	eventually(t, "the sidecar ends after its parent was killed", func() bool { return !running(third) })
	startDev(t, dir, "dev", "--data", filepath.Join(dir, "data"), "--listen", d.address)
}

// A mistake is said before anything is made.
func TestDevRefusesWhatItCannotServe(t *testing.T) {
	dir := shortDir(t)
	for name, args := range map[string][]string{
		"another interface": {"--data", filepath.Join(dir, "a"), "--listen", "0.0.0.0:0"},
		"no sidecar":        {"--data", filepath.Join(dir, "b"), "--listen", "127.0.0.1:0", "--pdkeys", filepath.Join(dir, "none")},
		"a long path":       {"--data", filepath.Join(dir, strings.Repeat("c", 100)), "--listen", "127.0.0.1:0"},
	} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "pdvault"), append([]string{"dev"}, args...)...).CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "pdvault: ") {
			t.Errorf("%s: %v, %s", name, err, out)
		}
	}
}

var parentOf = regexp.MustCompile(`^(\d+) \((.*)\) (\S) (\d+) `)

// sidecarOf finds the child of a pdvault dev. 0: it has none that lives.
func sidecarOf(d *devProcess) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		m := parentOf.FindStringSubmatch(string(raw))
		if m != nil && m[2] == "pdkeys" && m[3] != "Z" && m[4] == strconv.Itoa(d.cmd.Process.Pid) {
			pid, _ := strconv.Atoi(m[1]) // digits
			return pid
		}
	}
	return 0
}

// running reports whether a process is there and is not one that has ended and was not waited for.
func running(pid int) bool {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	m := parentOf.FindStringSubmatch(string(raw))
	return err == nil && m != nil && m[3] != "Z"
}
