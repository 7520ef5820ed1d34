package door

import (
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/verify"
)

// Asked is what a request that wants to pass carries: every value of each header.
type Asked struct {
	Authorization, APIKey, ConnectedAccount []string
}

// AccountRule is what a route demands of X-Connected-Account-ID.
type AccountRule uint8

// The rules.
const (
	AccountAllowed AccountRule = iota
	AccountRequired
	AccountForbidden
)

// Rules is what a proxy's configuration demands for a route beyond an accepted key. The zero value demands nothing.
type Rules struct {
	Environment keys.Environment // empty = either
	MinRevision int64            // the least revision a verdict may rest on; 0 = any
	Account     AccountRule
}

// Authorize decides whether a request may pass (V2, V3). decide asks for a verdict and counts it; its error is what
// is answered when there is none. The verdict is valid when err is nil.
func Authorize(a Asked, rules Rules, decide func(verify.Request) (verify.Verdict, error)) (verify.Verdict, error) {
	secret, ok := credential.Secret(a.Authorization, a.APIKey)
	if !ok {
		return verify.Verdict{}, unauthorized()
	}
	r := verify.Request{
		Secret: secret, ConnectedAccountID: credential.Account(a.ConnectedAccount),
		Environment: rules.Environment, MinRevision: rules.MinRevision,
	}
	detail := "The connected account is not one of this API key's organization."
	// A route's rule is broken only by a key that is accepted: so it is asked of the verdict, which counts no use then (V6).
	switch {
	case rules.Account == AccountRequired && r.ConnectedAccountID == "":
		r.ConnectedAccountID, detail = credential.NotAnAccount, "This route needs X-Connected-Account-ID."
	case rules.Account == AccountForbidden && r.ConnectedAccountID != "":
		r.ConnectedAccountID, detail = credential.NotAnAccount, "This route is for the API key's own organization: leave X-Connected-Account-ID out."
	}
	verdict, err := decide(r)
	switch {
	case err != nil:
		return verify.Verdict{}, err
	case verdict.Reason == keys.ConnectedAccountForbidden:
		return verify.Verdict{}, &keys.Error{Code: api.ConnectedAccount, Param: "X-Connected-Account-ID", Detail: detail}
	case !verdict.Valid():
		return verify.Verdict{}, unauthorized()
	}
	return verdict, nil
}

// unauthorized is the one answer to every credential that is not accepted, whatever the reason (V2).
func unauthorized() error {
	return &keys.Error{Code: api.InvalidToken, Detail: "A valid API key is required: Authorization: Bearer <key>, the key as the Basic user name, or X-API-Key."}
}

// IdentityHeaders are the headers, in canonical form, by which whoever is behind a proxy learns who asks.
var IdentityHeaders = [...]string{
	"X-Keyward-Organization-Id", "X-Keyward-Environment", "X-Keyward-Key-Id", "X-Keyward-Connected-Account-Id", "X-Keyward-Payments-Enabled",
}

// Identity returns the values of IdentityHeaders, empty ones too.
func Identity(v *verify.Verdict) [len(IdentityHeaders)]string {
	payments := "false"
	if v.PaymentsEnabled {
		payments = "true"
	}
	return [...]string{v.OrganizationID, string(v.Environment), v.KeyID, v.ConnectedAccountID, payments}
}
