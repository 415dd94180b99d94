package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/prototypster/pdvault/api/contract"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
)

// update writes the output that the session's commands have now into the README, where it differs in more
// than ids, keys, hashes and times.
var update = flag.Bool("update", false, "write the output of the README's session into it")

const (
	root         = "../.." // of the module
	readme       = root + "/README.md"
	shownAddress = "127.0.0.1:8080"
	shownDir     = "/home/you/pdvault"
)

// block is a fenced block of the README. Its info string says how it is run:
//
//	console          commands behind "$ " and what they print: one session against pdvault dev, in order
//	sh production    one script in order, against the real HashiCorp Vault, with paths and addresses replaced
//	yaml PATH        the file at PATH that the production script uses
//	sh checkout      commands for a checkout, which are checked and not run
//	text             not for running
type block struct {
	line int // of its fence
	info string
	text string
}

// kinds are the info strings that have a test, up to a path.
var kinds = []string{"console", "sh production", "sh checkout", "yaml", "text"}

func blocks(t *testing.T) []block {
	t.Helper()
	var all []block
	var open *block
	n := 0
	for line := range strings.Lines(page(t)) {
		n++
		fence, info, isFence := strings.Cut(strings.TrimRight(line, "\n"), "```")
		switch {
		case isFence && strings.TrimSpace(fence) != "":
			t.Errorf("README line %d: a fence in the middle of a line", n)
		case isFence && open == nil:
			open = &block{line: n, info: info}
		case isFence:
			all, open = append(all, *open), nil
		case open != nil:
			open.text += line
		}
	}
	if open != nil {
		t.Fatalf("README line %d: the block does not end", open.line)
	}
	return all
}

func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadmeBlocksHaveAHandler(t *testing.T) {
	seen := map[string]bool{}
	for _, b := range blocks(t) {
		kind := b.info
		if name, path, ok := strings.Cut(kind, " "); ok && name == "yaml" && strings.HasPrefix(path, "/") {
			kind = name
		}
		if !slices.Contains(kinds, kind) {
			t.Errorf("README line %d: no test runs blocks of kind %q", b.line, b.info)
		}
		seen[kind] = true
	}
	for _, k := range kinds {
		if !seen[k] {
			t.Errorf("the README has no block of kind %q", k)
		}
	}
}

// command is a command of a session with the output that the README shows.
type command struct {
	line  int
	input string
	shown string
}

func session(t *testing.T) []command {
	t.Helper()
	var all []command
	for _, b := range blocks(t) {
		if b.info != "console" {
			continue
		}
		n := b.line
		first := len(all)
		for line := range strings.Lines(b.text) {
			n++
			switch input, ok := strings.CutPrefix(line, "$ "); {
			case ok:
				all = append(all, command{line: n, input: strings.TrimRight(input, "\n")})
			case len(all) == first:
				t.Fatalf("README line %d: output before the first command", n)
			default:
				all[len(all)-1].shown += line
			}
		}
	}
	return all
}

// TestReadmeSession runs the session of the README, from "make run" to the offline verification, and compares
// what every command prints.
func TestReadmeSession(t *testing.T) {
	commands := session(t)
	if len(commands) < 8 || commands[0].input != "make run" {
		t.Fatal("the README's session does not begin with make run")
	}
	dir := shortDir(t)
	address := freeAddress(t)
	d := startDev(t, dir, makeRun(t, address)...)
	outputs := []string{d.output(t)}

	var script strings.Builder
	script.WriteString("exec 2>&1\n")
	for n, c := range commands[1:] {
		fmt.Fprintf(&script, "%s\nprintf '\\n@@%d\\n'\n", strings.ReplaceAll(c.input, shownAddress, address), n)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "PDVAULT_SERVER=http://"+address, "PDVAULT_TOKEN=")
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("the session ends with %v\n%s", err, raw)
	}
	rest := string(raw)
	for n := range commands[1:] {
		out, after, ok := strings.Cut(rest, fmt.Sprintf("\n@@%d\n", n))
		if !ok {
			t.Fatalf("README line %d: the session stopped at %q\n%s", commands[n+1].line, commands[n+1].input, rest)
		}
		outputs, rest = append(outputs, out), after
	}
	lines := strings.SplitAfter(page(t), "\n")
	for n, c := range slices.Backward(commands) { // from the end, so that numbers of lines hold
		out := strings.ReplaceAll(strings.ReplaceAll(outputs[n], address, shownAddress), dir, shownDir)
		diff := cmp.Diff(normal(c.shown), normal(out))
		switch {
		case diff == "":
		case *update:
			if out = tidy(out); out != "" {
				out += "\n"
			}
			lines = slices.Replace(lines, c.line, c.line+strings.Count(c.shown, "\n"), out)
		default:
			t.Errorf("README line %d: %s\nprints something else than is shown (-README +now):\n%s", c.line, c.input, diff)
		}
	}
	if *update {
		if err := os.WriteFile(readme, []byte(strings.Join(lines, "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if t.Failed() {
		t.Logf("pdvault dev: %s", d.log(t))
	}
}

// makeRun returns the arguments that "make run" gives to pdvault, with another address.
func makeRun(t *testing.T, address string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", "--no-print-directory", "-n", "run")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make -n run: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	args := strings.Fields(lines[len(lines)-1])
	if len(args) < 2 || args[0] != "bin/pdvault" || args[1] != "dev" || !slices.Contains(args, shownAddress) {
		t.Fatalf("make run does not start pdvault dev on %s: %q", shownAddress, args)
	}
	args[slices.Index(args, shownAddress)] = address
	return args[1:]
}

var varying = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\+[0-9a-f]{8}\+[A-Za-z0-9+/]{40,}=*`), "+KEY"},
	{regexp.MustCompile(`(?m)[A-Za-z0-9+/]{43}=$`), "HASH"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "REQUEST"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
}

// normal is text without what differs from run to run.
func normal(text string) string {
	for _, v := range varying {
		text = v.pattern.ReplaceAllString(text, v.name)
	}
	return tidy(text)
}

// tidy is text without spaces at the ends of lines and empty lines at its end.
func tidy(text string) string {
	lines := strings.Split(text, "\n")
	for n := range lines {
		lines[n] = strings.TrimRight(lines[n], " \t")
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n")
}

// TestReadmeProduction runs the production set-up as it is written, with the README's configuration files,
// against the real HashiCorp Vault. Only names, addresses, users and directories are those of the test.
func TestReadmeProduction(t *testing.T) {
	if _, err := hcserver.Binary(); err != nil {
		t.Skipf("no HashiCorp Vault to test with: %v", err)
	}
	dir := shortDir(t)
	hc, err := hcserver.Start(t.Context(), filepath.Join(dir, "hc"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hc.Close() })
	api, metrics := freeAddress(t), freeAddress(t)
	replaced := []replacement{
		{"ca_file: /etc/pdkeys/ca.pem", "allow_plain_http_on_loopback: true", 0},
		{"https://hcvault.example.org:8200", hc.Address(), 0},
		{"pdvault.example.org:8443", api, 0},
		{"0.0.0.0:8443", api, 0},
		{"127.0.0.1:9108", metrics, 0},
		{"group: pdvault", fmt.Sprintf("group: %q", strconv.Itoa(os.Getgid())), 0},
		{"allow_uids: [990]", fmt.Sprintf("allow_uids: [%d]", os.Getuid()), 0},
		{"uid: 991", fmt.Sprintf("uid: %d", os.Getuid()), 0},
		{" bin/", " " + bin + "/", 0},
		{"/usr/local/bin/", dir + "/usr/local/bin/", 0},
		{"/root/", dir + "/root/", 0},
		{"/etc/", dir + "/etc/", 0},
		{"/var/lib/", dir + "/var/lib/", 0},
		{"/run/", dir + "/run/", 0},
	}
	for _, d := range []string{"shim", "usr/local/bin", "root", "etc/pdkeys", "etc/pdvault", "var/lib", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What needs to be root on a machine of one's own is done without users and owners.
	for name, body := range map[string]string{
		"useradd": "exit 0",
		"chown":   `shift; exec ls "$@" >/dev/null`,
		"sudo":    `[ "$1" = -u ]; shift 2; exec "$@"`,
		"install": `args=(); while (($#)); do case $1 in -o|-g) shift 2;; *) args+=("$1"); shift;; esac; done; exec /usr/bin/install "${args[@]}"`,
		"vault":   fmt.Sprintf("exec %q \"$@\"", hc.Binary()),
	} {
		write(t, filepath.Join(dir, "shim", name), "#!/usr/bin/env bash\nset -eu\n"+body+"\n", 0o755)
	}
	certificate(t, filepath.Join(dir, "etc/pdvault"))

	script := "set -euo pipefail\n"
	for _, b := range blocks(t) {
		path, isFile := strings.CutPrefix(b.info, "yaml ")
		switch {
		case isFile:
			write(t, filepath.Join(dir, path), replace(replaced, b.text), 0o600)
		case b.info == "sh production":
			script += fmt.Sprintf("echo '@@ README line %d'\n%s", b.line, replace(replaced, b.text))
		}
	}
	for _, r := range replaced {
		if r.count == 0 {
			t.Errorf("the README does not say %q any more; correct this test", r.from)
		}
	}
	out, err := runGroup(t, script, root, "HOME="+dir, "VAULT_TOKEN="+hc.RootToken(),
		"PATH="+strings.Join([]string{filepath.Join(dir, "shim"), filepath.Join(dir, "usr/local/bin"), os.Getenv("PATH")}, ":"))
	if err != nil {
		t.Fatalf("the set-up ends with %v:\n%s", err, out)
	}
	for _, want := range []string{"instance main is initialised", `"status":"ok"`, `"store","ledger","sidecar","kek","witness"`} {
		if !strings.Contains(out, want) {
			t.Errorf("the set-up does not print %q", want)
		}
	}
	for _, want := range []string{`kek +hcvault`, `kek state +usable`, `ledger +main\.pdvault/ledger`, `"record": 1\b`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the set-up does not print %q", want)
		}
	}
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Errorf("metrics_listen: %v", err)
	} else if resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Errorf("metrics_listen: %s", resp.Status)
	}
	if t.Failed() {
		t.Logf("output:\n%s", out)
	}
}

// replacement is a text of the README that is another one in a test, and how often it was met.
type replacement struct {
	from, to string
	count    int
}

// replace makes all replacements in one pass, so that none meets the outcome of another.
func replace(rs []replacement, text string) string {
	var out strings.Builder
	for text != "" {
		n := slices.IndexFunc(rs, func(r replacement) bool { return strings.HasPrefix(text, r.from) })
		if n < 0 {
			out.WriteByte(text[0])
			text = text[1:]
			continue
		}
		rs[n].count++
		out.WriteString(rs[n].to)
		text = text[len(rs[n].from):]
	}
	return out.String()
}

// runGroup runs a bash script and returns what it printed. What it left running is ended with the test.
func runGroup(t *testing.T, script, dir string, env ...string) (string, error) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "output")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	group := -cmd.Process.Pid
	t.Cleanup(func() {
		_ = syscall.Kill(group, syscall.SIGTERM) // it may be gone
		for range 400 {
			if syscall.Kill(group, 0) != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Error("the programs did not stop when asked to")
		_ = syscall.Kill(group, syscall.SIGKILL)
	})
	err = cmd.Wait()
	out, readErr := os.ReadFile(log)
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(out), err
}

// certificate puts tls.crt, tls.key and ca.pem for loopback into dir.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, filepath.Join(dir, "tls.crt"), public, 0o600)
	write(t, filepath.Join(dir, "ca.pem"), public, 0o600)
	write(t, filepath.Join(dir, "tls.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})), 0o600)
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestReadmeLocalRootKey makes a key store with the configuration that the README names for installations
// without HashiCorp Vault.
func TestReadmeLocalRootKey(t *testing.T) {
	kek := regexp.MustCompile("`(kek: \\{type: local[^`]*)`").FindStringSubmatch(page(t))
	if kek == nil {
		t.Fatal("the README does not say how to do without HashiCorp Vault")
	}
	dir := shortDir(t)
	write(t, filepath.Join(dir, "pdkeys.yaml"), fmt.Sprintf("instance: main\nsocket: {path: s}\nstore: {dir: store}\n%s\n",
		strings.ReplaceAll(kek[1], "/var/lib/pdkeys/", dir+"/")), 0o600)
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "pdkeys"), "init", "--config", filepath.Join(dir, "pdkeys.yaml")).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("created root key")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestReadmeCheckout checks commands that are not run here, since they would run this test again or take
// long: their targets, packages and tests exist.
func TestReadmeCheckout(t *testing.T) {
	text := page(t)
	modfile, err := os.ReadFile(root + "/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(root + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	module := strings.Fields(string(modfile))[1]
	commands := regexp.MustCompile("`((make|go test) [^`]+)`").FindAllStringSubmatch(text, -1)
	var all []string
	for _, c := range commands {
		all = append(all, c[1])
	}
	for _, b := range blocks(t) {
		if b.info == "sh checkout" {
			all = append(all, strings.Split(strings.TrimSpace(b.text), "\n")...)
		}
	}
	for _, c := range all {
		f := strings.Fields(c)
		switch {
		case f[0] == "make" && len(f) == 2:
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(f[1]) + `:`).Match(makefile) {
				t.Errorf("%s: there is no such target", c)
			}
		case f[0] == "go" && f[1] == "test":
			checkGoTest(t, c, f[2:])
		case c == "git clone https://"+module, c == "cd "+filepath.Base(module):
		default:
			t.Errorf("%s: this test does not know how to check it", c)
		}
	}
}

func checkGoTest(t *testing.T, command string, args []string) {
	t.Helper()
	var dirs []string
	for n, a := range args {
		if dir, ok := strings.CutPrefix(a, "./"); ok {
			dirs = append(dirs, filepath.Join(root, strings.TrimSuffix(dir, "...")))
		}
		if a == "-run" && n+1 < len(args) {
			if found, err := exec.Command("grep", "-rlE", "^func Test"+args[n+1], "--include=*_test.go", dirs[0]).Output(); err != nil || len(found) == 0 {
				t.Errorf("%s: no such test", command)
			}
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("%s: %v", command, err)
		}
	}
}

var (
	link    = regexp.MustCompile(`\[([^\]]+)\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// TestReadmeLinks follows every link: the file is there, has the heading, and has the test.
func TestReadmeLinks(t *testing.T) {
	links := link.FindAllStringSubmatch(page(t), -1)
	if len(links) < 40 {
		t.Fatalf("only %d links found", len(links))
	}
	for _, l := range links {
		path, anchor, _ := strings.Cut(l[2], "#")
		b, err := os.ReadFile(filepath.Join(root, path))
		if info, statErr := os.Stat(filepath.Join(root, path)); statErr == nil && info.IsDir() {
			continue
		}
		if err != nil {
			t.Errorf("[%s](%s): %v", l[1], l[2], err)
			continue
		}
		if strings.HasPrefix(l[1], "Test") && !bytes.Contains(b, []byte("\nfunc "+l[1]+"(")) {
			t.Errorf("%s has no test %s", l[2], l[1])
		}
		if anchor != "" && !slices.ContainsFunc(heading.FindAllStringSubmatch(string(b), -1), func(h []string) bool {
			return strings.ReplaceAll(strings.ToLower(h[1]), " ", "-") == anchor
		}) {
			t.Errorf("%s: no such heading", l[2])
		}
	}
}

// TestReadmeNames checks that metrics, alerts and commands that the README names exist.
func TestReadmeNames(t *testing.T) {
	text := page(t)
	for _, name := range regexp.MustCompile("`(pd(?:vault|keys)_[a-z_]+)`").FindAllStringSubmatch(text, -1) {
		source := "api"
		if strings.HasPrefix(name[1], "pdkeys_") {
			source = "keys"
		}
		if err := exec.Command("grep", "-rqF", `"`+name[1], "--include=*.go", "--exclude=*_test.go", filepath.Join(root, source)).Run(); err != nil {
			t.Errorf("no metric %s in %s", name[1], source)
		}
	}
	rules, err := os.ReadFile(root + "/deploy/prometheus/pdvault.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile("`(Pdvault[A-Za-z]+)`").FindAllStringSubmatch(text, -1) {
		if !bytes.Contains(rules, []byte("alert: "+name[1]+"\n")) {
			t.Errorf("there is no alert %s", name[1])
		}
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "pdvault"), "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(out), "Client:")
	list, _, _ = strings.Cut(list, "\n\n")
	_, section, _ := strings.Cut(text, "| command | does |")
	section, _, _ = strings.Cut(section, "\n\n")
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 0 && !regexp.MustCompile("`"+regexp.QuoteMeta(f[0])+"[` ]").MatchString(section) {
			t.Errorf("the README's list of commands does not have %s", f[0])
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\|").FindAllStringSubmatch(section, -1) {
		help := list
		for _, c := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			parent, name, nested := strings.Cut(c[1], " ")
			if !nested {
				name = parent
			} else if out, err = exec.CommandContext(t.Context(), filepath.Join(bin, "pdvault"), parent, "--help").Output(); err != nil {
				t.Fatal(err)
			} else {
				help = string(out)
			}
			if !regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(name) + ` `).MatchString(help) {
				t.Errorf("there is no command %s in the row of %s", name, row[1])
			}
		}
	}
}

// call is a row of the README's table of calls.
type call struct{ method, path, role string }

func calls(t *testing.T) []call {
	t.Helper()
	var all []call
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z]+) (/[^`]+)` \\| ([^|]+) \\|").FindAllStringSubmatch(page(t), -1) {
		all = append(all, call{m[1], m[2], m[3]})
	}
	return all
}

// TestReadmeCalls compares the table of calls with the OpenAPI document, and asks each call as each caller:
// who is not listed is denied, and who is listed is not.
func TestReadmeCalls(t *testing.T) {
	table := calls(t)
	document, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, c := range table {
		listed = append(listed, c.method+" "+c.path)
	}
	want := document.Operations()
	slices.Sort(listed)
	slices.Sort(want)
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Fatalf("calls (-openapi.yaml +README):\n%s", diff)
	}

	i := start(t, stackOptions())
	roles := map[string]string{"shop": "service", "courier": "partner", "privacy": "privacy-officer", "legal": "legal", "security": "security", "auditor": "auditor"}
	bundle := i.call("auditor", "GET", "/v1/policy", "").Body
	n := 0
	for _, c := range table {
		for _, caller := range append(stackCallers(), "") {
			n++
			want := false
			switch c.role {
			case "no token":
				want = true
			case "any":
				want = caller != ""
			case "by purpose":
				want = caller == "shop"
			default:
				want = caller != "" && slices.Contains(strings.Split(c.role, ", "), roles[caller])
			}
			if got := i.allowed(caller, c, n, bundle); got != want {
				t.Errorf("%s %s as %q: allowed %v, the README says %q", c.method, c.path, caller, got, c.role)
			}
		}
	}
	// A partner reads by purpose as well, under its agreement.
	subject := i.create(person(n + 1))
	if a := i.read("courier", subject, "partner-delivery", "name"); a.Status != http.StatusOK {
		t.Errorf("partner with an agreement: %d", a.Status)
	}
}

// allowed makes a call as caller on a subject of its own and reports whether it was not denied.
func (i *instance) allowed(caller string, c call, n int, bundle []byte) bool {
	i.t.Helper()
	subject := i.create(person(n))
	read := fmt.Sprintf(`"subject":%q,"collection":"profile","fields":["email"]`, subject)
	bodies := map[string]string{
		"POST /v1/subjects":                             fmt.Sprintf(`{"records":{"profile":{"email":"caller%d@example.org"}}}`, n),
		"PUT /v1/subjects/{id}/records/{collection}":    person(n),
		"PATCH /v1/subjects/{id}/records/{collection}":  `{"displayName":"Other"}`,
		"DELETE /v1/subjects/{id}":                      `{"reason":"subject-request"}`,
		"PUT /v1/subjects/{id}/restriction":             `{"reason":"contested"}`,
		"POST /v1/reads":                                `{"purpose":"order-fulfilment","reads":[{` + read + `}]}`,
		"POST /v1/lookups":                              fmt.Sprintf(`{"purpose":"order-fulfilment","collection":"profile","field":"email","value":"person%d@example.org"}`, n),
		"POST /v1/verifications":                        fmt.Sprintf(`{"purpose":"account","subject":%q,"collection":"profile","field":"email","value":"x@example.org"}`, subject),
		"POST /v1/access-checks":                        `{"purpose":"order-fulfilment",` + read + `}`,
		"POST /v1/subjects/{id}/consents":               `{"purpose":"newsletter","separate_document":true}`,
		"POST /v1/keys/rotations":                       `{"scope":"token"}`,
		"POST /v1/policy":                               string(bundle),
		"DELETE /v1/subjects/{id}/records/{collection}": "",
		"DELETE /v1/subjects/{id}/restriction":          "",
		"GET /v1/subjects/{id}/records/{collection}":    "",
		"POST /v1/consents/{id}/withdrawal":             "",
		"GET /v1/erasures/{id}":                         "",
		"GET /v1/keys/rotations/{id}":                   "",
		"GET /v1/policy/versions/{version}":             "",
		"GET /v1/access-records/{index}":                "",
		"GET /v1/access-records/{index}/proof":          "",
		"GET /log/tile/{path}":                          "",
	}
	path := c.path
	id := subject
	switch {
	case strings.Contains(path, "/consents/{id}"):
		receipt := i.want(http.StatusCreated, "shop", "POST", "/v1/subjects/"+subject+"/consents", `{"purpose":"newsletter","separate_document":true}`)
		id = receipt["record_id"].(string)
	case strings.Contains(path, "/erasures/{id}"):
		id = i.want(http.StatusOK, "privacy", "DELETE", "/v1/subjects/"+subject, `{"reason":"subject-request"}`)["id"].(string)
	case strings.Contains(path, "/rotations/{id}"):
		id = i.want(http.StatusAccepted, "security", "POST", "/v1/keys/rotations", `{"scope":"token"}`)["id"].(string)
	}
	for from, to := range map[string]string{"{id}": id, "{collection}": "profile", "{version}": "1", "{index}": "0", "{path}": "0/000.p/1"} {
		path = strings.ReplaceAll(path, from, to)
	}
	if c.method == "GET" && strings.HasSuffix(c.path, "{collection}") {
		path += "?purpose=order-fulfilment&fields=email"
	}
	header := []string{"If-Match", `"1"`}
	if c.method == "PATCH" {
		header = append(header, "Content-Type", "application/merge-patch+json")
	}
	if c.method == "GET" || c.method == "POST" || strings.HasSuffix(c.path, "restriction") || strings.HasSuffix(c.path, "subjects/{id}") {
		header = header[2:]
	}
	a := i.call(caller, c.method, path, bodies[c.method+" "+c.path], header...)
	if c.path == "/v1/reads" && a.Status == http.StatusOK {
		var answer struct {
			Results []struct{ Problem *struct{ Status int } }
		}
		if err := json.Unmarshal(a.Body, &answer); err != nil || len(answer.Results) != 1 {
			i.t.Fatalf("batch: %v", err)
		}
		return answer.Results[0].Problem == nil
	}
	switch {
	case a.Status == http.StatusUnauthorized && caller == "", a.Status == http.StatusForbidden:
		return false
	case a.Status < 300, a.Status == http.StatusServiceUnavailable && c.path == "/readyz":
		return true
	}
	i.t.Errorf("%s %s as %q: %d %s", c.method, c.path, caller, a.Status, a.Body)
	return false
}

// devProcess is a running pdvault dev.
type devProcess struct {
	cmd     *exec.Cmd
	dir     string
	address string
	done    chan struct{}
}

// startDev runs pdvault with args, the first of which is dev, in dir and waits until it answers.
func startDev(t *testing.T, dir string, args ...string) *devProcess {
	t.Helper()
	d := &devProcess{dir: dir, done: make(chan struct{}), address: args[slices.Index(args, "--listen")+1]}
	stdout, err := os.Create(filepath.Join(dir, "dev.out"))
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(dir, "dev.err"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	d.cmd = exec.Command(filepath.Join(bin, "pdvault"), args...)
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = dir, stdout, stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait() // its outcome is in ProcessState
		close(d.done)
	}()
	t.Cleanup(func() { d.stop(t) })
	eventually(t, "pdvault dev answers", func() bool {
		select {
		case <-d.done:
			t.Fatalf("pdvault dev has ended: %v\n%s", d.cmd.ProcessState, d.log(t))
		default:
		}
		return d.ready(t.Context())
	})
	return d
}

func (d *devProcess) ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+d.address+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// stop ends it as an interrupt does and waits for its end.
func (d *devProcess) stop(t *testing.T) {
	t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
		t.Error("pdvault dev did not stop when asked to")
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

func (d *devProcess) output(t *testing.T) string { return readAll(t, filepath.Join(d.dir, "dev.out")) }

func (d *devProcess) log(t *testing.T) string { return readAll(t, filepath.Join(d.dir, "dev.err")) }

func readAll(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// refusal is a start that must be refused, and a row of the README's table that says what to do about it.
type refusal struct {
	message string // as the README quotes it
	code    int
	program string
	prepare func(t *testing.T, i *instance) (undo func(t *testing.T))
}

// refusals are made on an instance whose sidecar runs and whose pdvault does not.
var refusals = []refusal{
	{"no such file or directory", 1, "pdvault", renamed("data")},
	{"the sidecar has witnessed", 1, "pdvault", olderData},
	{"sidecar has been rolled back", 1, "pdvault", olderKeys},
	{"belongs to instance", 1, "pdvault", edited("pdvault.yaml", "instance: test", "instance: other")},
	{"store is in use", 1, "pdvault", func(t *testing.T, i *instance) func(*testing.T) {
		if err := i.StartVault(t.Context()); err != nil {
			t.Fatal(err)
		}
		return func(t *testing.T) {
			if err := i.Vault.Stop(); err != nil {
				t.Error(err)
			}
		}
	}},
	{"integrity violated", 1, "pdvault", renamed("data/MANIFEST")},
	{"it must be 0700", 1, "pdvault", func(t *testing.T, i *instance) func(*testing.T) {
		chmod(t, i.Path("data"), 0o755)
		return func(t *testing.T) { chmod(t, i.Path("data"), 0o700) }
	}},
	{"connecting to the sidecar", 1, "pdvault", edited("pdvault.yaml", "pdkeys.sock}", "nobody.sock, wait: 1s}")},
	{"key-encryption key", 4, "pdkeys", edited("pdkeys.yaml", "{type: local, local: {path: root.key}}",
		"{type: hcvault, hcvault: {address: \"http://127.0.0.1:1\", key: pdvault, allow_plain_http_on_loopback: true, approle: {role_id_file: tokens, secret_id_file: tokens}}}")},
	{"key-encryption key version is retired", 4, "pdkeys", fromBeforeAnEpoch("keys")},
	{"key-encryption key is missing", 4, "pdkeys", fromBeforeAnEpoch("root.key")},
	{"there is no root key", 3, "pdkeys", renamed("root.key")},
	{"there is none in", 3, "pdkeys", renamed("keys")},
}

// older puts a copy of a store back that lacks one person.
func older(t *testing.T, i *instance, name string, stop func()) (undo func(*testing.T)) {
	t.Helper()
	if err := os.CopyFS(i.Path(name+".older"), os.DirFS(i.Path(name))); err != nil {
		t.Fatal(err)
	}
	if name == "keys" {
		startKeys(t, i)
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.create(fmt.Sprintf(`{"email":"missing.from.%s@example.org"}`, name))
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	stop()
	move(t, i.Path(name), i.Path(name+".newer"))
	move(t, i.Path(name+".older"), i.Path(name))
	chmod(t, i.Path(name), 0o700)
	return func(t *testing.T) {
		stop()
		move(t, i.Path(name), i.Path(name+".older"))
		move(t, i.Path(name+".newer"), i.Path(name))
		if name == "keys" {
			startKeys(t, i)
		}
	}
}

func olderData(t *testing.T, i *instance) func(*testing.T) { return older(t, i, "data", func() {}) }

func olderKeys(t *testing.T, i *instance) func(*testing.T) {
	stop := func() {
		if err := i.Keys.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	undo := older(t, i, "keys", stop)
	startKeys(t, i)
	return undo
}

// fromBeforeAnEpoch puts a copy of what the sidecar keeps under name back that was made before an epoch.
func fromBeforeAnEpoch(name string) func(*testing.T, *instance) func(*testing.T) {
	return func(t *testing.T, i *instance) func(*testing.T) {
		copied := i.Path("before")
		if err := exec.Command("cp", "-a", i.Path(name), copied).Run(); err != nil {
			t.Fatal(err)
		}
		startKeys(t, i)
		for _, args := range [][]string{{"epoch"}, {"jobs", "--follow"}} {
			if out, err := i.Output(t.Context(), "pdkeys", append(args, "--config", i.Path("pdkeys.yaml"))...); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
		}
		if err := i.Keys.Stop(); err != nil {
			t.Fatal(err)
		}
		move(t, i.Path(name), i.Path(name+".after"))
		move(t, copied, i.Path(name))
		return func(t *testing.T) {
			if err := os.RemoveAll(i.Path(name)); err != nil {
				t.Fatal(err)
			}
			move(t, i.Path(name+".after"), i.Path(name))
		}
	}
}

func startKeys(t *testing.T, i *instance) {
	t.Helper()
	if err := i.StartKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func renamed(name string) func(*testing.T, *instance) func(*testing.T) {
	return func(t *testing.T, i *instance) func(*testing.T) {
		move(t, i.Path(name), i.Path(name)+".away")
		return func(t *testing.T) { move(t, i.Path(name)+".away", i.Path(name)) }
	}
}

func edited(name, from, to string) func(*testing.T, *instance) func(*testing.T) {
	return func(t *testing.T, i *instance) func(*testing.T) {
		before := readAll(t, i.Path(name))
		if !strings.Contains(before, from) {
			t.Fatalf("%s does not say %q", name, from)
		}
		write(t, i.Path(name), strings.Replace(before, from, to, 1), 0o600)
		return func(t *testing.T) { write(t, i.Path(name), before, 0o600) }
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestReadmeRefusals makes the mistakes that the README tells what to do about, and looks for its words.
func TestReadmeRefusals(t *testing.T) {
	_, table, _ := strings.Cut(page(t), "**When a start is refused**")
	table, _, _ = strings.Cut(table, "\n**")
	i := start(t, stackOptions())
	i.create(person(1))
	if err := i.Vault.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range refusals {
		t.Run(tt.message, func(t *testing.T) {
			if !strings.Contains(table, "`"+tt.message) {
				t.Errorf("the README does not say what to do about %q", tt.message)
			}
			if tt.program == "pdkeys" {
				if err := i.Keys.Stop(); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := i.StartKeys(t.Context()); err != nil {
						t.Error(err)
					}
				}()
			}
			defer tt.prepare(t, i)(t)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, filepath.Join(bin, tt.program), "serve", "--config", i.Path(tt.program+".yaml")).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != tt.code || !bytes.Contains(out, []byte(tt.message)) {
				t.Errorf("%v, want exit code %d and %q:\n%s", err, tt.code, tt.message, out)
			}
		})
	}
	if err := i.StartVault(t.Context()); err != nil {
		t.Fatalf("after all that: %v", err)
	}
}
