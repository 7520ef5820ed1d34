package extauthz

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	managerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"gopkg.in/yaml.v3"

	"github.com/syncgram/keyward/internal/credential"
)

// The examples for Envoy are bootstraps of the version of its API that this is built with: every field is known and within its bounds, also
// of the parts that are commented out, and what they demand of a route is understood here. Envoy itself was not run.
func TestV4EnvoyExamples(t *testing.T) {
	for name, want := range map[string]struct {
		extensions, prefixes []string
	}{
		"grpc.yaml": {extensions: []string{"keyward.connected_account", "keyward.env", "keyward.env", "keyward.strip_secret"}},
		"http.yaml": {prefixes: []string{"/v1/authorize:live", "/v1/authorize"}},
	} {
		text, err := os.ReadFile(filepath.Join("../../examples/envoy", name))
		if err != nil {
			t.Fatal(err)
		}
		for variant, text := range map[string]string{name: string(text), name + " with what is commented out": uncommented(string(text))} {
			t.Run(variant, func(t *testing.T) {
				b := new(bootstrapv3.Bootstrap)
				unmarshal(t, text, b)
				var filters []*extauthzv3.ExtAuthz
				extensions, prefixes := 0, 0
				every(t, b.ProtoReflect(), func(m proto.Message) {
					if v, ok := m.(interface{ ValidateAll() error }); ok {
						if err := v.ValidateAll(); err != nil {
							t.Errorf("%s: %v", m.ProtoReflect().Descriptor().FullName(), err)
						}
					}
					switch m := m.(type) {
					case *extauthzv3.ExtAuthz:
						filters = append(filters, m)
					case *managerv3.HttpConnectionManager:
						// Routes, and so their rules, are found by the path as the upstream reads it.
						if !m.GetNormalizePath().GetValue() || !m.MergeSlashes ||
							m.PathWithEscapedSlashesAction != managerv3.HttpConnectionManager_REJECT_REQUEST {
							t.Errorf("paths: %v, %t, %v",
								m.NormalizePath, m.MergeSlashes, m.PathWithEscapedSlashesAction)
						}
					case *mutationv3.HeaderMutation:
						checkRemoved(t, m)
					case *extauthzv3.CheckSettings:
						extensions += len(m.ContextExtensions)
						if _, err := readRules(m.ContextExtensions); err != nil {
							t.Error(err)
						}
					case *extauthzv3.HttpService:
						if prefixes++; m.PathPrefix != "/v1/authorize" && m.PathPrefix != "/v1/authorize:live" && m.PathPrefix != "/v1/authorize:test" {
							t.Errorf("prefix %q", m.PathPrefix)
						}
					}
				})
				if extensions != len(want.extensions) || prefixes != len(want.prefixes) || len(filters) != 1 {
					t.Fatalf("%d extensions, %d prefixes, %d filters", extensions, prefixes, len(filters))
				}
				f := filters[0]
				if f.FailureModeAllow || f.StatusOnError.GetCode() != 503 || f.WithRequestBody != nil {
					t.Errorf("the filter: %v", f)
				}
				if f.GetGrpcService() != nil && (f.AllowedHeaders != nil || f.DisallowedHeaders != nil || !f.EncodeRawHeaders) {
					t.Error("Keyward does not see every header")
				}
			})
		}
	}
}

// checkRemoved demands that a client's header is removed just when it reads as one of Keyward's. Envoy matches the whole name, in lower case.
func checkRemoved(t *testing.T, m *mutationv3.HeaderMutation) {
	t.Helper()
	for _, mutation := range m.GetMutations().GetRequestMutations() {
		whole := regexp.MustCompile("^(?:" + mutation.GetRemoveOnMatch().GetKeyMatcher().GetSafeRegex().GetRegex() + ")$")
		for _, name := range []string{"x-keyward-key-id", "x-keyward-", "x.keyward.key.id", "x_keyward_environment", "x!keyward~key|id", "x-keywardly", "x-keyward", "x-api-key", "my-x-keyward-key-id"} {
			if whole.MatchString(name) != credential.IsIdentity(name) {
				t.Errorf("%s: removed: %t", name, whole.MatchString(name))
			}
		}
	}
}

// uncommented is text with those comments that are YAML: a dash or a key behind the #.
func uncommented(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		indent, comment, found := strings.Cut(line, "# ")
		body := strings.TrimSpace(comment)
		isYAML := strings.HasPrefix(body, "- ") || strings.HasPrefix(body, `"@type"`) || strings.HasSuffix(body, ":") && !strings.Contains(body, " ") ||
			strings.Contains(body, ": ") && !strings.Contains(strings.SplitN(body, ":", 2)[0], " ")
		if found && strings.TrimSpace(indent) == "" && indent != "" && isYAML && !strings.HasPrefix(body, "Health") {
			line = indent + comment
		}
		out.WriteString(line)
	}
	return out.String()
}

// unmarshal reads YAML as Envoy does, by way of JSON. A field that is not known is an error.
func unmarshal(t *testing.T, text string, into proto.Message) {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// every visits m and every message in it, inside an Any too.
func every(t *testing.T, m protoreflect.Message, visit func(proto.Message)) {
	t.Helper()
	if packed, ok := m.Interface().(*anypb.Any); ok {
		inside, err := packed.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		m = inside.ProtoReflect()
	}
	visit(m.Interface())
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				every(t, v.Message(), visit)
				return true
			})
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				every(t, v.List().Get(i).Message(), visit)
			}
		case !f.IsMap() && !f.IsList() && f.Message() != nil:
			every(t, v.Message(), visit)
		}
		return true
	})
}
