package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/reload"
)

// Limits bounds what one connection may take. The zero value of each is its default.
type Limits struct {
	ReadHeader time.Duration // for the headers; 5 s
	Read       time.Duration // for the headers with the body; 15 s
	Write      time.Duration // from the headers to the end of the answer; 60 s. Longer than Config.Budget
	Idle       time.Duration // between two requests of a connection; 75 s

	Connections ConnectionLimits // of the listener; zero = no bound
}

// HTTPServer serves one listener.
type HTTPServer struct {
	*http.Server
	connections *connections // nil = no bound
}

// Serve answers the connections of l, over TLS when there is a TLSConfig, until Shutdown or Close, and is then nil.
func (s HTTPServer) Serve(l net.Listener) (err error) {
	l = lazyListener{s.connections.limit(l)}
	if s.TLSConfig != nil {
		err = s.ServeTLS(l, "", "")
	} else {
		err = s.Server.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// NewHTTPServer returns a server for one listener, ready for Serve. Headers may have 16 KiB:
// the handler answers 431 beyond that, and net/http itself ends what is much longer.
func NewHTTPServer(h http.Handler, l Limits, logger *slog.Logger) HTTPServer {
	or := func(d, otherwise time.Duration) time.Duration {
		if d == 0 {
			return otherwise
		}
		return d
	}
	held := newConnections(l.Connections, logger)
	return HTTPServer{connections: held, Server: &http.Server{
		ConnState:         held.state,
		ConnContext:       withHeld,
		Handler:           h,
		ReadHeaderTimeout: or(l.ReadHeader, 5*time.Second),
		ReadTimeout:       or(l.Read, 15*time.Second),
		WriteTimeout:      or(l.Write, 60*time.Second),
		IdleTimeout:       or(l.Idle, 75*time.Second),
		MaxHeaderBytes:    2 * door.MaxHeader,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),

		DisableGeneralOptionsHandler: true, // OPTIONS * has a request id too (C26)
	}}
}

// TLSFiles are the files of a listener's TLS.
type TLSFiles struct {
	Cert, Key string // PEM
	ClientCA  string // PEM; when set, only clients with a certificate of it are served
}

// TLSConfig reads the files, and reads them again when they change, so that a certificate is renewed
// without a restart.
func TLSConfig(f TLSFiles, files *reload.Files) (*tls.Config, error) {
	paths := []string{f.Cert, f.Key}
	if f.ClientCA != "" {
		paths = append(paths, f.ClientCA)
	}
	current, err := reload.Watch(files, "TLS certificate", paths, f.load)
	if err != nil {
		return nil, err
	}
	outer := current.Get().Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Get(), nil }
	return outer, nil
}

func (f TLSFiles) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate and key: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	if f.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("TLS client CA: %w", err)
	}
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("TLS client CA: the file has no certificate in PEM")
	}
	return c, nil
}
