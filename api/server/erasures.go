package server

import (
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
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
	c, err := q.server.broker.Erase(q.ctx, access.EraseRequest{Request: q.request, Subject: id, Reason: b.Reason})
	if err != nil {
		return reply{}, err
	}
	r, err := q.certified(c)
	r.location = "/v1/erasures/" + c.ID
	return r, err
}

func certificate(q *call) (reply, error) {
	id, err := parseID("id", q.param("id"))
	if err != nil {
		return reply{}, err
	}
	c, err := q.server.broker.Erasure(q.ctx, q.request, id)
	if err != nil {
		return reply{}, err
	}
	return q.certified(c)
}

// certified answers with the certificate, or with the act that is printed of it.
func (q *call) certified(c erasure.Certificate) (reply, error) {
	r := reply{status: http.StatusOK, records: recordHeader(c.Erased.Index), body: c.Encode()}
	if wantsPage(q.gin.Request.Header["Accept"]) {
		page, err := erasure.Act(r.body)
		if err != nil {
			return reply{}, err
		}
		r.media, r.body = mediaHTML, page
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
