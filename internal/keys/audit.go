package keys

import "time"

// Action names an act in the audit log.
type Action string

// The actions. Each row that changes leaves one entry with its id as the target, so the
// log knows the latest revision of every row (see Key.Genuine).
const (
	ActCreate          Action = "key.create"
	ActExpire          Action = "key.expire" // an expired key gave up its slot
	ActRevoke          Action = "key.revoke"
	ActRoll            Action = "key.roll" // the key that was rolled; its successor has ActCreate
	ActReplay          Action = "key.replay"
	ActList            Action = "key.list" // refusals only: a list changes nothing
	ActGet             Action = "key.get"  // rejections only, as ActList
	ActUpdate          Action = "key.update"
	ActRevokeMany      Action = "key.revoke_many"  // of a whole run; each key has ActRevoke
	ActPutOrganization Action = "organization.put" // also a change of single members, and a deletion
	ActReseal          Action = "master_key.reseal"
	ActBackup          Action = "database.backup"
	ActProbeMint       Action = "probe.mint"
	ActProbeEnd        Action = "probe.end"
	ActUseCredential   Action = "credential.use" // denials only: a credential without the scope (O5)
)

// Done is the outcome of an act that took effect; a refused one has its error code.
const Done = "done"

// AuditEntry is one management act: who did what to which row, when, from where (P8).
type AuditEntry struct {
	Sequence       int64 // set by the store, without gaps from 1
	At             time.Time
	Actor          string // the principal's user, Operator.AuditActor, or "keyward" for what it does by itself
	Action         Action
	OrganizationID string
	TargetID       string // the key or organization acted on
	Outcome        string // Done or an error code
	Detail         string // e.g. the reason given with a revoke
	RemoteAddress  string
	RequestID      string
	Revision       int64 // of the write that changed TargetID; 0 when nothing changed

	Hash [32]byte // set by the store: covers the entry and the hash before it
}

// Sealed returns the bytes the chain covers, without Hash.
func (e *AuditEntry) Sealed() []byte {
	var b sealedBytes
	b.number(e.Sequence)
	b.time(e.At)
	b.text(e.Actor, string(e.Action), e.OrganizationID, e.TargetID, e.Outcome, e.Detail, e.RemoteAddress, e.RequestID)
	b.number(e.Revision)
	return b
}

// AuditReport is what a check of the whole log found.
type AuditReport struct {
	Entries  int64
	Sequence int64 // of the last entry
	Hash     [32]byte
	Findings []string // empty = intact; at most 100
}
