package door

import (
	"errors"
	"net/http"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// problemKind is what a code is on the wire.
type problemKind struct {
	status int
	title  string
}

// problemKinds is the one map from codes to statuses (C25).
var problemKinds = map[api.Code]problemKind{
	api.InvalidToken:          {http.StatusUnauthorized, "Invalid token"},
	api.UserTokenRequired:     {http.StatusUnauthorized, "User token required"},
	api.InternalTokenRequired: {http.StatusUnauthorized, "Internal token required"},
	api.Forbidden:             {http.StatusForbidden, "Forbidden"},
	api.ConnectedAccount:      {http.StatusForbidden, "Connected account"},
	api.OrganizationInactive:  {http.StatusForbidden, "Organization inactive"},
	api.OrganizationUnknown:   {http.StatusForbidden, "Organization unknown"},
	api.InvalidRequest:        {http.StatusBadRequest, "Invalid request"},
	api.ActiveKeyExists:       {http.StatusBadRequest, "Active key exists"},
	api.UnsupportedMediaType:  {http.StatusUnsupportedMediaType, "Unsupported media type"},
	api.BodyTooLarge:          {http.StatusRequestEntityTooLarge, "Body too large"},
	api.HeadersTooLarge:       {http.StatusRequestHeaderFieldsTooLarge, "Headers too large"},
	api.RateLimited:           {http.StatusTooManyRequests, "Rate limited"},
	api.TooManyRequests:       {http.StatusTooManyRequests, "Too many requests"},
	api.IdempotencyKeyReused:  {http.StatusUnprocessableEntity, "Idempotency key reused"},
	api.IdempotencyInProgress: {http.StatusConflict, "Idempotent request in progress"},
	api.IdempotencyResultGone: {http.StatusConflict, "Idempotent result gone"},
	api.KeyNotFound:           {http.StatusNotFound, "API key not found"},
	api.KeyNotActive:          {http.StatusConflict, "API key not active"},
	api.MasterKeyMissing:      {http.StatusConflict, "Master key missing"},
	api.OrganizationNotFound:  {http.StatusNotFound, "Organization not found"},
	api.RouteNotFound:         {http.StatusNotFound, "Route not found"},
	api.MethodNotAllowed:      {http.StatusMethodNotAllowed, "Method not allowed"},
	api.Unavailable:           {http.StatusServiceUnavailable, "Unavailable"},
	api.Internal:              {http.StatusInternalServerError, "Internal error"},

	api.OrganizationExists:      {http.StatusPreconditionFailed, "Organization exists"},
	api.OrganizationHasKeys:     {http.StatusConflict, "Organization has keys"},
	api.OrganizationHasAccounts: {http.StatusConflict, "Organization has connected accounts"},
}

// problemType is the stable URI before a code in the member type (RFC 9457 section 3.1.1).
const problemType = "urn:keyward:problem:"

// retryUnavailable is how long a caller waits after a 503 that does not say.
const retryUnavailable = time.Second

// Challenge is the WWW-Authenticate of every 401 (C1, RFC 6750 section 3).
const Challenge = `Bearer error="invalid_token"`

// refusalOf returns what an error tells the caller, and the cause that only the log learns.
func refusalOf(err error) (refusal *keys.Error, cause error) {
	var unavailable *keys.Unavailable
	switch {
	case errors.As(err, &refusal):
		return refusal, nil
	case errors.As(err, &unavailable):
		refusal = &keys.Error{Code: api.Unavailable, Detail: "This could not be decided or completed just now. Ask again in a moment; repeating the request is safe."}
		var hint interface{ RetryAfter() time.Duration } // a cause that knows when to ask again
		if errors.As(unavailable.Err, &hint) {
			refusal.RetryAfter = hint.RetryAfter()
		}
		return refusal, unavailable.Err
	default:
		return &keys.Error{Code: api.Internal, Detail: "Something went wrong on our side. Quote the request id when you report it."}, err
	}
}

// Problem is the answer to an error (C25, RFC 9457).
type Problem struct {
	api.Problem
	RetryAfter int   // whole seconds; 0 = not said
	Cause      error // for the log alone
}

// ProblemOf returns what an error is answered with.
func ProblemOf(err error, requestID string) Problem {
	refusal, cause := refusalOf(err)
	kind, known := problemKinds[refusal.Code]
	if !known {
		kind = problemKinds[api.Internal]
	}
	p := Problem{Cause: cause, Problem: api.Problem{
		Type: problemType + string(refusal.Code), Title: kind.title, Status: kind.status,
		Detail: refusal.Detail, Code: refusal.Code, RequestID: requestID, Param: refusal.Param,
	}}
	retry := refusal.RetryAfter
	if kind.status == http.StatusServiceUnavailable {
		retry = max(retry, retryUnavailable)
	}
	if retry > 0 {
		p.RetryAfter = keys.RetrySeconds(retry)
	}
	switch refusal.Code {
	case api.ActiveKeyExists:
		p.ActiveAPIKeyID, p.ActiveEnv = refusal.KeyID, string(refusal.Environment)
	case api.IdempotencyResultGone:
		p.APIKeyID = refusal.KeyID
	}
	return p
}
