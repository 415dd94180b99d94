package servertest

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/keys"
)

// Keys answers with one key of each kind; that of the index is overdue.
func (b *Broker) Keys(ctx context.Context, r access.Request) (access.KeysInfo, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.KeysInfo{}, err
	}
	const day = 24 * time.Hour
	info := access.KeysInfo{
		KEK: "local", Generation: 1<<56 + 7, Subjects: int64(len(b.subjects)), Destroyed: int64(len(b.erasures)), Counted: b.now(),
		NextEpoch: b.now().Add(4 * day), EpochInterval: 7 * day,
	}
	for kind, age := range map[string]time.Duration{"kek": 3 * day, "subject": 100 * day, "index": 400 * day} {
		info.Versions = append(info.Versions, access.KeyVersion{
			KeyCount: access.KeyCount{Kind: kind, Version: 2, Newest: true, Count: 5, Made: b.now().Add(-age)},
			Age:      age, MaxAge: 365 * day, Overdue: age > 365*day,
		})
	}
	slices.SortFunc(info.Versions, func(x, y access.KeyVersion) int { return strings.Compare(x.Kind, y.Kind) })
	if i := b.runningLocked(); i >= 0 {
		info.Running = &b.rotations[i]
	}
	return info, nil
}

func (b *Broker) runningLocked() int {
	return slices.IndexFunc(b.rotations, func(r access.Rotation) bool { return r.State == access.RotationRunning })
}

// StartRotation begins a rotation of ten steps; each look at it is one, see StepRotations.
func (b *Broker) StartRotation(ctx context.Context, r access.Request, scope string, subject uuid.UUID) (access.Rotation, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.Rotation{}, err
	}
	if !slices.Contains(api.RotationScopes, scope) || (scope == api.ScopeSubject) != (subject != uuid.Nil) {
		b.tb.Errorf("fake broker: rotation of %q with subject %v", scope, subject)
	}
	if i := b.runningLocked(); i >= 0 {
		return access.Rotation{}, &access.RotationError{Running: b.rotations[i].ID, Err: keys.ErrJobRunning}
	}
	if subject != uuid.Nil {
		if _, _, err := b.findLocked(subject, ""); err != nil {
			return access.Rotation{}, err
		}
	}
	started := access.Rotation{
		ID: uuid.New(), Scope: scope, Subject: subject, By: r.Caller.ID, State: access.RotationRunning, Phase: "reseal", Total: 10,
		Started: b.now(), Updated: b.now(), Target: 3, Record: -1,
	}
	b.rotations = slices.Insert(b.rotations, 0, started)
	return started, nil
}

// Rotations lists the rotations, after an advance of the one that is running.
func (b *Broker) Rotations(ctx context.Context, r access.Request) ([]access.Rotation, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return nil, err
	}
	if i := b.runningLocked(); i >= 0 {
		now := &b.rotations[i]
		now.Done = min(now.Done+max(b.rotationStep, 1), now.Total)
		now.Updated = now.Updated.Add(time.Minute)
		switch {
		case b.rotationFails != "":
			now.State, now.Failure, now.Finished = access.RotationFailed, b.rotationFails, now.Updated
		case now.Done == now.Total:
			now.State, now.Phase, now.Finished = access.RotationDone, "", now.Updated
			now.Evidence, now.Record = "pdvault/key-evidence/v1\n", b.recordLocked(verify.KindKeyRotated, r)
		}
	}
	return slices.Clone(b.rotations), nil
}

// Rotation finds a rotation in Rotations.
func (b *Broker) Rotation(ctx context.Context, r access.Request, id uuid.UUID) (access.Rotation, error) {
	list, err := b.Rotations(ctx, r)
	for _, rotation := range list {
		if rotation.ID == id {
			return rotation, nil
		}
	}
	if err == nil {
		err = access.ErrNotFound
	}
	return access.Rotation{}, err
}

// StepRotations makes each look at the rotation that is running n steps.
func (b *Broker) StepRotations(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rotationStep = n
}

// FailRotations makes the rotation that is running fail with code at the next look; empty ends that.
func (b *Broker) FailRotations(code string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rotationFails = code
}

// RotationsStarted counts the rotations that were begun.
func (b *Broker) RotationsStarted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.rotations)
}
