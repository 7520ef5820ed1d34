package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/syncgram/keyward/internal/identity"
	"github.com/syncgram/keyward/internal/keys"
)

// filesEvery is how often a file is looked at.
const filesEvery = 2 * time.Second

// fileAuthenticator judges users' tokens by an HS256 secret in a file, as it was read last (R11).
type fileAuthenticator struct {
	now    atomic.Pointer[identity.Authenticator]
	path   string
	build  func() (*identity.Authenticator, error)
	logger *slog.Logger
}

// newFileAuthenticator reads the file.
func newFileAuthenticator(
	path string,
	logger *slog.Logger,
	build func() (*identity.Authenticator, error),
) (*fileAuthenticator, error) {
	a := &fileAuthenticator{path: path, build: build, logger: logger}
	first, err := build()
	if err != nil {
		return nil, err
	}
	a.now.Store(first)
	return a, nil
}

// Authenticate implements server.Authenticator.
func (a *fileAuthenticator) Authenticate(
	ctx context.Context,
	token string,
) (keys.Principal, error) {
	return a.now.Load().Authenticate(ctx, token)
}

// Close ends what it holds.
func (a *fileAuthenticator) Close() { a.now.Load().Close() }

// run reads the file again when it changes and on SIGHUP, until ctx ends. A file that cannot be
// used changes nothing.
func (a *fileAuthenticator) run(ctx context.Context) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	file := watchFile(a.path)
	tick := time.NewTicker(filesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			file.changed()
		case <-tick.C:
			if !file.changed() {
				continue
			}
		}
		next, err := a.build()
		if err != nil {
			a.logger.Error(
				"a file could not be read again; what it held before stays in force",
				"file",
				a.path,
				"error",
				err,
			)
			continue
		}
		a.now.Swap(next).Close()
		a.logger.Info("a file was read again", "file", a.path)
	}
}
