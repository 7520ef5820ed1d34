// Package apitest holds tests to the OpenAPI document: it watches requests and
// answers go by and fails the test when one does not fit (contract C28). Tests alone import it.
//
// What is checked of every exchange:
//   - the path, method and status are described; an answer to anything else is a problem document
//     with route_not_found or method_not_allowed (C27);
//   - the body and every described header of the answer fit their schemas, without a member more:
//     the document leaves them open for clients, and here they are closed;
//   - an answer described without a body has none;
//   - no header that carries meaning is sent undescribed;
//   - a request that got 2xx fits its parameters, body and security. One that does not may
//     be refused, and that is all that is asked of it.
package apitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"github.com/syncgram/keyward/api"
)

// TB is the part of testing.TB that failures are reported to.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
}

// Handler returns h with every exchange checked. The client sees the answer as h gave it.
func Handler(tb TB, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tb.Helper()
		asked, err := keepBody(&r.Body)
		if err != nil {
			http.Error(w, "apitest: the request body broke off", http.StatusBadRequest)
			return
		}
		request := r.Clone(context.WithoutCancel(r.Context()))
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		report(tb, request, asked, answer.Code, answer.Result().Header, answer.Body.Bytes())
		for name, values := range answer.Result().Header {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		w.Write(answer.Body.Bytes()) // an error means the client has gone
	})
}

// Transport returns base with every exchange checked. A nil base is http.DefaultTransport.
func Transport(tb TB, base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		tb.Helper()
		r = r.Clone(r.Context())
		asked, err := keepBody(&r.Body)
		if err != nil {
			return nil, err
		}
		request := r.Clone(context.WithoutCancel(r.Context()))
		response, err := base.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		answered, err := keepBody(&response.Body)
		if err != nil {
			return nil, err
		}
		report(tb, request, asked, response.StatusCode, response.Header, answered)
		return response, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// keepBody reads a body to its end and puts an equal one in its place.
func keepBody(body *io.ReadCloser) ([]byte, error) {
	if *body == nil || *body == http.NoBody {
		return nil, nil
	}
	content, err := io.ReadAll(*body)
	if closeErr := (*body).Close(); err == nil {
		err = closeErr
	}
	*body = io.NopCloser(bytes.NewReader(content))
	return content, err
}

// report names the exchange by method and path alone: a query or a body may hold a secret.
func report(tb TB, r *http.Request, asked []byte, status int, header http.Header, answered []byte) {
	tb.Helper()
	if err := check(r, asked, status, header, answered); err != nil {
		tb.Errorf("%s %s answered %d, which does not fit openapi.yaml: %s", r.Method, r.URL.Path, status, explain(err))
	}
}

// explain says where a value does not fit and by which keyword, without the value: the
// validator's own words repeat it, and it may be a secret.
func explain(err error) string {
	var schemaErr *openapi3.SchemaError
	if !errors.As(err, &schemaErr) {
		return err.Error()
	}
	var places []string
	var visit func(error)
	visit = func(err error) {
		var several openapi3.MultiError
		if errors.As(err, &several) {
			for _, one := range several {
				visit(one)
			}
			return
		}
		var at *openapi3.SchemaError
		if !errors.As(err, &at) {
			return
		}
		if at.Origin != nil {
			visit(at.Origin)
			return
		}
		place := "at /" + strings.Join(at.JSONPointer(), "/") + " by " + at.SchemaField
		if at.SchemaField == "additionalProperties" || at.SchemaField == "properties" || at.SchemaField == "required" {
			place += ", " + at.Reason // which names members, not values
		}
		if !slices.Contains(places, place) {
			places = append(places, place)
		}
	}
	visit(schemaErr)

	what := "the body does not fit"
	var request *openapi3filter.RequestError
	var response *openapi3filter.ResponseError
	switch {
	case errors.As(err, &request) && request.Parameter != nil:
		what = "it accepted a request whose parameter " + request.Parameter.Name + " does not fit"
	case errors.As(err, &request):
		what = "it accepted a request whose body does not fit"
	case errors.As(err, &response):
		what = response.Reason
	}
	return what + " " + strings.Join(places, "; ")
}

// Listener names one of the three listeners.
type Listener string

// The listeners.
const (
	Public       Listener = "public"
	Verification Listener = "verification"
	Admin        Listener = "admin"
)

// Route is one operation of the document on one listener. Path holds parameters as {name}, as a
// pattern of http.ServeMux does.
type Route struct {
	Method   string
	Path     string
	Listener Listener
}

// Routes returns every operation of the document, sorted by path and method. HEAD of a GET route
// and OPTIONS are listed only where they are operations of their own (C27, C28).
func Routes() []Route {
	var routes []Route
	for path, item := range document().Paths.Map() {
		for method := range item.Operations() {
			for _, l := range listenersOf(item) {
				routes = append(routes, Route{method, path, l})
			}
		}
	}
	slices.SortFunc(routes, func(a, b Route) int {
		return strings.Compare(a.Path+" "+a.Method+" "+string(a.Listener), b.Path+" "+b.Method+" "+string(b.Listener))
	})
	return routes
}

// ports are the default ports of the listeners whose paths have servers of their own.
var ports = map[string]Listener{"8081": Verification, "8082": Admin}

// listenersOf returns where a path is served: its servers say so, and a path without is public.
func listenersOf(item *openapi3.PathItem) (listeners []Listener) {
	if len(item.Servers) == 0 {
		return []Listener{Public}
	}
	for _, server := range item.Servers {
		_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
		listeners = append(listeners, ports[port])
	}
	return listeners
}

// document is the OpenAPI document, loaded once and valid, examples included.
var document = sync.OnceValue(func() *openapi3.T {
	doc, err := openapi3.NewLoader().LoadFromData(api.JSON())
	if err == nil {
		err = doc.Validate(context.Background(), openapi3.EnableExamplesValidation())
	}
	if err != nil {
		panic("apitest: openapi.json: " + err.Error())
	}
	for _, mediaType := range []string{"text/html", "text/css", "text/javascript"} {
		openapi3filter.RegisterBodyDecoder(mediaType, openapi3filter.PlainBodyDecoder)
	}
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", decodeLines)
	closeAnswers(doc)
	return doc
})

// meaningful are the headers that a client acts on: none of them is sent undescribed.
var meaningful = []string{"Location", "Retry-After", "Allow", "Www-Authenticate", "Idempotent-Replayed", "Set-Cookie"}

// undescribed names the component that describes an answer to what is not served, by status: that
// there is nothing here, or what came before that was found out (C27).
var undescribed = map[int]string{
	http.StatusBadRequest:                  "InvalidRequest",
	http.StatusUnauthorized:                "InternalUnauthorized",
	http.StatusForbidden:                   "CallerForbidden",
	http.StatusNotFound:                    "RouteNotFound",
	http.StatusMethodNotAllowed:            "MethodNotAllowed",
	http.StatusRequestHeaderFieldsTooLarge: "HeadersTooLarge",
	http.StatusInternalServerError:         "InternalError",
	http.StatusServiceUnavailable:          "Unavailable",
}

// check is nil when the exchange fits the document.
func check(r *http.Request, asked []byte, status int, header http.Header, answered []byte) error {
	doc := document()
	path, parameters := find(doc, r.URL)
	if path == "" {
		return checkUndescribed(r, status, header, answered)
	}
	item := doc.Paths.Value(path)
	operation := item.GetOperation(r.Method)
	if operation == nil && r.Method == http.MethodHead {
		operation = item.Get
	}
	if operation == nil && r.Method == http.MethodOptions && status < 300 {
		return checkOptions(status, header, answered)
	}
	if operation == nil || notServedHere(operation, status, answered) {
		return checkUndescribed(r, status, header, answered)
	}

	// A copy, because the validator reads the body and may set defaults.
	request := r.Clone(context.Background())
	request.Body = io.NopCloser(bytes.NewReader(asked))
	input := &openapi3filter.RequestValidationInput{
		Request:     request,
		PathParams:  parameters,
		QueryParams: r.URL.Query(),
		Route:       &routers.Route{Spec: doc, Path: path, PathItem: item, Method: r.Method, Operation: operation},
		Options:     &openapi3filter.Options{AuthenticationFunc: hasCredentials, SkipSettingDefaults: true, IncludeResponseStatus: true},
	}
	if status < 300 {
		if err := openapi3filter.ValidateRequest(context.Background(), input); err != nil {
			return fmt.Errorf("it accepted a request that does not fit: %w", err)
		}
	}
	response := operation.Responses.Status(status)
	if response == nil {
		return errors.New("the status is not described")
	}
	if err := checkPresence(r, response.Value, header, answered); err != nil {
		return err
	}
	return checkContent(input, response.Value, status, header, answered)
}

// checkContent checks the headers, and the body unless the answer is to HEAD.
func checkContent(input *openapi3filter.RequestValidationInput, response *openapi3.Response, status int, header http.Header, answered []byte) error {
	// The validator leaves HEAD and 304 alone, headers included, so it is shown a GET with
	// one response under a status it looks at.
	request := input.Request.Clone(context.Background())
	request.Method = http.MethodGet
	shown := *input
	shown.Request = request
	route := *input.Route
	operation := *route.Operation
	operation.Responses = openapi3.NewResponses(openapi3.WithStatus(http.StatusOK, &openapi3.ResponseRef{Value: response}))
	route.Operation = &operation
	shown.Route = &route
	return openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &shown,
		Status:                 http.StatusOK,
		Header:                 header,
		Body:                   io.NopCloser(bytes.NewReader(answered)),
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true,
			ExcludeResponseBody:   len(answered) == 0 && (input.Request.Method == http.MethodHead || status == http.StatusNotModified),
		},
	})
}

// checkPresence refuses what is sent undescribed: a meaningful header, or a body.
func checkPresence(r *http.Request, response *openapi3.Response, header http.Header, answered []byte) error {
	described := make(map[string]bool)
	for name := range response.Headers {
		described[http.CanonicalHeaderKey(name)] = true
	}
	for name := range header {
		if (slices.Contains(meaningful, name) || strings.HasPrefix(name, "X-Keyward-")) && !described[name] {
			return fmt.Errorf("the header %s is not described", name)
		}
	}
	if len(answered) > 0 && (len(response.Content) == 0 || r.Method == http.MethodHead) {
		return errors.New("a body where none is described")
	}
	return nil
}

// checkOptions checks the general answer to OPTIONS (C27).
func checkOptions(status int, header http.Header, answered []byte) error {
	switch {
	case status != http.StatusNoContent:
		return errors.New("OPTIONS answers 204")
	case header.Get("Allow") == "":
		return errors.New("the header Allow is missing")
	case header.Get("X-Request-Id") == "":
		return errors.New("the header X-Request-Id is missing")
	case len(answered) > 0:
		return errors.New("a body where none is described")
	}
	return nil
}

// checkUndescribed checks the answer to a path or method that is not served (C27).
func checkUndescribed(r *http.Request, status int, header http.Header, answered []byte) error {
	name, ok := undescribed[status]
	if !ok {
		return errors.New("the path or method is not described")
	}
	response := document().Components.Responses[name].Value
	if err := checkPresence(r, response, header, answered); err != nil {
		return err
	}
	return checkContent(&openapi3filter.RequestValidationInput{
		Request: r,
		Route:   &routers.Route{Spec: document(), Operation: &openapi3.Operation{}},
	}, response, status, header, answered)
}

// notServedHere reports whether the answer says that the path is served on the other listener.
func notServedHere(o *openapi3.Operation, status int, answered []byte) bool {
	return status == http.StatusNotFound &&
		(o.Responses.Status(status) == nil || bytes.Contains(answered, []byte(`"`+string(api.RouteNotFound)+`"`)))
}

// find returns the described path that u has, literal ones first, and its parameters; empty when
// there is none. Segments are compared decoded, as http.ServeMux does.
func find(doc *openapi3.T, u *url.URL) (path string, parameters map[string]string) {
	segments := strings.Split(u.EscapedPath(), "/")
candidates:
	for _, candidate := range doc.Paths.InMatchingOrder() {
		if before, ok := strings.CutSuffix(candidate, "{original_path}"); ok { // the one parameter that takes slashes, and may be empty
			if rest, ok := strings.CutPrefix(u.EscapedPath(), before); ok {
				return candidate, map[string]string{"original_path": "/" + rest} // the validator takes no empty one
			}
			continue
		}
		wanted := strings.Split(candidate, "/")
		if len(wanted) != len(segments) {
			continue
		}
		parameters := make(map[string]string)
		for i, w := range wanted {
			got, err := url.PathUnescape(segments[i])
			if err != nil {
				continue candidates
			}
			if name, isParameter := strings.CutPrefix(w, "{"); isParameter && got != "" {
				parameters[strings.TrimSuffix(name, "}")] = got
			} else if got != w {
				continue candidates
			}
		}
		return candidate, parameters
	}
	return "", nil
}

// hasCredentials checks that a request carries what a security scheme asks for, not whether it is good.
func hasCredentials(_ context.Context, in *openapi3filter.AuthenticationInput) error {
	header := in.RequestValidationInput.Request.Header
	scheme := in.SecurityScheme
	if scheme.Type == "apiKey" {
		if header.Get(scheme.Name) == "" {
			return fmt.Errorf("the header %s is missing", scheme.Name)
		}
		return nil
	}
	sent, credentials, _ := strings.Cut(header.Get("Authorization"), " ")
	if !strings.EqualFold(sent, scheme.Scheme) || credentials == "" {
		return fmt.Errorf("the header Authorization: %s is missing", scheme.Scheme)
	}
	return nil
}
