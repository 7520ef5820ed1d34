package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	urlPeriod  = 10 * time.Minute // between two fetches nobody asked for
	urlTimeout = 5 * time.Second  // for one fetch
	urlQuick   = 5                // fetches for unknown keys that may follow each other at once
	urlSlow    = 30 * time.Second // and the time in which one more is allowed

	filePeriod = 2 * time.Second
	fileQuick  = 20
	fileSlow   = 50 * time.Millisecond
	// fileSettled is how old a file's modification time must be before an unchanged one
	// proves unchanged content: a second write within one tick of the file system's clock does not show.
	fileSettled = 2 * time.Second
)

// source is where a key set comes from. Its read is never called by two goroutines at once.
type source struct {
	// read returns the document, at most maxKeySetBytes, or errUnchanged.
	read   func(context.Context) ([]byte, error)
	period time.Duration // between two reads that nobody asked for
	quick  bucket        // of the reads for unknown keys
	local  bool          // a file: its faults are an error at the start
}

var errUnchanged = errors.New("unchanged since the last read")

// openSource decides what a JWKS setting means. Its errors do not repeat the setting.
func openSource(setting string, client *http.Client, now func() time.Time) (source, error) {
	if !strings.Contains(setting, "://") {
		return source{
			read: fileReader(setting, now), local: true,
			period: filePeriod, quick: newBucket(fileQuick, fileSlow),
		}, nil
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
	return source{
		read: urlReader(u.String(), client), period: urlPeriod, quick: newBucket(urlQuick, urlSlow),
	}, nil
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
