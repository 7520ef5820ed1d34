package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
)

var (
	challenge = []string{door.Challenge}
	// A client that authenticated by Basic is told Basic (RFC 6749 section 5.2).
	challengeClient = []string{door.Challenge, `Basic realm="keyward"`}
)

// problem answers an error (C25, RFC 9457).
func (x *exchange) problem(err error) {
	p := door.ProblemOf(err, x.requestID)
	x.code, x.cause = p.Code, p.Cause
	var rejection *keys.Error
	if x.reason == "" && errors.As(err, &rejection) {
		x.reason = rejection.Reason
	}
	h := x.Header()
	if p.Status == http.StatusRequestEntityTooLarge || p.Status == http.StatusRequestHeaderFieldsTooLarge {
		h.Set("Connection", "close") // the rest of the request is not worth reading
	}
	if x.nginx {
		h[statusHeader] = []string{strconv.Itoa(p.Status)}
		if p.Status != http.StatusUnauthorized {
			p.Status = http.StatusForbidden
		}
	}
	if p.Status == http.StatusUnauthorized {
		h["Www-Authenticate"] = challenge
		if x.route.auth == oauthClient {
			h["Www-Authenticate"] = challengeClient
		}
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	body, err := json.Marshal(p.Problem)
	if err != nil {
		x.cause = errors.Join(p.Cause, err)
		x.WriteHeader(http.StatusInternalServerError)
		return
	}
	h["Content-Type"] = problemJSON
	x.WriteHeader(p.Status)
	_, _ = x.Write(body) // the client is gone; there is nobody left to tell
}
