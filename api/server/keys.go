package server

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

func keysInUse(q *call) (reply, error) {
	info, err := q.server.broker.Keys(q.ctx, q.request)
	if err != nil {
		return reply{}, err
	}
	out := api.Keys{
		KEK: info.KEK, Generation: info.Generation, Versions: make([]api.KeyVersion, len(info.Versions)),
		Subjects: info.Subjects, Destroyed: info.Destroyed, CountedAt: info.Counted.UTC(), NextEpoch: info.NextEpoch.UTC(),
		EpochIntervalSeconds: seconds(info.EpochInterval),
	}
	for i, v := range info.Versions {
		out.Versions[i] = api.KeyVersion{
			Kind: v.Kind, Version: v.Version, Newest: v.Newest, Count: v.Count, Made: v.Made.UTC(),
			AgeSeconds: seconds(v.Age), PolicyMaxAgeSeconds: seconds(v.MaxAge), Overdue: v.Overdue,
		}
	}
	if info.Running != nil {
		running := wireRotation(info.Running)
		out.Running = &running
	}
	return ok(http.StatusOK, out)
}

func startRotation(q *call, b *api.StartRotation) (reply, error) {
	if !slices.Contains(api.RotationScopes, b.Scope) {
		return reply{}, invalid("/scope", "must be one of "+strings.Join(api.RotationScopes, ", "))
	}
	var subject uuid.UUID
	var err error
	switch {
	case b.Scope == api.ScopeSubject:
		if subject, err = parseID("/subject", b.Subject); err != nil {
			return reply{}, err
		}
	case b.Subject != "":
		return reply{}, invalid("/subject", "is for the scope subject only")
	}
	started, err := q.server.broker.StartRotation(q.ctx, q.request, b.Scope, subject)
	if err != nil {
		return reply{}, err
	}
	r, err := ok(http.StatusAccepted, wireRotation(&started))
	r.location = "/v1/keys/rotations/" + started.ID.String()
	return r, err
}

func rotations(q *call) (reply, error) {
	list, err := q.server.broker.Rotations(q.ctx, q.request)
	if err != nil {
		return reply{}, err
	}
	out := api.Rotations{Rotations: make([]api.Rotation, len(list))}
	for i := range list {
		out.Rotations[i] = wireRotation(&list[i])
	}
	return ok(http.StatusOK, out)
}

func rotation(q *call) (reply, error) {
	id, err := parseID("id", q.param("id"))
	if err != nil {
		return reply{}, err
	}
	r, err := q.server.broker.Rotation(q.ctx, q.request, id)
	if err != nil {
		return reply{}, err
	}
	return ok(http.StatusOK, wireRotation(&r))
}

func wireRotation(r *access.Rotation) api.Rotation {
	out := api.Rotation{
		ID: r.ID.String(), Scope: r.Scope, By: r.By, State: r.State, Phase: r.Phase, Done: r.Done, Total: r.Total, Percent: r.Percent(),
		Started: r.Started.UTC(), Updated: r.Updated.UTC(), Finished: r.Finished.UTC(), Target: r.Target, Failure: r.Failure,
		Evidence: r.Evidence,
	}
	if r.Subject != uuid.Nil {
		out.Subject = r.Subject.String()
	}
	if left, ok := r.Remaining(); ok {
		eta := seconds(left)
		out.ETASeconds = &eta
	}
	if r.Record >= 0 {
		record := r.Record
		out.Record = &record
	}
	return out
}

// seconds rounds up, so that what is not over is not 0.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
