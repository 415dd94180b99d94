package erasure

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

//go:embed act.html
var actText string

// act is parsed once; that it parses is seen by every test that prints one.
var act = template.Must(template.New("act").Parse(actText))

// Act returns the printable act of destruction, as one HTML page that refers to nothing outside of it: the
// fields that order 179 of Roskomnadzor asks for, and the extract from the event log beside them. What a
// certificate cannot know (address, persons and their signatures) is left to be filled in by hand.
//
// The certificate is parsed and must not contradict itself; its proofs are not verified, which the page says.
func Act(cert []byte) ([]byte, error) {
	c, e, err := parse(cert)
	if err != nil {
		return nil, err
	}
	reason, known := FindReason(c.Reason)
	if !known {
		reason = Reason{Code: c.Reason, EN: c.Reason, RU: c.Reason}
	}
	page := actPage{
		Certificate: c, Why: reason, Rows: []actRow{newActRow(c.Erased, e.erased), newActRow(c.Destroyed, e.destroyed)},
		Final: c.Status == Final, Cryptographic: c.Method == verify.MethodCryptographicErase,
	}
	if caller := e.erased.Caller; caller != nil {
		page.By = fmt.Sprintf("%s (%s)", caller.ID, caller.Role)
	}
	if c.Epoch != nil {
		page.Rows = append(page.Rows, newActRow(*c.Epoch, e.epoch))
	}
	var out bytes.Buffer
	if err := act.Execute(&out, page); err != nil {
		return nil, fmt.Errorf("printing the act: %w", err)
	}
	return out.Bytes(), nil
}

// actPage is what the template is filled with.
type actPage struct {
	Certificate
	Why           Reason
	By            string // who asked the system to erase
	Rows          []actRow
	Final         bool
	Cryptographic bool
}

// actRow is one line of the extract from the event log.
type actRow struct {
	Index      int64
	Time, Kind string
	ID, By     string
}

func newActRow(a Attested, e verify.Entry) actRow {
	r := actRow{Index: a.Index, Time: e.Time, Kind: e.Kind, ID: e.ID}
	if e.Caller != nil {
		r.By = e.Caller.ID
	}
	return r
}
