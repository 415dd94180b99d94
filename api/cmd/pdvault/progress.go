package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
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
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions64(size,
			progressbar.OptionSetWriter(w),
			progressbar.OptionSetDescription("importing"),
			progressbar.OptionShowBytes(true),
			progressbar.OptionThrottle(200*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
		_ = p.bar.Set64(done) // a bar that cannot be drawn is no reason to stop
	}
	return p
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

func (p *progress) close() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
