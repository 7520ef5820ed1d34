package probe

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/verify"
)

// A question goes to an address that a table names, and that may be somebody else's by now. So it
// carries no credential: it is a box that a holder of the master key alone makes or opens, and only
// for the node it is for. The answer is authenticated under the master key for that question.
// Another receiver learns nothing and can answer nothing; sent to that node again, it
// repeats a question about a dead secret.

// Bounds of a question.
const (
	maxBox      = 1 << 10         // bytes; a box has less than half of it
	questionAge = 5 * time.Minute // by the clocks of two machines
	nonceSize   = 32
)

// question is the content of a box.
type question struct {
	Key   string // the secret that is asked about
	Nonce []byte
	Asked int64 // seconds since 1970
}

// addressed is what a box and an answer are bound to: the database and the node.
func addressed(databaseID, nodeID string, more ...byte) []byte {
	var b []byte
	for _, s := range []string{databaseID, nodeID} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return append(b, more...)
}

// newQuestion returns the request for one node and the context of its answer.
func newQuestion(
	s seal.Signer,
	databaseID, nodeID, secret string,
	now time.Time,
) (body, context []byte, err error) {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails: crypto/rand ends the program first
	plain, err := json.Marshal(question{Key: secret, Nonce: nonce, Asked: now.Unix()})
	if err != nil {
		return nil, nil, err
	}
	box := s.SealProbe(plain, addressed(databaseID, nodeID))
	body, err = json.Marshal(
		api.ProbeQuestion{MasterKeyID: s.KeyID(), Box: base64.StdEncoding.EncodeToString(box)},
	)
	return body, addressed(databaseID, nodeID, nonce...), err
}

// Responder answers other nodes' questions.
type Responder struct {
	Ring *seal.Ring
	// Verify is the way that every request takes; (*verify.Verifier).Verify.
	Verify     func(ctx context.Context, r verify.Request) (verify.Verdict, error)
	NodeID     func() string // of the row this node has now; empty = none
	DatabaseID func() string
	Now        func() time.Time // nil = time.Now
}

// ErrNotAsked means that a box is no question to this node, made by another of this deployment a
// moment ago.
var ErrNotAsked = errors.New("probe: not a question to this node")

// verdictUndecided is the answer of a node that could not decide.
const verdictUndecided = "undecided"

// Answer opens a question, decides, and authenticates the verdict.
func (r *Responder) Answer(ctx context.Context, asked api.ProbeQuestion) (api.ProbeAnswer, error) {
	databaseID, nodeID := r.DatabaseID(), r.NodeID()
	if databaseID == "" || nodeID == "" || len(asked.Box) > base64.StdEncoding.EncodedLen(maxBox) {
		return api.ProbeAnswer{}, ErrNotAsked
	}
	box, err := base64.StdEncoding.DecodeString(asked.Box)
	if err != nil {
		return api.ProbeAnswer{}, ErrNotAsked
	}
	plain, err := r.Ring.OpenProbe(asked.MasterKeyID, box, addressed(databaseID, nodeID))
	if err != nil {
		return api.ProbeAnswer{}, ErrNotAsked
	}
	defer clear(plain)
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	var q question
	if json.Unmarshal(plain, &q) != nil || now().Sub(time.Unix(q.Asked, 0)).Abs() > questionAge {
		return api.ProbeAnswer{}, ErrNotAsked
	}
	verdict := verdictUndecided
	if v, err := r.Verify(ctx, verify.Request{Secret: q.Key}); err == nil {
		verdict = string(v.Reason)
	}
	mac, err := r.Ring.SealVerdict(
		asked.MasterKeyID,
		addressed(databaseID, nodeID, q.Nonce...),
		verdict,
	)
	return api.ProbeAnswer{Verdict: verdict, MAC: base64.StdEncoding.EncodeToString(mac)}, err
}

// read returns what an authentic answer says. Any other is an error.
func read(s seal.Signer, context []byte, a api.ProbeAnswer) (answer, error) {
	mac, err := base64.StdEncoding.DecodeString(a.MAC)
	if err != nil || !s.CheckVerdict(context, a.Verdict, mac) {
		return unreachable, errors.New(
			"its answer is not by the node in the table: is the address another machine's?",
		)
	}
	switch a.Verdict {
	case string(keys.Valid):
		return accepted, nil
	case verdictUndecided:
		return undecided, errors.New("it could not decide")
	}
	return refused, nil
}
