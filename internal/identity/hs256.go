package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// minSecretBytes is what RFC 7518 §3.2 asks of HS256.
const minSecretBytes = 32

var errShortSecret = errors.New("the HS256 secret must have at least 32 bytes")

// sharedSecret is an HS256 secret that is read again every filePeriod (R11). A read that fails
// changes nothing.
type sharedSecret struct {
	read    func() ([]byte, error)
	log     *slog.Logger
	current atomic.Pointer[[]byte]

	life  context.Context
	stop  context.CancelFunc
	timer *time.Timer // begins a read

	mu      sync.Mutex        // held by the running read
	latest  [sha256.Size]byte // digest of the latest content, good or not
	failing bool              // the latest read failed
	logged  logged            // the latest failure in the log
}

// newSharedSecret reads the secret for the first time.
func newSharedSecret(
	ctx context.Context, read func() ([]byte, error), log *slog.Logger,
) (*sharedSecret, error) {
	s := &sharedSecret{read: read, log: log}
	s.life, s.stop = context.WithCancel(ctx)
	if err := s.load(); err != nil {
		s.stop()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(filePeriod, s.refresh)
	return s, nil
}

// find is the authenticator's key function. The secret has no name, whatever a token's kid says.
func (s *sharedSecret) find(context.Context, jose.SignatureAlgorithm, string) (any, error) {
	return *s.current.Load(), nil
}

// refresh reads the secret and plans the next read.
func (s *sharedSecret) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
		return
	}
	err := s.load()
	if err != nil {
		if about := (logged{err.Error(), s.latest}); about != s.logged {
			s.logged = about
			s.log.Warn("HS256 secret not read; the last good one is kept", "error", err.Error())
		}
	} else if s.failing {
		s.logged = logged{}
		s.log.Info("HS256 secret is readable again")
	}
	s.failing = err != nil
	s.timer.Reset(filePeriod)
}

func (s *sharedSecret) load() error {
	data, err := s.read()
	if err != nil {
		return err
	}
	s.latest = sha256.Sum256(data)
	if len(data) < minSecretBytes {
		return errShortSecret
	}
	if now := s.current.Load(); now == nil || !bytes.Equal(*now, data) {
		data = bytes.Clone(data)
		s.current.Store(&data)
		if now != nil {
			s.log.Info("HS256 secret has changed")
		}
	}
	return nil
}

// reload makes the next read begin now. It does not wait for one that runs.
func (s *sharedSecret) reload() {
	if s.life.Err() == nil {
		s.timer.Reset(0)
	}
}

// close ends the reads and waits for the one that runs.
func (s *sharedSecret) close() {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
}
