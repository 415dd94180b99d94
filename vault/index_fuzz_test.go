package vault

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// FuzzIndexState: which index keys are in use has one spelling; what else is there is a violation of integrity, and
// never read as "the first key".
func FuzzIndexState(f *testing.F) {
	f.Add([]byte(`{"keys":[1,2],"read":1}`))
	f.Add([]byte(`{"keys":[2,1],"read":1}`))
	f.Add([]byte(`{"keys":[],"read":1}`))
	f.Add([]byte(`{"read":1,"keys":[1]}`))
	f.Add([]byte(`null`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, row []byte) {
		x, err := parseIndexState(slices.Clip(append([]byte{}, row...)))
		if err != nil {
			if !errors.Is(err, ErrIntegrity) || x.Keys != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if !bytes.Equal(encodeIndexState(x), row) || !slices.Contains(x.Keys, x.Read) || !slices.IsSorted(x.Keys) || x.Keys[0] == 0 {
			t.Errorf("taken: %v", x)
		}
	})
}
