// Package api holds what crosses the wire: the JSON bodies of every route, the
// stable error codes, and the OpenAPI document that describes them. It imports
// the standard library alone, so that clients can use it without the server.
package api

// Code is the stable, machine-readable word in the member "code" of a problem
// (RFC 9457). Codes are never renamed.
type Code string

// The codes, each with the contract line it comes from.
const (
	InvalidToken          Code = "invalid_token"           // 401, C1
	UserTokenRequired     Code = "user_token_required"     // 401, C1
	Forbidden             Code = "forbidden"               // 403, R3
	ConnectedAccount      Code = "connected_account"       // 403, C3
	OrganizationInactive  Code = "organization_inactive"   // 403, C3
	OrganizationUnknown   Code = "organization_unknown"    // 403, C4
	InvalidRequest        Code = "invalid_request"         // 400, C6–C9
	UnsupportedMediaType  Code = "unsupported_media_type"  // 415, C6
	BodyTooLarge          Code = "body_too_large"          // 413, C6
	HeadersTooLarge       Code = "headers_too_large"       // 431
	ActiveKeyExists       Code = "active_key_exists"       // 400, C12
	RateLimited           Code = "rate_limited"            // 429, C14
	TooManyRequests       Code = "too_many_requests"       // 429, C32, C33
	IdempotencyKeyReused  Code = "idempotency_key_reused"  // 422, C16
	IdempotencyInProgress Code = "idempotency_in_progress" // 409, C16
	IdempotencyResultGone Code = "idempotency_result_gone" // 409, C16
	KeyNotFound           Code = "api_key_not_found"       // 404, C22
	KeyNotActive          Code = "api_key_not_active"      // 409, C24
	MasterKeyMissing      Code = "master_key_missing"      // 409, R10
	OrganizationNotFound  Code = "organization_not_found"  // 404, O1
	RouteNotFound         Code = "route_not_found"         // 404, C27
	MethodNotAllowed      Code = "method_not_allowed"      // 405, C27
	InternalTokenRequired Code = "internal_token_required" // 401, R3
	Unavailable           Code = "unavailable"             // 503, C5, C23
	Internal              Code = "internal"                // 500, C25

	OrganizationExists      Code = "organization_exists"                 // 412, O1
	OrganizationHasKeys     Code = "organization_has_keys"               // 409, O2
	OrganizationHasAccounts Code = "organization_has_connected_accounts" // 409, O2
)
