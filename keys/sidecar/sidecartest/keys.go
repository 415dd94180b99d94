package sidecartest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// Keys stands in for what a keyring does to the keys themselves: rotations, inventory, witness keys. It keeps them
// in memory, seals nothing again but tells what it was asked, and destroys for real. Its methods may be called
// from any goroutine.
type Keys struct {
	ring  *keyring.Keyring
	clock *Clock

	mu        sync.Mutex // guards all below
	jobs      []keyring.Job
	inventory keyring.Inventory
	witness   []ed25519.PrivateKey // the newest first; empty: the keyring's own
	asked     []string
}

// FakeKeys makes the world's ring use Keys, which it returns.
func (w *World) FakeKeys() *Keys {
	k := &Keys{ring: w.Ring.Keyring, clock: w.Clock}
	k.inventory = keyring.Inventory{
		Versions: []keyring.KeyVersion{{Kind: "kek", Version: 1, Newest: true, Count: 5, Made: w.Clock.Now()}},
		Subjects: 1, Counted: w.Clock.Now(), NextEpoch: w.Clock.Now().Add(7 * 24 * time.Hour), EpochInterval: 7 * 24 * time.Hour,
	}
	w.Ring.mu.Lock()
	defer w.Ring.mu.Unlock()
	w.Ring.keys = k
	return k
}

// SetInventory changes what Inventory counts.
func (k *Keys) SetInventory(change func(*keyring.Inventory)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.inventory)
}

// SetJobs replaces the jobs.
func (k *Keys) SetJobs(jobs ...keyring.Job) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.jobs = jobs
}

// RotateSubjects puts a rotation of everybody's keys, to the given number, under way in the place of all other jobs.
func (k *Keys) RotateSubjects(number uint32) {
	now := k.clock.Now()
	k.SetJobs(keyring.Job{
		ID: uuid.Must(uuid.NewV7()), Scope: keyring.ScopeAllSubjects, By: "sidecartest", State: keyring.JobRunning,
		Started: now, Updated: now, Target: uint64(number), Recorded: -1,
	})
}

// RotateWitness adds a witness key that is the newest from now on, beside those made before.
func (k *Keys) RotateWitness() ed25519.PublicKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	seed := sha256.Sum256(fmt.Append(nil, len(k.witness)))
	key := ed25519.NewKeyFromSeed(seed[:])
	k.witness = slices.Insert(k.witness, 0, key)
	return key.Public().(ed25519.PublicKey)
}

// DropWitness drops the oldest witness key.
func (k *Keys) DropWitness() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.witness = k.witness[:len(k.witness)-1]
}

// Asked returns what was asked, one line for each call.
func (k *Keys) Asked() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

func (k *Keys) ask(format string, args ...any) {
	k.asked = append(k.asked, fmt.Sprintf(format, args...))
}

// WitnessKeys implements sidecar.Keyring.
func (k *Keys) WitnessKeys() []ed25519.PublicKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.witness) == 0 {
		return k.ring.WitnessKeys()
	}
	var out []ed25519.PublicKey
	for _, key := range k.witness {
		out = append(out, key.Public().(ed25519.PublicKey))
	}
	return out
}

// WitnessSignWith implements sidecar.Keyring.
func (k *Keys) WitnessSignWith(i int, message []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case len(k.witness) == 0:
		return k.ring.WitnessSignWith(i, message)
	case i >= len(k.witness):
		return nil, keys.ErrInvalid
	}
	return ed25519.Sign(k.witness[i], message), nil
}

// DestroyRef implements sidecar.Keyring, on the real bundle.
func (k *Keys) DestroyRef(ctx context.Context, subject uuid.UUID, ref []byte, reason string) (keyring.Destroyed, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ask("DestroyRef %s", reason)
	out, err := k.ring.Prepare(ctx, []keyring.PrepareItem{{Subject: subject}})
	if err == nil {
		err = out[0].Err
	}
	switch {
	case errors.Is(err, keys.ErrDestroyed):
		return keyring.Destroyed{Generation: k.ring.Generation(), KEKVersion: 1, Already: true}, nil
	case err != nil:
		return keyring.Destroyed{}, err
	case string(out[0].Ref) != string(ref):
		return keyring.Destroyed{}, keys.ErrProofRefused
	}
	if err := k.ring.Destroy(ctx, subject, reason); err != nil {
		return keyring.Destroyed{}, err
	}
	return keyring.Destroyed{Generation: k.ring.Generation(), KEKVersion: 1}, nil
}

// Reseal implements sidecar.Keyring: each ciphertext turns into itself and "+", but the one "newest", which needs
// nothing.
func (k *Keys) Reseal(ctx context.Context, rotation uint32, subjects []keyring.ResealSubject) ([]keyring.ResealedSubject, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := make([]keyring.ResealedSubject, len(subjects))
	for i, s := range subjects {
		k.ask("Reseal %d %v", rotation, s.Items)
		out[i] = keyring.ResealedSubject{Ref: make([]byte, 32), Ciphertexts: make([][]byte, len(s.Items)), Rotation: rotation}
		for n, item := range s.Items {
			if string(item.Ciphertext) != "newest" {
				out[i].Ciphertexts[n] = append([]byte("+"), item.Ciphertext...)
			}
		}
	}
	return out, nil
}

// Retire implements sidecar.Keyring.
func (k *Keys) Retire(_ context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ask("Retire %d %d", rotation, len(subjects))
	return make([]error, len(subjects)), nil
}

// Reindex implements sidecar.Keyring.
func (k *Keys) Reindex(_ context.Context, subjects []keyring.ReindexSubject) ([]keyring.ReindexedSubject, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]keyring.ReindexedSubject, len(subjects))
	for i, s := range subjects {
		out[i] = keyring.ReindexedSubject{Ref: make([]byte, 32)}
		for range s.Values {
			out[i].Tokens = append(out[i].Tokens, []keyring.IndexToken{{Key: 1, Token: make([]byte, 16)}, {Key: 2, Token: make([]byte, 16)}})
		}
	}
	return out, nil
}

// StartJob implements sidecar.Keyring. Jobs of scope token and witness are done at once.
func (k *Keys) StartJob(_ context.Context, scope string, subject uuid.UUID, by string) (keyring.Job, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock.Now()
	job := keyring.Job{
		ID: uuid.Must(uuid.NewV7()), Scope: scope, Subject: subject, By: by, State: keyring.JobRunning,
		Started: now, Updated: now, Target: uint64(len(k.jobs)) + 2, Recorded: -1,
	}
	if scope == keyring.ScopeToken || scope == keyring.ScopeWitness {
		job.State, job.Finished, job.Done, job.Total = keyring.JobDone, now, 1, 1
	} else if slices.ContainsFunc(k.jobs, func(j keyring.Job) bool { return j.State == keyring.JobRunning }) {
		return keyring.Job{}, keys.ErrJobRunning
	}
	k.jobs = slices.Insert(k.jobs, 0, job)
	return job, nil
}

// Jobs implements sidecar.Keyring.
func (k *Keys) Jobs(context.Context) ([]keyring.Job, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.jobs), nil
}

// AdvanceJob implements sidecar.Keyring.
func (k *Keys) AdvanceJob(_ context.Context, id uuid.UUID, p keyring.Progress) (keyring.Job, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.jobs {
		j := &k.jobs[i]
		if j.ID != id {
			continue
		}
		if p.Phase != "" {
			j.Phase = p.Phase
		}
		if p.Recorded >= 0 {
			j.Recorded = p.Recorded
		}
		if j.State == keyring.JobRunning {
			j.Done, j.Total, j.Updated = p.Done, p.Total, k.clock.Now()
		}
		switch {
		case p.Finish:
			j.State, j.Finished = keyring.JobDone, k.clock.Now()
		case p.Failure != "":
			j.State, j.Failure, j.Finished = keyring.JobFailed, p.Failure, k.clock.Now()
		}
		return *j, nil
	}
	return keyring.Job{}, keys.ErrNoJob
}

// Inventory implements sidecar.Keyring.
func (k *Keys) Inventory(context.Context) (keyring.Inventory, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ask("Inventory")
	return k.inventory, nil
}

// NextEpoch implements sidecar.Keyring, with what SetInventory has set.
func (k *Keys) NextEpoch(context.Context) (due time.Time, interval time.Duration, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ask("NextEpoch")
	return k.inventory.NextEpoch, k.inventory.EpochInterval, nil
}
