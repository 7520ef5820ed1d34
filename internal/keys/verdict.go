package keys

import "time"

// Reason is a verdict: valid, or why not (V1). A verdict is a value; an error beside
// one means that none could be reached.
type Reason string

// The verdicts.
const (
	Valid                     Reason = "valid"
	Malformed                 Reason = "malformed"
	Unknown                   Reason = "unknown"
	Revoked                   Reason = "revoked"
	Expired                   Reason = "expired"
	OrganizationInactive      Reason = "organization_inactive"
	ConnectedAccountForbidden Reason = "connected_account_forbidden"
	EnvironmentMismatch       Reason = "environment_mismatch"
)

// Lifecycle is the part of a key that decides a verdict.
type Lifecycle struct {
	State     State
	ExpiresAt time.Time // zero = never
}

// Judge is the one rule that says whether a key is accepted at now, given whether its
// organization is switched on. Verification, list and replay all ask it. A revoked key stays
// revoked whatever else is true of it; expired means now ≥ ExpiresAt (C19).
func Judge(k Lifecycle, organizationActive bool, now time.Time) Reason {
	switch {
	case k.State == StateRevoked:
		return Revoked
	case k.State == StateExpired, !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt):
		return Expired
	case k.State != StateActive && k.State != StateOverlapping:
		return Unknown // a state this program does not know: fail closed
	case !organizationActive:
		return OrganizationInactive
	default:
		return Valid
	}
}

// Status is how list shows a key at now (C18): active, overlapping, expired or revoked.
func Status(k Lifecycle, now time.Time) State {
	switch Judge(k, true, now) {
	case Valid:
		return k.State
	case Expired:
		return StateExpired
	default:
		return StateRevoked
	}
}
