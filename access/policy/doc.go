// Package policy is the operator's privacy policy as a machine carries it out: one versioned bundle that
// holds the text, the registered purposes, the collections, the callers, the agreements and the Cedar rules,
// and the one decision made from it: may this caller do this, for this purpose, to these fields, now?
//
// It holds no storage, no clock and no network, so that the broker, which decides, and pdaudit, which decides
// again years later from the recorded bytes, run the same code.
//
// # What it must never do
//
//   - Allow by Go code alone. Every allow is an answer of Cedar to a request that was validated against the
//     bundle's schema; any error while validating or evaluating is a denial. Go code only computes why not.
//   - Let an answer depend on the subject before caller, purpose, mode and fields are settled. A caller
//     without rights gets the same decision for a subject that exists, never existed or was erased.
//   - Hold or repeat a value of a person. A decision names fields, purposes and evidence; names that the
//     caller supplied and the bundle does not know are given back as positions, never as text.
//
// # The three grounds
//
// A purpose names its ground, and the ground says which evidence must be shown:
//
//   - consent: a live consent of this person that names the purpose, the fields and the recipient. The newest
//     event counts: a consent older than a withdrawal for the same purpose and recipient is dead.
//   - service: the registration of the purpose in this bundle, for callers of our own; an agreement in force
//     that lists the purpose and the fields, for partners.
//   - law: an order approved by two people, or a rights request. Modelled in the Cedar schema and rules, and
//     refused by Decide with ReasonLawNotAvailable until orders and rights requests exist.
//
// Selling is forbidden above all grounds; a recipient who is a third party gets data by consent or law only.
//
// # Names of fields
//
// Inside a collection a field has its plain name ("email"). Where fields of several collections meet, in
// consents and in Cedar's context, it is qualified: "profile.email" ([Qualify]). So a consent to a name in
// the profile is never one to the name in the passport. [Bundle.ConsentTerms] gives the qualified names.
package policy
