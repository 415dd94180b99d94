package erasure_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger/verify"
)

// TestTheActHasTheFieldsOfOrder179 looks for each of them by its Russian heading.
func TestTheActHasTheFieldsOfOrder179(t *testing.T) {
	w := newWorld(t, nil)
	for _, final := range []bool{false, true} {
		page, err := erasure.Act(w.certificate(true, final).Encode())
		must(t, err)
		text := string(page)
		for _, want := range []string{
			"Оператор", "Адрес оператора", "Лицо, обрабатывающее данные по поручению", "Субъект", subject,
			"Лица, уничтожившие персональные данные", "Фамилия, имя, отчество", "Должность", "Подпись", "privacy (privacy-officer)",
			"Перечень категорий", "pd:EmailAddress", "pd:Name", "profile.email", "Материальный носитель", "не применимо",
			"Наименование информационной системы", origin, "Способ уничтожения", "NIST SP 800-88", "Причина уничтожения", "отзыв согласия",
			"withdrawn-consent", "Дата уничтожения", "2026-11-22T13:00:00.000Z", "2026-11-22T15:00:00.000Z",
			"Выгрузка из журнала", "subject.erased", "key.destroyed", "cert-1", "Prototypster",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("final %v: %q is missing", final, want)
			}
		}
		if strings.Contains(text, "key.epoch") != final || strings.Contains(text, "since 2026-11-22T17:00:00.000Z") != final ||
			strings.Contains(text, "2026-11-29T10:00:00.000Z at the latest") == final {
			t.Errorf("final %v: what it says of backups is wrong", final)
		}
	}
	page, err := erasure.Act(w.certificate(false, false).Encode())
	must(t, err)
	if bytes.Contains(page, []byte(subject)) {
		t.Error("it names a subject that the certificate does not")
	}
}

func TestTheActNeedsNothingFromOutside(t *testing.T) {
	page, err := erasure.Act(newWorld(t, nil).certificate(true, true).Encode())
	must(t, err)
	if loads := regexp.MustCompile(`(?i)\b(src|href|action)\s*=|url\(|@import|<(script|link|img|iframe|object|embed|base)\b|https?://`).FindAll(page, -1); loads != nil {
		t.Errorf("it refers to %q", loads)
	}
	if !bytes.Contains(page, []byte("@media print")) {
		t.Error("it has no rules for printing")
	}
	balanced(t, page)
}

// balanced demands that every element is closed.
func balanced(t *testing.T, page []byte) {
	t.Helper()
	page = regexp.MustCompile(`<(br|meta [^>]*)>`).ReplaceAll(page, []byte("<$1/>")) // these have no end
	d := xml.NewDecoder(bytes.NewReader(page))
	d.Entity = xml.HTMLEntity
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatALedgerSaysIsNoMarkup(t *testing.T) {
	const evil = `<script>alert("x")</script>`
	w := newWorld(t, func(e []verify.Entry) {
		e[erasedAt].Erasure.Operator, e[erasedAt].Reason, e[erasedAt].Erasure.Method = evil, evil, evil
		e[erasedAt].Erasure.Categories, e[erasedAt].Erasure.Fields = []string{evil}, []string{evil}
		e[erasedAt].Caller.ID, e[erasedAt].Erasure.ID, e[destroyedAt].Erasure.ID = evil, evil, evil
	})
	page, err := erasure.Act(w.certificate(true, true).Encode())
	must(t, err)
	if bytes.Contains(page, []byte("<script")) || !bytes.Contains(page, []byte("&lt;script&gt;")) {
		t.Error("it is not escaped")
	}
	balanced(t, page)
}

func TestNoActOfACertificateThatContradictsItself(t *testing.T) {
	c := newWorld(t, nil).certificate(true, true)
	c.Operator = "Somebody else"
	if page, err := erasure.Act(c.Encode()); !errors.Is(err, erasure.ErrContradiction) || page != nil {
		t.Errorf("%v", err)
	}
}
