package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	urlGap     = 30 * time.Second // between the starts of two fetches, failures included
	urlPeriod  = 10 * time.Minute // between two fetches nobody asked for
	urlTimeout = 5 * time.Second  // for one fetch

	fileGap    = time.Second
	filePeriod = 2 * time.Second
	// fileSettled is how old a file's modification time must be before an unchanged one
	// proves unchanged content: a second write within one tick of the file system's clock does not show.
	fileSettled = 2 * time.Second
)

// source is where a key set comes from. Its read is never called by two goroutines at once.
type source struct {
	// read returns the document, at most maxKeySetBytes, or errUnchanged.
	read        func(context.Context) ([]byte, error)
	gap, period time.Duration
	local       bool // a file, whose faults its owner can mend before the start
}

var errUnchanged = errors.New("unchanged since the last read")

// openSource decides what a JWKS setting means. Its errors do not repeat the setting.
func openSource(setting string, client *http.Client, now func() time.Time) (source, error) {
	if !strings.Contains(setting, "://") {
		return source{read: fileReader(setting, now), gap: fileGap, period: filePeriod, local: true}, nil
	}
	u, err := url.Parse(setting)
	if err != nil {
		return source{}, errors.New("not a URL")
	}
	switch {
	case u.Hostname() == "":
		return source{}, errors.New("the URL has no host")
	case u.User != nil:
		return source{}, errors.New("the URL must not hold a user or a password")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return source{}, errors.New("http is for loopback only: use https")
	case u.Scheme != "http" && u.Scheme != "https":
		return source{}, errors.New("must be an https URL, an http URL on loopback, or the path of a file")
	}
	return source{read: urlReader(u.String(), client), gap: urlGap, period: urlPeriod}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || (ip != nil && ip.IsLoopback())
}

// urlReader fetches a key set. It follows no redirect, so that the issuer cannot send
// this process to another host, such as a cloud's metadata address (OWASP API7).
func urlReader(address string, client *http.Client) func(context.Context) ([]byte, error) {
	own := http.Client{}
	if client != nil {
		own = *client
	} else {
		own.Transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSHandshakeTimeout:    urlTimeout,
			MaxResponseHeaderBytes: 64 << 10,
			DisableKeepAlives:      true, // minutes pass between two fetches
			DisableCompression:     true, // a small document must be small on the wire
		}
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return func(ctx context.Context) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, urlTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, errors.New("not a URL")
		}
		req.Header.Set("Accept", "application/jwk-set+json, application/json")
		resp, err := own.Do(req)
		if err != nil {
			return nil, bare(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the server answered %d", resp.StatusCode)
		}
		return readLimited(resp.Body)
	}
}

// fileReader reads a key set file, and again once its identity, size or modification time changes.
func fileReader(path string, now func() time.Time) func(context.Context) ([]byte, error) {
	var last fs.FileInfo // of the latest read; nil when that read proves nothing
	return func(context.Context) ([]byte, error) {
		info, err := os.Stat(path)
		if err != nil {
			return nil, bare(err)
		}
		if !info.Mode().IsRegular() {
			return nil, errors.New("not a regular file")
		}
		if last != nil && os.SameFile(last, info) && last.Size() == info.Size() && last.ModTime().Equal(info.ModTime()) {
			return nil, errUnchanged
		}
		last = nil
		f, err := os.Open(path)
		if err != nil {
			return nil, bare(err)
		}
		defer func() { _ = f.Close() }()
		if info, err = f.Stat(); err != nil {
			return nil, bare(err)
		}
		data, err := readLimited(f)
		if err != nil {
			return nil, err
		}
		if now().Sub(info.ModTime()) > fileSettled {
			last = info
		}
		return data, nil
	}
}

func readLimited(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeySetBytes+1))
	switch {
	case err != nil:
		return nil, bare(err)
	case len(data) > maxKeySetBytes:
		return nil, fmt.Errorf("larger than %d KiB", maxKeySetBytes>>10)
	}
	return data, nil
}

// bare strips the address or path from an error of the standard library.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return bare(u.Err)
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		return bare(p.Err)
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return bare(l.Err)
	}
	return err
}

// keyCache holds the latest good key set of one source. A token whose key is in it is judged
// without waiting for anything; the others share one read, at most one per gap, so a flood
// of unknown kids costs the issuer no more than one request every 30 s. A read that
// fails changes nothing.
type keyCache struct {
	source source
	now    func() time.Time
	log    *slog.Logger
	set    atomic.Pointer[keySet] // nil until the first good read

	life context.Context // ends the background work
	stop context.CancelFunc
	work sync.WaitGroup // the refresher and the running read

	mu      sync.Mutex
	tried   time.Time     // when the latest read began
	running chan struct{} // closed when the running read ends; nil when none runs

	// Owned by the running read.
	document []byte // of the latest good read
	failure  string // of the latest read; logged when it changes
}

// newKeyCache begins the first read. A local source's read is over when newKeyCache returns, and
// must have found a usable key.
func newKeyCache(ctx context.Context, src source, now func() time.Time, log *slog.Logger) (*keyCache, error) {
	c := &keyCache{source: src, now: now, log: log}
	c.life, c.stop = context.WithCancel(ctx)
	if src.local {
		c.tried = now()
		if err := c.load(); err != nil {
			c.stop()
			return nil, err
		}
		if len(c.set.Load().keys) == 0 {
			c.stop()
			return nil, errors.New("holds no public key for RS256, ES256 or EdDSA")
		}
	}
	first := c.refresh()
	c.work.Go(func() { c.keepFresh(first) })
	return c, nil
}

func (c *keyCache) close() {
	// Under the lock, so that no read starts once the wait has begun.
	c.mu.Lock()
	c.stop()
	c.mu.Unlock()
	c.work.Wait()
}

// find returns the one key that may have signed a token. The error is a refusal, or wraps
// ErrUnavailable.
func (c *keyCache) find(ctx context.Context, alg jose.SignatureAlgorithm, kid string) (any, error) {
	key, err := c.set.Load().find(alg, kid)
	if !errors.Is(err, errUnknownKey) {
		return key, err
	}
	if done := c.refresh(); done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
	}
	set := c.set.Load()
	if set == nil {
		return nil, ErrUnavailable
	}
	return set.find(alg, kid)
}

// refresh starts a read unless one runs or the latest began less than the gap ago. It
// returns a channel that is closed when the running read ends, or nil when none runs.
func (c *keyCache) refresh() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != nil {
		return c.running
	}
	now := c.now()
	if c.life.Err() != nil || (!c.tried.IsZero() && now.Sub(c.tried) < c.source.gap) {
		return nil
	}
	c.tried = now
	done := make(chan struct{})
	c.running = done
	// The read belongs to all who wait for it, so it does not end with one caller's request.
	c.work.Go(func() {
		c.report(c.load())
		c.mu.Lock()
		c.running = nil
		c.mu.Unlock()
		close(done)
	})
	return done
}

// keepFresh reads the key set from time to time: a key the issuer has withdrawn is
// forgotten even if nobody presents a new one.
func (c *keyCache) keepFresh(running <-chan struct{}) {
	for {
		if running != nil {
			<-running
		}
		wait := c.source.period
		if c.set.Load() == nil {
			wait = c.source.gap
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.life.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		running = c.refresh()
	}
}

// load reads the source once. A well-formed key set replaces the one before even when nothing in it is
// usable: the issuer has withdrawn those keys. In a file, a weak key is a mistake of its owner and
// refuses the whole file.
func (c *keyCache) load() error {
	data, err := c.source.read(c.life)
	if errors.Is(err, errUnchanged) || (err == nil && c.document != nil && bytes.Equal(data, c.document)) {
		return nil
	}
	if err != nil {
		return err
	}
	set, left, err := parseKeySet(data)
	if err != nil {
		return err
	}
	weak := errors.Join(left...)
	if c.source.local && errors.Is(weak, errWeakKey) {
		return weak
	}
	c.document = data
	c.set.Store(set)
	c.log.Info("token key set loaded", "keys", len(set.keys), "left_out", len(left))
	for _, err := range left {
		c.log.Warn("token key left out", "reason", err.Error())
	}
	return nil
}

// report logs a failing source once per kind of failure, and its recovery.
func (c *keyCache) report(err error) {
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	if failure == c.failure || c.life.Err() != nil {
		return
	}
	c.failure = failure
	if err != nil {
		c.log.Warn("token key set not read; the last good one is kept", "error", failure, "have_keys", c.set.Load() != nil)
		return
	}
	c.log.Info("token key set is readable again")
}
