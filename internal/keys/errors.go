package keys

import (
	"errors"
	"fmt"
	"time"

	"github.com/syncgram/keyward/api"
)

// Error is a refusal with a stable code. Detail says what to do next, in words that
// may leave the system; it never holds a value the caller sent.
type Error struct {
	Code       api.Code
	Detail     string
	Param      string        // the member, query parameter or header at fault, if one is
	RetryAfter time.Duration // > 0 with rate_limited, idempotency_in_progress, unavailable

	KeyID       string      // the active key (C12) or the key that is gone (C16)
	Environment Environment // of the active key (C12)

	Reason string // more for the log; it never leaves the system
}

func (e *Error) Error() string {
	if e.Param != "" {
		return fmt.Sprintf("%s (%s): %s", e.Code, e.Param, e.Detail)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Detail)
}

// Invalid returns the refusal of one field's value (C6–C9).
func Invalid(param, detail string) *Error {
	return &Error{Code: api.InvalidRequest, Param: param, Detail: detail}
}

// ErrNotFound is what a Store answers for a row that is not there.
var ErrNotFound = errors.New("keys: no such row")

// ErrOutcomeUnknown is what a Store answers when it cannot tell whether a commit took
// effect: the connection broke while it ran, or the database said so. The caller must answer
// 503 and nothing else; asking again is safe (C23).
var ErrOutcomeUnknown = errors.New("keys: the outcome of the write is not known")

// ErrTampered is what a Store answers when the sealed state of the whole database does
// not open: nothing is written on top of it.
var ErrTampered = errors.New("keys: the database was changed by somebody else")

// ErrTaken is what a Store answers when a unique index refuses a row.
var ErrTaken = errors.New("keys: another row holds that place")
