package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/syncgram/keyward/api"
)

// connection is the flags of every command that talks to a running server's internal listener.
type connection struct {
	Server            string `setting:"" default:"http://127.0.0.1:8081" help:"Internal listener of the server." placeholder:"URL"`
	InternalTokenFile string `setting:"" type:"path" help:"File with the listener's bearer token in its first line." placeholder:"FILE"`
	ServerCAFile      string `setting:"" name:"server-ca-file" type:"path" help:"Certificate authorities (PEM) of the server, instead of the system's." placeholder:"FILE"`
	ClientCertFile    string `setting:"" type:"path" help:"Client certificate (PEM), for a listener that asks for one." placeholder:"FILE"`
	ClientKeyFile     string `setting:"" type:"path" help:"Key of the client certificate (PEM)." placeholder:"FILE"`
}

// client speaks to one internal listener.
type client struct {
	base  string
	token string
	http  http.Client

	header http.Header // sent with every request, besides what each has; may be nil
}

// quick bounds a call that answers at once, such as a read or an organization change.
const quick = 45 * time.Second

func (c *connection) open() (*client, error) {
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, wrong("--server (KEYWARD_SERVER): must be http://host:port or https://host:port")
	}
	cl := &client{base: u.Scheme + "://" + u.Host}
	if c.InternalTokenFile != "" {
		data, _, err := readSecretFile(c.InternalTokenFile)
		if err != nil {
			return nil, wrong("--internal-token-file (KEYWARD_INTERNAL_TOKEN_FILE): %w", err)
		}
		lines := secretLines(data)
		if len(lines) == 0 {
			return nil, wrong("--internal-token-file (KEYWARD_INTERNAL_TOKEN_FILE): %s holds no token", c.InternalTokenFile)
		}
		cl.token = lines[0]
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.ServerCAFile != "" {
		if config.RootCAs, err = readPool(c.ServerCAFile); err != nil {
			return nil, wrong("--server-ca-file (KEYWARD_SERVER_CA_FILE): %w", err)
		}
	}
	if (c.ClientCertFile == "") != (c.ClientKeyFile == "") {
		return nil, wrong("--client-cert-file (KEYWARD_CLIENT_CERT_FILE) goes with --client-key-file (KEYWARD_CLIENT_KEY_FILE)")
	}
	if c.ClientCertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.ClientCertFile, c.ClientKeyFile)
		if err != nil {
			return nil, wrong("--client-cert-file (KEYWARD_CLIENT_CERT_FILE): %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	cl.http = http.Client{
		Transport:     &http.Transport{TLSClientConfig: config}, // no proxy: secrets travel here
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return cl, nil
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
		return "the server asks for one of its internal tokens: name a file that holds it with --internal-token-file"
	case e.Detail == "":
		return fmt.Sprintf("the server answered %d; is this the internal listener?", e.status)
	}
	return e.Detail
}

// unreachableError means that no answer came.
type unreachableError struct {
	base string
	err  error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("no answer from %s: %v; is the server running, and is --server its internal listener?", e.base, e.err)
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
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
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
