package occ

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/prototypster/pdvault/vault/kv"
)

func nothing() error { return nil }

func mustCommit(t *testing.T, l *Log, keys ...string) {
	t.Helper()
	tx := l.Begin()
	for _, k := range keys {
		tx.Write([]byte(k))
	}
	if err := l.Commit(tx, nothing); err != nil {
		t.Fatal(err)
	}
}

func TestConflicts(t *testing.T) {
	end := []byte("c")
	for name, c := range map[string]struct {
		reads func(*Tx)
		want  bool
	}{
		"nothing read":        {func(*Tx) {}, false},
		"read":                {func(tx *Tx) { tx.Read([]byte("b")) }, true},
		"other key read":      {func(tx *Tx) { tx.Read([]byte("bb")) }, false},
		"own write read":      {func(tx *Tx) { tx.Write([]byte("b")); tx.Read([]byte("b")) }, false},
		"read, then written":  {func(tx *Tx) { tx.Read([]byte("b")); tx.Write([]byte("b")) }, true},
		"range from the key":  {func(tx *Tx) { tx.ReadRange([]byte("b"), end) }, true},
		"range to the key":    {func(tx *Tx) { tx.ReadRange([]byte("a"), []byte("b")) }, false},
		"range past the key":  {func(tx *Tx) { tx.ReadRange([]byte("b\x00"), end) }, false},
		"range without end":   {func(tx *Tx) { tx.ReadRange([]byte("a"), nil) }, true},
		"everything":          {func(tx *Tx) { tx.ReadRange(nil, nil) }, true},
		"range the wrong way": {func(tx *Tx) { tx.ReadRange(end, []byte("a")) }, false},
	} {
		l := NewLog()
		mustCommit(t, l, "b") // before Begin: never a conflict
		tx := l.Begin()
		c.reads(tx)
		mustCommit(t, l, "x", "b", "y")
		mustCommit(t, l, "z")
		applied := false
		err := l.Commit(tx, func() error { applied = true; return nil })
		if got := errors.Is(err, kv.ErrConflict); got != c.want || applied == c.want {
			t.Errorf("%s: conflict is %t (error %v, applied %t), want %t", name, got, err, applied, c.want)
		}
	}
}

func TestFailedApplyIsNoCommit(t *testing.T) {
	l := NewLog()
	reading := l.Begin()
	reading.Read([]byte("a"))
	tx := l.Begin()
	tx.Write([]byte("a"))
	want := errors.New("mine")
	if err := l.Commit(tx, func() error { return want }); err != want {
		t.Errorf("Commit gave %v", err)
	}
	if err := l.Commit(reading, nothing); err != nil {
		t.Errorf("a commit that did not happen conflicts: %v", err)
	}
}

func TestScanRange(t *testing.T) {
	b := func(s string) []byte { return []byte(s) }
	for _, c := range []struct{ prefix, after, last, lo, hi []byte }{
		{b("p"), nil, nil, b("p"), b("q")},
		{b("p"), b("a"), nil, b("p"), b("q")},
		{b("p"), b("p1"), nil, b("p1\x00"), b("q")},
		{b("p"), b("p"), b("p7"), b("p\x00"), b("p7\x00")},
		{b("p\xff"), nil, nil, b("p\xff"), b("q")},
		{b("\xff"), nil, nil, b("\xff"), nil},
		{nil, nil, nil, nil, nil},
		{nil, b(""), nil, b("\x00"), nil},
	} {
		lo, hi := ScanRange(c.prefix, c.after, c.last)
		if !bytes.Equal(lo, c.lo) || !bytes.Equal(hi, c.hi) || (hi == nil) != (c.hi == nil) {
			t.Errorf("ScanRange(%q, %q, %q) = %q, %q, want %q, %q", c.prefix, c.after, c.last, lo, hi, c.lo, c.hi)
		}
	}
}

// TestPruning shows that commits are forgotten once no transaction can ask about them.
func TestPruning(t *testing.T) {
	l := NewLog()
	tx := l.Begin()
	mustCommit(t, l, "a")
	freed := make(chan struct{})
	runtime.AddCleanup(tx.since.next, func(c chan struct{}) { close(c) }, freed)
	runtime.GC()
	select {
	case <-freed:
		t.Fatal("a commit was forgotten that a running transaction has to be compared with")
	default:
	}
	if tx.since.next == nil {
		t.Fatal("the commit is not in the list")
	}
	tx = nil
	mustCommit(t, l, "b")
	for range 100 { // cleanups run some time after the collection that finds their object dead
		runtime.GC()
		select {
		case <-freed:
			return
		default:
			runtime.Gosched()
		}
	}
	t.Error("the commit is still remembered")
}
