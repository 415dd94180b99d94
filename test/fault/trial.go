package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// Trial says how often something is broken, and with which dice.
type Trial struct {
	Bin  string // directory with the programs
	Dir  string // for the worlds; short
	Seed uint64
	N    int
	End  time.Time                        // begin no fault after it; zero: none
	Log  func(format string, args ...any) // hears of each fault; nil: nobody
	// Fixtures are what is damaged; nil: they are made.
	Fixtures map[string]fixture
}

// Result is what came of a trial.
type Result struct {
	Fault        string
	Seed         uint64
	Count        int   // faults
	Recovered    int   // after which everything was there
	Refused      int   // after which the start was refused, with words
	Integrity    int   // after which requests were answered with an integrity error
	Acknowledged int64 // requests
	Broken       []string
	Took         time.Duration
}

func (t Trial) log(format string, args ...any) {
	if t.Log != nil {
		t.Log(format, args...)
	}
}

func (t Trial) over(ctx context.Context) bool {
	return ctx.Err() != nil || !t.End.IsZero() && time.Now().After(t.End)
}

// add counts the verdict on a fault.
func (r *Result) add(v Verdict, what string) {
	r.Count++
	switch {
	case len(v.Broken) > 0:
		for _, b := range v.Broken {
			r.Broken = append(r.Broken, what+": "+b)
		}
	case v.Refused:
		r.Refused++
	case v.Integrity > 0:
		r.Integrity++
	default:
		r.Recovered++
	}
}

// perWorld is how many faults one world suffers. Its log is verified after each of them, so it must not become long.
const perWorld = 25

// clients is the width of the load.
const clients = 6

// rounds makes worlds and has each suffer faults: fault does one and names it.
func (t Trial) rounds(ctx context.Context, name string, o Options, allow Allow, fault func(*World, *Load, *rand.Rand) (string, error)) (r Result, err error) {
	begun := time.Now()
	r = Result{Fault: name, Seed: t.Seed}
	defer func() { r.Took = time.Since(begun) }()
	rng := rand.New(rand.NewPCG(t.Seed, 1))
	for r.Count < t.N && !t.over(ctx) {
		if err := t.oneWorld(ctx, o, allow, rng, &r, fault); err != nil {
			return r, err
		}
	}
	return r, ctx.Err()
}

func (t Trial) oneWorld(ctx context.Context, o Options, allow Allow, rng *rand.Rand, r *Result, fault func(*World, *Load, *rand.Rand) (string, error)) (err error) {
	o.Bin, o.Dir = t.Bin, filepath.Join(t.Dir, fmt.Sprintf("w%d", r.Count))
	w, err := New(ctx, o)
	if err != nil {
		return err
	}
	broken := len(r.Broken)
	defer func() {
		if e := w.Close(); e != nil {
			err = errors.Join(err, e)
		} else if len(r.Broken) == broken { // else people want to look
			err = errors.Join(err, os.RemoveAll(o.Dir))
		}
	}()
	l := NewLoad(w, clients, rng.Uint64())
	for n := 0; n < perWorld && r.Count < t.N && !t.over(ctx) && len(r.Broken) == broken; n++ {
		what, err := fault(w, l, rng)
		if err != nil {
			return err
		}
		v := l.Check(ctx, allow)
		if ctx.Err() != nil {
			return nil // the check was cut off, and says nothing about the fault
		}
		r.add(v, fmt.Sprintf("fault %d, %s", r.Count, what))
		t.log("%s %d: %s: broken %q", r.Fault, r.Count, what, v.Broken)
	}
	_, acknowledged := l.Counts()
	r.Acknowledged += acknowledged
	return nil
}

// pause is a random time under load.
func pause(rng *rand.Rand) time.Duration { return time.Duration(20+rng.IntN(400)) * time.Millisecond }
