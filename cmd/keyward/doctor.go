package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	outerListeners
	VerifyServer  string `setting:"" help:"Verification listener of the server; by default where --verify-listen and the TLS settings say." placeholder:"URL"`
	PublicURL     string `setting:"" name:"public-url" help:"Base URL of the public listener. By default it is checked where --listen says, unless --server says where the server is." placeholder:"URL"`
	ExtAuthz      string `setting:"" name:"extauthz-address" help:"Address of the listener for Envoy; by default where --extauthz-listen says. Over TLS when the verification listener is https." placeholder:"HOST:PORT"`
	MasterKeyFile string `setting:"" type:"path" help:"A master key file to check here." placeholder:"FILE"`
}

// Help implements kong.HelpProvider.
func (doctorCmd) Help() string {
	return `The server checks its database's durability settings, its clock and its master key file; the command adds what it sees from where it runs. With the server's own settings it finds the server by itself. The exit code is 1 when a check fails; a warning is none.

Example:

    keyward doctor --public-url http://127.0.0.1:8080`
}

// Words of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

// listenerPatience bounds the check of a listener beside the admin one.
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
	verification, err := c.client("--verify-server (KEYWARD_VERIFY_SERVER)", c.VerifyServer, c.VerifyListen, needVerify)
	if err != nil {
		return err
	}
	checks := append(c.remote(ctx, cl), c.verification(ctx, verification))
	if c.PublicURL != "" || c.Server == "" {
		public, err := c.client("--public-url (KEYWARD_PUBLIC_URL)", c.PublicURL, c.Listen, nil) // the credential stays inside
		if err != nil {
			return err
		}
		checks = append(checks, c.public(ctx, public))
	}
	if address, err := c.extAuthzAddress(); err != nil {
		return err
	} else if address != "" {
		checks = append(checks, checkExtAuthz(ctx, address, verification))
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
	admin := api.Check{Name: "admin listener", Status: checkOK, Detail: cl.base}
	resp, err := cl.do(ctx, http.MethodGet, "/livez", nil)
	if err != nil {
		admin.Status, admin.Detail = checkFail, err.Error()
		return []api.Check{admin}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	resp.Body.Close()
	checks := []api.Check{admin, checkClock(resp.Header.Get("Date"), time.Now())}
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

// verification checks that the verification listener is ready, and is one.
func (c *doctorCmd) verification(ctx context.Context, cl *client) api.Check {
	ctx, cancel := context.WithTimeout(ctx, listenerPatience)
	defer cancel()
	k := api.Check{Name: "verification listener", Status: checkFail}
	if err := cl.call(ctx, http.MethodGet, "/readyz", nil, nil); err != nil {
		k.Detail = err.Error()
		return k
	}
	// No credential is needed to see that the route is there, and takes another method.
	var answered *answerError
	if err := cl.call(ctx, http.MethodGet, "/v1/verify", nil, nil); !errors.As(err, &answered) || answered.status != http.StatusMethodNotAllowed {
		k.Detail = "does not serve /v1/verify: it is another listener"
		return k
	}
	k.Status, k.Detail = checkOK, cl.base
	return k
}

// extAuthzAddress is where Envoy's listener is to be checked; empty = nowhere.
func (c *doctorCmd) extAuthzAddress() (string, error) {
	if c.ExtAuthz != "" || c.ExtAuthzListen == "" {
		return c.ExtAuthz, nil
	}
	address, err := c.here(c.ExtAuthzListen)
	if err != nil {
		return "", wrong("--extauthz-address (KEYWARD_EXTAUTHZ_ADDRESS): %w", err)
	}
	_, address, _ = strings.Cut(address, "://")
	return address, nil
}

// public checks that the public listener serves its own routes and none of the others.
func (c *doctorCmd) public(ctx context.Context, cl *client) api.Check {
	ctx, cancel := context.WithTimeout(ctx, listenerPatience)
	defer cancel()
	k := api.Check{Name: "public listener", Status: checkOK, Detail: cl.base}
	var document struct {
		OpenAPI string `json:"openapi"`
	}
	if err := cl.call(ctx, http.MethodGet, "/openapi.json", nil, &document); err != nil || document.OpenAPI == "" {
		k.Status, k.Detail = checkFail, "does not serve /openapi.json"
		if err != nil {
			k.Detail += ": " + err.Error()
		}
		return k
	}
	var answered *answerError
	if err := cl.call(ctx, http.MethodGet, "/readyz", nil, nil); !errors.As(err, &answered) || answered.status != http.StatusNotFound {
		k.Status, k.Detail = checkFail, "serves routes of another listener: it must not be one of those, nor may a proxy join them"
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
	if token := cl.token(http.MethodPost); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
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
	cert, err := readCertificate(path)
	if err != nil {
		k.Detail = err.Error()
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
