package server

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/prototypster/pdvault/api"
)

// Media types of responses.
const (
	mediaProblem = api.ProblemMediaType
	mediaText    = "text/plain; charset=utf-8"
	mediaBytes   = "application/octet-stream"
	mediaHTML    = "text/html; charset=utf-8"
)

// reply is what a handler answers.
type reply struct {
	status   int
	media    string // empty: application/json
	version  uint64 // ETag; 0: none
	records  string // Access-Record; empty: none
	location string
	digest   string // Repr-Digest; empty: none
	body     []byte
	wipe     bool // the body holds plaintext: overwrite it when it is written
	// stream writes a body of unknown length instead; see backup.go. It may take longer than a request.
	stream func(ctx context.Context, w io.Writer) error
}

// ok answers with v as JSON.
func ok(status int, v any) (reply, error) { return reply{status: status, body: encodeJSON(v)}, nil }

// encodeJSON encodes a struct of package api.
func encodeJSON(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		panic("server: answer cannot be encoded: " + err.Error()) // plain structs: a bug here, not input
	}
	return b
}

// Values of headers that every answer has. They are shared: appending to one would copy it.
var (
	headerNoStore    = []string{"no-store"}
	headerNoSniff    = []string{"nosniff"}
	headerCSP        = []string{"default-src 'none'; frame-ancestors 'none'"}
	headerCSPPage    = []string{"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	headerNoReferrer = []string{"no-referrer"}
	headerHSTS       = []string{"max-age=31536000"}
	headerJSON       = []string{mediaJSON}
	headerClose      = []string{"close"}
)

// begin sets the headers that every answer has.
func (q *call) begin() {
	r, h := q.gin.Request, q.gin.Writer.Header()
	setHeaders(h, q.id, r.TLS != nil)
	// A request with a length and chunks has chunks, says RFC 9112, and its answer the end of the connection: who reads
	// it by the length takes the rest for something else. net/http has thrown the length away by now, and goes on.
	if len(r.TransferEncoding) > 0 || onSpare(q.ctx) {
		h["Connection"] = headerClose
	}
}

func setHeaders(h http.Header, requestID string, secure bool) {
	h["Cache-Control"] = headerNoStore
	h["X-Content-Type-Options"] = headerNoSniff
	h["Content-Security-Policy"] = headerCSP
	h["Referrer-Policy"] = headerNoReferrer
	h[api.HeaderRequestID] = []string{requestID}
	if secure {
		h["Strict-Transport-Security"] = headerHSTS
	}
}

func (q *call) answer(r reply) {
	h := q.gin.Writer.Header()
	if r.version > 0 {
		h["Etag"] = []string{etag(r.version)}
	}
	if r.records != "" {
		h[api.HeaderAccessRecord] = []string{r.records}
	}
	if r.location != "" {
		h["Location"] = []string{r.location}
	}
	if r.digest != "" {
		h["Repr-Digest"] = []string{r.digest}
	}
	media := r.media
	switch media {
	case "":
		media = mediaJSON
	case mediaHTML:
		h["Content-Security-Policy"] = headerCSPPage // a page of ours has its style in itself, and nothing else
	}
	if r.stream != nil {
		q.stream(r.status, media, r.stream)
		return
	}
	q.write(r.status, media, r.body)
	if r.wipe {
		release(r.body)
	}
}

// write sends the head and the whole body. That the client may not get it changes nothing: what happened
// is on record.
func (q *call) write(status int, media string, body []byte) {
	h := q.gin.Writer.Header()
	if status != http.StatusNoContent {
		if media == mediaJSON {
			h["Content-Type"] = headerJSON
		} else {
			h["Content-Type"] = []string{media}
		}
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	q.gin.Writer.WriteHeader(status)
	if len(body) > 0 {
		_, _ = q.gin.Writer.Write(body)
	} else {
		q.gin.Writer.WriteHeaderNow()
	}
}

func etag(version uint64) string {
	b := make([]byte, 0, 22)
	b = append(b, '"')
	b = strconv.AppendUint(b, version, 10)
	return string(append(b, '"'))
}

func recordHeader(index int64) string { return strconv.FormatInt(index, 10) }
