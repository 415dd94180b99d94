package policy_test

import (
	"testing"

	"github.com/prototypster/pdvault/access/policy"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
)

// mustDefault parses the default bundle.
func mustDefault(t testing.TB) *policy.Bundle {
	t.Helper()
	b, err := policy.Parse(mustLoad(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustLoad(t testing.TB) []byte {
	t.Helper()
	raw, err := policy.LoadDir(defaultpolicy.FS)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestDefaultBundleParses(t *testing.T) { mustDefault(t) }
