package extauthz

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// identity are the names of door.IdentityHeaders as Envoy writes them.
var identity = func() (names [len(door.IdentityHeaders)]string) {
	for i, name := range door.IdentityHeaders {
		names[i] = strings.ToLower(name)
	}
	return names
}()

func isIdentity(name string) bool { return slices.Contains(identity[:], name) }

// Messages that every answer shares. They are never changed.
var (
	passes       = &rpcstatus.Status{Code: int32(codes.OK)}
	unauthorized = &rpcstatus.Status{Code: int32(codes.Unauthenticated)}
	forbidden    = &rpcstatus.Status{Code: int32(codes.PermissionDenied)}

	noText = structpb.NewStringValue("")
	live   = structpb.NewStringValue(string(keys.Live))
	test   = structpb.NewStringValue(string(keys.Test))
	yes    = structpb.NewBoolValue(true)
	no     = structpb.NewBoolValue(false)
)

// allowed is the parts of an answer that lets a request pass, in one piece of memory.
type allowed struct {
	out     authv3.CheckResponse
	kind    authv3.CheckResponse_OkResponse
	ok      authv3.OkHttpResponse
	list    [len(door.IdentityHeaders)]*corev3.HeaderValueOption
	options [len(door.IdentityHeaders)]corev3.HeaderValueOption
	values  [len(door.IdentityHeaders)]corev3.HeaderValue
	data    structpb.Struct
	texts   [2]struct {
		value structpb.Value
		text  structpb.Value_StringValue
	}
}

// allow lets a request pass. Identity headers overwrite the client's own; those that are empty, and whatever else looks like one, are
// removed. Envoy removes after it has set, so no name is in both lists.
func allow(v *verify.Verdict, q *request, strip bool) *authv3.CheckResponse {
	a := new(allowed)
	a.ok.Headers = a.list[:0]
	a.ok.HeadersToRemove = q.unwanted
	if strip {
		a.ok.HeadersToRemove = append(a.ok.HeadersToRemove, "authorization", "x-api-key")
	}
	for i, value := range door.Identity(v) {
		if value == "" {
			a.ok.HeadersToRemove = append(a.ok.HeadersToRemove, identity[i])
			continue
		}
		a.values[i].Key, a.values[i].Value = identity[i], value
		a.options[i].Header, a.options[i].AppendAction = &a.values[i], corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		a.ok.Headers = append(a.ok.Headers, &a.options[i])
	}
	text := func(i int, s string) *structpb.Value {
		t := &a.texts[i]
		t.text.StringValue = s
		t.value.Kind = &t.text
		return &t.value
	}
	environment, payments, account := live, no, noText
	if v.Environment == keys.Test {
		environment = test
	}
	if v.PaymentsEnabled {
		payments = yes
	}
	if v.ConnectedAccountID != "" {
		account = structpb.NewStringValue(v.ConnectedAccountID)
	}
	a.data.Fields = map[string]*structpb.Value{
		"organization_id":      text(0, v.OrganizationID),
		"api_key_id":           text(1, v.KeyID),
		"environment":          environment,
		"connected_account_id": account,
		"payments_enabled":     payments,
	}
	a.kind.OkResponse = &a.ok
	a.out.Status, a.out.HttpResponse, a.out.DynamicMetadata = passes, &a.kind, &a.data
	return &a.out
}

// deny answers an error as the doors over HTTP do: the same status, headers and body (C25).
func (c *check) deny(err error) *authv3.CheckResponse {
	p := door.ProblemOf(err, c.requestID)
	c.status, c.code, c.cause = p.Status, p.Code, p.Cause
	body, err := json.Marshal(p.Problem)
	if err != nil {
		c.cause, body = errors.Join(c.cause, err), nil // what it says is denied without it
	}
	headers := append(make([]*corev3.HeaderValueOption, 0, len(common)+4), common...)
	headers = append(headers, overwrite("content-type", "application/problem+json"), overwrite("x-request-id", c.requestID))
	status := forbidden
	if p.Status == http.StatusUnauthorized {
		status = unauthorized
		headers = append(headers, overwrite("www-authenticate", door.Challenge))
	}
	if p.RetryAfter > 0 {
		headers = append(headers, overwrite("retry-after", strconv.Itoa(p.RetryAfter)))
	}
	return &authv3.CheckResponse{Status: status, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(p.Status)}, Headers: headers, Body: string(body),
	}}}
}

// common are the headers of every denial. They are never changed.
var common = func() (list []*corev3.HeaderValueOption) {
	for _, h := range door.CommonHeaders {
		list = append(list, overwrite(strings.ToLower(h.Name), h.Values[0]))
	}
	return list
}()

func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
