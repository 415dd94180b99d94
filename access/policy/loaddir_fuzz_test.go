package policy_test

import (
	"errors"
	"testing"
	"testing/fstest"

	"github.com/prototypster/pdvault/access/policy"
)

// FuzzLoadDir: no files of a bundle make the composing of it panic; what is composed is the same again and again, and
// is parsed or refused.
func FuzzLoadDir(f *testing.F) {
	f.Add([]byte(`{"operator":{"id":"x"}}`), []byte("text"), []byte("permit (principal, action, resource);"), []byte(`{"type":"object"}`))
	f.Add([]byte(`{"text":{"body":"x"}}`), []byte{0xff}, []byte{}, []byte(`{`))
	f.Add([]byte(`{"operator":{"id":"x","id":"y"}}`), []byte{}, []byte{}, []byte(`null`))
	f.Fuzz(func(t *testing.T, head, text, rules, collection []byte) {
		dir := fstest.MapFS{
			"bundle.json": {Data: head}, "policy.md": {Data: text}, "broker.cedarschema": {Data: rules}, "broker.cedar": {Data: rules},
			"collections/profile.json": {Data: collection},
		}
		raw, err := policy.LoadDir(dir)
		if err != nil {
			if raw != nil || !errors.Is(err, policy.ErrBundle) {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		again, err := policy.LoadDir(dir)
		if err != nil || string(again) != string(raw) {
			t.Errorf("the same files give another bundle: %v", err)
		}
		if b, err := policy.Parse(raw); (b == nil) == (err == nil) {
			t.Errorf("%v, %v", b, err)
		}
	})
}
