package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzImportState: a state file is that of the input, with counts that can be, or it is refused.
func FuzzImportState(f *testing.F) {
	const identity = "input"
	f.Add([]byte(`{"format":"` + stateFormat + `","input":"` + identity + `","seed":"s","lines":3,"created":3,"rejected":0,"offset":100,"out_bytes":10,"reject_bytes":0}`))
	f.Add([]byte(`{"format":"` + stateFormat + `","input":"other"}`))
	f.Add([]byte(`{"format":"` + stateFormat + `","input":"` + identity + `","offset":-1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := openState(path, identity, false)
		if err != nil {
			if st != nil {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if st.Format != stateFormat || st.Input != identity || st.Offset < 0 || st.OutBytes < 0 || st.RejectBytes < 0 {
			t.Errorf("taken: %+v", st)
		}
	})
}

// FuzzLines: lines are read whole, their lengths add up, and none that is too long is kept.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\n\nc"))
	f.Add([]byte(strings.Repeat("x", 10_000) + "\n{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		var total int64
		var again []byte
		for {
			text, n, tooLong, err := readLine(r)
			total += n
			if tooLong != (n > maxLine+2) || !tooLong && int64(len(text)) != n {
				t.Errorf("%d of %d bytes, too long: %v", len(text), n, tooLong)
			}
			again = append(again, text...)
			if err != nil {
				break
			}
		}
		if total != int64(len(b)) || int64(len(b)) < maxLine && !bytes.Equal(again, b) {
			t.Errorf("%d bytes were read of %d", total, len(b))
		}
	})
}
