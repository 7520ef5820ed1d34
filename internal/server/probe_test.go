package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/syncgram/keyward/api"
)

// What is not a question to this node is answered 400, and what is too large is not read.
func TestProbeRoute(t *testing.T) {
	f := newFixture(t)
	header := http.Header{"Content-Type": {"application/json"}}
	for name, tt := range map[string]struct {
		body   string
		status int
		code   api.Code
	}{
		"empty":     {`{}`, 400, api.InvalidRequest},
		"nonsense":  {`{"master_key_id":"m1","box":"AAAA"}`, 400, api.InvalidRequest},
		"no object": {`[]`, 400, api.InvalidRequest},
		"too large": {`{"box":"` + strings.Repeat("A", maxBody) + `"}`, 413, api.BodyTooLarge},
	} {
		got := f.do(ask{method: "POST", url: f.verification + "/v1/probe", header: header, body: tt.body})
		got.refused(t, tt.status, tt.code, map[bool]string{true: "box"}[name == "empty" || name == "nonsense"])
	}
}
