package api

import _ "embed"

// OpenAPI is openapi.yaml, the contract for every language.
//
//go:embed openapi.yaml
var OpenAPI []byte
