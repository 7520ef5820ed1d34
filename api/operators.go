package api

// UpdateKey is the body of PATCH /api/v1/auth/api-keys/{api_key_id} (C30). An empty description
// removes it, as null does.
type UpdateKey struct {
	KeyName     *string `json:"key_name,omitempty"`
	Description *string `json:"description,omitempty"`
}

// UpdateOrganization is the body of PATCH /v1/organizations/{id} (O2). A member left out is left as
// it is. On the wire a null name or parent removes it.
type UpdateOrganization struct {
	Name                 *string `json:"name,omitempty"`
	ParentOrganizationID *string `json:"parent_organization_id,omitempty"`
	PaymentsEnabled      *bool   `json:"payments_enabled,omitempty"`
	CurrentEnv           *string `json:"current_env,omitempty"`
	IsActive             *bool   `json:"is_active,omitempty"`
	Force                *bool   `json:"force,omitempty"`
}

// DeletedOrganization answers DELETE /v1/organizations/{id} (O2).
type DeletedOrganization struct {
	Status         string `json:"status"`
	OrganizationID string `json:"organization_id"`
}

// OperatorKey is one key of any organization (O3).
type OperatorKey struct {
	ListedKey
	OrganizationID string `json:"organization_id"`
}

// OperatorKeyList answers GET /v1/keys (O3). LeftOut counts the rows of the page that failed
// authentication: they are nobody's keys.
type OperatorKeyList struct {
	Keys       []OperatorKey `json:"keys"`
	HasMore    bool          `json:"has_more"`
	NextCursor *string       `json:"next_cursor"`
	LeftOut    int           `json:"left_out"`
}

// LookUpKey is the body of POST /v1/keys/lookup (O3).
type LookUpKey struct {
	Key string `json:"key"`
}

// KeyFilter selects keys of any organization (O3, O4). A member left out selects all.
type KeyFilter struct {
	OrganizationID *string `json:"organization_id,omitempty"`
	CreatedBy      *string `json:"created_by,omitempty"`
	Hint           *string `json:"hint,omitempty"`
	Status         *string `json:"status,omitempty"`
	Env            *string `json:"env,omitempty"`
	CreatedBefore  *string `json:"created_before,omitempty"`
}

// RevokeKeys is the body of POST /v1/keys/revoke (O4): a filter or ids.
type RevokeKeys struct {
	Filter *KeyFilter `json:"filter,omitempty"`
	IDs    []string   `json:"ids,omitempty"`
	Reason string     `json:"reason,omitempty"`
	DryRun bool       `json:"dry_run,omitempty"`
}

// What a RevokeLine says of the whole; a line about one key has revoked, already_revoked,
// not_found, undecided or would_revoke.
const (
	RevokeStarted = "started"
	RevokeDone    = "done"
	RevokeDryRun  = "dry_run"
	RevokeFailed  = "failed"
)

// RevokeLine is one line of the answer to POST /v1/keys/revoke (O4). The first says how many keys
// there are, then one says of each key what became of it, and the last how it ended.
type RevokeLine struct {
	Status         string `json:"status"`
	APIKeyID       string `json:"api_key_id,omitempty"`
	OrganizationID string `json:"organization_id,omitempty"`
	Done           *int   `json:"done,omitempty"`
	Total          *int   `json:"total,omitempty"`

	Revoked        *int     `json:"revoked,omitempty"`
	AlreadyRevoked *int     `json:"already_revoked,omitempty"`
	NotFound       *int     `json:"not_found,omitempty"`
	Undecided      *int     `json:"undecided,omitempty"`
	LeftOut        *int     `json:"left_out,omitempty"`
	Revision       int64    `json:"revision,omitempty"`
	Error          *Problem `json:"error,omitempty"`
}
