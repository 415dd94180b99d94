package server

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api"
)

// scoped binds the fingerprint of a body to the subject in the path.
func scoped(body [32]byte, subject uuid.UUID) [32]byte {
	return sha256.Sum256(append(body[:], subject[:]...))
}

func accessRecords(q *call) (reply, error) {
	p := q.query
	f := access.EntryFilter{
		Caller: p.get("caller"), Purpose: p.get("purpose"), Ground: p.get("ground"),
		Decision: p.get("decision"), Kind: p.get("kind"),
	}
	var err error
	for _, name := range []string{"caller", "purpose"} {
		if v := p.get(name); v != "" && !isName(v) {
			return reply{}, invalid(name, "must be a name")
		}
	}
	switch f.Ground {
	case "", verify.GroundConsent, verify.GroundService, verify.GroundLaw:
	default:
		return reply{}, invalid("ground", "must be consent, service or law")
	}
	switch f.Decision {
	case "", verify.Allow, verify.Deny:
	default:
		return reply{}, invalid("decision", "must be allow or deny")
	}
	if f.Kind != "" && !isName(strings.Replace(f.Kind, ".", "-", 1)) {
		return reply{}, invalid("kind", "must be a kind of entries, such as access")
	}
	if s := p.get("subject"); s != "" {
		if f.Subject, err = parseID("subject", s); err != nil {
			return reply{}, err
		}
	}
	if f.From, err = parseTime("from", p.get("from")); err != nil {
		return reply{}, err
	}
	if f.To, err = parseTime("to", p.get("to")); err != nil {
		return reply{}, err
	}
	if f.Cursor, err = parseCursor(p.get("cursor")); err != nil {
		return reply{}, err
	}
	if f.Limit, err = parseLimit(p.get("limit")); err != nil {
		return reply{}, err
	}
	page, err := q.server.broker.Entries(q.ctx, q.request, f)
	if err != nil {
		return reply{}, err
	}
	b := append(make([]byte, 0, 1<<10), `{"records":[`...)
	for i := range page.Entries {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendEntry(b, &page.Entries[i])
	}
	b = append(b, ']')
	if page.Next >= 0 {
		b = append(b, `,"next":"`...)
		b = strconv.AppendInt(b, page.Next, 10)
		b = append(b, '"')
	}
	return reply{status: http.StatusOK, body: append(b, '}')}, nil
}

// appendEntry appends e as an api.AccessRecord with the entry's bytes as they were hashed.
func appendEntry(b []byte, e *access.Entry) []byte {
	b = append(b, `{"index":`...)
	b = strconv.AppendInt(b, e.Index, 10)
	b = append(b, `,"entry":`...)
	b = append(b, e.Bytes...)
	return append(b, '}')
}

func accessRecord(q *call) (reply, error) {
	index, err := parseIndex(q.param("index"))
	if err != nil {
		return reply{}, err
	}
	entry, err := q.server.broker.Entry(q.ctx, q.request, index)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, body: appendEntry(nil, &entry)}, nil
}

func accessProof(q *call) (reply, error) {
	index, err := parseIndex(q.param("index"))
	if err != nil {
		return reply{}, err
	}
	proof, err := q.server.broker.Proof(q.ctx, q.request, index)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, media: mediaText, body: proof}, nil
}

func logCheckpoint(q *call) (reply, error) {
	note, err := q.server.broker.LogCheckpoint(q.ctx, q.request)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, media: mediaText, body: note}, nil
}

const maxTilePath = 64 // bytes; the longest path of C2SP tlog-tiles is shorter

func logTile(q *call) (reply, error) {
	path := q.param("path") // begins with a slash
	if len(path) > maxTilePath {
		return reply{}, errNoRoute
	}
	tile, err := q.server.broker.LogTile(q.ctx, q.request, "tile"+path)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, media: mediaBytes, body: tile}, nil
}

// Policy. A bundle is served as the bytes that were published, since their hash is in the ledger.

func currentPolicy(q *call) (reply, error) {
	v, raw, err := q.server.broker.Policy(q.ctx, q.request)
	return bundle(v, raw, err)
}

func policyVersion(q *call) (reply, error) {
	version, ok := parseDecimal(q.param("version"))
	if !ok || version == 0 {
		return reply{}, invalid("version", "must be the number of a version")
	}
	v, raw, err := q.server.broker.PolicyVersion(q.ctx, q.request, version)
	return bundle(v, raw, err)
}

func bundle(v access.PolicyVersion, raw []byte, err error) (reply, error) {
	if err != nil {
		return reply{}, err
	}
	sum := sha256.Sum256(raw)
	return reply{
		status: http.StatusOK, version: uint64(v.Version), records: recordHeader(v.Entry), body: raw,
		digest: "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":",
	}, nil
}

func publishPolicy(q *call) (reply, error) {
	v, err := q.server.broker.PublishPolicy(q.ctx, q.request, q.body)
	if err != nil {
		return reply{}, err
	}
	r, err := ok(http.StatusCreated, wirePolicy(v))
	r.version, r.records = uint64(v.Version), recordHeader(v.Entry)
	r.location = "/v1/policy/versions/" + strconv.FormatInt(v.Version, 10)
	return r, err
}

func policyVersions(q *call) (reply, error) {
	list, err := q.server.broker.PolicyVersions(q.ctx, q.request)
	if err != nil {
		return reply{}, err
	}
	out := api.PolicyVersions{Versions: make([]api.PolicyVersion, len(list))}
	for i := range list {
		out.Versions[i] = wirePolicy(list[i])
	}
	return ok(http.StatusOK, out)
}

func wirePolicy(v access.PolicyVersion) api.PolicyVersion {
	return api.PolicyVersion{
		Version: v.Version, SHA256: v.SHA256, TextSHA256: v.TextSHA256, PublishedAt: v.Published.UTC(), Entry: v.Entry,
	}
}
