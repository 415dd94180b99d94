package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/schema"
)

// Bundle is a parsed, checked and compiled policy bundle. It is immutable and may be used from any goroutine.
type Bundle struct {
	doc         Document
	raw         []byte
	sha256      string
	textSHA256  string
	collections map[string]*collection
	unknown     *collection // stands for a collection that the bundle does not know
	callers     map[string]*caller
	purposes    map[string]*purpose
	engine      *engine

	memo memo
}

// collection is what decisions need of a schema, in Cedar's types.
type collection struct {
	schema    *schema.Collection
	qualified map[string]cedar.String // by field: "profile.email"
	entities  [4]cedar.EntityMap      // by state, see stateOf; shared, never written after Parse
	record    cedar.EntityUID
}

// caller is what decisions need of a Caller.
type caller struct {
	Caller
	uid    cedar.EntityUID
	grants map[string]*grant // by purpose: only those that are this caller's
}

// grant is a purpose in the hands of one caller: as a caller of our own, or through agreements.
type grant struct {
	purpose    *purpose
	own        bool
	agreements []*agreement // in order of the bundle; those that list the purpose
	// When own; else those of the agreement.
	recipient       verify.Recipient
	recipientRecord cedar.Value
}

// purpose is what decisions need of a Purpose.
type purpose struct {
	Purpose
	terms           ConsentTerms // fields also when the ground is another
	qualified       map[string]bool
	id, iri, ground cedar.Value
	idSet           cedar.Value // the id alone
	fields          cedar.Set   // qualified
	recipients      cedar.Set
	registered      cedar.Value
}

// agreement is what decisions need of an Agreement.
type agreement struct {
	Agreement
	from, to  time.Time
	qualified map[string]bool
	recipient verify.Recipient
	// The same for Cedar.
	recipientRecord, record cedar.Value
}

// Parse reads a bundle strictly, resolves every reference in it, compiles its schemas and rules, and lets it
// pass only if the rules keep the hard promises of the policy (see gate.go). Errors are *BundleError.
func Parse(raw []byte) (*Bundle, error) {
	b := &Bundle{raw: slices.Clone(raw)}
	if err := decodeDocument(raw, &b.doc); err != nil {
		return nil, err
	}
	sum, textSum := sha256.Sum256(raw), sha256.Sum256([]byte(b.doc.Text.Body))
	b.sha256, b.textSHA256 = hex.EncodeToString(sum[:]), hex.EncodeToString(textSum[:])

	if err := b.compileCollections(); err != nil {
		return nil, err
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	var err error
	if b.engine, err = newEngine(b.doc.Cedar); err != nil {
		return nil, err
	}
	if err := b.compile(); err != nil {
		return nil, err
	}
	if err := b.gate(); err != nil {
		return nil, err
	}
	return b, nil
}

// SHA256 returns the hex SHA-256 of the bundle's bytes.
func (b *Bundle) SHA256() string { return b.sha256 }

// TextSHA256 returns the hex SHA-256 of the policy text.
func (b *Bundle) TextSHA256() string { return b.textSHA256 }

// Raw returns the bytes that were parsed. The slice belongs to the caller.
func (b *Bundle) Raw() []byte { return slices.Clone(b.raw) }

// Document returns a copy of the bundle as it was written.
func (b *Bundle) Document() Document {
	var doc Document
	// It was decoded once; a failure now can only be a fault of ours.
	if err := json.Unmarshal(b.raw, &doc); err != nil {
		panic("policy: a parsed bundle does not decode")
	}
	return doc
}

// Operator returns the controller that this bundle belongs to.
func (b *Bundle) Operator() Operator { return b.doc.Operator }

// Text returns the privacy policy that people read.
func (b *Bundle) Text() Text { return b.doc.Text }

// Limits returns the budgets of a caller.
func (b *Bundle) Limits() Limits { return b.doc.Limits }

// Collection returns a collection's schema.
func (b *Bundle) Collection(name string) (*schema.Collection, bool) {
	c, ok := b.collections[name]
	if !ok {
		return nil, false
	}
	return c.schema, true
}

// Collections returns the names of the collections, sorted.
func (b *Bundle) Collections() []string { return slices.Sorted(maps.Keys(b.collections)) }

// Caller returns a registered caller.
func (b *Bundle) Caller(id string) (Caller, bool) {
	c, ok := b.callers[id]
	if !ok {
		return Caller{}, false
	}
	return c.Caller, true
}

// Callers returns all callers, sorted by id.
func (b *Bundle) Callers() []Caller {
	out := slices.Clone(b.doc.Callers)
	slices.SortFunc(out, func(x, y Caller) int { return strings.Compare(x.ID, y.ID) })
	return out
}

// Purpose returns a registered purpose. Its slices and map belong to the caller.
func (b *Bundle) Purpose(id string) (Purpose, bool) {
	p, ok := b.purposes[id]
	if !ok {
		return Purpose{}, false
	}
	return clonePurpose(p.Purpose), true
}

// Purposes returns all purposes, sorted by id.
func (b *Bundle) Purposes() []Purpose {
	out := make([]Purpose, 0, len(b.purposes))
	for _, id := range slices.Sorted(maps.Keys(b.purposes)) {
		out = append(out, clonePurpose(b.purposes[id].Purpose))
	}
	return out
}

// ConsentTerms are what a consent to a purpose covers when the person agrees to it as registered.
type ConsentTerms struct {
	Purpose    string
	IRI        string
	Fields     []string // qualified names, sorted
	Recipients []string // caller ids, sorted: own callers, and partners whose agreement lists the purpose
}

// ConsentTerms returns what to record in a new consent. The second result is false when the purpose is
// unknown or its ground is not consent.
func (b *Bundle) ConsentTerms(purposeID string) (ConsentTerms, bool) {
	p, ok := b.purposes[purposeID]
	if !ok || p.Ground != verify.GroundConsent {
		return ConsentTerms{}, false
	}
	t := p.terms
	t.Fields, t.Recipients = slices.Clone(t.Fields), slices.Clone(t.Recipients)
	return t, true
}

func clonePurpose(p Purpose) Purpose {
	p.Callers, p.Modes = slices.Clone(p.Callers), slices.Clone(p.Modes)
	p.Fields = maps.Clone(p.Fields)
	for k, v := range p.Fields {
		p.Fields[k] = slices.Clone(v)
	}
	return p
}

// pathOf turns the pointer of a decoding error into a path.
func pathOf(err error) string {
	var ptr jsontext.Pointer
	var sem *json.SemanticError
	var syn *jsontext.SyntacticError
	switch {
	case errors.As(err, &sem):
		ptr = sem.JSONPointer
	case errors.As(err, &syn):
		ptr = syn.JSONPointer
	}
	return strings.ReplaceAll(strings.TrimPrefix(string(ptr), "/"), "/", ".")
}
