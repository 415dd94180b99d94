// Package defaultpolicy carries the default policy bundle: the files of this directory, as policy.LoadDir of
// access/policy reads them. It is what `pdvault dev` starts with and what an operator copies and edits.
//
// It must never hold a value of a person, a secret, or code that decides anything.
package defaultpolicy

import "embed"

// FS holds bundle.json, policy.md, broker.cedarschema, broker.cedar and collections/*.json.
//
//go:embed bundle.json policy.md broker.cedarschema broker.cedar collections/*.json
var FS embed.FS
