package policy

import "github.com/go-json-experiment/json/jsontext"

// Roles of callers (design.md section 9). The set is closed: a new role is a new line in the rules.
const (
	RoleService        = "service"
	RolePartner        = "partner"
	RolePrivacyOfficer = "privacy-officer"
	RoleLegal          = "legal"
	RoleSecurity       = "security"
	RoleAuditor        = "auditor"
)

// Kinds of agreements.
const (
	AgreementOwnService      = "own_service"      // the terms the person accepted; counterparty is a caller of our own
	AgreementProcessor       = "processor"        // GDPR Art. 28: the partner acts on our instruction
	AgreementJointController = "joint_controller" // GDPR Art. 26
	AgreementThirdParty      = "third_party"      // an independent controller: consent purposes only
)

// Roles of recipients, as in access records.
const (
	RecipientController = "controller"
	RecipientProcessor  = "processor"
	RecipientThirdParty = "third_party"
	RecipientAuthority  = "authority"
	RecipientSubject    = "data_subject"
)

// Document is the bundle as it is written: one JSON object with snake_case members. [Parse] reads it
// strictly; [LoadDir] composes it from a directory.
//
// Example:
//
//	{"operator":{"id":"prototypster",…},"text":{…},"purposes":[…],"collections":{"profile":{…}},
//	 "callers":[…],"agreements":[…],"limits":{…},"cedar":{"schema":"…","policies":"…"}}
type Document struct {
	Operator    Operator                  `json:"operator"`
	Text        Text                      `json:"text"`
	Purposes    []Purpose                 `json:"purposes"`
	Collections map[string]jsontext.Value `json:"collections"` // JSON Schemas, see vault/schema
	Callers     []Caller                  `json:"callers"`
	Agreements  []Agreement               `json:"agreements"`
	Limits      Limits                    `json:"limits"`
	Cedar       Cedar                     `json:"cedar"`
}

// Operator is the controller that this instance serves.
type Operator struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Jurisdiction string `json:"jurisdiction"` // ISO 3166-1 alpha-2
	Contact      string `json:"contact"`
	// Residency is the region where data must be stored, ISO 3166-1 alpha-2; empty: no rule.
	Residency string `json:"residency,omitzero"`
	// PhoneRegion is the region in which a phone number without a country code is read, ISO 3166-1 alpha-2;
	// empty: such numbers are invalid.
	PhoneRegion string `json:"phone_region,omitzero"`
}

// Text is the privacy policy that people read.
type Text struct {
	Language string `json:"language"` // BCP 47
	URI      string `json:"uri"`
	Title    string `json:"title"`
	Body     string `json:"body"` // Markdown
}

// Purpose is a registered reason for reading data.
type Purpose struct {
	ID          string `json:"id"`
	IRI         string `json:"iri"` // DPV CURIE (dpv:AccountManagement) or an IRI of the operator's own
	Title       string `json:"title"`
	Description string `json:"description"`
	Ground      string `json:"ground"` // consent, service or law
	// Callers of our own that may use it. Partners come in through agreements.
	Callers []string            `json:"callers,omitempty"`
	Fields  map[string][]string `json:"fields,omitempty"` // by collection
	Modes   []string            `json:"modes,omitempty"`  // of reveal, mask, verify, lookup
	// Retention is how long data may be kept for it: an ISO 8601 duration, or "unlimited" for a purpose
	// without fields (aggregates only).
	Retention         string `json:"retention"`
	StatisticsAllowed bool   `json:"statistics_allowed,omitzero"`
	// ConsentSince is the first policy version whose consents still count; 0: all do.
	ConsentSince int64 `json:"consent_since,omitzero"`
}

// Caller is a client that may authenticate: a service, a partner, a person in a role.
type Caller struct {
	ID   string `json:"id"`
	Kind string `json:"kind"` // person, service
	Role string `json:"role"`
	// Partner is the counterparty_id of its agreements; set exactly when Role is partner.
	Partner string `json:"partner,omitzero"`
}

// Agreement is what lets a partner, or a service whose terms have to be shown, read data.
type Agreement struct {
	ID               string              `json:"id"`
	Kind             string              `json:"kind"`
	CounterpartyID   string              `json:"counterparty_id"`
	CounterpartyName string              `json:"counterparty_name"`
	Contact          string              `json:"contact,omitzero"`
	Jurisdiction     string              `json:"jurisdiction"`
	ContractRef      string              `json:"contract_ref"`
	ContractSHA256   string              `json:"contract_sha256"`
	EffectiveFrom    string              `json:"effective_from"` // RFC 3339
	EffectiveTo      string              `json:"effective_to"`   // RFC 3339, exclusive
	Status           string              `json:"status"`         // draft, active, suspended, terminated
	Purposes         []string            `json:"purposes"`
	Fields           map[string][]string `json:"fields"` // by collection
	Actions          []string            `json:"actions,omitempty"`
	Instruction      *Instruction        `json:"instruction,omitzero"` // required for kind processor
	TransferCountry  string              `json:"transfer_country,omitzero"`
	Safeguards       string              `json:"safeguards,omitzero"`
	ConsentID        string              `json:"consent_id,omitzero"`
}

// Instruction is what a processor is bound to (GDPR Art. 28(3), 152-FZ Art. 6(3)).
type Instruction struct {
	Confidentiality      string `json:"confidentiality"`
	Security             string `json:"security"`
	ReturnOrDestroy      string `json:"return_or_destroy"` // return or destroy
	IncidentHours        int    `json:"incident_hours"`
	IncidentContact      string `json:"incident_contact,omitzero"`
	SubprocessorsAllowed bool   `json:"subprocessors_allowed,omitzero"`
}

// Limits are budgets of one caller.
type Limits struct {
	LookupsPerMinute int `json:"lookups_per_minute"`
	// ConflictsPerMinute bounds the writes that are refused because a unique value is taken, which tells as
	// much as a lookup does. 0: as LookupsPerMinute.
	ConflictsPerMinute int `json:"conflicts_per_minute,omitzero"`
	ReadsPerMinute     int `json:"reads_per_minute"`
	BatchItems         int `json:"batch_items"` // reads in one call, at most 1,000
}

// Cedar holds the rules and the schema they are validated against, in Cedar's own language.
type Cedar struct {
	Schema   string `json:"schema"`
	Policies string `json:"policies"`
}
