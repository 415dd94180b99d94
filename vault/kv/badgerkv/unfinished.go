package badgerkv

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/prototypster/pdvault/vault/kv"
)

// unfinished is what is known of a compaction before the MANIFEST is changed, on the disk as unfinishedFile until the
// change was found to be right. It is enough to undo the compaction: its input stays in the directory so long.
//
//	{"tables":{"7":{"level":0}},"size":512,"sum":"<sha-256>","announced":[2]}
//	<sha-256 of the line before>
type unfinished struct {
	Tables    map[uint64]listed `json:"tables"`    // that the MANIFEST listed before
	Size      int64             `json:"size"`      // of the MANIFEST then
	Sum       string            `json:"sum"`       // SHA-256 of it
	Announced []int             `json:"announced"` // for each compaction since, how many tables it makes
	// Closing: the compactions may have read tables that were flushed since, or Flushed, which was just being flushed.
	// Their logs are still there instead.
	Closing bool   `json:"closing,omitempty"`
	Flushed uint64 `json:"flushed,omitempty"`
}

// verdict is what the MANIFEST says of unfinished compactions.
type verdict int

const (
	untouched verdict = iota // no compaction is in it
	whole                    // each that is in it made what it announced
	short                    // one made less, or it cannot be told
)

// judge compares what compactions announced with what the MANIFEST got from them.
func (u unfinished) judge(s since) (v verdict, done int) {
	if s.rewritten {
		return u.judgeTables(s.tables)
	}
	for _, set := range s.sets {
		if len(set.deleted) == 0 {
			continue
		}
		if done == len(u.Announced) || len(set.created) != u.Announced[done] {
			return short, done
		}
		v = whole
		done++
	}
	return v, done
}

// judgeTables is for a MANIFEST that Badger has written anew, in which sets are no longer told apart: tables below level 0
// are from the compaction. One from level 0 to level 0 cannot be told from a flush; it is taken for short, since
// undoing a whole one loses nothing.
func (u unfinished) judgeTables(now map[uint64]listed) (v verdict, done int) {
	deleted, made := 0, 0
	for id := range u.Tables {
		if _, ok := now[id]; !ok {
			deleted++
		}
	}
	for id, t := range now {
		if _, ok := u.Tables[id]; !ok && t.Level > 0 {
			made++
		}
	}
	switch {
	case deleted == 0 && made == 0:
		return untouched, 0
	case len(u.Announced) == 1 && made == u.Announced[0]:
		return whole, 1
	}
	return short, 0
}

// made are the tables that compactions have created and that are still listed.
func (u unfinished) made(s since) map[uint64]listed {
	made := map[uint64]listed{}
	for _, set := range s.sets {
		if len(set.deleted) > 0 {
			maps.Copy(made, set.created)
		}
	}
	if s.rewritten {
		made = maps.Clone(s.tables)
		maps.DeleteFunc(made, func(id uint64, t listed) bool { _, old := u.Tables[id]; return old || t.Level == 0 })
	}
	maps.DeleteFunc(made, func(id uint64, _ listed) bool { _, ok := s.tables[id]; return !ok })
	return made
}

// before are the tables of a MANIFEST in which the compactions have not happened.
func (u unfinished) before(s since) map[uint64]listed {
	tables := maps.Clone(u.Tables)
	if u.Closing {
		return tables
	}
	made := u.made(s)
	for id, t := range s.tables {
		if _, ok := made[id]; !ok && t.Level == 0 {
			tables[id] = t // flushed since, and its log is gone
		}
	}
	return tables
}

func encodeUnfinished(u unfinished) ([]byte, error) {
	line, err := json.Marshal(u)
	if err != nil {
		return nil, fmt.Errorf("badgerkv: encoding %s: %w", unfinishedFile, err)
	}
	sum := sha256.Sum256(line)
	return append(append(line, '\n'), hex.EncodeToString(sum[:])+"\n"...), nil
}

func decodeUnfinished(data []byte) (u unfinished, err error) {
	line, sum, ok := bytes.Cut(data, []byte("\n"))
	want := sha256.Sum256(line)
	if !ok || string(sum) != hex.EncodeToString(want[:])+"\n" {
		return u, errors.New("checksum")
	}
	if err := json.Unmarshal(line, &u); err != nil {
		return u, err
	}
	if u.Size < manifestHeader || u.Tables == nil || len(u.Announced) == 0 {
		return u, errors.New("incomplete")
	}
	return u, nil
}

// undo is how Open puts back what an unfinished compaction has lost.
type undo struct {
	header []byte            // of the MANIFEST
	tables map[uint64]listed // that it must list; nil: the MANIFEST is right, only the record of the compaction goes
	lost   int               // tables that the compaction deleted and that come back
}

// planUndo looks for an unfinished compaction and decides what to do with it. It changes nothing. Nil: there is none.
func planUndo(o Options, isClean bool) (*undo, error) {
	data, err := os.ReadFile(filepath.Join(o.Dir, unfinishedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("badgerkv: %w", err)
	}
	if isClean {
		return &undo{}, nil // the stop would not have been clean if it told of a loss
	}
	u, err := decodeUnfinished(data)
	if err != nil {
		return nil, fmt.Errorf("badgerkv: %s, which tells whether a compaction lost its input, cannot be read (%w); "+
			"nothing was touched; restore the directory from a backup: %w", unfinishedFile, err, kv.ErrIntegrity)
	}
	manifest, err := os.ReadFile(filepath.Join(o.Dir, badger.ManifestFilename))
	if err != nil {
		return nil, fmt.Errorf("badgerkv: %w", err)
	}
	s, err := u.since(manifest)
	if err != nil {
		return nil, fmt.Errorf("%w; nothing was touched; restore the directory from a backup", err)
	}
	held, gone, err := u.input(o.Dir, s)
	if err != nil {
		return nil, err
	}
	if err := auditInput(o.Dir, held); err != nil { // what is gone was verified before
		return nil, err
	}
	v, _ := u.judge(s)
	if v == whole {
		// A change that could not be synced may be on the disk, and the engine has removed what it names.
		switch err := auditOutput(o.Dir, slices.Collect(maps.Keys(u.made(s)))); {
		case errors.Is(err, kv.ErrIntegrity):
			v = short
		case err != nil:
			return nil, err
		}
		// The record goes when the input was found to be right, and the input after it. What has been read of it may have been
		// damaged, though it is right now.
		if len(held) > 0 && gone == 0 && !u.Closing { // then the logs that would be needed may be gone
			v = short
		}
	}
	if v != short {
		return &undo{}, nil
	}
	plan := &undo{header: manifest[:manifestHeader], tables: u.before(s)}
	if size, err := fileSize(filepath.Join(o.Dir, table.IDToFilename(u.Flushed))); err != nil {
		return nil, err
	} else if u.Closing && size == 0 {
		delete(plan.tables, u.Flushed) // checkLogs makes sure that its log is there
	}
	for id := range plan.tables {
		if _, ok := s.tables[id]; !ok {
			plan.lost++
		}
	}
	return plan, nil
}

// input are the tables that compactions have read and that are still there, and how many are not.
func (u unfinished) input(dir string, s since) (held []uint64, gone int, err error) {
	for id := range u.Tables {
		if _, ok := s.tables[id]; ok {
			continue
		}
		size, err := fileSize(filepath.Join(dir, table.IDToFilename(id)))
		switch {
		case err != nil:
			return nil, 0, err
		case size > 0:
			held = append(held, id)
		default:
			gone++
		}
	}
	return held, gone, nil
}

// since tells what has become of the MANIFEST since the compaction began.
func (u unfinished) since(manifest []byte) (s since, err error) {
	now, err := readManifest(manifest)
	if err != nil {
		return s, err
	}
	s.tables = now
	if int64(len(manifest)) >= u.Size {
		sum := sha256.Sum256(manifest[:u.Size])
		s.rewritten = hex.EncodeToString(sum[:]) != u.Sum
	} else {
		s.rewritten = true
	}
	if !s.rewritten {
		s.sets, _, err = decodeChanges(manifest[u.Size:])
	}
	return s, err
}

// apply makes the MANIFEST right and removes the record. Wherever it is interrupted, the next Open comes to the same: the
// new MANIFEST lists all that was listed before the compaction, which is then untouched.
func (u *undo) apply(o Options) error {
	if u.tables != nil {
		o.Logger.Warn("a compaction did not write all that it had read: it is undone", "tables", u.lost)
		if err := writeManifest(o, u.header, u.tables); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(o.Dir, unfinishedFile)); err != nil {
		return fmt.Errorf("badgerkv: removing %s: %w", unfinishedFile, err)
	}
	return syncDir(o.Dir)
}

// fileSize is 0 for a file that is not there.
func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("badgerkv: %w", err)
	}
	return info.Size(), nil
}
