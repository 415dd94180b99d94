package server

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api"
)

// parseMode accepts the modes in which a read can be asked for. Empty is reveal.
func parseMode(field, mode string) (string, error) {
	switch mode {
	case "", verify.ModeReveal:
		return verify.ModeReveal, nil
	case verify.ModeMask:
		return verify.ModeMask, nil
	}
	return "", invalid(field, "must be reveal or mask")
}

func read(q *call) (reply, error) {
	request := access.ReadRequest{Request: q.request}
	var err error
	if request.Subject, err = q.subject(); err != nil {
		return reply{}, err
	}
	if request.Collection, err = q.collection(); err != nil {
		return reply{}, err
	}
	if request.Purpose, err = parseName("purpose", q.query.get("purpose")); err != nil {
		return reply{}, err
	}
	if request.Fields, err = parseNames("fields", q.query.get("fields")); err != nil {
		return reply{}, err
	}
	if request.Mode, err = parseMode("mode", q.query.get("mode")); err != nil {
		return reply{}, err
	}
	if request.Reference, request.Justification, err = q.reasons(); err != nil {
		return reply{}, err
	}
	result, err := q.server.broker.Read(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	body, err := appendRecord(buffer(), &result)
	if err != nil {
		release(body)
		return reply{}, err
	}
	return reply{
		status: http.StatusOK, version: result.Version, records: recordHeader(result.Record), body: body, wipe: true,
	}, nil
}

// buffers hold answers with plaintext while they are written; release overwrites them.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

const keptBuffer = 64 << 10 // larger ones are left to the garbage collector

func buffer() []byte { return (*buffers.Get().(*[]byte))[:0] }

func release(b []byte) {
	clear(b[:cap(b)])
	if cap(b) <= keptBuffer {
		b = b[:0]
		buffers.Put(&b)
	}
}

// appendRecord appends r as an api.Record. The values are JSON already; an empty one would be a value that
// was lost, which must not look like an answer: then b comes back as it was, with an error.
func appendRecord(b []byte, r *access.ReadResult) ([]byte, error) {
	before := len(b)
	b = append(b, `{"subject":"`...)
	b = append(b, r.Subject.String()...)
	b = append(b, `","collection":`...)
	b = appendString(b, r.Collection)
	b = append(b, `,"version":`...)
	b = strconv.AppendUint(b, r.Version, 10)
	b = append(b, `,"fields":{`...)
	names := make([]string, 0, 16)
	for name := range r.Fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		value := r.Fields[name]
		if len(value) == 0 {
			return b[:before], access.ErrIntegrity
		}
		b = appendString(b, name)
		b = append(b, ':')
		b = append(b, value...)
	}
	b = append(b, `},"access":{"record":`...)
	b = strconv.AppendInt(b, r.Record, 10)
	b = append(b, `,"ground":`...)
	b = appendString(b, r.Ground)
	return append(b, "}}"...), nil
}

// appendString appends s as a JSON string. Names, which are nearly all there is, need no escaping.
func appendString(b []byte, s string) []byte {
	if isName(s) {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	b, err := jsontext.AppendQuote(b, s)
	if err != nil {
		panic("server: name is not UTF-8: " + strconv.Itoa(len(s)) + " bytes") // names come from the policy
	}
	return b
}

func readBatch(q *call, b *api.Reads) (reply, error) {
	request := access.BatchRequest{Request: q.request, Reads: make([]access.BatchItem, len(b.Reads))}
	var err error
	if request.Purpose, err = parseName("/purpose", b.Purpose); err != nil {
		return reply{}, err
	}
	if request.Mode, err = parseMode("/mode", b.Mode); err != nil {
		return reply{}, err
	}
	if request.Reference, request.Justification, err = q.reasons(); err != nil {
		return reply{}, err
	}
	if len(b.Reads) == 0 || len(b.Reads) > api.MaxBatch {
		return reply{}, invalid("/reads", "must have 1 to "+strconv.Itoa(api.MaxBatch)+" members")
	}
	for i := range b.Reads {
		item, at := &request.Reads[i], "/reads/"+strconv.Itoa(i)
		if item.Subject, item.Collection, item.Fields, err = target(at, b.Reads[i].Subject, b.Reads[i].Collection, b.Reads[i].Fields); err != nil {
			return reply{}, err
		}
	}
	results, err := q.server.broker.ReadBatch(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	if len(results) != len(b.Reads) {
		return reply{}, access.ErrIntegrity
	}
	body := append(buffer(), `{"results":[`...)
	for i := range results {
		if i > 0 {
			body = append(body, ',')
		}
		body = q.appendResult(body, &results[i])
	}
	return reply{status: http.StatusOK, body: append(body, "]}"...), wipe: true}, nil
}

// appendResult appends one result of a batch. A read that cannot be shown becomes a problem of its own.
func (q *call) appendResult(b []byte, r *access.BatchResult) []byte {
	err := r.Err
	switch {
	case err != nil:
	case r.Read == nil:
		err = access.ErrIntegrity // neither read nor error
	default:
		before := len(b)
		b = append(b, `{"read":`...)
		if b, err = appendRecord(b, r.Read); err == nil {
			return append(b, '}')
		}
		b = b[:before]
	}
	p, _ := problemOf(q.ctx, err)
	b = append(b, `{"problem":`...)
	b = append(b, encodeJSON(&p)...)
	return append(b, '}')
}

func lookup(q *call, b *api.Lookup) (reply, error) {
	request := access.LookupRequest{Request: q.request, Value: b.Value}
	var err error
	if request.Purpose, err = parseName("/purpose", b.Purpose); err != nil {
		return reply{}, err
	}
	if request.Collection, err = parseName("/collection", b.Collection); err != nil {
		return reply{}, err
	}
	if request.Field, err = parseName("/field", b.Field); err != nil {
		return reply{}, err
	}
	if b.Value == "" {
		return reply{}, invalid("/value", "is required")
	}
	if request.Reference, request.Justification, err = q.reasons(); err != nil {
		return reply{}, err
	}
	found, err := q.server.broker.Lookup(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	result := api.LookupResult{Subjects: make([]string, len(found.Subjects)), Records: found.Records}
	for i, id := range found.Subjects {
		result.Subjects[i] = id.String()
	}
	records := make([]string, len(found.Records))
	for i, index := range found.Records {
		records[i] = recordHeader(index)
	}
	r, err := ok(http.StatusOK, result)
	r.records = strings.Join(records, ", ")
	return r, err
}

func verifyValue(q *call, b *api.Verification) (reply, error) {
	request := access.VerifyRequest{Request: q.request, Value: b.Value}
	var err error
	if request.Purpose, err = parseName("/purpose", b.Purpose); err != nil {
		return reply{}, err
	}
	if request.Subject, err = parseID("/subject", b.Subject); err != nil {
		return reply{}, err
	}
	if request.Collection, err = parseName("/collection", b.Collection); err != nil {
		return reply{}, err
	}
	if request.Field, err = parseName("/field", b.Field); err != nil {
		return reply{}, err
	}
	if len(b.Value) == 0 || b.Value.Kind() == jsontext.KindNull {
		return reply{}, invalid("/value", "is required")
	}
	if request.Reference, request.Justification, err = q.reasons(); err != nil {
		return reply{}, err
	}
	result, err := q.server.broker.Verify(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	r, err := ok(http.StatusOK, api.VerificationResult{Match: result.Match, Record: result.Record})
	r.records = recordHeader(result.Record)
	return r, err
}

func checkAccess(q *call, b *api.AccessCheck) (reply, error) {
	request := access.ReadRequest{Request: q.request}
	var err error
	if request.Subject, request.Collection, request.Fields, err = target("", b.Subject, b.Collection, b.Fields); err != nil {
		return reply{}, err
	}
	if request.Purpose, err = parseName("/purpose", b.Purpose); err != nil {
		return reply{}, err
	}
	if request.Mode, err = parseMode("/mode", b.Mode); err != nil {
		return reply{}, err
	}
	if request.Reference, request.Justification, err = q.reasons(); err != nil {
		return reply{}, err
	}
	check, err := q.server.broker.Check(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	result := api.AccessCheckResult{Allow: check.Allow, Ground: check.Ground, Reason: check.Reason, Fields: check.Fields}
	for _, m := range check.Missing {
		result.Missing = append(result.Missing, api.Missing(m))
	}
	return ok(http.StatusOK, result)
}
