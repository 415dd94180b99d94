package server

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/prototypster/pdvault/api"
)

// register adds every route. openapi.yaml lists the same ones; a test compares them.
func (s *Server) register(r *gin.Engine) {
	const (
		get, post, put, patch, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete

		record = "/v1/subjects/:id/records/:collection"
	)
	s.routes = []Route{
		{Method: post, Path: "/v1/subjects", body: api.MaxRecordBody, run: endpoint(createSubject)},
		{Method: get, Path: "/v1/subjects/:id", run: describe},
		{Method: del, Path: "/v1/subjects/:id", body: api.MaxBody, optional: true, run: endpoint(erase)},
		{Method: get, Path: record, query: []string{"purpose", "fields", "mode"}, run: read},
		{Method: put, Path: record, body: api.MaxRecordBody, run: putRecord},
		{Method: patch, Path: record, body: api.MaxRecordBody, media: mediaPatch, run: patchRecord},
		{Method: del, Path: record, run: deleteRecord},
		{Method: put, Path: "/v1/subjects/:id/restriction", body: api.MaxBody, run: endpoint(restrict)},
		{Method: del, Path: "/v1/subjects/:id/restriction", body: api.MaxBody, optional: true, run: endpoint(unrestrict)},

		{Method: post, Path: "/v1/reads", body: api.MaxRecordBody, large: true, run: endpoint(readBatch)},
		{Method: post, Path: "/v1/lookups", body: api.MaxBody, run: endpoint(lookup)},
		{Method: post, Path: "/v1/verifications", body: api.MaxBody, run: endpoint(verifyValue)},
		{Method: post, Path: "/v1/access-checks", body: api.MaxBody, run: endpoint(checkAccess)},

		{Method: post, Path: "/v1/subjects/:id/consents", body: api.MaxBody, run: endpoint(giveConsent)},
		{Method: get, Path: "/v1/subjects/:id/consents", run: consents},
		{Method: post, Path: "/v1/consents/:id/withdrawal", body: api.MaxBody, optional: true, run: endpoint(withdrawConsent)},

		{Method: get, Path: "/v1/erasures/:id", run: certificate},

		{Method: get, Path: "/v1/keys", run: keysInUse},
		{Method: get, Path: "/v1/keys/rotations", run: rotations},
		{Method: post, Path: "/v1/keys/rotations", body: api.MaxBody, run: endpoint(startRotation)},
		{Method: get, Path: "/v1/keys/rotations/:id", run: rotation},

		{Method: get, Path: "/v1/policy", run: currentPolicy},
		{Method: post, Path: "/v1/policy", body: api.MaxRecordBody, run: publishPolicy},
		{Method: get, Path: "/v1/policy/versions", run: policyVersions},
		{Method: get, Path: "/v1/policy/versions/:version", run: policyVersion},

		{Method: get, Path: "/v1/access-records", run: accessRecords, query: []string{
			"subject", "caller", "purpose", "ground", "decision", "kind", "from", "to", "cursor", "limit"}},
		{Method: get, Path: "/v1/access-records/:index", run: accessRecord},
		{Method: get, Path: "/v1/access-records/:index/proof", run: accessProof},
		{Method: get, Path: "/log/checkpoint", run: logCheckpoint},
		{Method: get, Path: "/log/tile/*path", run: logTile},

		{Method: get, Path: "/v1/backup", run: backup},

		{Method: get, Path: "/livez", open: true, run: live},
		{Method: get, Path: "/readyz", open: true, run: readyz},
		{Method: get, Path: "/metrics", roles: operators, run: metricsPage},
	}
	for i := range s.routes {
		route := &s.routes[i]
		route.metrics = s.metrics.route(route.Method, route.Path)
		r.Handle(route.Method, route.Path, s.handle(route))
	}
	r.NoRoute(s.refuse(errNoRoute))
	r.NoMethod(s.refuse(errNoMethod))
}

// refuse answers what is no call of the API.
func (s *Server) refuse(err error) gin.HandlerFunc {
	route := &Route{Method: "other", Path: "none", open: true, metrics: s.metrics.route("other", "none")}
	return func(c *gin.Context) {
		start := s.config.Now()
		q := call{server: s, gin: c, ctx: c.Request.Context(), route: route, id: newRequestID()}
		defer s.finish(&q, start)
		q.identify()
		q.begin()
		q.fail(err)
	}
}
