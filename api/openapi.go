package api

import (
	"bytes"
	_ "embed"
)

//go:generate go run ../internal/apitest/genjson

// The document is written by hand in openapi.yaml; openapi.json is made from it.
var (
	//go:embed openapi.yaml
	openapiYAML []byte
	//go:embed openapi.json
	openapiJSON []byte
)

// YAML returns the OpenAPI 3.1 document of both listeners, as it is written (C28).
func YAML() []byte { return bytes.Clone(openapiYAML) }

// JSON returns the same document as JSON (C28).
func JSON() []byte { return bytes.Clone(openapiJSON) }
