package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// fixture is a stopped instance, and what a load knows of it. Each try damages a copy.
type fixture struct {
	name string
	dir  string
	load *Load
}

// fixtures returns those of the trial, or makes them.
func (t Trial) fixtures(ctx context.Context) (map[string]fixture, error) {
	if t.Fixtures != nil {
		return t.Fixtures, nil
	}
	return Fixtures(ctx, t)
}

// Fixtures are the states of one instance that damage is done to: "earlier", from which older files are taken, then
// "stopped", in order, and "killed", with write-ahead logs that hold what was acknowledged last.
func Fixtures(ctx context.Context, t Trial) (all map[string]fixture, err error) {
	dir := filepath.Join(t.Dir, "f")
	w, err := New(ctx, Options{Bin: t.Bin, Dir: filepath.Join(dir, "live"), Memtable: 1 << 20})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	l := NewLoad(w, clients, t.Seed)
	all = map[string]fixture{}
	for _, name := range []string{"earlier", "stopped", "killed"} {
		stop := l.Run(ctx, Beside{Epochs: name == "stopped"})
		time.Sleep(fixtureLoad)
		stop()
		if v := l.Check(ctx, Allow{}); len(v.Broken) > 0 {
			return nil, fmt.Errorf("the world is broken before anything was: %v", v.Broken)
		}
		if name == "killed" {
			w.KillBoth()
		} else if err := w.StopBoth(); err != nil {
			return nil, err
		}
		f := fixture{name, filepath.Join(dir, name), l.remember()}
		if err := Copy(ctx, w.Dir, f.dir); err != nil {
			return nil, err
		}
		all[name] = f
		if name != "killed" {
			if err := w.Start(ctx); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// fixtureLoad is enough for several tables of the smallest memtable.
const fixtureLoad = 1500 * time.Millisecond

// remember copies what is known.
func (l *Load) remember() *Load {
	c := NewLoad(l.w, clients, 1)
	c.next = l.next
	n := 0
	l.each(func(p *person) {
		q := *p
		w := c.workers[n%clients]
		w.people = append(w.people, &q)
		n++
	})
	c.served = slices.Clone(l.served)
	return c
}

// take makes a world of a copy of the fixture, and a load that knows what is in it. The programs do not run yet.
func (f fixture) take(ctx context.Context, t Trial) (*World, *Load, error) {
	dir := filepath.Join(t.Dir, "try")
	if err := errors.Join(os.RemoveAll(dir), Copy(ctx, f.dir, dir)); err != nil {
		return nil, nil, err
	}
	s, err := stack.Take(stack.Options{Bin: t.Bin, Dir: dir})
	if err != nil {
		return nil, nil, err
	}
	w, l := &World{Stack: s}, f.load.remember()
	l.w = w
	return w, l, nil
}

// try damages a copy of the fixture, starts it and checks it.
func (f fixture) try(ctx context.Context, t Trial, damage func(dir string) error) (v Verdict, err error) {
	w, l, err := f.take(ctx, t)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := damage(w.Dir); err != nil {
		return v, err
	}
	return l.Check(ctx, Allow{Damage: true}), nil
}

// tryRunning damages a copy of the fixture whose programs run under load, and checks it then, and once more when both have
// been stopped, in order or not. A program may die of the damage: the storage engine trusts what it has verified once.
func (f fixture) tryRunning(ctx context.Context, t Trial, rng *rand.Rand, damage func(dir string) error) (v Verdict, err error) {
	w, l, err := f.take(ctx, t)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.Start(ctx); err != nil {
		return v, err
	}
	if err := w.Ready(ctx, readyWithin, never); err != nil {
		return v, err
	}
	stop := l.Run(ctx, Beside{Epochs: rng.IntN(4) == 0, Backups: rng.IntN(4) == 0})
	time.Sleep(pause(rng))
	err = damage(w.Dir)
	time.Sleep(2 * pause(rng))
	stop()
	if err != nil {
		return v, err
	}
	allow := Allow{Damage: true, Crash: true}
	v = l.Check(ctx, allow)
	v.onlyEngineCrashes()
	if v.Refused || len(v.Broken) > 0 {
		return v, nil
	}
	if rng.IntN(2) == 0 {
		w.KillBoth()
	} else {
		_ = w.StopBoth() // whose exit code may tell of the damage
		w.KillBoth()
	}
	again := l.Check(ctx, allow)
	again.onlyEngineCrashes()
	again.Integrity += v.Integrity
	return again, nil
}

func never() bool { return false }

// onlyEngineCrashes breaks the verdict for crashes that are not the storage engine's own.
func (v *Verdict) onlyEngineCrashes() {
	for _, c := range v.Crashes {
		if !strings.Contains(c, "panic: ") || !strings.Contains(c, "dgraph-io/badger") {
			v.broken("a program crashed: %s", c)
		}
	}
}

// stored are the files of both stores of an instance and its root key, by kind: "data/sst", "keys/MANIFEST" and so on. The
// names are relative to the instance.
func stored(instance string) (map[string][]string, error) {
	kinds := map[string][]string{}
	for name, below := range map[string]string{"data": "d", "keys": "k"} {
		err := filepath.WalkDir(filepath.Join(instance, below), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // a running program has removed it
				return nil
			}
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(instance, path)
			kind := d.Name()
			if ext := filepath.Ext(kind); ext == ".sst" || ext == ".mem" || ext == ".vlog" {
				kind = ext[1:]
			}
			if strings.Contains(rel, "unclean-copy") {
				kind = "unclean-copy"
			}
			kinds[name+"/"+kind] = append(kinds[name+"/"+kind], rel)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return kinds, nil
}

// Flips flips one bit in one file while both programs are stopped, n times: each kind of file of both stores alike.
func Flips(ctx context.Context, t Trial) (r Result, err error) {
	begun := time.Now()
	r = Result{Fault: "flipped bit", Seed: t.Seed}
	defer func() { r.Took = time.Since(begun) }()
	all, err := t.fixtures(ctx)
	if err != nil {
		return r, err
	}
	rng := rand.New(rand.NewPCG(t.Seed, 2))
	for n := 0; r.Count < t.N && !t.over(ctx); {
		f := all[[]string{"stopped", "killed"}[rng.IntN(2)]]
		kinds, err := stored(f.dir)
		if err != nil {
			return r, err
		}
		names := sortedKeys(kinds)
		kind := names[n%len(names)]
		n++
		file := kinds[kind][rng.IntN(len(kinds[kind]))]
		if used, err := inUse(filepath.Join(f.dir, file)); err != nil || used == 0 {
			if err != nil {
				return r, err
			}
			continue // there is nothing in it to flip
		}
		var what string
		v, err := f.try(ctx, t, func(dir string) (err error) {
			what, err = flip(filepath.Join(dir, file), rng)
			return err
		})
		if err != nil || ctx.Err() != nil {
			return r, errors.Join(err, ctx.Err())
		}
		r.add(v, fmt.Sprintf("%s, %s in %s", f.name, what, file))
		t.log("flip %d: %s %s, %s: broken %q, refused %v, %d integrity errors", r.Count, f.name, file, what, v.Broken, v.Refused, v.Integrity)
	}
	return r, ctx.Err()
}

// FlipsRunning flips one bit in one file while both programs run under load, n times: half of the times in a table, else
// in each kind of file of both stores alike.
func FlipsRunning(ctx context.Context, t Trial) (r Result, err error) {
	begun := time.Now()
	r = Result{Fault: "flipped bit, running", Seed: t.Seed}
	defer func() { r.Took = time.Since(begun) }()
	all, err := t.fixtures(ctx)
	if err != nil {
		return r, err
	}
	rng := rand.New(rand.NewPCG(t.Seed, 4))
	for n := 0; r.Count < t.N && !t.over(ctx); n++ {
		f := all[[]string{"stopped", "killed"}[rng.IntN(2)]]
		var what string
		v, err := f.tryRunning(ctx, t, rng, func(dir string) error {
			kinds, err := stored(dir)
			if err != nil {
				return err
			}
			names := sortedKeys(kinds)
			kind := names[(n/2)%len(names)]
			if tables := []string{"data/sst", "keys/sst"}[(n/2)%2]; n%2 == 0 && kinds[tables] != nil {
				kind = tables
			}
			file := kinds[kind][rng.IntN(len(kinds[kind]))]
			what, err = flip(filepath.Join(dir, file), rng)
			if errors.Is(err, fs.ErrNotExist) {
				what, err = "nothing", nil // the file was removed meanwhile
			}
			what += " in " + file
			return err
		})
		if err != nil || ctx.Err() != nil {
			return r, errors.Join(err, ctx.Err())
		}
		if strings.HasPrefix(what, "nothing") {
			continue
		}
		r.add(v, fmt.Sprintf("%s, %s", f.name, what))
		t.log("flip %d: %s, running, %s: broken %q, refused %v, %d integrity errors, crashes %q", r.Count, f.name, what, v.Broken, v.Refused, v.Integrity, v.Crashes)
	}
	return r, ctx.Err()
}

// flip flips a bit among the bytes of a file that are in use: what follows the last byte that is not zero is not.
func flip(path string, rng *rand.Rand) (string, error) {
	used, err := inUse(path)
	if err != nil || used == 0 {
		return "nothing", err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	at, bit := rng.Int64N(used), byte(1)<<rng.IntN(8)
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return "", err
	}
	_, err = f.WriteAt([]byte{b[0] ^ bit}, at)
	return fmt.Sprintf("bit %#02x of byte %d of %d", bit, at, used), err
}

// inUse returns the length of a file without the zeros at its end.
func inUse(path string) (used int64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for used = int64(len(b)); used > 0 && b[used-1] == 0; used-- {
	}
	return used, nil
}

// Losses cuts off, removes, and replaces by an older one every file of both stores, and both directories, one at a
// time, while the programs are stopped. Of them all it does at most t.N, evenly picked.
func Losses(ctx context.Context, t Trial) (r Result, err error) {
	begun := time.Now()
	r = Result{Fault: "lost, cut or older file", Seed: t.Seed}
	defer func() { r.Took = time.Since(begun) }()
	all, err := t.fixtures(ctx)
	if err != nil {
		return r, err
	}
	rng := rand.New(rand.NewPCG(t.Seed, 3))
	list, err := losses(all, rng)
	if err != nil {
		return r, err
	}
	rng.Shuffle(len(list), func(a, b int) { list[a], list[b] = list[b], list[a] })
	for _, one := range list[:min(t.N, len(list))] {
		if t.over(ctx) {
			break
		}
		v, err := one.fixture.try(ctx, t, one.do)
		if err != nil || ctx.Err() != nil {
			return r, errors.Join(err, ctx.Err())
		}
		r.add(v, one.fixture.name+", "+one.what)
		t.log("loss %d of %d: %s, %s: broken %q, refused %v, %d integrity errors", r.Count, len(list), one.fixture.name, one.what, v.Broken, v.Refused, v.Integrity)
	}
	return r, ctx.Err()
}

type loss struct {
	fixture fixture
	what    string
	do      func(dir string) error
}

func losses(all map[string]fixture, rng *rand.Rand) (list []loss, err error) {
	earlier := all["earlier"].dir
	for _, name := range []string{"stopped", "killed"} {
		f := all[name]
		add := func(what string, do func(dir string) error) { list = append(list, loss{f, what, do}) }
		for _, store := range []string{"d/store", "k/store"} {
			add(store+" missing", func(dir string) error { return os.RemoveAll(filepath.Join(dir, store)) })
			add(store+" empty", func(dir string) error {
				path := filepath.Join(dir, store)
				return errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700))
			})
			add(store+" older", func(dir string) error { return older(earlier, dir, store) })
		}
		kinds, err := stored(f.dir)
		if err != nil {
			return nil, err
		}
		for _, kind := range sortedKeys(kinds) {
			for _, file := range kinds[kind] {
				used, err := inUse(filepath.Join(f.dir, file))
				if err != nil {
					return nil, err
				}
				add(file+" missing", func(dir string) error { return os.Remove(filepath.Join(dir, file)) })
				cuts := []int64{0, used - 1}
				for range 3 {
					cuts = append(cuts, rng.Int64N(max(used, 1)))
				}
				for _, at := range cuts {
					add(fmt.Sprintf("%s cut at %d of %d", file, at, used), func(dir string) error {
						return os.Truncate(filepath.Join(dir, file), max(at, 0))
					})
				}
				if _, err := os.Stat(filepath.Join(earlier, file)); err == nil {
					add(file+" older", func(dir string) error { return older(earlier, dir, file) })
				}
			}
		}
	}
	return list, nil
}

// older puts what from has of a file or a directory in the place of what to has.
func older(from, to, name string) error {
	path := filepath.Join(to, name)
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return Copy(context.Background(), filepath.Join(from, name), path)
}

// ControlLosses puts both stores back to an older state together, which no start can notice and which nobody promises
// to notice: the checkers must find everything that is missing.
func ControlLosses(ctx context.Context, t Trial) error {
	all, err := t.fixtures(ctx)
	if err != nil {
		return err
	}
	v, err := all["stopped"].try(ctx, t, func(dir string) error {
		return errors.Join(older(all["earlier"].dir, dir, "d"), older(all["earlier"].dir, dir, "k"))
	})
	switch {
	case err != nil:
		return err
	case v.Refused || len(v.Broken) == 0:
		return fmt.Errorf("both stores are older, and nothing is missing: refused %v", v.Refused)
	}
	t.log("control of damage: %d broken, such as: %.300s", len(v.Broken), v.Broken[0])
	return nil
}

func sortedKeys(m map[string][]string) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
