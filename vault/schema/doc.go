// Package schema says what a record of a collection must look like, and how each of its fields is found,
// masked and normalised. A collection is a JSON Schema (2020-12) with annotations of ours; its top-level
// properties are the fields that are sealed, indexed and granted one by one.
//
// It holds no storage and no cryptography. It must never put a value of a person into an error: a violation
// is a JSON pointer made of names from the schema, and the keyword that was broken.
//
// # The dialect
//
// A schema is an object with additionalProperties false at every level, so that nothing undeclared is ever
// sealed. Each value has exactly one type and never null: a field is there or it is not. Of the vocabulary
// these keywords are taken and every other is refused: $schema, $defs, $ref (to "#/$defs/name" only), $comment,
// title, description, type, properties, required, additionalProperties, items, minItems, maxItems,
// uniqueItems, minLength, maxLength, pattern, format, enum, const, minimum, maximum, exclusiveMinimum,
// exclusiveMaximum, multipleOf.
//
// Annotations of a field:
//
//	x-pd-category     the kind of personal data, a term of DPV pd: ("pd:EmailAddress"); required
//	x-pd-index        unique | exact | trunc:N (8 to 128 bits); absent: the field cannot be looked up
//	x-pd-normalise    email | phone | text | none; absent: none
//	x-pd-mask         email | phone | name | last4 | year | redact; absent: redact
//	x-pd-retention    how long the field may be kept, an ISO 8601 duration
//	x-pd-sensitivity  normal | sensitive | special
package schema
