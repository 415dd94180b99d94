package sidecartest

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// Log is a ledger in memory that takes any bytes as an entry, and can be forked and cut as a real one
// cannot. It is a client.Prover. Its methods may be called from any goroutine.
type Log struct {
	Origin string
	Key    string // verifier key

	t testing.TB

	mu       sync.Mutex // guards all below
	signers  []note.Signer
	entries  [][]byte
	hashes   []tlog.Hash // as StoredHashes gives them
	note     []byte
	cosigned map[int64]string
}

// LogKey is a key that signs a log, Text its verifier key.
type LogKey struct {
	Text   string
	signer note.Signer
}

// NewLogKey returns a new key of a log of this origin.
func NewLogKey(t testing.TB, origin string) LogKey {
	t.Helper()
	secret, key, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatalf("generating ledger key: %v", err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatalf("loading ledger key: %v", err)
	}
	return LogKey{key, signer}
}

// NewLog returns an empty log with a key of its own.
func NewLog(t testing.TB, origin string) *Log {
	t.Helper()
	return NewLogWith(t, origin, NewLogKey(t, origin))
}

// NewLogWith returns an empty log that this key signs.
func NewLogWith(t testing.TB, origin string, key LogKey) *Log {
	t.Helper()
	l := &Log{t: t, Origin: origin, Key: key.Text, signers: []note.Signer{key.signer}, cosigned: make(map[int64]string)}
	l.sign()
	return l
}

// SignWith signs the checkpoint anew, and all later ones, with these keys.
func (l *Log) SignWith(keys ...LogKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signers = nil
	for _, k := range keys {
		l.signers = append(l.signers, k.signer)
	}
	l.sign()
}

// Fork returns a log with the same key and the first size entries.
func (l *Log) Fork(size int64) *Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &Log{t: l.t, Origin: l.Origin, Key: l.Key, signers: slices.Clone(l.signers), cosigned: make(map[int64]string)}
	f.entries = slices.Clone(l.entries[:size])
	f.hashes = slices.Clone(l.hashes[:tlog.StoredHashCount(size)])
	f.sign()
	return f
}

// Append adds entry as it is, signs a checkpoint, and returns the entry's index.
func (l *Log) Append(entry []byte) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	index := l.add(entry)
	l.sign()
	return index
}

// AppendAll is Append for many entries under one checkpoint. It returns the index of the first.
func (l *Log) AppendAll(entries [][]byte) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := int64(len(l.entries))
	for _, entry := range entries {
		l.add(entry)
	}
	l.sign()
	return first
}

// add appends entry. The caller holds mu, and signs.
func (l *Log) add(entry []byte) int64 {
	index := int64(len(l.entries))
	more, err := tlog.StoredHashes(index, entry, tlog.HashReaderFunc(l.read))
	if err != nil {
		l.t.Errorf("hashing entry: %v", err)
	}
	l.hashes = append(l.hashes, more...)
	l.entries = append(l.entries, entry)
	return index
}

// Grow appends n entries that nobody may be served under.
func (l *Log) Grow(n int) {
	for range n {
		l.Append([]byte("filler"))
	}
}

// sign makes the note of the current tree. The caller holds mu, or is the only one who knows l.
func (l *Log) sign() {
	root, err := tlog.TreeHash(int64(len(l.entries)), tlog.HashReaderFunc(l.read))
	if err != nil {
		l.t.Errorf("hashing tree: %v", err)
	}
	cp := verify.Checkpoint{Origin: l.Origin, Size: int64(len(l.entries)), Root: root}
	if l.note, err = note.Sign(&note.Note{Text: string(cp.Format())}, l.signers...); err != nil {
		l.t.Errorf("signing checkpoint: %v", err)
	}
}

func (l *Log) read(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		if n >= int64(len(l.hashes)) {
			return nil, fmt.Errorf("hash %d is not stored", n)
		}
		out[i] = l.hashes[n]
	}
	return out, nil
}

// Checkpoint implements client.Prover.
func (l *Log) Checkpoint() ([]byte, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.note, int64(len(l.entries))
}

// Size returns the number of entries.
func (l *Log) Size() int64 {
	_, size := l.Checkpoint()
	return size
}

// ProveInclusion implements client.Prover.
func (l *Log) ProveInclusion(_ context.Context, index, size int64) ([]tlog.Hash, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tlog.ProveRecord(size, index, tlog.HashReaderFunc(l.read))
}

// ProveConsistency implements client.Prover.
func (l *Log) ProveConsistency(_ context.Context, from, to int64) ([]tlog.Hash, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tlog.ProveTree(to, from, tlog.HashReaderFunc(l.read))
}

// Cosigned implements client.Prover.
func (l *Log) Cosigned(size int64, lines []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cosigned[size] += string(lines)
}

// Cosignature returns the lines that Cosigned was told for size, "" when it was not.
func (l *Log) Cosignature(size int64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cosigned[size]
}

// CheckpointAt returns the tree of the first size entries, unsigned.
func (l *Log) CheckpointAt(size int64) verify.Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	root, err := tlog.TreeHash(size, tlog.HashReaderFunc(l.read))
	if err != nil {
		l.t.Errorf("hashing tree: %v", err)
	}
	return verify.Checkpoint{Origin: l.Origin, Size: size, Root: root}
}
