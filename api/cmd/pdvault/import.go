package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/client"
)

const (
	maxLine      = 1 << 20
	saveInterval = time.Second // between writes of the state file
)

// importer is one run of an import. One goroutine reads lines, workers send them, and the one that calls run
// takes the outcomes in the order of the lines and writes them down.
type importer struct {
	api      *client.Client
	input    *bufio.Reader
	state    *state
	out      *journal // nil: not wanted
	rejects  *journal // nil: not wanted
	workers  int
	patience time.Duration
	progress progress
}

// job is a line on its way, and then its outcome.
type job struct {
	line    int64
	offset  int64 // of the end of the line in the input
	text    []byte
	skip    bool // nothing but space
	subject string
	reject  string // why the line was rejected; empty: it was not
	err     error  // why the whole import must stop
	done    chan struct{}
}

// importLine is a line of the input.
type importLine struct {
	ID      jsontext.Value            `json:"id,omitzero"`  // taken for compatibility with exports, and ignored
	Key     string                    `json:"key,omitzero"` // idempotency key; empty: made from the input
	Records map[string]jsontext.Value `json:"records"`
}

func importCommand(c *connection) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Create a subject for each line of a file, of any size, resumably",
		Long: `Create a subject for each line {"records":{"profile":{…}}} of FILE. "key" in a line is its idempotency key;
without it one is made from the input and the line. "id" is ignored: the server makes the ids.

An import that was interrupted goes on where it stopped when it is started again: a small state file beside
the input, or --state, holds line numbers and nothing of the lines. Lines that were sent twice make one
subject, for 24 hours. Standard input needs --state to go on, and then the same lines again.

--out gets a line {"line":n,"subject":"…"} for each subject, --rejects a line {"line":n,"reason":"…"} for each line
that was not taken, both in the order of the input. Exit code 3: some lines were rejected.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error { return runImport(cmd, c, a[0], o) },
	}
	f := cmd.Flags()
	f.IntVar(&o.workers, "workers", 16, "subjects created at the same time")
	f.StringVar(&o.state, "state", "", "state file; default: FILE.pdvault-import")
	f.StringVar(&o.out, "out", "", "file for the ids of the created subjects")
	f.StringVar(&o.rejects, "rejects", "", "file for the numbers of rejected lines, with reasons and without content")
	f.BoolVar(&o.restart, "restart", false, "begin anew, though there is a state file")
	f.DurationVar(&o.patience, "patience", 2*time.Minute, "how long to keep trying one line while the server cannot answer")
	return cmd
}

type importOptions struct {
	workers             int
	state, out, rejects string
	restart             bool
	patience            time.Duration
}

// summary is what an import says at its end.
type summary struct {
	Lines    int64 `json:"lines"` // read, in all runs
	Created  int64 `json:"created"`
	Rejected int64 `json:"rejected"`
}

func runImport(cmd *cobra.Command, c *connection, path string, o importOptions) (err error) {
	if o.workers < 1 || o.workers > 256 {
		return usagef("--workers must be 1 to 256")
	}
	source, size, identity, err := openInput(cmd, path)
	if err != nil {
		return err
	}
	defer source.Close()
	if o.state == "" && path != "-" {
		o.state = path + ".pdvault-import"
	}
	st, err := openState(o.state, identity, o.restart)
	if err != nil {
		return err
	}
	if st.Finished {
		return fmt.Errorf("%s was imported already; --restart imports it again", path)
	}
	api, err := c.client()
	if err != nil {
		return err
	}
	im := importer{api: api, state: st, workers: o.workers, patience: o.patience}
	if im.out, err = openJournal(o.out, st.OutBytes); err != nil {
		return err
	}
	if im.rejects, err = openJournal(o.rejects, st.RejectBytes); err != nil {
		return errors.Join(err, im.out.close())
	}
	if seeker, ok := source.(io.Seeker); ok && path != "-" {
		if _, err := seeker.Seek(st.Offset, io.SeekStart); err != nil {
			return fmt.Errorf("going to where the import stopped: %w", err)
		}
	} else if err := skipLines(source, st); err != nil {
		return err
	}
	if im.input == nil {
		im.input = bufio.NewReaderSize(source, 64<<10)
	}
	im.progress = newProgress(cmd.ErrOrStderr(), size, st.Offset)
	runErr := im.run(cmd.Context())
	im.progress.close()
	err = errors.Join(runErr, im.save(), im.out.close(), im.rejects.close())
	if printErr := printJSON(cmd, st.summary); err == nil {
		err = printErr
	}
	switch {
	case errors.Is(runErr, context.Canceled):
		return errors.New("interrupted: the same command goes on from here")
	case err == nil && st.Rejected > 0:
		return fmt.Errorf("%d of %d: %w", st.Rejected, st.Lines, errRejected)
	}
	return err
}

// openInput opens the input and says how long it is (-1: not known) and what names it (empty: nothing does).
func openInput(cmd *cobra.Command, path string) (source io.ReadCloser, size int64, identity string, err error) {
	if path == "-" {
		return io.NopCloser(cmd.InOrStdin()), -1, "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, "", usage(err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, 0, "", errors.Join(usagef("the input must be a file, or - for standard input"), f.Close())
	}
	// The identity of a file is its length and how it begins: it stays when the file is moved.
	h := sha256.New()
	if err := binary.Write(h, binary.BigEndian, info.Size()); err != nil {
		return nil, 0, "", errors.Join(err, f.Close())
	}
	if _, err := io.CopyN(h, f, 1<<20); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, "", errors.Join(fmt.Errorf("reading the input: %w", err), f.Close())
	}
	return f, info.Size(), hex.EncodeToString(h.Sum(nil)), nil
}

// skipLines reads over what earlier runs have done with an input that cannot be sought.
func skipLines(r io.Reader, st *state) error {
	if _, err := io.CopyN(io.Discard, r, st.Offset); err != nil {
		return errors.New("the input is shorter than what was imported of it")
	}
	return nil
}

// run imports until the input ends, a line says to stop, or ctx ends.
func (im *importer) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work := make(chan *job)                // to the workers
	order := make(chan *job, 4*im.workers) // the same jobs, in the order of the lines
	var readErr error                      // owned by the reader until order is closed
	var workers, reader sync.WaitGroup     // awaited below
	reader.Go(func() { readErr = im.read(ctx, work, order) })
	for range im.workers {
		workers.Go(func() {
			for j := range work {
				im.send(ctx, j)
				close(j.done)
			}
		})
	}
	var stopped error
	saved := time.Now()
	for j := range order {
		<-j.done
		if stopped != nil {
			continue
		}
		if stopped = im.take(j); stopped == nil && time.Since(saved) > saveInterval {
			stopped, saved = im.save(), time.Now()
		}
		if stopped != nil {
			cancel()
		}
	}
	reader.Wait()
	workers.Wait()
	if stopped == nil {
		stopped = readErr
	}
	if stopped == nil {
		im.state.Finished = true
	}
	return stopped
}

// read gives every line to a worker, and to the taker in the order of the input.
func (im *importer) read(ctx context.Context, work, order chan<- *job) error {
	defer close(order)
	defer close(work)
	line, offset := im.state.Lines, im.state.Offset
	for {
		text, n, tooLong, err := readLine(im.input)
		if n == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the input: %w", err)
		}
		line, offset = line+1, offset+n
		j := &job{line: line, offset: offset, text: text, done: make(chan struct{})}
		done := false
		switch {
		case tooLong:
			j.reject, done = "too-large: the line is longer than 1 MiB", true
		case len(bytes.TrimSpace(text)) == 0:
			j.skip, done = true, true
		}
		if done {
			close(j.done)
		}
		select {
		case order <- j:
		case <-ctx.Done():
			return ctx.Err()
		}
		if done {
			continue
		}
		select {
		case work <- j:
		case <-ctx.Done():
			j.err = ctx.Err()
			close(j.done)
			return ctx.Err()
		}
	}
}

// readLine reads a line and says how many bytes it took. Of a line that is too long only the length is kept.
func readLine(r *bufio.Reader) (text []byte, n int64, tooLong bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		n += int64(len(part))
		if n > maxLine+2 {
			tooLong, text = true, nil
		} else {
			text = append(text, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return text, n, tooLong, err
		}
	}
}

// send creates the subject of a line.
func (im *importer) send(ctx context.Context, j *job) {
	var l importLine
	if err := json.Unmarshal(j.text, &l, json.RejectUnknownMembers(true)); err != nil || len(l.Records) == 0 {
		j.reject = `invalid-request: not one object {"records":{…}} in strict JSON`
		return
	}
	key := l.Key
	if key == "" {
		key = im.state.key(j.line, j.text)
	}
	deadline := time.Now().Add(im.patience)
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		created, err := im.api.CreateSubject(ctx, key, l.Records)
		if err == nil {
			j.subject = created.ID
			return
		}
		if j.reject = rejection(err); j.reject != "" {
			return
		}
		if !temporary(err) || ctx.Err() != nil || time.Now().Add(wait).After(deadline) {
			j.err = err
			return
		}
		select {
		case <-ctx.Done():
			j.err = ctx.Err()
			return
		case <-time.After(wait):
		}
	}
}

// rejection says why a line is wrong, without its content; empty when the line is not to blame.
func rejection(err error) string {
	var problem *client.Error
	if !errors.As(err, &problem) {
		return ""
	}
	switch {
	case errors.Is(err, access.ErrInvalid), errors.Is(err, access.ErrNotUnique),
		errors.Is(err, access.ErrIdempotencyMismatch), errors.Is(err, client.ErrTooLarge):
	default:
		return ""
	}
	var b strings.Builder
	b.WriteString(strings.TrimPrefix(problem.Problem.Type, api.ProblemPrefix))
	for _, v := range problem.Problem.Violations {
		fmt.Fprintf(&b, "; %s %s", v.Pointer, v.Rule)
	}
	return b.String()
}

// temporary reports whether the same line may be taken later. It has a key, so that an answer that was lost
// is no reason to stop.
func temporary(err error) bool {
	var problem *client.Error
	if !errors.As(err, &problem) {
		return true // no answer
	}
	return errors.Is(err, access.ErrUnavailable) || errors.Is(err, access.ErrBusy) || errors.Is(err, access.ErrLimited) ||
		errors.Is(err, client.ErrTimeout)
}

// take writes the outcome of a line down.
func (im *importer) take(j *job) error {
	if j.err != nil {
		if errors.Is(j.err, context.Canceled) {
			return context.Canceled
		}
		return fmt.Errorf("line %d: %w", j.line, j.err)
	}
	switch {
	case j.skip:
	case j.reject != "":
		if err := im.rejects.write(struct {
			Line   int64  `json:"line"`
			Reason string `json:"reason"`
		}{j.line, j.reject}); err != nil {
			return err
		}
		im.state.Rejected++
	default:
		if err := im.out.write(struct {
			Line    int64  `json:"line"`
			Subject string `json:"subject"`
		}{j.line, j.subject}); err != nil {
			return err
		}
		im.state.Created++
	}
	im.state.Lines, im.state.Offset = j.line, j.offset
	im.progress.add(im.state)
	return nil
}

// save makes what was written down durable, then the state that says so.
func (im *importer) save() error {
	var err error
	if im.state.OutBytes, err = im.out.sync(); err != nil {
		return err
	}
	if im.state.RejectBytes, err = im.rejects.sync(); err != nil {
		return err
	}
	return im.state.save()
}

// state is how far an import has come. It holds nothing of the lines.
//
// Stored as one JSON object, of mode 0600:
//
//	{"format":"pdvault/import/v1","input":"6b51…","seed":"6b51…","lines":1200,"created":1199,"rejected":1,"offset":482211,"out_bytes":…,"reject_bytes":…}
type state struct {
	Format      string `json:"format"`
	Input       string `json:"input,omitzero"` // names the input; empty: standard input
	Seed        string `json:"seed"`           // part of the keys that are made
	summary     `json:",embed"`
	Offset      int64 `json:"offset"` // bytes of the input that are done
	OutBytes    int64 `json:"out_bytes"`
	RejectBytes int64 `json:"reject_bytes"`
	Finished    bool  `json:"finished,omitzero"`

	path string // empty: not kept
}

const stateFormat = "pdvault/import/v1"

// openState reads the state file, or begins a new one. identity is empty for standard input, which is named
// by a seed of its own.
func openState(path, identity string, restart bool) (*state, error) {
	fresh := &state{Format: stateFormat, Input: identity, Seed: identity, path: path}
	if identity == "" || restart {
		// Of a restart the same keys would only give the subjects of the import before.
		seed := make([]byte, 32)
		rand.Read(seed) // never fails
		fresh.Seed = hex.EncodeToString(seed)
	}
	if path == "" || restart {
		return fresh, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state file: %w", err)
	}
	var st state
	if err := json.Unmarshal(raw, &st, json.RejectUnknownMembers(true)); err != nil || st.Format != stateFormat ||
		min(st.Offset, st.OutBytes, st.RejectBytes, st.Lines, st.Created, st.Rejected) < 0 {
		return nil, fmt.Errorf("%s is not the state of an import; --restart begins anew", path)
	}
	if st.Input != identity {
		return nil, fmt.Errorf("%s is the state of another input; --restart begins anew", path)
	}
	st.path = path
	return &st, nil
}

// key makes the idempotency key of a line.
func (s *state) key(line int64, text []byte) string {
	h := sha256.New()
	_, _ = io.WriteString(h, s.Seed) // never fails, nor do the next two
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(line)))
	_, _ = h.Write(text)
	return "import-" + hex.EncodeToString(h.Sum(nil))
}

func (s *state) save() error {
	if s.path == "" {
		return nil
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding the state: %w", err)
	}
	f, err := os.OpenFile(s.path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing the state file: %w", err)
	}
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(s.path+".tmp", s.path)
	}
	if err != nil {
		return fmt.Errorf("writing the state file: %w", err)
	}
	return nil
}

// journal is a file of lines of which the state says how much counts. A nil journal takes everything and
// keeps nothing.
type journal struct {
	f       *os.File
	w       *bufio.Writer
	written int64
}

// openJournal opens the file at path and drops what was written after the state was saved.
func openJournal(path string, counts int64) (*journal, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, usage(err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() < counts {
		err = fmt.Errorf("%s is shorter than when the import stopped; give the same file again, or --restart", path)
	}
	if err == nil {
		err = f.Truncate(counts)
	}
	if err == nil {
		_, err = f.Seek(counts, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &journal{f, bufio.NewWriter(f), counts}, nil
}

func (j *journal) write(v any) error {
	if j == nil {
		return nil
	}
	line, err := json.Marshal(v)
	if err == nil {
		_, err = j.w.Write(append(line, '\n'))
		j.written += int64(len(line)) + 1
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", j.f.Name(), err)
	}
	return nil
}

func (j *journal) sync() (int64, error) {
	if j == nil {
		return 0, nil
	}
	if err := errors.Join(j.w.Flush(), j.f.Sync()); err != nil {
		return 0, fmt.Errorf("writing %s: %w", j.f.Name(), err)
	}
	return j.written, nil
}

func (j *journal) close() error {
	if j == nil {
		return nil
	}
	return errors.Join(j.w.Flush(), j.f.Close())
}

// percent of a size that may not be known.
func percent(part, whole int64) int {
	if whole <= 0 {
		return 0
	}
	return int(math.Floor(100 * float64(part) / float64(whole)))
}
