//go:build !failpoints

package server

import "net/http"

// writeIssued writes the body that holds a secret, in one piece. The client may be gone; there is nobody
// left to tell.
func writeIssued(w http.ResponseWriter, body []byte) { _, _ = w.Write(body) }
