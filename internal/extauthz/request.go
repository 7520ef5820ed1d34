package extauthz

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that lenient wraps
	"google.golang.org/grpc/mem"

	"github.com/syncgram/keyward/internal/credential"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/token"
)

// request is what a client's request carries that concerns the door.
type request struct {
	asked     door.Asked
	requestID []string
	original  []string // URLs that another proxy in front says it was asked for
	unwanted  []string // headers that must not reach the upstream
	method    string
	size      int // of the request line and the headers, near enough

	// Room for the values that a request normally has.
	room [4]string
}

// read takes r apart. Envoy sends the headers either as a map, repeated ones joined by commas, or one by one as they came
// (encode_raw_headers). Two credentials that were joined are refused as two are: no secret and no Basic credentials have a comma.
func (q *request) read(r *authv3.AttributeContext_HttpRequest) {
	q.asked.Authorization, q.asked.APIKey, q.asked.ConnectedAccount, q.requestID =
		q.room[0:0:1], q.room[1:1:2], q.room[2:2:3], q.room[3:3:4]
	q.method = r.GetMethod()
	q.size = len(q.method) + len(r.GetPath())
	for name, value := range r.GetHeaders() {
		q.header(name, value, nil)
	}
	for _, h := range r.GetHeaderMap().GetHeaders() {
		q.header(h.GetKey(), h.GetValue(), h.GetRawValue())
	}
}

// header notes one header. Its value is raw where there is one.
func (q *request) header(name, value string, raw []byte) {
	if strings.HasPrefix(name, ":") {
		return // the request line, which was counted
	}
	q.size += len(name) + len(value) + len(raw) + len(": \r\n")
	name = strings.ToLower(name) // as Envoy sends them anyway
	var values *[]string
	switch name {
	case "authorization":
		values = &q.asked.Authorization
	case "x-api-key":
		values = &q.asked.APIKey
	case "x-connected-account-id":
		values = &q.asked.ConnectedAccount
	case "x-request-id":
		values = &q.requestID
	case "x-original-uri", "x-original-url", "x-forwarded-uri":
		values = &q.original
	default:
		if unwanted(name) {
			q.unwanted = append(q.unwanted, name)
		}
		return
	}
	if len(raw) > 0 {
		value = string(raw)
	}
	*values = append(*values, value)
}

// unwanted reports whether a header that the door neither sets nor reads is taken for one that it does by what is behind the proxy.
func unwanted(name string) bool {
	if credential.IsIdentity(name) {
		return !isIdentity(name)
	}
	return credential.ReadsAs(name, "x-api-key") || credential.ReadsAs(name, "x-connected-account-id")
}

// secretInURL reports whether the URL the client asked for holds a secret. Envoy's path is the query's too.
func (q *request) secretInURL(f token.Format, r *authv3.AttributeContext_HttpRequest) bool {
	if door.HoldsSecret(f, r.GetPath()) || r.GetQuery() != "" && door.HoldsSecret(f, r.GetQuery()) {
		return true
	}
	for _, u := range q.original {
		if door.HoldsSecret(f, u) {
			return true
		}
	}
	return false
}

// rules is what an Envoy's configuration demands for a route, by context extensions.
type rules struct {
	door.Rules
	strip bool // the credential does not reach the upstream
}

// ruleError is a context extension that cannot be what was meant. Nothing passes the route until it is mended.
type ruleError struct{ extension, want string }

func (e *ruleError) Error() string {
	return fmt.Sprintf("the context extension %q %s", e.extension, e.want)
}

func isRuleError(err error) bool {
	var wrong *ruleError
	return errors.As(err, &wrong)
}

// readRules reads the extensions whose names begin with keyward. Others are somebody else's.
func readRules(extensions map[string]string) (r rules, err error) {
	for name, value := range extensions {
		word, ours := strings.CutPrefix(name, "keyward.")
		if !ours {
			if len(name) >= 7 && strings.EqualFold(name[:7], "keyward") {
				return r, &ruleError{name, "is not known here: it would be keyward.<rule>, in small letters"}
			}
			continue
		}
		switch word {
		case "env":
			if r.Environment = keys.Environment(value); value != string(keys.Live) && value != string(keys.Test) {
				return r, &ruleError{name, `must be "live" or "test"`}
			}
		case "connected_account":
			switch value {
			case "required":
				r.Account = door.AccountRequired
			case "forbidden":
				r.Account = door.AccountForbidden
			default:
				return r, &ruleError{name, `must be "required" or "forbidden"`}
			}
		case "min_revision":
			if r.MinRevision, err = strconv.ParseInt(value, 10, 64); err != nil || r.MinRevision < 0 {
				return r, &ruleError{name, "must be a whole number, 0 or more"}
			}
		case "strip_secret":
			if r.strip = value == "true"; !r.strip && value != "false" {
				return r, &ruleError{name, `must be "true" or "false"`}
			}
		default:
			return r, &ruleError{name, "is not known here"}
		}
	}
	return r, nil
}

// lenient is gRPC's codec for protobuf, but for a check request that does not decode: that becomes an empty one, which is denied, where
// gRPC would answer with an error of the call. One byte in a path that is not UTF-8 is enough to make such a message.
type lenient struct{}

var codec = encoding.GetCodecV2("proto")

func (lenient) Name() string                           { return codec.Name() }
func (lenient) Marshal(v any) (mem.BufferSlice, error) { return codec.Marshal(v) }
func (lenient) Unmarshal(data mem.BufferSlice, v any) error {
	err := codec.Unmarshal(data, v)
	if in, ok := v.(*authv3.CheckRequest); ok && err != nil {
		in.Reset()
		return nil
	}
	return err
}
