// Package door holds what doors of every protocol share, so that a verdict means the same through each: how a request id is
// taken from a request and a secret found where none may be, what a route may demand, and what is answered.
// request.go is what is taken, authorize.go the decision about a request that wants to pass, problem.go the one map from
// errors to answers.
package door

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// MaxHeader is how many bytes the request line and the headers may have together.
const MaxHeader = 16 << 10

// HeadersTooLarge is the answer to more than MaxHeader.
func HeadersTooLarge() error {
	return &keys.Error{Code: api.HeadersTooLarge, Detail: "The request line and the headers must be at most 16 KiB together."}
}

// CommonHeaders are on every answer. Their values are never changed in place.
var CommonHeaders = [...]struct {
	Name   string // in canonical form
	Values []string
}{
	{"X-Content-Type-Options", []string{"nosniff"}},
	{"Cache-Control", []string{"no-store"}},
	{"Referrer-Policy", []string{"no-referrer"}},
	{"Content-Security-Policy", []string{"default-src 'none'; frame-ancestors 'none'"}},
}

// Throttle lets one event through each second.
type Throttle struct{ last atomic.Int64 }

// Allow reports whether this event is let through.
func (t *Throttle) Allow(now time.Time) bool {
	last := t.last.Load()
	return now.Unix() != last && t.last.CompareAndSwap(last, now.Unix())
}

// Method is a request's method for the log and the metrics, when it is a common one: any other text is the caller's own.
func Method(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	default:
		return "other"
	}
}

// RemoteAddress is a peer's address without its port.
func RemoteAddress(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// PanicText tells of a panic what may be logged. Its value may hold anything; what the runtime says of itself holds no data.
func PanicText(panicked any) string {
	if err, ok := panicked.(interface {
		error
		RuntimeError()
	}); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", panicked)
}
