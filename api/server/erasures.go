package server

import (
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

func erase(q *call, b *api.Erase) (reply, error) {
	id, err := q.subject()
	if err != nil {
		return reply{}, err
	}
	if !slices.Contains(api.ErasureReasons, b.Reason) {
		return reply{}, invalid("/reason", "must be one of "+strings.Join(api.ErasureReasons, ", "))
	}
	e, err := q.server.broker.Erase(q.ctx, access.EraseRequest{Request: q.request, Subject: id, Reason: b.Reason})
	r, err := q.erased(e, err)
	if err == nil {
		r.location = "/v1/erasures/" + e.ID.String()
	}
	return r, err
}

func erasure(q *call) (reply, error) {
	id, err := parseID("id", q.param("id"))
	if err != nil {
		return reply{}, err
	}
	e, err := q.server.broker.Erasure(q.ctx, q.request, id)
	return q.erased(e, err)
}

// erased answers with the certificate, byte for byte as it was signed, or with the act for printing.
func (q *call) erased(e access.Erased, err error) (reply, error) {
	if err != nil {
		return reply{}, err
	}
	r := reply{status: http.StatusOK, records: recordHeader(e.Record), body: e.Certificate}
	if wantsPage(q.gin.Request.Header["Accept"]) {
		r.media, r.body = mediaHTML, e.Act
	}
	return r, nil
}

// wantsPage reports whether an Accept prefers text/html to JSON. Only who names it gets it, and what cannot be
// read counts for nothing: JSON is what every call answers.
func wantsPage(accept []string) bool {
	page, document, other := -1.0, -1.0, -1.0 // weights; negative: not named
	for _, values := range accept {
		for value := range strings.SplitSeq(values, ",") {
			media, params, err := mime.ParseMediaType(value)
			if err != nil {
				continue
			}
			weight := 1.0
			if s, ok := params["q"]; ok {
				if weight, err = strconv.ParseFloat(s, 64); err != nil || !(weight >= 0 && weight <= 1) {
					continue
				}
			}
			switch media {
			case "text/html":
				page = weight
			case mediaJSON:
				document = weight
			case "*/*", "application/*":
				other = max(other, weight)
			}
		}
	}
	if document >= 0 {
		return page > document
	}
	return page > 0 && page >= other
}
