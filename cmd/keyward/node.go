package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/door"
	"github.com/syncgram/keyward/internal/extauthz"
	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/probe"
	"github.com/syncgram/keyward/internal/reload"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/internal/verify"
	"github.com/syncgram/keyward/token"
)

// nodeConfig is what a node is made of, every value checked.
type nodeConfig struct {
	listen, verifyListen, adminListen string

	extAuthzListen string          // empty = no such listener
	tls            server.TLSFiles // Cert empty = no TLS; ClientCA concerns all listeners but the public one
	corsOrigins    []string

	credentials func() access.Credentials // asked at each use of a listener; nil = everybody may do everything
	adminHosts  []string
	clients     door.Clients
	files       *reload.Files // that are read again when they change

	database   sqlstore.Options
	masterKeys keySource
	ring       *seal.Ring
	lease      time.Duration
	advertise  string // where other nodes reach the verification listener; empty = where it listens

	probeEvery time.Duration  // 0 = no prober
	probeRoots *x509.CertPool // of the other nodes' certificates; nil = the system's

	authenticator *identity.Authenticator // the node's to close
	format        token.Format

	requiredRoles     []string
	roleClaim         string
	requireRegistered bool
	maxExpiresInDays  int
	maxOverlap        time.Duration // as in keys.Config

	userRequestsPerMinute int // 0 = no budget
	maxConnections        int // of each listener; 0 = from the limit of open files

	logger *slog.Logger
}

// node is one serving process: listeners, doors, domain, verifier and database.
type node struct {
	cfg      nodeConfig
	db       *lateStore
	keys     *masterKeys
	verifier *verify.Verifier
	service  *keys.Service
	metrics  *server.Metrics
	prober   *probe.Prober // nil = none

	listeners []*listener
	reloads   reloads // what SIGHUP re-reads

	// notify, when set, is told how the node is, in the words of sd_notify.
	notify func(state string)
	// bound, when set, is called once all listeners have their addresses and before they serve.
	bound func() error
	// ready, when set, is called once the node is ready. An error ends it.
	ready func(ctx context.Context) error
}

// listener is an address with what it serves.
type listener struct {
	name    string
	address string // as asked for; once the node runs, as it is
	tls     bool
	door    doorway
	net     net.Listener
}

// doorway is what a listener serves.
type doorway interface {
	Serve(l net.Listener) error         // nil once it was ended
	Shutdown(ctx context.Context) error // ends it when what runs is answered
	Close() error                       // ends it at once
}

// Times of a node's life.
const (
	drainTime   = 15 * time.Second // for requests that run when the node stops
	leastBudget = 30 * time.Second // of a management call
)

// newNode connects the parts. Nothing runs yet.
func newNode(cfg nodeConfig) (*node, error) {
	n := &node{cfg: cfg, metrics: server.NewMetrics(), notify: func(string) {}}
	cfg.database.Ring, cfg.database.Logger, cfg.database.OnTampered = cfg.ring, cfg.logger, n.refuseRow
	n.db = &lateStore{options: cfg.database}
	n.keys = newMasterKeys(cfg.masterKeys, cfg.ring, n.db, cfg.logger)

	var err error
	n.verifier, err = verify.New(verify.Config{
		Feed: n.db, Format: cfg.format, Address: n.advertised, Version: buildVersion(), Logger: cfg.logger,
		Lease: cfg.lease, OnBarrier: n.metrics.Barrier, RevokeAgain: func(ctx context.Context, id string) error { return n.service.RevokeAgain(ctx, id) },
	})
	if err != nil {
		return nil, err
	}
	writes, lists := cfg.database.AtOnce()
	n.service, err = keys.NewService(keys.Config{
		Store: n.db, Ring: cfg.ring, Format: cfg.format, Barrier: n.verifier, Render: server.RenderIssued,
		Manages: n.verifier.Manages, Proven: n.verifier.Proven, HeldRevision: n.verifier.HeldRevision,
		RequiredRoles: cfg.requiredRoles, RoleClaim: cfg.roleClaim, RequireRegistered: cfg.requireRegistered,
		MaxExpiresInDays: cfg.maxExpiresInDays, MaxOverlap: cfg.maxOverlap, Observe: n.metrics.Act,
		Writes: writes, Reads: lists, Logger: cfg.logger,
	})
	if err != nil {
		return nil, err
	}
	gate := access.Open()
	if cfg.credentials != nil {
		gate = access.NewGate(cfg.credentials, n.service.RecordDenied)
	}
	budget := max(leastBudget, 2*cfg.lease)
	doors, err := server.New(server.Config{
		Service: n.service, Authenticator: cfg.authenticator, Verifier: n.verifier,
		Operations: &operations{db: n.db, verifier: n.verifier, masterKeys: n.keys, logger: cfg.logger},
		Responder:  &probe.Responder{Ring: cfg.ring, Verify: n.verifier.Verify, NodeID: n.verifier.NodeID, DatabaseID: n.db.databaseID},
		Format:     cfg.format, Access: gate, AdminHosts: cfg.adminHosts, Clients: cfg.clients, CORSOrigins: cfg.corsOrigins,
		Metrics: n.metrics, Logger: cfg.logger, Version: buildVersion(), Budget: budget,
		UserRequestsPerMinute: cfg.userRequestsPerMinute,
	})
	if err != nil { // the origins are the one thing that was not checked before
		return nil, wrong("--cors-origins (KEYWARD_CORS_ORIGINS): %w", err)
	}
	n.metrics.WatchPools(n.db.stats)
	n.metrics.Registry.MustRegister(cfg.authenticator.Collectors()...)

	publicTLS, innerTLS, err := tlsConfigs(cfg.tls, cfg.files)
	if err != nil {
		return nil, wrong("--tls-cert-file (KEYWARD_TLS_CERT_FILE): %w", err)
	}
	if cfg.probeEvery > 0 && n.db.engine() == sqlstore.Postgres {
		if err := n.addProber(innerTLS, budget); err != nil {
			return nil, err
		}
	}
	connections, err := cfg.connectionLimits()
	if err != nil {
		return nil, err
	}
	limits := func(listener string) server.Limits {
		return server.Limits{Write: budget + drainTime, Connections: connections[listener]}
	}
	n.addHTTP("public", cfg.listen, server.NewHTTPServer(doors.Public(), limits("public"), cfg.logger), publicTLS)
	n.addHTTP("verification", cfg.verifyListen, server.NewHTTPServer(doors.Verification(), limits("verification"), cfg.logger), innerTLS)
	n.addHTTP("admin", cfg.adminListen, server.NewHTTPServer(doors.Admin(), limits("admin"), cfg.logger), innerTLS)
	if cfg.extAuthzListen != "" {
		envoy, err := extauthz.New(extauthz.Config{
			Verifier: n.verifier, Format: cfg.format, Metrics: n.metrics,
			Access: gate, Clients: cfg.clients, TLS: innerTLS, Logger: cfg.logger,
			MaxConnections: connections["extauthz"].Total,
		})
		if err != nil {
			return nil, err
		}
		n.listeners = append(n.listeners, &listener{name: "extauthz", address: cfg.extAuthzListen, door: envoy, tls: innerTLS != nil})
	}
	return n, nil
}

// addProber makes the prober, which asks the other nodes as their equal: under the master key, and,
// where there is TLS, with
// this node's own certificate.
func (n *node) addProber(innerTLS *tls.Config, budget time.Duration) (err error) {
	cfg := probe.Config{
		Service: n.service, Nodes: n.db.nodes, Signer: n.db.signer,
		Every: n.cfg.probeEvery, Budget: budget, Logger: n.cfg.logger,
	}
	if innerTLS != nil {
		cfg.TLS = &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: n.cfg.probeRoots,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				now, err := innerTLS.GetConfigForClient(nil) // as it was read last
				if err != nil {
					return nil, err
				}
				return &now.Certificates[0], nil
			},
		}
	}
	if n.prober, err = probe.New(cfg); err != nil {
		return err
	}
	n.metrics.Registry.MustRegister(n.prober.Collectors()...)
	return nil
}

// advertised is where the other nodes reach this one.
func (n *node) advertised() string {
	if n.cfg.advertise != "" {
		return n.cfg.advertise
	}
	address := n.address("verification")
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsUnspecified() {
		return address
	}
	if host, err = os.Hostname(); err != nil {
		return address
	}
	return net.JoinHostPort(host, port)
}

// refuseRow has the memory refuse a row that the database found changed by somebody else, whoever's
// read it was. The database has logged it by table and id.
func (n *node) refuseRow(table, id string, _ error) { n.verifier.RefuseRow(table, id) }

func (n *node) addHTTP(name, address string, s server.HTTPServer, config *tls.Config) {
	s.TLSConfig = config
	n.listeners = append(n.listeners, &listener{name: name, address: address, door: s, tls: config != nil})
}

// tlsConfigs returns nothing when there is no certificate.
func tlsConfigs(files server.TLSFiles, watched *reload.Files) (public, inner *tls.Config, err error) {
	if files.Cert == "" {
		return nil, nil, nil
	}
	if inner, err = server.TLSConfig(files, watched); err != nil {
		return nil, nil, err
	}
	files.ClientCA = "" // users have none
	public, err = server.TLSConfig(files, watched)
	return public, inner, err
}

// address returns where a listener can be reached. The node must be running.
func (n *node) address(name string) string {
	for _, l := range n.listeners {
		if l.name == name {
			return l.address
		}
	}
	panic("no listener " + name)
}

// close releases what the node holds. It does not run any more.
func (n *node) close() {
	n.cfg.authenticator.Close()
	if err := n.db.close(); err != nil {
		n.cfg.logger.Error("the database could not be closed", "error", err)
	}
}

// run serves until ctx ends, then stops in order (R5): it accepts no more, finishes what runs,
// writes last_used_at and gives the lease back. A database that is away is waited for.
func (n *node) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := n.listen(); err != nil {
		return err
	}
	if n.bound != nil {
		if err := n.bound(); err != nil {
			return err
		}
	}
	var serving sync.WaitGroup
	for _, l := range n.listeners {
		serving.Go(func() {
			if err := l.door.Serve(l.net); err != nil {
				cancel(fmt.Errorf("the %s listener: %w", l.name, err))
			}
		})
		n.cfg.logger.Info("listening", "listener", l.name, "address", l.address, "tls", l.tls)
	}

	following, stopFollowing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFollowing()
	var follower, prober sync.WaitGroup
	follower.Go(func() { n.keys.run(following) })
	if err := n.db.open(ctx, n.waiting); err != nil {
		cancel(err)
	} else {
		follower.Go(func() { n.verifier.Run(following) })
		follower.Go(func() { n.watchDurability(following) })
		follower.Go(func() { n.service.Run(following) })
		if n.prober != nil {
			prober.Go(func() { n.prober.Run(ctx) })
		}
		n.watch(ctx, cancel)
	}

	n.cfg.logger.Info("stopping", "why", context.Cause(ctx).Error())
	n.notify("STOPPING=1")
	n.shutdown()
	serving.Wait()
	prober.Wait()
	stopFollowing() // after the last request: what it wrote had to be acknowledged by this node too
	follower.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	n.cfg.logger.Info("stopped")
	return nil
}

// listen opens all listeners or none.
func (n *node) listen() error {
	for i, l := range n.listeners {
		var err error
		if l.net, err = net.Listen("tcp", l.address); err != nil {
			for _, open := range n.listeners[:i] {
				_ = open.net.Close()
			}
			if errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf("%s is in use by another program: stop that, or choose another address with --%s", l.address, l.flag())
			}
			return fmt.Errorf("the %s listener: %w", l.name, err)
		}
		l.address = l.net.Addr().String()
	}
	return nil
}

// flag is the flag that sets the listener's address.
func (l *listener) flag() string {
	switch l.name {
	case "public":
		return "listen"
	case "verification":
		return "verify-listen"
	}
	return l.name + "-listen"
}

// waiting says that the database is away.
func (n *node) waiting(err error, pause time.Duration) {
	if errors.Is(
		err,
		seal.ErrUnknownKey,
	) { // logged once by n.keys, which reads the keys again meanwhile
		n.notify("STATUS=waiting for a master key\nEXTEND_TIMEOUT_USEC=30000000")
		return
	}
	n.cfg.logger.Warn("waiting for the database; not ready until it answers", "error", err, "in", pause.String())
	n.notify("STATUS=waiting for the database\nEXTEND_TIMEOUT_USEC=30000000")
}

// watchEvery is how often a node looks whether it is still ready, to say so.
const watchEvery = 250 * time.Millisecond

// watch says when the node becomes ready and when it no longer is, until ctx ends.
func (n *node) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	began := time.Now()
	was := false
	pause := 5 * time.Millisecond // the first time comes soon and is waited for
	for announced := false; ctx.Err() == nil; {
		err := n.verifier.Ready()
		switch is := err == nil; {
		case is && !was:
			was = true
			n.cfg.logger.Info("ready", "database", n.db.engine(), "revision", n.verifier.Stats().Revision, "after", time.Since(began).Round(time.Millisecond).String())
			n.notify("READY=1\nSTATUS=ready")
			if pause = watchEvery; !announced && n.ready != nil {
				if err := n.ready(ctx); err != nil {
					cancel(err)
				}
			}
			announced = true
		case !is && was:
			was = false
			n.cfg.logger.Error("not ready", "reason", err.Error())
			n.notify("STATUS=not ready: " + strings.ReplaceAll(err.Error(), "\n", " "))
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// durabilityEvery is how often a node looks what an answered write survives: it is set in the database.
const durabilityEvery = 15 * time.Second

// watchDurability says what an answered revocation survives, at the start and whenever that changes.
func (n *node) watchDurability(ctx context.Context) {
	var last sqlstore.Mode
	for {
		mode, err := with(n.db, func(s *sqlstore.Store) (sqlstore.Mode, error) { return s.Mode(ctx) })
		if err == nil && mode != last {
			last = mode
			n.metrics.Durability(string(mode))
			level := slog.LevelInfo
			if mode == sqlstore.Asynchronous {
				level = slog.LevelWarn
			}
			n.cfg.logger.Log(ctx, level, "what an answered revocation survives", "mode", string(mode), "means", mode.Meaning())
		}
		select {
		case <-time.After(durabilityEvery):
		case <-ctx.Done():
			return
		}
	}
}

// shutdown ends the listeners within drainTime.
func (n *node) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	var stopping sync.WaitGroup
	for _, l := range n.listeners {
		stopping.Go(func() {
			if err := l.door.Shutdown(ctx); err != nil {
				n.cfg.logger.Warn("requests were cut off", "listener", l.name, "error", err)
				_ = l.door.Close()
			}
		})
	}
	stopping.Wait()
}
