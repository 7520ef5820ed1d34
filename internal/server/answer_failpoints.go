//go:build failpoints

package server

import (
	"net/http"

	"github.com/syncgram/keyward/internal/failpoint"
)

// writeIssued writes the body that holds a secret in two pieces, so that a test can kill the process between them.
func writeIssued(w http.ResponseWriter, body []byte) {
	failpoint.Hit("answer.begun")
	_, _ = w.Write(body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
	failpoint.Hit("answer.half")
	_, _ = w.Write(body[len(body)/2:])
}
