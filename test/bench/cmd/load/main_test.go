package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTokensAreFoundAndNeverShown(t *testing.T) {
	for name, tt := range map[string]struct {
		text, want string
	}{
		"alone":         {"pdv_secret\n", "pdv_secret"},
		"by caller":     {`{"shop":"pdv_secret","legal":"pdv_other"}`, "pdv_secret"},
		"empty":         {"\n", ""},
		"several words": {"shop pdv_secret", ""},
		"other callers": {`{"legal":"pdv_secret"}`, ""},
		"other shape":   {`{"legal":["pdv_secret"]}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tokens")
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readToken(file, "shop")
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, error %v, want %q", got, err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "pdv_") {
				t.Errorf("the error shows a token: %v", err)
			}
		})
	}
}
