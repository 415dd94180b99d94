package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
)

// A control breaks a promise in a way that the checkers must notice. It returns nil when they did.

// ControlCheckers tells the memory of a sound world what never happened, one thing after the other: a person, a
// version, a value, an erasure, a consent, its withdrawal, a served read.
func ControlCheckers(ctx context.Context, t Trial) (err error) {
	dir := filepath.Join(t.Dir, "control")
	w, err := New(ctx, Options{Bin: t.Bin, Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close(), os.RemoveAll(dir)) }()
	l := NewLoad(w, 1, t.Seed)
	if err := l.Populate(ctx, 3); err != nil {
		return err
	}
	if v := l.Check(ctx, Allow{}); len(v.Broken) > 0 {
		return fmt.Errorf("the world is broken before anything was: %v", v.Broken)
	}
	c := l.workers[0]
	victim := c.people[0]
	lies := map[string]func(p *person){
		"a person who was never made": func(p *person) { p.id = uuid.NewString() },
		"a newer version":             func(p *person) { p.version++ },
		"another value":               func(p *person) { p.name = "somebody else" },
		"an erasure":                  func(p *person) { p.erased = true },
		"a consent":                   func(p *person) { p.consent = given },
		"a withdrawal":                func(p *person) { p.consent = withdrawn },
		"a served read":               func(*person) { l.wasServed(1 << 30) },
	}
	for what, lie := range lies {
		truth := *victim
		lie(victim)
		v := l.Check(ctx, Allow{Damage: true, Crash: true})
		*victim = truth
		if len(v.Broken) == 0 {
			err = errors.Join(err, fmt.Errorf("the checkers believe in %s", what))
		}
	}
	return err
}

// ControlCut runs Cuts on programs whose syncs do nothing: what they acknowledged must be lost, and that be noticed.
func ControlCut(ctx context.Context, t Trial) error {
	r, err := Cuts(ctx, t, Lies()...)
	if err != nil {
		return err
	}
	if len(r.Broken) == 0 {
		return fmt.Errorf("%d power cuts without any sync, and nothing is missing", r.Count)
	}
	t.log("control of the power cut: %d broken, such as: %.300s", len(r.Broken), r.Broken[0])
	return nil
}
