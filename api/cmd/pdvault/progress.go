package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/prototypster/pdvault/api"
)

// progress shows how far an import is: a bar on a terminal, a line now and then elsewhere.
type progress struct {
	bar  *progressbar.ProgressBar
	w    io.Writer
	size int64 // -1: not known
	next time.Time
}

const lineInterval = 10 * time.Second

func newProgress(w io.Writer, size, done int64) progress {
	p := progress{w: w, size: size, next: time.Now().Add(lineInterval)}
	p.bar = newBar(w, size, progressbar.OptionSetDescription("importing"), progressbar.OptionShowBytes(true))
	if p.bar != nil {
		_ = p.bar.Set64(done) // a bar that cannot be drawn is no reason to stop
	}
	return p
}

// newBar returns a bar on w; nil when w is no terminal.
func newBar(w io.Writer, size int64, options ...progressbar.Option) *progressbar.ProgressBar {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return progressbar.NewOptions64(size, append(options,
		progressbar.OptionSetWriter(w), progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionClearOnFinish())...)
}

func (p *progress) add(st *state) {
	if p.bar != nil {
		_ = p.bar.Set64(st.Offset)
		return
	}
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(lineInterval)
		fmt.Fprintf(p.w, "import: %d lines, %d created, %d rejected", st.Lines, st.Created, st.Rejected)
		if p.size > 0 {
			fmt.Fprintf(p.w, ", %d %%", percent(st.Offset, p.size))
		}
		fmt.Fprintln(p.w)
	}
}

// rotationProgress shows how far a rotation is: a bar on a terminal, a line now and then elsewhere.
type rotationProgress struct {
	bar  *progressbar.ProgressBar
	w    io.Writer
	next time.Time
}

func newRotationProgress(w io.Writer) *rotationProgress {
	// The bar is of per cent: how many things there are is known only when they were counted.
	bar := newBar(w, 100, progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(false))
	return &rotationProgress{bar: bar, w: w, next: time.Now().Add(lineInterval)}
}

func (p *rotationProgress) show(r *api.Rotation) {
	if p.bar != nil {
		p.bar.Describe(describeRotation(r))
		_ = p.bar.Set(r.Percent) // a bar that cannot be drawn is no reason to stop
		return
	}
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(lineInterval)
		fmt.Fprintf(p.w, "rotation: %s, %d %%\n", describeRotation(r), r.Percent)
	}
}

func (p *rotationProgress) close() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// describeRotation says what a running rotation is at, such as "index: backfill, 1200 of 40213, 1m30s left".
func describeRotation(r *api.Rotation) string {
	text := r.Scope
	if r.Phase != "" {
		text += ": " + r.Phase
	}
	if r.Total > 0 {
		text += fmt.Sprintf(", %d of %d", r.Done, r.Total)
	}
	if r.ETASeconds != nil {
		text += fmt.Sprintf(", %v left", time.Duration(*r.ETASeconds)*time.Second)
	}
	return text
}

func (p *progress) close() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
