package main

import (
	"slices"
	"testing"
)

func TestPartsRunWhenTheyAreWanted(t *testing.T) {
	for _, tt := range []struct {
		only    string
		full    bool
		with    []string
		without []string
	}{
		{"", false, []string{"http", "postgres", "sizes"}, []string{"rotations"}},
		{"", true, []string{"http", "rotations"}, nil},
		{"hashicorp,rotations", false, []string{"hashicorp", "rotations"}, []string{"http", "hashicorp-baselines"}},
		{"http", true, []string{"http"}, []string{"rotations", "sizes"}},
	} {
		b := &bench{only: tt.only, full: tt.full}
		var got []string
		for _, p := range parts {
			if b.wants(p) {
				got = append(got, p.name)
			}
		}
		for _, name := range tt.with {
			if !slices.Contains(got, name) {
				t.Errorf("-only %q -full=%v leaves out %s", tt.only, tt.full, name)
			}
		}
		for _, name := range tt.without {
			if slices.Contains(got, name) {
				t.Errorf("-only %q -full=%v runs %s", tt.only, tt.full, name)
			}
		}
	}
}

func TestListsOfNumbersAreBounded(t *testing.T) {
	if got, err := numbers("1,32,256", 256); err != nil || !slices.Equal(got, []int{1, 32, 256}) {
		t.Errorf("got %v, error %v", got, err)
	}
	for _, list := range []string{"", "0", "-1", "257", "1,,2", "1, 2", "x"} {
		if got, err := numbers(list, 256); err == nil {
			t.Errorf("%q gives %v", list, got)
		}
	}
}

func TestTheCommandCanBePastedIntoAShell(t *testing.T) {
	got := command([]string{"-only", "http,local", "-docs=test/bench/docs", "-caveat", "it's busy; $HOME", ""})
	if want := `go run ./test/bench/cmd/bench -only http,local -docs=test/bench/docs -caveat 'it'\''s busy; $HOME' ''`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
