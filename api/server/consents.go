package server

import (
	"encoding/hex"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

// target reads the members that name what is read; at is the pointer to the object that holds them.
func target(at, subject, collection string, fields []string) (id uuid.UUID, name string, names []string, err error) {
	if id, err = parseID(at+"/subject", subject); err != nil {
		return id, "", nil, err
	}
	if name, err = parseName(at+"/collection", collection); err != nil {
		return id, "", nil, err
	}
	for _, field := range fields {
		if !isName(field) {
			return id, "", nil, invalid(at+"/fields", "must be names of fields")
		}
	}
	return id, name, fields, nil
}

func giveConsent(q *call, b *api.GiveConsent) (reply, error) {
	request := access.ConsentRequest{
		Request: q.request, Policy: b.Policy, Language: b.Language, NotAfter: b.NotAfter,
		SeparateDocument: b.SeparateDocument, NoticeSHA256: b.NoticeSHA256, Capture: b.Capture,
	}
	var err error
	if request.Subject, err = q.subject(); err != nil {
		return reply{}, err
	}
	if request.Idempotency, err = q.idempotency(); err != nil {
		return reply{}, err
	}
	if request.Key != "" {
		// The route's template does not say whose consent it is, so the fingerprint must.
		request.Fingerprint = scoped(request.Fingerprint, request.Subject)
	}
	if request.Purpose, err = parseName("/purpose", b.Purpose); err != nil {
		return reply{}, err
	}
	switch {
	case b.Policy < 0:
		return reply{}, invalid("/policy", "must be a version")
	case b.Language != "" && (len(b.Language) > 35 || !isName(b.Language)):
		return reply{}, invalid("/language", "must be a BCP 47 tag")
	case b.NoticeSHA256 != "" && !isSHA256(b.NoticeSHA256):
		return reply{}, invalid("/notice_sha256", "must be 64 hex digits in lower case")
	case len(b.Capture) > 0 && b.Capture.Kind() != jsontext.KindBeginObject:
		return reply{}, invalid("/capture", "must be an object")
	}
	given, err := q.server.broker.GiveConsent(q.ctx, request)
	if err != nil {
		return reply{}, err
	}
	r, err := ok(http.StatusCreated, q.server.receipt(given))
	r.records = recordHeader(given.Entry)
	r.location = "/v1/subjects/" + given.Subject.String() + "/consents"
	return r, err
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && hex.EncodeToString(b) == s
}

func consents(q *call) (reply, error) {
	id, err := q.subject()
	if err != nil {
		return reply{}, err
	}
	list, err := q.server.broker.Consents(q.ctx, q.request, id)
	if err != nil {
		return reply{}, err
	}
	return ok(http.StatusOK, api.Consents{Consents: wireConsents(list)})
}

// withdrawal is the body of a withdrawal: nothing needs to be said.
type withdrawal struct{}

func withdrawConsent(q *call, _ *withdrawal) (reply, error) {
	id, err := q.subject()
	if err != nil {
		return reply{}, err
	}
	consent, err := q.server.broker.WithdrawConsent(q.ctx, q.request, id)
	if err != nil {
		return reply{}, err
	}
	r, err := ok(http.StatusOK, wireConsent(&consent))
	r.records = recordHeader(consent.WithdrawnEntry)
	return r, err
}

func wireConsents(list []access.Consent) []api.Consent {
	out := make([]api.Consent, len(list))
	for i := range list {
		out[i] = wireConsent(&list[i])
	}
	return out
}

func wireConsent(c *access.Consent) api.Consent {
	out := api.Consent{
		ID: c.ID.String(), Subject: c.Subject.String(), Purpose: c.Purpose, Policy: c.Policy, State: c.State,
		Fields: nonNil(c.Fields), Recipients: nonNil(c.Recipients), GivenAt: c.GivenAt.UTC(),
		NotAfter: c.NotAfter, WithdrawnAt: c.WithdrawnAt, SeparateDocument: c.SeparateDocument,
		Language: c.Language, NoticeSHA256: c.NoticeSHA256, Entry: c.Entry,
	}
	if !c.WithdrawnAt.IsZero() {
		entry := c.WithdrawnEntry
		out.WithdrawnEntry = &entry
	}
	return out
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// receipt says c in the words of ISO/IEC TS 27560.
func (s *Server) receipt(c access.Consent) api.Receipt {
	issuer := &s.config.Issuer
	r := api.Receipt{
		SchemaVersion: api.ReceiptSchema, ReceiptID: c.ID.String(), RecordID: c.ID.String(),
		PIIPrincipalID: c.Subject.String(),
		Processing: api.ReceiptProcessing{
			PrivacyNotice: "/v1/policy/versions/" + strconv.FormatInt(c.Policy, 10),
			Language:      c.Language, Purpose: c.Purpose, LawfulBasis: "dpv:Consent",
			PIIInformation:   make([]api.ReceiptPII, len(c.Fields)),
			PIIControllers:   []api.ReceiptParty{issuer.Controller},
			StorageLocations: issuer.StorageLocations, RetentionPeriod: issuer.RetentionPeriod,
			Jurisdiction: issuer.Jurisdiction, RecipientThirdParty: nonNil(c.Recipients),
			WithdrawalMethod: "POST /v1/consents/" + c.ID.String() + "/withdrawal",
			Document: &api.ReceiptDocument{
				SHA256: c.NoticeSHA256, SeparateDocument: c.SeparateDocument, TextVersion: c.Policy,
			},
		},
		Events: []api.ReceiptEvent{{
			EventTime: c.GivenAt.UTC(), EventType: "dpv:ExpressedConsent", EventState: "dpv:" + c.State,
			EntityID: c.Subject.String(), ValidUntil: c.NotAfter, Entry: c.Entry,
		}},
		Consent: wireConsent(&c),
	}
	for i, field := range c.Fields {
		r.Processing.PIIInformation[i].PIIType = field
	}
	return r
}
