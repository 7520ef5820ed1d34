package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/secretfile"
)

// reach is the flags by which a command gets to a running server. With the server's own settings
// in the environment nothing else is needed.
type reach struct {
	innerListeners

	CredentialFile string `setting:"" type:"path" help:"File with the token of your credential in its first line. By default the first plain token of the credentials file that has the scope." placeholder:"FILE"`
	ServerCAFile   string `setting:"" name:"server-ca-file" type:"path" help:"Certificate authorities (PEM) of the server, instead of the system's. By default the server's own certificate is also trusted where its file is known." placeholder:"FILE"`
	ServerName     string `setting:"" help:"Name that the server's certificate must be good for, when that is not the host that is connected to." placeholder:"NAME"`
	ClientCertFile string `setting:"" type:"path" help:"Client certificate (PEM), for a listener that asks for one. By default the server's own." placeholder:"FILE"`
	ClientKeyFile  string `setting:"" type:"path" help:"Key of the client certificate (PEM)." placeholder:"FILE"`
}

// connection is the flags of every command that talks to a running server's admin listener.
type connection struct {
	Server string `setting:"" help:"Admin listener of the server; by default where --admin-listen and the TLS settings say." placeholder:"URL"`
	reach
}

// verifyConnection is the flags of a command that talks to the verification listener.
type verifyConnection struct {
	VerifyServer string `setting:"" help:"Verification listener of the server; by default where --verify-listen and the TLS settings say." placeholder:"URL"`
	reach
}

// client speaks to one listener.
type client struct {
	base  string
	token func(method string) string // empty = none
	http  http.Client

	header http.Header // sent with every request, besides what each has; may be nil
}

// quick bounds a call that answers at once, such as a read or an organization change.
const quick = 45 * time.Second

// open returns a client of the admin listener.
func (c *connection) open() (*client, error) {
	return c.client("--server (KEYWARD_SERVER)", c.Server, c.AdminListen, func(method string) access.Scope {
		if method == http.MethodGet || method == http.MethodHead {
			return access.Read
		}
		return access.Operate
	})
}

// open returns a client of the verification listener.
func (c *verifyConnection) open(need func(method string) access.Scope) (*client, error) {
	return c.client("--verify-server (KEYWARD_VERIFY_SERVER)", c.VerifyServer, c.VerifyListen, need)
}

func needVerify(string) access.Scope { return access.Verify }

// client returns a client of the listener at a URL, which a flag gave, or else where the server's
// settings say. need is the scope that a method needs; nil = no credential is read or sent.
func (r *reach) client(flag, address string, listen listenAddress, need func(method string) access.Scope) (*client, error) {
	here := address == ""
	if here {
		var err error
		if address, err = r.here(listen); err != nil {
			return nil, wrong("%s: %w", flag, err)
		}
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, wrong("%s: must be http://host:port or https://host:port", flag)
	}
	cl := &client{base: u.Scheme + "://" + u.Host}
	if cl.token, err = r.tokens(need); err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if u.Scheme == "https" {
		if config, err = r.tls(here, u.Hostname()); err != nil {
			return nil, err
		}
	}
	cl.http = http.Client{
		Transport:     &http.Transport{TLSClientConfig: config}, // no proxy: secrets travel here
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return cl, nil
}

// here is the URL at which this machine reaches a listener.
func (r *reach) here(listen listenAddress) (string, error) {
	host, port, err := net.SplitHostPort(string(listen))
	if err != nil || port == "0" {
		return "", errors.New("is required, because the settings do not say where the server listens")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http"
	if r.TLSCertFile != "" {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

// tokens returns the token for each method: the one of --credential-file, or what the server's own
// file has in plain.
func (r *reach) tokens(need func(method string) access.Scope) (func(method string) string, error) {
	const own = "--credential-file (KEYWARD_CREDENTIAL_FILE)"
	if need == nil {
		return func(string) string { return "" }, nil
	}
	if r.CredentialFile != "" {
		data, err := secretfile.Read(r.CredentialFile)
		if err != nil {
			return nil, wrong("%s: %w", own, err)
		}
		lines := secretLines(data)
		if len(lines) == 0 {
			return nil, wrong("%s: %s holds no token", own, r.CredentialFile)
		}
		fields := strings.Fields(lines[0]) // the token alone, or a line of a credentials file
		return func(string) string { return fields[len(fields)-1] }, nil
	}
	if r.CredentialsFile == "" {
		return func(string) string { return "" }, nil
	}
	all, err := r.credentials()
	if err != nil {
		return nil, wrong("%s: %w", credentialsFlag, err)
	}
	return func(method string) string { return all.Plain(need(method)) }, nil
}

// tls is the configuration of a client. Of a server whose own certificate is known here, that
// certificate is trusted, and the name that it is for is expected, whatever address is connected to.
func (r *reach) tls(here bool, host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: r.ServerName}
	var err error
	switch {
	case r.ServerCAFile != "":
		if config.RootCAs, err = readPool(r.ServerCAFile); err != nil {
			return nil, wrong("--server-ca-file (KEYWARD_SERVER_CA_FILE): %w", err)
		}
	case here:
		if config.RootCAs, err = rootsWith(r.TLSCertFile); err != nil {
			return nil, wrong("--tls-cert-file (KEYWARD_TLS_CERT_FILE): %w", err)
		}
	}
	if here && r.ServerName == "" {
		if config.ServerName, err = nameOf(r.TLSCertFile, host); err != nil {
			return nil, wrong("--tls-cert-file (KEYWARD_TLS_CERT_FILE): %w", err)
		}
	}
	if (r.ClientCertFile == "") != (r.ClientKeyFile == "") {
		return nil, wrong("--client-cert-file (KEYWARD_CLIENT_CERT_FILE) goes with --client-key-file (KEYWARD_CLIENT_KEY_FILE)")
	}
	cert, key, flag := r.ClientCertFile, r.ClientKeyFile, "--client-cert-file (KEYWARD_CLIENT_CERT_FILE)"
	if cert == "" && r.InternalClientCAFile != "" {
		cert, key, flag = r.TLSCertFile, r.TLSKeyFile, "--tls-cert-file (KEYWARD_TLS_CERT_FILE)"
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, wrong("%s: %w", flag, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// nameOf returns the name to expect of the certificate in a file when host is connected to: the
// host itself, which is empty here, unless the certificate is for other names alone.
func nameOf(path, host string) (string, error) {
	cert, err := readCertificate(path)
	switch {
	case err != nil:
		return "", err
	case cert.VerifyHostname(host) == nil:
		return "", nil
	case len(cert.DNSNames) > 0:
		return strings.Replace(cert.DNSNames[0], "*", "keyward", 1), nil
	case len(cert.IPAddresses) > 0:
		return cert.IPAddresses[0].String(), nil
	}
	return "", nil
}

// readCertificate reads the first certificate of a file.
func readCertificate(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

// readPool reads certificate authorities.
func readPool(path string) (*x509.CertPool, error) { return addToPool(x509.NewCertPool(), path) }

// rootsWith returns the system's certificate authorities with those of a file; nil, which means the system's, without one.
func rootsWith(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	return addToPool(pool, path)
}

func addToPool(pool *x509.CertPool, path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	return pool, nil
}

// answerError is a refusal of the server.
type answerError struct {
	status int
	api.Problem
}

func (e *answerError) Error() string {
	switch {
	case e.Code == api.InternalTokenRequired:
		return "the server asks for a credential: name a file with its token by --credential-file (KEYWARD_CREDENTIAL_FILE)"
	case e.Detail == "":
		return fmt.Sprintf("the server answered %d; is this the right listener of Keyward?", e.status)
	}
	return e.Detail
}

// unreachableError means that no answer came.
type unreachableError struct {
	base string
	err  error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("no answer from %s: %v; is the server running, and is this where it listens?", e.base, e.err)
}

func (e *unreachableError) Unwrap() error { return e.err }

// call sends a request with body as JSON, if it is not nil, and reads the answer into answer.
func (c *client) call(ctx context.Context, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, content)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return &unreachableError{c.base, err}
	}
	if resp.StatusCode/100 != 2 {
		e := &answerError{status: resp.StatusCode}
		_ = json.Unmarshal(data, &e.Problem) // not a problem document: the status has to do
		return e
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("%s did not answer as Keyward does", c.base)
	}
	return nil
}

func (c *client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(req.Header, c.header)
	if token := c.token(method); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, &unreachableError{c.base, err}
	}
	return resp, nil
}
