package apitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
)

// closeAnswers closes every object schema that no request has. In the document they are open, so
// that clients ignore what they do not know (C28); a test wants to see a member that nobody described.
func closeAnswers(doc *openapi3.T) {
	requested := make(map[*openapi3.Schema]bool)
	for _, item := range doc.Paths.Map() {
		for _, operation := range item.Operations() {
			if operation.RequestBody == nil {
				continue
			}
			for _, media := range operation.RequestBody.Value.Content {
				requested[media.Schema.Value] = true
			}
		}
	}
	closed := false
	for _, schema := range doc.Components.Schemas {
		s := schema.Value
		if s.Type.Is("object") && !requested[s] && s.AdditionalProperties.Has == nil {
			s.AdditionalProperties.Has = &closed
		}
	}
}

// decodeLines decodes one JSON object a line. All but the last are checked here, the last is
// returned for the validator.
func decodeLines(
	body io.Reader, _ http.Header, schema *openapi3.SchemaRef, _ openapi3filter.EncodingFn,
) (any, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	var last any
	for line := range bytes.Lines(content) {
		if last != nil {
			if err := schema.Value.VisitJSON(last, openapi3.EnableJSONSchema2020()); err != nil {
				return nil, err
			}
		}
		if err := json.Unmarshal(line, &last); err != nil {
			return nil, fmt.Errorf("a line is not JSON: %w", err)
		}
	}
	if last == nil {
		return nil, errors.New("no line")
	}
	return last, nil
}
