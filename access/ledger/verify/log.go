package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// LogCheck says how an exported log is to be checked.
type LogCheck struct {
	Ledger    note.Verifier   // required; its name is the origin
	Witnesses []note.Verifier // whose cosignatures on the checkpoint count, and whose evidence of rotations is checked
	Quorum    int             // how many of them must be there
	Earlier   []byte          // a signed checkpoint that the auditor kept; nil when there is none
	Known     *Checkpoint     // one that the caller knows without a signature; nil when there is none
	Policies  Policies        // what the policy's part of each ground is rechecked against; nil leaves it out
	// Visit, when set, is called for each entry in order, after it was checked. Its error ends the check.
	Visit func(index int64, raw []byte, e Entry) error
}

// Codes of problems with the log itself. After one of them nothing behind its index can be trusted, and
// the check ends.
const (
	CodeCheckpoint  = "checkpoint"   // missing, malformed, foreign or with a wrong signature
	CodeQuorum      = "quorum"       // too few witnesses
	CodeMissingFile = "missing-file" // a bundle or tile is not there
	CodeBadFile     = "bad-file"     // a bundle or tile is malformed
	CodeTile        = "tile"         // a tile does not hold the hashes of what lies below it
	CodeRoot        = "root"         // the entries do not give the root of the checkpoint
	CodeEarlier     = "earlier"      // the log does not extend the earlier checkpoint
	CodeRestored    = "restored"     // likewise, and the log says why: it was restored from an older backup
	CodeEntry       = "entry"        // an entry is malformed
	CodeTime        = "time"         // the time of an entry is before that of the one before
)

// Problem is something that is wrong with a log.
type Problem struct {
	Index  int64  `json:"index"` // of the first entry concerned; -1 when it is about the whole log
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// maxProblems bounds how many problems a report lists; the others are counted.
const maxProblems = 1000

// Report is the outcome of a check.
type Report struct {
	Checkpoint   Checkpoint       `json:"-"`
	Cosignatures []Cosignature    `json:"cosignatures,omitempty"`
	Earlier      *Checkpoint      `json:"-"`
	Entries      int64            `json:"entries"` // read and found in the tree
	First        string           `json:"first,omitempty"`
	Last         string           `json:"last,omitempty"` // times
	Kinds        map[string]int64 `json:"kinds"`
	Access       AccessCounts     `json:"access"`
	Erasures     ErasureCounts    `json:"erasures"`
	Keys         KeyCounts        `json:"keys"`
	Restores     []Restore        `json:"restores,omitempty"`
	Policies     int64            `json:"policies"`                  // policy bundles that are byte for byte the published ones
	Absent       []int64          `json:"policies_absent,omitempty"` // versions whose bundle is not in the export
	Problems     []Problem        `json:"problems"`
	Found        int64            `json:"problem_count"` // of problems, listed or not
}

// AccessCounts sums up the access records of a log. Each one that was allowed is counted in exactly one of
// Rechecked, Partly and Refuted.
type AccessCounts struct {
	Allowed   int64                   `json:"allowed"`
	Denied    int64                   `json:"denied"`
	Failed    int64                   `json:"failed"`             // allowed, recorded and then not served
	Rechecked int64                   `json:"rechecked"`          // their ground held when replayed, in full
	Partly    int64                   `json:"partly"`             // it held, but the policy was not there to be asked
	Refuted   int64                   `json:"refuted"`            // it did not hold, or there was none
	Grounds   map[string]GroundCounts `json:"grounds"`            // "" for denials that came to no ground
	Denials   map[string]int64        `json:"denials,omitempty"`  // denied, by reason
	Failures  map[string]int64        `json:"failures,omitempty"` // failed, by reason
}

// GroundCounts sums up the access records with one ground, as AccessCounts does for all.
type GroundCounts struct {
	Allowed   int64 `json:"allowed"`
	Denied    int64 `json:"denied"`
	Rechecked int64 `json:"rechecked"`
	Partly    int64 `json:"partly"`
	Refuted   int64 `json:"refuted"`
}

// ErasureCounts sums up the erasures of a log. A pending one is no problem: the key may be destroyed by an entry
// that the log does not hold yet.
type ErasureCounts struct {
	Erased    int64 `json:"erased"`    // subjects
	Destroyed int64 `json:"destroyed"` // keys
	Pending   int64 `json:"pending"`   // erased subjects whose key is not recorded to be destroyed
}

// Restore is a ledger.restored entry: from its index on the log is another than the one that was lost.
type Restore struct {
	Index int64 `json:"index"`
	Restored
}

// KeyCounts sums up the rotations of a log.
type KeyCounts struct {
	Epochs    int64 `json:"epochs"`
	Rotations int64 `json:"rotations"` // other than epochs, that have ended
	Proven    int64 `json:"proven"`    // of both: those whose evidence a witness key given has made
	Resealed  int64 `json:"resealed"`  // subjects whose records were sealed or indexed again; one may count more than once
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return r.Found == 0 }

func (r *Report) add(p Problem) {
	if r.Found++; len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, p)
	}
}

// errStop ends a check early: the problem that ended it is in the report.
var errStop = errors.New("verify: log check ended")

// VerifyLog checks an exported log: a directory with the layout of C2SP tlog-tiles, and optionally the
// policy bundles as policy/<version>.json. It recomputes everything from the entries: each tile, the root
// of the signed checkpoint, consistency with an earlier checkpoint; then it replays the entries and
// rechecks each ground. What is wrong is in the report. An error means that the check could not be done:
// ctx ended, reading failed for another reason than absence, or Visit failed.
func VerifyLog(ctx context.Context, dir fs.FS, c LogCheck) (*Report, error) {
	v := &logVerifier{
		dir: dir, check: c,
		report: &Report{
			Kinds: make(map[string]int64), Problems: []Problem{},
			Access: AccessCounts{
				Grounds: make(map[string]GroundCounts), Denials: make(map[string]int64), Failures: make(map[string]int64),
			},
		},
	}
	v.replay = newReplay(v.report, c.Policies, SidecarWitnesses(c.Witnesses...))
	if err := v.run(ctx); err != nil && !errors.Is(err, errStop) {
		return v.report, err
	}
	return v.report, nil
}

type logVerifier struct {
	dir    fs.FS
	check  LogCheck
	report *Report
	tree   hashTree
	replay *replay
	last   string // time of the last entry
}

// fail records a problem and ends the check.
func (v *logVerifier) fail(index int64, code, format string, args ...any) error {
	v.report.add(Problem{Index: index, Code: code, Detail: fmt.Sprintf(format, args...)})
	return errStop
}

func (v *logVerifier) run(ctx context.Context) error {
	if err := v.openCheckpoints(); err != nil {
		return err
	}
	cp := v.report.Checkpoint
	if err := v.checkEarlier(); err != nil { // when it is of the empty log
		return err
	}
	if err := v.readBundles(ctx, cp.Size); err != nil {
		return err
	}
	for level, l := range v.tree.levels {
		if level == 0 {
			continue // compared with each bundle
		}
		if err := v.compareTile(level, l.n, l.hashes); err != nil {
			return err
		}
	}
	if v.tree.root() != cp.Root {
		return v.fail(v.trusted(), CodeRoot, "the entries and tiles do not give the root of the checkpoint")
	}
	if k := v.check.Known; k != nil && k.Size > cp.Size {
		return v.fail(cp.Size, CodeEarlier, "the log is known to have had %d entries and has %d", k.Size, cp.Size)
	}
	if e := v.report.Earlier; e != nil && e.Size > cp.Size {
		return v.notExtended(cp.Size, *e, "the log had %d entries and now has %d", e.Size, cp.Size)
	}
	return nil
}

func (v *logVerifier) openCheckpoints() error {
	if v.check.Ledger == nil {
		return errors.New("verify: no ledger key to check the log with")
	}
	signed, err := fs.ReadFile(v.dir, CheckpointPath)
	if errors.Is(err, fs.ErrNotExist) {
		return v.fail(-1, CodeCheckpoint, "there is no checkpoint")
	} else if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	origin := v.check.Ledger.Name()
	cp, n, err := OpenCheckpoint(signed, origin, v.check.Ledger, v.check.Witnesses...)
	if err != nil {
		return v.fail(-1, CodeCheckpoint, "%v", err)
	}
	v.report.Checkpoint = cp
	v.report.Cosignatures = Cosignatures(n, v.check.Witnesses...)
	if got := len(v.report.Cosignatures); got < v.check.Quorum {
		return v.fail(-1, CodeQuorum, "cosigned by %d witnesses, not %d", got, v.check.Quorum)
	}
	if v.check.Earlier == nil {
		return nil
	}
	earlier, _, err := OpenCheckpoint(v.check.Earlier, origin, v.check.Ledger, v.check.Witnesses...)
	if err != nil {
		return v.fail(-1, CodeEarlier, "the earlier checkpoint: %v", err)
	}
	v.report.Earlier = &earlier
	return nil
}

// trusted returns the first index that no checkpoint covers whose root has been found to be right.
func (v *logVerifier) trusted() int64 {
	if e := v.report.Earlier; e != nil && v.tree.size >= e.Size {
		return e.Size
	}
	return 0
}

// checkEarlier compares the tree, when it has grown to their size, with the checkpoints that are known from before.
func (v *logVerifier) checkEarlier() error {
	root := func(cp *Checkpoint) bool { return cp == nil || v.tree.size != cp.Size || v.tree.root() == cp.Root }
	if !root(v.check.Known) {
		return v.fail(0, CodeEarlier, "the first %d entries are not those that are known", v.tree.size)
	}
	if e := v.report.Earlier; !root(e) {
		return v.notExtended(0, *e, "the first %d entries are not those of the earlier checkpoint", e.Size)
	}
	return nil
}

// notExtended is the problem that the log does not extend the earlier checkpoint e. When the log itself says that it was
// restored from a backup that ends before e, that is what is said, and the check goes on: it stays a problem, for who
// rewrites a log can write such an entry as well.
func (v *logVerifier) notExtended(index int64, e Checkpoint, format string, args ...any) error {
	for _, r := range v.report.Restores {
		if r.Size >= e.Size || r.Lost < e.Size {
			continue
		}
		end := "; ask for an export of it and for what pdkeys has kept of the rewind"
		if r.Lost == e.Size && r.LostRoot == e.Root.String() {
			end = "; it ends where the earlier checkpoint does"
		}
		v.report.add(Problem{Index: r.Index, Code: CodeRestored, Detail: fmt.Sprintf(
			"the log was restored from backup %s and has lost what it held from entry %d on; the earlier checkpoint covers %d entries of the lost part, which this log cannot show%s",
			r.Backup, r.Size, e.Size-r.Size, end)})
		return nil
	}
	return v.fail(index, CodeEarlier, format, args...)
}

// bundle is one entry bundle, read and hashed.
type bundle struct {
	n       int64
	raw     [][]byte
	hashes  []tlog.Hash
	entries []Entry  // parsed; fewer than raw when there is a problem
	problem *Problem // ends the check after entries
	err     error
}

// readBundles reads the bundles of the log with one goroutine for each processor, since parsing is the
// greater part of the work, and takes them in order. All goroutines have ended when it returns.
func (v *logVerifier) readBundles(ctx context.Context, size int64) error {
	ctx, cancel := context.WithCancel(ctx)
	count := (size + TileWidth - 1) / TileWidth
	// Each bundle has a channel of its own in the queue, whose capacity bounds how much is read ahead.
	queue := make(chan chan bundle, 2*runtime.GOMAXPROCS(0))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(queue)
		for n := range count {
			out := make(chan bundle, 1)
			select {
			case queue <- out:
			case <-ctx.Done():
				return
			}
			go func() { out <- v.readBundle(n, size) }()
		}
	}()
	defer func() {
		cancel()
		<-ended
		for out := range queue {
			<-out
		}
	}()
	for range count {
		out, open := <-queue
		if !open {
			return context.Cause(ctx)
		}
		b := <-out
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := v.take(b); err != nil {
			return err
		}
	}
	return nil
}

func (v *logVerifier) readBundle(n, size int64) bundle {
	b := bundle{n: n}
	want := Tile{EntriesLevel, n, int(min(TileWidth, size-n*TileWidth))}
	file, data, problem, err := v.readTile(want, n*TileWidth)
	if problem != nil || err != nil {
		b.problem, b.err = problem, err
		return b
	}
	if b.raw, err = DecodeBundle(data, file.Width); err != nil {
		b.problem = &Problem{n * TileWidth, CodeBadFile, fmt.Sprintf("%s: %v", file.Path(), err)}
		return b
	}
	b.raw = b.raw[:want.Width]
	for i, raw := range b.raw {
		e, err := ParseEntry(raw)
		if err != nil {
			b.problem = &Problem{n*TileWidth + int64(i), CodeEntry, err.Error()}
		}
		if b.problem == nil {
			b.entries = append(b.entries, e)
		}
		b.hashes = append(b.hashes, tlog.RecordHash(raw))
	}
	return b
}

// readTile reads a file of the log and says which it was. A full tile serves for a partial one that is
// gone, as tlog-tiles allows.
func (v *logVerifier) readTile(t Tile, index int64) (Tile, []byte, *Problem, error) {
	file := t
	data, err := fs.ReadFile(v.dir, file.Path())
	if errors.Is(err, fs.ErrNotExist) {
		file.Width = TileWidth
		data, err = fs.ReadFile(v.dir, file.Path())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil, &Problem{index, CodeMissingFile, t.Path() + " is missing"}, nil
	} else if err != nil {
		return file, nil, nil, fmt.Errorf("reading %s: %w", file.Path(), err)
	}
	return file, data, nil, nil
}

// take puts a bundle into the tree, which shows that its entries are those of the tiles, and replays them.
func (v *logVerifier) take(b bundle) error {
	if b.err != nil {
		return b.err
	}
	first := b.n * TileWidth
	if len(b.hashes) > 0 {
		// The lowest tile is compared before anything is believed, since it names the very entry.
		if err := v.compareTile(0, b.n, b.hashes); err != nil {
			return err
		}
	}
	for i, e := range b.entries {
		if err := v.takeEntry(first+int64(i), b.raw[i], e); err != nil {
			return err
		}
		if err := v.tree.add(b.hashes[i], v.compareTile); err != nil {
			return err
		}
		if err := v.checkEarlier(); err != nil {
			return err
		}
	}
	if b.problem != nil {
		return v.fail(b.problem.Index, b.problem.Code, "%s", b.problem.Detail)
	}
	return nil
}

func (v *logVerifier) takeEntry(index int64, raw []byte, e Entry) error {
	if e.Time < v.last { // TimeLayout sorts as text
		return v.fail(index, CodeTime, "%s is before %s", e.Time, v.last)
	}
	if v.last = e.Time; index == 0 {
		v.report.First = e.Time
	}
	v.report.Entries, v.report.Last = index+1, e.Time
	v.report.Kinds[e.Kind]++
	if e.Kind == KindPolicyPublished && e.Bundle != nil {
		if err := v.checkBundle(index, e.Bundle); err != nil {
			return err
		}
	}
	v.replay.entry(index, e)
	if v.check.Visit != nil {
		return v.check.Visit(index, raw, e)
	}
	return nil
}

// compareTile demands that the tile in the log holds these hashes.
func (v *logVerifier) compareTile(level int, n int64, hashes []tlog.Hash) error {
	if len(hashes) == 0 {
		return nil
	}
	span := int64(1) << (TileHeight * level) // entries below one hash
	first := n * TileWidth * span
	want := Tile{level, n, len(hashes)}
	file, data, problem, err := v.readTile(want, first)
	if err != nil {
		return err
	}
	if problem != nil {
		return v.fail(problem.Index, problem.Code, "%s", problem.Detail)
	}
	stored, err := DecodeTile(data, file.Width)
	if err != nil {
		return v.fail(first, CodeBadFile, "%s: %v", file.Path(), err)
	}
	for i, h := range hashes {
		if stored[i] != h {
			at := first + int64(i)*span
			return v.fail(at, CodeTile, "%s does not hold the hash of %d entries from %d on", file.Path(), span, at)
		}
	}
	return nil
}

// hashTree recomputes a tree from the hashes of its entries. It is written apart from the one that the
// ledger grows, and keeps no more than the hashes of the right-most tile of each level.
type hashTree struct {
	size   int64
	levels []hashLevel
}

type hashLevel struct {
	n      int64 // index of the tile that grows
	hashes []tlog.Hash
}

// add appends an entry's hash and reports each tile above the lowest level that becomes full.
func (t *hashTree) add(h tlog.Hash, full func(level int, n int64, hashes []tlog.Hash) error) error {
	t.size++
	for level := 0; ; level++ {
		if level == len(t.levels) {
			t.levels = append(t.levels, hashLevel{})
		}
		l := &t.levels[level]
		l.hashes = append(l.hashes, h)
		if len(l.hashes) < TileWidth {
			return nil
		}
		if level > 0 {
			if err := full(level, l.n, l.hashes); err != nil {
				return err
			}
		}
		h = treeHash(l.hashes)
		l.n, l.hashes = l.n+1, l.hashes[:0]
	}
}

// root returns the hash of the tree as it is.
func (t *hashTree) root() tlog.Hash {
	if t.size == 0 {
		return EmptyCheckpoint("").Root
	}
	// What lies right of the full subtrees of a level is, as one subtree, the last of that level.
	var right []tlog.Hash
	for _, l := range t.levels {
		if hashes := append(slices.Clone(l.hashes), right...); len(hashes) > 0 {
			right = []tlog.Hash{treeHash(hashes)}
		}
	}
	return right[0]
}

// treeHash is the RFC 6962 hash of a tree over subtrees of equal size, the last of which may be smaller.
func treeHash(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	k := 1
	for 2*k < len(hashes) {
		k *= 2
	}
	return tlog.NodeHash(treeHash(hashes[:k]), treeHash(hashes[k:]))
}

// validTime reports whether s is in TimeLayout, and in its only form.
func validTime(s string) bool {
	t, err := time.Parse(TimeLayout, s)
	return err == nil && FormatTime(t) == s
}
