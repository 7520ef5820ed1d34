package doors

import (
	"fmt"
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// connectEnvoy opens what an Envoy has to each node: a gRPC channel.
func (p *platform) connectEnvoy(node *keywardtest.Process) authv3.AuthorizationClient {
	p.t.Helper()
	for _, line := range node.Log("listening") {
		if line["listener"] == "extauthz" {
			conn, err := grpc.NewClient(fmt.Sprint(line["address"]), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				p.t.Fatal(err)
			}
			p.t.Cleanup(func() { conn.Close() })
			return authv3.NewAuthorizationClient(conn)
		}
	}
	p.t.Fatal("a node does not listen for Envoy")
	return nil
}

// askEnvoy sends the check request that Envoy sends with encode_raw_headers, and does to the client's headers what the answer says.
func (p *platform) askEnvoy(r request, at int) (a answer, err error) {
	in := &authv3.AttributeContext_HttpRequest{Method: "POST", Path: "/v1/payments" + r.query, Host: "api.example", HeaderMap: &corev3.HeaderMap{}}
	upstream := http.Header{}
	for name, values := range r.header {
		for _, v := range values {
			in.HeaderMap.Headers = append(in.HeaderMap.Headers, &corev3.HeaderValue{Key: strings.ToLower(name), RawValue: []byte(v)})
			upstream.Add(name, v)
		}
	}
	attributes := &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: in}}
	if r.env != "" {
		attributes.ContextExtensions = map[string]string{"keyward.env": r.env}
	}
	ctx := metadata.AppendToOutgoingContext(p.t.Context(), "authorization", "Bearer "+p.token)
	out, err := p.envoy[at].Check(ctx, &authv3.CheckRequest{Attributes: attributes})
	if err != nil {
		return a, err
	}
	if denied := out.GetDeniedResponse(); denied != nil {
		return answer{word: fmt.Sprint(int(denied.GetStatus().GetCode()))}, nil
	}
	ok := out.GetOkResponse()
	for _, h := range ok.GetHeaders() {
		if h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			return a, fmt.Errorf("%s does not overwrite", h.GetHeader().GetKey())
		}
		upstream.Set(h.GetHeader().GetKey(), h.GetHeader().GetValue())
	}
	for _, name := range ok.GetHeadersToRemove() {
		upstream.Del(name)
	}
	for name := range upstream {
		if folded := strings.ReplaceAll(strings.ToLower(name), "_", "-"); strings.HasPrefix(folded, "x-keyward-") && strings.Contains(upstream.Get(name), "evil") {
			return a, fmt.Errorf("the client's %s reaches the upstream", name)
		}
	}
	a = answer{word: "200", accepted: true, identity: identityIn(upstream)}
	if data := out.GetDynamicMetadata(); data.GetFields()["organization_id"].GetStringValue() != a.identity.Organization {
		return a, fmt.Errorf("the dynamic metadata is another's: %v", structpb.NewStructValue(data))
	}
	return a, nil
}

// askEnvoyHTTP asks as Envoy's http_service does: the client's method, its path after the prefix, and the headers that the
// configuration lets through.
func (p *platform) askEnvoyHTTP(r request, at int) (a answer, err error) {
	prefix := "/v1/authorize"
	if r.env != "" {
		prefix += ":" + r.env
	}
	header := http.Header{}
	for _, name := range []string{"Authorization", "X-Api-Key", "X-Connected-Account-Id", "X-Request-Id"} {
		if values := r.header[name]; values != nil {
			header[name] = values
		}
	}
	header.Set("X-Internal-Token", p.token)
	resp, _, err := p.do("POST", p.nodes[at].Verification+prefix+"/v1/payments"+r.query, "", header)
	if err != nil {
		return a, err
	}
	a = answer{word: statusOf(resp), accepted: resp.StatusCode == 200}
	if a.accepted {
		a.identity = identityIn(resp.Header)
	}
	return a, nil
}
