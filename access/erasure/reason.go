package erasure

import "slices"

// Reason is why data may be, or must be, erased.
type Reason struct {
	Code string // as requests, entries and certificates carry it
	EN   string
	RU   string
}

// reasons is the closed set of reasons. A code is kept in the ledger for good, so it is never given another
// meaning.
var reasons = []Reason{
	{"withdrawn-consent", "consent withdrawn (GDPR Art. 17(1)(b); 152-FZ Art. 21(5))", "отзыв согласия (ч. 5 ст. 21 152-ФЗ)"},
	{"purpose-reached", "purpose reached or no longer necessary (GDPR Art. 17(1)(a); 152-FZ Art. 21(4))", "достижение цели обработки (ч. 4 ст. 21 152-ФЗ)"},
	{"subject-request", "request of the person (GDPR Art. 17(1); 152-FZ Art. 20(3), 21(5.1))", "требование субъекта (ч. 3 ст. 20, ч. 5.1 ст. 21 152-ФЗ)"},
	{"unlawful", "processing was unlawful (GDPR Art. 17(1)(d); 152-FZ Art. 21(3))", "неправомерная обработка (ч. 3 ст. 21 152-ФЗ)"},
	{"legal-obligation", "obligation by law or order of an authority (GDPR Art. 17(1)(e))", "обязанность по закону или требование уполномоченного органа"},
	{"account-closed", "account closed, contract ended", "закрытие учётной записи, прекращение договора"},
}

// Reasons returns every reason for which data is erased.
func Reasons() []Reason { return slices.Clone(reasons) }

// FindReason returns the reason with a code.
func FindReason(code string) (Reason, bool) {
	i := slices.IndexFunc(reasons, func(r Reason) bool { return r.Code == code })
	if i < 0 {
		return Reason{}, false
	}
	return reasons[i], true
}
