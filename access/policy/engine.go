package policy

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	cedarschema "github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// Names of types in the Cedar schema.
const (
	typeCaller   cedar.EntityType = "PD::Caller"
	typeSubject  cedar.EntityType = "PD::Subject"
	typeRecord   cedar.EntityType = "PD::Record"
	typeInstance cedar.EntityType = "PD::Instance"
	typeAction   cedar.EntityType = "PD::Action"
)

// errEngine is returned by ask when there is no answer to rely on. It is a denial and an alarm.
var errEngine = errors.New("policy: the rules gave no sound answer")

// engine is the rules, validated against their schema, in the form they are asked in.
type engine struct {
	validator *validate.Validator
	rules     cedar.PolicyMap
	byAction  map[cedar.String]ruleList // the rules whose scope can hold for the action
}

// ruleList is a list of rules in a fixed order: faster to walk than a map, and reasons come out sorted.
type ruleList []rule

type rule struct {
	id     cedar.PolicyID
	policy *cedar.Policy
}

// All satisfies cedar.PolicyIterator.
func (l ruleList) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, r := range l {
			if !yield(r.id, r.policy) {
				return
			}
		}
	}
}

// newEngine parses schema and rules and validates the rules in strict mode. Rules are named by @id.
func newEngine(text Cedar) (*engine, error) {
	var s cedarschema.Schema
	if err := s.UnmarshalCedar([]byte(text.Schema)); err != nil {
		return nil, &BundleError{Path: "cedar.schema", Reason: "does not parse", Err: err}
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, &BundleError{Path: "cedar.schema", Reason: "does not resolve", Err: err}
	}
	list, err := cedar.NewPolicyListFromBytes("broker.cedar", []byte(text.Policies))
	if err != nil {
		return nil, &BundleError{Path: "cedar.policies", Reason: "do not parse", Err: err}
	}
	e := &engine{validator: validate.New(resolved), rules: cedar.PolicyMap{}, byAction: map[cedar.String]ruleList{}}
	for i, p := range list {
		id := string(p.Annotations()["id"])
		at := fmt.Sprintf("cedar.policies[%d]", i)
		if !idPattern.MatchString(id) {
			return nil, bad("@id is missing or not an id", "%s", at)
		}
		if _, ok := e.rules[cedar.PolicyID(id)]; ok {
			return nil, bad("@id is repeated", "%s", at)
		}
		if err := e.validator.Policy(id, (*ast.Policy)(p.AST())); err != nil {
			return nil, &BundleError{Path: at, Reason: "does not fit the schema", Err: err}
		}
		e.rules[cedar.PolicyID(id)] = p
	}
	for uid, action := range resolved.Actions {
		if action.Entity.Parents.Len() > 0 {
			// Their members would have to be among the entities of each request, or a forbid on a group
			// would hold for nothing.
			return nil, bad("groups of actions are not taken", "cedar.schema")
		}
		if uid.Type != typeAction {
			return nil, bad("an action outside namespace PD", "cedar.schema")
		}
		e.byAction[uid.ID] = e.inScope(uid)
	}
	for _, a := range slices.Concat(readActions(), roleActions()) {
		if _, ok := e.byAction[cedar.String(a)]; !ok {
			return nil, &BundleError{Path: "cedar.schema", Reason: "lacks action " + a}
		}
	}
	return e, nil
}

// inScope returns the rules that can hold for an action, sorted by id, with their action scope taken off: it
// holds. Leaving out the others changes no answer: a rule whose scope does not hold is not satisfied and
// cannot err. Testing the scopes anew for each request took two fifths of the time of a decision.
func (e *engine) inScope(action cedar.EntityUID) ruleList {
	var l ruleList
	for _, id := range slices.Sorted(maps.Keys(e.rules)) {
		p := e.rules[id]
		switch scope := p.AST().Action.(type) {
		case ast.ScopeTypeEq:
			if scope.Entity != action {
				continue
			}
		case ast.ScopeTypeIn: // there are no groups, so this is equality
			if scope.Entity != action {
				continue
			}
		case ast.ScopeTypeInSet:
			if !slices.Contains(scope.Entities, action) {
				continue
			}
		case ast.ScopeTypeAll:
		default: // a kind we do not know keeps its scope
			l = append(l, rule{id, p})
			continue
		}
		scoped := *p.AST()
		scoped.Action = ast.ScopeTypeAll{}
		l = append(l, rule{id, cedar.NewPolicyFromAST(&scoped)})
	}
	return l
}

// ask validates a request and puts it to the rules. The ids returned are those of the deciding rules: the
// permits of an allow, the forbids of a denial, none when nothing permits. Entities must have been
// validated when they were made.
func (e *engine) ask(entities cedar.EntityMap, req cedar.Request) (bool, []string, error) {
	// The validator's errors quote the context, so they go no further.
	if err := e.validator.Request(req); err != nil {
		return false, nil, fmt.Errorf("%w: request does not fit the schema", errEngine)
	}
	decision, diag := cedar.Authorize(e.byAction[req.Action.ID], entities, req)
	// Cedar skips a rule that errs. A skipped forbid is an allow: so any error denies.
	if len(diag.Errors) > 0 {
		return false, nil, fmt.Errorf("%w: a rule cannot be evaluated", errEngine)
	}
	ids := make([]string, len(diag.Reasons))
	for i, r := range diag.Reasons {
		ids[i] = string(r.PolicyID)
	}
	return bool(decision), ids, nil
}
