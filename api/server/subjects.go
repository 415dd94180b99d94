package server

import (
	"crypto/sha256"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

// idempotency returns the Idempotency-Key of a POST with its scope and the fingerprint of its body.
func (q *call) idempotency() (access.Idempotency, error) {
	key, err := parseIdempotencyKey(q.gin.Request.Header)
	if err != nil || key == "" {
		return access.Idempotency{}, err
	}
	return access.Idempotency{Key: key, Route: q.route.Method + " " + q.route.Path, Fingerprint: sha256.Sum256(q.body)}, nil
}

func createSubject(q *call, b *api.CreateSubject) (reply, error) {
	request := access.CreateRequest{Request: q.request, Records: make(map[string][]byte, len(b.Records))}
	var err error
	if request.Idempotency, err = q.idempotency(); err != nil {
		return reply{}, err
	}
	if len(b.Records) == 0 {
		return reply{}, invalid("/records", "must name at least one collection")
	}
	for collection, record := range b.Records {
		if !isName(collection) {
			return reply{}, invalid("/records", "has a member that is no name of a collection")
		}
		if record.Kind() != jsontext.KindBeginObject {
			return reply{}, invalid("/records/"+collection, "must be an object")
		}
		request.Records[collection] = record
	}
	w, err := q.server.broker.CreateSubject(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	id := w.Subject.String()
	r, err := ok(http.StatusCreated, api.SubjectCreated{ID: id, Version: w.Version, Record: w.Record})
	r.location, r.version, r.records = "/v1/subjects/"+id, w.Version, recordHeader(w.Record)
	return r, err
}

func describe(q *call) (reply, error) {
	id, err := q.subject()
	if err != nil {
		return reply{}, err
	}
	info, err := q.server.broker.Describe(q.ctx, q.request, id)
	if err != nil {
		return reply{}, err
	}
	subject := api.Subject{
		ID: info.ID.String(), Version: info.Version, CreatedAt: info.Created.UTC(), Restricted: info.Restricted,
		Records:  make(map[string]api.RecordInfo, len(info.Records)),
		Consents: wireConsents(info.Consents),
	}
	for collection, record := range info.Records {
		subject.Records[collection] = api.RecordInfo(record)
	}
	r, err := ok(http.StatusOK, subject)
	r.version = info.Version
	return r, err
}

// target reads what every write of a record names.
func (q *call) target() (access.WriteRequest, error) {
	request := access.WriteRequest{Request: q.request}
	var err error
	if request.Subject, err = q.subject(); err != nil {
		return request, err
	}
	if request.Collection, err = q.collection(); err != nil {
		return request, err
	}
	c, err := parseCondition(q.gin.Request.Header)
	request.IfMatch, request.IfAbsent = c.match, c.absent
	return request, err
}

func putRecord(q *call) (reply, error) {
	request, err := q.target()
	if err != nil {
		return reply{}, err
	}
	if err := checkObject(q.body); err != nil {
		return reply{}, err
	}
	request.Body = q.body
	w, err := q.server.broker.PutRecord(q.ctx, request)
	return written(request, w, err)
}

func patchRecord(q *call) (reply, error) {
	request, err := q.target()
	if err != nil {
		return reply{}, err
	}
	if request.IfAbsent {
		return reply{}, invalid("If-None-Match", "cannot be used to change a record")
	}
	if err := checkObject(q.body); err != nil {
		return reply{}, err
	}
	request.Body = q.body
	w, err := q.server.broker.PatchRecord(q.ctx, request)
	return written(request, w, err)
}

func written(request access.WriteRequest, w access.Written, err error) (reply, error) {
	if err != nil {
		return reply{}, err
	}
	status, location := http.StatusOK, ""
	if w.Created {
		status = http.StatusCreated
		location = "/v1/subjects/" + request.Subject.String() + "/records/" + request.Collection
	}
	r, err := ok(status, api.RecordWritten{
		Subject: request.Subject.String(), Collection: request.Collection,
		Version: w.Version, Created: w.Created, Record: w.Record,
	})
	r.version, r.records, r.location = w.Version, recordHeader(w.Record), location
	return r, err
}

func deleteRecord(q *call) (reply, error) {
	request, err := q.target()
	if err != nil {
		return reply{}, err
	}
	if request.IfAbsent {
		return reply{}, invalid("If-None-Match", "cannot be used to delete a record")
	}
	w, err := q.server.broker.DeleteRecord(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent, records: recordHeader(w.Record)}, nil
}

func restrict(q *call, b *api.Restriction) (reply, error) { return setRestriction(q, true, b.Reason) }

func unrestrict(q *call, b *api.Restriction) (reply, error) {
	return setRestriction(q, false, b.Reason)
}

func setRestriction(q *call, on bool, reason string) (reply, error) {
	id, err := q.subject()
	if err != nil {
		return reply{}, err
	}
	switch {
	case on && reason == "":
		return reply{}, invalid("/reason", "is required")
	case len(reason) > api.MaxJustification || !printable(reason):
		return reply{}, invalid("/reason", "must be at most "+strconv.Itoa(api.MaxJustification)+" bytes of printable text")
	}
	w, err := q.server.broker.SetRestriction(q.ctx, q.request, id, on, reason)
	if err != nil {
		return reply{}, err
	}
	r, err := ok(http.StatusOK, api.RestrictionChanged{Subject: id.String(), Restricted: on, Version: w.Version, Record: w.Record})
	r.records = recordHeader(w.Record)
	return r, err
}
