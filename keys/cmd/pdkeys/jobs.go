package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/keyring"
)

// rotatable are the scopes that pdkeys rotate takes.
var rotatable = []string{
	keyring.ScopeSubject, keyring.ScopeAllSubjects, keyring.ScopeIndex, keyring.ScopeToken, keyring.ScopeLedger, keyring.ScopeWitness,
}

var errRotation = errors.New("the rotation failed")

func rotateCommand(stdout io.Writer) *cobra.Command {
	var subject string
	cmd := withArgs("rotate SCOPE", "Begin a rotation of the keys of a scope", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string, c Config) error {
		id, err := rotation(args[0], subject)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		return startJob(cmd.Context(), c, args[0], id, stdout)
	})
	cmd.Long = `Begins a rotation and returns; pdkeys jobs --follow shows how far it is. Scopes:
  subject       the key of one subject, --subject: everything of theirs is sealed again
  all-subjects  the keys of all subjects
  index         the key of the blind index: the index is made anew beside the old one
  token         the key of links; older links go on being accepted
  ledger        pdvault's key that signs the ledger
  witness       the sidecar's key that cosigns it; the old one goes on cosigning for a while
The key-encryption key is rotated with pdkeys epoch. Subjects, index and ledger are rotated while pdvault runs.`
	cmd.Flags().StringVar(&subject, "subject", "", "id of the subject, for the scope subject")
	return cmd
}

func rotation(scope, subject string) (uuid.UUID, error) {
	switch {
	case scope == keyring.ScopeKEK:
		return uuid.Nil, errors.New("the key-encryption key is rotated with pdkeys epoch")
	case !slices.Contains(rotatable, scope):
		return uuid.Nil, fmt.Errorf("scope: want one of %v", rotatable)
	case scope != keyring.ScopeSubject && subject != "":
		return uuid.Nil, errors.New("--subject is for the scope subject")
	case scope != keyring.ScopeSubject:
		return uuid.Nil, nil
	}
	id, err := uuid.Parse(subject)
	if err != nil || id == uuid.Nil {
		return uuid.Nil, errors.New("--subject: want the id of a subject")
	}
	return id, nil
}

// dialAdmin connects to the socket that is for the sidecar's own user.
func dialAdmin(c Config) (*client.Admin, error) {
	owner, err := storeOwner(c)
	if err != nil {
		return nil, err
	}
	a, err := client.DialAdmin(client.Config{Socket: c.Socket.Path, ServerUID: &owner})
	if err != nil {
		return nil, asking(err)
	}
	return a, nil
}

// asking is the error of a call to the sidecar. What the sidecar could not reach is not what this command could
// not reach, so only what the caller can act on is kept as a sentinel.
func asking(err error) error {
	if errors.Is(err, keys.ErrJobRunning) || errors.Is(err, keys.ErrTooManyKeys) {
		return fmt.Errorf("asking the sidecar: %w", err)
	}
	return fmt.Errorf("asking the sidecar (is it running, and is this its own user?): %v", err)
}

func startJob(ctx context.Context, c Config, scope string, subject uuid.UUID, stdout io.Writer) (err error) {
	a, err := dialAdmin(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	j, err := a.StartJob(ctx, scope, subject)
	if err != nil {
		return asking(err)
	}
	_, err = fmt.Fprintf(stdout, "rotation %s of scope %s: %s\n", j.ID, j.Scope, progressOf(j))
	return err
}

func jobsCommand(stdout, stderr io.Writer) *cobra.Command {
	var follow bool
	cmd := withConfig("jobs", "List rotations, the newest first", func(cmd *cobra.Command, c Config) (err error) {
		a, err := dialAdmin(c)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.Close()) }()
		if follow {
			if err := followJob(cmd.Context(), a, stderr, time.Second); err != nil {
				return err
			}
		}
		jobs, err := a.Jobs(cmd.Context())
		if err != nil {
			return asking(err)
		}
		return printJobs(stdout, jobs)
	})
	cmd.Flags().BoolVar(&follow, "follow", false, "wait for the rotation under way, showing how far it is")
	return cmd
}

func printJobs(stdout io.Writer, jobs []client.Job) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "id\tscope\tby\tstarted\tstate\tledger entry\n")
	for _, j := range jobs {
		entry := "none yet"
		if j.Recorded >= 0 {
			entry = fmt.Sprint(j.Recorded)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", j.ID, j.Scope, j.By, j.Started.Format(time.RFC3339), progressOf(j), entry)
	}
	return w.Flush()
}

// progressOf says in a few words how far a rotation is.
func progressOf(j client.Job) string {
	switch j.State {
	case keyring.JobDone:
		return fmt.Sprintf("done, %d on version %d, in %s", j.Total, j.Target, j.Finished.Sub(j.Started).Round(time.Second))
	case keyring.JobRunning:
		s := "running"
		if j.Phase != "" {
			s += ", " + j.Phase
		}
		if j.Total > 0 {
			s += fmt.Sprintf(", %d of %d, %d %%", j.Done, j.Total, 100*j.Done/j.Total)
		}
		return s
	default:
		return j.State + ", " + j.Failure
	}
}

// jobLister is the part of client.Admin that following needs.
type jobLister interface {
	Jobs(ctx context.Context) ([]client.Job, error)
}

const (
	lineInterval = 10 * time.Second // between lines when there is no terminal
	patience     = time.Minute      // with a sidecar that does not answer, as during a restart
)

// followJob waits until the rotation that is under way has ended, and shows its progress on w. It returns
// errRotation when it failed. When none is under way it returns at once.
func followJob(ctx context.Context, a jobLister, w io.Writer, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var show *display
	defer func() { show.close() }()
	var id string
	heard := time.Now()
	for {
		jobs, err := a.Jobs(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && (id == "" || time.Since(heard) > patience):
			return asking(err)
		case err == nil:
			heard = time.Now()
			i := slices.IndexFunc(jobs, func(j client.Job) bool {
				return j.ID == id || id == "" && j.State == keyring.JobRunning
			})
			switch {
			case i < 0 && id == "":
				return nil
			case i < 0:
				return fmt.Errorf("rotation %s is no longer listed", id)
			}
			j := jobs[i]
			if id == "" {
				id, show = j.ID, newDisplay(w, j)
			}
			show.update(j)
			if j.State == keyring.JobFailed {
				return fmt.Errorf("%w: %s", errRotation, j.Failure)
			}
			if j.State != keyring.JobRunning {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// display shows how far a rotation is: a bar on a terminal, a line now and then elsewhere.
type display struct {
	bar   *progressbar.ProgressBar
	w     io.Writer
	next  time.Time
	phase string

	begun time.Time // with from, what the remaining time is reckoned by
	from  int64
}

func newDisplay(w io.Writer, j client.Job) *display {
	d := &display{w: w, phase: "\x00", begun: time.Now(), from: j.Done}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		d.bar = progressbar.NewOptions64(total(j),
			progressbar.OptionSetWriter(w),
			progressbar.OptionSetDescription(j.Scope),
			progressbar.OptionShowCount(),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionThrottle(200*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
	}
	return d
}

// total is -1, an unknown length, until it is known.
func total(j client.Job) int64 {
	if j.Total == 0 {
		return -1
	}
	return j.Total
}

func (d *display) update(j client.Job) {
	if d.phase != j.Phase && d.phase != "\x00" {
		d.begun, d.from = time.Now(), j.Done // another phase has another pace
	}
	if d.bar != nil {
		d.bar.Describe(j.Scope + " " + j.Phase)
		if d.bar.GetMax64() != total(j) {
			d.bar.ChangeMax64(total(j))
		}
		_ = d.bar.Set64(j.Done) // a bar that cannot be drawn is no reason to stop
	} else if now := time.Now(); d.phase != j.Phase || now.After(d.next) || j.State != keyring.JobRunning {
		d.next = now.Add(lineInterval)
		line := fmt.Sprintf("%s: %s", j.Scope, progressOf(j))
		if left := d.left(j, now); left > 0 {
			line += ", " + span(left) + " left"
		}
		fmt.Fprintln(d.w, line)
	}
	d.phase = j.Phase
}

// left is how long the rotation will take yet at the pace that was seen, 0 when that is not known.
func (d *display) left(j client.Job, now time.Time) time.Duration {
	done := j.Done - d.from
	if done <= 0 || j.Total <= j.Done || j.State != keyring.JobRunning {
		return 0
	}
	return time.Duration(float64(now.Sub(d.begun)) / float64(done) * float64(j.Total-j.Done))
}

func (d *display) close() {
	if d != nil && d.bar != nil {
		_ = d.bar.Finish()
	}
}
