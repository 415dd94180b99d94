package e2e

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/api/contract"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// routes turns paths into the templates of the OpenAPI document, the most specific first.
var routes = []struct {
	path  *regexp.Regexp
	route string
}{
	{regexp.MustCompile(`^/v1/subjects/[^/]+/records/[^/]+$`), "/v1/subjects/{id}/records/{collection}"},
	{regexp.MustCompile(`^/v1/subjects/[^/]+/consents$`), "/v1/subjects/{id}/consents"},
	{regexp.MustCompile(`^/v1/subjects/[^/]+/restriction$`), "/v1/subjects/{id}/restriction"},
	{regexp.MustCompile(`^/v1/subjects/[^/]+$`), "/v1/subjects/{id}"},
	{regexp.MustCompile(`^/v1/consents/[^/]+/withdrawal$`), "/v1/consents/{id}/withdrawal"},
	{regexp.MustCompile(`^/v1/access-records/[^/]+/proof$`), "/v1/access-records/{index}/proof"},
	{regexp.MustCompile(`^/v1/access-records/[^/]+$`), "/v1/access-records/{index}"},
	{regexp.MustCompile(`^/v1/erasures/[^/]+$`), "/v1/erasures/{id}"},
	{regexp.MustCompile(`^/v1/keys/rotations/[^/]+$`), "/v1/keys/rotations/{id}"},
	{regexp.MustCompile(`^/v1/policy/versions/[^/]+$`), "/v1/policy/versions/{version}"},
}

// documented reports whether the document has the operation.
func documented(method, route string) bool {
	d, err := contract.Load()
	return err != nil || slices.Contains(d.Operations(), method+" "+route)
}

// checkContract holds an answer against the OpenAPI document.
func checkContract(t *testing.T, method, path string, a stack.Answer) {
	t.Helper()
	path, _, _ = strings.Cut(path, "?")
	if strings.HasPrefix(path, "/log/tile/") || path == "/metrics" {
		return // octets and text, which have no schema
	}
	for _, r := range routes {
		if r.path.MatchString(path) {
			path = r.route
			break
		}
	}
	if (a.Status == http.StatusNotFound || a.Status == http.StatusMethodNotAllowed) && !documented(method, path) {
		return // no operation, so no contract
	}
	if err := contract.Check(method, path, a.Status, a.Header, a.Body); err != nil {
		t.Errorf("%s %s %d does not keep to the contract: %v", method, path, a.Status, err)
	}
}
