// Package peers are the baselines that pdvault is measured beside: what its parts do alone, and what a team would use
// or write instead. Each does the same work on the same record as durably as it can, and as fast as its users know how
// to make it: a slow baseline would be a lie.
//
// It must never be linked into a program that serves, and every server that it starts listens on loopback or a
// socket of its own, on data of its own.
package peers

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMissing is returned when a baseline cannot run here; its text says why.
var ErrMissing = errors.New("not on this machine")

// id is the id of person n: random to the eye, as ids of subjects are.
func id(n int64) [16]byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	return [16]byte(sum[:16])
}

// worker is a load.Worker of two functions.
type worker struct {
	do    func(n int64) error
	close func() error
}

func (w worker) Do(n int64) error { return w.do(n) }

func (w worker) Close() error {
	if w.close == nil {
		return nil
	}
	return w.close()
}

// unknown is the error for a kind that a baseline does not have.
func unknown(kind string) error { return fmt.Errorf("peers: no kind %q", kind) }
