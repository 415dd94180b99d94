package badgerkv

import (
	"maps"
	"testing"
)

// What a MANIFEST shows is whole only if that is certain, and what is put back is what was listed before and what was
// flushed since.
func TestJudge(t *testing.T) {
	before := map[uint64]listed{1: {}, 2: {}, 3: {Level: 6}}
	flush := change{created: map[uint64]listed{4: {}}}
	compact := func(level uint32, made ...uint64) change {
		c := change{created: map[uint64]listed{}, deleted: []uint64{1, 2, 3}}
		for _, id := range made {
			c.created[id] = listed{Level: level}
		}
		return c
	}
	cases := map[string]struct {
		announced []int
		sets      []change
		appended  verdict // Badger has appended the sets
		rewritten verdict // Badger has written the MANIFEST anew since
	}{
		"nothing":                    {[]int{2}, nil, untouched, untouched},
		"a flush":                    {[]int{2}, []change{flush}, untouched, untouched},
		"all":                        {[]int{2}, []change{compact(6, 5, 6)}, whole, whole},
		"all, and a flush":           {[]int{2}, []change{flush, compact(6, 5, 6)}, whole, whole},
		"nothing was to be made":     {[]int{0}, []change{compact(6)}, whole, whole},
		"one less":                   {[]int{2}, []change{compact(6, 5)}, short, short},
		"none":                       {[]int{2}, []change{compact(6)}, short, short},
		"none, but a flush":          {[]int{1}, []change{compact(6), flush}, short, short},
		"within level 0":             {[]int{1}, []change{compact(0, 5)}, whole, short},
		"none within level 0":        {[]int{1}, []change{compact(0), flush}, short, short},
		"one more than announced":    {[]int{1}, []change{compact(6, 5), {deleted: []uint64{5}}}, short, short},
		"two":                        {[]int{2, 1}, []change{compact(6, 5, 6), {map[uint64]listed{7: {}}, []uint64{5}}}, whole, short},
		"the second of two is short": {[]int{2, 1}, []change{compact(6, 5, 6), {deleted: []uint64{5}}}, short, short},
	}
	for name, c := range cases {
		u := unfinished{Tables: before, Announced: c.announced}
		s := since{sets: c.sets, tables: maps.Clone(before)}
		flushed := false
		for _, set := range c.sets {
			set.apply(s.tables)
			flushed = flushed || len(set.deleted) == 0
		}
		if got, _ := u.judge(s); got != c.appended {
			t.Errorf("%s: judged %d, want %d", name, got, c.appended)
		}
		want := maps.Clone(before)
		if flushed {
			flush.apply(want)
		}
		if got := u.before(s); !maps.Equal(got, want) {
			t.Errorf("%s: put back %v, want %v", name, got, want)
		}
		s.sets, s.rewritten = nil, true
		if got, _ := u.judge(s); got != c.rewritten {
			t.Errorf("%s, rewritten: judged %d, want %d", name, got, c.rewritten)
		}
		u.Closing = true
		if got := u.before(s); !maps.Equal(got, before) {
			t.Errorf("%s, closing: put back %v", name, got)
		}
	}
}
