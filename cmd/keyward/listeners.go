package main

import (
	"net"
	"strconv"
	"strings"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/reload"
	"github.com/syncgram/keyward/internal/secretfile"
)

// innerListeners is where a server is verified and administered, and who may do it. Serve and the
// commands that talk to a running server share it: started with the server's settings, they find it.
type innerListeners struct {
	VerifyListen         listenAddress `setting:"" default:"127.0.0.1:8081" group:"Listeners:" help:"Verification listener: /v1/verify, /v1/authorize, /v1/introspect and health." placeholder:"HOST:PORT"`
	AdminListen          listenAddress `setting:"" default:"127.0.0.1:8082" group:"Listeners:" help:"Admin listener: organizations, audit, nodes, status, master key, metrics and health." placeholder:"HOST:PORT"`
	CredentialsFile      string        `setting:"" type:"path" group:"Listeners:" help:"Who may use the verification, the admin and the ext_authz listener: lines <name> <scope>[,<scope>] <token>. Scopes are verify, read and operate; the token is plain, sha256:<hex>, or cert:<subject> for a client certificate. Read again when it changes. Required off loopback unless client certificates are." placeholder:"FILE"`
	TLSCertFile          string        `setting:"" name:"tls-cert-file" type:"path" group:"Listeners:" help:"Certificate chain (PEM) for all listeners; read again when it changes. Off by default." placeholder:"FILE"`
	TLSKeyFile           string        `setting:"" name:"tls-key-file" type:"path" group:"Listeners:" help:"Key of the certificate (PEM)." placeholder:"FILE"`
	InternalClientCAFile string        `setting:"" name:"internal-client-ca-file" type:"path" group:"Listeners:" help:"Serve the verification, the admin and the ext_authz listener only to clients with a certificate of these authorities (PEM). Such a client may verify; a line cert:<subject> of the credentials file says what else." placeholder:"FILE"`
}

// outerListeners are the listeners that doctor checks besides.
type outerListeners struct {
	Listen         listenAddress `setting:"" default:"127.0.0.1:8080" group:"Listeners:" help:"Public listener: the management API, /openapi.json and /docs." placeholder:"HOST:PORT"`
	ExtAuthzListen listenAddress `setting:"" name:"extauthz-listen" group:"Listeners:" help:"Listener for Envoy: ext_authz and health over gRPC. Off by default. Credentials and TLS as for the verification listener." placeholder:"HOST:PORT"`
}

// callers is what finds out who uses a listener, besides its credentials.
type callers struct {
	TrustedProxies []string `setting:"" group:"Listeners:" help:"Networks (CIDR), separated by commas, of proxies whose X-Forwarded-For is believed: the client in logs and the audit log is the rightmost address that is not in them. None by default." placeholder:"CIDR"`
	AdminHosts     []string `setting:"" group:"Listeners:" help:"Names, separated by commas, under which the admin listener is reached besides its address and localhost: host, or host:port." placeholder:"HOST"`
}

const credentialsFlag = "--credentials-file (KEYWARD_CREDENTIALS_FILE)"

// check finds what is wrong with the listeners taken together.
func (l *innerListeners) check(o *outerListeners) error {
	switch {
	case o.Listen == "":
		return wrong("--listen (KEYWARD_LISTEN): must be host:port")
	case l.VerifyListen == "":
		return wrong("--verify-listen (KEYWARD_VERIFY_LISTEN): must be host:port")
	case l.AdminListen == "":
		return wrong("--admin-listen (KEYWARD_ADMIN_LISTEN): must be host:port")
	case o.Listen.takes(l.VerifyListen):
		return wrong("--listen (KEYWARD_LISTEN) and --verify-listen (KEYWARD_VERIFY_LISTEN): must not be the same address")
	case o.Listen.takes(l.AdminListen):
		return wrong("--listen (KEYWARD_LISTEN) and --admin-listen (KEYWARD_ADMIN_LISTEN): must not be the same address")
	case l.VerifyListen.takes(l.AdminListen):
		return wrong("--verify-listen (KEYWARD_VERIFY_LISTEN) and --admin-listen (KEYWARD_ADMIN_LISTEN): must not be the same address")
	case o.ExtAuthzListen != "" && (o.Listen.takes(o.ExtAuthzListen) || l.VerifyListen.takes(o.ExtAuthzListen) || l.AdminListen.takes(o.ExtAuthzListen)):
		return wrong("--extauthz-listen (KEYWARD_EXTAUTHZ_LISTEN): must not be the address of another listener")
	case (l.TLSCertFile == "") != (l.TLSKeyFile == ""):
		return wrong("--tls-cert-file (KEYWARD_TLS_CERT_FILE) goes with --tls-key-file (KEYWARD_TLS_KEY_FILE)")
	case l.InternalClientCAFile != "" && l.TLSCertFile == "":
		return wrong("--internal-client-ca-file (KEYWARD_INTERNAL_CLIENT_CA_FILE) needs --tls-cert-file (KEYWARD_TLS_CERT_FILE)")
	}
	if l.CredentialsFile != "" || l.InternalClientCAFile != "" {
		return nil
	}
	for _, open := range []struct {
		flag    string
		address listenAddress
	}{
		{"--verify-listen (KEYWARD_VERIFY_LISTEN)", l.VerifyListen},
		{"--admin-listen (KEYWARD_ADMIN_LISTEN)", l.AdminListen},
		{"--extauthz-listen (KEYWARD_EXTAUTHZ_LISTEN)", o.ExtAuthzListen},
	} {
		if open.address != "" && !open.address.loopback() {
			return wrong("%s is required unless %s is on loopback or clients have certificates (--internal-client-ca-file)", credentialsFlag, open.flag)
		}
	}
	return nil
}

// credentials reads the credentials file.
func (l *innerListeners) credentials() (access.Credentials, error) {
	data, err := secretfile.Read(l.CredentialsFile)
	if err != nil {
		return access.Credentials{}, err
	}
	return access.Parse(data)
}

// watchCredentials returns what the credentials file holds now, at each call. It is nil when
// everybody may do everything, because the listeners are on loopback.
func (l *innerListeners) watchCredentials(files *reload.Files) (current func() access.Credentials, err error) {
	if l.CredentialsFile == "" {
		if l.InternalClientCAFile == "" {
			return nil, nil
		}
		return func() access.Credentials { return access.Credentials{} }, nil
	}
	v, err := reload.Watch(files, "credentials", []string{l.CredentialsFile}, l.credentials)
	if err != nil {
		return nil, wrong("%s: %w", credentialsFlag, err)
	}
	return v.Get, nil
}

// clients returns what finds the address of a client.
func (c *callers) clients() (door.Clients, error) {
	clients, err := door.NewClients(c.TrustedProxies)
	if err != nil {
		return clients, wrong("--trusted-proxies (KEYWARD_TRUSTED_PROXIES): %w", err)
	}
	return clients, nil
}

// hosts returns the names of the admin listener.
func (c *callers) hosts() ([]string, error) {
	hosts := make([]string, len(c.AdminHosts))
	for i, h := range c.AdminHosts {
		h = strings.TrimSpace(h)
		name, port, err := net.SplitHostPort(h)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		} else {
			name, err = h, nil
		}
		if err != nil || name == "" || strings.ContainsAny(name, "/@*, ") {
			return nil, wrong("--admin-hosts (KEYWARD_ADMIN_HOSTS): name %d must be host or host:port", i+1)
		}
		hosts[i] = h
	}
	return hosts, nil
}
