package api

// CreateKey is the body of POST /api/v1/auth/api-keys (C6–C9, C15).
type CreateKey struct {
	KeyName        string  `json:"key_name"`
	ExpiresInDays  *int64  `json:"expires_in_days,omitempty"`
	IdempotencyKey *string `json:"idempotency_key,omitempty"`
	Env            *string `json:"env,omitempty"`
	Description    *string `json:"description,omitempty"`
}

// RollKey is the optional body of POST /api/v1/auth/api-keys/{api_key_id}/roll (C24).
type RollKey struct {
	OverlapSeconds *int64  `json:"overlap_seconds,omitempty"`
	KeyName        *string `json:"key_name,omitempty"`
	ExpiresInDays  *int64  `json:"expires_in_days,omitempty"`
	IdempotencyKey *string `json:"idempotency_key,omitempty"`
	Description    *string `json:"description,omitempty"`
}

// RevokeKey is the optional body of POST /api/v1/auth/api-keys/{api_key_id}/revoke (C21).
type RevokeKey struct {
	Reason *string `json:"reason,omitempty"`
}

// IssuedKey answers create and roll, and is the only body that ever holds a
// secret (C10, C24). Times are RFC 3339 UTC.
type IssuedKey struct {
	APIKeyID  string  `json:"api_key_id"`
	Key       string  `json:"key"`
	KeyName   string  `json:"key_name"`
	CreatedAt string  `json:"created_at"`
	ExpiresAt *string `json:"expires_at"`
	Env       string  `json:"env"`
	Hint      string  `json:"hint"`
	Replaces  string  `json:"replaces,omitempty"`
}

// KeyList answers GET /api/v1/auth/api-keys (C18). HasMore and NextCursor are
// present only when the request had a limit.
type KeyList struct {
	Keys       []ListedKey `json:"keys"`
	HasMore    *bool       `json:"has_more,omitempty"`
	NextCursor *string     `json:"next_cursor,omitempty"`
}

// ListedKey is one key without its secret (C18–C20).
type ListedKey struct {
	APIKeyID   string  `json:"api_key_id"`
	KeyName    string  `json:"key_name"`
	IsActive   bool    `json:"is_active"`
	CreatedAt  string  `json:"created_at"`
	LastUsedAt *string `json:"last_used_at"`
	ExpiresAt  *string `json:"expires_at"`
	Env        string  `json:"env"`
	Hint       string  `json:"hint"`
	Status     string  `json:"status"`
	RevokedAt  *string `json:"revoked_at"`
	CreatedBy  string  `json:"created_by"`

	Description *string `json:"description"`
}

// RevokedKey answers revoke (C21).
type RevokedKey struct {
	Status   string `json:"status"`
	APIKeyID string `json:"api_key_id"`
}

// Problem is every error answer, application/problem+json (RFC 9457, C25).
type Problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      Code   `json:"code"`
	RequestID string `json:"request_id"`
	Param     string `json:"param,omitempty"`

	ActiveAPIKeyID string `json:"active_api_key_id,omitempty"` // with active_key_exists (C12)
	ActiveEnv      string `json:"active_env,omitempty"`        // with active_key_exists (C12)
	APIKeyID       string `json:"api_key_id,omitempty"`        // with idempotency_result_gone (C16)
}

// VerifyKey is the body of POST /v1/verify (V1).
type VerifyKey struct {
	Key                string `json:"key"`
	ConnectedAccountID string `json:"connected_account_id,omitempty"`
	Env                string `json:"env,omitempty"`
	MinRevision        int64  `json:"min_revision,omitempty"`
}

// Verdict answers POST /v1/verify (V1, V5). Reason is "valid" when Valid is true.
type Verdict struct {
	Valid              bool    `json:"valid"`
	Reason             string  `json:"reason"`
	APIKeyID           string  `json:"api_key_id,omitempty"`
	OrganizationID     string  `json:"organization_id,omitempty"`
	Env                string  `json:"env,omitempty"`
	KeyName            string  `json:"key_name,omitempty"`
	ExpiresAt          *string `json:"expires_at,omitempty"`
	ConnectedAccountID string  `json:"connected_account_id,omitempty"`
	PaymentsEnabled    *bool   `json:"payments_enabled,omitempty"`
}

// Introspection answers POST /v1/introspect (RFC 7662 section 2.2, V4). When Active is false
// nothing else is set, and the body is {"active":false} exactly. Times are seconds since 1970.
type Introspection struct {
	Active             bool   `json:"active"`
	Sub                string `json:"sub,omitempty"`        // the organization
	ClientID           string `json:"client_id,omitempty"`  // the key
	TokenType          string `json:"token_type,omitempty"` // "Bearer"
	Env                string `json:"env,omitempty"`
	IssuedAt           int64  `json:"iat,omitempty"`
	Expires            int64  `json:"exp,omitempty"` // 0 = never
	ConnectedAccountID string `json:"connected_account_id,omitempty"`
	PaymentsEnabled    *bool  `json:"payments_enabled,omitempty"`
}

// PutOrganization is the body of PUT /v1/organizations/{id} (O1). A member left
// out takes its default, because PUT replaces.
type PutOrganization struct {
	Name                 *string `json:"name,omitempty"`
	ParentOrganizationID *string `json:"parent_organization_id,omitempty"`
	PaymentsEnabled      *bool   `json:"payments_enabled,omitempty"`
	CurrentEnv           *string `json:"current_env,omitempty"`
	IsActive             *bool   `json:"is_active,omitempty"`
	Force                *bool   `json:"force,omitempty"`
}

// Organization answers the organization routes (O1).
type Organization struct {
	OrganizationID       string  `json:"organization_id"`
	Name                 string  `json:"name"`
	ParentOrganizationID *string `json:"parent_organization_id"`
	PaymentsEnabled      bool    `json:"payments_enabled"`
	CurrentEnv           string  `json:"current_env"`
	IsActive             bool    `json:"is_active"`
	CreatedAt            string  `json:"created_at"`
	UpdatedAt            string  `json:"updated_at"`
}

// OrganizationList answers GET /v1/organizations.
type OrganizationList struct {
	Organizations []Organization `json:"organizations"`
	HasMore       bool           `json:"has_more"`
	NextCursor    *string        `json:"next_cursor"`
}

// AuditEntry is one management act (P8). Entries are chained: Hash covers the
// entry and the hash before it.
type AuditEntry struct {
	Sequence       int64  `json:"sequence"`
	At             string `json:"at"`
	Actor          string `json:"actor"`
	Action         string `json:"action"`
	OrganizationID string `json:"organization_id,omitempty"`
	TargetID       string `json:"target_id,omitempty"`
	Outcome        string `json:"outcome"`
	Detail         string `json:"detail,omitempty"`
	RemoteAddress  string `json:"remote_address,omitempty"`
	RequestID      string `json:"request_id,omitempty"`
	Revision       int64  `json:"revision"`
	Hash           string `json:"hash"`
}

// AuditList answers GET /v1/audit, oldest first.
type AuditList struct {
	Entries      []AuditEntry `json:"entries"`
	HasMore      bool         `json:"has_more"`
	NextSequence int64        `json:"next_sequence"`
}

// AuditVerification answers POST /v1/audit/verify.
type AuditVerification struct {
	Intact   bool     `json:"intact"`
	Entries  int64    `json:"entries"`
	Sequence int64    `json:"sequence"`
	Hash     string   `json:"hash"`
	Findings []string `json:"findings"`
}

// Reseal answers POST /v1/master-key/rotate.
type Reseal struct {
	MasterKeyID      string   `json:"master_key_id"`
	RowsResealed     int64    `json:"rows_resealed"`
	AuditResealed    int64    `json:"audit_entries_resealed"`
	KeptAnswers      int64    `json:"kept_answers_under_retired_keys"`
	RetireableKeyIDs []string `json:"retireable_master_key_ids"`
}

// ProbeQuestion is the body of POST /v1/probe, by which nodes ask each other.
type ProbeQuestion struct {
	MasterKeyID string `json:"master_key_id"`
	Box         string `json:"box"` // base64
}

// ProbeAnswer answers it.
type ProbeAnswer struct {
	Verdict string `json:"verdict"`
	MAC     string `json:"mac"` // base64
}

// Check is one finding of GET /v1/status, which `keyward doctor` prints.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warn, fail
	Detail string `json:"detail"`
}

// Status answers GET /v1/status.
type Status struct {
	Version  string  `json:"version"`
	Database string  `json:"database"`
	Revision int64   `json:"revision"`
	Keys     int     `json:"keys"`
	Checks   []Check `json:"checks"`
}

// Node is one serving node, as the database knows it.
type Node struct {
	NodeID   string `json:"node_id"`
	Address  string `json:"address"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	Revision int64  `json:"revision"` // acknowledged; -1 = none yet
	Lag      int64  `json:"lag"`      // how many revisions that is behind

	LeaseSeconds      float64 `json:"lease_seconds"`
	RenewedSecondsAgo float64 `json:"renewed_seconds_ago"`
	Self              bool    `json:"self"` // the node that answers
}

// NodeList answers GET /v1/nodes, which `keyward nodes` prints.
type NodeList struct {
	Revision int64  `json:"revision"`
	Nodes    []Node `json:"nodes"`
}
