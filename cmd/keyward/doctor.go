package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/seal"
)

type doctorCmd struct {
	connection
	format
	PublicURL     string `setting:"" name:"public-url" help:"Base URL of the public listener, to check it too." placeholder:"URL"`
	ExtAuthz      string `setting:"" name:"extauthz-address" help:"Address of the listener for Envoy, to check it too; over TLS when --server is https." placeholder:"HOST:PORT"`
	MasterKeyFile string `setting:"" type:"path" help:"A master key file to check here." placeholder:"FILE"`
	TLSCertFile   string `setting:"" name:"tls-cert-file" type:"path" help:"A certificate (PEM) to check here." placeholder:"FILE"`
}

// Help implements kong.HelpProvider.
func (doctorCmd) Help() string {
	return `The server checks its database's durability settings, its clock and its master key file; the command adds what it sees from where it runs. The exit code is 1 when a check fails; a warning is none.

Example:

    keyward doctor --public-url http://127.0.0.1:8080`
}

// Words of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

// listenerPatience bounds the check of a listener beside the internal one.
const listenerPatience = 10 * time.Second

// Limits of a clock and of a certificate's remaining life.
const (
	mostSkew        = 5 * time.Second // the header Date has whole seconds
	leastCertifcate = 14 * 24 * time.Hour
)

// Run checks and prints.
func (c *doctorCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	checks := c.remote(ctx, cl)
	if c.PublicURL != "" {
		checks = append(checks, c.public(ctx, cl))
	}
	if c.ExtAuthz != "" {
		checks = append(checks, checkExtAuthz(ctx, c.ExtAuthz, cl))
	}
	if c.MasterKeyFile != "" {
		checks = append(checks, checkMasterKeyFile(c.MasterKeyFile))
	}
	if c.TLSCertFile != "" {
		checks = append(checks, checkCertificate(c.TLSCertFile, time.Now()))
	}
	if err := c.show(t, checks, func() error {
		rows := make([][]cell, len(checks))
		for i, k := range checks {
			rows[i] = []cell{{k.Status, map[string]style{checkOK: green, checkWarn: yellow, checkFail: red}[k.Status]}, {text: k.Name}, {text: k.Detail}}
		}
		return t.table([]string{"", "CHECK", "FOUND"}, rows)
	}); err != nil {
		return err
	}
	for _, k := range checks {
		if k.Status == checkFail {
			return &exitError{code: exitFailed}
		}
	}
	return nil
}

// remote asks the server.
func (c *doctorCmd) remote(ctx context.Context, cl *client) []api.Check {
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	internal := api.Check{Name: "internal listener", Status: checkOK, Detail: cl.base}
	resp, err := cl.do(ctx, http.MethodGet, "/livez", nil)
	if err != nil {
		internal.Status, internal.Detail = checkFail, err.Error()
		return []api.Check{internal}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	resp.Body.Close()
	checks := []api.Check{internal, checkClock(resp.Header.Get("Date"), time.Now())}
	var s api.Status
	if err := cl.call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return append(checks, api.Check{Name: "status", Status: checkFail, Detail: err.Error()})
	}
	checks = append(checks, api.Check{Name: "server", Status: checkOK, Detail: fmt.Sprintf("version %s on %s, %d keys, revision %d", s.Version, s.Database, s.Keys, s.Revision)})
	return append(checks, s.Checks...)
}

func checkClock(date string, now time.Time) api.Check {
	k := api.Check{Name: "server's clock", Status: checkOK}
	at, err := http.ParseTime(date)
	if err != nil {
		k.Status, k.Detail = checkWarn, "the server did not say its time"
		return k
	}
	skew := at.Sub(now).Round(time.Second)
	k.Detail = fmt.Sprintf("%+ds from this machine's", int(skew.Seconds()))
	if skew.Abs() > mostSkew {
		k.Status, k.Detail = checkWarn, k.Detail+": run NTP on both"
	}
	return k
}

// public checks that the public listener serves its own routes and none of the internal ones.
func (c *doctorCmd) public(ctx context.Context, cl *client) api.Check {
	ctx, cancel := context.WithTimeout(ctx, listenerPatience)
	defer cancel()
	k := api.Check{Name: "public listener", Status: checkOK, Detail: c.PublicURL}
	other := *cl
	other.base, other.token = strings.TrimRight(c.PublicURL, "/"), "" // the internal token stays inside
	var document struct {
		OpenAPI string `json:"openapi"`
	}
	if err := other.call(ctx, http.MethodGet, "/openapi.json", nil, &document); err != nil || document.OpenAPI == "" {
		k.Status, k.Detail = checkFail, "does not serve /openapi.json"
		if err != nil {
			k.Detail += ": " + err.Error()
		}
		return k
	}
	var answered *answerError
	if err := other.call(ctx, http.MethodGet, "/readyz", nil, nil); !errors.As(err, &answered) || answered.status != http.StatusNotFound {
		k.Status, k.Detail = checkFail, "serves internal routes: it must not be the internal listener, nor may a proxy join the two"
	}
	return k
}

// checkExtAuthz asks what Envoy asks: whether the listener is ready, and about a request without a key, which must be refused for
// that and for nothing else.
func checkExtAuthz(ctx context.Context, address string, cl *client) api.Check {
	ctx, cancel := context.WithTimeout(ctx, listenerPatience)
	defer cancel()
	k := api.Check{Name: "listener for Envoy", Status: checkFail}
	how, trust := "no gRPC in the clear there", insecure.NewCredentials()
	if strings.HasPrefix(cl.base, "https://") {
		how, trust = "no gRPC over TLS there", credentials.NewTLS(cl.http.Transport.(*http.Transport).TLSClientConfig.Clone())
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(trust), grpc.WithNoProxy())
	if err != nil {
		k.Detail = err.Error()
		return k
	}
	defer conn.Close()
	health, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: authv3.Authorization_ServiceDesc.ServiceName})
	switch {
	case err != nil:
		why, _, _ := strings.Cut(status.Convert(err).Message(), "\n") // another server's answer may follow
		k.Detail = how + ": " + why
		return k
	case health.Status != healthv1.HealthCheckResponse_SERVING:
		k.Detail = "not ready"
		return k
	}
	if cl.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+cl.token)
	}
	answer, err := authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: http.MethodGet, Path: "/"}},
	}})
	var problem api.Problem
	switch denied := answer.GetDeniedResponse(); {
	case err != nil:
		k.Detail = "a check was not answered: " + status.Convert(err).Message()
	case denied == nil:
		k.Detail = "a request without a key passes"
	case json.Unmarshal([]byte(denied.GetBody()), &problem) != nil:
		k.Detail = "is not Keyward's"
	case problem.Code != api.InvalidToken:
		k.Detail = (&answerError{int(denied.GetStatus().GetCode()), problem}).Error()
	default:
		k.Status, k.Detail = checkOK, address
	}
	return k
}

func checkMasterKeyFile(path string) api.Check {
	k := api.Check{Name: "master key file here", Status: checkOK}
	ring, err := seal.Load(path)
	if err != nil {
		k.Status, k.Detail = checkFail, err.Error()
		return k
	}
	k.Detail = fmt.Sprintf("%s, first key %s, %d more", path, ring.Wanted(), len(ring.KeyIDs())-1)
	return k
}

func checkCertificate(path string, now time.Time) api.Check {
	k := api.Check{Name: "certificate here", Status: checkFail}
	data, err := os.ReadFile(path)
	if err != nil {
		k.Detail = err.Error()
		return k
	}
	block, _ := pem.Decode(data)
	if block == nil {
		k.Detail = path + " holds no certificate in PEM form"
		return k
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		k.Detail = path + ": " + err.Error()
		return k
	}
	left := cert.NotAfter.Sub(now)
	k.Detail = "good until " + cert.NotAfter.UTC().Format(time.DateOnly)
	switch {
	case left <= 0 || now.Before(cert.NotBefore):
		k.Detail = "not good now: from " + cert.NotBefore.UTC().Format(time.DateOnly) + " to " + cert.NotAfter.UTC().Format(time.DateOnly)
	case left < leastCertifcate:
		k.Status = checkWarn
	default:
		k.Status = checkOK
	}
	return k
}
